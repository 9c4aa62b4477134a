"""What is trained beside each other: the paper's methods, the variants, and their controls.

A weighted loss differs from a plain one in two ways: which samples count more, and how large the loss is on
the whole. The second alone acts like another learning rate and weight decay. So every weighted method has two
controls: every sample at the mean weight, and the same weights given to other samples.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ARMS", "DEFAULT", "SWEPT", "Arm", "with_controls"]


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name, title: in tables and on the page.
        rows: "all", "random" (coreset at random) or "moderate" (moderate coreset).
        source: where weights come from: "" (none), "coreset", "all" (Meta-Weight-Net on every row), "given".
        mode: how a coreset's weights are carried, see `carry.MODES`.
        normalise: weights are divided by their mean.
        control: "", "constant" or "shuffled".
        of: name of the method that a control belongs to.
    """

    name: str
    title: str
    rows: str = "all"
    source: str = ""
    mode: str = "nn"
    normalise: bool = False
    control: str = ""
    of: str = ""


def _family(name: str, title: str, source: str, mode: str) -> list[Arm]:
    """A weighted method and what belongs to it. The constant control of normalised weights is plain ERM."""
    base = Arm(name, title, "all", source, mode)
    scaled = f"{name}-normalised"
    return [
        base,
        Arm(f"{name}-constant", f"{title}: constant mean(w)", "all", source, mode, False, "constant", name),
        Arm(f"{name}-shuffled", f"{title}: w shuffled", "all", source, mode, False, "shuffled", name),
        Arm(scaled, f"{title}, normalised", "all", source, mode, True),
        Arm(f"{scaled}-shuffled", f"{title}, normalised: w shuffled", "all", source, mode, True, "shuffled",
            scaled),
    ]  # fmt: skip


_ALL = [
    Arm("erm", "ERM"),
    *_family("w-erm", "W-ERM", "all", "nn"),
    Arm("c-random", "C_R-ERM, random coreset alone", "random"),
    Arm("c-moderate", "C_MS-ERM, moderate coreset alone", "moderate"),
    *_family("cw-erm", "CW-ERM", "coreset", "nn"),
    *_family("classwise", "Class-wise", "coreset", "classwise"),
    *_family("function", "By V of each loss", "coreset", "function"),
    *_family("label-aware", "Label-aware", "coreset", "label_aware"),
    *_family("given", "Given weights", "given", "nn"),
]
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}
"""Name -> arm, in the order of tables."""

DEFAULT = ("erm", "w-erm", "c-random", "c-moderate", "cw-erm", "cw-erm-normalised", "label-aware-normalised")
"""Without the controls, which come by themselves."""

SWEPT = ("c-random", "c-moderate", "cw-erm", "label-aware-normalised")
"""What is trained at each coreset ratio, with its controls."""


def with_controls(names: list[str]) -> list[str]:
    """The names, ERM among them, and the controls of every weighted one; in the order of tables."""
    wanted = {"erm", *names}
    for name in names:
        arm = ARMS[name]
        if arm.source and not arm.control:
            wanted |= {other.name for other in _ALL if other.of == name}
    return [name for name in ARMS if name in wanted]
