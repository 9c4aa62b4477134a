"""Segmentation challenges: read volumes, score and rank predictions, train and run a small network.

    tenfold run segrap --predictions DIR --ground_truth DIR --task 1
    tenfold.segmentation.score(SegrapConfig(...))        the same from Python

nibabel, joblib and plotting load where they are used; torch loads with this package.
"""

from __future__ import annotations

from tenfold.segmentation.cases import Options
from tenfold.segmentation.evaluate import Evaluation, evaluate
from tenfold.segmentation.files import (
    Header,
    Volume,
    read_labels,
    read_mask,
    read_volume,
    write_mha,
    write_nifti,
)
from tenfold.segmentation.labels import TASKS, Task, load_task, merge, swap_labels, unmerge
from tenfold.segmentation.layouts import Submission, find_submissions
from tenfold.segmentation.segrap import score
from tenfold.segmentation.segrap_config import SegrapConfig

__all__ = [
    "TASKS", "Evaluation", "Header", "Options", "SegrapConfig", "Submission", "Task", "Volume",
    "evaluate", "find_submissions", "load_task", "merge", "read_labels", "read_mask", "read_volume", "score",
    "swap_labels", "unmerge", "write_mha", "write_nifti",
]  # fmt: skip
