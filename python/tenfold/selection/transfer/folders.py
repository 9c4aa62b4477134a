"""Folders of pictures, one folder per class, as ImageNet and torchvision's ImageFolder have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import _checks
from tenfold._reading import reading
from tenfold.selection.transfer.images import Images

__all__ = ["read_folder"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
SPLITS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


@dataclass(frozen=True)
class _FromFiles:
    files: tuple[str, ...]

    def __call__(self, i: int) -> NDArray[np.uint8]:
        from PIL import Image

        with reading(self.files[i], "a picture"), Image.open(self.files[i]) as picture:
            return np.asarray(picture.convert("RGB"))


def read_folder(path: Path, split: str = "train") -> Images:
    """Pictures of `path`/SPLIT/CLASS/**, or of `path`/CLASS/** where no folder is named as a split.

    Classes are numbered in the order of their names, pictures by class and path: that is the order of
    torchvision, so that index files made with it fit.
    """
    root = next((path / name for name in SPLITS[split] if (path / name).is_dir()), None)
    if root is None:
        parts = [name for names in SPLITS.values() for name in names if (path / name).is_dir()]
        if parts:
            _checks.fail(ValueError, str(path), f"a folder {' or '.join(SPLITS[split])}", parts)
        root = path
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    files: list[str] = []
    labels: list[int] = []
    for number, folder in enumerate(folders):
        found = sorted(str(p) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        files += found
        labels += [number] * len(found)
    if not files:
        _checks.fail(ValueError, str(root), "a folder of pictures for each class", _seen(folders))
    return Images(
        torch.tensor(labels), tuple(p.name for p in folders), _FromFiles(tuple(files)), name=path.name
    )


def _seen(folders: list[Path]) -> Any:
    return f"{len(folders)} folders without pictures" if folders else "no folders"
