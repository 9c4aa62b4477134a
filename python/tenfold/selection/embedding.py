"""What selectors read, from a model and a loader: features before the last layer, logits, labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.selection.inputs import as_labels, batches, dataset_length, mapped, with_progress

__all__ = ["Embedding", "embed"]

_DTYPES = {torch.float32: np.float32, torch.float16: np.float16}


class Embedding(NamedTuple):
    """features [N, d], logits [N, C], labels int64 [N] or None: arrays, or memory-mapped files."""

    features: Any
    logits: Any
    labels: NDArray[np.int64] | None


def embed(
    model: torch.nn.Module,
    loader: Any,
    *,
    layer: str | torch.nn.Module | None = None,
    folder: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    verbose: bool = False,
) -> Embedding:
    """One pass over the data: the inputs of the last layer, and what comes out of the model.

    The model is in evaluation mode meanwhile, and afterwards in the mode that it was in: batch statistics
    would make a sample's features depend on its batch.

    Args:
        model: called with a batch x on its device. Its output is the logits, or has them as `logits`.
        loader: batches x, (x, y) or (x, y, row numbers); without row numbers in the order of the data set.
        layer: whose inputs are the features: a module of the model, or its name. By default the last
            `torch.nn.Linear`, in the order of `model.modules()`. Inputs with more than two dimensions are
            flattened.
        folder: write features.npy and logits.npy there, aside, then renamed, and map them instead of holding
            them.
        dtype: of the features, float32 or float16. Logits are float32.
        device: where the model runs; by default where its first parameter is.
        verbose: show progress.

    Raises:
        ValueError: a model without such a layer, or that did not call it once per batch; a shuffled loader
            without row numbers; rows that are missing.
    """
    _checks.dtype("dtype", dtype, tuple(_DTYPES))
    module = _last_layer(model, layer)
    device = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    n = dataset_length("loader", loader)
    seen: list[Tensor] = []
    labels: NDArray[np.int64] | None = None
    known = np.zeros(n, bool)
    stores: tuple[Any, Any] | None = None
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_evaluating(model))
        hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        stack.callback(hook.remove)
        names = _files(stack, folder)
        at = 0
        for batch in with_progress(batches("loader", loader), "features", verbose, len(loader)):
            seen.clear()
            out = model(batch.rows.to(device))
            logits = getattr(out, "logits", out)
            if len(seen) != 1 or len(seen[0]) != len(batch.rows) or logits.ndim != 2:
                want = "a layer that is called once with the whole batch, and logits [B, C]"
                _checks.fail(ValueError, "layer", want, f"{len(seen)} calls, logits {list(logits.shape)}")
            rows = seen[0].reshape(len(batch.rows), -1)
            if stores is None:
                stores = _new(names[0], n, rows, _DTYPES[dtype]), _new(names[1], n, logits, np.float32)
                labels = None if batch.labels is None else np.zeros(n, np.int64)
            where = np.arange(at, at + len(rows)) if batch.index is None else batch.index.cpu().numpy()
            at += len(rows)
            if known[where].any():
                _checks.fail(ValueError, "loader", "every row once", f"row {where[known[where]][0]} again")
            known[where] = True
            stores[0][where] = rows.to(dtype).cpu().numpy()
            stores[1][where] = logits.float().cpu().numpy()
            if labels is not None and batch.labels is not None:
                labels[where] = as_labels("labels", batch.labels, len(rows))
        if stores is None or not known.all():
            got = f"none of number {int(np.argmin(known))}" if n else "none"
            _checks.fail(ValueError, "loader", f"all {n} rows, at least one", got)
        if folder is None:
            return Embedding(*stores, labels)
        for store in stores:
            store.flush()
        stores = None
    return Embedding(mapped(Path(folder) / "features.npy"), mapped(Path(folder) / "logits.npy"), labels)


def _files(stack: ExitStack, folder: str | Path | None) -> tuple[Path | None, Path | None]:
    """Names beside the two files, which take their places when all went well."""
    if folder is None:
        return None, None
    from tenfold.runs.files import replacing

    first, second = (
        stack.enter_context(replacing(Path(folder) / f"{n}.npy")) for n in ("features", "logits")
    )
    return first, second


def _new(path: Path | None, n: int, like: Tensor, dtype: Any) -> Any:
    shape = (n, like.shape[1])
    return np.empty(shape, dtype) if path is None else np.lib.format.open_memmap(path, "w+", dtype, shape)


def _last_layer(model: torch.nn.Module, layer: str | torch.nn.Module | None) -> torch.nn.Module:
    if isinstance(layer, torch.nn.Module):
        return layer
    known = dict(model.named_modules())
    if layer is not None:
        if layer not in known:
            _checks.fail(ValueError, "layer", "the name of a module of the model", repr(layer))
        return known[layer]
    linear = [module for module in known.values() if isinstance(module, torch.nn.Linear)]
    if not linear:
        _checks.fail(ValueError, "layer", "a module (the model has no torch.nn.Linear)", None)
    return linear[-1]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for a block, then each module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
