"""Which rows meet in a step: forget rows in a new order per epoch, each with retain rows drawn at random.

The draws are functions of (seed, epoch, place): neither the number of workers nor of processes changes them,
and a run that goes on after a kill draws what it would have drawn.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from tenfold import _checks

__all__ = ["epoch_pairs", "sample_forget"]

T = TypeVar("T")


def epoch_pairs(
    forget: int,
    retain: int,
    *,
    epoch: int,
    seed: int = 0,
    anchor: str = "forget",
    ratio: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """``(forget indices, retain indices)`` of each place of an epoch.

    Args:
        forget, retain: number of rows of each set; ``retain=0`` leaves the second list empty.
        epoch: from 0.
        anchor: ``"forget"``: every forget row once, with ``ratio`` retain rows drawn uniformly without
            repetition within the place; ``"retain"``: the other way round.
        ratio: rows of the other set per row of the anchor set.
        rank, world_size: every process gets each ``world_size``-th place, starting with its rank.

    Raises:
        ValueError: an empty anchor set; a ratio larger than the other set.
    """
    _checks.choice("anchor", anchor, ("forget", "retain"))
    _checks.integer("world_size", world_size, 1, 2**31)
    _checks.integer("rank", rank, 0, world_size - 1)
    _checks.integer("epoch", epoch, 0, 2**62)
    _checks.seed("seed", seed)
    main, other = (forget, retain) if anchor == "forget" else (retain, forget)
    _checks.integer(anchor, main, 1, 2**62, "at least one row")
    if other:
        _checks.integer("ratio", ratio, 1, other)
    order = np.random.default_rng([seed, epoch, 0]).permutation(main)
    places: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for place in range(rank, main, world_size):
        drawn: tuple[int, ...] = ()
        if other:
            generator = np.random.default_rng([seed, epoch, 1, place])
            drawn = tuple(int(i) for i in generator.choice(other, size=ratio, replace=False))
        mine = (int(order[place]),)
        places.append((mine, drawn) if anchor == "forget" else (drawn, mine))
    return places


def sample_forget(
    rows: Sequence[T], forget_ratio: float, *, dataset_seed: int = 1000
) -> tuple[list[T], list[T]]:
    """``(chosen, rest)``: SOUL's choice of forget rows.

    Args:
        rows: all candidates.
        forget_ratio: a share in (0, 1], or a number of rows above 1.
        dataset_seed: of Python's generator; the same seed chooses the rows that the published code chooses.

    Raises:
        ValueError: a ratio that is not positive, or asks for more rows than there are.
    """
    ratio = _checks.real("forget_ratio", forget_ratio, positive=True)
    count = int(ratio) if ratio > 1 else int(len(rows) * ratio)
    if not 1 <= count <= len(rows):
        raise ValueError(f"forget_ratio: expected 1 to {len(rows)} rows, got {forget_ratio:g} ({count} rows)")
    chosen = random.Random(dataset_seed).sample(range(len(rows)), count)
    taken = set(chosen)
    return [rows[i] for i in chosen], [row for i, row in enumerate(rows) if i not in taken]
