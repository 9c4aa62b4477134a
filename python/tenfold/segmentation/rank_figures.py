"""Pictures of rankings: who ranks where, who beats whom, and how sure that is (after arXiv 1910.05121)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold._checks import fail
from tenfold.runs import figures
from tenfold.segmentation.bootstrap import Bootstrap
from tenfold.segmentation.drawing import Picture, labels, painted, styled, team_styles, titled
from tenfold.segmentation.ranking import Ranking, rank_values
from tenfold.segmentation.scores import filled
from tenfold.segmentation.statistics import Significance

__all__ = ["blob", "column_rank_map", "rank_lines", "ranking_heat_map", "significance_map", "tau_violin"]


@styled
def ranking_heat_map(ranking: Ranking) -> Picture:
    """How often each team had each rank, over all cases, organs and metrics one by one."""
    if ranking.table is None:
        fail(ValueError, "ranking", "one of a table", "a consensus of rankings")
    table = ranking.table
    na = "worst" if ranking.scheme.na in ("error", "drop") else ranking.scheme.na
    ranks = rank_values(filled(table, na).transpose(1, 2, 0)).reshape(-1, len(table.teams))
    number = len(table.teams)
    order = ranking.order
    share = np.array([[100 * np.mean(ranks[:, t] == place + 1) for t in order] for place in range(number)])
    figure, axes = figures.figure(max(4.6, 2.4 + 0.62 * number), max(3.2, 1.9 + 0.36 * number))
    mesh = painted(axes, share, 0, max(10.0, float(share.max())), text=".0f" if number <= 14 else None)
    names = [table.teams[t] for t in order]
    axes.set_xticks(np.arange(number) + 0.5, labels(names, 20), rotation=35 if number > 4 else 0,
                    ha="right" if number > 4 else "center")  # fmt: skip
    axes.set_yticks(np.arange(number) + 0.5, [str(place + 1) for place in range(number)])
    axes.set_ylabel("rank in a case")
    bar = figure.colorbar(mesh, ax=axes, label="% of comparisons", pad=0.02)
    bar.outline.set_visible(False)
    axes.set_title("Ranks in single cases")
    return Picture(
        figure,
        f"For each team, the share of the {len(ranks):,} comparisons (case, organ and metric) in which it "
        f"had each rank. Teams stand in the order of the ranking: the closer to the diagonal, the more "
        "cases agree with it. Ties share the best rank.",
        "Heat map of case-wise ranks. "
        + "; ".join(f"{name}: first in {share[0, k]:.0f} %" for k, name in enumerate(names)) + ".",
    )  # fmt: skip


@styled
def column_rank_map(ranking: Ranking, metric: str) -> Picture:
    """The rank of every team on every organ, by one metric."""
    k = [i for i, column in enumerate(ranking.columns) if column.metric == metric]
    if not k:
        known = list(dict.fromkeys(column.metric for column in ranking.columns))
        fail(ValueError, "metric", f"one of {known}", repr(metric))
    from matplotlib.ticker import MaxNLocator

    order = ranking.order
    ranks = ranking.column_ranks[order][:, k]
    number = len(ranking.teams)
    figure, axes = figures.figure(min(13.0, max(5.0, 2.4 + 0.24 * len(k))), 2.4 + 0.27 * number)
    mesh = painted(
        axes, ranks, 1, max(2, number), text=".3g" if len(k) <= 50 and number <= 14 else None, turned=True
    )
    axes.set_yticks(np.arange(number) + 0.5, labels([ranking.teams[t] for t in order], 22))
    organs = [ranking.columns[i].organ or "structure" for i in k]
    axes.set_xticks(np.arange(len(k)) + 0.5, labels(organs, 20), rotation=90, fontsize=8)
    bar = figure.colorbar(mesh, ax=axes, label="rank", pad=0.015, aspect=12)
    bar.locator = MaxNLocator(integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)
    axes.set_title(f"Rank on each organ by {titled(metric)}")
    wins = (ranks == 1).sum(axis=1)
    return Picture(
        figure,
        "Light is good. A row is a team in the order of the ranking, a column an organ.",
        "Heat map of ranks by organ. "
        + "; ".join(f"{ranking.teams[t]} first on {wins[r]} of {len(k)}" for r, t in enumerate(order)) + ".",
    )  # fmt: skip


@styled
def significance_map(found: Significance, *, order: Sequence[int] | None = None) -> Picture:
    """Who is significantly better than whom: a row's team against each column's, with the adjusted p."""
    teams = list(range(len(found.teams)) if order is None else order)
    number = len(teams)
    side = max(3.6, 1.8 + 0.5 * number)
    figure, axes = figures.figure(side + 0.8, side)
    better, p = found.better, found.adjusted
    for r, i in enumerate(teams):
        for c, j in enumerate(teams):
            _significance_cell(axes, c, r, i == j, bool(better[i, j]), float(p[i, j]), number <= 14)
    names = labels([found.teams[t] for t in teams], 18)
    axes.set(xlim=(0, number), ylim=(number, 0), aspect="equal")
    axes.set_xticks(np.arange(number) + 0.5, names, rotation=90)
    axes.set_yticks(np.arange(number) + 0.5, names)
    axes.xaxis.set_ticks_position("top")
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    adjusted = "Holm-adjusted" if found.adjust == "holm" else "not adjusted"
    axes.set_title(f"{titled(found.metric)}: row better than column?")
    pairs = [f"{found.teams[i]} over {found.teams[j]}" for i in teams for j in teams if better[i, j]]
    return Picture(
        figure,
        f"Filled: the row's team is significantly better than the column's (one-sided Wilcoxon signed-rank "
        f"test over {found.cases} cases, p {adjusted}, level {found.alpha:g}). The numbers are p."
        + (
            f" {found.untested} ordered pairs do not differ in any case and have no p (–)."
            if found.untested
            else ""
        ),
        f"Significance map of {number} teams. Significant: {'; '.join(pairs) if pairs else 'none'}.",
    )


@styled
def blob(found: Bootstrap, *, level: float = 0.95) -> Picture:
    """Ranks over the resamples: the area of a blob is how often, the line an interval, the cross the
    median."""
    ranking = found.ranking
    order = ranking.order
    number = len(order)
    figure, axes = figures.figure(max(4.8, 1.8 + 0.62 * number), max(3.4, 1.7 + 0.34 * number))
    styles = team_styles(ranking.teams)
    interval, shares, levels = found.interval(level), found.frequencies, found.levels
    largest = min(900.0, 9000.0 / max(number, 1))
    for x, t in enumerate(order):
        colour = styles[ranking.teams[t]][0]
        axes.plot([x, x], interval[t], color=colour, linewidth=2.4, zorder=1, solid_capstyle="butt")
        axes.scatter(
            np.full(len(levels), x),
            levels,
            s=largest * shares[t],
            color=colour,
            alpha=0.55,
            linewidth=0,
            zorder=2,
        )
        axes.plot(x, found.median[t], "x", color=figures.INK, markersize=7, markeredgewidth=1.8, zorder=3)
    axes.plot(
        range(number), np.sort(ranking.rank), color=figures.MUTED, linewidth=0.8, linestyle=":", zorder=0
    )
    names = labels([ranking.teams[t] for t in order], 20)
    turned = number > 5
    axes.set_xticks(range(number), names, rotation=35 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(1, number + 1))
    axes.set(ylabel="rank", xlim=(-0.6, number - 0.4), ylim=(number + 0.6, 0.4))
    axes.set_title(f"Ranks in {found.samples:,} resamples of the cases")
    told = "; ".join(
        f"{ranking.teams[t]} rank {ranking.rank[t]:g}, interval {interval[t][0]:g} to {interval[t][1]:g}, "
        f"first in {100 * found.winner[t]:.0f} %" for t in order
    )  # fmt: skip
    return Picture(
        figure,
        f"The area of a blob is the share of resamples with that rank, the cross the median rank, the line "
        f"the {100 * level:g} % interval. Dotted: the ranking of all cases.",
        f"Blob plot of bootstrapped ranks. {told}.",
    )


@styled
def rank_lines(rankings: Sequence[Ranking]) -> Picture:
    """The rank of each team under each ranking method."""
    if not rankings:
        fail(ValueError, "rankings", "at least one", "none")
    teams = rankings[0].teams
    for k, ranking in enumerate(rankings):
        if set(ranking.teams) != set(teams):
            fail(ValueError, f"rankings[{k}]", f"the teams {sorted(teams)}", sorted(ranking.teams))
    ranks = np.array([[r.rank[r.teams.index(team)] for r in rankings] for team in teams])
    number = len(teams)
    figure, axes = figures.figure(max(6.4, 2.6 + 1.05 * len(rankings)), max(3.2, 1.6 + 0.33 * number))
    shift = 0.16 * (np.arange(number) - (number - 1) / 2) / max(number - 1, 1)
    for t, (team, (colour, marker)) in enumerate(team_styles(teams).items()):
        style = "-" if t < len(figures.SERIES) else "--"
        axes.plot(
            range(len(rankings)),
            ranks[t] + shift[t],
            style,
            marker=marker,
            color=colour,
            markersize=6,
            label=team,
        )
    last = ranks[:, -1] + shift
    places = _apart(np.sort(last), 0.55 if number > 8 else 0.4)
    for y, t in zip(places, np.argsort(last, kind="stable"), strict=True):
        axes.text(
            len(rankings) - 1 + 0.16, y, labels([teams[t]], 22)[0], va="center", fontsize=9,
            color=team_styles(teams)[teams[t]][0],
        )  # fmt: skip
    axes.set_xticks(range(len(rankings)), [r.scheme.title.replace(", ", ",\n", 1) for r in rankings])
    axes.set_yticks(range(1, number + 1))
    axes.set(ylabel="rank", xlim=(-0.3, len(rankings) - 1 + 0.1), ylim=(number + 0.7, 0.4))
    axes.grid(axis="x", visible=False)
    axes.set_title("Does the method of ranking matter?")
    steady = [team for t, team in enumerate(teams) if np.ptp(ranks[t]) == 0]
    return Picture(
        figure,
        "A line that stays level is a team whose rank does not depend on the method. Lines are set a little "
        "apart where ranks are equal.",
        f"Line chart of ranks of {number} teams under {len(rankings)} methods. The same under all: "
        f"{', '.join(steady) if steady else 'none'}.",
    )


@styled
def tau_violin(
    taus: Mapping[str, NDArray[np.float64]], *, title: str = "Stability of the ranking"
) -> Picture:
    """Kendall's tau between the ranking of all cases and that of each resample, a violin for each name."""
    if not taus:
        fail(ValueError, "taus", "at least one set of coefficients", "none")
    finite = {name: np.asarray(values)[~np.isnan(values)] for name, values in taus.items()}
    names = list(finite)
    many = len(names) > 8
    figure, axes = figures.figure(
        *((7.0, 1.2 + 0.24 * len(names)) if many else (max(4.8, 2.2 + 0.95 * len(names)), 3.6))
    )
    for x, name in enumerate(names):
        _violin(axes, finite[name], x, figures.SERIES[0], vertical=not many)
    # half of the pairs or worse is always in view, so that a steady ranking looks steady
    least = min([0.5, *(float(values.min()) - 0.05 for values in finite.values() if len(values))])
    if many:
        axes.set_yticks(range(len(names)), labels(names, 26), fontsize=8)
        axes.set(xlabel="Kendall's τ", ylim=(len(names) - 0.4, -0.6), xlim=(least, 1.02))
    else:
        axes.set_xticks(range(len(names)), [name.replace(", ", ",\n", 1) for name in names])
        axes.set(ylabel="Kendall's τ", xlim=(-0.6, len(names) - 0.4), ylim=(least, 1.02))
    axes.grid(axis="y" if many else "x", visible=False)
    axes.set_title(title)
    gone = sum(len(np.asarray(values)) for values in taus.values()) - sum(map(len, finite.values()))
    told = "; ".join(
        f"{name} {np.median(values):.2f}" if len(values) else f"{name} none"
        for name, values in finite.items()
    )
    return Picture(
        figure,
        "τ is 1 where a resample ranks the teams as all cases do, and 0 where it tells nothing of them. The "
        "dot is the median, the bar the middle half."
        + (f" {gone} coefficients do not exist, as all teams tied, and are left out." if gone else ""),
        f"Violin plot of Kendall's tau. Medians: {told}.",
    )


def _significance_cell(
    axes: Any, x: int, y: int, diagonal: bool, better: bool, p: float, numbers: bool
) -> None:
    from matplotlib.patches import Rectangle

    fill = figures.GRID if diagonal else figures.SERIES[0] if better else "none"
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=fill, edgecolor=figures.GRID, linewidth=0.8))
    if numbers and not diagonal:
        text = (
            "–"
            if np.isnan(p)
            else "<.001"
            if p < 0.001
            else f"{p:.3f}".replace("0.", ".", 1)
            if p < 0.9995
            else "1"
        )
        axes.text(
            x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=7,
            color=figures.PAPER if better else figures.MUTED,
        )  # fmt: skip


def _violin(axes: Any, values: NDArray[np.float64], x: float, colour: str, *, vertical: bool) -> None:
    if not len(values):
        return
    if np.ptp(values) > 0:
        parts = axes.violinplot(
            values, positions=[x], widths=0.8, showextrema=False,
            orientation="vertical" if vertical else "horizontal",
        )  # fmt: skip
        for body in parts["bodies"]:
            body.set(facecolor=colour, alpha=0.4, edgecolor="none")
            # the kernel's tails reach where no coefficient can be
            for path in body.get_paths():
                path.vertices[:, 1 if vertical else 0] = np.clip(
                    path.vertices[:, 1 if vertical else 0], values.min(), values.max()
                )
    quarters = np.quantile(values, [0.25, 0.75])
    line, dot = ([x, x], quarters), ([x], [np.median(values)])
    axes.plot(*(line if vertical else line[::-1]), color=colour, linewidth=4, solid_capstyle="butt")
    axes.plot(*(dot if vertical else dot[::-1]), "o", color=figures.INK, markersize=5)


def _apart(sorted_places: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Places at least so far apart, each near where it was, in the same order."""
    places = sorted_places.copy()
    for _ in range(200):
        close = np.maximum(0, least - np.diff(places))
        if close.max(initial=0) < 1e-3:
            break
        places[:-1] -= close / 2
        places[1:] += close / 2
    return places
