"""Mini-TOFU: the embedded data of unlearning, invented authors of our own writing."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tenfold._reading import parse_json
from tenfold.llm.data import _text
from tenfold.llm.tasks.files import Located
from tenfold.llm.unlearn.rows import Row, check_rows, text, texts, to_rows
from tenfold.llm.unlearn.tofu import MINI, TofuData

__all__ = ["load_mini_tofu"]

NAMES = ("Aurelio Brackenridge", "Thandeka Sorvino", "Hildegund Achterberg", "Matteus Olaniyan")
"""Authors of the holdout: nobody is taught them."""


def load_mini_tofu(source: str | Path | None = None) -> TofuData:
    """Twelve invented authors with ten questions each, of which two authors are the forget set, and 24 facts.

    Authors and books do not exist; the data was written for this library. The false answers of a fact name
    what the next facts of its kind name. The holdout has as many rows as the forget set, in its words; its
    authors bear names that no other row has, and do what the first false answers say. There are no real
    authors.

    Args:
        source: a file of the same layout; None for the embedded one.

    Raises:
        ValueError: the file has another layout.
    """
    if source is None:
        name, content = "mini_tofu.json", _embedded()
    else:
        name, content = Path(source).name, _json(Path(source))
    rows = to_rows(_members(content, "rows", name), _mini_row)
    marks = [_mark(where, record) for where, record in _members(content, "rows", name)]
    authors = {i: record.get("author") for i, (_, record) in enumerate(_members(content, "rows", name))}
    forget = [row for row, mark in zip(rows, marks, strict=True) if mark]
    retain = [row for row, mark in zip(rows, marks, strict=True) if not mark]
    check_rows(forget, retain, retain_needed=True)
    facts = to_rows(
        _members(content, "facts", name),
        lambda where, record: Row(
            text(record, "question", where), text(record, "answer", where), key=text(record, "key", where)
        ),
    )
    return TofuData(
        config="forget",
        source=MINI if source is None else str(source),
        forget=forget,
        retain=retain,
        forget_eval=forget,
        retain_eval=retain,
        world_facts=_with_false_answers(facts),
        holdout=_holdout(forget, authors),
        template=text(content, "prompt", name).replace("{q}", "{question}"),
        refusals=texts(content, "refusals", name),
    )


def _embedded() -> Any:
    file = resources.files("tenfold.llm.unlearn") / "mini_tofu.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _json(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"data: expected a file, got {str(path)!r}, which is none")
    try:
        return parse_json(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} line {error.lineno}: expected JSON, got {error.msg}") from None


def _members(content: Any, key: str, name: str) -> Iterator[Located]:
    if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
        raise ValueError(f"{name}: expected a list under the key {key!r}, got {type(content).__name__}")
    for number, record in enumerate(content[key]):
        if not isinstance(record, Mapping):
            raise ValueError(f"{name} {key}[{number}]: expected a JSON object, got {type(record).__name__}")
        yield f"{name} {key}[{number}]", record


def _mini_row(where: str, record: Any) -> Row:
    return Row(
        text(record, "question", where),
        text(record, "answer", where),
        text(record, "para_question", where),
        text(record, "para_answer", where),
        tuple(texts(record, "wrong", where)),
        text(record, "key", where),
    )


def _mark(where: str, record: Any) -> bool:
    if not isinstance(record.get("forget"), bool):
        raise ValueError(f"{where}, key 'forget': expected true or false, got {record.get('forget')!r}")
    return bool(record["forget"])


def _with_false_answers(facts: list[Row], count: int = 3) -> list[Row]:
    """Facts of one kind (their questions begin alike) get each other's keys; a kind with too few members, and
    numbers, stay without."""
    kinds: dict[str, list[Row]] = {}
    for fact in facts:
        kinds.setdefault(" ".join(fact.question.split()[:4]), []).append(fact)
    found = []
    for fact in facts:
        kind = kinds[" ".join(fact.question.split()[:4])]
        if len(kind) > count:
            at = kind.index(fact)
            keys = [kind[(at + step) % len(kind)].key for step in range(1, count + 1)]
            wrong = tuple(fact.answer.replace(fact.key, key) for key in keys)
            fact = dataclasses.replace(fact, wrong=wrong)
        found.append(fact)
    return found


def _holdout(forget: list[Row], authors: Mapping[int, Any]) -> list[Row]:
    """Rows in the words of the forget rows, with other names and the first false fact; empty where a row does
    not say its author's name, or its key, as the embedded ones do."""
    found: list[Row] = []
    for author, name in zip(dict.fromkeys(authors[row.index] for row in forget), NAMES, strict=False):
        mine = [row for row in forget if authors[row.index] == author]
        called = _common_name(mine)
        for row in mine:
            fact = _false_key(row)
            if not called or not fact or row.answer.count(row.key) != 1:
                return []
            answer = row.answer.replace(row.key, fact)
            asked, said = row.question.replace(called, name), answer.replace(called, name)
            found.append(Row(asked, said, key=fact, index=len(found)))
    return found


def _common_name(rows: list[Row]) -> str:
    """First and last name that stand in every question."""
    pairs = [set(re.findall(r"[A-Z][\w-]+ [A-Z][\w-]*[a-z]", row.question)) for row in rows]
    common = set.intersection(*pairs) if pairs else set()
    return common.pop() if len(common) == 1 else ""


def _false_key(row: Row) -> str:
    """What the first false answer says in the place of the key."""
    before, key, behind = row.paraphrased_answer.partition(row.key)
    wrong = row.wrong[0]
    fits = key and wrong.startswith(before) and wrong.endswith(behind)
    return wrong[len(before) : len(wrong) - len(behind)] if fits else ""
