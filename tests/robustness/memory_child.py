"""Run by test_out_of_memory.py with failing_memory.c preloaded: every op, with allocations that fail.

    python memory_child.py EXAMPLES OP ...

An op then raises MemoryError (or what PyTorch raises), has written nothing, and gives the same bits when it
is called again. Prints one line per op: its name, how many allocations were failed, and what was wrong.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from drawing import Draw
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_ops_fuzz import RECIPES, clone, leaves, same_bits

import tenfold._native
from tenfold import ops

LIBRARY = ctypes.CDLL(None)
PLACES = 6
ONE_BY_ONE = {"lowrank_apply_", "masked_adam_", "saliency_accum_", "ste_adam_simplex_", "uce_apply_"}
"""Ops that copy one tensor at a time, so as to need little memory: those before it are done when it fails."""


def watch(which: int, path: str) -> None:
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if path in line]
    ends = [int(end, 16) for span in spans for end in span]
    LIBRARY.failing_memory_watch(which, ctypes.c_size_t(min(ends)), ctypes.c_size_t(max(ends)))


def arm(nth: int) -> int:
    return int(LIBRARY.failing_memory_arm(ctypes.c_long(nth)))


def call(name: str, arguments: dict[str, Any], failing: int) -> tuple[Any, dict[str, Any], int]:
    """What the op gave or raised, the copies of the arguments that it had, how much memory it asked for."""
    mine = clone(arguments)
    torch.manual_seed(0)
    arm(failing)
    try:
        value = getattr(ops, name)(**mine)
        asked = arm(0)
        value = [clone(v) for v in value] if isinstance(value, Iterator) else value
    except Exception as error:
        value, asked = error, arm(0)
    return value, mine, asked


def fail(name: str, arguments: dict[str, Any]) -> int:
    """How many failures were tried; AssertionError if one of them was not met well."""
    whole, done, asked = call(name, arguments, 0)
    if isinstance(whole, Exception) or not asked:
        return 0
    places = sorted({1 + (asked - 1) * i // (PLACES - 1) for i in range(PLACES)})
    for nth in places:
        error, mine, reached = call(name, arguments, nth)
        if reached < nth:  # threads took other turns and asked for less
            continue
        said = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
        assert said, f"allocation {nth} of {asked}: {error!r}"
        pairs = zip(leaves(arguments), leaves(mine), leaves(done), strict=True)
        half = [i for i, (old, now, new) in enumerate(pairs) if not same_bits(old, now)
                and not (name in ONE_BY_ONE and same_bits(new, now))]  # fmt: skip
        assert not half, f"allocation {nth} of {asked}: arguments {half} were written"
    again, *_ = call(name, arguments, 0)
    assert not isinstance(again, Exception), f"failed again: {again!r}"
    assert same_bits(whole, again), "another result after a failure"
    return len(places)


def run(name: str, examples: int) -> None:
    tried = 0

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def drawn(data: st.DataObject) -> None:
        nonlocal tried
        tried += fail(name, RECIPES[name](Draw(data, hostile=False)))

    try:
        drawn()
        wrong = ""
    except AssertionError as error:
        wrong = str(error).splitlines()[0]
    print(f"{name}: {tried} {wrong}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    torch.ones(1)
    watch(0, tenfold._native.cpu.__file__)
    watch(1, "libc10.so")
    for op in sys.argv[2:]:
        print(f"{op}?", flush=True)
        run(op, int(sys.argv[1]))
