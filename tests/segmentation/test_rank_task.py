"""`tenfold segrap rank`, from CSV files to a run folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from rank_cases import TEAMS, challenge

from tenfold import cli
from tenfold.runs import RunFolder
from tenfold.segmentation.rank_report import write_ranking
from tenfold.segmentation.rank_task import RankConfig, run
from tenfold.segmentation.scores import ScoreTable


def per_case(path: Path, table: ScoreTable, teams: tuple[str, ...] | None = None, task: str = "oar") -> Path:
    """A table as an evaluation writes it."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["team", "case", "task", "organ", "tolerance_mm", "dsc", "nsd_dm@tolerance", "flags"])
        for t, team in enumerate(table.teams):
            for c, case in enumerate(table.cases):
                for k in range(0, len(table.columns), 2):
                    if teams is None or team in teams:
                        pair = table.values[t, c, k : k + 2].tolist()
                        writer.writerow([team, case, task, table.columns[k].organ, 1.0, *pair, ""])
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = per_case(tmp_path / "per_case.csv", challenge(teams=3, cases=6, organs=2))
    out = tmp_path / "run"
    code = cli.main(["segrap", "rank", str(source), "--out", str(out), "--samples", "40", "--seed", "3"])
    said = capsys.readouterr().out
    assert code == 0
    assert said.splitlines()[0].split() == ["1", "UniSeg", "0.3333"]
    assert [row["team"] for row in rows(out / "tables" / "ranks.csv")] == list(TEAMS[:3])
    for name in ("column_ranks", "significance_dsc", "significance_nsd", "rank_frequencies", "methods"):
        assert rows(out / "tables" / f"{name}.csv")
    assert rows(out / "tables" / "leave_one_organ_out.csv")[0]["without_organ"] == "Organ_0"
    assert (out / "leaderboard.md").read_text().startswith("# Leaderboard: oar\n")
    assert "<table>" in (out / "leaderboard.html").read_text()
    numbers = json.loads((out / "metrics.json").read_text())["metrics"]
    assert (numbers["teams"], numbers["cases"], numbers["organs"], numbers["winners"]) == (3, 6, 2, 1)
    page = (out / "report.html").read_text()
    assert "tenfold segrap rank --config config.yaml" in page
    assert (out / "config.yaml").read_text().startswith("# tenfold segrap rank --config config.yaml\n")
    names = {path.stem for path in (out / "figures").glob("*.svg")}
    assert {
        "podium-dsc",
        "boxes-nsd",
        "blob",
        "methods",
        "stability",
        "significance-dsc",
        "ranks-in-cases",
    } <= names
    assert {"organ-ranks-dsc", "organs-dsc", "cases-nsd"} <= names


def test_the_config_repeats_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = per_case(tmp_path / "scores.csv", challenge(teams=2, cases=4, organs=2))
    first, again = tmp_path / "a", tmp_path / "b"
    arguments = [str(source), "--samples", "30", "--ties", "average", "--method", "rank-then-aggregate"]
    assert cli.main(["segrap", "rank", *arguments, "--out", str(first)]) == 0
    assert cli.main(["segrap", "rank", "--config", str(first / "config.yaml"), "--out", str(again)]) == 0
    capsys.readouterr()
    for name in ("ranks", "rank_frequencies"):
        assert (first / "tables" / f"{name}.csv").read_bytes() == (
            again / "tables" / f"{name}.csv"
        ).read_bytes()


def test_two_tasks_and_a_file_for_each_team(tmp_path: Path) -> None:
    table = challenge(teams=2, cases=3, organs=2)
    files = []
    for team in table.teams:
        both = per_case(tmp_path / "part.csv", table, (team,)).read_text()
        other = per_case(tmp_path / "part.csv", table, (team,), "gtv").read_text().split("\n", 1)[1]
        path = tmp_path / f"{team[:3]}.csv"
        path.write_text(both + other)
        files.append(f"{team[:3]}={path}")
    folder = RunFolder.create("segrap-rank", RankConfig(), tmp_path / "out")
    found = run(RankConfig(tables=files, samples=20), folder)
    assert [pieces.ranking.teams for pieces in found] == [("Uni", "nnU")] * 2
    assert (folder.path / "gtv-leaderboard.md").exists()
    assert (folder.path / "tables" / "oar-ranks.csv").exists()
    numbers = json.loads((folder.path / "metrics.json").read_text())["metrics"]
    assert numbers["gtv/teams"] == 2


def test_one_team_and_one_case_are_described_not_compared(tmp_path: Path) -> None:
    folder = RunFolder.create("segrap-rank", RankConfig(), tmp_path / "out")
    pieces = write_ranking(folder, challenge(teams=1, cases=1, organs=2))
    assert pieces.bootstrap is None
    assert pieces.significances == []
    assert pieces.headlines == []
    assert {path.stem for path in (tmp_path / "out" / "figures").glob("*.svg")} == {
        "organs-dsc", "organs-nsd", "cases-dsc", "cases-nsd"
    }  # fmt: skip


def test_cohorts_file(tmp_path: Path) -> None:
    source = per_case(tmp_path / "scores.csv", challenge(teams=2, cases=4, organs=2))
    cohorts = tmp_path / "cohorts.csv"
    cohorts.write_text("case,cohort\n" + "".join(f"case_{c:02},{'ab'[c // 3]}\n" for c in range(4)))
    folder = RunFolder.create("segrap-rank", RankConfig(), tmp_path / "out")
    found = run(RankConfig(tables=[str(source)], cohorts=str(cohorts), samples=10), folder)
    table = found[0].ranking.table
    assert table is not None
    expected = (table.values[:, :3].mean(axis=1) + table.values[:, 3]) / 2
    assert found[0].ranking.column_scores == pytest.approx(expected)
    assert "within each of 2 cohorts" in (folder.path / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "tables: expected at least one CSV file, got none"),
        (["FILE", "--na", "zero"], "na: expected error, drop, worst or a number, got 'zero'"),
        (["FILE", "--na", "nan"], "na: expected error, drop, worst or a finite number, got 'nan'"),
        (["FILE", "--aggregate", "mode"], "aggregate: expected mean, median or a number, got 'mode'"),
        (["FILE", "--task", "gtv"], "task: expected names among ['oar'], got 'gtv'"),
        (["FILE", "--metrics", '["asd"]'], "got 'asd'"),
        (["FILE", "A=FILE"], "tables: expected TEAM=FILE for all tables or for none"),
        (["FILE", "--ties", "max"], "--ties: expected"),
        (["nothing.csv"], "nothing.csv"),
        (
            ["GAPS"],
            "scores: expected a finite number everywhere, or `na` to say what else, got none for team",
        ),
    ],
)
def test_refused_without_a_trace(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "FILE": per_case(tmp_path / "scores.csv", challenge(teams=2, cases=3, organs=2)),
        "GAPS": per_case(tmp_path / "gaps.csv", challenge(teams=2, cases=3, organs=2, gaps=True)),
    }
    given = [next((a.replace(n, str(p)) for n, p in files.items() if n in a), a) for a in arguments]
    out = tmp_path / "out"
    assert cli.main(["segrap", "rank", *given, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not out.exists()


def test_the_documented_lines_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "per_case.csv"
    per_case(table, challenge(teams=2, cases=4, organs=2))
    table.write_text(table.read_text().replace("oar", "1"))  # as evaluations name the challenge's first task
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "segmentation_ranking.md").read_text(encoding="utf-8")
    code = page.split("```python\n", 1)[1].split("```", 1)[0]
    exec(compile(code, "segmentation_ranking.md", "exec"), {})
    assert "UniSeg" in capsys.readouterr().out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["segrap"]) == 2
    assert cli.main(["segrap", "--help"]) == 0
    assert "rank TABLE.csv" in capsys.readouterr().out
    assert cli.main(["segrap", "rnak"]) == 2
    assert "did you mean 'rank'?" in capsys.readouterr().err
