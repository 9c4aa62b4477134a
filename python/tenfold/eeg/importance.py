"""Which channels a prediction rests on: maps of the scalp, or bars where the features are no channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.eeg import tables
from tenfold.eeg.figures import COLOUR_MAP, Picture
from tenfold.eeg.montage import LOBES, lobe, positions_2d
from tenfold.eeg.run import Outcome
from tenfold.runs import figures

__all__ = ["bars", "channel_importance", "lobe_rows", "maps", "scalp_map"]

_GRID = 120


def channel_importance(outcome: Outcome, name: str, kind: str) -> NDArray[np.float64]:
    """Mean over trainings, [channels] (or [features] where the columns are no channels).

    Args:
        kind: "saliency", the mean absolute gradient of the log-probability, summed over a channel's bands and
            scaled to sum 1 within each training; or "occlusion", accuracy lost without the channel.
    """
    per = max(1, len(outcome.corpus.bands))
    values = []
    for trial in outcome.of(name):
        each = np.array(getattr(trial, kind))
        if kind == "saliency":
            each = each.reshape(-1, per).sum(1)
            each = each / max(each.sum(), 1e-12)
        values.append(each)
    return np.mean(values, axis=0)


def maps(outcome: Outcome) -> Picture:
    """Scalp maps of both measures for the methods that pictures show."""
    names = tables.seen(outcome)
    fig, axes = figures.figure(2.9 * len(names) + 1.2, 6.0, nrows=2, ncols=len(names), squeeze=False)
    titles = {"saliency": "sensitivity (gradient), % of all", "occlusion": "accuracy lost without it, points"}
    told = []
    for row, (kind, label) in enumerate(titles.items()):
        values = [100 * channel_importance(outcome, name, kind) for name in names]
        limits = (min(v.min() for v in values), max(v.max() for v in values))
        for axis, name, value in zip(axes[row], names, values, strict=True):
            image = scalp_map(axis, value, outcome.corpus.channels, limits)
            axis.set_title(tables.title(outcome, name) if row == 0 else "", fontsize=10)
            if kind == "saliency":
                first = np.argsort(-value)[:3]
                told.append(
                    f"{tables.title(outcome, name)}: {', '.join(outcome.corpus.channels[i] for i in first)}"
                )
        fig.colorbar(image, ax=list(axes[row]), label=label, shrink=0.8)
    caption = (
        "Means over all trainings, seen from above, nose up; dots are electrodes. Above: mean absolute "
        "gradient of the predicted class's log-probability, summed over the bands of a channel. Below: what "
        "the accuracy on the target loses when a channel is put to its mean. Most sensitive: "
        + "; ".join(told)
        + "."
    )
    return Picture(fig, caption, "Scalp maps of channel importance. Most sensitive: " + "; ".join(told) + ".")


def scalp_map(axis: Any, values: NDArray[Any], channels: tuple[str, ...], limits: tuple[float, float]) -> Any:
    """Draw one map; between electrodes a thin-plate spline, outside the head nothing. Returns the image."""
    from matplotlib.patches import Circle
    from scipy.interpolate import RBFInterpolator

    points = positions_2d(channels)
    radius = max(0.85, float(np.hypot(*points.T).max()) + 0.05)
    span = np.linspace(-radius, radius, _GRID)
    x, y = np.meshgrid(span, span)
    spline = RBFInterpolator(points, values, kernel="thin_plate_spline", smoothing=1e-3)
    field = spline(np.stack([x.ravel(), y.ravel()], 1)).reshape(x.shape)
    image = axis.imshow(
        np.clip(field, *limits), extent=(-radius, radius, -radius, radius), origin="lower", cmap=COLOUR_MAP,
        vmin=limits[0], vmax=limits[1], interpolation="bilinear",
    )  # fmt: skip
    head = Circle((0, 0), radius, fill=False, color=figures.INK, linewidth=1.4)
    axis.add_patch(head)
    image.set_clip_path(head)
    nose = np.array([[-0.09, 0.99], [0.0, 1.11], [0.09, 0.99]]) * radius
    axis.plot(*nose.T, color=figures.INK, linewidth=1.2)
    axis.plot(*points.T, ".", color="#fefefe", markersize=2)
    reach = 1.04 * radius
    axis.set(xticks=[], yticks=[], aspect="equal", xlim=(-reach, reach), ylim=(-reach, 1.12 * radius))
    axis.set_axis_off()
    return image


def bars(outcome: Outcome) -> Picture:
    """The same measures as bars, a feature each."""
    names = tables.seen(outcome)
    fig, axes = figures.figure(9.0, 3.0, ncols=2, squeeze=False)
    titles = {"saliency": "sensitivity (gradient), % of all", "occlusion": "accuracy lost without it, points"}
    colours = (figures.INK, *figures.SERIES)
    for axis, (kind, label) in zip(axes[0], titles.items(), strict=True):
        for k, name in enumerate(names):
            value = 100 * channel_importance(outcome, name, kind)
            width = 0.8 / len(names)
            axis.bar(
                np.arange(len(value)) + (k - (len(names) - 1) / 2) * width, value, width, color=colours[k],
                label=tables.title(outcome, name),
            )  # fmt: skip
        axis.set(xlabel="feature", ylabel=label, xticks=range(len(value)))
        axis.grid(axis="x", visible=False)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(names))
    caption = (
        "Means over all trainings. Left: mean absolute gradient of the predicted class's log-probability. "
        "Right: what the accuracy on the target loses when the feature is put to its mean."
    )
    first = 100 * channel_importance(outcome, names[-1], "occlusion")
    alt = f"Bar charts. {tables.title(outcome, names[-1])} loses most without feature {int(first.argmax())}."
    return Picture(fig, caption, alt)


def lobe_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Sensitivity and loss per channel, averaged over the channels of a lobe."""
    where = np.array([lobe(channel) for channel in outcome.corpus.channels])
    rows = []
    for region in (r for r in LOBES if (where == r).any()):
        row: dict[str, Any] = {"lobe": region, "channels": int((where == region).sum())}
        for name in tables.seen(outcome):
            share = 100 * channel_importance(outcome, name, "saliency")[where == region]
            lost = 100 * channel_importance(outcome, name, "occlusion")[where == region]
            row[f"{tables.title(outcome, name)}: sensitivity, % per channel"] = round(float(share.mean()), 2)
            row[f"{tables.title(outcome, name)}: points lost per channel"] = round(float(lost.mean()), 2)
        rows.append(row)
    return rows
