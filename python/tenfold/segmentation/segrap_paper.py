"""Published figures of SegRap2023 that a run is read against.

From the abstract of arXiv 2312.09576 and from the teams' posters in the challenge's repository
(HiLab-git/SegRap2023). DSC and NSD are means over structures.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MIRRORING", "RANGES", "published"]

RANGES = {"1": (0.7668, 0.8670), "2": (0.7042, 0.7344)}
"""Task -> lowest and highest mean DSC on the test cases among the teams of the paper."""

MIRRORING = {"mirrored": 0.7001, "not mirrored": 0.8323}
"""Mean DSC of fold 0 of nnU-Net on task 1, with and without its default mirroring of the training images."""

_VALIDATION_1 = (
    (1, "UniSeg", 0.8925, 0.9110), (2, "", 0.8876, 0.9052), (3, "", 0.8881, 0.9046),
    (4, "Lee", 0.8845, 0.8985), (5, "", 0.8795, 0.8838),
    (6, "nnU-Net baseline (shared with 7 and 8)", 0.8674, 0.8676), (9, "", 0.8188, 0.8239),
    (10, "", 0.7984, 0.8024), (11, "", 0.7895, 0.7851), (12, "", 0.7547, 0.7199),
)  # fmt: skip
_VALIDATION_2 = (
    (1, "", 0.7919, 0.7441), (2, "", 0.7901, 0.7397), (3, "", 0.7902, 0.7393), (4, "", 0.7887, 0.7307),
    (5, "", 0.7848, 0.7312),
)  # fmt: skip
_TEST = {
    "1": (("nnU-Net v1 (Astaraki)", 0.854, 0.849), ("DKFZ, out of competition", 0.8477, 0.8441)),
    "2": (("DKFZ, GTVp", 0.7771, 0.3560), ("DKFZ, GTVnd", 0.6918, 0.6476), ("Astaraki", 0.731, 0.498)),
}


def published(task: str) -> list[dict[str, Any]]:
    """The validation leaderboard and what posters say of the test cases; empty for other tasks."""
    board = {"1": _VALIDATION_1, "2": _VALIDATION_2}.get(task, ())
    rows: list[dict[str, Any]] = [
        {"cases": "validation", "place": place, "team": team, "DSC": dsc, "NSD": nsd}
        for place, team, dsc, nsd in board
    ]
    return rows + [
        {"cases": "test", "place": "", "team": team, "DSC": dsc, "NSD": nsd}
        for team, dsc, nsd in _TEST.get(task, ())
    ]
