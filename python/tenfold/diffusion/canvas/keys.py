"""Which pictures an answer set has: one for each (style, object, seed), in one order everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.canvas.vocabulary import Canvas
from tenfold.ops.zo import zo_sample

__all__ = [
    "Key",
    "answer_keys",
    "budget_keys",
    "cell_noise",
    "file_stem",
    "pair_keys",
    "shard_keys",
    "target_keys",
]


class Key(NamedTuple):
    """One picture: its style and object as the canvas spells them, and its seed."""

    style: str
    object: str
    seed: int


def file_stem(key: Key) -> str:
    """The published file name without its ending: "Van_Gogh_Dogs_seed188"."""
    return f"{key.style}_{key.object}_seed{key.seed}"


def answer_keys(
    canvas: Canvas,
    *,
    seeds: Sequence[int] | None = None,
    cells: Iterable[tuple[str, str]] | None = None,
) -> tuple[Key, ...]:
    """All pictures, for each seed style by style: the published order. `cells`, `seeds`: only these.

    Raises:
        ValueError: an unknown name, a cell or seed twice, none at all.
    """
    chosen = [
        _checks.integer("seeds", one, 0, 2**32 - 1) for one in (canvas.seeds if seeds is None else seeds)
    ]
    if cells is None:
        wanted = list(canvas.cells)
    else:
        wanted = [(canvas.style(style), canvas.object(thing)) for style, thing in cells]
    for what, values in (("seeds", chosen), ("cells", wanted)):
        if not values:
            _checks.fail(ValueError, what, "at least one", "none")
        if len(set(values)) != len(values):
            _checks.fail(ValueError, what, "each once", f"{len(values) - len(set(values))} repeated")
    order = {cell: i for i, cell in enumerate(canvas.cells)}
    wanted.sort(key=order.__getitem__)
    return tuple(Key(*cell, seed) for seed in chosen for cell in wanted)


def target_keys(canvas: Canvas, target: str, *, seeds: Sequence[int] | None = None) -> tuple[Key, ...]:
    """The pictures of one style with every object, or of one object in every style."""
    domain, name = canvas.find(target)
    cells = [cell for cell in canvas.cells if cell[0 if domain == "style" else 1] == name]
    return answer_keys(canvas, seeds=seeds, cells=cells)


def pair_keys(
    canvas: Canvas, style: str, object: str, *, seeds: Sequence[int] | None = None
) -> tuple[Key, ...]:
    """The pictures of one cell."""
    return answer_keys(canvas, seeds=seeds, cells=[(style, object)])


def shard_keys(keys: Sequence[Key], shard: tuple[int, int] | None) -> tuple[Key, ...]:
    """Part i of n, (i, n) with 0 <= i < n: every n-th picture; all for None.

    Raises:
        TypeError, ValueError: no such pair.
    """
    if shard is None:
        return tuple(keys)
    if not isinstance(shard, tuple) or len(shard) != 2:
        _checks.fail(TypeError, "shard", "a pair (i, n)", _checks.describe(shard))
    n = _checks.integer("shard", shard[1], 1, 2**31)
    i = _checks.integer("shard", shard[0], 0, n - 1)
    return tuple(keys[i::n])


def budget_keys(
    canvas: Canvas,
    budget: int,
    *,
    seeds: Sequence[int] | None = None,
    target: str | None = None,
    draw: int = 0,
) -> tuple[Key, ...]:
    """`budget` pictures of all, spread evenly: no style, and no object, is ahead of another by more than the
    shapes of the grid make necessary, and every cell comes once before one comes twice.

    Args:
        target: a style or an object all of whose pictures are taken, first; UA then has its full number.
        draw: seed of the choice.

    Raises:
        ValueError: fewer than the target's pictures, or more than there are.
    """
    chosen = [key.seed for key in answer_keys(canvas, seeds=seeds, cells=[canvas.cells[0]])]
    first = target_keys(canvas, target, seeds=chosen) if target is not None else ()
    total = len(canvas.cells) * len(chosen)
    budget = _checks.integer("budget", budget, max(1, len(first)), total)
    rng = np.random.default_rng(draw)
    rows, columns = len(canvas.styles), len(canvas.objects)
    style_order, object_order = rng.permutation(rows), rng.permutation(columns)
    found = dict.fromkeys(first)
    # Diagonals: one picture of each style, objects in turn. A second round has other seeds of the same cells.
    for again in range(len(chosen)):
        for diagonal in range(columns):
            for row in range(rows):
                if len(found) == budget:
                    break
                style = canvas.styles[style_order[row]]
                thing = canvas.objects[object_order[(row + diagonal) % columns]]
                found.setdefault(Key(style, thing, chosen[(again + diagonal) % len(chosen)]))
    wanted = set(found)
    return tuple(key for key in answer_keys(canvas, seeds=chosen) if key in wanted)


def cell_noise(canvas: Canvas, key: Key, shape: Sequence[int]) -> Tensor:
    """Start noise of one picture, float32 `shape`: a function of (seed, index of the style, index of the
    object), so the same for any batch, order, part and machine. Counter-based (`tenfold.ops.zo_sample`)."""
    style, thing = canvas.styles.index(key.style), canvas.objects.index(key.object)
    return zo_sample(key.seed, stream=style, query=thing, n=int(torch.Size(shape).numel())).view(tuple(shape))
