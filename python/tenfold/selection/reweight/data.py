"""Training and test sets of the reweighting experiments: the embedded digits, CIFAR, arrays, folders."""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold._npy import array_names, read_npz
from tenfold._reading import reading
from tenfold.eeg.unpickle import loads_pickle
from tenfold.selection.reweight.corrupt import checked_labels

__all__ = ["DATASETS", "Labelled", "load", "load_arrays", "load_cifar", "load_digits", "load_pictures"]

MOST_CLASSES = 2**20
"""A label above this is taken for a mistake, before as many classes are made."""
DATASETS = ("digits", "cifar10", "cifar100", "arrays", "images")
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Mean and deviation of each channel, as published with the settings."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A training set and a test set.

    Attributes:
        name: for reports.
        x: [N, ...]: float32 as the network is to see it, or uint8 images [N, channels, height, width], which
            are scaled to 0..1 and normalised by `mean` and `std`, batch by batch.
        y: int64 [N], the labels that are trained with.
        x_test, y_test: the same of the test set; its labels are right.
        classes: names.
        true_y: int64 [N], the right labels where they are known: for purity and pictures, never for training.
        mean, std: of each channel of uint8 images, in units of 0..1.
        x_meta, y_meta: rows whose labels can be trusted, if there are such; no row of `x` among them.
    """

    name: str
    x: Tensor
    y: NDArray[np.int64]
    x_test: Tensor
    y_test: NDArray[np.int64]
    classes: tuple[str, ...]
    true_y: NDArray[np.int64] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    x_meta: Tensor | None = None
    y_meta: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for x, y, name in ((self.x, self.y, "y"), (self.x_test, self.y_test, "y_test")):
            if x.dtype not in (torch.float32, torch.uint8):
                _checks.fail(TypeError, "x", "float32 or uint8", x.dtype)
            if len(x) != len(y):
                _checks.fail(ValueError, name, f"{len(x)} labels, one a row", len(y))
            checked_labels(name, y, len(self.classes))
        if not len(self.x) or not len(self.x_test):
            _checks.fail(
                ValueError, "x", "rows to train and to test with", f"{len(self.x)}, {len(self.x_test)}"
            )
        if self.x_test.shape[1:] != self.x.shape[1:]:
            expected = f"rows of shape {self.shape}"
            _checks.fail(ValueError, "x_test", expected, tuple(self.x_test.shape[1:]))
        if self.true_y is not None:
            checked_labels("true_y", self.true_y, len(self.classes))
            if len(self.true_y) != len(self.y):
                _checks.fail(ValueError, "true_y", f"{len(self.y)} labels", len(self.true_y))
        for name, x in (("x", self.x), ("x_test", self.x_test)):
            if x.dtype == torch.float32:
                _finite(name, x)
        if (self.x_meta is None) != (self.y_meta is None):
            _checks.fail(ValueError, "meta", "x_meta and y_meta, or neither", "one of them")
        if self.x_meta is not None and self.y_meta is not None:
            _check_meta(self.x_meta, self.y_meta, self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return tuple(self.x.shape[1:])

    def rows(self, rows: NDArray[np.int64]) -> Labelled:
        """With the training rows `rows` alone, in that order."""
        at = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        true = None if self.true_y is None else self.true_y[rows]
        return replace(self, x=self.x[at], y=self.y[rows], true_y=true)

    def fingerprint(self) -> str:
        """SHA-256 of the training inputs and of how they are normalised; labels do not enter."""
        digest = hashlib.sha256(repr((tuple(self.x.shape), str(self.x.dtype), self.mean, self.std)).encode())
        digest.update(self.x.contiguous().numpy().tobytes())
        return digest.hexdigest()


def _check_meta(x: Tensor, y: NDArray[np.int64], data: Labelled) -> None:
    """Rows of the kind of the training rows."""
    if x.dtype != data.x.dtype or x.shape[1:] != data.x.shape[1:]:
        got = f"{x.dtype} {tuple(x.shape[1:])}"
        _checks.fail(ValueError, "x_meta", f"rows of {data.x.dtype} {data.shape}", got)
    if not len(x) or len(x) != len(y):
        _checks.fail(ValueError, "y_meta", f"{len(x)} labels, at least one", len(y))
    checked_labels("y_meta", y, len(data.classes))
    if x.dtype == torch.float32:
        _finite("x_meta", x)


def _check_apart(data: Labelled) -> Labelled:
    """No meta row is a training row: V would be judged by what it weighs."""
    if data.x_meta is None:
        return data
    seen = {_digest(row): k for k, row in enumerate(data.x_meta)}
    for k, row in enumerate(data.x):
        at = seen.get(_digest(row))
        if at is not None:
            _checks.fail(ValueError, "meta", "rows that are not trained on", f"row {at}, training row {k}")
    return data


def _digest(row: Tensor) -> bytes:
    return hashlib.blake2b(row.contiguous().numpy().tobytes(), digest_size=16).digest()


def _finite(name: str, x: Tensor) -> None:
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero()
    if len(bad):
        _checks.fail(ValueError, name, "finite values", f"NaN or infinity in row {int(bad[0, 0])}")


def load(dataset: str, path: str = "", *, seed: int = 0, side: int = 32, classes: int = 0) -> Labelled:
    """The data set of that name.

    Args:
        dataset: "digits": the embedded ones, parted anew by `seed`. "cifar10", "cifar100": the published
            folder of Python batches, or its .tar.gz. "arrays": an .npz file (:func:`load_arrays`). "images":
            what :func:`tenfold.selection.transfer.images.load_images` reads, made `side` pixels square.
        path: where it is; nothing for digits.
        classes: of arrays, if more than the labels show.
    """
    _checks.choice("dataset", dataset, DATASETS)
    if dataset == "digits":
        return load_digits(seed)
    if not path:
        _checks.fail(ValueError, "data", f"where the files of {dataset} are", "nothing")
    if dataset == "arrays":
        return load_arrays(Path(path), classes)
    if dataset == "images":
        return load_pictures(path, side)
    return load_cifar(Path(path), 10 if dataset == "cifar10" else 100)


def load_digits(seed: int = 0, train: int = 1000) -> Labelled:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, as 64 numbers in 0..1: 1,000 to train, 797 to test."""
    from sklearn.datasets import load_digits as read

    found = read()
    x = torch.from_numpy((found.data / 16).astype(np.float32))
    y = found.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(y))
    here, there = order[:train], order[train:]
    return Labelled(
        "scikit-learn digits", x[torch.from_numpy(here)], y[here], x[torch.from_numpy(there)], y[there],
        tuple("0123456789"), y[here],
    )  # fmt: skip


def load_cifar(path: Path, count: int) -> Labelled:
    """CIFAR-10 or CIFAR-100 (fine labels) from the published "python version": a folder or the .tar.gz.

    The batches are pickles. They are read by a reader that knows arrays and plain containers and runs nothing
    that a file names.

    Raises:
        FileNotFoundError, ValueError: a batch is missing, or is none.
    """
    with reading(path, f"CIFAR-{count}"):
        return _cifar(path, count)


def _cifar(path: Path, count: int) -> Labelled:
    names = [f"data_batch_{k}" for k in range(1, 6)] if count == 10 else ["train"]
    files = _cifar_files(path, [*names, "test_batch" if count == 10 else "test", _meta_name(count)])
    key = "labels" if count == 10 else "fine_labels"
    parts = [_cifar_batch(files[name], name, key, count) for name in names]
    x_test, y_test = _cifar_batch(files["test_batch" if count == 10 else "test"], "test", key, count)
    told = loads_pickle(files[_meta_name(count)], _meta_name(count))
    classes = _text_keys(told).get("label_names" if count == 10 else "fine_label_names")
    if not isinstance(classes, list) or len(classes) != count:
        _checks.fail(ValueError, _meta_name(count), f"the names of {count} classes", type(classes).__name__)
    x = torch.from_numpy(np.concatenate([p[0] for p in parts]))
    y = np.concatenate([p[1] for p in parts])
    mean, std = _STATISTICS[f"cifar{count}"]
    return Labelled(
        f"CIFAR-{count}", x, y, torch.from_numpy(x_test), y_test, tuple(map(_as_text, classes)), y, mean, std
    )


def _meta_name(count: int) -> str:
    return "batches.meta" if count == 10 else "meta"


def _cifar_files(path: Path, names: list[str]) -> dict[str, bytes]:
    if not path.exists():
        raise FileNotFoundError(
            f"data: expected a folder or .tar.gz of CIFAR, got {path}, which is not there"
        )
    if path.is_file():
        try:
            with tarfile.open(path) as archive:
                members = {Path(m.name).name: m for m in archive if m.isfile()}
                _all_there(path, names, members)
                return {name: _member(archive, members[name]) for name in names}
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            told = str(error).splitlines()[0]
            raise ValueError(
                f"{path}: expected a whole .tar.gz of CIFAR, got one that fails ({told})"
            ) from error
    inner = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    root = next((p for p in inner if (p / names[0]).is_file()), path)
    _all_there(path, names, {p.name: p for p in root.iterdir()})
    return {name: (root / name).read_bytes() for name in names}


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _all_there(path: Path, names: list[str], found: dict[str, Any]) -> None:
    for name in names:
        if name not in found:
            raise FileNotFoundError(f"data: expected {name} in {path}, got {sorted(found)[:8]}")


def _cifar_batch(data: bytes, name: str, key: str, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    told = _text_keys(loads_pickle(data, name))
    pixels, labels = told.get("data"), told.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        got = getattr(pixels, "shape", type(pixels).__name__)
        _checks.fail(ValueError, f"{name}: data", "uint8 [N, 3072]", got)
    if not isinstance(labels, list) or len(labels) != len(pixels):
        _checks.fail(ValueError, f"{name}: {key}", f"{len(pixels)} labels", type(labels).__name__)
    y = checked_labels(f"{name}: {key}", np.array(labels), count)
    return pixels.reshape(-1, 3, 32, 32), y


def _text_keys(told: Any) -> dict[str, Any]:
    if not isinstance(told, dict):
        _checks.fail(ValueError, "batch", "a dictionary", type(told).__name__)
    return {_as_text(key): value for key, value in told.items()}


def _as_text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


_ARRAYS = ("x", "y", "x_test", "y_test", "y_true", "x_meta", "y_meta", "classes", "mean", "std")


def load_arrays(path: Path, classes: int = 0) -> Labelled:
    """An .npz file: x, y, x_test, y_test, and if there are, y_true, x_meta, y_meta, classes, mean, std.

    x is float32 (any shape) or uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W]; mean and std are of each
    channel of uint8 images (0 and 1 without).
    """
    if not path.exists():
        raise FileNotFoundError(f"data: expected an .npz file, got {path}, which is not there")
    try:
        found = read_npz(path, _ARRAYS)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected an .npz file of arrays, got one that fails ({error})") from error
    for name in ("x", "y", "x_test", "y_test"):
        if name not in found:
            _checks.fail(ValueError, str(path), f"an array {name!r}", array_names(path))
    labels = [checked_labels(n, found[n], MOST_CLASSES) for n in ("y", "y_test")]
    count = max(classes, *(int(y.max(initial=0)) + 1 for y in labels))
    names = tuple(map(str, found["classes"])) if "classes" in found else tuple(map(str, range(count)))
    x = _as_rows("x", found["x"])
    channels = x.shape[1] if x.dtype == torch.uint8 else 0
    mean, std = _statistics(found, channels)
    made = Labelled(
        path.stem, x, _labels("y", found, names), _as_rows("x_test", found["x_test"]),
        _labels("y_test", found, names), names,
        _labels("y_true", found, names) if "y_true" in found else None, mean, std,
        _as_rows("x_meta", found["x_meta"]) if "x_meta" in found else None,
        _labels("y_meta", found, names) if "y_meta" in found else None,
    )  # fmt: skip
    return _check_apart(made)


def _statistics(found: dict[str, NDArray[Any]], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """mean and std of an .npz file, one a channel; 0 and 1 without them; none for rows that are no images."""
    if not channels:
        return (), ()
    told = [np.ravel(found.get(name, np.full(channels, at))) for name, at in (("mean", 0.0), ("std", 1.0))]
    for name, values in zip(("mean", "std"), told, strict=True):
        finite = values.dtype.kind in "fiu" and bool(np.isfinite(values).all())
        if len(values) != channels or not finite or (name == "std" and values.min() <= 0):
            what = f"{channels} finite numbers{' above 0' if name == 'std' else ''}, one a channel"
            _checks.fail(ValueError, name, what, values.tolist())
    mean, std = (tuple(map(float, values)) for values in told)
    return mean, std


def _labels(name: str, found: dict[str, NDArray[Any]], names: tuple[str, ...]) -> NDArray[np.int64]:
    return checked_labels(name, found[name], len(names))


def _as_rows(name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype == np.uint8:
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[1] not in (1, 3) and array.shape[3] in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4:
            _checks.fail(ValueError, name, "images [N, H, W], [N, H, W, C] or [N, C, H, W]", array.shape)
        return torch.from_numpy(np.ascontiguousarray(array))
    if array.dtype.kind != "f":
        _checks.fail(TypeError, name, "floating point or uint8", array.dtype)
    if array.ndim < 2:
        _checks.fail(ValueError, name, "[N, ...]", array.shape)
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.float32)))


def load_pictures(path: str, side: int = 32) -> Labelled:
    """Folders of pictures with train and val or test parts, Hugging Face data sets: uint8, `side` square."""
    from tenfold.selection.transfer.images import load_images

    _checks.integer("side", side, 8, 1 << 12)
    train = load_images(path, "train")
    test = next(
        (load_images(path, part) for part in ("test", "val") if _has_part(path, part)), None
    )  # fmt: skip
    if test is None:
        _checks.fail(ValueError, "data", "a part `test` or `val` beside `train`", path)
    if test.classes != train.classes:
        _checks.fail(ValueError, "data", f"the classes of `train` in the test part ({len(train.classes)})",
                     len(test.classes))  # fmt: skip
    x, x_test = _squares(train, side), _squares(test, side)
    scaled = x.float() / 255
    mean = tuple(scaled.mean((0, 2, 3)).tolist())
    std = tuple(scaled.std((0, 2, 3)).clamp_min(1e-3).tolist())
    return Labelled(
        train.name, x, train.labels.numpy(), x_test, test.labels.numpy(), train.classes, train.labels.numpy(),
        mean, std,
    )  # fmt: skip


def _has_part(path: str, part: str) -> bool:
    from tenfold.selection.transfer.folders import SPLITS

    return path.startswith("hf:") or any((Path(path) / name).is_dir() for name in SPLITS[part])


def _squares(images: Any, side: int) -> Tensor:
    from PIL import Image

    if images.read is None:
        _checks.fail(ValueError, "data", "pictures", "tensors")
    made = np.empty((len(images), side, side, 3), np.uint8)
    for i in range(len(images)):
        made[i] = np.asarray(Image.fromarray(images.read(i)).resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(made.transpose(0, 3, 1, 2).copy())
