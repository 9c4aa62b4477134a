"""The data set: `ROOT/{Style}/{Object}/{1..20}.jpg`, where picture i of every style shows photograph i.

`metadata.jsonl` has a caption for each; the copy on the hub has only pictures and captions, in parquet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.canvas.manifest import fitted, read_pictures, write_picture
from tenfold.diffusion.canvas.vocabulary import Canvas
from tenfold.runs.files import write_text

__all__ = ["PER_CELL", "SPLITS", "CanvasData", "caption", "parse_caption", "read_parquet", "write_tree"]

PER_CELL = 20
SPLITS = {"train": tuple(range(1, 19)), "test": (19, 20), "all": tuple(range(1, 21))}
"""Numbers of the pictures. The published script validates on number 19 counted from 0, which it trained
on."""
_ENDINGS = (".jpg", ".png", ".jpeg")
_CAPTION = re.compile(r"an? (?P<object>.+?) image in (?P<style>.+?) style\.?", re.IGNORECASE)


def caption(canvas: Canvas, style: str, object: str, *, compat: str = "exact") -> str:
    """A training caption: the canvas' prompt, or, with compat="reference", the published metadata's wording
    ("An" before a vowel, "photo" in small letters, no full stop).

    Raises:
        ValueError: an unknown name or `compat`.
    """
    _checks.choice("compat", compat, ("exact", "reference"))
    if compat == "exact":
        return canvas.prompt(style, object)
    style, object = canvas.style(style), canvas.object(object)
    words = "photo" if style == canvas.photo else canvas.words(style)
    return f"A{'n' if object[0] in 'AEIOU' else ''} {canvas.words(object)} image in {words} style"


def parse_caption(canvas: Canvas, text: str) -> tuple[str, str]:
    """(style, object) of a caption in any of the published wordings.

    Raises:
        ValueError: another text, or an unknown name.
    """
    found = _CAPTION.fullmatch(text.strip())
    if found is None:
        _checks.fail(ValueError, "text", "'A {object} image in {style} style.'", repr(text))
    style = found["style"]
    if style.lower() in ("photo", "seed images", canvas.photo_word.lower()):
        style = canvas.photo
    return canvas.style(style), canvas.object(found["object"])


@dataclass(frozen=True)
class CanvasData:
    """A tree of pictures. root: its folder. canvas: whose styles and objects are looked for. size: (H, W) to
    which pictures are brought, their middle kept; None, as they are.

    Raises:
        FileNotFoundError: `root` is no folder, or a style has none in it.
    """

    root: Path
    canvas: Canvas
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        missing = [name for name in self.canvas.styles if not (self.root / name).is_dir()]
        if missing:
            shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
            raise FileNotFoundError(
                f"root: expected a folder for each style in {self.root}, got none for {shown}"
            )

    def numbers(self, split: str) -> tuple[int, ...]:
        """Numbers of a split's pictures: "train" 1..18, "test" 19 and 20, "all"."""
        return SPLITS[_checks.choice("split", split, SPLITS)]

    def path(self, style: str, object: str, number: int) -> Path:
        """One picture's file.

        Raises:
            FileNotFoundError: it is not there. ValueError: an unknown name, or two files for it.
        """
        folder = self.root / self.canvas.style(style) / self.canvas.object(object)
        found = [p for p in (folder / f"{number}{ending}" for ending in _ENDINGS) if p.is_file()]
        if len(found) > 1:
            _checks.fail(ValueError, "root", f"one file for {found[0].with_suffix('')}", len(found))
        if not found:
            raise FileNotFoundError(
                f"root: expected the picture {folder / str(number)}.jpg, got no such file"
            )
        return found[0]

    def images(self, style: str, object: str, split: str = "train", n: int | None = None) -> Tensor:
        """uint8 [n, 3, H, W] of a cell; all of the split if `n` is None.

        Raises:
            ValueError: more than the split has; a file that cannot be read, or one of another shape than the
                first, without a `size`.
        """
        numbers = self.numbers(split)
        count = len(numbers) if n is None else _checks.integer("n", n, 1, len(numbers))
        paths = [self.path(style, object, i) for i in numbers[:count]]
        rows = [read_pictures([path])[0].expand(3, -1, -1) for path in paths]
        if self.size is not None:
            return torch.stack([fitted(row, self.size) for row in rows])
        for path, row in zip(paths, rows, strict=True):
            if row.shape != rows[0].shape:
                expected = f"{list(rows[0].shape)}, or a `size`"
                _checks.fail(ValueError, str(path), expected, list(row.shape))
        return torch.stack(rows)

    def cell_pictures(self, style: str, object: str, n: int) -> Tensor:
        """float32 [n, 3, H, W] in 0..1 of a cell's training pictures: the form in which erasers that learn
        from pictures are given them."""
        return self.images(style, object, "train", n).float() / 255

    def samples(self, split: str = "train") -> Iterator[tuple[Path, str, str, int]]:
        """(file, style, object, number) of a split, in the canvas' order."""
        for style, thing in self.canvas.cells:
            for number in self.numbers(split):
                yield self.path(style, thing, number), style, thing, number

    def write_metadata(self, *, split: str = "train", compat: str = "exact") -> Path:
        """`metadata.jsonl` in the root: {"file_name", "text"} for each picture of the split."""
        rows = [
            {"file_name": path.relative_to(self.root).as_posix(),
             "text": caption(self.canvas, style, thing, compat=compat)}
            for path, style, thing, _ in self.samples(split)
        ]  # fmt: skip
        file = self.root / "metadata.jsonl"
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return file


def write_tree(
    root: str | Path,
    canvas: Canvas,
    images: Any,
    *,
    numbers: Sequence[int] = SPLITS["all"],
    ending: str = "png",
) -> CanvasData:
    """Write a tree. images: (style, object, numbers) -> uint8 [len(numbers), c, H, W].

    Raises:
        TypeError: `images` returns something else. ValueError: an unknown ending.
    """
    numbers = [_checks.integer("numbers", i, 1, 10**6) for i in numbers]
    for style, thing in canvas.cells:
        rows = images(style, thing, numbers)
        if (
            not isinstance(rows, Tensor)
            or rows.dtype != torch.uint8
            or rows.ndim != 4
            or len(rows) != len(numbers)
        ):
            got = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else _checks.describe(rows)
            _checks.fail(TypeError, "images", f"uint8 [{len(numbers)}, c, H, W]", got)
        for number, row in zip(numbers, rows, strict=True):
            write_picture(Path(root) / style / thing / f"{number}.{ending}", row)
    return CanvasData(Path(root), canvas)


def read_parquet(path: str | Path, canvas: Canvas) -> Iterator[tuple[Any, str, str]]:
    """(PIL picture, style, object) of the hub's copy: a parquet file, a folder of them, or a hub id. Numbers
    are lost there, so pictures of a cell have no order that pairs them with photographs.

    Raises:
        ModuleNotFoundError: `datasets` is not installed. ValueError: a caption that is none.
    """
    from datasets import load_dataset

    path = Path(path)
    if path.exists():
        files = [str(p) for p in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
        if not files:
            _checks.fail(ValueError, "path", "parquet files", f"none in {path}")
        rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
    else:
        rows = load_dataset(str(path), split="train", streaming=True)
    for row in rows:
        yield row["image"], *parse_caption(canvas, row["text"])
