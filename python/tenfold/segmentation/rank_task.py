"""`tenfold segrap rank`: score tables that exist already, ranked, tested and drawn."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tenfold._checks import fail
from tenfold._reading import reading
from tenfold.runs import Headline, Report, RunFolder
from tenfold.segmentation.drawing import joined
from tenfold.segmentation.rank_report import RankingPieces, write_ranking
from tenfold.segmentation.ranking import Scheme
from tenfold.segmentation.scores import Missing, ScoreTable, read_scores

__all__ = ["RankConfig", "run"]


@dataclass
class RankConfig:
    """Settings of a ranking."""

    tables: list[str] = field(default_factory=list)
    """CSV files of scores, or TEAM=FILE for each team."""
    metrics: list[str] | None = None
    """Columns to rank by (default: dsc and the surface Dice)."""
    task: str | None = None
    """Rank this task only (default: each by itself)."""
    method: Literal["segrap", "aggregate-then-rank", "rank-then-aggregate", "test-then-rank"] = "segrap"
    """How teams are ranked."""
    statistical: bool = False
    """segrap: teams that no test parts are equal."""
    aggregate: str = "mean"
    """How the cases of an organ become one number: mean, median, or a quantile such as 0.05."""
    ties: Literal["min", "average"] = "min"
    """Ranks of teams that tie: 1, 1, 3 or 1.5, 1.5, 3."""
    na: str = "error"
    """Missing scores: error, drop, worst (rank-then-aggregate only), or a number (the challenge's is 0)."""
    alpha: float = 0.05
    """Level of significance."""
    adjust: Literal["none", "holm"] = "none"
    """test-then-rank: adjustment of p-values. The significance maps are adjusted after Holm wherever there
    are cases enough for any adjusted p to reach `alpha`."""
    cohorts: str | None = None
    """CSV file with columns case and cohort: segrap averages within each cohort first (SegRap2025)."""
    smaller_better: list[str] = field(default_factory=list)
    """Metrics of which the smaller value is better, where the name does not tell."""
    samples: int = 1000
    """Resamples of the cases."""
    seed: int = 0
    """Seed of the resamples."""

    def scheme(self) -> Scheme:
        """ValueError for an `aggregate` or `na` that is none."""
        return Scheme(
            self.method, _number("aggregate", self.aggregate, ("mean", "median")), self.ties,
            _number("na", self.na, ("error", "drop", "worst")), self.alpha, self.adjust, self.statistical,
        )  # fmt: skip


def run(config: RankConfig, folder: RunFolder) -> list[RankingPieces]:
    """Rank every task in the tables and finish `folder`."""
    table = _load(config)
    tasks = [config.task] if config.task is not None else list(table.tasks)
    found = []
    for task in tasks:
        prefix = f"{_file_name(task)}-" if len(tasks) > 1 else ""
        title = f"Leaderboard: {task}" if task else "Leaderboard"
        part = table.select(task=task)
        folder.log(f"ranking {len(part.teams)} teams, {len(part.cases)} cases, {len(part.columns)} columns")
        found.append(
            write_ranking(
                folder,
                part,
                config.scheme(),
                samples=config.samples,
                seed=config.seed,
                title=title,
                prefix=prefix,
            )
        )
    _finish(folder, tasks, found)
    return found


def _load(config: RankConfig) -> ScoreTable:
    if not config.tables:
        fail(ValueError, "tables", "at least one CSV file", "none")
    pairs = [text.partition("=") for text in config.tables]
    named = [
        bool(equals) and not Path(text).exists()
        for text, (_, equals, _) in zip(config.tables, pairs, strict=True)
    ]
    if any(named) and not all(named):
        fail(ValueError, "tables", "TEAM=FILE for all tables or for none", config.tables)
    cohorts = None if config.cohorts is None else _cohorts(Path(config.cohorts))
    if all(named):
        teams = [team for team, _, _ in pairs]
        if len(set(teams)) < len(teams):
            fail(ValueError, "tables", "a name of its own for each team", teams)
        files = {team: path for team, _, path in pairs}
        return read_scores(files, config.metrics, smaller_better=config.smaller_better, cohorts=cohorts)
    return read_scores(config.tables, config.metrics, smaller_better=config.smaller_better, cohorts=cohorts)


def _cohorts(path: Path) -> dict[str, str]:
    with reading(path, "a CSV file"), path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or "case" not in rows[0] or "cohort" not in rows[0]:
        fail(
            ValueError,
            "cohorts",
            f"{path} with columns case and cohort",
            list(rows[0]) if rows else "no rows",
        )
    return {row["case"]: row["cohort"] for row in rows}


def _finish(folder: RunFolder, tasks: list[str], found: list[RankingPieces]) -> None:
    sections, tiles, told = [], [], []
    numbers: dict[str, float | int] = {}
    for task, pieces in zip(tasks, found, strict=True):
        mark = f" ({task})" if len(tasks) > 1 else ""
        sections += [replace(section, title=section.title + mark) for section in pieces.sections]
        tiles += [Headline(t.label + mark, t.value, t.note) for t in pieces.headlines]
        front = f"{_file_name(task)}/" if len(tasks) > 1 else ""
        numbers |= {front + name: value for name, value in pieces.numbers.items()}
        winners = joined(pieces.ranking.winners)
        told.append(f"{winners} {'is' if len(pieces.ranking.winners) == 1 else 'are'} first{mark}.")
    first = found[0].ranking
    lead = (
        f"{len(first.teams)} teams were ranked by {first.scheme.title} from scores measured before. "
        + " ".join(told)
    )
    measured = "Scores were read from tables; nothing was segmented or scored in this run."
    folder.finish(numbers, Report("Ranking of segmentations", lead, tiles, sections, measured=measured))


def _number(name: str, text: str, words: tuple[str, ...]) -> Missing:
    if text in words:
        return text
    try:
        value = float(text)
    except ValueError:
        fail(ValueError, name, f"{', '.join(words)} or a number", repr(text))
    if not math.isfinite(value):
        fail(ValueError, name, f"{', '.join(words)} or a finite number", repr(text))
    return value


def _file_name(task: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in task).strip("-") or "task"
