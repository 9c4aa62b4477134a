"""Pictures of an ``unlearncanvas`` run's other tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.diffusion.attack.asr import Rate
from tenfold.diffusion.unlearncanvas_figures import MARKS, ON_DARK, ON_LIGHT, SHADES, Picture, color, words
from tenfold.diffusion.unlearncanvas_run import Outcome
from tenfold.runs import figures

__all__ = ["finer", "robust", "sequential", "transfer"]


def finer(outcome: Outcome) -> Picture:
    """UA, SC, OC, UP of each pair."""
    found = outcome.finer
    fig, axis = figures.figure(8.0, 3.2)
    at, keys = np.arange(len(found)), ("ua", "sc", "oc", "up")
    for i, key in enumerate(keys):
        rates = [getattr(one, key) for one in found]
        _bars(axis, at + 0.2 * (i - 1.5), 0.18, rates, color=color(i), label=key.upper())
    axis.set_xticks(at, [f"{one.method}\n{words(one.style)}, {words(one.object)}" for one in found])
    axis.set_ylim(0, 1.15)
    axis.set_ylabel("share")
    axis.legend(ncols=4, loc="upper center")
    told = "; ".join(f"{one.method}: UA {one.ua}, SC {one.sc}" for one in found)
    return Picture(
        fig,
        "One object in one style is unlearned. UA: its pictures no longer show both; SC: its style with "
        "other objects; OC: its object in other styles; UP: all the rest. Wilson's 95 % intervals.",
        f"Bars of four shares for each method and pair. {told}.",
    )


def _bars(axis: Any, places: NDArray[Any], width: float, rates: Sequence[Rate], **style: Any) -> None:
    """Rates with their intervals."""
    values = np.array([rate.value for rate in rates])
    low, high = np.array([rate.interval for rate in rates]).T
    axis.bar(places, values, width, **style)
    axis.errorbar(places, values, [values - low, high - values], fmt="none", ecolor=figures.INK, lw=1,
                  capsize=2)  # fmt: skip


def sequential(outcome: Outcome) -> Picture:
    """Lower triangles of UA, and what is retained, for each method."""
    names = list(outcome.sequential)
    fig, axes = figures.figure(9.6, 3.6 * len(names), nrows=len(names), ncols=2, squeeze=False)
    for line, name in zip(axes, names, strict=True):
        found = outcome.sequential[name]
        n = len(found.targets)
        shown: NDArray[np.float64] = np.ma.masked_invalid(found.ua)
        line[0].imshow(shown, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
        for (i, t), value in np.ndenumerate(found.ua):
            if value == value:
                line[0].text(t, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8,
                             color=ON_DARK if value > 0.6 else ON_LIGHT)  # fmt: skip
        line[0].grid(False)
        line[0].set_yticks(np.arange(n), [words(t) for t in found.targets], fontsize=8)
        line[0].set_xticks(np.arange(n), [f"+ {words(t)}" for t in found.targets], fontsize=8, rotation=30)
        line[0].set_title(f"{name}: UA, %, of each target after each step")
        steps = np.arange(n + 1)
        for i, (label, values, base) in enumerate(
            (("styles", found.ra_style, found.base_style), ("objects", found.ra_object, found.base_object))
        ):
            line[1].plot(steps, values, color=color(i), marker=MARKS[i], label=f"other {label}")
            line[1].plot(steps, base, color=color(i), ls=":", lw=1.2, label=f"the same, base model, {label}")
        line[1].set_ylim(0, 1.05)
        line[1].set_xticks(steps)
        line[1].set_xlabel("targets unlearned")
        line[1].set_title("Retained accuracy")
        line[1].legend(fontsize=8, loc="lower left")
    told = "; ".join(f"{m}: largest rebound {100 * f.rebound.max():.0f} points" for m, f in
                     outcome.sequential.items())  # fmt: skip
    return Picture(
        fig,
        "Targets are unlearned one after another. Left: does an earlier one stay unlearned? A number that "
        "falls to the right is a rebound. Right: accuracy on all concepts not unlearned so far.",
        f"Heat maps of unlearning accuracy per step, and curves of retained accuracy. {told}.",
    )


def robust(outcome: Outcome) -> Picture:
    """Success rates before and after the attack."""
    found = outcome.robust
    fig, axis = figures.figure(7.5, 3.0)
    at = np.arange(len(found))
    for i, (key, label) in enumerate((("pre", "prompt as it is"), ("post", "attacked (UnlearnDiffAtk)"))):
        rates = [getattr(one, key) for _, _, one, _ in found]
        _bars(axis, at + 0.32 * (i - 0.5), 0.3, rates, color=figures.SERIES[(4, 1)[i]], label=label)
    axis.set_xticks(at, [f"{method}\n{words(target)}" for method, target, _, _ in found])
    axis.set_ylim(0, 1.15)
    axis.set_ylabel("prompts that show the target")
    axis.legend(ncols=2, loc="upper center")
    told = "; ".join(f"{m}, {words(t)}: {one.post}" for m, t, one, _ in found)
    return Picture(
        fig,
        "Share of prompts that show what was unlearned, as they are and with tokens found by UnlearnDiffAtk "
        "in front; robust UA is what is left to 1. Wilson's 95 % intervals.",
        f"Bars of success rates before and after the attack. {told}.",
    )


def transfer(outcome: Outcome) -> Picture:
    """Losses of every method, all results together."""
    found = outcome.transfer
    names = list(found)
    losses = list(next(iter(found.values()))["overall"])
    fig, axes = figures.figure(
        4.2 * len(losses) + 1.2, 0.42 * len(names) + 1.2, ncols=len(losses), squeeze=False, sharey=True
    )
    at = np.arange(len(names))
    for i, (axis, loss) in enumerate(zip(axes[0], losses, strict=True)):
        rows = [found[name]["overall"][loss] for name in names]
        axis.errorbar([row["mean"] for row in rows], at, xerr=[row["std"] for row in rows], fmt=MARKS[i],
                      color=color(i), ecolor=figures.MUTED, capsize=3)  # fmt: skip
        axis.set_yticks(at, names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set_xlim(left=0)
        axis.set_xlabel(f"{loss} loss, less is nearer to the truth")
    told = "; ".join(
        f"{name}: " + ", ".join(f"{loss} {found[name]['overall'][loss]['mean']:.3g}" for loss in losses)
        for name in names
    )
    return Picture(
        fig,
        "Losses of stylised photographs against the data set's own stylisation: mean over all results, and "
        "one standard deviation to each side.",
        f"Points with bars for each method. {told}.",
    )
