"""What a device does around its kernels, in PyTorch on that device: products by blocks, error bounds, pools.

`launch` are the kernels of CUDA or Triton. Products decide nothing: whatever they leave open is measured
again by these in float64, so results are those of distance_reference.py. k-center waits for the device once
per pass, k-means once per iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import distance_reference
from .distance_reference import Cover
from .shards import NotFinite, Shards, blocks, count, take

UNIT = 2.0**-24
BYTES = 128 << 20
"""Of products, and of rows in another form, at a time."""
POOL_PER_PICK = 4
MOST_POOL = 1024


class Columns(NamedTuple):
    """The few rows that all others meet. `operand` [m, d] is what products take."""

    raw: Tensor  # float32 [m, d]
    operand: Tensor
    norms: Tensor  # float32 [m], squared
    scale: Tensor | None  # float64 [m]: 1 / length, for cosine
    shift: Tensor | None  # float32 [d]
    left_out: float  # the largest share of a row that its operand leaves out
    share: float  # of |a|^2 + |b|^2, by which a product's rounding moves a distance at most


class Meeting(NamedTuple):
    """A block of rows and its products with the columns; what the kernels take."""

    x: Tensor
    products: Tensor
    row_norms: Tensor
    errors: Tensor
    columns: Columns
    scale: Tensor | None


class Launches(NamedTuple):
    """The kernels. look(meeting, k, index, nearest) writes the k nearest columns of each row.

    cover(meeting, numbers, distance, owner, out) lowers distances and names owners, or writes the lower ones
    for each column into `out` [columns, rows].

    pool(rows, scale, between) writes the distances of all pairs.

    choose(between, distance, rows, complete, chosen, value, found) plays the greedy choice through.

    sums(x, order, starts, sums) adds the rows of each cluster.
    """

    look: Callable[[Meeting, int, Tensor, Tensor], None]
    cover: Callable[[Meeting, Tensor, Tensor, Tensor, Tensor | None], None]
    pool: Callable[[Tensor, Tensor | None, Tensor], None]
    choose: Callable[[Tensor, Tensor, Tensor, bool, Tensor, Tensor, Tensor], None]
    sums: Callable[[Tensor, Tensor, Tensor, Tensor], None]


def inverse_lengths(rows: Tensor) -> Tensor:
    """float64; 0 for rows of zeros."""
    length = rows.double().square().sum(1).sqrt()
    return torch.where(length > 0, 1.0 / length, 0.0)


def middle(shards: Shards) -> Tensor | None:
    """A point amid the rows where these lie far from 0, else None; up to 256 rows are looked at."""
    n = count(shards)
    if n == 0:
        return None
    some = take(shards, torch.arange(min(n, 256)) * n // min(n, 256)).double()
    point = some.mean(0)
    far = bool(2.0 * point.square().sum() > some.square().sum(1).mean())
    return point.float() if far else None


def product_error(depth: int, device: torch.device) -> float:
    """Of a float32 product, in units of |a| |b|: any order of summation, and TF32 operands where allowed."""
    share = (depth + 1) * UNIT
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        share += 2.0**-9
    return 1.01 * share


def columns_of(raw: Tensor, cosine: bool, shift: Tensor | None, reduced: bool) -> Columns:
    """Rows [m, d] ready to be met."""
    raw = raw.float().contiguous()
    scale = inverse_lengths(raw) if cosine else None
    placed = _placed(raw, scale, shift)
    norms = _squares(placed)
    share = product_error(raw.shape[1], raw.device) + 24 * UNIT
    if not reduced:
        return Columns(raw, placed, norms, scale, shift, 0.0, share)
    operand = placed.bfloat16()
    left = _left_out(placed, operand, norms)
    return Columns(raw, operand, norms, scale, shift, float(left.max()) if len(left) else 0.0, share)


def _placed(rows: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    rows = rows.float()
    if scale is not None:
        return rows * scale.float()[:, None]
    return rows if shift is None else rows - shift


def _squares(rows: Tensor) -> Tensor:
    return rows.double().square().sum(1).float()


def _left_out(placed: Tensor, operand: Tensor, squares: Tensor) -> Tensor:
    left = (placed - operand.float()).square().sum(1)
    return 1.001 * torch.where(squares > 0, left / squares, 0.0).sqrt()


def meet(rows: Tensor, columns: Columns) -> Meeting:
    """Products of a block of rows with the columns."""
    scale = inverse_lengths(rows) if columns.scale is not None else None
    placed = _placed(rows, scale, columns.shift)
    norms = _squares(placed)
    errors = torch.full_like(norms, columns.share)
    if columns.operand.dtype == torch.bfloat16:
        operand = placed.bfloat16()
        left = _left_out(placed, operand, norms)
        # both operands' rounding, and that of the product to bfloat16
        errors += left + columns.left_out * (1 + left) + 2.0**-8
        products = (operand @ columns.operand.T).float()
    else:
        products = placed @ columns.operand.T
    return Meeting(rows.contiguous(), products, norms, errors, columns, scale)


def block_rows(width: int, columns: int) -> int:
    """Rows of a block."""
    return max(256, BYTES // (4 * max(width, columns, 1)))


def first_bad_row(shards: Shards) -> int:
    """See distance_reference.first_bad_row; waits for the device once."""
    n = count(shards)
    least = torch.full((), n, dtype=torch.int64, device=shards[0].device)
    for first, rows in blocks(shards, block_rows(shards[0].shape[1], 1)):
        bad = ~torch.isfinite(rows).all(1)
        at = torch.where(bad, torch.arange(first, first + len(rows), device=rows.device), n)
        least = torch.minimum(least, at.min())
    row = int(least)
    return row if row < n else -1


def farthest_from(shards: Shards, point: Tensor, cosine: bool) -> int:
    """See distance_reference.farthest_from; waits for the device once."""
    best = torch.full((), -1.0, dtype=distance_reference.result_dtype(shards), device=point.device)
    at = torch.full((), -1, dtype=torch.int64, device=point.device)
    for first, rows in blocks(shards, block_rows(2 * shards[0].shape[1], 1)):
        d = distance_reference.distances(distance_reference.scaled(rows, cosine), point[None], best.dtype)
        top = d.max()
        row = first + torch.argmax((d[:, 0] == top).to(torch.int8))
        at = torch.where(top > best, row, at)
        best = torch.maximum(best, top)
    return int(at)


def assign(
    launch: Launches,
    shards: Shards,
    centers: Tensor,
    k: int,
    rows: Tensor | None,
    cosine: bool,
    reduced: bool,
    check: bool,
) -> tuple[Tensor, Tensor]:
    """See distance_reference.assign."""
    if shards[0].dtype == torch.float64:
        return distance_reference.assign(shards, centers, k, rows, cosine, reduced, check)
    if check:
        require_finite(shards)
    device = shards[0].device
    n = count(shards) if rows is None else len(rows)
    index = torch.full((n, k), -1, dtype=torch.int32, device=device)
    nearest = torch.full((n, k), torch.inf, dtype=torch.float32, device=device)
    if len(centers) == 0:
        return index, nearest
    columns = columns_of(centers, cosine, None if cosine else middle([centers]), reduced)
    step = block_rows(centers.shape[1], len(centers))
    if rows is None:
        for first, block in blocks(shards, step):
            last = first + len(block)
            launch.look(meet(block, columns), k, index[first:last], nearest[first:last])
    else:
        for first in range(0, n, step):
            block = take(shards, rows[first : first + step])
            last = first + len(block)
            launch.look(meet(block, columns), k, index[first:last], nearest[first:last])
    return index, nearest


def require_finite(shards: Shards) -> None:
    """Raises NotFinite."""
    row = first_bad_row(shards)
    if row >= 0:
        raise NotFinite(row)


def lloyd(launch: Launches, shards: Shards, centers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See distance_reference.lloyd."""
    if shards[0].dtype == torch.float64:
        return distance_reference.lloyd(shards, centers, [])
    index, nearest = assign(launch, shards, centers, 1, None, False, False, False)
    labels, clusters = index[:, 0], len(centers)
    sums = torch.zeros(centers.shape, dtype=torch.float64, device=centers.device)
    first = 0
    for shard in shards:
        own = labels[first : first + len(shard)]
        first += len(shard)
        order = own.sort(stable=True).indices
        starts = torch.zeros(clusters + 1, dtype=torch.int64, device=centers.device)
        starts[1:] = torch.bincount(own, minlength=clusters).cumsum(0)
        launch.sums(shard, order, starts, sums)
    return labels, nearest[:, 0], sums, torch.bincount(labels, minlength=clusters)


def cover(launch: Launches, shards: Shards, candidates: Tensor, distance: Tensor, cosine: bool) -> Tensor:
    """See distance_reference.cover."""
    if shards[0].dtype == torch.float64:
        return distance_reference.cover(shards, candidates, distance, cosine)
    columns = columns_of(take(shards, candidates), cosine, None if cosine else middle(shards), False)
    out = torch.empty((len(candidates), len(distance)), dtype=torch.float32, device=distance.device)
    owner = torch.empty(0, dtype=torch.int32, device=distance.device)
    for first, block in blocks(shards, block_rows(columns.raw.shape[1], len(candidates))):
        last = first + len(block)
        here = meet(block, columns)
        launch.cover(here, candidates, distance[first:last], owner, out[:, first:last])
    return out


def kcenter(
    launch: Launches,
    shards: Shards,
    k: int,
    start: Tensor,
    picks: Tensor,
    cosine: bool,
    lookahead: int,
    check: bool,
) -> Cover:
    """See distance_reference.kcenter; kcenter_cpu.cpp says how picks are found before x is read."""
    if shards[0].dtype == torch.float64:
        return distance_reference.kcenter(shards, k, start, picks, cosine, lookahead, False, check)
    if check:
        require_finite(shards)
    n, device = count(shards), shards[0].device
    distance = torch.full((n,), torch.inf, dtype=torch.float32, device=device)
    owner = torch.full((n,), -1, dtype=torch.int32, device=device)
    shift = None if cosine else middle(shards)
    tail = 0xFFFFFFFF - torch.arange(n, dtype=torch.int64, device=device)
    picked: list[Tensor] = []
    values: list[Tensor] = []

    def add(rows: Tensor) -> None:
        columns = columns_of(take(shards, rows), cosine, shift, False)
        for first, block in blocks(shards, block_rows(columns.raw.shape[1], len(rows))):
            last = first + len(block)
            launch.cover(meet(block, columns), rows, distance[first:last], owner[first:last], None)
        distance[rows] = -1.0

    start = start.to(device)
    for at in range(0, len(start), lookahead):
        add(start[at : at + lookahead])
    done = 0
    while done < k:
        if done == 0 and len(picks):
            rows, value = picks[:1].to(device), distance.new_full((1,), torch.inf)
        else:
            left = n - len(start) - done
            size = min(POOL_PER_PICK * lookahead, MOST_POOL, left)
            keys = torch.where(distance < 0, -1, distance.view(torch.int32).long() << 32 | tail)
            pool = 0xFFFFFFFF - (keys.topk(size).values & 0xFFFFFFFF)
            most = min(lookahead, k - done)
            rows, value = _choose(launch, shards, pool, distance[pool], most, size == left, cosine)
        add(rows)
        picked.append(rows)
        values.append(value)
        done += len(rows)
    distance.clamp_(min=0.0)
    if not picked:
        return Cover(start[:0], distance[:0], distance, owner)
    farthest = distance.max()[None]
    return Cover(torch.cat(picked), torch.cat((torch.cat(values)[1:], farthest)), distance, owner)


def _choose(
    launch: Launches, shards: Shards, pool: Tensor, distance: Tensor, most: int, complete: bool, cosine: bool
) -> tuple[Tensor, Tensor]:
    """The picks that are certain, and their distances."""
    rows = take(shards, pool).contiguous()
    scale = inverse_lengths(rows) if cosine else None
    between = torch.empty((len(pool), len(pool)), dtype=torch.float32, device=pool.device)
    launch.pool(rows, scale, between)
    chosen = torch.empty(most, dtype=torch.int64, device=pool.device)
    value = torch.empty(most, dtype=torch.float32, device=pool.device)
    found = torch.empty(1, dtype=torch.int32, device=pool.device)
    launch.choose(between, distance.contiguous(), pool, complete, chosen, value, found)
    number = int(found)
    return chosen[:number], value[:number]
