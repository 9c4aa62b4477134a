"""The weights of the block that comes next, read by one background thread while the present one computes."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold.llm._weight_store import WeightStore

__all__ = ["ReadAhead"]


class ReadAhead:
    """One request at a time: `start` it, `take` it when the weights are needed.

    On the CPU a request maps the files of the tensors and reads a byte of each page, so that the pages lie in
    memory when they are needed; what is handed over is the stored tensor itself, so the values cannot be old.
    On a GPU it copies the tensors through pinned memory on a stream of its own; copies of tensors that were
    written since (`forget`) are not handed over.
    """

    def __init__(self, store: WeightStore, device: torch.device) -> None:
        self.store, self.device = store, device
        self._thread: ThreadPoolExecutor | None = None
        self._pending: tuple[tuple[int, ...], Future[dict[int, Tensor]]] | None = None
        self._old: set[int] = set()
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, numbers: Sequence[int]) -> None:
        """Begin to read these tensors; nothing to do for host memory on the CPU."""
        if self.store.folder is None and self._stream is None:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="tenfold-read-ahead")
        self._old = set()
        wanted = tuple(dict.fromkeys(numbers))
        self._pending = wanted, self._thread.submit(self._read, wanted)

    def take(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        """What was read of these tensors, on `device`; waits for a request that is under way.

        Raises OSError if a file cannot be read.
        """
        if self._pending is None:
            return {}
        asked, future = self._pending
        self._pending = None
        if not set(asked) & set(numbers):
            return {}  # the forward went another way; its memory goes when the thread is done
        found = future.result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in found.values():
                tensor.record_stream(current)
        return {n: tensor for n, tensor in found.items() if n in numbers and n not in self._old}

    def forget(self, number: int) -> None:
        """A tensor is being written: a copy of it that was begun before is not to be used."""
        if self._stream is not None:
            self._old.add(number)

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._pending = None
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None

    def _read(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        if self._stream is None:
            return {number: _paged_in(self.store.get(number)) for number in numbers}
        found = {}
        with torch.cuda.stream(self._stream), torch.no_grad():
            for number in numbers:
                pinned = self.store.get(number).pin_memory()
                found[number] = pinned.to(self.device, non_blocking=True)
        return found


def _paged_in(tensor: Tensor) -> Tensor:
    """The tensor, after a byte of each of its pages was read (by numpy, which lets other threads run)."""
    if tensor.numel():
        np.add.reduce(tensor.reshape(-1).view(torch.uint8).numpy()[:: mmap.PAGESIZE], dtype=np.uint64)
    return tensor
