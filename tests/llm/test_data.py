from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenfold.llm import data
from tenfold.llm.data import Example


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def pool(count: int) -> list[Example]:
    return [Example(f"text number {i}", i % 2) for i in range(count)]


def test_splits_are_disjoint_balanced_and_do_not_depend_on_the_order() -> None:
    sizes = {"train": 12, "dev": 7, "test": 20}
    parts = data.split_balanced(pool(60), sizes, 2, 0)
    assert parts == data.split_balanced(pool(60)[::-1], sizes, 2, 0)
    assert parts != data.split_balanced(pool(60), sizes, 2, 1)
    texts = [e.text for part in parts.values() for e in part]
    assert len(set(texts)) == len(texts) == 39
    assert [sum(e.label for e in parts[name]) for name in sizes] == [6, 3, 10]


def test_a_class_that_runs_out_is_named() -> None:
    with pytest.raises(ValueError, match=r"at least 10 more examples of label 0 for the test split, got 5"):
        data.split_balanced(pool(30), {"train": 20, "test": 20}, 2, 0)


def test_duplicates_count_once_and_torn_texts_not_at_all() -> None:
    examples = [Example("A fine film!", 1), Example("a fine film", 1), Example("Odd.", 0), Example("odd", 1)]
    assert data.deduplicate(examples) == [Example("A fine film!", 1)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", 'sentence\tlabel\nsays "so" \t1\nno\t0\n'),
        ("a.tsv", 'label\tidx\ttext\n1\t7\tsays "so"\n0\t8\tno\n'),
        ("a.csv", 'sentence,label\n"says ""so""",1\nno,0\n'),
        ("a.jsonl", '{"sentence": "says \\"so\\"", "label": 1}\n\n{"text": "no", "label": 0}\n'),
    ],
)
def test_reads_the_usual_files(tmp_path: Path, name: str, text: str) -> None:
    assert data.read_labelled(write(tmp_path / name, text)) == [Example('says "so"', 1), Example("no", 0)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "review\tstars\nfine\t1\n", r"a.tsv line 1: expected a header with 'sentence'"),
        ("a.tsv", "sentence\tlabel\nfine\t1\nbad\tminus\n", r"a.tsv line 3: expected a label from 0 to 1"),
        ("a.tsv", "sentence\tlabel\nfine\t2\n", r"a.tsv line 2: expected a label from 0 to 1, got '2'"),
        ("a.tsv", "sentence\tlabel\nfine 1\n", r"a.tsv line 2: expected 2 columns, got 1"),
        ("a.csv", "sentence,label\n ,1\n", r"a.csv line 2: expected a text"),
        ("a.jsonl", '{"sentence": "x", "label": 1}\n{"label": 1}\n', r"a.jsonl line 2: expected the keys"),
        ("a.jsonl", "[1]\n", r"a.jsonl line 1: expected the keys .* got list"),
        ("a.jsonl", "fine\n", r"a.jsonl line 1: expected a JSON object"),
        ("a.tsv", "sentence\tlabel\n", r"data: expected at least one example, got none in a.tsv"),
        ("a.tsv", "", r"a.tsv line 1: expected a header"),
        ("a.parquet", "", r"data: expected a .tsv, .csv or .jsonl file, got 'a.parquet'"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data.read_labelled(write(tmp_path / name, text))


def test_an_open_quote_and_another_encoding_are_named_with_their_line(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", 'sentence,label\nfine,1\n"open,1\n' + "long,0\n" * 20_000)
    with pytest.raises(ValueError, match=r"a.csv line \d+: expected a row of a table, got field larger"):
        data.read_labelled(tmp_path / "a.csv")
    for name, start in (("a.tsv", "sentence\tlabel\nfine\t1\n"), ("a.jsonl", "\n\n")):
        (tmp_path / name).write_bytes((start + "na\u00efve\t0\n").encode("latin-1"))
        with pytest.raises(ValueError, match=rf"{name} line 3: expected UTF-8 text, got the byte 0xef"):
            data.read_labelled(tmp_path / name)


def test_a_folder_keeps_its_dev_file_for_the_test(tmp_path: Path) -> None:
    rows = pool(60)
    held_out, rest = rows[:20], rows[10:]  # ten texts stand in both files
    for name, part in (("dev.tsv", held_out), ("train.tsv", rest)):
        write(tmp_path / name, "\n".join(["sentence\tlabel", *(f"{e.text}\t{e.label}" for e in part)]))
    splits = data.load_splits(str(tmp_path), train=20, dev=10, test=16)
    assert set(splits.test) <= set(held_out)
    assert not {*splits.train, *splits.dev} & set(held_out)
    with pytest.raises(ValueError, match="label 0 for the test split"):
        data.load_splits(str(tmp_path), train=20, dev=10, test=30)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: expected a file dev.tsv, .csv or .jsonl in"):
        data.load_splits(str(tmp_path))


def test_one_file_is_split(tmp_path: Path) -> None:
    lines = [json.dumps({"sentence": e.text, "label": e.label}) for e in pool(40)]
    splits = data.load_splits(str(write(tmp_path / "all.jsonl", "\n".join(lines))), train=10, dev=10, test=20)
    assert len({*splits.train, *splits.dev, *splits.test}) == 40


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"data": "no/such/file.tsv"}, "data: expected 'reviews'"),
        ({"train": 1}, "train: expected at least 2"),
    ],
)
def test_bad_requests(wanted: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data.load_splits(**wanted)  # type: ignore[arg-type]


@pytest.mark.demo
def test_the_embedded_reviews() -> None:
    reviews = data.read_reviews()
    assert len(reviews) > 12_000
    assert not any("&amp;" in example.text for example in reviews)
    splits = data.load_splits()
    parts = (splits.train, splits.dev, splits.test)
    assert [len(part) for part in parts] == [256, 200, 500]
    assert [sum(e.label for e in part) for part in parts] == [128, 100, 250]
    texts = [example.text.casefold() for part in parts for example in part]
    assert len(set(texts)) == 956
    assert max(map(len, texts)) < 60
