# mypy: allow-untyped-defs, allow-untyped-calls
"""What follows the matrix products in Triton, one program for each row; see distance_cuda.cu.

Distances are made in float64 and rounded to float32 once. Sums are in another order than elsewhere, which
moves a float64 sum by about 1e-16 of itself: the float32 results are the same but for rare roundings. The
interpreter (TRITON_INTERPRET=1 before this module is imported) runs it on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import distance_device
from .distance_device import Launches, Meeting, farthest_from, first_bad_row
from .distance_reference import Cover, mean
from .shards import Shards

__all__ = ["assign", "cover", "farthest_from", "first_bad_row", "kcenter", "lloyd", "mean"]

COLUMNS = 512
"""Products that a program looks at together, at most."""
WIDTH = 256
"""Features that it measures together, at most."""
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _exact(a, b, d, a_scale, b_scale, SCALED: tl.constexpr, WIDTH: tl.constexpr):
    """The squared distance of two rows; scales are float64."""
    total = tl.zeros([WIDTH], tl.float64)
    for first in range(0, d, WIDTH):
        k = first + tl.arange(0, WIDTH)
        x = tl.load(a + k, mask=k < d, other=0.0).to(tl.float64)
        y = tl.load(b + k, mask=k < d, other=0.0).to(tl.float64)
        if SCALED:
            x *= a_scale
            y *= b_scale
        difference = x - y
        total += difference * difference
    return tl.sum(total).to(tl.float32)


@triton.jit
def _look_kernel(
    x,
    products,
    row_norms,
    errors,
    others,
    norms,
    row_scale,
    other_scale,
    index,
    nearest,
    m,
    d,
    K: tl.constexpr,
    ROOM: tl.constexpr,
    SCALED: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    share = tl.load(errors + r)
    scale = tl.load(row_scale + r) if SCALED else share.to(tl.float64)
    # the K-th smallest upper bound, in the measure (1 + E) |b|^2 - 2 ab
    reached = -float("inf")
    at = -1
    for _ in range(K):
        best = float("inf")
        where = m
        for base in range(0, m, COLUMNS):
            c = base + tl.arange(0, COLUMNS)
            product = tl.load(products + r * m + c, mask=c < m, other=0.0)
            upper = tl.load(norms + c, mask=c < m, other=INFINITY) * (1.0 + share) - 2.0 * product
            later = (c < m) & ((upper > reached) | ((upper == reached) & (c > at)))
            upper = tl.where(later, upper, INFINITY)
            least = tl.min(upper)
            first = tl.min(tl.where(upper == least, c, m))
            where = tl.where(least < best, first, where)
            best = tl.minimum(best, least)
        reached = best
        at = where
    limit = reached + 2.0 * share * tl.load(row_norms + r)
    lanes = tl.arange(0, ROOM)
    value = tl.full([ROOM], INFINITY, tl.float32)
    number = m + lanes  # places that are free, the last first
    for base in range(0, m, COLUMNS):
        c = base + tl.arange(0, COLUMNS)
        product = tl.load(products + r * m + c, mask=c < m, other=0.0)
        lower = tl.load(norms + c, mask=c < m, other=INFINITY) * (1.0 - share) - 2.0 * product
        open_ = (c < m) & (lower <= limit)
        left = tl.sum(open_.to(tl.int32))
        last = -1
        while left > 0:
            last = tl.min(tl.where(open_ & (c > last), c, m))
            left -= 1
            b_scale = tl.load(other_scale + last) if SCALED else scale
            found = _exact(x + r * d, others + last.to(tl.int64) * d, d, scale, b_scale, SCALED, WIDTH)
            worst = tl.max(tl.where(lanes < K, value, -INFINITY))
            out = tl.max(tl.where((lanes < K) & (value == worst), number, -1))
            here = (lanes < K) & (value == worst) & (number == out)
            value = tl.where(here & (found < value), found, value)
            number = tl.where(here & (value < worst), last, number)
    for t in range(K):
        least = tl.min(tl.where(lanes < K, value, INFINITY))
        first = tl.min(tl.where((lanes < K) & (value == least), number, m + ROOM))
        tl.store(index + r * K + t, tl.where(first < m, first, -1))
        tl.store(nearest + r * K + t, least)
        gone = number == first
        value = tl.where(gone, INFINITY, value)
        number = tl.where(gone, m + ROOM, number)


@triton.jit
def _cover_kernel(
    x,
    products,
    row_norms,
    errors,
    others,
    norms,
    row_scale,
    other_scale,
    numbers,
    distance,
    owner,
    out,
    pitch,
    m,
    d,
    OUT: tl.constexpr,
    SCALED: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64)
    reach = tl.load(distance + r)
    share = tl.load(errors + r)
    scale = tl.load(row_scale + r) if SCALED else share.to(tl.float64)
    own = tl.load(row_norms + r)
    nearest = -1
    if reach != -1.0:
        for base in range(0, m, COLUMNS):
            c = base + tl.arange(0, COLUMNS)
            product = tl.load(products + r * m + c, mask=c < m, other=0.0)
            norm = tl.load(norms + c, mask=c < m, other=INFINITY)
            low = (norm + own) * (1.0 - share) - 2.0 * product
            mine = tl.full([COLUMNS], reach, tl.float32)
            last = -1
            left = tl.sum(((c < m) & (low < reach)).to(tl.int32))
            while left > 0:
                last = tl.min(tl.where((c < m) & (low < reach) & (c > last), c, m))
                b_scale = tl.load(other_scale + last) if SCALED else scale
                found = _exact(x + r * d, others + last.to(tl.int64) * d, d, scale, b_scale, SCALED, WIDTH)
                if OUT:
                    mine = tl.where(c == last, tl.minimum(mine, found), mine)
                else:
                    nearest = tl.where(found < reach, last, nearest)
                    reach = tl.minimum(reach, found)
                left = tl.sum(((c < m) & (low < reach) & (c > last)).to(tl.int32))
            if OUT:
                tl.store(out + c.to(tl.int64) * pitch + r, mine, mask=c < m)
        if nearest >= 0:
            tl.store(distance + r, reach)
            tl.store(owner + r, tl.load(numbers + nearest).to(tl.int32))


@triton.jit
def _pool_kernel(x, scale, out, size, d, SCALED: tl.constexpr, WIDTH: tl.constexpr):
    i = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1).to(tl.int64)
    if j >= i:
        a_scale = tl.load(scale + i) if SCALED else tl.zeros([], tl.float64)
        b_scale = tl.load(scale + j) if SCALED else a_scale
        found = _exact(x + i * d, x + j * d, d, a_scale, b_scale, SCALED, WIDTH)
        tl.store(out + i * size + j, found)
        tl.store(out + j * size + i, found)


@triton.jit
def _keys(value, rows):
    """What is chosen first has the largest key: the larger distance, of equals the smaller row."""
    bits = value.to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(value < 0.0, -1, (bits << 32) | (0xFFFFFFFF - rows))


@triton.jit
def _choose_kernel(
    between, distance, rows, chosen, out, count, size, most, COMPLETE: tl.constexpr, SIZE: tl.constexpr
):
    p = tl.arange(0, SIZE)
    value = tl.load(distance + p, mask=p < size, other=-1.0)
    row = tl.load(rows + p, mask=p < size, other=0)
    key = _keys(value, row)
    last = tl.zeros([], tl.int64) if COMPLETE else tl.min(tl.where(p < size, key, 0x7FFFFFFFFFFFFFFF))
    done = 0
    best = tl.max(key)
    while (done < most) & (best >= last) & (best >= 0):
        at = tl.min(tl.where(key == best, p, SIZE))
        tl.store(chosen + done, 0xFFFFFFFF - (best & 0xFFFFFFFF))
        tl.store(out + done, (best >> 32).to(tl.int32).to(tl.float32, bitcast=True))
        now = tl.load(between + at.to(tl.int64) * size + p, mask=p < size, other=0.0)
        value = tl.where(p == at, -1.0, tl.minimum(value, now))
        key = _keys(value, row)
        best = tl.max(key)
        done += 1
    tl.store(count, done)


@triton.jit
def _sums_kernel(x, order, starts, sums, d, WIDTH: tl.constexpr):
    cluster = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    total = tl.load(sums + cluster * d + k, mask=k < d, other=0.0)
    for i in range(tl.load(starts + cluster), tl.load(starts + cluster + 1)):
        row = tl.load(order + i)
        total += tl.load(x + row * d + k, mask=k < d, other=0.0).to(tl.float64)
    tl.store(sums + cluster * d + k, total, mask=k < d)


# ---- launches --------------------------------------------------------------------------------------------


def _sizes(columns: int, width: int) -> dict[str, int]:
    return {
        "COLUMNS": min(COLUMNS, max(16, triton.next_power_of_2(columns))),
        "WIDTH": min(WIDTH, max(16, triton.next_power_of_2(width))),
    }


def _rows(m: Meeting) -> tuple[Tensor | None, ...]:
    """Where there are no scales, any tensor stands in their places."""
    scales = (m.errors, m.errors) if m.scale is None else (m.scale, m.columns.scale)
    columns = m.columns
    return m.x, m.products.contiguous(), m.row_norms, m.errors, columns.raw, columns.norms, *scales


def _look(m: Meeting, k: int, index: Tensor, nearest: Tensor) -> None:
    n, d = m.x.shape
    columns = m.products.shape[1]
    options = {"K": k, "ROOM": max(2, triton.next_power_of_2(k)), "SCALED": m.scale is not None}
    if n:
        sizes = _sizes(columns, d)
        _look_kernel[(n,)](*_rows(m), index, nearest, columns, d, **options, **sizes, num_warps=1)


def _cover(m: Meeting, numbers: Tensor, distance: Tensor, owner: Tensor, out: Tensor | None) -> None:
    n, d = m.x.shape
    columns = m.products.shape[1]
    numbers = numbers.to(m.x.device)
    written, pitch = (distance, 0) if out is None else (out, out.stride(0))
    options = {"OUT": out is not None, "SCALED": m.scale is not None, **_sizes(columns, d)}
    if n:
        _cover_kernel[(n,)](
            *_rows(m), numbers, distance, owner, written, pitch, columns, d, **options, num_warps=1
        )


def _pool(rows: Tensor, scale: Tensor | None, between: Tensor) -> None:
    size, d = rows.shape
    width = _sizes(1, d)["WIDTH"]
    given = between if scale is None else scale
    options = {"SCALED": scale is not None, "WIDTH": width}
    _pool_kernel[(size, size)](rows, given, between, size, d, **options, num_warps=1)


def _choose(
    between: Tensor,
    distance: Tensor,
    rows: Tensor,
    complete: bool,
    chosen: Tensor,
    value: Tensor,
    found: Tensor,
) -> None:
    room = max(16, triton.next_power_of_2(len(rows)))
    size, most = len(rows), len(chosen)
    _choose_kernel[(1,)](
        between, distance, rows, chosen, value, found, size, most, COMPLETE=complete, SIZE=room, num_warps=4
    )


def _sums(x: Tensor, order: Tensor, starts: Tensor, sums: Tensor) -> None:
    clusters, d = sums.shape
    width = _sizes(1, d)["WIDTH"]
    _sums_kernel[(clusters, triton.cdiv(d, width))](x, order, starts, sums, d, WIDTH=width, num_warps=2)


LAUNCHES = Launches(_look, _cover, _pool, _choose, _sums)


def assign(
    shards: Shards,
    centers: Tensor,
    k: int,
    rows: Tensor | None,
    cosine: bool,
    reduced: bool = False,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """See distance_reference.assign."""
    return distance_device.assign(LAUNCHES, shards, centers, k, rows, cosine, reduced, check)


def lloyd(shards: Shards, centers: Tensor, state: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See distance_reference.lloyd."""
    return distance_device.lloyd(LAUNCHES, shards, centers)


def cover(shards: Shards, candidates: Tensor, distance: Tensor, cosine: bool) -> Tensor:
    """See distance_reference.cover."""
    return distance_device.cover(LAUNCHES, shards, candidates, distance, cosine)


def kcenter(
    shards: Shards,
    k: int,
    start: Tensor,
    picks: Tensor,
    cosine: bool,
    lookahead: int,
    prune: bool,
    check: bool = False,
) -> Cover:
    """See distance_reference.kcenter. Nothing is pruned: a device multiplies faster than it gathers."""
    return distance_device.kcenter(LAUNCHES, shards, k, start, picks, cosine, lookahead, check)


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    floats = ("products", "row_norms", "errors", "others", "norms", "distance", "out", "nearest", "between")
    types = dict.fromkeys(floats, "*fp32") | dict.fromkeys(("row_scale", "other_scale", "scale"), "*fp64")
    types |= {"index": "*i32", "owner": "*i32", "numbers": "*i64", "rows": "*i64", "chosen": "*i64"}
    types |= {"count": "*i32", "order": "*i64", "starts": "*i64", "sums": "*fp64"}
    types |= dict.fromkeys(("m", "d", "size", "most", "pitch"), "i32")
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    sizes: dict[str, Any] = {"COLUMNS": COLUMNS, "WIDTH": WIDTH}
    for x in ("fp32", "bf16"):
        for name, kernel, constants, warps in (
            ("look.k1", _look_kernel, {"K": 1, "ROOM": 2, "SCALED": False, **sizes}, 1),
            ("look.k32", _look_kernel, {"K": 32, "ROOM": 32, "SCALED": True, **sizes}, 1),
            ("cover", _cover_kernel, {"OUT": False, "SCALED": False, **sizes}, 1),
            ("cover.out", _cover_kernel, {"OUT": True, "SCALED": True, **sizes}, 1),
            ("pool", _pool_kernel, {"SCALED": False, "WIDTH": WIDTH}, 1),
            ("choose", _choose_kernel, {"COMPLETE": False, "SIZE": 1024}, 4),
            ("sums", _sums_kernel, {"WIDTH": WIDTH}, 2),
        ):
            constants = dict(constants)
            signature = {
                n: "constexpr" if n in constants else {"x": f"*{x}", **types}[n] for n in kernel.arg_names
            }
            cases.append((f"{name}.{x}", kernel, signature, constants, {"num_warps": warps}))
    return cases
