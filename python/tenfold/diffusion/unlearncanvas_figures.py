"""Pictures of an ``unlearncanvas`` run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tenfold.diffusion.canvas.files import COLUMNS, reference_results, table_rows
from tenfold.diffusion.canvas.keys import Key, file_stem
from tenfold.diffusion.canvas.manifest import ENDINGS, fitted, read_pictures
from tenfold.diffusion.canvas.ranking import BETTER_HIGH, Ranked
from tenfold.diffusion.canvas.scores import Score, summarise
from tenfold.diffusion.unlearncanvas_run import Outcome, Single
from tenfold.runs import figures

__all__ = [
    "MARKS", "ON_DARK", "ON_LIGHT", "SHADES", "Picture", "color", "confusion", "costs", "heat", "pictures",
    "radar", "ranking", "scatter", "words",
]  # fmt: skip

SHARED = 8
"""Heat maps of up to as many targets a method stand in one figure."""
COLUMNS_SHOWN = 8
MOST_BARS = 40
MARKS = "osD^vP*XhpdH"
SHADES = "Blues"
_CHANGES = "RdBu"
ON_DARK, ON_LIGHT = "#fefefe", "#1c2125"
"""Text on colours of a map, which stay on a dark page: none of the colours that are exchanged there."""
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


def color(i: int) -> str:
    return figures.SERIES[i % len(figures.SERIES)]


# ---- the matrix ------------------------------------------------------------------------------------------


def heat(outcome: Outcome, scores: Sequence[Score]) -> dict[str, Picture]:
    """name -> targets x concepts, one map a method; all in one figure where there are few targets. The same
    again less the base model's."""
    before = {one.target: one for one in outcome.base_scores()}
    base = next(iter(before.values()))
    methods = _by_method(scores)
    if len(outcome.config.targets) <= SHARED:
        return {
            "matrix": _heat({"base": [base], **methods}, "matrix"),
            "matrix-change": _heat(methods, "change against the base model", before),
        }
    found = {}
    for method, own in methods.items():
        found[f"matrix-{method}"] = _heat({"base": [base], method: own}, method)
        found[f"matrix-{method}-change"] = _heat({method: own}, f"{method}, change", before)
    return found


def _heat(groups: dict[str, list[Score]], name: str, less: dict[str, Score] | None = None) -> Picture:
    """less: what is taken from the row of each target."""
    first = next(iter(groups.values()))[0]
    concepts = [*first.style, *first.object]
    many = len(concepts) > 24
    inch = 0.155 if many else 0.3  # of a row
    heights = [len(own) + 0.6 for own in groups.values()]
    width = max(9.0, 0.17 * len(concepts))
    fig, axes = figures.figure(
        width, inch * sum(heights) + 1.5, nrows=len(groups), squeeze=False, height_ratios=heights
    )
    image: Any = None
    for i, (axis, (method, own)) in enumerate(zip(axes[:, 0], groups.items(), strict=True)):
        values = np.array([_shares(one) for one in own])
        if less is not None:
            values = values - np.array([_shares(less[one.target]) for one in own])
        image = axis.imshow(values, cmap=SHADES if less is None else _CHANGES, vmin=0 if less is None else -1,
                            vmax=1, aspect="auto", interpolation="nearest")  # fmt: skip
        _grid_of(axis, len(first.style), figures.INK if less is None else ON_LIGHT)
        for row, one in enumerate(own if method != "base" else ()):
            _frame(axis, concepts.index(one.target), row, 1.2 if many else 2)
        if not many:
            _numbers(axis, values, less is not None)
        labels = ["all prompts"] if method == "base" else [words(one.target) for one in own]
        axis.set_yticks(np.arange(len(own)), labels, fontsize=7 if many else 7.5)
        axis.set_ylabel(method, rotation=0, ha="right", va="center", fontweight="bold", labelpad=12)
        last = i == len(groups) - 1
        axis.set_xticks(
            np.arange(len(concepts)), [words(c) for c in concepts] if last else [], rotation=90, fontsize=7.5
        )
    said = "share drawn as asked" if less is None else "change of share"
    fig.colorbar(image, ax=list(axes[:, 0]), shrink=0.6, pad=0.01, fraction=0.03, aspect=30, label=said)
    return Picture(fig, _heat_caption(less is not None),
                   f"A heat map of shares, {name}; rows are targets, columns concepts.")  # fmt: skip


def _shares(one: Score) -> list[float]:
    return [*one.style.values(), *one.object.values()]


def _heat_caption(change: bool) -> str:
    if change:
        return (
            "The same less the base model's row: red is drawn less often than before. The framed cell, what "
            "was unlearned, should be red and all others white."
        )
    return (
        "Share of pictures in which the judge sees the concept that the prompt names; one row for each "
        "edited model, styles left of the line, objects right. The framed cell is what was unlearned: it "
        "should be empty, and all others as full as the base model's."
    )


def _grid_of(axis: Any, styles: int, shade: str) -> None:
    """No lines but the one between styles and objects."""
    axis.axvline(styles - 0.5, color=shade, lw=1.5)
    axis.grid(False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _numbers(axis: Any, values: NDArray[np.float64], signed: bool) -> None:
    for (row, column), value in np.ndenumerate(values):
        shade = ON_DARK if (abs(value) if signed else value) > 0.6 else ON_LIGHT
        text = f"{100 * value:+.0f}" if signed and round(100 * value) else f"{100 * value:.0f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=shade)


def _frame(axis: Any, column: float, row: float, width: float) -> None:
    from matplotlib.patches import Rectangle

    box = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=figures.SERIES[1], lw=width)
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
    fig = Figure(figsize=(8.0, 5.6), layout="constrained")
    axis: Any = fig.add_subplot(projection="polar")
    for i, (method, values) in enumerate(scaled.items()):
        closed = [*values, values[0]]
        axis.plot([*angles, angles[0]], closed, color=color(i), marker=MARKS[i % len(MARKS)], ms=5, lw=1.6,
                  clip_on=False, ls=("-", "--", ":")[i // len(figures.SERIES) % 3], label=method)  # fmt: skip
    axis.set_theta_offset(np.pi / 2)
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, [])
    for angle, column in zip(angles, names, strict=True):
        side = round(float(np.sin(angle)), 6)
        axis.text(angle, 1.09, _AXES[column], va="center",
                  ha="center" if side == 0 else "left" if side > 0 else "right")  # fmt: skip
    axis.set_ylim(0, 1)
    axis.set_yticks([0.25, 0.5, 0.75], [])
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
    """UA against IRA and CRA, here and in the paper."""
    here = table_rows(summarise(scores))
    there = {m: {c: row[c] for c in COLUMNS} for m, row in reference_results().items()}
    domains = [d for d in ("style", "object") if any(row[f"{d}_ua"] is not None for row in here.values())]
    fig, axes = figures.figure(12.0, 3.1 * len(domains) + 0.8, nrows=len(domains), ncols=4, squeeze=False)
    names = {m.lower(): m for m in (*there, *here)}
    drawn: dict[str, Any] = {}
    for line, domain in zip(axes, domains, strict=True):
        for axis, (rows, place), key in zip(
            line, ((here, "this run"), (here, "this run"), (there, "published"), (there, "published")),
            ("ira", "cra", "ira", "cra"), strict=True,
        ):  # fmt: skip
            for method, row in rows.items():
                x, y = row[f"{domain}_ua"], row[f"{domain}_{key}"]
                if x is None or y is None:
                    continue
                i = list(names).index(method.lower())
                (point,) = axis.plot(x, y, MARKS[i % len(MARKS)], color=color(i), ms=7, ls="none", mew=0.5,
                                     mec=figures.PAPER, clip_on=False)  # fmt: skip
                drawn[names[method.lower()]] = point
            axis.set_xlim(-4, 104)
            axis.set_ylim(-4, 104)
            axis.set_xlabel("UA, %")
            axis.set_ylabel(f"{key.upper()}, %")
            axis.set_title(f"{domain}s, {place}", fontsize=10)
    fig.legend(
        list(drawn.values()), list(drawn), fontsize=8.5, ncols=min(8, len(drawn)), loc="outside lower center"
    )
    return Picture(
        fig,
        "What is unlearned against what stays of its own kind (IRA) and of the other (CRA); the upper right "
        f"corner has both. Left this run, on the {outcome.config.canvas} canvas, right the published table "
        "(Stable Diffusion 1.5): different models and pictures, so compare how methods lie to each other, "
        "never the figures.",
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
    seconds = [float(np.mean([one.costs.seconds for one in own if one.costs])) for _, _, own in found]
    kept: list[float] = [
        float(np.mean([one.costs.storage_bytes for one in own if one.costs])) for _, _, own in found
    ]
    unit, size = _unit(max(kept, default=0.0))
    shown = (seconds, [value / size for value in kept])
    fig, axes = figures.figure(9.0, 0.34 * len(names) + 1.2, ncols=2, squeeze=False)
    for axis, values, title in zip(
        axes[0], shown, ("Time to edit, s", f"Kept beyond the base model, {unit}"), strict=True
    ):
        axis.barh(np.arange(len(names)), values, color=figures.SERIES[2])
        for row, value in enumerate(values):
            axis.text(value, row, f" {value:.3g}", va="center", fontsize=8.5)
        axis.set_yticks(np.arange(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.2 * max([*values, 1e-9]))
        axis.set_title(title)
    return Picture(
        fig,
        "Mean over targets: wall time of making one edited model, its own data with it, and bytes kept.",
        "; ".join(f"{n} {s:.2f} s" for n, s in zip(names, seconds, strict=True)),
    )


def _unit(most: float) -> tuple[str, float]:
    """Unit and its bytes in which the largest number is easily read."""
    units = (("GiB", 2**30), ("MiB", 2**20))
    return next(((name, float(size)) for name, size in units if most >= size), ("KiB", 1024.0))


# ---- pictures --------------------------------------------------------------------------------------------


def pictures(outcome: Outcome) -> dict[str, Picture]:
    """name -> what base and edited models draw, and how far it moved, for the first target of each domain."""
    found = {}
    for domain in ("style", "object"):
        names = [t for t in outcome.config.targets if outcome.canvas.find(t)[0] == domain]
        if names and outcome.singles:
            found[f"drawn-{domain}"] = _drawn(outcome, domain, names[0], change=False)
            found[f"changed-{domain}"] = _drawn(outcome, domain, names[0], change=True)
    return found


def _shown_keys(outcome: Outcome, rows: Sequence[Single], place: int, target: str) -> list[Key]:
    """Half of the target, half of the rest; pictures that every model has drawn, where there are such."""
    sets = [set(one.predictions.keys) for one in rows]
    order = {cell: i for i, cell in enumerate(outcome.canvas.cells)}
    every = sorted(set.intersection(*sets) or sets[-1], key=lambda k: (order[k.style, k.object], k.seed))
    first = list({(k.style, k.object): k for k in reversed(every)}.values())[::-1]  # a cell once
    mine = [key for key in first if key[place] == target]
    rest = [key for key in first if key[place] != target]
    half = COLUMNS_SHOWN // 2
    return [*mine[:: max(1, len(mine) // half)][:half], *rest[:: len(rest) // half + 1][:half]]


def _drawn(outcome: Outcome, domain: str, target: str, *, change: bool) -> Picture:
    base, place = outcome.base, 0 if domain == "style" else 1
    assert base is not None
    edited = [one for one in outcome.singles if one.target == target]
    keys = _shown_keys(outcome, [base, *edited], place, target)
    rows = edited if change else [base, *edited]
    fig, axes = figures.figure(9.6, 0.98 * len(rows) + 0.7, nrows=len(rows), ncols=len(keys), squeeze=False)
    for line, single in zip(axes, rows, strict=True):
        for axis, key in zip(line, keys, strict=True):
            _blank(axis)
            picture = _picture(single, key)
            before = _picture(base, key) if change else picture
            if picture is None or before is None:
                continue
            if change:
                axis.imshow(abs(picture - before).mean(2), cmap="Greys", vmin=0, vmax=1)
                continue
            axis.imshow(picture, interpolation="nearest")
            for spine in axis.spines.values():
                spine.set_visible(_seen(single, domain, key) == target)
                spine.set_color(figures.SERIES[1])
                spine.set_linewidth(3)
        line[0].set_ylabel("base" if single is base else single.method, rotation=0, ha="right", va="center",
                           fontsize=9)  # fmt: skip
    for axis, key in zip(axes[0], keys, strict=True):
        names = (words(outcome.canvas.words(part)) for part in key[:2])
        axis.set_title("\n".join(names), fontsize=8, fontweight="normal")
    if change:
        return Picture(
            fig,
            f"How far the pictures moved when “{words(target)}” was unlearned, from white (not at all) to "
            "black: the left half, whose prompts ask for it, should be dark, the right half white.",
            "A grid of differences of pictures to the base model's, one row per method.",
        )
    return Picture(
        fig,
        f"The same prompts and noise before and after “{words(target)}” was unlearned. A frame marks "
        "pictures in which the judge sees it: in the left half, whose prompts ask for it, there should be "
        "none.",
        f"A grid of pictures, one row per method; pictures that still show {words(target)} are framed.",
    )


def _blank(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _picture(single: Single, key: Key) -> NDArray[np.float64] | None:
    """[H, W, 3] in 0..1, or None where it was not drawn; at most 128 pixels wide, as a page shows it."""
    path = next((p for p in (single.answers / f"{file_stem(key)}.{e}" for e in ENDINGS) if p.is_file()), None)
    if path is None:
        return None
    picture = read_pictures([path])[0]
    wide = max(picture.shape[1:])
    if wide > 128:
        rows, columns = (max(1, round(128 * n / wide)) for n in picture.shape[1:])
        picture = fitted(picture, (rows, columns), crop=False)
    return np.asarray(picture.expand(3, -1, -1).permute(1, 2, 0).numpy() / 255.0)


def _seen(single: Single, domain: str, key: Key) -> str:
    found = single.predictions
    index = next((i for i, one in enumerate(found.keys) if one == key), None)
    return "" if index is None else found.classes(domain)[int(found.said(domain)[index])]


def confusion(scores: Sequence[Score]) -> Picture:
    """What became of the targets' pictures: of each target, or, of many, of all that a method unlearned."""
    rows = [(f"{one.method}, {words(one.target)}", _seen_in([one])) for one in scores]
    each = "edited model"
    if len(rows) > MOST_BARS:
        each = "method and kind of target"
        rows = [
            (f"{method}, {domain}s", _seen_in([one for one in own if one.domain == domain]))
            for method, own in _by_method(scores).items()
            for domain in dict.fromkeys(one.domain for one in own)
        ]
    fig, axis = figures.figure(9.0, 0.24 * len(rows) + 1.0)
    shades = (figures.SERIES[1], figures.SERIES[0], figures.SERIES[2], figures.SERIES[4], figures.MUTED)
    for row, (_, parts) in enumerate(rows):
        left = 0.0
        for (name, share), shade in zip(parts, shades, strict=True):
            axis.barh(row, share, left=left, color=shade, height=0.8)
            if share > 0.011 * len(name) + 0.01 and shade != figures.SERIES[1]:  # else it does not fit
                axis.text(left + share / 2, row, name, ha="center", va="center", color=figures.PAPER,
                          fontsize=7)  # fmt: skip
            left += share
    axis.set_yticks(np.arange(len(rows)), [label for label, _ in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the target's pictures (orange: still as asked)")
    return Picture(
        fig,
        "What the judge of the target's domain sees where the prompt asks for what was unlearned: the target "
        "itself (orange), the three classes seen most often instead, and all others; one bar for each "
        f"{each}.",
        f"Stacked bars, one for each {each}, of the classes seen in the target's pictures.",
    )


def _seen_in(scores: Sequence[Score]) -> list[tuple[str, float]]:
    """Five parts of the targets' pictures: as asked, the three classes seen most often instead, other."""
    n = sum(one.ua.n for one in scores)
    asked = n - sum(one.ua.successes for one in scores)
    instead: dict[str, int] = {}
    for one in scores:
        for name, count in one.seen_instead.items():
            instead[name] = instead.get(name, 0) + count
    most = sorted(instead.items(), key=lambda item: -item[1])[:3]
    most += [("", 0)] * (3 - len(most))
    other = n - asked - sum(count for _, count in most)
    parts = [("as asked", asked), *((words(name), count) for name, count in most), ("other", other)]
    return [(name, count / n) for name, count in parts]
