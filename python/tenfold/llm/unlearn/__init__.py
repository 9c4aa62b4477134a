"""Unlearning in language models: data, losses, training and evaluation (SOUL, arXiv 2404.18239).

Nothing is imported here; `tenfold.llm.unlearn.data` and `tenfold.llm.unlearn.evaluate` are the doors.
"""
