"""Losses of other domain-adaptation code under its own names, arguments and values, on fused kernels.

One module for each: `tllib` (Transfer-Learning-Library), `pytorch_adapt`, `msmda` (VoiceBeer/MS-MDA), `dsan`
(deep-transfer-learning) and `can` (Contrastive Adaptation Network). Change the import, keep the rest.
"""
