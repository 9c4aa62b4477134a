"""`Sophia` in `transformers.Trainer`: refreshing the curvature at the right moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from tenfold import _checks

from .sophia import Sophia

FROM_TRAINER = ("train", "forget", "retain", "both")
Source = str | Iterable[Any] | Callable[[int], Iterable[Any]]


class SophiaCallback:
    """Refreshes the curvature of a `Sophia` that `transformers.Trainer` steps.

        Trainer(model, args, ..., optimizers=(Sophia(...), None), callbacks=[SophiaCallback(10)])

    The refresh comes between two steps, where no gradient is alive: before the first micro-batch of a step,
    or, in mode "liuhong99", at the end of one (`Sophia.hessian_due`).  Its batches are drawn from its own
    permutation of the data, a function of `seed` and the number of the refresh: training sees its batches in
    the order it always does, and a resumed run refreshes with the batches that it would have had.

    Args:
        k: steps between refreshes; None leaves `update_interval` of the optimizer as it is.
        source: where batches come from.  "train": the trainer's data set and collator.  "retain", "forget" or
            "both": that part of batches that are dicts with the keys "retain" and "forget".  Or an iterable
            that can be run through again and again (a list, a DataLoader with its own generator), of which
            each refresh takes the next `num_batches`, or a callable from the number of the refresh to
            batches.  Every rank takes its own: of an iterable, batches rank, rank + world size, ...
        num_batches: of one refresh, on each rank.
        batch_size: for the sources of the trainer; None for its batch size.
        seed: of the permutation.
        estimate: further arguments of `Sophia.estimate_hessian` (estimator, predict, loss, max_norm, ...).

    Adds `sophia_win_rate`, `sophia_update_rms`, `sophia_changed`, `sophia_nonfinite` and `sophia_rho` to the
    trainer's `log_history` and to what callbacks behind this one are told.
    """

    def __init__(
        self,
        k: int | None = None,
        source: Source = "train",
        *,
        num_batches: int = 1,
        batch_size: int | None = None,
        seed: int = 0,
        **estimate: Any,
    ) -> None:
        self.k = None if k is None else _checks.integer("k", k, 1, 1 << 62)
        if isinstance(source, str):
            _checks.choice("source", source, FROM_TRAINER)
        elif not callable(source) and not isinstance(source, Iterable):
            _checks.fail(TypeError, "source", "a name, an iterable or a callable", type(source).__name__)
        elif isinstance(source, Iterator):
            got = type(source).__name__
            _checks.fail(TypeError, "source", "an iterable that starts anew each time", got)
        self.source = source
        self.num_batches = _checks.integer("num_batches", num_batches, 1, 1 << 30)
        self.batch_size = (
            None if batch_size is None else _checks.integer("batch_size", batch_size, 1, 1 << 30)
        )
        self.seed = _checks.seed("seed", seed)
        self.estimate = estimate

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Events of the trainer that nothing is done at."""
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(name)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = _sophia(kwargs.get("optimizer"))
        if self.k is not None:
            optimizer.update_interval = self.k

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = _sophia(kwargs.get("optimizer"))
        if optimizer.mode != "liuhong99":
            self.refresh_if_due(optimizer, kwargs["model"], kwargs.get("train_dataloader"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = _sophia(kwargs.get("optimizer"))
        if optimizer.mode == "liuhong99":
            self.refresh_if_due(optimizer, kwargs["model"], kwargs.get("train_dataloader"))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        optimizer = _find(kwargs.get("optimizer"))
        if logs is None or optimizer is None or not optimizer.num_updates:
            return
        numbers = optimizer.stats(reduce=_is_distributed())
        own = {f"sophia_{n}": numbers[n] for n in ("win_rate", "update_rms", "changed", "nonfinite")}
        own["sophia_rho"] = float(optimizer.param_groups[0]["rho"])
        logs.update(own)
        if state.log_history:  # the trainer has written its entry before it asks
            state.log_history[-1].update(own)

    def refresh_if_due(self, optimizer: Sophia, model: torch.nn.Module, dataloader: Any = None) -> bool:
        """Refresh the curvature if it is due; for loops of your own.  Tells whether it was."""
        if not optimizer.hessian_due:
            return False
        batches = self.batches(optimizer.num_refreshes, dataloader)
        optimizer.estimate_hessian(model, batches, **self.estimate)
        return True

    def batches(self, refresh: int, dataloader: Any = None) -> Iterator[Any]:
        """The batches of refresh number `refresh` on this rank."""
        if callable(self.source) and not isinstance(self.source, Iterable):
            yield from self.source(refresh)
            return
        rank, size = _rank_and_size()
        first = refresh * self.num_batches * size + rank
        numbers = range(first, first + self.num_batches * size, size)
        if not isinstance(self.source, str):
            yield from _cycled(self.source, numbers)
            return
        if dataloader is None:
            _checks.fail(ValueError, "source", "an iterable where there is no trainer", repr(self.source))
        for number in numbers:
            yield from self._parts(self._draw(dataloader, number))

    def _draw(self, dataloader: Any, number: int) -> Any:
        """Batch `number` of the data in the order of permutation after permutation."""
        data, size = dataloader.dataset, self.batch_size or _batch_size(dataloader)
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            got = type(data).__name__
            _checks.fail(TypeError, "source", "an iterable, for a data set without indices", got)
        n = len(data)
        rows = [_element(self.seed, n, number * size + i) for i in range(size)]
        return dataloader.collate_fn([data[row] for row in rows])

    def _parts(self, batch: Any) -> Iterator[Any]:
        if self.source == "train":
            yield batch
            return
        names = ("forget", "retain") if self.source == "both" else (self.source,)
        for name in names:
            if not isinstance(batch, dict) and not hasattr(batch, "keys"):
                got = type(batch).__name__
                _checks.fail(TypeError, "source", f"batches that are dicts with the key {name!r}", got)
            if name not in batch:
                _checks.fail(ValueError, "source", f"a part {name!r} in each batch", sorted(batch.keys()))
            yield batch[name]


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _find(optimizer: Any) -> Sophia | None:
    """The optimizer inside accelerate's wrapper."""
    while optimizer is not None and not isinstance(optimizer, Sophia):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def _sophia(optimizer: Any) -> Sophia:
    found = _find(optimizer)
    if found is None:
        got = type(optimizer).__name__
        _checks.fail(TypeError, "optimizers", "a tenfold.optim.Sophia for SophiaCallback", got)
    return found


def _batch_size(dataloader: Any) -> int:
    size = getattr(dataloader, "batch_size", None)
    if size is None:
        size = getattr(getattr(dataloader, "batch_sampler", None), "batch_size", None)
    if size is None:
        _checks.fail(ValueError, "batch_size", "a number, for a loader that has none", None)
    return int(size)


def _element(seed: int, n: int, place: int) -> int:
    """Element at `place` of permutation after permutation of range(n)."""
    key = (seed, n, place // n)
    if key not in _orders:
        _orders.clear()  # one at a time
        generator = torch.Generator().manual_seed((seed + place // n) % (1 << 63))
        _orders[key] = torch.randperm(n, generator=generator)
    return int(_orders[key][place % n])


_orders: dict[tuple[int, int, int], torch.Tensor] = {}


def _cycled(source: Iterable[Any], numbers: range) -> Iterator[Any]:
    """The items at these numbers of the source run through again and again."""
    if isinstance(source, Sequence):
        for number in numbers:
            yield source[number % len(source)]
        return
    wanted, at = iter(numbers), 0
    nxt = next(wanted, None)
    while nxt is not None:
        before = at
        for item in source:
            if at == nxt:
                yield item
                nxt = next(wanted, None)
                if nxt is None:
                    return
            at += 1
        if at == before:
            _checks.fail(ValueError, "source", "at least one batch", "none")


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank_and_size() -> tuple[int, int]:
    if not _is_distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
