"""Processes that each have a part of the rows: who has which, and what they tell each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.ops import topk_stable
from tenfold.ops.distance import kernels
from tenfold.selection.inputs import take, to_tensor

__all__ = ["Alone", "Ranks", "cover", "require_finite", "top", "top_rows"]


class Alone:
    """One process with all rows: what the others have is nothing."""

    rank, world, offset = 0, 1, 0

    def __init__(self, n: int) -> None:
        self.n = self.total = n

    def sum(self, value: Tensor) -> Tensor:
        return value

    def least(self, value: Tensor) -> Tensor:
        return value

    def cat(self, value: Tensor) -> Tensor:
        return value

    def mine(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of the global `rows` are of this process, and their local numbers."""
        own = (rows >= self.offset) & (rows < self.offset + self.n)
        return own, rows[own] - self.offset

    def fetch(self, values: Any, rows: NDArray[np.int64]) -> Tensor:
        """Entries of `values` (each process has those of its own rows) at global `rows`, for all."""
        own, local = self.mine(rows)
        if values is None:
            _checks.fail(ValueError, "values", "one for each row", None)
        found = to_tensor(take(values, local) if not isinstance(values, Tensor) else values[local])
        out = torch.zeros((len(rows), *found.shape[1:]), dtype=_wide(found.dtype))
        out[torch.from_numpy(own)] = found.cpu().to(out.dtype)
        return self.sum(out)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """A dtype that any backend can add."""
    if dtype.is_floating_point:
        return torch.float64 if dtype == torch.float64 else torch.float32
    return torch.int64


class Ranks(Alone):
    """The processes of a group, each with `n` rows."""

    def __init__(self, n: int, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            want = "an initialised torch.distributed (init_process_group)"
            _checks.fail(RuntimeError, "sharded", want, "none")
        self.group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        nccl = "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        self.sizes = [0] * self.world
        self.sizes = self._gather_sizes(n)
        super().__init__(n)
        self.total, self.offset = sum(self.sizes), sum(self.sizes[: self.rank])

    def _gather_sizes(self, n: int) -> list[int]:
        mine = torch.zeros(self.world, dtype=torch.int64)
        mine[self.rank] = n
        return [int(size) for size in self.sum(mine)]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over processes, on the CPU."""
        moved = value.to(self.device, copy=True)
        dist.all_reduce(moved, group=self.group)
        return moved.cpu()

    def least(self, value: Tensor) -> Tensor:
        """The smallest over processes, on the CPU."""
        moved = value.to(self.device, copy=True)
        dist.all_reduce(moved, dist.ReduceOp.MIN, group=self.group)
        return moved.cpu()

    def cat(self, value: Tensor) -> Tensor:
        """The values of all processes behind each other, in the order of the ranks, on the CPU."""
        sizes = self._gather_sizes(len(value))
        padded = torch.zeros((max(sizes), *value.shape[1:]), dtype=value.dtype, device=self.device)
        padded[: len(value)] = value.to(self.device)
        every = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(every, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)]).cpu()


def top_rows(ranks: Alone, scores: NDArray[Any], k: int, largest: bool) -> NDArray[np.int64]:
    rows, _ = top(ranks, torch.from_numpy(np.ascontiguousarray(scores)), k, largest)
    return rows


def top(ranks: Alone, scores: Tensor, k: int, largest: bool = True) -> tuple[NDArray[np.int64], Tensor]:
    """(global rows, scores) of the k best of all processes."""
    local = topk_stable(scores, min(k, len(scores)), largest=largest)
    rows, values = ranks.cat(local.cpu() + ranks.offset), ranks.cat(scores[local].cpu())
    order = np.lexsort((rows.numpy(), -values.numpy() if largest else values.numpy()))[:k]
    return rows.numpy()[order], values[torch.from_numpy(order)]


def cover(
    ranks: Alone, shards: list[Tensor], rows: NDArray[np.int64], distance: Tensor, cosine: bool
) -> tuple[Tensor, Tensor]:
    """Squared distances to L global rows: [L, N] where below `distance`, else that; [L, L] between them.

    The rows come from other processes, and stand as one more shard behind the own ones.
    """
    guests = ranks.fetch(shards, rows).to(shards[0].device, shards[0].dtype)
    n, count = len(distance), len(rows)
    padded = torch.cat([distance, distance.new_full((count,), torch.inf)])
    module = kernels("kcenter_greedy", shards[0].device)
    found = module.cover([*shards, guests], torch.arange(n, n + count), padded, cosine)
    return found[:, :n], found[:, n:].cpu()


def require_finite(ranks: Alone, shards: list[Tensor]) -> None:
    row = kernels("nn_assign", shards[0].device).first_bad_row(shards)
    bad = ranks.total if row < 0 else ranks.offset + row
    first = int(ranks.least(torch.tensor(bad)))
    if first < ranks.total:
        _checks.fail(ValueError, "x", "finite values", f"others in row {first}")
