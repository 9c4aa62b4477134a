"""Scoring, ranking and training of medical segmentations, after SegRap2023 (arXiv 2312.09576)."""
