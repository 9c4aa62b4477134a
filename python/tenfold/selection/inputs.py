"""What selectors are fitted on: arrays, memory-mapped files, lists of shards, loaders, in one form."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.selection.result import checked_indices

__all__ = ["Inputs", "as_labels", "as_rows", "chunks", "num_rows", "take"]

WARN_BYTES = 64 * 2**20
"""Copies above this size are worth a word."""

CHUNK_BYTES = 32 * 2**20
"""Rows are read in pieces of about this size where one piece after the other will do."""


@dataclass(frozen=True)
class Inputs:
    """Rows to choose from: features, labels, logits, scores and records of training, as far as given."""

    n: int
    X: Any = None
    y: NDArray[np.int64] | None = None
    logits: Any = None
    scores: NDArray[np.float64] | None = None
    dynamics: Any = None
    validation: Inputs | None = None

    def take(self, rows: NDArray[np.int64]) -> Inputs:
        """The same of some rows; the validation set stays whole."""
        return replace(
            self,
            n=len(rows),
            X=None if self.X is None else take(self.X, rows),
            y=None if self.y is None else self.y[rows],
            logits=None if self.logits is None else [take(z, rows) for z in self.logits],
            scores=None if self.scores is None else self.scores[rows],
            dynamics=None if self.dynamics is None else self.dynamics.take(rows),
        )


def as_rows(name: str, value: Any) -> Any:
    """`value` as a tensor or array [N, d] of float32, bfloat16 or float16, or a list of such shards.

    float64 and integers are rounded to float32, in which everything is computed. A path names a .npy file,
    which is mapped into memory.

    Raises:
        TypeError: no numbers, or sparse.
        ValueError: not two-dimensional; shards of different widths or dtypes.
    """
    if isinstance(value, (str, os.PathLike)):
        value = mapped(Path(value))
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "shape"):
        shards = [as_rows(f"{name}[{i}]", shard) for i, shard in enumerate(value)]
        for i, shard in enumerate(shards):
            if shard.shape[1] != shards[0].shape[1] or shard.dtype != shards[0].dtype:
                want = f"{shards[0].dtype} [N, {shards[0].shape[1]}] as {name}[0]"
                _checks.fail(ValueError, f"{name}[{i}]", want, f"{shard.dtype} {list(shard.shape)}")
        return shards
    if isinstance(value, Tensor):
        value = value.detach()
        if value.layout != torch.strided or value.is_complex():
            _checks.fail(TypeError, name, "a dense tensor of numbers", f"{value.layout} {value.dtype}")
        rows: Any = value
        wanted = value.dtype in (torch.float32, torch.bfloat16, torch.float16)
    else:
        if type(value).__module__.partition(".")[0] == "cupy":
            return as_rows(name, _arrays.as_tensor(name, value, write=False))
        if hasattr(value, "toarray"):
            _checks.fail(TypeError, name, "a dense array", type(value).__name__)
        rows = value if isinstance(value, np.ndarray) else np.asarray(value)
        if rows.dtype.kind not in "fiub":
            _checks.fail(TypeError, name, "numbers", rows.dtype)
        wanted = rows.dtype in (np.float32, np.float16)
    if rows.ndim != 2:
        _checks.fail(ValueError, name, "shape [N, d]", list(rows.shape))
    return rows if wanted else _to_float32(name, rows)


def _to_float32(name: str, rows: Any) -> Any:
    size = 4 * rows.shape[0] * rows.shape[1]
    if size > WARN_BYTES:
        warnings.warn(f"{name}: {size / 2**20:.0f} MiB copied, {rows.dtype} to float32", stacklevel=5)
    return rows.float() if isinstance(rows, Tensor) else rows.astype(np.float32)


def mapped(path: Path) -> NDArray[Any]:
    """The array in a .npy file, mapped into memory, not read."""
    if path.suffix.lower() != ".npy":
        _checks.fail(ValueError, "path", "a name that ends in .npy", path.name)
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def num_rows(X: Any) -> int:
    """Rows of an array, or of all shards."""
    return sum(len(shard) for shard in X) if isinstance(X, list) else len(X)


def width(X: Any) -> int:
    """Columns of an array, or of each shard."""
    return int((X[0] if isinstance(X, list) else X).shape[1])


def take(X: Any, rows: NDArray[np.int64]) -> Any:
    """Some rows of an array or of a list of shards, in the order asked for, as one array in memory."""
    if isinstance(X, Tensor):
        return X[torch.from_numpy(rows).to(X.device)]
    if not isinstance(X, list):
        return np.asarray(X[rows])
    ends = np.cumsum([len(shard) for shard in X])
    shard_of = np.searchsorted(ends, rows, side="right")
    like = X[0]
    shape = (len(rows), like.shape[1])
    if isinstance(like, Tensor):
        out: Any = torch.empty(shape, dtype=like.dtype, device=like.device)
    else:
        out = np.empty(shape, like.dtype)
    for s in np.unique(shard_of):
        mine = np.flatnonzero(shard_of == s)
        out[mine] = take(X[s], rows[mine] - (ends[s] - len(X[s])))
    return out


def chunks(X: Any, size: int | None = None) -> Iterator[tuple[int, Any]]:
    """(first row, piece) of an array or of shards; pieces of `size` rows, by default of about 32 MiB."""
    start = 0
    for shard in X if isinstance(X, list) else [X]:
        item = shard.element_size() if isinstance(shard, Tensor) else shard.itemsize
        step = size or max(1, CHUNK_BYTES // max(1, item * shard.shape[1]))
        for at in range(0, len(shard), step):
            piece = shard[at : at + step]
            yield start + at, piece if isinstance(piece, Tensor) else np.array(piece)
        start += len(shard)


def to_tensor(piece: Any) -> Tensor:
    """A piece of rows as a tensor that shares its memory where it may be written."""
    if isinstance(piece, Tensor):
        return piece
    array = np.asarray(piece)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def whole_tensor(X: Any) -> Tensor:
    """All rows as one tensor in memory."""
    if isinstance(X, Tensor):
        return X
    pieces = [to_tensor(piece) for _, piece in chunks(X)]
    return torch.cat(pieces) if pieces else torch.zeros(0, width(X))


def as_labels(name: str, value: Any, n: int | None = None) -> NDArray[np.int64]:
    """Class numbers int64 [n]. Text and other labels are numbered in sorted order.

    Raises:
        ValueError: another length, a negative class, or labels that are no classes.
    """
    if isinstance(value, (str, os.PathLike)):
        value = mapped(Path(value))
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        _checks.fail(ValueError, name, "shape [N]", list(array.shape))
    if n is not None and len(array) != n:
        _checks.fail(ValueError, name, f"a label for each of {n} rows", len(array))
    if array.dtype.kind == "f":
        whole = array == np.floor(array)
        if not whole.all():
            _checks.fail(ValueError, name, "classes", array[~whole][0])
    elif array.dtype.kind not in "iub":
        return np.unique(array, return_inverse=True)[1].astype(np.int64)
    labels = array.astype(np.int64)
    if len(labels) and labels.min() < 0:
        _checks.fail(ValueError, name, "classes of at least 0", int(labels.min()))
    return labels


def is_loader(value: Any) -> bool:
    """Whether rows come batch by batch: a DataLoader, or anything like one."""
    return isinstance(value, torch.utils.data.DataLoader) or (
        hasattr(value, "__iter__") and hasattr(value, "batch_size") and hasattr(value, "dataset")
    )


@dataclass(frozen=True)
class Batch:
    """One batch of a loader: rows, and labels and row numbers where it has them."""

    rows: Tensor
    labels: Tensor | None = None
    index: Tensor | None = None


_KEYS = {
    "rows": ("features", "embeddings", "logits", "x"),
    "labels": ("labels", "label", "targets", "y"),
    "index": ("index", "idx", "indices"),
}


def batches(name: str, loader: Any) -> Iterator[Batch]:
    """The batches of a loader: x, (x,), (x, y), (x, y, row numbers), or a dict with such keys.

    Without row numbers the loader has to go through its data set in order, once.

    Raises:
        ValueError: it shuffles or draws and gives no row numbers: rows could not be told apart.
    """
    sampler = getattr(loader, "sampler", None)
    ordered = sampler is None or isinstance(sampler, torch.utils.data.SequentialSampler)
    plain = not hasattr(loader, "batch_sampler") or type(loader.batch_sampler) in (
        torch.utils.data.BatchSampler,
        type(None),
    )
    for batch in loader:
        parts = _parts(name, batch)
        if parts.index is None and not (ordered and plain):
            want = "a loader in the order of its data set, or batches with row numbers (x, y, index)"
            _checks.fail(ValueError, name, want, type(sampler if plain else loader.batch_sampler).__name__)
        yield parts


def _parts(name: str, batch: Any) -> Batch:
    if isinstance(batch, Mapping):
        found = {
            part: next((torch.as_tensor(batch[key]) for key in keys if key in batch), None)
            for part, keys in _KEYS.items()
        }
        rows = found.pop("rows")
        if rows is None:
            _checks.fail(ValueError, name, f"batches with one of {_KEYS['rows']}", list(batch))
        return Batch(rows, **found)
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        if not 1 <= len(batch) <= 3:
            _checks.fail(ValueError, name, "batches x, (x, y) or (x, y, row numbers)", f"{len(batch)} parts")
        return Batch(*(torch.as_tensor(part) for part in batch))
    return Batch(torch.as_tensor(batch))


def gather(
    name: str, loader: Any, path: str | Path | None = None, *, verbose: bool = False
) -> tuple[Any, NDArray[np.int64] | None]:
    """All rows of a loader as one array [N, d], and its labels if it has them.

    Rows with more than two dimensions are flattened. The dtype is that of the batches (bfloat16 becomes
    float32, as NumPy has none). `path` takes the rows to a .npy file, written aside, renamed, and mapped.

    Raises:
        ValueError: batches of different widths, row numbers that are missing or stand twice, labels in some
            batches only, or a shuffled loader without row numbers.
    """
    n = dataset_length(name, loader)
    if path is None:
        return _gathered(name, loader, n, None, verbose)
    from tenfold.runs.files import replacing

    with replacing(Path(path)) as aside:
        rows, labels = _gathered(name, loader, n, aside, verbose)
        rows.flush()
        del rows
    return mapped(Path(path)), labels


def _gathered(
    name: str, loader: Any, n: int, aside: Path | None, verbose: bool
) -> tuple[Any, NDArray[np.int64] | None]:
    out: Any = None
    labels: NDArray[np.int64] | None = None
    seen = np.zeros(n, bool)
    at = 0
    for batch in with_progress(batches(name, loader), f"reading {name}", verbose, _length(loader)):
        rows = batch.rows.detach().cpu()
        rows = (rows.float() if rows.dtype == torch.bfloat16 else rows).reshape(len(rows), -1).numpy()
        if out is None:
            out = _new(aside, (n, rows.shape[1]), rows.dtype)
            labels = None if batch.labels is None else np.empty(n, np.int64)
        where = np.arange(at, at + len(rows)) if batch.index is None else batch.index.cpu().numpy()
        at += len(rows)
        checked_indices(f"{name} row numbers", where, n)
        if seen[where].any():
            _checks.fail(ValueError, name, "every row once", f"row {where[seen[where]][0]} again")
        if rows.shape[1] != out.shape[1]:
            _checks.fail(ValueError, name, f"rows of {out.shape[1]} numbers", rows.shape[1])
        if (labels is None) != (batch.labels is None):
            _checks.fail(ValueError, name, "labels in all batches or in none", "some")
        out[where], seen[where] = rows, True
        if labels is not None and batch.labels is not None:
            labels[where] = as_labels(f"{name} labels", batch.labels, len(rows))
    if not seen.all():
        _checks.fail(ValueError, name, f"all {n} rows", f"none of number {int(np.argmin(seen))}")
    return (np.zeros((0, 1), np.float32) if out is None else out), labels


def _new(aside: Path | None, shape: tuple[int, int], dtype: Any) -> Any:
    if aside is None:
        return np.empty(shape, dtype)
    return np.lib.format.open_memmap(aside, "w+", dtype, shape)


def dataset_length(name: str, loader: Any) -> int:
    """Rows of a loader's data set; ValueError for a stream, which has no numbers to choose."""
    try:
        return len(loader.dataset)
    except TypeError:
        _checks.fail(ValueError, name, "a loader of a data set with a length", type(loader.dataset).__name__)


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def with_progress(steps: Iterator[Any], label: str, verbose: bool, total: int | None) -> Iterator[Any]:
    """The same steps, counted with rate and time left where asked for and countable."""
    if not verbose or total is None:
        yield from steps
        return
    from tenfold.runs.progress import Progress

    with Progress(total, label) as progress:
        for step in steps:
            yield step
            progress.advance()
