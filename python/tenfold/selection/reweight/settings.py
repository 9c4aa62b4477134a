"""What is wrong with the labels, and what is trained otherwise: "symmetric:0.4+wd=0+epochs=100"."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.selection.reweight.coreset import split_meta
from tenfold.selection.reweight.corrupt import CIFAR10_PAIRS, NOISE, long_tail, noisy_labels
from tenfold.selection.reweight.data import Labelled

__all__ = ["Setting", "parse_setting", "problem"]


@dataclass(frozen=True)
class Setting:
    """One problem.

    Attributes:
        text: as it was written.
        noise, rate: of labels, see `corrupt.noisy_labels`; "" for none.
        factor: of a long tail, 1 for none.
        epochs, weight_decay: instead of the run's own, or None.
    """

    text: str
    noise: str = ""
    rate: float = 0.0
    factor: float = 1.0
    epochs: int | None = None
    weight_decay: float | None = None

    @property
    def slug(self) -> str:
        """Plain name for files and numbers: symmetric-0.4-wd0-epochs100."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.text.replace("=", "")).strip("-")

    @property
    def title(self) -> str:
        """For people."""
        parts = []
        if self.noise:
            parts.append(f"{100 * self.rate:g} % {self.noise} label noise")
        if self.factor > 1:
            parts.append(f"long tail, factor {self.factor:g}")
        if not parts:
            parts.append("clean labels")
        if self.weight_decay is not None:
            decay = "no weight decay" if self.weight_decay == 0 else f"weight decay {self.weight_decay:g}"
            parts.append(decay)
        if self.epochs is not None:
            parts.append(f"{self.epochs} epochs")
        return ", ".join(parts)


def parse_setting(text: str) -> Setting:
    """Parts joined by "+": clean; KIND:RATE of noise (symmetric, flip, flip2, asymmetric); longtail:FACTOR;
    epochs=N; wd=X.

    Raises:
        ValueError: a part that is none of these, or stands twice.
    """
    expected = "clean, KIND:RATE, longtail:FACTOR, epochs=N or wd=X joined by '+'"
    found: dict[str, object] = {}
    for part in str(text).split("+"):
        name, mark, value = re.fullmatch(r"([a-z0-9]*)([:=]?)(.*)", part).groups()  # type: ignore[union-attr]
        try:
            if part == "clean":
                new: dict[str, object] = {"clean": True}
            elif mark == ":" and name in NOISE:
                new = {"noise": name, "rate": _checks.real("rate", float(value), positive=True, below=1.0)}
            elif mark == ":" and name == "longtail":
                new = {"factor": _checks.real("factor", float(value), at_least=1.0)}
            elif mark == "=" and name == "epochs":
                new = {"epochs": _checks.integer("epochs", int(value), 1, 2**31 - 1)}
            elif mark == "=" and name == "wd":
                new = {"weight_decay": _checks.real("wd", float(value), at_least=0.0)}
            else:
                raise ValueError
        except ValueError:
            _checks.fail(ValueError, "settings", expected, repr(text))
        if set(new) & set(found):
            _checks.fail(ValueError, "settings", "each part once", repr(text))
        found |= new
    if found.pop("clean", False) and {"noise", "factor"} & set(found):
        _checks.fail(ValueError, "settings", "clean, or noise and long tails", repr(text))
    return Setting(text, **found)  # type: ignore[arg-type]


def problem(
    data: Labelled, setting: Setting, seed: int, meta_rows: int = 0
) -> tuple[Labelled, NDArray[np.int64]]:
    """The data as they are trained on: long-tailed, with trusted rows put aside, with noise.

    Args:
        data: with right labels.
        seed: of what is drawn; the same problem for every method.
        meta_rows: so many rows, each class in proportion, become `x_meta` and leave the training set, with
            their right labels. 0: none.

    Returns:
        The data, and which rows of those given are its training rows.
    """
    rng = np.random.default_rng([seed, 1])
    count = len(data.classes)
    rows = np.arange(len(data.y))
    if setting.factor > 1:
        rows = long_tail(data.y, setting.factor, count, rng)
    meta: NDArray[np.int64] | None = None
    if meta_rows:
        split = split_meta(data.y[rows], count, rng, count=meta_rows)
        rows, meta = rows[split.train], rows[split.meta]
    made = data if len(rows) == len(data.y) else data.rows(rows)
    if meta is not None:
        trusted = data.rows(meta)
        made = replace(made, x_meta=trusted.x, y_meta=trusted.y)
    if setting.noise:
        pairs = CIFAR10_PAIRS if data.name == "CIFAR-10" and setting.noise == "asymmetric" else None
        noisy = noisy_labels(made.y, setting.noise, setting.rate, count, rng, pairs)
        made = replace(made, y=noisy, true_y=made.y if made.true_y is None else made.true_y)
    return made, rows
