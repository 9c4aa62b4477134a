"""A matrix of rows that lies in one piece or in several (files, memory maps), never joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

Shards = Sequence[Tensor]
"""Tensors [n_i, d] of one dtype and device; row numbers run on from one to the next."""


class NotFinite(ValueError):
    """Row `row` holds a value that is not finite."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} is not finite")
        self.row = row


def count(shards: Shards) -> int:
    """How many rows there are in all."""
    return sum(s.shape[0] for s in shards)


def blocks(shards: Shards, size: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first row, up to `size` rows), in order; no block reaches over two shards."""
    first = 0
    for shard in shards:
        for at in range(0, shard.shape[0], size):
            yield first + at, shard[at : at + size]
        first += shard.shape[0]


def take(shards: Shards, rows: Tensor) -> Tensor:
    """The rows with these numbers, in their order, as one tensor [len(rows), d]."""
    if len(shards) == 1:
        return shards[0][rows.to(shards[0].device)]
    out = shards[0].new_empty((len(rows), shards[0].shape[1]))
    first = 0
    for shard in shards:
        here = (rows >= first) & (rows < first + shard.shape[0])
        places = here.nonzero()[:, 0].to(shard.device)
        out[places] = shard[rows[here].to(shard.device) - first]
        first += shard.shape[0]
    return out
