"""Everything a ranking leaves in a run folder: tables, leaderboard, pictures, and its part of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tenfold.runs import Headline, RunFolder, Section
from tenfold.runs.files import write_text
from tenfold.segmentation import figures, rank_figures
from tenfold.segmentation.bootstrap import (
    Bootstrap,
    LeftOut,
    bootstrap_ranking,
    compare_methods,
    leave_one_out,
)
from tenfold.segmentation.drawing import Picture, joined, titled
from tenfold.segmentation.rank_tables import (
    column_rows,
    leaderboard_html,
    leaderboard_markdown,
    leaderboard_rows,
    left_out_rows,
    rank_rows,
    significance_rows,
)
from tenfold.segmentation.ranking import Ranking, Scheme, rank_by
from tenfold.segmentation.scores import ScoreTable
from tenfold.segmentation.statistics import Significance, lowest_p, significance, within_reach
from tenfold.segmentation.tables import CONVENTIONS

__all__ = ["RankingPieces", "write_ranking"]


@dataclass
class RankingPieces:
    """What `write_ranking` found, and what goes onto the page."""

    ranking: Ranking
    bootstrap: Bootstrap | None
    significances: list[Significance]
    methods: list[Ranking]
    left_out: LeftOut | None
    sections: list[Section] = field(default_factory=list)
    headlines: list[Headline] = field(default_factory=list)
    numbers: dict[str, float | int] = field(default_factory=dict)


def write_ranking(
    folder: RunFolder,
    table: ScoreTable,
    scheme: Scheme | None = None,
    *,
    samples: int = 1000,
    seed: int = 0,
    title: str = "Leaderboard",
    prefix: str = "",
) -> RankingPieces:
    """Rank one task, test and resample the ranking, and write what there is to see into `folder`.

    Tables: ranks, leaderboard (the same, to be read), column_ranks, significance_dsc, significance_nsd ...,
    rank_frequencies, methods, leave_one_organ_out. Files: leaderboard.md and leaderboard.html. `prefix` goes
    before every name, where a run ranks several tasks. `scheme` defaults to the challenge's; a bootstrap
    needs two cases, whatever compares teams needs two of them. p-values are adjusted after Holm unless there
    are too few cases for any adjusted p to reach the level; what was done is said beside them. The pieces'
    sections are for the report that the caller finishes.
    """
    made = Scheme() if scheme is None else scheme
    ranking = rank_by(table, made)
    teams, cases = len(table.teams), len(table.cases)
    many = teams > 1
    boot = bootstrap_ranking(ranking, samples, seed=seed) if many and cases > 1 else None
    na = "drop" if made.na == "worst" else made.na
    adjust = "holm" if within_reach(teams, cases, made.alpha) else "none"
    tests = [significance(table, m, alpha=made.alpha, adjust=adjust, na=na) for m in table.metrics if many]
    methods = [ranking, *_others(made, compare_methods(table, na=na, ties=made.ties))] if many else [ranking]
    left = leave_one_out(ranking) if many and len(table.organs) > 1 else None
    pieces = RankingPieces(ranking, boot, tests, methods, left)
    names = _write_tables(folder, pieces, title, prefix)
    pictures = _write_pictures(folder, pieces, prefix)
    pieces.sections = _sections(pieces, names, pictures)
    pieces.headlines = _headlines(pieces)
    pieces.numbers = _numbers(pieces)
    return pieces


def _others(mine: Scheme, found: Sequence[Ranking]) -> list[Ranking]:
    return [ranking for ranking in found if ranking.scheme.title != mine.title]


def _write_tables(folder: RunFolder, pieces: RankingPieces, title: str, prefix: str) -> dict[str, str]:
    rows = rank_rows(pieces.ranking, pieces.bootstrap, pieces.significances)
    tables: dict[str, list[dict[str, Any]]] = {
        "ranks": rows, "leaderboard": leaderboard_rows(rows), "column_ranks": column_rows(pieces.ranking)
    }  # fmt: skip
    for found in pieces.significances:
        tables[f"significance_{_stem(found.metric, pieces.ranking)}"] = significance_rows(found)
    if pieces.bootstrap is not None:
        tables["rank_frequencies"] = _frequency_rows(pieces.bootstrap)
    if len(pieces.methods) > 1:
        tables["methods"] = _method_rows(pieces.methods)
    if pieces.left_out is not None:
        tables["leave_one_organ_out"] = left_out_rows(pieces.left_out)
    for name, content in tables.items():
        folder.write_table(prefix + name, content)
    note = _how(pieces)
    write_text(folder.path / f"{prefix}leaderboard.md", leaderboard_markdown(rows, title, note))
    write_text(folder.path / f"{prefix}leaderboard.html", leaderboard_html(rows, title, note))
    return {name: prefix + name for name in tables}


def _write_pictures(folder: RunFolder, pieces: RankingPieces, prefix: str) -> dict[str, str]:
    ranking = pieces.ranking
    table, order = ranking.table, ranking.order.tolist()
    assert table is not None
    best = table.teams[order[0]]
    made: dict[str, Picture] = {}
    for metric in table.metrics:
        name = _stem(metric, ranking)
        if len(table.teams) > 1:
            made[f"boxes-{name}"] = figures.box_strip(table, metric, order=order)
            made[f"podium-{name}"] = figures.podium(table, metric, order=order)
            made[f"organ-ranks-{name}"] = rank_figures.column_rank_map(ranking, metric)
        made[f"organs-{name}"] = figures.organ_boxes(table, metric, best)
        made[f"cases-{name}"] = figures.heat_map(table, metric, best)
    for found in pieces.significances:
        made[f"significance-{_stem(found.metric, ranking)}"] = rank_figures.significance_map(
            found, order=order
        )
    if len(table.teams) > 1:
        made["ranks-in-cases"] = rank_figures.ranking_heat_map(ranking)
    if pieces.bootstrap is not None:
        made["blob"] = rank_figures.blob(pieces.bootstrap)
        shown = _taus(pieces.bootstrap)
        few = f", and of the {SHOWN} least stable organs" if len(table.organs) > SHOWN else ""
        made["stability"] = rank_figures.tau_violin(shown, title=f"Stability of the ranking{few}")
    if len(pieces.methods) > 1:
        made["methods"] = rank_figures.rank_lines(pieces.methods)
    for name, picture in made.items():
        folder.write_figure(prefix + name, *picture)
    return {name: prefix + name for name in made}


SHOWN = 20
"""Organs in the picture of stability, the least stable ones; the tables hold all."""


def _taus(found: Bootstrap) -> dict[str, Any]:
    """The whole ranking, then each organ's own (of many, the least stable), the metrics of an organ
    pooled."""
    columns = found.ranking.columns
    tau = found.column_tau
    taus: dict[str, Any] = {"whole ranking": found.tau}
    if len(columns) > 1:
        for organ in dict.fromkeys(column.organ for column in columns):
            mine = [k for k, column in enumerate(columns) if column.organ == organ]
            taus[organ or "structure"] = tau[:, mine].ravel()
    if len(taus) > SHOWN + 1:
        whole, *organs = taus
        organs.sort(key=lambda organ: float(np.nanmean(taus[organ])))
        return {name: taus[name] for name in (whole, *organs[:SHOWN])}
    return taus


def _sections(pieces: RankingPieces, tables: dict[str, str], pictures: dict[str, str]) -> list[Section]:
    def shown(*stems: str) -> list[str]:
        return [full for stem in stems for name, full in pictures.items() if name.startswith(stem)]

    def listed(*stems: str) -> list[str]:
        return [full for stem in stems for name, full in tables.items() if name.startswith(stem)]

    best = pieces.ranking.teams[pieces.ranking.order[0]]
    sections = [Section("Ranking", _how(pieces), shown("podium", "boxes"), listed("leaderboard"))]
    if pieces.significances:
        text = _significance_text(pieces)
        sections.append(Section("Who is better than whom", text, shown("significance")))
    if pieces.bootstrap is not None:
        text = _stability_text(pieces)
        names = listed("rank_frequencies")
        if pieces.left_out is not None and len(pieces.left_out.names) <= 12:
            names += listed("leave_one_organ_out")
        sections.append(
            Section("How sure is the ranking", text, shown("blob", "methods", "stability"), names)
        )
    if len(pieces.ranking.teams) > 1:
        sections.append(Section("Organ by organ", "", shown("organ-ranks", "ranks-in-cases")))
    sections.append(Section(f"The scores of {best}", "", shown("organs-", "cases-")))
    return sections


def _how(pieces: RankingPieces) -> str:
    """How the ranking was made, as one paragraph."""
    ranking = pieces.ranking
    table, scheme = ranking.table, ranking.scheme
    assert table is not None
    metrics = " and ".join(titled(m) for m in table.metrics)
    how = {
        "segrap": "On each organ and metric the mean over cases ranks the teams. The score is the mean rank "
        "divided by the number of teams, the smaller the better",
        "aggregate-then-rank": f"On each organ and metric: {scheme.title}. The score is the mean rank",
        "rank-then-aggregate": f"On each organ and metric: {scheme.title}. The score is the mean rank",
        "test-then-rank": "On each organ and metric teams are ranked by how many others they are "
        "significantly better than. The score is the mean rank",
    }[scheme.method]
    if scheme.statistical:
        how = (
            "On each organ and metric a team's rank is one more than the number of teams that are "
            "significantly better. The score is the mean rank divided by the number of teams, the "
            "smaller the better"
        )
    cohorts = len(set(table.cohorts)) if table.cohorts is not None and scheme.method == "segrap" else 1
    averaged = f" Cases are averaged within each of {cohorts} cohorts first." if cohorts > 1 else ""
    gone = int(table.missing.sum())
    words = {"error": "", "drop": "left out", "worst": "ranked last"}
    said = words[scheme.na] if isinstance(scheme.na, str) else _filling(scheme.na)
    left = f" {gone:,} missing scores of {table.values.size:,} are {said}." if gone and said else ""
    ties = "the better rank" if scheme.ties == "min" else "the mean of their ranks"
    defined = "".join(
        f" ({kind}) is {CONVENTIONS[kind].partition(';')[0]}."
        for kind in ("dm", "edge")
        if any(f"_{kind}" in metric for metric in table.metrics)
    )
    return (
        f"{len(table.teams)} teams, {len(table.cases)} cases, {len(table.organs)} organs; {metrics}. {how}."
        f"{averaged} Teams that tie share {ties}.{left}{defined}"
    )


def _filling(na: float | Callable[..., float]) -> str:
    return "filled in by a function" if callable(na) else f"taken as {na:g}"


def _significance_text(pieces: RankingPieces) -> str:
    order, teams = pieces.ranking.order, pieces.ranking.teams
    first, second = order[0], order[1]
    lines = []
    for found in pieces.significances:
        p = found.adjusted[first, second]
        kind = "adjusted p" if found.adjust == "holm" else "p"
        told = "they do not differ in any case" if np.isnan(p) else f"{kind} {p:.2g}"
        verdict = (
            "is significantly better than"
            if found.better[first, second]
            else "is not significantly better than"
        )
        lines.append(f"- {titled(found.metric)}: **{teams[first]}** {verdict} {teams[second]} ({told}).")
    return (
        "Every ordered pair of teams is compared by a one-sided Wilcoxon signed-rank test on the mean over "
        f"organs of each case; {_adjustment(pieces.significances[0])}. All of them stand in "
        "`tables/significance_*.csv`.\n\n" + "\n".join(lines)
    )


def _adjustment(found: Significance) -> str:
    if found.adjust == "holm":
        return "p-values are adjusted after Holm over all pairs"
    pairs = len(found.teams) * (len(found.teams) - 1)
    return (
        f"p-values are not adjusted for the {pairs} pairs: with {found.cases} cases none is below "
        f"{lowest_p(found.cases):.2g}, and none adjusted after Holm could reach {found.alpha:g}. Of so many "
        "comparisons some come out by chance"
    )


def _stability_text(pieces: RankingPieces) -> str:
    boot, ranking = pieces.bootstrap, pieces.ranking
    assert boot is not None
    best = ranking.order[0]
    low, high = boot.interval()[best]
    agree = sum(set(r.winners) == set(ranking.winners) for r in pieces.methods)
    text = (
        f"The cases were drawn again with replacement {boot.samples:,} times, and the ranking was made anew. "
        f"{ranking.teams[best]} came first in {100 * boot.winner[best]:.1f} % of the resamples (ties "
        f"counted); 95 % of its ranks lie between {low:g} and {high:g}. Resampling says how much of a "
        "ranking hangs on which cases were chosen; it says nothing of other hospitals or scanners.\n\n"
        f"{agree} of {len(pieces.methods)} methods of ranking have the same winner."
    )
    if pieces.left_out is not None:
        same = int(sum(rank[best] == ranking.rank[best] for rank in pieces.left_out.ranks))
        text += (
            f" Left out one at a time, {same} of {len(pieces.left_out.names)} organs leave its rank as it is."
        )
    return text


def _headlines(pieces: RankingPieces) -> list[Headline]:
    ranking = pieces.ranking
    if len(ranking.teams) < 2:
        return []
    best = joined(ranking.winners) if len(ranking.winners) < 4 else f"{len(ranking.winners)} teams tie"
    tiles = [Headline("First", best, f"score {ranking.score.min():.4f}, {ranking.scheme.title}")]
    if pieces.bootstrap is not None:
        share = pieces.bootstrap.winner[ranking.order[0]]
        note = f"of {pieces.bootstrap.samples:,} resamples of the cases"
        tiles.append(Headline("Came first in", f"{100 * share:.1f} %", note))
        finite = pieces.bootstrap.tau[~np.isnan(pieces.bootstrap.tau)]
        if len(finite):
            note = "median of Kendall's tau between the ranking and its resamples; 1 is the same order"
            tiles.append(Headline("Stability", f"τ = {np.median(finite):.2f}", note))
    return tiles


def _numbers(pieces: RankingPieces) -> dict[str, float | int]:
    ranking = pieces.ranking
    table = ranking.table
    assert table is not None
    numbers: dict[str, float | int] = {
        "teams": len(table.teams), "cases": len(table.cases), "organs": len(table.organs),
        "missing_scores": int(table.missing.sum()), "untested_pairs": ranking.untested,
        "score_of_first": float(ranking.score[ranking.order[0]]), "winners": len(ranking.winners),
    }  # fmt: skip
    if pieces.bootstrap is not None:
        numbers["first_in_resamples"] = float(pieces.bootstrap.winner[ranking.order[0]])
        finite = pieces.bootstrap.tau[~np.isnan(pieces.bootstrap.tau)]
        if len(finite):
            numbers["tau_median"] = float(np.median(finite))
    for found in pieces.significances:
        numbers[f"significant_pairs_{_stem(found.metric, ranking)}"] = int(found.better.sum())
    if len(pieces.methods) > 1:
        same = sum(set(r.winners) == set(ranking.winners) for r in pieces.methods)
        numbers["methods_with_same_winner"] = same
        numbers["methods"] = len(pieces.methods)
    return numbers


def _frequency_rows(found: Bootstrap) -> list[dict[str, Any]]:
    return [
        {
            "team": found.ranking.teams[t],
            **{f"rank {level:g}": float(found.frequencies[t, k]) for k, level in enumerate(found.levels)},
        }
        for t in found.ranking.order
    ]


def _method_rows(methods: Sequence[Ranking]) -> list[dict[str, Any]]:
    first = methods[0]
    return [
        {
            "team": first.teams[t],
            **{r.scheme.title: f"{r.rank[r.teams.index(first.teams[t])]:g}" for r in methods},
        }
        for t in first.order
    ]


def _stem(metric: str, ranking: Ranking) -> str:
    """A metric's name in file names: nsd for nsd_dm@tolerance, longer where two metrics would share it."""
    metrics = dict.fromkeys(column.metric for column in ranking.columns)
    stem = metric.partition("_")[0].partition("@")[0]
    shared = [m for m in metrics if m.partition("_")[0].partition("@")[0] == stem]
    return (
        stem.lower() if len(shared) == 1 else "".join(c if c.isalnum() or c == "_" else "-" for c in metric)
    )
