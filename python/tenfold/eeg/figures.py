"""Pictures of a run: accuracies, confusion, features in the plane, the course of training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.eeg import tables
from tenfold.eeg.run import Outcome, restore, scaled_fold
from tenfold.eeg.train import predict
from tenfold.runs import figures

__all__ = ["Picture", "accuracies", "confusions", "course", "embedding"]

DARK_TEXT, LIGHT_TEXT = "#000001", "#fefefe"  # on a colour map, which a dark page leaves as it is
COLOUR_MAP = "cividis"
_POINTS = 1200  # source rows that are drawn, at most


class Picture(NamedTuple):
    """`folder.write_figure(name, *picture)`."""

    figure: Any
    caption: str
    alt: str


def accuracies(outcome: Outcome) -> Picture:
    """Every method's accuracy on every target, and its difference to source-only."""
    names = outcome.config.methods
    pairs = tables.against(outcome)
    fig, axes = figures.figure(
        9.4, 1.5 + 0.36 * len(names), ncols=2 if pairs else 1, sharey=True, squeeze=False,
        width_ratios=[3, 2] if pairs else [1],
    )  # fmt: skip
    left = axes[0, 0]
    for y, name in enumerate(names):
        colour = _colour(name)
        values, s = 100 * outcome.by_subject(name), tables.summary(outcome, name)
        shift = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
        left.plot(values, y + shift, ".", color=figures.MUTED, markersize=4, alpha=0.7)
        left.plot([100 * s.low, 100 * s.high], [y, y], color=colour, linewidth=3, solid_capstyle="round")
        left.plot(100 * s.mean, y, "o", color=colour, markersize=7)
    chance = 100 / len(outcome.corpus.classes)
    left.axvline(chance, color=figures.MUTED, linewidth=1, linestyle=":")
    left.set(xlabel="accuracy on the target, %", yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
    left.set_yticklabels([tables.title(outcome, name) for name in names])
    left.set_title("Accuracy")
    if pairs:
        _differences(axes[0, 1], names, pairs)
    told = "; ".join(
        f"{tables.title(outcome, n)} {100 * tables.summary(outcome, n).mean:.1f} %" for n in names
    )
    caption = (
        "Left: grey dots are targets (seeds averaged), the large dot is their mean with its 95 % bootstrap "
        f"interval over targets; the dotted line is chance, {chance:.1f} %."
    )
    if pairs:
        caption += " Right: the difference to source-only, paired by target, with its 95 % interval."
    return Picture(fig, caption, f"Dot plot of accuracies. {told}.")


def _colour(name: str) -> str:
    if name == tables.BASE:
        return figures.INK
    if name == tables.REVISED:
        return figures.SERIES[2]
    return figures.SERIES[1] if name == tables.OURS else figures.SERIES[0]


def _differences(axes: Any, names: list[str], pairs: Any) -> None:
    axes.axvline(0, color=figures.INK, linewidth=1)
    for y, name in enumerate(names):
        if name in pairs:
            c = pairs[name][0]
            axes.plot([100 * c.low, 100 * c.high], [y, y], color=_colour(name), linewidth=3)
            axes.plot(100 * c.difference, y, "o", color=_colour(name), markersize=7)
    axes.set(xlabel="points above source-only")
    axes.set_title("Gain over source-only")


def confusions(outcome: Outcome) -> Picture:
    """Confusion matrices, rows in percent, of the methods that pictures show."""
    names = tables.seen(outcome)
    classes = outcome.corpus.classes
    side = max(2.7, 0.27 * len(classes) + 1.0)
    columns = 2 if len(names) == 4 else len(names)
    lines = -(-len(names) // columns)
    fig, axes = figures.figure(
        side * columns + 0.8, side * lines + 0.5, nrows=lines, ncols=columns, sharey=True, squeeze=False
    )
    told = []
    for axis, name in zip(axes.flat, names, strict=True):
        counts = tables.mean_confusion(outcome, name)
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axis.imshow(share, cmap=COLOUR_MAP, vmin=0, vmax=100)
        _write_cells(axis, share)
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
        axis.grid(False)
        axis.set_xlabel("predicted" if axis in axes[-1] else "")
        axis.set_title(tables.title(outcome, name))
        worst = share - np.diag(np.diag(share))
        i, j = np.unravel_index(int(worst.argmax()), worst.shape)
        told.append(
            f"{tables.title(outcome, name)}: {classes[i]} is taken for {classes[j]} in {worst[i, j]:.0f} %"
        )
    for axis in axes[:, 0]:
        axis.set_ylabel("true")
    fig.colorbar(image, ax=list(axes.flat), label="% of the true class", shrink=0.8)
    caption = (
        "Rows are true classes, over all targets and seeds. The most frequent error: " + "; ".join(told) + "."
    )
    return Picture(fig, caption, "Confusion matrices. " + "; ".join(told) + ".")


def _write_cells(axis: Any, share: NDArray[Any]) -> None:
    size = 7 if len(share) > 6 else 9
    for (i, j), value in np.ndenumerate(share):
        if value >= 1:
            colour = DARK_TEXT if value > 55 else LIGHT_TEXT
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=size, color=colour)


_PARTS = {
    "ce": "cross-entropy", "mmd": "MMD² of domains", "intra": "MMD² within classes",
    "inter": "MMD² between classes", "tau": "tau",
}  # fmt: skip


def course(outcome: Outcome) -> Picture | None:
    """What the parts of MS-DCDA's loss do while it trains: mean over all trainings, and their range."""
    names = [n for n in (tables.OURS, tables.REVISED) if n in outcome.config.methods]
    if not names:
        return None
    fig, axes = figures.figure(9.4, 5.0, nrows=2, ncols=3, squeeze=False)
    told = []
    for name in names:
        runs = [t.history for t in outcome.of(name)]
        steps = [entry["step"] for entry in runs[0]]
        for axis, part in zip(axes.flat, _PARTS, strict=False):
            values = np.array([[entry[part] for entry in h] for h in runs])
            low, high = np.percentile(values, [10, 90], axis=0)
            axis.fill_between(steps, low, high, color=_colour(name), alpha=0.2, linewidth=0)
            axis.plot(steps, values.mean(0), color=_colour(name), label=tables.title(outcome, name))
        ends = ", ".join(f"{_PARTS[p]} {np.mean([h[-1][p] for h in runs]):.2f}" for p in _PARTS)
        told.append(f"{tables.title(outcome, name)}: {ends}")
    for axis, part in zip(axes.flat, _PARTS, strict=False):
        axis.set_title(_PARTS[part], fontsize=10)
        axis.set(xlabel="step", ylim=(0, None) if part != "tau" else (-0.03, 1.03))
    axes[1, 2].set_axis_off()
    axes[1, 2].legend(*axes[0, 0].get_legend_handles_labels(), loc="center")
    caption = "Mean over all trainings; the band holds 80 % of them."
    return Picture(fig, caption, "Line charts over the steps. At the end, " + "; ".join(told) + ".")


def embedding(outcome: Outcome) -> Picture | None:
    """The 32 features of sources and target in the plane, for the target whose source-only accuracy is "
    "median."""
    names = [n for n in tables.seen(outcome) if any(t.key in outcome.weights for t in outcome.of(n))]
    if not names or outcome.config.embedding == "none":
        return None
    number, row = _median_fold(outcome, names[0])
    fold = scaled_fold(outcome.config, number)
    seed = next(t.seed for t in outcome.of(names[0]) if t.key in outcome.weights)
    fig, axes = figures.figure(7.6, 2.7 * len(names), nrows=len(names), ncols=2, squeeze=False)
    classes = outcome.corpus.classes
    colours = _class_colours(len(classes))
    assert fold.target.y is not None
    source_x = torch.cat([d.x for d in fold.sources])
    drawn = torch.randperm(len(source_x), generator=torch.Generator().manual_seed(0))[:_POINTS]
    y = fold.target.y.cpu().numpy()
    for k, name in enumerate(names):
        trained = restore(outcome, f"{name}-fold{number}-seed{seed}")
        z = torch.cat([predict(trained, x)[1] for x in (source_x[drawn].cpu(), fold.target.x.cpu())])
        points, cut = _plane(z.numpy(), outcome.config.embedding), len(drawn)
        left, right = axes[k]
        left.scatter(*points[:cut].T, s=5, color=figures.MUTED, alpha=0.35, linewidths=0, label="sources")
        left.scatter(*points[cut:].T, s=12, color=figures.SERIES[1], linewidths=0, label="target")
        for c, label in enumerate(classes):
            right.scatter(*points[cut:][y == c].T, s=14, color=colours[c], linewidths=0, label=label)
        accuracy = 100 * outcome.table(name)[row, outcome.config.seeds.index(seed)]
        left.set_title(f"{tables.title(outcome, name)}, {accuracy:.0f} %", fontsize=10)
        for axis in (left, right):
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
        right.set(xlim=left.get_xlim(), ylim=left.get_ylim())
    axes[0, 0].legend(loc="best", fontsize=8, markerscale=2)
    axes[0, 1].set_title("target by true class", fontsize=10)
    axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, markerscale=1.5)
    kind = {"tsne": "t-SNE", "pca": "the first two principal components"}[outcome.config.embedding]
    caption = (
        f"Features before the classifier, by {kind} (fixed seed, each row by itself): sources and target "
        f"on the left, the target alone by its true classes on the right. Target {fold.target.name}, whose "
        f"source-only accuracy is the median; seed {seed}. Where target points lie among the sources the "
        "domains are aligned, where colours lie apart the classes are."
    )
    return Picture(fig, caption, f"Scatter plots of features of target {fold.target.name}.")


def _median_fold(outcome: Outcome, name: str) -> tuple[int, int]:
    order = np.argsort(outcome.table(name).mean(1), kind="stable")
    row = int(order[len(order) // 2])
    return outcome.numbers[row], row


def _plane(z: NDArray[Any], kind: str) -> NDArray[Any]:
    """[n, 32] -> [n, 2]. Features shrunk to one point are drawn as one: t-SNE cannot spread them."""
    if np.ptp(z, axis=0).max() <= 1e-6 * max(np.abs(z).max(), 1e-30):
        return np.zeros((len(z), 2))
    if kind == "pca":
        centred = z - z.mean(0)
        return np.asarray(centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(z) - 1) / 3)
    return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(z))


def _class_colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    if count <= len(figures.SERIES):
        return list(figures.SERIES[:count])
    return [colormaps["turbo"](v) for v in np.linspace(0.05, 0.95, count)]
