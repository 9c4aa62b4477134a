"""Figures of the benchmark's paper (arXiv 2402.11592) as far as they could be checked, for comparison.

Accuracies in percent on SST-2. ``checked`` says whether the number was read in a source (the table of ReLIZO,
which repeats the paper's rows) or is only remembered; nothing is printed without that mark. The paper's COPA,
WinoGrande, memory and time tables could not be read and are not given.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ACCURACY", "ALIGNMENT", "MEMORY", "MODELS", "Figure", "accuracy"]


class Figure(NamedTuple):
    """A number of the paper and whether it could be checked."""

    value: float
    checked: bool


SCHEMES = ("ft", "lora", "prefix", "prompt")
MODELS = {"opt": "OPT-1.3B", "roberta": "RoBERTa-large"}

_OPT: dict[str, tuple[float, float, float, float]] = {
    "sgd": (91.1, 93.6, 93.1, 92.8),
    "forward-grad": (90.3, 90.3, 90.0, 82.4),
    "zo-sgd": (90.8, 90.1, 91.4, 84.4),
    "zo-mmt": (85.2, 91.3, 91.2, 86.9),
    "zo-cons": (88.3, 90.5, 81.8, 84.7),
    "zo-sign": (87.2, 91.5, 89.5, 72.9),
    "zo-adam": (84.4, 92.3, 91.4, 75.7),
}
_ROBERTA: dict[str, tuple[float, float, float, float]] = {
    "sgd": (91.4, 91.2, 89.6, 90.3),
    "forward-grad": (90.1, 89.7, 89.5, 87.3),
    "zo-sgd": (89.4, 90.8, 90.0, 87.6),
    "zo-mmt": (89.6, 90.9, 90.1, 88.6),
    "zo-cons": (89.6, 91.6, 90.1, 88.5),
    "zo-sign": (52.5, 90.2, 53.6, 86.1),
    "zo-adam": (89.8, 89.5, 90.2, 88.8),
}
_CHECKED = {("opt", name) for name in ("sgd", "zo-sgd", "zo-sign", "zo-adam")}

ACCURACY: dict[str, dict[str, dict[str, Figure]]] = {
    family: {
        name: {
            scheme: Figure(
                value, (family, name) in _CHECKED or (family, name, scheme) == ("roberta", "sgd", "ft")
            )
            for scheme, value in zip(SCHEMES, row, strict=True)
        }
        for name, row in table.items()
    }
    for family, table in (("opt", _OPT), ("roberta", _ROBERTA))
}
"""Family -> method -> scheme -> accuracy on SST-2 in percent."""

ALIGNMENT: dict[str, dict[str, tuple[float, float]]] = {
    "sst2": {"sgd": (91.6, 91.5), "zo-sgd": (89.4, 79.2), "zo-adam": (89.8, 79.2)},
    "rte": {"sgd": (70.9, 61.4), "zo-sgd": (68.7, 60.4), "zo-adam": (69.2, 58.7)},
}
"""Task -> method -> accuracy of RoBERTa-large (with, without) the prompt, percent; none was checked."""

MEMORY = {"sgd": 44.1, "zo-sgd": 28.7, "zo-adam": 31.4, "zo-sign": 31.4}
"""Full fine-tuning of OPT-1.3B, batch 128, GB, in the rerun printed by ReLIZO (read there)."""


def accuracy(family: str, method: str, scheme: str) -> Figure | None:
    """The paper's accuracy where it has one."""
    return ACCURACY.get(family, {}).get(method, {}).get(scheme)
