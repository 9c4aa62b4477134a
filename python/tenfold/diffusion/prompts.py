"""Prompt files as they are published, and folders of target pictures.

prompts of a class        case_number, prompt, evaluation_seed, evaluation_guidance   (church, tench, ...)
Van Gogh                  the same and artist, and an index column without a name
I2P (nudity, violence)    the same among many columns (arXiv 2211.05105)
coco_10k                  case_number (text with leading zeros), source, prompt, evaluation_seed
small_imagenet            case_number, prompt, evaluation_seed, class
retain sets               case_num, source, prompt (AdvUnlearn)
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold import _checks
from tenfold._pictures import read_pixels

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DEFAULT_GUIDANCE", "PromptRow", "TargetSet", "read_prompts", "read_retain", "read_targets"]

DEFAULT_GUIDANCE = 7.5
"""Where a file has no column `evaluation_guidance`."""

_COLUMNS = ("case_number", "prompt", "evaluation_seed")
_NUMBERS = {"evaluation_seed", "evaluation_guidance", "sd_image_width", "sd_image_height"}


@dataclass(frozen=True)
class PromptRow:
    """One prompt. case_number: its id, as text, unique in its file. seed: in [0, 2^32), or None.
    guidance: a scale. width, height: pixels, or None. label: its class, artist or source, or "".
    more: the other columns, as text."""

    case_number: str
    prompt: str
    seed: int | None
    guidance: float
    width: int | None
    height: int | None
    label: str
    more: dict[str, str]


def read_prompts(
    path: str | Path, *, need_seed: bool = True, guidance: float = DEFAULT_GUIDANCE
) -> list[PromptRow]:
    """Read a prompt file. Ids are the file's case numbers: no row is dropped or renumbered.

    Args:
        need_seed: whether every row must have its `evaluation_seed`.
        guidance: of rows that name none.

    Raises:
        FileNotFoundError. ValueError: no rows, a column is missing or stands twice, a case number stands
            twice or is no file name, a prompt is empty, or a seed, guidance or size is missing or out of
            range; the line is named.
    """
    rows, columns = _read(path)
    wanted = [c for c in _COLUMNS if need_seed or c != "evaluation_seed"]
    _has(path, columns, wanted)
    found: list[PromptRow] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        one = _row(f"{path}, line {line}", row, guidance)
        if need_seed and one.seed is None:
            _checks.fail(
                ValueError, f"{path}, line {line}: evaluation_seed", "an integer in [0, 2^32)", "none"
            )
        if one.case_number in seen:
            got = f"{one.case_number!r} also in line {seen[one.case_number]}"
            _checks.fail(ValueError, f"{path}, line {line}", "a case_number of its own", got)
        seen[one.case_number] = line
        found.append(one)
    return found


def _row(where: str, row: dict[str, str], default: float) -> PromptRow:
    prompt, case = row["prompt"], row["case_number"].strip()
    if not prompt.strip() or not case:
        _checks.fail(ValueError, where, "a case_number and a prompt", f"{case!r} and {prompt!r}")
    check_file_part(f"{where}: case_number", case)
    seed = _number(where, row, "evaluation_seed")
    if seed is not None and (seed != int(seed) or not 0 <= seed < 2**32):
        _checks.fail(
            ValueError, f"{where}: evaluation_seed", "an integer in [0, 2^32)", row["evaluation_seed"]
        )
    guidance = _number(where, row, "evaluation_guidance")
    guidance = default if guidance is None else _checks.real(f"{where}: guidance", guidance, at_least=0.0)
    sides = {}
    for column in ("sd_image_width", "sd_image_height"):
        size = _number(where, row, column)
        if size is not None and (size != int(size) or not 1 <= size <= 2**16):
            _checks.fail(ValueError, f"{where}: {column}", "pixels", row[column])
        sides[column] = None if size is None else int(size)
    label = next((row[c] for c in ("class", "artist", "source") if row.get(c)), "")
    more = {k: v for k, v in row.items() if k not in (*_COLUMNS, *_NUMBERS)}
    return PromptRow(
        case, prompt, None if seed is None else int(seed), guidance, sides["sd_image_width"],
        sides["sd_image_height"], label, more,
    )  # fmt: skip


def check_file_part(name: str, text: str) -> None:
    """Refuse a case number that would leave its folder as a part of a file's name."""
    if any(one in "/\\" or ord(one) < 32 for one in text) or len(text.encode(errors="replace")) > 200:
        _checks.fail(ValueError, name, "text that may stand in a file's name", repr(text))


def read_retain(path: str | Path) -> list[str]:
    """The prompts of a retain set: columns `case_num`, `source`, `prompt`; or `prompt` alone.

    A text file without a header line named `prompt` is refused; write the header.

    Raises:
        FileNotFoundError. ValueError: no rows, or no column `prompt`.
    """
    rows, columns = _read(path)
    _has(path, columns, ["prompt"])
    return [row["prompt"] for _, row in rows]


@dataclass(frozen=True)
class TargetSet:
    """Prompts with the pictures that the original model drew for them.

    rows: the prompts. pictures: for each, its files in the order of their numbers. ignored: case numbers that
    `ignore.json` leaves out of a run; they keep their place here.
    """

    rows: tuple[PromptRow, ...]
    pictures: tuple[tuple[Path, ...], ...]
    ignored: frozenset[str]

    def load(self, index: int, number: int = 0) -> Tensor:
        """A picture as float32 [1, 3, H, W] in [0, 1] (a gray one [1, 1, H, W])."""
        return read_picture(self.pictures[index][number])


def read_targets(folder: str | Path) -> TargetSet:
    """A folder with `prompts.csv`, `imgs/{case_number}_{n}.png` and, if wanted, `ignore.json`.

    `ignore.json` is a list of row positions, counted from 0 in `prompts.csv`. Without it nothing is left out,
    however long a prompt is.

    Raises:
        FileNotFoundError: a file is missing; a prompt that is not ignored has no picture.
        ValueError: `ignore.json` is no list of row positions.
    """
    root = Path(folder)
    rows = read_prompts(root / "prompts.csv", need_seed=False)
    ignored = frozenset(rows[i].case_number for i in _ignored(root / "ignore.json", len(rows)))
    pictures = []
    for row in rows:
        found = sorted((root / "imgs").glob(f"{escape(row.case_number)}_*.png"), key=_order)
        if not found and row.case_number not in ignored:
            expected = root / "imgs" / f"{row.case_number}_0.png"
            raise FileNotFoundError(f"folder: expected the picture {expected}, got nothing")
        pictures.append(tuple(found))
    return TargetSet(tuple(rows), tuple(pictures), ignored)


def _ignored(file: Path, count: int) -> list[int]:
    if not file.is_file():
        return []
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected a list of row positions, got no JSON ({error})") from error
    good = isinstance(value, list) and all(type(i) is int and 0 <= i < count for i in value)
    if not good:
        _checks.fail(ValueError, str(file), f"a list of row positions in [0, {count})", str(value)[:80])
    return list(value)


def _order(file: Path) -> tuple[int, str]:
    number = file.stem.rsplit("_", 1)[-1]
    return (int(number) if number.isdigit() else 2**31, file.name)


def read_picture(path: Path) -> Tensor:
    """A picture file as float32 [1, C, H, W] in [0, 1], C 1 for gray and 3 otherwise."""
    import torch

    picture = torch.from_numpy(read_pixels(path, gray=True)).float().div_(255)
    return (picture[None] if picture.ndim == 2 else picture.permute(2, 0, 1))[None].contiguous()


def _read(path: str | Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: expected a prompt file (CSV), got {file}")
    with file.open(newline="", encoding="utf-8-sig") as source:
        reader = csv.DictReader(source, restval="", strict=True)
        try:
            columns = list(reader.fieldnames or [])
            rows = [(reader.line_num, _cells(file, reader.line_num, row)) for row in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: expected CSV in UTF-8, got {error}") from error
    if not rows:
        _checks.fail(ValueError, str(file), "rows of prompts", "none" if columns else "an empty file")
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        _checks.fail(ValueError, str(file), "every column once", f"two of {twice!r}")
    return rows, columns


def _cells(file: Path, line: int, row: dict[str, str]) -> dict[str, str]:
    if None in row:
        _checks.fail(ValueError, f"{file}, line {line}", "as many cells as columns", "more (quote commas)")
    return row


def _has(path: str | Path, columns: list[str], wanted: list[str]) -> None:
    for column in wanted:
        if column not in columns:
            _checks.fail(ValueError, str(path), f"a column {column!r}", f"the columns {columns}")


def _number(where: str, row: dict[str, str], column: str) -> float | None:
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        _checks.fail(ValueError, f"{where}: {column}", "a finite number", repr(text))
    return number
