"""Rows of CSV files, the leaderboard in two forms, and the list of the worst scores."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
from rank_cases import TEAMS, challenge

from tenfold.segmentation.bootstrap import bootstrap_ranking, leave_one_out
from tenfold.segmentation.rank_tables import (
    column_rows,
    leaderboard_html,
    leaderboard_markdown,
    leaderboard_rows,
    left_out_rows,
    rank_rows,
    significance_rows,
    worst_scores,
)
from tenfold.segmentation.ranking import rank_then_aggregate, segrap_ranking, test_then_rank
from tenfold.segmentation.scores import ScoreTable
from tenfold.segmentation.statistics import significance


def test_rank_rows() -> None:
    table = challenge(gaps=True)
    ranking = segrap_ranking(table, na=0)
    boot = bootstrap_ranking(ranking, 200)
    tests = significance(table, "dsc", na=0)
    rows = rank_rows(ranking, boot, [tests])
    assert [row["team"] for row in rows] == list(TEAMS)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["missing"] for row in rows] == [0, 1, 0, 0]
    values = np.where(np.isnan(table.values), 0, table.values)
    assert rows[1]["mean_dsc"] == pytest.approx(values[1, :, ::2].mean())
    assert rows[1]["mean_nsd_dm@tolerance"] == pytest.approx(values[1, :, 1::2].mean())
    for t, row in enumerate(rows):
        assert row["score"] == ranking.score[t]
        assert row["winner_share"] == boot.winner[t]
        assert (row["rank_low"], row["rank_high"]) == tuple(boot.interval()[t])
    assert [row["wins_dsc"] for row in rows] == tests.better.sum(axis=1).tolist()
    assert rows[0]["wins_dsc"] > 0


def test_means_are_in_the_metrics_own_units() -> None:
    records = [
        {"team": team, "case": str(c), "metric": "hd95_dm", "value": value}
        for team, values in {"a": (1.0, 3.0), "b": (5.0, 7.0)}.items() for c, value in enumerate(values)
    ]  # fmt: skip
    for method in (segrap_ranking, rank_then_aggregate, test_then_rank):
        rows = rank_rows(method(ScoreTable.from_records(records)))
        assert {row["team"]: row["mean_hd95_dm"] for row in rows} == {"a": 2, "b": 6}


def test_column_rows() -> None:
    ranking = segrap_ranking(challenge())
    rows = column_rows(ranking)
    assert len(rows) == 4 * 6
    assert {key: rows[0][key] for key in ("task", "organ", "metric", "team")} == {
        "task": "oar", "organ": "Organ_0", "metric": "dsc", "team": TEAMS[0]
    }  # fmt: skip
    assert rows[0]["score"] == ranking.column_scores[0, 0]
    assert {row["rank"] for row in rows[:4]} == {1, 2, 3, 4}


def test_significance_rows() -> None:
    found = significance(challenge(), "dsc")
    rows = significance_rows(found)
    assert len(rows) == 12
    assert (rows[0]["team"], rows[0]["against"]) == TEAMS[:2]
    assert rows[0]["p"] == found.p[0, 1]
    assert rows[0]["p_holm"] == found.adjusted[0, 1]
    assert sum(row["significant"] for row in rows) == found.better.sum() > 0
    same = ScoreTable.from_records(
        {"team": t, "case": c, "metric": "dsc", "value": 0.5} for t in "ab" for c in "12"
    )
    assert [row["p"] for row in significance_rows(significance(same, "dsc"))] == ["", ""]


def test_left_out_rows() -> None:
    rows = left_out_rows(leave_one_out(segrap_ranking(challenge())))
    assert [row["without_organ"] for row in rows] == ["Organ_0", "Organ_1", "Organ_2"]
    assert rows[0][f"rank {TEAMS[0]}"] == 1


class Cells(HTMLParser):
    """Texts of th and td, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.texts[-1] += data


def test_leaderboard_in_two_forms() -> None:
    table = challenge(teams=2)
    ranking = segrap_ranking(table)
    rows = rank_rows(ranking, bootstrap_ranking(ranking, 50), [significance(table, "dsc")])
    rows[0]["team"] = "A|B <x> *y*"
    text = leaderboard_markdown(rows, "Task 1", "Made so.")
    lines = text.splitlines()
    assert lines[:3] == ["# Task 1", "", "Made so."]
    head = "| Rank | Team | Score | DSC | NSD (dm) | 95 % of ranks | First in | Beats by DSC |"
    assert lines[4] == head
    assert lines[5].count("|") == head.count("|")
    assert lines[6].startswith(r"| 1 | A\|B \<x\> \*y\* | 0.5000 | 0.")
    page = Cells()
    page.feed(leaderboard_html(rows, "Task <1>", "Made so."))
    assert page.open == []
    assert page.texts[:3] == ["Rank", "Team", "Score"]
    assert "A|B <x> *y*" in page.texts
    assert list(leaderboard_rows(rows)[0].values()) == page.texts[8:16]
    with pytest.raises(ValueError, match="rows: expected at least one team, got none"):
        leaderboard_markdown([], "x")


def test_worst_scores() -> None:
    table = ScoreTable.from_records(
        {"team": "t", "case": c, "organ": o, "metric": m, "value": v}
        for c, o, m, v in [
            ("1", "A", "dsc", 0.1), ("2", "A", "dsc", 0.2), ("1", "B", "dsc", 0.3), ("2", "B", "dsc", None),
            ("1", "A", "hd95_dm", 9.0), ("2", "A", "hd95_dm", float("inf")), ("2", "B", "hd95_dm", 20.0),
        ]
    )  # fmt: skip
    assert [(w.case, w.organ, w.value) for w in worst_scores(table, "dsc")] == [
        ("1", "A", 0.1),
        ("1", "B", 0.3),
    ]
    assert [w.value for w in worst_scores(table, "dsc", per_organ=2)] == [0.1, 0.2, 0.3]
    assert [w.value for w in worst_scores(table, "dsc", 1)] == [0.1]
    assert [w.value for w in worst_scores(table, "hd95_dm")] == [20, 9]
    with pytest.raises(ValueError, match="number: expected an integer in"):
        worst_scores(table, "dsc", 0)
