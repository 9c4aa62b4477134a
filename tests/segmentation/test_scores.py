"""Tables of scores: records, files of three layouts, selection, and refusals that name the place."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tenfold.segmentation.scores import Column, ScoreTable, filled, larger_is_better, read_scores

NAN = float("nan")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "name", ["dsc", "DSC", "dice_score", "nsd", "nsd_dm@1.0", "nsd_edge@2", "jaccard", "vs", "precision"]
)
def test_larger_is_better(name: str) -> None:
    assert larger_is_better(name) is True


@pytest.mark.parametrize("name", ["hd", "hd95_dm", "hd95_edge_max", "hd100_dm", "asd_dm", "assd_edge", "fpr"])
def test_smaller_is_better(name: str) -> None:
    assert larger_is_better(name) is False


@pytest.mark.parametrize("name", ["volume_ml", "hdx", "organ", "vsx", "rvd", ""])
def test_direction_unknown(name: str) -> None:
    assert larger_is_better(name) is None


def test_records() -> None:
    table = ScoreTable.from_records(
        [
            {"team": "b", "case": "1", "task": "oar", "organ": "Brain", "metric": "dsc", "value": "0.5"},
            {"team": "a", "case": "1", "task": "oar", "organ": "Brain", "metric": "dsc", "value": 0.25},
            {"team": "a", "case": "2", "task": "oar", "organ": "Eye_L", "metric": "hd95_dm", "value": "inf"},
            {"team": "b", "case": "2", "task": "oar", "organ": "Eye_L", "metric": "hd95_dm", "value": ""},
        ]
    )
    assert table.teams == ("b", "a")
    assert table.cases == ("1", "2")
    assert table.columns == (Column("oar", "Brain", "dsc"), Column("oar", "Eye_L", "hd95_dm"))
    assert table.smaller == {"hd95_dm"}
    assert_array_equal(table.values, [[[0.5, NAN], [NAN, NAN]], [[0.25, NAN], [NAN, np.inf]]])
    assert table.recorded.sum() == 4
    assert table.missing.sum() == 2  # the two distances
    assert (table.tasks, table.organs, table.metrics) == (("oar",), ("Brain", "Eye_L"), ("dsc", "hd95_dm"))


def test_filling() -> None:
    table = ScoreTable.from_records(
        {"team": t, "case": c, "metric": m, "value": v}
        for t, c, m, v in [
            ("a", "1", "dsc", 0.5), ("a", "2", "dsc", None), ("a", "1", "hd95_dm", 4), ("a", "2", "hd95_dm",
            "inf")
        ]
    )  # fmt: skip
    assert_array_equal(filled(table, "drop"), [[[0.5, -4], [NAN, NAN]]])
    assert_array_equal(filled(table, 9), [[[0.5, -4], [9, -9]]])
    assert_array_equal(filled(table, np.max), [[[0.5, -4], [0.5, -4]]])
    assert np.isinf(table.values).any()  # the table itself is as it was measured


def test_selection_drops_cases_without_a_record() -> None:
    table = ScoreTable.from_records(
        {"team": t, "case": c, "task": task, "metric": "dsc", "value": 1.0, "cohort": c[0]}
        for t, c, task in [("a", "x1", "oar"), ("b", "x1", "oar"), ("a", "y1", "gtv"), ("b", "y1", "gtv")]
    )
    part = table.select(task="gtv", teams=["b"])
    assert (part.teams, part.cases, part.cohorts) == (("b",), ("y1",), ("y",))
    assert table.cohorts == ("x", "y")
    for argument, names in (
        ("task", "oars"),
        ("teams", ["c"]),
        ("organs", "Eye"),
        ("metrics", "nsd"),
        ("cases", ["z"]),
    ):
        with pytest.raises(ValueError, match=f"{argument}: expected names among"):
            table.select(**{argument: names})


def test_mean_over_organs() -> None:
    table = ScoreTable.from_records(
        {"case": c, "organ": o, "metric": "dsc", "value": v}
        for c, o, v in [("1", "A", 0.2), ("1", "B", 0.4), ("2", "A", None), ("2", "B", 0.5), ("3", "A", None)]
    )
    assert_array_equal(table.means("dsc"), [[(0.2 + 0.4) / 2, 0.5, NAN]])


X = {"case": "1", "metric": "dsc"}


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        (X, ValueError, "records: expected a field 'value' in each record"),
        ({**X, "value": "x"}, TypeError, "value of case '1', metric 'dsc': expected a number, got 'x'"),
        ({**X, "value": True}, TypeError, "expected a number, got True"),
        (
            {"case": "1", "metric": "volume_ml", "value": 1}, ValueError,
            "metric: expected a name that tells its direction",
        ),
    ],
)  # fmt: skip
def test_records_refused(record: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        ScoreTable.from_records([record])


def test_more_refusals() -> None:
    one = {"case": "1", "metric": "dsc", "value": 1.0}
    with pytest.raises(ValueError, match="records: expected at least one record, got none"):
        ScoreTable.from_records([])
    with pytest.raises(ValueError, match="records: expected one record of each score, got two of case '1'"):
        ScoreTable.from_records([one, one])
    with pytest.raises(ValueError, match="cohorts: expected a cohort for each case, got none for case '1'"):
        ScoreTable.from_records([one], cohorts={"2": "x"})
    with pytest.raises(ValueError, match="smaller_better: expected metrics among"):
        ScoreTable.from_records([one], smaller_better=["nsd"])
    named = ScoreTable.from_records([{**one, "metric": "volume_ml"}], smaller_better="volume_ml")
    assert named.smaller == {"volume_ml"}


def test_per_case_layout(tmp_path: Path) -> None:
    path = write(
        tmp_path / "per_case.csv",
        "team,case,task,organ,dsc,nsd_dm@1.0,hd95_dm,flags\n"
        "A,c1,oar,Brain,0.9,0.8,2.5,\nA,c2,oar,Brain,0,0,inf,missing\nB,c1,oar,Brain,0.7,0.6,1,\n",
    )
    table = read_scores(path)
    assert table.metrics == ("dsc", "nsd_dm@1.0")
    assert_array_equal(table.values[0], [[0.9, 0.8], [0, 0]])
    assert_array_equal(table.missing, [[[False, False]] * 2, [[False] * 2, [True] * 2]])  # B has no c2
    assert read_scores(path, ["hd95_dm"]).smaller == {"hd95_dm"}
    with pytest.raises(ValueError, match=r"metrics: expected columns of .*, got 'asd'"):
        read_scores(path, ["asd"])


def test_a_choice_of_surface_dice_has_to_be_made(tmp_path: Path) -> None:
    both = write(tmp_path / "u.csv", "case,organ,dsc,nsd_dm@1.0,nsd_edge@1.0\nc1,Brain,1,1,0.5\n")
    assert read_scores(both).metrics == ("dsc", "nsd_dm@1.0")  # the challenge's
    path = write(tmp_path / "t.csv", "case,organ,dsc,nsd_edge@1.0,nsd_edge@2.0\nc1,Brain,1,0.5,1\n")
    with pytest.raises(ValueError, match=r"metrics: expected `metrics`, as .* has not one column 'dsc'"):
        read_scores(path)
    assert read_scores(path, ["dsc", "nsd_edge@1.0"]).teams == ("t",)


def test_challenge_layout_one_file_per_team(tmp_path: Path) -> None:
    head = "Name,Brain_DSC,Eye_L_DSC,Brain_NSD,Eye_L_NSD\n"
    first = write(tmp_path / "first.csv", head + "case2,0.9,0.8,0.7,0.6\ncase1,1,1,1,1\n")
    second = write(tmp_path / "other.csv", head + "case1,0.5,0.5,0.5,0.5\ncase2,0.5,0.5,0.5,0.5\n")
    table = read_scores([first, second])
    assert table.teams == ("first", "other")
    assert table.cases == ("case2", "case1")
    assert table.columns[1] == Column("", "Eye_L", "dsc")
    assert_array_equal(table.values[0, 0], [0.9, 0.8, 0.7, 0.6])
    assert read_scores({"X": first, "Y": second}).teams == ("X", "Y")


def test_long_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "team,case,metric,value,cohort\na,1,dsc,0.5,x\na,2,dsc,NA,y\n")
    table = read_scores(path)
    assert table.cohorts == ("x", "y")
    assert_array_equal(table.values[:, :, 0], [[0.5, NAN]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a CSV file with a header and rows, got no rows"),
        ("case,dsc,nsd\n", "expected a CSV file with a header and rows, got no rows"),
        ("case,metric,value\n1,dsc\n", "line 2: expected 3 fields, got another number"),
        ("case,metric,value\n1,dsc,1,1\n", "line 2: expected 3 fields, got another number"),
        ("organ,dsc,nsd\nBrain,1,1\n", "expected a column 'case' (or the challenge's 'Name'), got"),
        ("Name,Brain\nc,1\n", "expected columns <Organ>_<METRIC> after Name, got ['Brain']"),
    ],
)
def test_files_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_scores(write(tmp_path / "t.csv", text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_scores(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="paths: expected at least one CSV file, got none"):
        read_scores([])
