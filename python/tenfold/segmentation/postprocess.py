"""What is done to a predicted label map before it is handed in: the sides.

Largest components and holes are `tenfold.ops.keep_largest` and `tenfold.ops.fill_holes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.segmentation.labels import Task, swap_labels

__all__ = ["split_sides"]


def split_sides(
    labels: NDArray[Any], task: Task, middle: float | None = None, left_low: bool = False
) -> NDArray[Any]:
    """Give each voxel of a sided label the label of the side that it lies on.

    Args:
        labels: (z, y, x), the last axis running from one side of the head to the other.
        middle: position of the mid-sagittal plane on that axis; None: the mean of all labelled voxels.
        left_low: whether the left side has the lower indices (True for an axis towards the right).
    """
    if middle is None:
        count = np.count_nonzero(labels, axis=(0, 1))
        middle = float((count * np.arange(len(count))).sum() / max(int(count.sum()), 1))
    table = np.arange(max(int(labels.max(initial=0)), task.highest) + 1)
    to_left, to_right = table.copy(), table.copy()
    for label, other in swap_labels(task).items():
        organ = next(o for o, parts in task.parts.items() if label in parts and task.partner(o))
        (to_right if organ.endswith("_L") else to_left)[label] = other
    low = np.arange(labels.shape[2]) < middle
    found = labels.copy()
    for part, is_left in ((low, left_low), (~low, not left_low)):
        found[..., part] = (to_left if is_left else to_right)[labels[..., part]]
    return found
