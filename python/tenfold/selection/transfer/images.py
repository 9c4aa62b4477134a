"""Labelled images of a source or a target, whatever they are stored in, and batches of them.

    images = load_images("oxford_pets/train")           # a folder per class, read with Pillow
    images = load_images("imagenet/train_400_10_90.beton")
    images = load_images("digits.npz")                  # arrays images, labels[, identifiers, classes]
    images = load_images("hf:cifar10:train")            # Hugging Face datasets, if installed

Nothing is decoded before it is asked for, except the arrays of an .npz file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenfold import _checks
from tenfold._npy import array_names, read_npz
from tenfold.selection.transfer.augment import View

__all__ = ["Images", "load_images"]

Picture = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Images:
    """N labelled images.

    Attributes:
        labels: class of each, int64 [N], in 0 .. len(classes) - 1.
        classes: names.
        read: image i as uint8 [height, width, 3]; None where `pixels` holds them all.
        pixels: all images, float32 [N, channels, height, width], as a network is to see them; None where
            they are read one by one.
        identifiers: what index files call each image, int64 [N]: its place in the whole data set.
        name: for reports.
    """

    labels: Tensor
    classes: tuple[str, ...]
    read: Callable[[int], Picture] | None = None
    pixels: Tensor | None = None
    identifiers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    name: str = "images"

    def __post_init__(self) -> None:
        if (self.read is None) == (self.pixels is None):
            _checks.fail(ValueError, "read and pixels", "one of both", "both or neither")
        _checks.tensor("labels", self.labels, (torch.int64,))
        if self.labels.ndim != 1:
            _checks.fail(ValueError, "labels", "one per image", f"shape {tuple(self.labels.shape)}")
        if self.pixels is not None and len(self.pixels) != len(self.labels):
            _checks.fail(ValueError, "labels", f"{len(self.pixels)}, one for each image", len(self.labels))
        if len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                expected = f"classes 0 to {len(self.classes) - 1}"
                _checks.fail(ValueError, "labels", expected, low if low < 0 else high)
        if not len(self.identifiers):
            object.__setattr__(self, "identifiers", torch.arange(len(self.labels)))
        if self.identifiers.shape != self.labels.shape:
            expected = f"{len(self.labels)}, one for each image"
            _checks.fail(ValueError, "identifiers", expected, tuple(self.identifiers.shape))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Any, name: str = "") -> Images:
        """The images at `indices` (positions, in that order); identifiers stay those of the whole set."""
        at = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        if len(at) and (int(at.min()) < 0 or int(at.max()) >= len(self)):
            wrong = int(at.min()) if int(at.min()) < 0 else int(at.max())
            _checks.fail(ValueError, "indices", f"positions 0 to {len(self) - 1}", wrong)
        read = None if self.read is None else _Picked(self.read, at.numpy())
        pixels = None if self.pixels is None else self.pixels[at]
        return replace(
            self, labels=self.labels[at], read=read, pixels=pixels, identifiers=self.identifiers[at],
            name=name or self.name,
        )  # fmt: skip

    def with_identifiers(self, wanted: Any) -> Images:
        """The images that an index file names, in its order; ValueError for a name that is not here."""
        place = {int(one): i for i, one in enumerate(self.identifiers.tolist())}
        if len(place) < len(self):
            _checks.fail(ValueError, "identifiers", "each image's own", f"{len(self) - len(place)} repeated")
        found = []
        for one in np.asarray(wanted, dtype=np.int64).tolist():
            if one not in place:
                _checks.fail(ValueError, "indices", f"identifiers of {self.name}", one)
            found.append(place[one])
        return self.subset(found)

    def batches(
        self, view: View, size: int, *, order: Tensor | None = None, seed: int = 0, epoch: int = 0,
        workers: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
        """(x float32 [B, C, H, W], labels [B], positions [B]), the last batch shorter.

        What is random about an image depends on `seed`, `epoch` and its position alone, not on the batch or
        the process that reads it.
        """
        order = torch.arange(len(self)) if order is None else order
        groups = [order[k : k + size] for k in range(0, len(order), size)]
        if self.pixels is not None:
            for at in groups:
                yield view.of_tensor(self.pixels[at], seed, epoch, at), self.labels[at], at
            return
        rows = _Rows(self, view, seed, epoch)
        loader = DataLoader(rows, batch_sampler=[g.tolist() for g in groups], num_workers=workers)
        yield from loader

    def fingerprint(self) -> str:
        """SHA-256 over labels, identifiers, class names and, where they are in memory, the pixels."""
        digest = hashlib.sha256()
        for tensor in (self.labels, self.identifiers):
            digest.update(tensor.numpy().tobytes())
        digest.update("\0".join(self.classes).encode())
        if self.pixels is not None:
            digest.update(self.pixels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Picked:
    """Image `at[i]` of another reader; a class, so that processes can be handed it."""

    read: Callable[[int], Picture]
    at: NDArray[np.int64]

    def __call__(self, i: int) -> Picture:
        return self.read(int(self.at[i]))


@dataclass(frozen=True)
class _Rows(Dataset[tuple[Tensor, Tensor, int]]):
    images: Images
    view: View
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        assert self.images.read is not None
        return self.view.of_picture(self.images.read(i), self.seed, self.epoch, i), self.images.labels[i], i


def load_images(path: str | Path, split: str = "train") -> Images:
    """Images from a folder, an .npz or .beton file, or `hf:NAME[:SPLIT]`.

    Args:
        path: folder with one folder per class (one set, whatever `split`), or with folders train, val, test
            that have them (`split` chooses); FILE.npz with `images` uint8 [N, H, W] or [N, H, W, 3] and
            `labels`; FILE.beton; "hf:NAME[:SPLIT]" for `datasets.load_dataset`, or `datasets.load_from_disk`
            if NAME is a folder.
        split: "train", "val" or "test".

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: what is there is none of these.
        ModuleNotFoundError: "hf:" without the package datasets.
    """
    _checks.choice("split", split, ("train", "val", "test"))
    text = str(path)
    if text.startswith("hf:"):
        return _hugging_face(text, split)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a folder or file of images, got {path}, which is not there")
    if path.is_dir():
        from tenfold.selection.transfer.folders import read_folder

        return read_folder(path, split)
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".beton":
        from tenfold.selection.transfer.beton import read_beton

        return read_beton(path)
    _checks.fail(ValueError, "path", "a folder, .npz, .beton or hf:NAME", repr(text))


def has_split(path: str | Path, split: str) -> bool:
    """Whether a path of several sets has this one; False for a path of one set."""
    text = str(path)
    if text.startswith("hf:"):
        if text.count(":") > 1:
            return False
        try:
            load_images(text, split)
        except ValueError:
            return False
        return True
    from tenfold.selection.transfer.folders import SPLITS

    return any((Path(path) / name).is_dir() for name in SPLITS[split])


def as_rgb(image: NDArray[Any]) -> Picture:
    """A uint8 picture with three channels, grey repeated."""
    if image.dtype != np.uint8:
        _checks.fail(TypeError, "image", "uint8", image.dtype)
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, 2)
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        _checks.fail(ValueError, "image", "shape [H, W], [H, W, 1] or [H, W, 3]", image.shape)
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image


@dataclass(frozen=True)
class _FromArray:
    images: NDArray[Any]

    def __call__(self, i: int) -> Picture:
        return as_rgb(self.images[i])


def _npz(path: Path) -> Images:
    try:
        data = read_npz(path, ("images", "labels", "classes", "identifiers"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected an .npz file of arrays, got one that fails ({error})") from error
    for key in ("images", "labels"):
        if key not in data:
            _checks.fail(ValueError, str(path), f"an array {key!r}", array_names(path))
    labels = torch.from_numpy(data["labels"].astype(np.int64))
    if len(data["images"]) != len(labels):
        _checks.fail(ValueError, f"{path}: labels", f"{len(data['images'])}, one per image", len(labels))
    if len(data["images"]):
        as_rgb(data["images"][0])
    count = int(labels.max()) + 1 if len(labels) else 0
    classes = tuple(map(str, data["classes"])) if "classes" in data else tuple(map(str, range(count)))
    identifiers = torch.from_numpy(data.get("identifiers", np.arange(len(labels))).astype(np.int64))
    return Images(labels, classes, _FromArray(data["images"]), None, identifiers, path.stem)


@dataclass(frozen=True)
class _FromRows:
    rows: Any
    column: str

    def __call__(self, i: int) -> Picture:
        return as_rgb(np.asarray(self.rows[i][self.column].convert("RGB")))


def _hugging_face(text: str, split: str) -> Images:
    from importlib.util import find_spec

    if find_spec("datasets") is None:
        raise ModuleNotFoundError("No module named 'datasets'", name="datasets")
    import datasets

    _, _, rest = text.partition(":")
    name, _, chosen = rest.rpartition(":") if rest.count(":") else (rest, "", "")
    split = chosen or split
    made = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name, split=split)
    if isinstance(made, dict) and split not in made:
        _checks.fail(ValueError, text, f"a split {split!r}", list(made))
    rows = made[split] if isinstance(made, dict) else made
    image, label = (_column(rows.features, kind, text) for kind in ("Image", "ClassLabel"))
    return Images(
        torch.tensor(rows[label][:], dtype=torch.int64), tuple(rows.features[label].names),
        _FromRows(rows, image), name=text,
    )  # fmt: skip


def _column(features: Any, kind: str, where: str) -> str:
    found: Sequence[str] = [name for name, f in features.items() if type(f).__name__ == kind]
    if len(found) != 1:
        _checks.fail(ValueError, where, f"one column of type {kind}", list(found) or "none")
    return found[0]
