"""The compiled passes behind the signatures of erase_reference.py: tensors to raw pointers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from tenfold.kernels.zo import zo_native
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from .erase_attention import column_norm, column_norm_backward
from .erase_reference import MODES, AdamArgs
from .erase_select import Selected, select_by_digits

__all__ = ["adam_", "column_norm", "column_norm_backward", "saliency_", "select", "topk_bits_"]

_FEW = 1 << 17
"""So many weights are ranked without a sample."""
_SAMPLE = 1 << 16
_SIGMAS = 4.5
"""How far from the wanted place of the sample the two keys stand: one time in 150,000 the k-th is outside."""

Rows = Sequence[tuple[int, int]]


# ---- selection -------------------------------------------------------------------------------------------


def _flat(t: Tensor) -> Tensor:
    """The elements in some order, without a copy where they fill their memory."""
    if t.is_contiguous():
        return t
    return t.as_strided((t.numel(),), (1,)) if _fills_its_memory(t) else t.contiguous()


def _fills_its_memory(t: Tensor) -> bool:
    reach = 1
    for stride, size in sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1):
        if stride != reach:
            return False
        reach *= size
    return True


def _each(tensors: Sequence[Tensor], visit: Callable[[Rows, int], Any]) -> None:
    """visit(addresses and sizes, dtype code) for runs of tensors of one dtype; a copy is on its own."""

    def kind(t: Tensor) -> tuple[int, int]:
        return DTYPE_CODES[t.dtype], 0 if t.is_contiguous() or _fills_its_memory(t) else id(t)

    for (code, _), run in groupby((t for t in tensors if t.numel()), key=kind):
        held = [_flat(t) for t in run]
        visit([(t.data_ptr(), t.numel()) for t in held], code)


def _key(value: float, wide: bool) -> int:
    kind, bits = (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)
    return int(torch.tensor(value, dtype=kind).view(bits))


def _value(key: int, wide: bool) -> float:
    kind, bits = (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)
    return float(torch.tensor(key, dtype=bits).view(kind))


def _bracket(tensors: Sequence[Tensor], rank: int, total: int, wide: bool) -> tuple[int, int, int]:
    """(lo, hi, room for what lies between): two keys of a sample that most likely hold the rank-th."""
    infinite = _key(math.inf, wide)
    if total <= _FEW:
        return 0, infinite, total
    keys: list[np.ndarray] = []

    def sample(rows: Rows, code: int) -> None:
        share = max(1, round(_SAMPLE * sum(n for _, n in rows) / total))
        keys.append(np.empty(share, dtype=np.int64 if wide else np.int32))
        _native.cpu.erase_sample(rows, code, wide, share, keys[-1].ctypes.data, torch.get_num_threads())

    _each(tensors, sample)
    found = np.concatenate(keys)
    n, p = len(found), rank / total
    reach = _SIGMAS * math.sqrt(n * p * (1 - p)) + 4
    low, high = math.floor(n * p - reach), math.ceil(n * p + reach)
    places = [min(max(place, 0), n - 1) for place in (low, high)]
    found.partition(places)
    lo = int(found[places[0]]) if low >= 0 else 0
    hi = int(found[places[1]]) if high < n else infinite
    share = (min(high, n) - max(low, 0)) / n
    return lo, max(hi, lo + 1), int(1.5 * share * total) + _FEW


def select(tensors: Sequence[Tensor], rank: int) -> Selected:
    """See erase_reference.select."""
    total = sum(t.numel() for t in tensors)
    wide = any(t.dtype == torch.float64 for t in tensors)
    lo, hi, capacity = _bracket(tensors, rank, total, wide)
    room = np.empty(capacity, dtype=np.int64 if wide else np.int32)
    counts, stored = np.zeros(4, dtype=np.int64), 0

    def count(rows: Rows, code: int) -> None:
        nonlocal stored
        place = room.ctypes.data, capacity, stored, torch.get_num_threads()
        found, stored = _native.cpu.erase_bracket(rows, code, wide, lo, hi, *place)
        counts.__iadd__(found)

    _each(tensors, count)
    below, at_low, at_high, nonfinite = counts.tolist()
    if nonfinite:
        return Selected(math.nan, 0, 0, nonfinite)
    if below < rank <= below + at_low:
        return Selected(_value(lo, wide), below, at_low)
    before = below + at_low
    if before < rank <= before + stored <= before + capacity:
        between, place = room[:stored], rank - before - 1
        between.partition(place)
        key = between[place]
        less = int(np.count_nonzero(between[:place] < key))
        equal = int(np.count_nonzero(between == key))
        return Selected(_value(int(key), wide), before + less, equal)
    before += stored
    if before < rank <= before + at_high:
        return Selected(_value(hi, wide), before, at_high)
    return select_by_digits(zo_native, tensors, rank)  # the sample has misled: passes over all digits


def topk_bits_(
    out: Sequence[Tensor], tensors: Sequence[Tensor], found: Selected, ties: int, largest: bool
) -> None:
    """See erase_reference.topk_bits_."""
    from .erase_select import add_ties_

    wide = any(t.dtype == torch.float64 for t in tensors)
    key = _key(found.threshold, wide)
    whole = ties == found.equal
    from_key = key if whole == largest else key + 1  # >= t, > t; and flipped: <= t, < t
    _bits_(out, tensors, wide, from_key, not largest)
    if not whole and ties:

        def equals_(bits: Tensor, tensor: Tensor) -> None:
            above = torch.empty_like(bits)
            _bits_([bits], [tensor], wide, key, False)
            _bits_([above], [tensor], wide, key + 1, False)
            bits.bitwise_xor_(above)

        add_ties_(equals_, out, tensors, ties)


def _bits_(out: Sequence[Tensor], tensors: Sequence[Tensor], wide: bool, key: int, flip: bool) -> None:
    pairs = [(bits, t) for bits, t in zip(out, tensors, strict=True) if t.numel()]
    threads = torch.get_num_threads()
    for _, run in groupby(pairs, key=lambda p: (p[1].dtype, 0 if p[1].is_contiguous() else id(p[1]))):
        members = list(run)
        held = [t.contiguous() for _, t in members]
        rows = [(t.data_ptr(), t.numel()) for t in held]
        places = [bits.data_ptr() for bits, _ in members]
        _native.cpu.erase_bits(rows, DTYPE_CODES[held[0].dtype], wide, key, flip, places, threads)


# ---- sums and steps --------------------------------------------------------------------------------------


def _grouped(*lists: Sequence[Tensor]) -> list[list[int]]:
    """Places by the dtypes of the tensors that stand there; what is not contiguous is on its own."""
    groups: dict[Any, list[int]] = {}
    for i, together in enumerate(zip(*lists, strict=True)):
        if together[0].numel():
            alone = -1 if all(t.is_contiguous() for t in together) else i
            groups.setdefault((alone, *(t.dtype for t in together)), []).append(i)
    return list(groups.values())


def _write_back(written: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for t, copy in zip(written, copies, strict=True):
        if copy is not t:
            t.copy_(copy)


@torch.no_grad()
def saliency_(acc: Sequence[Tensor], grads: Sequence[Tensor], weights: Sequence[Tensor], mode: str) -> None:
    """See erase_reference.saliency_; one call per combination of dtypes."""
    factors = weights if mode == "product" else acc
    for members in _grouped(acc, grads, factors):
        module, where = zo_native._module(acc[members[0]])
        sums, steps, others = ([each[i].contiguous() for i in members] for each in (acc, grads, factors))
        rows = [
            (a.data_ptr(), g.data_ptr(), w.data_ptr() if mode == "product" else 0, a.numel())
            for a, g, w in zip(sums, steps, others, strict=True)
        ]
        codes = [DTYPE_CODES[each[0].dtype] for each in (sums, steps, others)]
        module.erase_sum(rows, *codes, MODES.index(mode), *where)
        _write_back([acc[i] for i in members], sums)


@torch.no_grad()
def adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masks: Sequence[Tensor],
    a: AdamArgs,
) -> None:
    """See erase_reference.adam_; one call per combination of dtypes."""
    lists = (params, grads, exp_avgs, exp_avg_sqs)
    for members in _grouped(*lists):
        module, where = zo_native._module(params[members[0]])
        columns = [[each[i].contiguous() for i in members] for each in lists]
        bits = [masks[i] for i in members]
        rows = [
            (*(t.data_ptr() for t in together), together[0].numel())
            for together in zip(*columns, bits, strict=True)
        ]
        codes = DTYPE_CODES[columns[0][0].dtype], DTYPE_CODES[columns[2][0].dtype]
        module.erase_adam(rows, *codes, list(a), *where)
        for each, copies in ((params, columns[0]), (exp_avgs, columns[2]), (exp_avg_sqs, columns[3])):
            _write_back([each[i] for i in members], copies)
