"""Pictures of a run: accuracy against pruning ratio and cost, what was kept, who voted for what, health."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tenfold.runs import figures
from tenfold.selection.transfer import tables
from tenfold.selection.transfer.methods import METHODS
from tenfold.selection.transfer.rankings import kept_count
from tenfold.selection.transfer.run import Outcome

__all__ = ["Picture", "accuracy", "confidence", "cost", "kept", "votes"]

DARK_TEXT, LIGHT_TEXT = "#000001", "#fefefe"  # on a colour map, which a dark page leaves as it is
COLOUR_MAP = "cividis"
KINDS = {"lp": "linear probe", "ff": "fine-tuning"}

_BLUE, _ORANGE, _TEAL, _MAGENTA, _GOLD, _VIOLET = figures.SERIES
_STYLES = {
    "lm": (_BLUE, "o", "-"), "fm": (_TEAL, "s", "-"), "fm-kmeans": (_VIOLET, "D", "-"),
    "random": (_ORANGE, "v", "--"), "lm-reverse": (_MAGENTA, "^", "--"),
    "moderate": (figures.MUTED, "x", ":"),
    "el2n": (figures.MUTED, "+", ":"), "random-samples": (figures.MUTED, "1", ":"),
}  # fmt: skip


class Picture(NamedTuple):
    """`folder.write_figure(name, *picture)`."""

    figure: Any
    caption: str
    alt: str


def _style_of(method: str) -> tuple[str, str, str]:
    return _STYLES.get(method, (_GOLD, "*", "-."))


def accuracy(outcome: Outcome) -> Picture:
    """Accuracy on the target against the share that was pruned."""
    kinds = outcome.config.evaluate
    fig, axes = figures.figure(4.9 * len(kinds) + 1.6, 4.4, ncols=len(kinds), squeeze=False)
    told = []
    for axis, kind in zip(axes[0], kinds, strict=True):
        curves = [m for m in outcome.config.methods if METHODS[m].unit != "all"]
        for method in outcome.config.methods:
            pruned = [r for m, r in tables.cells(outcome) if m == method]
            found = [tables.summary(outcome, method, r, kind) for r in pruned]
            mean = [100 * s.mean for s in found]
            spread = [0.0 if s.deviation != s.deviation else 100 * s.deviation for s in found]
            if method == "none":
                low, high = mean[0] - spread[0], mean[0] + spread[0]
                axis.axhspan(low, high, color=figures.INK, alpha=0.08, linewidth=0)
                axis.axhline(mean[0], color=figures.INK, linewidth=1.4, label=tables.title(method))
            elif method == "scratch":
                axis.axhline(
                    mean[0], color=figures.MUTED, linewidth=1, linestyle=":", label=tables.title(method)
                )
            else:
                colour, marker, line = _style_of(method)
                shift = 0.35 * (curves.index(method) - (len(curves) - 1) / 2)  # bars beside each other
                axis.errorbar(
                    [100 * r + shift for r in pruned], mean, spread,
                    color=colour, marker=marker, linestyle=line, capsize=2,
                    linewidth=1.6, elinewidth=0.7, markersize=5, label=tables.title(method),
                )  # fmt: skip
            numbers = ", ".join(f"{m:.1f} at {round(100 * r)} %" for m, r in zip(mean, pruned, strict=True))
            told.append(f"{KINDS[kind]}, {tables.title(method)}: {numbers}")
        axis.set(xlabel="pruned share of the source, %", ylabel="accuracy on the target, %")
        axis.set_xticks([100 * r for r in outcome.config.ratios])
        axis.set_title(KINDS[kind].capitalize())
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", fontsize=9)
    caption = (
        f"Accuracy on {len(outcome.task.test):,} test images of the target, mean and standard deviation over "
        f"{len(outcome.config.seeds)} seeds. The line and band are pretraining on the whole source. Solid: "
        "mappings, which look at the target; dashed and dotted: controls, which do not or do the opposite."
    )
    return Picture(fig, caption, "Line plots. " + "; ".join(told) + ".")


def cost(outcome: Outcome) -> Picture | None:
    """Accuracy against the time of pretraining, with the surrogate's."""
    if "none" not in outcome.config.methods:
        return None
    kind = outcome.config.evaluate[0]
    fig, axis = figures.figure(7.4, 4.0)
    extra, told = max(tables.overhead(outcome, m) for m in outcome.config.methods), []
    full = tables.summary(outcome, "none", 0.0, kind)
    axis.plot(100, 100 * full.mean, "o", color=figures.INK, markersize=8)
    axis.annotate("whole source", (100, 100 * full.mean), (-6, 8), textcoords="offset points", ha="right")
    for method in [*tables.ours(outcome), *[m for m in tables.controls(outcome) if m in _STYLES]]:
        colour, marker, line = _style_of(method)
        found = [tables.summary(outcome, method, r, kind) for r in outcome.config.ratios]
        needs = tables.overhead(outcome, method)
        bare = [100 * s.seconds / full.seconds for s in found]
        mean = [100 * s.mean for s in found]
        axis.plot(bare, mean, color=colour, marker=marker, linestyle=line, label=tables.title(method))
        told.append(
            f"{tables.title(method)}: "
            + ", ".join(f"{m:.1f} % for {b:.0f} %" for m, b in zip(mean, bare, strict=True))
            + (f" and {100 * needs / full.seconds:.0f} % once" if needs else "")
        )
    axis.set(xlabel="pretraining, % of the whole source's processor time", ylabel="accuracy on the target, %")
    axis.set_xlim(0, 108)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    caption = (
        f"What accuracy costs ({KINDS[kind]}). Surrogate and mapping are paid once, however many models are "
        f"pretrained: at most {extra:.1f} s here, {100 * extra / full.seconds:.0f} % of one pretraining on "
        "the whole source; they are in the table, not in the plot."
    )
    return Picture(fig, caption, "Accuracy against cost. " + "; ".join(told) + ".")


def votes(outcome: Outcome) -> Picture | None:
    """Which target class voted for which source class, all seeds together (label mapping)."""
    found = [s.tensors["matrix/lm"].numpy() for s in outcome.surveys if "matrix/lm" in s.tensors]
    if not found:
        return None
    matrix = np.mean(found, axis=0)
    source, target = outcome.task.source.classes, outcome.task.target.classes
    shown = np.argsort(-matrix.sum(0), kind="stable")[:40]
    if outcome.config.source in ("digits", "mnist"):
        shown = np.arange(len(source))
    share = 100 * matrix[:, shown] / np.maximum(matrix.sum(1, keepdims=True), 1)
    fig, axis = figures.figure(min(13.0, 2.2 + 0.19 * len(shown)), 1.9 + 0.2 * min(len(target), 40))
    image = axis.imshow(share[:40], cmap=COLOUR_MAP, aspect="auto", vmin=0)
    axis.set_xticks(range(len(shown)), [source[c] for c in shown], rotation=90, fontsize=7)
    axis.set_yticks(range(min(len(target), 40)), target[:40], fontsize=8)
    axis.set(xlabel="source class", ylabel="target class")
    axis.grid(False)
    fig.colorbar(image, ax=axis, label="% of the target class", shrink=0.9)
    best = matrix.argmax(1)
    told = ", ".join(
        f"{target[t]}: {source[best[t]]} ({100 * matrix[t, best[t]] / max(matrix[t].sum(), 1):.0f} %)"
        for t in range(min(len(target), 12))
    )
    caption = (
        "Label mapping: to which source class the surrogate assigns the images of each target class. The "
        f"mapping counts the columns; it does not know the rows. Most frequent: {told}."
    )
    return Picture(fig, caption, f"Heat map of votes. {told}.")


def kept(outcome: Outcome, method: str = "lm") -> Picture | None:
    """One image of each source class in the order of the ranking, and where each ratio cuts."""
    first = outcome.surveys[0]
    source = outcome.task.source
    order = first.tensors.get(f"order/{method}")
    if order is None or len(order) != len(source.classes):
        return None
    ranked = order.tolist()
    labels = source.labels.numpy()
    shown = ranked if len(ranked) <= 60 else ranked[:30] + ranked[-30:]
    columns = 12
    lines = -(-len(shown) // columns)
    fig, axes = figures.figure(9.2, 0.95 * lines + 0.5, nrows=lines, ncols=columns, squeeze=False)
    counted = first.tensors.get(f"votes/{method}")
    for axis in axes.flat:
        axis.axis("off")
    for axis, c in zip(axes.flat, shown, strict=False):
        place = ranked.index(c)
        rows = np.flatnonzero(labels == c)
        if not len(rows):
            continue
        axis.imshow(_image(source, int(rows[0])), cmap="gray")
        survives = [r for r in outcome.config.ratios if place < kept_count(len(ranked), r)]
        text = f"{source.classes[c]}" + (f"\n{int(counted[c])} votes" if counted is not None else "")
        axis.set_title(text, fontsize=5.6, loc="center", fontweight="normal", pad=2,
                       color=figures.INK if survives else figures.MUTED)  # fmt: skip
        if survives:
            deepest = max(survives)
            colour = figures.SERIES[2] if deepest == max(outcome.config.ratios) else figures.SERIES[0]
            for spine in axis.spines.values():
                spine.set(visible=True, color=colour, linewidth=2.2)
            axis.axis("on")
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
    low, high = min(outcome.config.ratios), max(outcome.config.ratios)
    caption = (
        f"The source classes by {tables.title(method)}, most wanted first, one image of each (seed "
        f"{first.seed}). Teal frame: still kept when {100 * high:.0f} % are pruned; blue: kept when "
        f"{100 * low:.0f} % are pruned; no frame: dropped by every ratio."
    )
    names = ", ".join(source.classes[c] for c in ranked[:12])
    return Picture(fig, caption, f"Images of source classes in order. First: {names}.")


def _image(source: Any, i: int) -> Any:
    if source.pixels is not None:
        return source.pixels[i, 0].numpy()
    return source.read(i)


def confidence(outcome: Outcome) -> Picture:
    """How sure the surrogate is of the target, beside held-out source images."""
    fig, axis = figures.figure(7.0, 3.2)
    bins = np.linspace(0, 1, 26)
    parts = (("confidence_held_out", "held-out source", figures.MUTED), ("confidence", "target", _BLUE))
    told = []
    for name, label, colour in parts:
        values = np.concatenate([s.tensors[name].numpy() for s in outcome.surveys])
        axis.hist(values, bins, density=True, histtype="stepfilled", alpha=0.25, color=colour)
        axis.hist(values, bins, density=True, histtype="step", color=colour, linewidth=1.8, label=label)
        axis.axvline(values.mean(), color=colour, linewidth=1, linestyle="--")
        told.append(f"{label} {values.mean():.2f}")
    axis.set(xlabel="largest probability that the surrogate gives a source class", ylabel="density")
    axis.legend()
    caption = (
        "How sure the surrogate is. Dashed lines are means: "
        + ", ".join(told)
        + ". A target far left of the "
        "held-out source looks like nothing in the source, and its votes mean little."
    )
    return Picture(fig, caption, "Histograms of confidence, means: " + ", ".join(told) + ".")
