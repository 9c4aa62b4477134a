"""Readers and templates of the twelve tasks, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import task_records

from tenfold.llm.tasks import TASKS, Example, find

ALL = sorted(TASKS)
CASES = [(task, version) for task in ALL for version in range(TASKS[task].versions)]


def examples(task: str, rows: list[dict[str, Any]], version: int) -> list[Example]:
    return [TASKS[task].example(row, version) for row in rows]


def test_the_twelve_tasks_and_their_kinds() -> None:
    kinds = {
        kind: sorted(t.name for t in TASKS.values() if t.kind == kind) for kind in ("choice", "lm", "qa")
    }
    assert kinds == {
        "choice": ["boolq", "cb", "multirc", "rte", "sst2", "wic", "wsc"],
        "lm": ["copa", "record", "winogrande"],
        "qa": ["drop", "squad"],
    }
    assert {name: t.versions for name, t in TASKS.items() if t.versions > 1} == {
        "sst2": 2,
        "rte": 2,
        "boolq": 3,
        "copa": 2,
    }
    assert {t.metrics for t in TASKS.values()} == {("accuracy",), ("f1", "em")}


@pytest.mark.parametrize(("task", "version"), CASES)
def test_published_files_give_the_protocols_strings(task: str, version: int, tmp_path: Path) -> None:
    path, _ = task_records.write(task, tmp_path)
    found = examples(task, TASKS[task].read(path), version)
    assert [tuple(example) for example in found] == task_records.EXPECTED[task][version]


@pytest.mark.parametrize(("task", "version"), CASES)
def test_hugging_face_columns_give_the_same(task: str, version: int) -> None:
    found = examples(task, TASKS[task].read(task_records.COLUMNS[task]), version)
    assert [tuple(example) for example in found] == task_records.EXPECTED[task][version]


@pytest.mark.parametrize("task", ALL)
def test_rows_pass_through_unchanged_and_any_iterable_will_do(task: str) -> None:
    class Table:  # what matters of datasets.Dataset
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter(task_records.COLUMNS[task])

    rows = TASKS[task].read(Table())
    assert rows == TASKS[task].read(rows)


@pytest.mark.parametrize("task", ALL)
def test_parquet(task: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = TASKS[task].read(task_records.COLUMNS[task]) if task == "boolq" else task_records.COLUMNS[task]
    parquet.write_table(
        pyarrow.Table.from_pylist(rows),
        tmp_path / "train-00000-of-00001.parquet",
    )
    found = examples(task, TASKS[task].read(tmp_path / "train-00000-of-00001.parquet"), 0)
    assert [tuple(example) for example in found] == task_records.EXPECTED[task][0]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(RuntimeError, match=r"(?s)pyarrow to read train.parquet, got none.*pip install"):
        TASKS["rte"].read(tmp_path / "train.parquet")


# -- errors name file, line and key ---------------------------------------------------------------------

BROKEN = [
    (
        "rte",
        {"label": "maybe"},
        "key 'label': expected one of ['entailment', 'not_entailment', '0', '1'], got 'maybe'",
    ),
    ("rte", {"label": -1}, "key 'label': expected one of"),
    ("rte", {"premise": 3}, "key 'premise': expected a text, got 3"),
    ("rte", {"premise": None}, "key 'premise': expected a text, got None"),
    ("rte", {"hypothesis": " "}, "key 'hypothesis': expected a text, got ' '"),
    ("cb", {"label": 3}, "key 'label': expected one of"),
    ("boolq", {"label": "perhaps"}, "key 'label': expected one of"),
    ("wic", {"label": 2}, "key 'label': expected one of"),
    ("wsc", {"target": {"span1_text": "x"}}, "target: expected the key 'span2_text', got ['span1_text']"),
    ("copa", {"question": "why"}, "key 'question': expected 'cause' or 'effect', got 'why'"),
    ("copa", {"label": 2}, "key 'label': expected one of"),
    ("winogrande", {"sentence": "No gap."}, "key 'sentence': expected exactly one '_', got 0"),
    ("winogrande", {"sentence": "_ and _."}, "key 'sentence': expected exactly one '_', got 2"),
    ("winogrande", {"answer": ""}, "key 'answer': expected one of ['1', '2'], got ''"),
    ("multirc", {"passage": {"text": "x"}}, "passage: expected the key 'questions', got ['text']"),
    (
        "multirc",
        {"passage": {"text": "x", "questions": [{"question": "y"}]}},
        "questions[0]: expected the key 'answers'",
    ),
    (
        "record",
        {"qas": [{"query": "x", "answers": [{"text": "Oslo"}]}]},
        "qas[0], key 'query': expected the word",
    ),
    (
        "record",
        {"qas": [{"query": "@placeholder", "answers": [{"text": "Bonn"}]}]},
        "qas[0], key 'answers': expected one of the entities, got ['Bonn']",
    ),
    (
        "record",
        {"qas": [{"query": "@placeholder", "answers": []}]},
        "qas[0], key 'answers': expected a list of one text",
    ),
]


@pytest.mark.parametrize(("task", "change", "message"), BROKEN)
def test_a_bad_line_is_named(task: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    good = task_records.PUBLISHED[task][2][0]
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(good)}\n\n{json.dumps(good | change)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^train\.jsonl line 3[ ,:].*" + re.escape(message)):
        TASKS[task].read(path)


@pytest.mark.parametrize("task", [task for task in ALL if task not in ("sst2", "squad", "drop")])
def test_a_missing_key_is_named(task: str, tmp_path: Path) -> None:
    good = task_records.PUBLISHED[task][2][0]
    for key in set(good) - {"idx", "version", "source", "qID"}:
        path = tmp_path / "val.jsonl"
        path.write_text(json.dumps({k: v for k, v in good.items() if k != key}) + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"val\.jsonl line 1( target)?: expected the key '\w+', got \["):
            TASKS[task].read(path)


def test_rows_in_memory_are_named_by_their_number() -> None:
    with pytest.raises(ValueError, match=r"^row 2, key 'label'"):
        TASKS["rte"].read([task_records.COLUMNS["rte"][0], task_records.COLUMNS["rte"][0] | {"label": 5}])
    with pytest.raises(ValueError, match="row 1: expected a mapping of columns, got str"):
        TASKS["rte"].read(["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="data: expected a path or rows, got int"):
        TASKS["rte"].read(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one row of rte, got none"):
        TASKS["rte"].read([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "{\n", r"a\.jsonl line 1: expected a JSON object, got "),
        ("a.jsonl", "[1]\n", r"a\.jsonl line 1: expected a JSON object, got list"),
        ("a.jsonl", "", "at least one row of squad, got none"),
        ("a.json", '{"data":\n[,]}', r"a\.json line 2: expected JSON, got "),
        ("a.json", "[]", r"a\.json: expected SQuAD's object with 'data' or DROP's .* got list"),
        ("a.json", '{"data": 3}', r"a\.json data: expected a list, got int"),
        (
            "a.json",
            '{"data": [{"paragraphs": []}]}',
            r"data\[0\]: expected the key 'title', got \['paragraphs'\]",
        ),
        (
            "a.json",
            '{"data": [{"title": "x", "paragraphs": [{"context": "y", "qas": ['
            '{"question": "z", "answers": []}]}]}]}',
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\], key 'answers': expected a list of one text or more",
        ),
        ("a.txt", "", r"data: expected a file \.jsonl, .* got 'a\.txt'"),
    ],
)
def test_bad_files(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        TASKS["squad"].read(tmp_path / name)
    with pytest.raises(ValueError, match="which is none"):
        TASKS["squad"].read(tmp_path / "missing.json")


def test_drop_errors_name_passage_and_pair(tmp_path: Path) -> None:
    document = {"nfl_1": {"passage": "x", "qa_pairs": [{"question": "y", "answer": {"spans": []}}]}}
    (tmp_path / "d.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=r"d\.json nfl_1\.qa_pairs\[0\], key 'answers': expected a list"):
        TASKS["drop"].read(tmp_path / "d.json")


def test_sst2_errors_have_the_line(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("sentence\tlabel\ngood\t1\nbad\t2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.tsv line 3, key 'label': expected one of"):
        TASKS["sst2"].read(path)


# -- lookup and versions --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sst2", "SST2", "SST-2", "sst-2"])
def test_names(name: str) -> None:
    assert find(name) is TASKS["sst2"]


def test_unknown_names_and_versions() -> None:
    with pytest.raises(ValueError, match=r"task: expected one of .*'winogrande'.*, got 'mnli'"):
        find("mnli")
    for version in (-1, 1, True, "0"):
        with pytest.raises(ValueError, match="version: expected 0 to 0 for cb, got"):
            TASKS["cb"].example(task_records.COLUMNS["cb"][0], version)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="row: expected one row of multirc, got 3"):
        TASKS["multirc"].example(task_records.PUBLISHED["multirc"][2][0])


def test_the_masked_form() -> None:
    def made(task: str, version: int = 0) -> Example:
        return TASKS[task].example(task_records.COLUMNS[task][0], version, mask_token="<mask>")

    assert made("sst2") == Example('a dull " plot It was <mask>.', [" terrible", " great"], 0, [], None)
    assert made("sst2", 1).prompt == 'a dull " plot <mask>.'
    assert made("rte") == Example("Two boats left? <mask>, boats left.", [" Yes", " No"], 0, [], None)
    assert made("rte", 1).prompt == 'Two boats left.\n"Boats left."\n<mask>.'
    assert made("cb") == Example("She knew it? <mask>, it was so", [" Yes", " No", " Maybe"], 0, [], None)
    assert made("wic").prompt.endswith("\nA rich bank.\n<mask>.")
    assert made("boolq", 2) == Example(
        "Tin melts early. Does tin melt?\n<mask>.", [" Yes", " No"], 0, [], None
    )
    with pytest.raises(ValueError, match="mask_token: expected a task with answer words"):
        made("copa")
