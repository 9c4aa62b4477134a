"""Bad input: a typed error that names the argument, and not a byte of any tensor changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.ops import (
    Term,
    random_words,
    stochastic_round,
    zo_adam_,
    zo_chain_,
    zo_moments,
    zo_perturb_,
    zo_restore_update_,
    zo_sample,
)

NAN, INF = float("nan"), float("inf")
TERM = Term(1, 0, 0.1)


class Case:
    """Arguments of a call that would be fine, and the tensors whose bytes are watched."""

    def __init__(self) -> None:
        self.a = torch.linspace(-1, 1, 300)
        self.b = torch.linspace(-1, 1, 300).view(20, 15).bfloat16()
        self.m, self.v = torch.zeros(300), torch.zeros(300)
        self.watched: list[Tensor] = [self.a, self.b, self.m, self.v]
        self.before = [t.clone() for t in self.watched]

    def unchanged(self) -> bool:
        pairs = zip(self.watched, self.before, strict=True)
        return all(torch.equal(t.view(torch.uint8), before.view(torch.uint8)) for t, before in pairs)

    def perturb(
        self,
        *,
        params: Any = None,
        streams: Any = (0, 1),
        seed: Any = 1,
        query: Any = 0,
        c: Any = 0.1,
        **options: Any,
    ) -> None:
        zo_perturb_([self.a, self.b] if params is None else params, streams, seed, query, c, **options)

    def chain(
        self, terms: Any = (TERM,), *, params: Any = None, streams: Any = (0, 1), **options: Any
    ) -> None:
        zo_chain_([self.a, self.b] if params is None else params, streams, terms, **options)

    def restore(self, *, params: Any = None, **options: Any) -> None:
        defaults: dict[str, Any] = {"eps": 1e-3, "lr": 1e-2, "projected_grad": 1.0}
        zo_restore_update_(
            [self.a, self.b] if params is None else params, [0, 1], 1, 0, **(defaults | options)
        )

    def adam(
        self, *, params: Any = None, m: Any = None, v: Any = None, terms: Any = (TERM,), **options: Any
    ) -> None:
        params, m, v = (
            [t] if given is None else given for t, given in ((self.a, params), (self.m, m), (self.v, v))
        )
        defaults: dict[str, Any] = {"lr": 0.1, "step": 1}
        zo_adam_(params, m, v, [0], terms, **(defaults | options))


def view_of_leaf() -> Tensor:
    return torch.zeros(5, requires_grad=True)[1:]


BAD: dict[str, tuple[Callable[[Case], object], type[Exception], str]] = {
    # seeds, queries, streams
    "seed negative": (lambda t: t.perturb(seed=-1), ValueError, "seed"),
    "seed too large": (lambda t: t.perturb(seed=2**64), ValueError, "seed"),
    "seed a float": (lambda t: t.perturb(seed=1.0), TypeError, "seed"),
    "seed a bool": (lambda t: t.perturb(seed=True), TypeError, "seed"),
    "seed None": (lambda t: t.perturb(seed=None), TypeError, "seed"),
    "seed text": (lambda t: t.perturb(seed="1"), TypeError, "seed"),
    "query too large": (lambda t: t.perturb(query=2**24), ValueError, "query"),
    "query negative": (lambda t: t.perturb(query=-1), ValueError, "query"),
    "stream too large": (lambda t: t.perturb(streams=[0, 2**32]), ValueError, "streams[1]"),
    "stream negative": (lambda t: t.perturb(streams=[-1, 0]), ValueError, "streams[0]"),
    "stream a float": (lambda t: t.perturb(streams=[0, 1.5]), TypeError, "streams[1]"),
    "too few streams": (lambda t: t.perturb(streams=[0]), ValueError, "streams"),
    "too many streams": (lambda t: t.perturb(streams=[0, 1, 2]), ValueError, "streams"),
    "streams a number": (lambda t: t.perturb(streams=5), TypeError, "streams"),
    "streams None": (lambda t: t.perturb(streams=None), TypeError, "streams"),
    # coefficients
    "c NaN": (lambda t: t.perturb(c=NAN), ValueError, "c"),
    "c infinite": (lambda t: t.perturb(c=-INF), ValueError, "c"),
    "c beyond float32": (lambda t: t.perturb(c=1e39), ValueError, "c"),
    "c just beyond float32": (lambda t: t.perturb(c=3.4028235678e38), ValueError, "c"),
    "c complex": (lambda t: t.perturb(c=1j), TypeError, "c"),
    "c text": (lambda t: t.perturb(c="0.1"), TypeError, "c"),
    "c None": (lambda t: t.perturb(c=None), TypeError, "c"),
    "c a bool": (lambda t: t.perturb(c=True), TypeError, "c"),
    "c too large for any float": (lambda t: t.perturb(c=10**400), (ValueError, TypeError), "c"),
    "c a tensor of two": (lambda t: t.perturb(c=torch.ones(2)), TypeError, "c"),
    # names
    "unknown dist": (lambda t: t.perturb(dist="normal"), ValueError, "dist"),
    "uniform is no direction": (lambda t: t.perturb(dist="uniform"), ValueError, "dist"),
    "dist None": (lambda t: t.perturb(dist=None), (TypeError, ValueError), "dist"),
    "unknown rounding": (lambda t: t.perturb(out_rounding="stochastic"), ValueError, "out_rounding"),
    "z_round int": (lambda t: t.perturb(z_round=torch.int8), TypeError, "z_round"),
    "z_round float64": (lambda t: t.perturb(z_round=torch.float64), TypeError, "z_round"),
    "z_round text": (lambda t: t.perturb(z_round="bfloat16"), TypeError, "z_round"),
    "rounding_seed negative": (lambda t: t.perturb(rounding_seed=-1), ValueError, "rounding_seed"),
    # params
    "params a tensor": (lambda t: t.perturb(params=t.a), TypeError, "params"),
    "params a generator": (lambda t: t.perturb(params=iter([t.a, t.b])), TypeError, "params"),
    "params None entry": (lambda t: t.perturb(params=[t.a, None]), TypeError, "params[1]"),
    "params a list of lists": (lambda t: t.perturb(params=[t.a, [1.0]]), TypeError, "params[1]"),
    "params a number": (lambda t: t.perturb(params=[t.a, 1.0]), TypeError, "params[1]"),
    "int32": (lambda t: t.perturb(params=[t.a, torch.zeros(3, dtype=torch.int32)]), TypeError, "params[1]"),
    "bool": (lambda t: t.perturb(params=[t.a, torch.zeros(3, dtype=torch.bool)]), TypeError, "params[1]"),
    "complex": (
        lambda t: t.perturb(params=[t.a, torch.zeros(3, dtype=torch.cfloat)]),
        TypeError,
        "params[1]",
    ),
    "float8": (
        lambda t: t.perturb(params=[t.a, torch.zeros(3).to(torch.float8_e4m3fn)]),
        TypeError,
        "params[1]",
    ),
    "sparse": (lambda t: t.perturb(params=[t.a, torch.eye(3).to_sparse()]), TypeError, "params[1]"),
    "sparse csr": (lambda t: t.perturb(params=[t.a, torch.eye(3).to_sparse_csr()]), TypeError, "params[1]"),
    "quantised": (
        lambda t: t.perturb(params=[t.a, torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)]),
        TypeError,
        "params[1]",
    ),
    "nested": (
        lambda t: t.perturb(params=[t.a, torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])]),
        (TypeError, ValueError, RuntimeError),
        "params[1]",
    ),
    "other device": (
        lambda t: t.perturb(params=[t.a, torch.zeros(3, device="meta")]),
        ValueError,
        "params[1]",
    ),
    "leaf that requires grad": (
        lambda t: t.perturb(params=[t.a, torch.zeros(3, requires_grad=True)]),
        RuntimeError,
        "params[1]",
    ),
    "view of a leaf that requires grad": (
        lambda t: t.perturb(params=[t.a, view_of_leaf()]),
        RuntimeError,
        "params[1]",
    ),
    "result of a differentiable op": (
        lambda t: t.perturb(params=[t.a, torch.zeros(3, requires_grad=True) * 2]),
        RuntimeError,
        "params[1]",
    ),
    "negative bit": (
        lambda t: t.perturb(params=[t.a, torch.zeros(3, dtype=torch.cfloat).conj().imag]),
        (TypeError, ValueError, RuntimeError),
        "params[1]",
    ),
    # memory
    "the same tensor twice": (lambda t: t.perturb(params=[t.a, t.a]), ValueError, "params[0] and params[1]"),
    "views that overlap": (
        lambda t: t.perturb(params=[t.a[:200], t.a[150:]]),
        ValueError,
        "params[0] and params[1]",
    ),
    "tied after others": (
        lambda t: t.chain(params=[t.b, t.a, torch.zeros(3), t.a.view(10, 30)], streams=[0, 1, 2, 3]),
        ValueError,
        "params[1] and params[3]",
    ),
    "views of two dtypes": (
        lambda t: t.perturb(params=[t.a, t.a.view(torch.bfloat16)]),
        ValueError,
        "params[0] and params[1]",
    ),
    "expanded": (lambda t: t.perturb(params=[t.a[:1].expand(4), t.b]), ValueError, "params[0]"),
    "one row twice": (
        lambda t: t.perturb(params=[t.a.as_strided((1, 5), (0, 1)), t.a.as_strided((1, 5), (0, 1))]),
        ValueError,
        "params[0] and params[1]",
    ),
    "columns that overlap": (
        lambda t: t.perturb(params=[t.a.view(20, 15)[:, :8], t.a.view(20, 15)[:, 7:]]),
        ValueError,
        "params[0] and params[1]",
    ),
    "columns that overlap across rows": (
        lambda t: t.perturb(params=[t.a.view(20, 15)[:, 1:8], t.a[9:294].view(19, 15)[:, :8]]),
        ValueError,
        "params[0] and params[1]",
    ),
    "broadcast rows": (lambda t: t.perturb(params=[t.b, t.a[:5].expand(3, 5)]), ValueError, "params[1]"),
    "overlapping strides": (
        lambda t: t.perturb(params=[t.b, t.a.as_strided((10, 10), (3, 1))]),
        ValueError,
        "params[1]",
    ),
    # sources
    "too few sources": (lambda t: t.perturb(sources=[torch.zeros(300)]), ValueError, "sources"),
    "source of another shape": (
        lambda t: t.perturb(sources=[torch.zeros(300), torch.zeros(15, 20).bfloat16()]),
        ValueError,
        "sources[1]",
    ),
    "source of another dtype": (
        lambda t: t.perturb(sources=[torch.zeros(300), torch.zeros(20, 15).half()]),
        TypeError,
        "sources[1]",
    ),
    "source on another device": (
        lambda t: t.perturb(sources=[torch.zeros(300, device="meta"), t.b.clone()]),
        ValueError,
        "sources[0]",
    ),
    "sources a tensor": (
        lambda t: t.perturb(params=[t.a], streams=[0], sources=torch.zeros(1, 300)),
        TypeError,
        "sources",
    ),
    "sources a generator": (lambda t: t.perturb(sources=iter([t.a, t.b])), TypeError, "sources"),
    # terms
    "no terms": (lambda t: t.chain([]), ValueError, "terms"),
    "65 terms": (lambda t: t.chain([TERM] * 65), ValueError, "terms"),
    "terms None": (lambda t: t.chain(None), TypeError, "terms"),
    "terms a Term": (lambda t: t.chain(TERM), TypeError, "terms"),
    "a term of two": (lambda t: t.chain([TERM, (1, 0)]), TypeError, "terms[1]"),
    "a term None": (lambda t: t.chain([TERM, None]), TypeError, "terms[1]"),
    "coef NaN": (lambda t: t.chain([TERM, Term(1, 0, NAN)]), ValueError, "terms[1].coef"),
    "coef beyond float32": (lambda t: t.chain([TERM, Term(1, 0, -1e300)]), ValueError, "terms[1].coef"),
    "term seed": (lambda t: t.chain([TERM, Term(-5, 0, 1.0)]), ValueError, "terms[1].seed"),
    "term query": (lambda t: t.chain([Term(1, 2**24, 1.0)]), ValueError, "terms[0].query"),
    "term dist": (lambda t: t.chain([Term(1, 0, 1.0, "sphere")]), ValueError, "terms[0].dist"),
    "decay infinite": (lambda t: t.chain(decay=INF), ValueError, "decay"),
    "decay beyond float32": (lambda t: t.chain(decay=1e39), ValueError, "decay"),
    # fused restore and update
    "eps zero": (lambda t: t.restore(eps=0.0), ValueError, "eps"),
    "eps negative": (lambda t: t.restore(eps=-1e-3), ValueError, "eps"),
    "eps NaN": (lambda t: t.restore(eps=NAN), ValueError, "eps"),
    "lr NaN": (lambda t: t.restore(lr=NAN), ValueError, "lr"),
    "lr negative": (lambda t: t.restore(lr=-1.0), ValueError, "lr"),
    "lr text": (lambda t: t.restore(lr="0.1"), TypeError, "lr"),
    "gradient NaN": (lambda t: t.restore(projected_grad=NAN), ValueError, "projected_grad"),
    "gradient a complex number": (lambda t: t.restore(projected_grad=1 + 0j), TypeError, "projected_grad"),
    "decay negative": (lambda t: t.restore(weight_decay=-0.1), ValueError, "weight_decay"),
    "step that overflows": (lambda t: t.restore(lr=1e200, projected_grad=1e200), ValueError, "lr"),
    "step beyond float32": (lambda t: t.restore(lr=1e20, projected_grad=1e20), ValueError, "lr"),
    "decay that overflows": (lambda t: t.restore(lr=1e200, weight_decay=1e200), ValueError, "weight_decay"),
    # Adam
    "states None": (
        lambda t: zo_adam_([t.a], None, [t.v], [0], [TERM], lr=0.1, step=1),
        TypeError,
        "exp_avgs",
    ),
    "too few states": (lambda t: t.adam(m=[]), ValueError, "exp_avgs"),
    "state of another shape": (lambda t: t.adam(v=[torch.zeros(299)]), ValueError, "exp_avg_sqs[0]"),
    "state of half precision": (lambda t: t.adam(m=[torch.zeros(300).half()]), TypeError, "exp_avgs[0]"),
    "float32 state of float64": (
        lambda t: t.adam(params=[torch.zeros(300).double()]),
        TypeError,
        "exp_avgs[0]",
    ),
    "states that are one": (lambda t: t.adam(v=[t.m]), ValueError, "exp_avg_sqs[0]"),
    "state that is the weight": (lambda t: t.adam(m=[t.a]), ValueError, "exp_avgs[0]"),
    "step zero": (lambda t: t.adam(step=0), ValueError, "step"),
    "step a float": (lambda t: t.adam(step=1.0), TypeError, "step"),
    "beta1 one": (lambda t: t.adam(beta1=1.0), ValueError, "beta1"),
    "beta2 negative": (lambda t: t.adam(beta2=-0.1), ValueError, "beta2"),
    "Adam eps zero": (lambda t: t.adam(eps=0.0), ValueError, "eps"),
    "Adam eps that is zero in float32": (lambda t: t.adam(eps=1e-50), ValueError, "eps"),
    "Adam lr negative": (lambda t: t.adam(lr=-0.1), ValueError, "lr"),
    "Adam decay that overflows": (lambda t: t.adam(lr=1e200, weight_decay=1e200), ValueError, "weight_decay"),
    "Adam rate beyond float32": (lambda t: t.adam(lr=1e39), ValueError, "lr"),
    # sampling
    "n negative": (lambda t: zo_sample(1, n=-1), ValueError, "n"),
    "n a float": (lambda t: zo_sample(1, n=4.0), TypeError, "n"),
    "first negative": (lambda t: zo_sample(1, n=4, first=-1), ValueError, "first"),
    "first too large": (lambda t: zo_sample(1, n=4, first=2**62 + 1), ValueError, "first"),
    "sample int": (lambda t: zo_sample(1, n=4, dtype=torch.int32), TypeError, "dtype"),
    "sample dtype text": (lambda t: zo_sample(1, n=4, dtype="float32"), TypeError, "dtype"),
    "sample stream": (lambda t: zo_sample(1, 2**32, n=4), ValueError, "stream"),
    "sample query": (lambda t: zo_sample(1, 0, 2**24, n=4), ValueError, "query"),
    "sample dist": (lambda t: zo_sample(1, n=4, dist="mask"), ValueError, "dist"),
    "moments dist": (lambda t: zo_moments(1, n=4, dist="mask"), ValueError, "dist"),
    "moments n": (lambda t: zo_moments(1, n=-4), ValueError, "n"),
    "words purpose": (lambda t: random_words(1, purpose="noise", blocks=1), ValueError, "purpose"),
    "words blocks": (lambda t: random_words(1, blocks=-1), ValueError, "blocks"),
    "words first": (lambda t: random_words(1, blocks=1, first_block=-1), ValueError, "first_block"),
    # rounding
    "round to int": (lambda t: stochastic_round(t.a, torch.int32, 1), TypeError, "dtype"),
    "round an int": (
        lambda t: stochastic_round(torch.zeros(3, dtype=torch.int64), torch.bfloat16, 1),
        TypeError,
        "x",
    ),
    "round a list": (lambda t: stochastic_round([1.0], torch.bfloat16, 1), TypeError, "x"),
    "round seed": (lambda t: stochastic_round(t.a, torch.bfloat16, -1), ValueError, "seed"),
    "round NumPy to bfloat16": (
        lambda t: stochastic_round(np.ones(3, np.float32), torch.bfloat16, 1),
        TypeError,
        "dtype",
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("what", list(BAD))
def test_bad_input(what):
    call, kind, argument = BAD[what]
    case = Case()
    with pytest.raises(kind) as caught:
        call(case)
    message = str(caught.value)
    for name in argument.split(" and "):  # as a word of its own
        assert re.search(rf"(^|[^\w]){re.escape(name)}(?!\w)", message), message
    assert "got" in message
    assert case.unchanged()


def test_good_input_of_the_same_cases_passes():
    """Else the table above could pass because everything fails."""
    case = Case()
    case.perturb()
    case.chain([TERM, (1, 0, 0.5), (1, 0, 0.5, "rademacher")])
    case.restore()
    case.adam()
    assert not case.unchanged()


def test_messages_have_one_form():
    with pytest.raises(ValueError, match=r"^query: expected an integer in \[0, 2\^24\), got 16777216$"):
        Case().perturb(query=2**24)
    with pytest.raises(ValueError, match=r"^eps: expected a finite number > 0, got 0\.0$"):
        Case().restore(eps=0.0)
    with pytest.raises(ValueError, match=r"^streams: expected 2 entries .*, got 1$"):
        Case().perturb(streams=[0])


def test_coefficients_beyond_float32_are_fine_for_float64_weights():
    w = torch.zeros(10, dtype=torch.float64)
    zo_perturb_([w], [0], 1, 0, 1e300)
    assert torch.isfinite(w).all()
    assert torch.equal(w, 1e300 * zo_sample(1, n=10, dtype=torch.float64))
    with pytest.raises(ValueError, match="c"):
        zo_perturb_([torch.zeros(10, dtype=torch.float64), torch.zeros(10)], [0, 1], 1, 0, 1e300)


def test_the_largest_float32_coefficient_is_fine():
    w = torch.zeros(100)
    zo_perturb_([w], [0], 1, 0, 3.4028234e38, "rademacher")
    assert torch.isfinite(w).all()


def test_columns_of_one_matrix_are_not_shared_memory():
    """The halves of a fused projection interleave in memory but share no element."""
    fused = torch.zeros(30, 40)
    left, right = fused[:, :25], fused[:, 25:]
    zo_perturb_([left, right], [0, 1], 1, 0, 1.0)
    assert torch.equal(left.reshape(-1), zo_sample(1, 0, n=750))
    assert torch.equal(right.reshape(-1), zo_sample(1, 1, n=450))
    middle = torch.zeros(30, 40)[:, 10:20]
    whole = middle._base
    zo_perturb_([whole[5:, 20:], middle, whole[:, :10]], [0, 1, 2], 1, 0, 1.0)
    assert torch.equal(middle.reshape(-1), zo_sample(1, 1, n=300))
    assert (whole[:5, 20:] == 0).all()


def test_numpy_integers_and_floats_are_taken():
    a, b = torch.zeros(50), torch.zeros(50)
    zo_perturb_([a], [np.uint32(3)], np.uint64(7), np.int64(2), np.float32(0.5))
    zo_perturb_([b], [3], 7, 2, 0.5)
    assert torch.equal(a, b)


def test_a_zero_dimensional_tensor_is_a_number():
    a, b = torch.zeros(50), torch.zeros(50)
    zo_perturb_([a], [3], 7, 2, torch.tensor(0.5))
    zo_perturb_([b], [3], 7, 2, 0.5)
    assert torch.equal(a, b)


# -- what the dispatcher admits must not reach memory that is not there -------------------------------------

OPS = torch.ops.tenfold
_CHAIN = (1.0, None, False, 0, 0)


def adam_call(p: Tensor, m: Tensor, v: Tensor) -> None:
    OPS.zo_adam_([p], [m], [v], [0], [1], [0], [0.1], ["gaussian"], 0.1, 0.9, 0.99, 1e-8, 1, *_CHAIN)


RAW: dict[str, Callable[[], object]] = {
    "short source": lambda: OPS.zo_chain_(
        [torch.zeros(50_000)], [torch.zeros(3)], [0], [1], [0], [0.1], ["gaussian"], *_CHAIN
    ),
    "source dtype": lambda: OPS.zo_chain_(
        [torch.zeros(500, dtype=torch.float64)],
        [torch.zeros(500)],
        [0],
        [1],
        [0],
        [0.1],
        ["gaussian"],
        *_CHAIN,
    ),
    "too few sources": lambda: OPS.zo_chain_(
        [torch.zeros(5), torch.zeros(5)], [torch.zeros(5)], [0, 1], [1], [0], [0.1], ["gaussian"], *_CHAIN
    ),
    "too few streams": lambda: OPS.zo_chain_(
        [torch.zeros(5)], [], [], [1], [0], [0.1], ["gaussian"], *_CHAIN
    ),
    "too few coefs": lambda: OPS.zo_chain_([torch.zeros(5)], [], [0], [1], [0], [], ["gaussian"], *_CHAIN),
    "integer weights": lambda: OPS.zo_chain_(
        [torch.zeros(5, dtype=torch.int64)], [], [0], [1], [0], [0.1], ["gaussian"], *_CHAIN
    ),
    "unknown dist": lambda: OPS.zo_chain_([torch.zeros(5)], [], [0], [1], [0], [0.1], ["lowrank_u"], *_CHAIN),
    "short state": lambda: adam_call(torch.zeros(50_000), torch.zeros(5), torch.zeros(50_000)),
    "state dtype": lambda: adam_call(torch.zeros(500), torch.zeros(500), torch.zeros(500).half()),
    "sample into every other element": lambda: OPS.zo_sample_(
        torch.zeros(600, 2)[:, 0], 1, 0, 0, 0, "gaussian"
    ),
    "sample into integers": lambda: OPS.zo_sample_(
        torch.zeros(600, dtype=torch.int32), 1, 0, 0, 0, "gaussian"
    ),
    "words into int32": lambda: OPS.random_words_(
        torch.zeros(500, 4, dtype=torch.int32), 1, 0, 0, "gaussian", 0
    ),
    "words into columns of three": lambda: OPS.random_words_(
        torch.zeros(500, 3, dtype=torch.int64), 1, 0, 0, "gaussian", 0
    ),
    "words into a transpose": lambda: OPS.random_words_(
        torch.zeros(4, 50, dtype=torch.int64).t(), 1, 0, 0, "gaussian", 0
    ),
    "round to integers": lambda: OPS.stochastic_round(torch.zeros(500), torch.int8, 1, 0, 0, 0),
}


@pytest.mark.parametrize("name", list(RAW))
def test_the_dispatcher_refuses_what_would_corrupt_memory(in_child, name):
    """In a child: where the check is missing, the heap is damaged."""

    def call() -> None:
        with pytest.raises((TypeError, ValueError, RuntimeError, KeyError)):
            RAW[name]()

    assert in_child(call) == 0
