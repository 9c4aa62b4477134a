"""Low-rank passes inside PyTorch, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tenfold.ops import LowRankTerm, lowrank_factor, zo_lowrank_, zo_lowrank_project

OPS = torch.ops.tenfold
ONE = [LowRankTerm(1, 0, 0.1)]


def arguments(dtype: torch.dtype = torch.float32, explicit: bool = False, sources: bool = False) -> tuple:
    w = torch.randn(5, 6).to(dtype)
    clean = [torch.randn(6, 5).to(dtype).t()] if sources else []
    us = [torch.randn(5, 2)] if explicit else []
    terms = ([-1], [3], [0.1]) if explicit else ([-1, 5], [3, 4], [0.1, 0.2])
    return ([w], clean, [torch.randn(6, 2)], us, [3], *terms, 0.9, True, -7, 2)


CASES: dict[str, tuple[str, Callable[[], tuple]]] = {
    **{
        f"pass {str(d)[6:]}": ("zo_lowrank_", lambda d=d: arguments(d))
        for d in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    },
    "pass with both factors": ("zo_lowrank_", lambda: arguments(explicit=True)),
    "pass from sources": ("zo_lowrank_", lambda: arguments(torch.bfloat16, sources=True)),
    "factor": ("lowrank_factor_", lambda: (torch.empty(4, 3), -1, 2, 3, "v")),
    "factor bfloat16": ("lowrank_factor_", lambda: (torch.empty(4, 3, dtype=torch.bfloat16), 1, 2, 3, "u")),
    "project": ("zo_lowrank_project_", lambda: (torch.empty(4, 3), [1, -2], [0, 1], [0.5, 1.0], 3, "u")),
}


@pytest.mark.parametrize("case", list(CASES))
def test_opcheck(case):
    name, make = CASES[case]
    assert set(torch.library.opcheck(getattr(OPS, name).default, make()).values()) == {"SUCCESS"}


def everything(w: Tensor, v: Tensor, seed: int, coef: float) -> Tensor:
    terms = [LowRankTerm(seed, 1, coef), LowRankTerm(seed, 2, -coef)]
    zo_lowrank_([w], [v], [3], terms, decay=0.9)
    zo_lowrank_([w], [v], [3], terms[:1], us=[lowrank_factor(seed, 1, 2, w.shape[0], v.shape[1])])
    return w.sum() + zo_lowrank_project(terms, 1, 3, 2).sum()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(backend):
    torch._dynamo.reset()
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    v = torch.randn(6, 2)
    for seed, coef in ((1, 0.1), (2**63 + 9, 0.2)):
        a, b = torch.ones(5, 6), torch.ones(5, 6)
        assert torch.equal(compiled(a, v, seed, coef), everything(b, v, seed, coef))
        assert torch.equal(a, b)
    torch._dynamo.reset()


def test_version_counters_and_inference_mode():
    w, v = torch.ones(5, 6), torch.randn(6, 2)
    before = w._version
    zo_lowrank_([w], [v], [0], ONE)
    assert w._version > before
    assert v._version == 0
    with torch.inference_mode():
        inside = torch.ones(5, 6)
        zo_lowrank_([inside], [v], [0], ONE)
    assert torch.equal(inside, w)


def test_meta_tensors_cost_nothing():
    huge, v = torch.empty(2**20, 2**20, device="meta"), torch.empty(2**20, 4, device="meta")
    zo_lowrank_([huge], [v], [0], ONE)
    assert lowrank_factor(1, 2, 3, 2**30, 4, device="meta").shape == (2**30, 4)


# -- what is refused ------------------------------------------------------------------------------------

W, V = torch.zeros(5, 6), torch.ones(6, 2)
BAD: dict[str, tuple[type[Exception], str, dict]] = {
    "a vector": (ValueError, r"params\[0\]: expected a matrix", {"params": [torch.zeros(5)]}),
    "an integer matrix": (TypeError, r"params\[0\]", {"params": [torch.zeros(5, 6, dtype=torch.int64)]}),
    "too few factors": (ValueError, r"vs: expected 1 entries", {"vs": []}),
    "factor of another width": (ValueError, r"vs\[0\]: expected shape \[6, r", {"vs": [torch.ones(5, 2)]}),
    "rank 0": (ValueError, r"vs\[0\]", {"vs": [torch.ones(6, 0)]}),
    "rank 257": (ValueError, r"vs\[0\]", {"vs": [torch.ones(6, 257)]}),
    "factor in float64": (TypeError, r"vs\[0\]", {"vs": [torch.ones(6, 2, dtype=torch.float64)]}),
    "left factor of another rank": (
        ValueError,
        r"us\[0\]: expected shape \[5, 2\]",
        {"us": [torch.ones(5, 3)]},
    ),
    "left factors and two terms": (
        ValueError,
        "terms: expected exactly one",
        {"us": [torch.ones(5, 2)], "terms": ONE * 2},
    ),
    "no terms": (ValueError, "terms: expected 1 to 64", {"terms": []}),
    "65 terms": (ValueError, "terms: expected 1 to 64", {"terms": ONE * 65}),
    "a term of four": (TypeError, r"terms\[0\]", {"terms": [(1, 0, 0.1, "gaussian")]}),
    "query of 25 bits": (ValueError, r"terms\[0\].query", {"terms": [LowRankTerm(1, 2**24, 0.1)]}),
    "negative seed": (ValueError, r"terms\[0\].seed", {"terms": [LowRankTerm(-1, 0, 0.1)]}),
    "NaN": (ValueError, r"terms\[0\].coef", {"terms": [LowRankTerm(1, 0, math.nan)]}),
    "beyond float32": (ValueError, r"terms\[0\].coef", {"terms": [LowRankTerm(1, 0, 1e39)]}),
    "infinite decay": (ValueError, "decay", {"decay": math.inf}),
    "unknown rounding": (ValueError, "out_rounding", {"out_rounding": "up"}),
    "stream of 33 bits": (ValueError, r"streams\[0\]", {"streams": [2**32]}),
    "expanded matrix": (ValueError, r"params\[0\]", {"params": [torch.zeros(1, 6).expand(5, 6)]}),
    "sources of another shape": (ValueError, r"sources\[0\]", {"sources": [torch.zeros(6, 5)]}),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_arguments_are_named_and_nothing_is_written(case):
    kind, message, changed = BAD[case]
    given = {"params": [W], "vs": [V], "streams": [0], "terms": ONE, **changed}
    places = [given.pop(name) for name in ("params", "vs", "streams", "terms")]
    with pytest.raises(kind, match=message):
        zo_lowrank_(*places, **given)
    assert not W.any()


def test_a_matrix_twice_or_a_factor_that_is_written():
    with pytest.raises(ValueError, match=r"params\[1\]: expected every tensor once"):
        zo_lowrank_([W, W], [V, V], [0, 1], ONE)
    shared = torch.zeros(10, 6)
    with pytest.raises(
        ValueError, match=r"vs\[0\]: expected memory of its own, got memory shared with params\[0\]"
    ):
        zo_lowrank_([shared[:5]], [shared[4:].flatten()[:12].view(6, 2)], [0], ONE)
    assert not W.any()
    assert not shared.any()


def test_a_leaf_that_requires_grad():
    leaf = torch.zeros(5, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"params\[0\]"):
        zo_lowrank_([leaf], [V], [0], ONE)
    with torch.no_grad():
        zo_lowrank_([leaf], [V], [0], ONE)
    assert leaf.any()


@pytest.mark.parametrize(("change", "message"), [
    ({"rows": -1}, "rows"), ({"rank": 0}, "rank"), ({"rank": 257}, "rank"), ({"side": "w"}, "side"),
    ({"seed": 2**64}, "seed"), ({"stream": -1}, "stream"), ({"query": 2**24}, "query"),
])  # fmt: skip
def test_factor_refuses(change, message):
    given = {"seed": 1, "stream": 2, "query": 3, "rows": 4, "rank": 5, **change}
    with pytest.raises(ValueError, match=message):
        lowrank_factor(**given)
    with pytest.raises(TypeError, match="dtype"):
        lowrank_factor(1, 2, 3, 4, 5, dtype=torch.int32)
