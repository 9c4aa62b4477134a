"""Pictures of an ``unlearncanvas`` run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tenfold.diffusion.canvas.files import COLUMNS, reference_results, table_rows
from tenfold.diffusion.canvas.manifest import read_pictures
from tenfold.diffusion.canvas.ranking import BETTER_HIGH, Ranked
from tenfold.diffusion.canvas.scores import Score, summarise
from tenfold.diffusion.unlearncanvas_run import Outcome, Single
from tenfold.runs import figures

__all__ = [
    "Picture", "confusion", "costs", "finer", "heat", "pictures", "radar", "ranking", "robust", "scatter",
    "sequential",
]  # fmt: skip

SHARED = 8
"""Heat maps of up to as many targets a method stand in one figure."""
COLUMNS_SHOWN = 8
_MARKS = "osD^vP*XhpdH"
_SHADES = "Blues"
_AXES = {
    "style_ua": "style UA", "style_ira": "style IRA", "style_cra": "style CRA", "object_ua": "object UA",
    "object_ira": "object IRA", "object_cra": "object CRA", "fid": "FID", "seconds": "time",
    "memory_gb": "memory", "storage_gb": "storage",
}  # fmt: skip


class Picture(NamedTuple):
    """`folder.write_figure(name, *picture)`."""

    figure: Any
    caption: str
    alt: str


def words(name: str) -> str:
    """A concept as a reader knows it."""
    return name.replace("_", " ")


def _by_method(scores: Sequence[Score]) -> dict[str, list[Score]]:
    found: dict[str, list[Score]] = {}
    for one in scores:
        found.setdefault(one.method, []).append(one)
    return found


def _color(i: int) -> str:
    return figures.SERIES[i % len(figures.SERIES)]


# ---- the matrix ------------------------------------------------------------------------------------------


def heat(outcome: Outcome, scores: Sequence[Score]) -> dict[str, Picture]:
    """name -> targets x concepts, one map a method; all in one figure where there are few targets."""
    base = outcome.base_scores()[0]
    groups = {"base": [base], **_by_method(scores)}
    count = len(outcome.config.targets)
    if count <= SHARED:
        return {"matrix": _heat(groups, "matrix")}
    return {f"matrix-{m}": _heat({m: own}, m) for m, own in groups.items() if m != "base"}


def _heat(groups: dict[str, list[Score]], name: str) -> Picture:
    first = next(iter(groups.values()))[0]
    concepts = [*first.style, *first.object]
    heights = [max(len(own), 1) + 0.6 for own in groups.values()]
    width = max(9.0, 0.17 * len(concepts))
    fig, axes = figures.figure(
        width, 0.3 * sum(heights) + 1.3, nrows=len(groups), squeeze=False, height_ratios=heights
    )
    image: Any = None
    for i, (axis, (method, own)) in enumerate(zip(axes[:, 0], groups.items(), strict=True)):
        values = np.array([[*one.style.values(), *one.object.values()] for one in own])
        image = axis.imshow(values, cmap=_SHADES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.axvline(len(first.style) - 0.5, color=figures.INK, lw=1.5)
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        for row, one in enumerate(own):
            if method != "base":
                at = concepts.index(one.target)
                _frame(axis, at, row)
        if len(concepts) <= 24:
            for (row, column), value in np.ndenumerate(values):
                shade = "#ffffff" if value > 0.6 else figures.INK
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5,
                          color=shade)  # fmt: skip
        labels = ["all prompts"] if method == "base" else [words(one.target) for one in own]
        axis.set_yticks(np.arange(len(own)), labels, fontsize=7.5)
        axis.set_ylabel(method, rotation=0, ha="right", va="center", fontweight="bold", labelpad=12)
        last = i == len(groups) - 1
        axis.set_xticks(
            np.arange(len(concepts)), [words(c) for c in concepts] if last else [], rotation=90, fontsize=7.5
        )
        axis.tick_params(length=0)
    fig.colorbar(image, ax=list(axes[:, 0]), shrink=0.6, pad=0.01, label="share drawn as asked")
    return Picture(
        fig,
        "Share of pictures in which the judge sees the concept that the prompt names; one row for each "
        "edited model, styles left of the line, objects right. The framed cell is what was unlearned: it "
        "should be "
        "empty, and all others as full as the base model's.",
        f"A heat map of shares, {name}; rows are targets, columns concepts.",
    )


def _frame(axis: Any, column: float, row: float) -> None:
    from matplotlib.patches import Rectangle

    box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=figures.SERIES[1], lw=2)
    box.set_clip_on(False)
    axis.add_patch(box)


# ---- methods against each other --------------------------------------------------------------------------


def radar(scores: Sequence[Score]) -> Picture:
    """All metrics of every method, each from worst to best in the run."""
    from matplotlib.figure import Figure

    rows = table_rows(summarise(scores))
    names = [c for c in COLUMNS if all(row[c] is not None for row in rows.values())]
    names = [c for c in names if c in BETTER_HIGH or len({row[c] for row in rows.values()}) > 1]
    scaled = {method: [_scaled(c, row[c], rows) for c in names] for method, row in rows.items()}
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    fig = Figure(figsize=(7.2, 5.6), layout="constrained")
    axis: Any = fig.add_subplot(projection="polar")
    for i, (method, values) in enumerate(scaled.items()):
        closed = [*values, values[0]]
        axis.plot([*angles, angles[0]], closed, color=_color(i), marker=_MARKS[i % len(_MARKS)], ms=5, lw=1.6,
                  ls=("-", "--", ":")[i // len(figures.SERIES) % 3], label=method)  # fmt: skip
    axis.set_theta_offset(np.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, [_AXES[c] for c in names])
    axis.tick_params(axis="x", pad=10)
    axis.set_ylim(0, 1.02)
    axis.set_yticks([0.25, 0.5, 0.75, 1.0], [])
    axis.spines["polar"].set_color(figures.GRID)
    fig.legend(loc="outside right center", fontsize=9)
    return Picture(
        fig,
        "Outside is better. Accuracies run from 0 in the middle to 100 % at the rim; FID, time, memory and "
        "storage from the worst method of this run (middle) to the best (rim), time and storage by their "
        "logarithm.",
        "A radar chart of the benchmark's metrics, one closed line for each method.",
    )


def _scaled(column: str, value: float | None, rows: dict[str, dict[str, float | None]]) -> float:
    assert value is not None
    if column in BETTER_HIGH:
        return value / 100
    every = np.array([float(row[column] or 0) for row in rows.values()])
    if column != "fid":
        floor = max(every[every > 0].min() / 10 if (every > 0).any() else 1.0, 1e-12)
        every, value = np.log(every + floor), float(np.log(value + floor))
    low, high = float(every.min()), float(every.max())
    return 1.0 if high == low else (high - value) / (high - low)


def scatter(outcome: Outcome, scores: Sequence[Score]) -> Picture:
    """UA against what is retained, here and in the paper."""
    here = table_rows(summarise(scores))
    there = {m: {c: row[c] for c in COLUMNS} for m, row in reference_results().items()}
    domains = [d for d in ("style", "object") if any(row[f"{d}_ua"] is not None for row in here.values())]
    fig, axes = figures.figure(9.6, 3.9 * len(domains), nrows=len(domains), ncols=2, squeeze=False)
    names = list(dict.fromkeys([*(m.lower() for m in here), *(m.lower() for m in there)]))
    for line, domain in zip(axes, domains, strict=True):
        for axis, rows, title in (
            (line[0], here, f"{domain}s, this run ({outcome.config.canvas})"),
            (line[1], there, f"{domain}s, as published (Stable Diffusion 1.5)"),
        ):
            for method, row in rows.items():
                x, ira, cra = (row[f"{domain}_{k}"] for k in ("ua", "ira", "cra"))
                if x is None or ira is None or cra is None:
                    continue
                i = names.index(method.lower())
                y = (ira + cra) / 2
                axis.plot(x, y, _MARKS[i % len(_MARKS)], color=_color(i), ms=8, ls="none", label=method)
            axis.set_xlim(-4, 104)
            axis.set_ylim(-4, 104)
            axis.set_xlabel("UA, %")
            axis.set_ylabel("mean of IRA and CRA, %")
            axis.set_title(title)
            axis.legend(fontsize=7.5, ncols=2, loc="lower left")
    return Picture(
        fig,
        "What is unlearned against what stays; the upper right corner has both. The two sides are different "
        "models and canvases: compare how methods lie to each other, never the figures.",
        "Scatter plots of unlearning accuracy against retained accuracy, this run and the published table.",
    )


def ranking(ranked: Sequence[Ranked]) -> Picture:
    """Mean ranks with their intervals."""
    fig, axis = figures.figure(7.5, 0.42 * len(ranked) + 1.1)
    at = np.arange(len(ranked))
    means = np.array([one.mean_rank for one in ranked])
    low, high = np.array([one.interval for one in ranked]).T
    errors = [np.maximum(means - low, 0), np.maximum(high - means, 0)]
    axis.errorbar(means, at, xerr=errors, fmt="o", color=figures.SERIES[0], ecolor=figures.MUTED, capsize=3)
    axis.set_yticks(at, [one.method + (" *" if one.beaten_by else "") for one in ranked])
    axis.invert_yaxis()
    axis.set_xlim(0.7, len(ranked) + 0.3)
    axis.set_xlabel("mean rank over the metrics, 1 is best")
    return Picture(
        fig,
        "Mean rank over all metrics of the table, with 95 % intervals from drawing the targets again. A star "
        "marks methods that another one beats or equals in every metric.",
        "; ".join(f"{one.method} {one.mean_rank:.1f}" for one in ranked),
    )


def costs(scores: Sequence[Score]) -> Picture:
    """Time and storage."""
    found = [(m, own[0].costs, own) for m, own in _by_method(scores).items() if own[0].costs is not None]
    names = [m for m, _, _ in found]
    seconds = [np.mean([one.costs.seconds for one in own if one.costs]) for _, _, own in found]
    kept = [np.mean([one.costs.storage_bytes for one in own if one.costs]) / 1024 for _, _, own in found]
    fig, axes = figures.figure(9.0, 0.34 * len(names) + 1.2, ncols=2, squeeze=False)
    for axis, values, title in zip(
        axes[0], (seconds, kept), ("Time to edit, s", "Kept beyond the base model, KiB"), strict=True
    ):
        axis.barh(np.arange(len(names)), values, color=figures.SERIES[2])
        for row, value in enumerate(values):
            axis.text(value, row, f" {value:.3g}", va="center", fontsize=8.5)
        axis.set_yticks(np.arange(len(names)), names)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(title)
    return Picture(
        fig,
        "Mean over targets: wall time of making one edited model, its own data with it, and bytes kept.",
        "; ".join(f"{n} {s:.2f} s" for n, s in zip(names, seconds, strict=True)),
    )


# ---- pictures --------------------------------------------------------------------------------------------


def pictures(outcome: Outcome) -> dict[str, Picture]:
    """name -> what base and edited models draw, for the first target of each domain."""
    found = {}
    for domain in ("style", "object"):
        names = [t for t in outcome.config.targets if outcome.canvas.find(t)[0] == domain]
        if names:
            found[f"drawn-{domain}"] = _drawn(outcome, domain, names[0])
    return found


def _drawn(outcome: Outcome, domain: str, target: str) -> Picture:
    canvas, base = outcome.canvas, outcome.base
    assert base is not None
    own = outcome.canvas.cells
    place = 0 if domain == "style" else 1
    mine = [cell for cell in own if cell[place] == target][: COLUMNS_SHOWN // 2]
    rest = [cell for cell in own if cell[place] != target]
    step = max(1, len(rest) // (COLUMNS_SHOWN // 2) + 1)
    cells = [*mine, *rest[::step][: COLUMNS_SHOWN - len(mine)]]
    seed = outcome.config.seeds[0]
    rows: list[tuple[str, Single]] = [("base", base)]
    rows += [(one.method, one) for one in outcome.singles if one.target == target]
    fig, axes = figures.figure(9.6, 0.98 * len(rows) + 0.7, nrows=len(rows), ncols=len(cells), squeeze=False)
    for line, (label, single) in zip(axes, rows, strict=True):
        for axis, cell in zip(line, cells, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            path = next(single.answers.glob(f"{cell[0]}_{cell[1]}_seed{seed}.*"), None)
            if path is None:
                axis.set_visible(False)
                continue
            picture = read_pictures([path])[0].permute(1, 2, 0).numpy()
            axis.imshow(picture if picture.shape[2] == 3 else picture[:, :, 0], interpolation="nearest")
            seen = _seen(single, domain, (*cell, seed)) == target
            for spine in axis.spines.values():
                spine.set_visible(seen)
                spine.set_color(figures.SERIES[1])
                spine.set_linewidth(3)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        line[0].set_visible(True)
    for axis, cell in zip(axes[0], cells, strict=True):
        axis.set_title("\n".join(words(canvas.words(part)) for part in cell), fontsize=8, fontweight="normal")
    return Picture(
        fig,
        f"The same prompts and noise before and after “{words(target)}” was unlearned. A frame marks "
        "pictures in which the judge sees it: in the left half, whose prompts ask for it, there should be "
        "none.",
        f"A grid of pictures, one row per method; pictures that still show {words(target)} are framed.",
    )


def _seen(single: Single, domain: str, key: tuple[str, str, int]) -> str:
    found = single.predictions
    index = next((i for i, one in enumerate(found.keys) if tuple(one) == key), None)
    return "" if index is None else found.classes(domain)[int(found.said(domain)[index])]


def confusion(scores: Sequence[Score]) -> Picture:
    """What became of the targets' pictures."""
    shown = list(scores)[:40]
    fig, axis = figures.figure(9.0, 0.24 * len(shown) + 1.0)
    for row, one in enumerate(shown):
        left, n = 0.0, one.ua.n
        parts = [("as asked", n - one.ua.successes), *list(one.seen_instead.items())[:3]]
        parts.append(("other", n - sum(count for _, count in parts)))
        for i, (name, count) in enumerate(parts):
            share = count / n
            color = figures.SERIES[1] if i == 0 else (figures.SERIES[0], figures.SERIES[2], figures.SERIES[4],
                                                      figures.MUTED)[i - 1]  # fmt: skip
            axis.barh(row, share, left=left, color=color, height=0.8)
            if share > 0.09 and i:
                axis.text(left + share / 2, row, words(name), ha="center", va="center", color="#ffffff",
                          fontsize=7)  # fmt: skip
            left += share
    axis.set_yticks(
        np.arange(len(shown)), [f"{one.method}, {words(one.target)}" for one in shown], fontsize=8
    )
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the target's pictures (orange: still as asked)")
    return Picture(
        fig,
        "What the judge of the target's domain sees where the prompt asks for what was unlearned: the target "
        "itself (orange), the three classes seen most often instead, and all others.",
        "Stacked bars, one for each edited model, of the classes seen in the target's pictures.",
    )


# ---- other tasks -----------------------------------------------------------------------------------------


def finer(outcome: Outcome) -> Picture:
    """UA, SC, OC, UP of each pair."""
    found = outcome.finer
    fig, axis = figures.figure(8.0, 3.2)
    at, keys = np.arange(len(found)), ("ua", "sc", "oc", "up")
    for i, key in enumerate(keys):
        rates = [getattr(one, key) for one in found]
        values = np.array([rate.value for rate in rates])
        low, high = np.array([rate.interval for rate in rates]).T
        place = at + 0.2 * (i - 1.5)
        axis.bar(place, values, 0.18, color=_color(i), label=key.upper())
        axis.errorbar(place, values, [values - low, high - values], fmt="none", ecolor=figures.INK, lw=1,
                      capsize=2)  # fmt: skip
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


def sequential(outcome: Outcome) -> Picture:
    """Lower triangles of UA, and what is retained, for each method."""
    names = list(outcome.sequential)
    fig, axes = figures.figure(9.6, 3.6 * len(names), nrows=len(names), ncols=2, squeeze=False)
    for line, name in zip(axes, names, strict=True):
        found = outcome.sequential[name]
        n = len(found.targets)
        shown: NDArray[np.float64] = np.ma.masked_invalid(found.ua)
        line[0].imshow(shown, cmap=_SHADES, vmin=0, vmax=1, aspect="auto")
        for (i, t), value in np.ndenumerate(found.ua):
            if value == value:
                line[0].text(t, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8,
                             color="#ffffff" if value > 0.6 else figures.INK)  # fmt: skip
        line[0].grid(False)
        line[0].set_yticks(np.arange(n), [words(t) for t in found.targets], fontsize=8)
        line[0].set_xticks(np.arange(n), [f"+ {words(t)}" for t in found.targets], fontsize=8, rotation=30)
        line[0].set_title(f"{name}: UA, %, of each target after each step")
        steps = np.arange(n + 1)
        for i, (label, values, base) in enumerate(
            (("styles", found.ra_style, found.base_style), ("objects", found.ra_object, found.base_object))
        ):
            line[1].plot(steps, values, color=_color(i), marker=_MARKS[i], label=f"other {label}")
            line[1].plot(steps, base, color=_color(i), ls=":", lw=1.2, label=f"the same, base model, {label}")
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
        values = np.array([rate.value for rate in rates])
        low, high = np.array([rate.interval for rate in rates]).T
        place = at + 0.32 * (i - 0.5)
        axis.bar(place, values, 0.3, color=figures.SERIES[(4, 1)[i]], label=label)
        axis.errorbar(place, values, [values - low, high - values], fmt="none", ecolor=figures.INK, lw=1,
                      capsize=2)  # fmt: skip
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
