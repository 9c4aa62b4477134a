"""Records of a task's files: JSON lines, GLUE's TSV, SQuAD's and DROP's JSON, parquet, rows in memory.

Every reader yields ``(where, record)``; ``where`` names file and line (or row), for the messages of what
comes after it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from tenfold._reading import parse_json, reading
from tenfold.llm.data import _read_table, _text

Record: TypeAlias = Mapping[str, Any]
Located: TypeAlias = tuple[str, Record]
Source: TypeAlias = "str | Path | Iterable[Record]"


def read_file(path: Path) -> Iterator[Located]:
    """Records of one file, by its ending: .jsonl, .tsv, .csv, .json (SQuAD or DROP) or .parquet.

    Raises:
        ValueError: another ending, or content of another shape; the message has the line where there is one.
        RuntimeError: a parquet file, and pyarrow is not installed.
    """
    readers: dict[str, Callable[[Path], Iterator[Located]]] = {
        ".jsonl": _json_lines,
        ".tsv": _table,
        ".csv": _table,
        ".json": _document,
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        raise ValueError(f"data: expected a file {', '.join(readers)}, got {path.name!r}")
    if not path.is_file():
        raise ValueError(f"data: expected a file, got {str(path)!r}, which is none")
    if path.suffix == ".parquet":  # says itself what is wrong, and which package is missing
        return _parquet(path)
    with reading(path, "records of a task"):
        return _named(path, readers[path.suffix](path))


def _named(path: Path, located: Iterator[Located]) -> Iterator[Located]:
    with reading(path, "records of a task"):
        yield from located


def read_rows(rows: Iterable[Any]) -> Iterator[Located]:
    """Records in memory: a list of dictionaries, or any object that yields them (``datasets.Dataset``).

    Raises:
        ValueError: an element is no mapping.
    """
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number}: expected a mapping of columns, got {type(row).__name__}")
        yield f"row {number}", row


def _json_lines(path: Path) -> Iterator[Located]:
    for number, line in enumerate(io.StringIO(_text(path), newline=None), 1):
        where = f"{path.name} line {number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{where}: expected a JSON object, got {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
        yield where, record


def _table(path: Path) -> Iterator[Located]:
    for number, text, label in _read_table(path):
        yield f"{path.name} line {number}", {"sentence": text, "label": label}


def _document(path: Path) -> Iterator[Located]:
    try:
        document = parse_json(_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} line {error.lineno}: expected JSON, got {error.msg}") from None
    if isinstance(document, dict) and "data" in document:
        return _squad(path.name, document["data"])
    return _drop(path.name, document)


def _squad(where: str, articles: Any) -> Iterator[Located]:
    for i, article in enumerate(_list(articles, f"{where} data")):
        at = f"{where} data[{i}]"
        title = get(article, "title", at)
        for j, paragraph in enumerate(_list(get(article, "paragraphs", at), f"{at}.paragraphs")):
            context = get(paragraph, "context", f"{at}.paragraphs[{j}]")
            questions = get(paragraph, "qas", f"{at}.paragraphs[{j}]")
            for k, question in enumerate(_list(questions, f"{at}.paragraphs[{j}].qas")):
                inner = f"{at}.paragraphs[{j}].qas[{k}]"
                answers = _list(get(question, "answers", inner), f"{inner}.answers")
                yield (
                    inner,
                    {
                        "title": title,
                        "context": context,
                        "question": get(question, "question", inner),
                        "answers": [get(answer, "text", f"{inner}.answers") for answer in answers],
                    },
                )


def _drop(where: str, passages: Any) -> Iterator[Located]:
    if not isinstance(passages, dict):
        raise ValueError(
            f"{where}: expected SQuAD's object with 'data' or DROP's object of passages, got "
            f"{type(passages).__name__}"
        )
    for name, passage in passages.items():
        at = f"{where} {name}"
        text = get(passage, "passage", at)
        for i, pair in enumerate(_list(get(passage, "qa_pairs", at), f"{at}.qa_pairs")):
            inner = f"{at}.qa_pairs[{i}]"
            answers = drop_answers(get(pair, "answer", inner), f"{inner}.answer")
            for other in pair.get("validated_answers", []):
                answers += drop_answers(other, f"{inner}.validated_answers")
            question = get(pair, "question", inner)
            yield inner, {"passage": text, "question": question, "answers": list(dict.fromkeys(answers))}


def drop_answers(answer: Any, where: str) -> list[str]:
    """DROP's answer as texts: the number, or day, month and year, or each span."""
    if not isinstance(answer, Mapping):
        raise ValueError(f"{where}: expected an object, got {type(answer).__name__}")
    if str(answer.get("number") or "").strip():
        return [str(answer["number"]).strip()]
    date = answer.get("date") or {}
    words = [str(date.get(part) or "").strip() for part in ("day", "month", "year")]
    if any(words):
        return [" ".join(word for word in words if word)]
    return list(answer.get("spans") or [])


def _parquet(path: Path) -> Iterator[Located]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise RuntimeError(
            f"data: expected the package pyarrow to read {path.name}, got none; install it with\n"
            "    pip install pyarrow"
        ) from None
    with reading(path, "a parquet file"), path.open("rb") as file:
        rows = parquet.read_table(file).to_pylist()
    for number, row in enumerate(rows, 1):
        yield f"{path.name} row {number}", row


def get(record: Any, key: str, where: str) -> Any:
    """``record[key]``, or a ValueError that names the place, the key and the keys there are."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected an object with the key {key!r}, got {type(record).__name__}")
    if key not in record:
        raise ValueError(f"{where}: expected the key {key!r}, got {sorted(map(str, record))}")
    return record[key]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list, got {type(value).__name__}")
    return value
