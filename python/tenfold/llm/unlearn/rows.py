"""Rows of unlearning data: a question and its answer, or a text; and how their files are read.

Every reader checks each record as it comes and names file, line and key of what is wrong with it.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tenfold._reading import parse_json
from tenfold.llm.tasks.files import Located, get
from tenfold.llm.tasks.rows import text, texts

__all__ = ["Row", "check_rows", "normalised", "read_lines", "read_records", "text", "texts", "to_rows"]


@dataclass(frozen=True)
class Row:
    """One item.

    Attributes:
        question: what is asked; empty for plain text, which is then all answer.
        answer: what the model says.
        paraphrased_question, paraphrased_answer: the same in other words; empty where the data has none.
        wrong: false answers (``perturbed_answer`` of TOFU), in the words of the paraphrased answer.
        key: the words of the answer that tell (mini-TOFU); empty where the data has none.
        index: position in its file, from 0; names the item in logs.
    """

    question: str
    answer: str
    paraphrased_question: str = ""
    paraphrased_answer: str = ""
    wrong: tuple[str, ...] = ()
    key: str = ""
    index: int = 0


def read_records(path: str | Path, what: str = "data") -> Iterator[Located]:
    """``(where, record)`` of a file of JSON lines, read as it is asked for, or of one JSON list.

    Args:
        path: ``.json``, ``.jsonl``, or either with ``.gz`` behind it.
        what: name of the argument, for the message.

    Raises:
        ValueError: no such file, not UTF-8, a line that is no JSON; the message has file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{what}: expected a file, got {str(path)!r}, which is none")
    return _json_records(path)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line of a UTF-8 file, unpacked where its name ends in ``.gz``.

    Raises:
        ValueError: a line that is not UTF-8, or that cannot be unpacked.
    """
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                yield number, _decoded(line, path, number)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path.name} line {number + 1}: expected gzip data, got {error}") from None


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} line {number}: expected UTF-8 text, got the byte 0x{line[error.start]:02x}"
        ) from None


def _json_records(path: Path) -> Iterator[Located]:
    lines = read_lines(path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        yield from _json_list(path, "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in lines))
        return
    for number, line in itertools.chain([first], lines):
        if line.strip():
            try:
                yield f"{path.name} line {number}", parse_json(line)
            except ValueError as error:
                raise ValueError(f"{path.name} line {number}: expected a JSON object, got {error}") from None


def _json_list(path: Path, content: str) -> Iterator[Located]:
    try:
        records = parse_json(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} line {error.lineno}: expected JSON, got {error.msg}") from None
    for number, record in enumerate(records, 1):
        yield f"{path.name} row {number}", record


def to_rows(records: Iterable[Located], make: Callable[[str, Any], Iterable[Row] | Row]) -> list[Row]:
    """Rows that ``make(where, record)`` finds in each record, numbered from 0."""
    found: list[Row] = []
    for where, record in records:
        made = make(where, record)
        for row in (made,) if isinstance(made, Row) else made:
            found.append(replace(row, index=len(found)))
    return found


def question_row(where: str, record: Any, *, question: str = "question", answer: str = "answer") -> Row:
    """A question and an answer under the given keys."""
    return Row(text(record, question, where), text(record, answer, where))


def nested(record: Any, keys: Sequence[str], where: str) -> str:
    """A text under a path of keys."""
    for key in keys[:-1]:
        record, where = get(record, key, where), f"{where} {key}"
    return text(record, keys[-1], where)


def normalised(row: Row) -> tuple[str, str]:
    """Question and answer without differences of case and white space, for comparing rows."""
    return " ".join(row.question.lower().split()), " ".join(row.answer.lower().split())


def check_rows(forget: Sequence[Row], retain: Sequence[Row] | None, *, retain_needed: bool = False) -> None:
    """Forget and retain set fit together.

    Raises:
        ValueError: an empty forget set; no retain set where one is needed; a row in both.
    """
    if not forget:
        raise ValueError("forget: expected at least one row, got an empty set")
    if not retain:
        if retain_needed:
            raise ValueError("retain: expected at least one row, got an empty set")
        return
    kept = {normalised(row): row for row in retain}
    shared = [(row, kept[normalised(row)]) for row in forget if normalised(row) in kept]
    if shared:
        forgotten, other = shared[0]
        raise ValueError(
            f"retain: expected no row of the forget set, got {len(shared)} that stand in both; first: forget "
            f"row {forgotten.index} and retain row {other.index}: {(other.question or other.answer)[:80]!r}"
        )
