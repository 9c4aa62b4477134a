"""Pictures of scores: boxes with every case, organs by cases, the podium, and volumes after Bland and
Altman."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold._checks import fail
from tenfold.runs import figures
from tenfold.segmentation.drawing import Picture, labels, painted, robust_limits, styled, team_styles, titled
from tenfold.segmentation.ranking import rank_values
from tenfold.segmentation.scores import ScoreTable

__all__ = ["bland_altman", "box_strip", "heat_map", "organ_boxes", "podium"]


@styled
def box_strip(table: ScoreTable, metric: str, *, order: Sequence[int] | None = None) -> Picture:
    """A box for each team with all its cases beside it: the mean over organs in each case."""
    values = table.means(metric)
    teams = list(range(len(table.teams)) if order is None else order)
    figure, axes = figures.figure(max(5.0, 1.6 + 0.62 * len(teams)), 3.8)
    styles = team_styles(table.teams)
    for position, t in enumerate(teams):
        _box(axes, values[t], position, styles[table.teams[t]][0], styles[table.teams[t]][1], vertical=True)
    names = [table.teams[t] for t in teams]
    _names_below(axes, names, (float(figure.get_figwidth()) - 0.8) / len(teams))
    axes.set(ylabel=titled(metric), xlim=(-0.6, len(teams) - 0.4))
    axes.grid(axis="x", visible=False)
    axes.set_title(_of_each_case(table, metric))
    told = "; ".join(f"{table.teams[t]} {_median(values[t])}" for t in teams)
    return Picture(
        figure,
        "Boxes span the middle half of the cases, the line is the median, whiskers reach to the last case "
        "within 1.5 box lengths. Every point is a case."
        + (" Teams stand in the order of the ranking." if order is not None else ""),
        f"Box plot of {titled(metric)} by team. Medians: {told}.",
    )


@styled
def organ_boxes(table: ScoreTable, metric: str, team: str) -> Picture:
    """A box for each organ of one team with all its cases, the worst organ on top."""
    t = _team(table, team)
    organs = _organs(table, metric)
    values = _by_organ(table, metric)[t]
    better = metric not in table.smaller
    middle = np.array(
        [np.median(row[np.isfinite(row)]) if np.isfinite(row).any() else -np.inf for row in values]
    )
    order = np.argsort(middle if better else -middle, kind="stable")
    figure, axes = figures.figure(7.2, 1.1 + 0.21 * len(organs))
    for position, k in enumerate(order):
        _box(axes, values[k], position, figures.SERIES[0], "o", vertical=False)
    axes.set_yticks(range(len(organs)), labels([organs[k] for k in order], 24), fontsize=8)
    axes.set(xlabel=titled(metric), ylim=(len(organs) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    axes.set_title(f"{titled(metric)} of each organ: {team}")
    return Picture(
        figure,
        "Every point is a case; the organ with the worst median is on top.",
        f"Box plot of {titled(metric)} by organ for {team}. Worst median: {organs[order[0]]} "
        f"{_median(values[order[0]])}; best: {organs[order[-1]]} {_median(values[order[-1]])}.",
    )


@styled
def heat_map(table: ScoreTable, metric: str, team: str) -> Picture:
    """One team's scores, organs by cases. Organs and cases are sorted by their means, the worst on top and
    left."""
    t = _team(table, team)
    organs = _organs(table, metric)
    values = _by_organ(table, metric)[t]
    values = np.where(np.isfinite(values), values, np.nan)
    better = metric not in table.smaller
    rows, columns = _worst_first(values, better), _worst_first(values.T, better)
    shown = values[np.ix_(rows, columns)]
    cases = [table.cases[c] for c in columns]
    width = min(12.0, 2.6 + max(0.19 * len(cases), 2.4))
    figure, axes = figures.figure(width, 1.7 + max(0.19 * len(organs), 0.9))
    low, high = robust_limits(shown, better)
    few = len(cases) <= 12
    mesh = painted(
        axes, shown, low, high, text=(".2f" if better else ".1f") if few else None, turned=not better
    )
    axes.set_yticks(np.arange(len(organs)) + 0.5, labels([organs[k] for k in rows], 24), fontsize=8)
    axes.set_xticks(np.arange(len(cases)) + 0.5, labels(cases, 14), fontsize=7, rotation=90)
    _bar(figure, mesh, axes, titled(metric), extend="min" if better else "max")
    axes.set_title(f"{titled(metric)} by organ and case: {team}")
    gone = int(np.isnan(shown).sum())
    worst = (
        np.unravel_index(np.nanargmin(shown if better else -shown), shown.shape)
        if gone < shown.size
        else None
    )
    told = (
        "" if worst is None else f" Worst: {organs[rows[worst[0]]]} in {cases[worst[1]]}, {shown[worst]:.3f}."
    )
    return Picture(
        figure,
        "Organs and cases are sorted by their means, the worst on top and to the left; dark is bad."
        + (f" Hatched: {gone} without a number." if gone else ""),
        f"Heat map of {titled(metric)} for {team}, {len(organs)} organs by {len(cases)} cases.{told}",
    )


@styled
def podium(table: ScoreTable, metric: str, *, order: Sequence[int] | None = None) -> Picture:
    """Who stood where in each case: scores by place with a thread per case, and how often each team had
    each place.

    A case's score is the mean over organs. Teams that tie in a case share the places in the order of the
    ranking.
    """
    values = table.means(metric)
    teams = list(range(len(table.teams)) if order is None else order)
    number = len(teams)
    sign = 1.0 if metric not in table.smaller else -1.0
    keys = np.where(np.isnan(values[teams]), np.inf, -sign * values[teams])
    places = np.argsort(np.argsort(keys, axis=0, kind="stable"), axis=0)  # [team, case], 0 is first
    styles = team_styles(table.teams)
    figure, (upper, lower) = figures.figure(
        max(6.0, 1.6 + 0.9 * number),
        5.4 + 0.2 * (-(-number // 5)),
        nrows=2,
        sharex=True,
        gridspec_kw={"height_ratios": [3, 1.15]},
    )
    offset = 0.8 * ((np.arange(number) + 0.5) / number - 0.5)
    x = places + offset[:, None]
    for c in range(values.shape[1]):
        along = np.argsort(x[:, c])
        upper.plot(
            x[along, c], values[np.array(teams)[along], c], color=figures.GRID, linewidth=0.7, zorder=1
        )
    for row, t in enumerate(teams):
        colour, marker = styles[table.teams[t]]
        upper.plot(
            x[row], values[t], marker, color=colour, markersize=4, alpha=0.8, linestyle="none",
            label=labels([table.teams[t]])[0], zorder=2,
        )  # fmt: skip
        share = [100 * np.mean(places[row] == place) for place in range(number)]
        lower.bar(np.arange(number) + offset[row], share, 0.7 / number, color=colour)
    for axes in (upper, lower):
        for edge in range(1, number):
            axes.axvline(edge - 0.5, color=figures.GRID, linewidth=0.8)
        axes.grid(axis="x", visible=False)
    lower.set_xticks(range(number), [str(place + 1) for place in range(number)])
    lower.set(xlabel="place in the case", ylabel="cases, %", xlim=(-0.5, number - 0.5))
    upper.set_ylabel(titled(metric))
    upper.set_title(f"Podium: {_of_each_case(table, metric)}")
    figure.legend(loc="outside lower center", ncols=min(number, 5), fontsize=8, markerscale=1.4)
    wins = {table.teams[t]: int((places[row] == 0).sum()) for row, t in enumerate(teams)}
    told = "; ".join(f"{team} {count}" for team, count in wins.items() if count)
    return Picture(
        figure,
        "Each thread is a case: it joins the scores of all teams from the first place to the last. Within a "
        "place the teams stand side by side in the order of the ranking; bars say how often a team took the "
        "place.",
        f"Podium plot of {number} teams over {values.shape[1]} cases. First places: {told}.",
    )


@styled
def bland_altman(
    reference: Sequence[float] | NDArray[np.float64],
    predicted: Sequence[float] | NDArray[np.float64],
    *,
    organs: Sequence[str] | None = None,
    title: str = "Volumes: agreement with the reference",
    relative: bool = True,
) -> Picture:
    """Volumes in ml after Bland and Altman: difference against mean, with bias and 95 % limits of agreement.

    `relative` shows the difference in percent of the mean, over a logarithmic axis: volumes of organs span
    four orders of magnitude. Pairs of which a volume is missing, or both are zero, are left out and
    counted. `organs` names each pair's organ: up to six are told apart. ValueError for unequal lengths,
    negative volumes, no pair.
    """
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        fail(ValueError, "predicted", f"as many volumes as reference, {a.shape}", b.shape)
    if organs is not None and len(organs) != len(a):
        fail(ValueError, "organs", f"{len(a)} names", len(organs))
    if (a < 0).any() or (b < 0).any():
        fail(ValueError, "volumes", "millilitres >= 0", "a negative one")
    kept = np.isfinite(a) & np.isfinite(b) & (a + b > 0)
    if not kept.any():
        fail(ValueError, "volumes", "at least one pair of volumes", "none")
    mean = (a + b)[kept] / 2
    difference = (b - a)[kept]
    if relative:
        difference = 100 * difference / mean
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    figure, axes = figures.figure(7.0, 4.0)
    names = np.array([""] * len(mean) if organs is None else list(organs), dtype=object)[
        kept if organs else slice(None)
    ]
    groups = list(dict.fromkeys(names.tolist()))
    apart = 1 < len(groups) <= len(figures.SERIES)
    for k, (group, (colour, marker)) in enumerate(team_styles(groups).items()):
        mine = names == group if apart else np.full(len(mean), k == 0)
        axes.plot(
            mean[mine], difference[mine], marker if apart else "o",
            color=colour if apart else figures.SERIES[0], markersize=4, alpha=0.7, linestyle="none",
            label=group if apart else None,
        )  # fmt: skip
    unit = "%" if relative else "ml"
    for value, line, text in (
        (bias, "-", "bias"), (bias + spread, "--", "+1.96 SD"), (bias - spread, "--", "−1.96 SD")
    ):  # fmt: skip
        axes.axhline(value, color=figures.INK, linewidth=1.1, linestyle=line, zorder=1)
        axes.annotate(
            f"{text} {value:+.1f} {unit}".replace("-", "−"), (1.005, value),
            xycoords=("axes fraction", "data"), fontsize=8, va="center", color=figures.INK,
        )  # fmt: skip
    if relative:
        from matplotlib.ticker import LogLocator, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set(xlabel="mean of reference and prediction, ml", ylabel=f"prediction − reference, {unit}")
    axes.set_title(title)
    if apart:
        axes.legend(fontsize=8, ncols=3, loc="best")
    left = len(a) - int(kept.sum())
    return Picture(
        figure,
        f"Each point is a structure of a case. Solid: the mean difference; dashed: between these lie 95 % of "
        f"the differences if they are normal. {len(mean)} pairs"
        + (f", {left} left out (a volume missing, or both zero)." if left else "."),
        f"Bland-Altman plot of volumes: bias {bias:+.2f} {unit}, limits {bias - spread:+.2f} to "
        f"{bias + spread:+.2f} {unit}.",
    )


def _box(
    axes: Any, values: NDArray[np.float64], position: int, colour: str, marker: str, *, vertical: bool
) -> None:
    points = values[np.isfinite(values)]
    if not len(points):
        return
    line = {"color": colour, "linewidth": 1.2}
    axes.boxplot(
        points, positions=[position - 0.16], widths=0.3, orientation="vertical" if vertical else "horizontal",
        showfliers=False, manage_ticks=False, boxprops=line, whiskerprops=line, capprops=line,
        medianprops={"color": figures.INK, "linewidth": 1.8},
    )  # fmt: skip
    spread = position + 0.22 + 0.11 * _jitter(len(points))
    across, along = (spread, points) if vertical else (points, spread)
    axes.plot(across, along, marker, color=colour, markersize=2.6, alpha=0.65, linestyle="none")


def _jitter(number: int) -> NDArray[np.float64]:
    """Places in [-1, 1) that spread evenly and are the same each time (multiples of the golden ratio)."""
    return 2 * np.modf(np.arange(number) * 0.6180339887)[0] - 1


def _names_below(axes: Any, names: Sequence[str], room: float) -> None:
    """`room` is the width in inches that each name has."""
    shown = labels(names, 20)
    turned = max(map(len, shown)) * 0.085 > room
    axes.set_xticks(
        range(len(shown)), shown, rotation=35 if turned else 0, ha="right" if turned else "center"
    )


def _bar(figure: Any, mesh: Any, axes: Any, label: str, extend: str) -> None:
    bar = figure.colorbar(mesh, ax=axes, label=label, extend=extend, pad=0.015, fraction=0.05, aspect=25)
    bar.outline.set_visible(False)


def _worst_first(values: NDArray[np.float64], better: bool) -> NDArray[np.int64]:
    """Rows by their means; a row without a number comes first."""
    means = np.array([row[~np.isnan(row)].mean() if (~np.isnan(row)).any() else np.nan for row in values])
    return np.argsort(-rank_values(means, larger_better=better, ties="average"), kind="stable")


def _of_each_case(table: ScoreTable, metric: str) -> str:
    organs = _organs(table, metric)
    what = f"mean over {len(organs)} organs" if len(organs) > 1 else organs[0]
    return f"{titled(metric)} of each case, {what}"


def _organs(table: ScoreTable, metric: str) -> list[str]:
    organs = [column.organ or "structure" for column in table.columns if column.metric == metric]
    if not organs:
        fail(ValueError, "metric", f"one of {list(table.metrics)}", repr(metric))
    return organs


def _by_organ(table: ScoreTable, metric: str) -> NDArray[np.float64]:
    """[teams, organs, cases]."""
    k = [i for i, column in enumerate(table.columns) if column.metric == metric]
    return table.values[:, :, k].transpose(0, 2, 1)


def _team(table: ScoreTable, team: str) -> int:
    if team not in table.teams:
        fail(ValueError, "team", f"one of {list(table.teams)}", repr(team))
    return table.teams.index(team)


def _median(values: NDArray[np.float64]) -> str:
    finite = values[np.isfinite(values)]
    return f"{np.median(finite):.3f}" if len(finite) else "none"
