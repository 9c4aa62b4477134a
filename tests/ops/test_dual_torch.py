"""Perturbed layers inside PyTorch, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tenfold
from tenfold.ops import zo_embedding_dual, zo_embedding_perturbed, zo_linear_dual, zo_linear_perturbed

OPS = torch.ops.tenfold
PAIR = ([3, 3], [0.1, -0.1])


def linear_arguments(
    dtype: torch.dtype, fold: bool = True, bias: bool = True, out: torch.dtype | None = None
) -> tuple:
    x, w, b = torch.randn(2, 3, 8).to(dtype), torch.randn(5, 8).to(dtype), torch.randn(5).to(dtype)
    return (x, w, b if bias else None, -5, 1, 2, *PAIR, "gaussian", fold, None, out or dtype)


CASES: dict[str, tuple[str, Callable[[], tuple]]] = {
    **{
        f"linear {str(d)[6:]} {'fold' if fold else 'split'}": (
            "zo_linear_perturbed",
            lambda d=d, fold=fold: linear_arguments(d, fold),
        )
        for d in (torch.float32, torch.bfloat16, torch.float64)
        for fold in (True, False)
    },
    "linear without bias": ("zo_linear_perturbed", lambda: linear_arguments(torch.float32, bias=False)),
    "linear to float32": (
        "zo_linear_perturbed",
        lambda: linear_arguments(torch.bfloat16, False, out=torch.float32),
    ),
    "embedding": (
        "zo_embedding_perturbed",
        lambda: (torch.randint(0, 5, (2, 3)), torch.randn(5, 8), 1, 2, *PAIR, "rademacher", torch.bfloat16),
    ),
    "embedding strided": (
        "zo_embedding_perturbed",
        lambda: (torch.randint(0, 5, (2, 3)).int(), torch.randn(8, 5).t(), 1, 2, *PAIR, "gaussian", None),
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_opcheck(case):
    name, make = CASES[case]
    assert set(torch.library.opcheck(getattr(OPS, name).default, make()).values()) == {"SUCCESS"}


def network(ids: Tensor, table: Tensor, w: Tensor, b: Tensor, seed: int, eps: float) -> Tensor:
    h = zo_embedding_dual(ids, table, seed=seed, stream=0, eps=eps)
    h = zo_linear_dual(h, w, b, seed=seed, stream=1, bias_stream=2, eps=eps).relu()
    return zo_linear_perturbed(h, table, seed=seed, stream=0, queries=[0, 0], coefs=[eps, -eps])


def operands() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return torch.randint(0, 9, (2, 4)), torch.randn(9, 8), torch.randn(8, 8), torch.randn(8)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(backend):
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for seed, eps in ((1, 0.1), (2**63 + 9, 0.2)):
        assert torch.equal(compiled(*operands(), seed, eps), network(*operands(), seed, eps))
    torch._dynamo.reset()


def test_fakes_say_shape_and_dtype():
    x, w = torch.empty(2, 2**20, 2**10, device="meta"), torch.empty(2**20, 2**10, device="meta")
    y = zo_linear_dual(x, w, seed=1, stream=0, eps=1e-3, out_dtype=torch.bfloat16)
    assert y.shape == (2, 2**20, 2**20)
    assert y.dtype == torch.bfloat16
    ids = torch.empty(2, 2**30, device="meta", dtype=torch.int64)
    assert zo_embedding_dual(ids, w, seed=1, stream=0, eps=1e-3).shape == (2, 2**30, 2**10)


def test_inference_mode_and_no_grad():
    want = network(*operands(), 3, 0.1)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert torch.equal(network(*operands(), 3, 0.1), want)
    ids, *weights = operands()
    for w in weights:
        w.requires_grad_()
    with torch.no_grad():
        y = network(ids, *weights, 3, 0.1)
    assert torch.equal(y, want)
    assert not y.requires_grad
    assert torch.equal(
        network(*operands(), 3, 0.1), want
    )  # a buffer made under inference mode serves outside


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_a_gradient_that_is_asked_for_is_refused(which):
    given = {"x": torch.randn(2, 3, 8), "weight": torch.randn(5, 8), "bias": torch.randn(5)}
    given[which].requires_grad_()
    with pytest.raises(RuntimeError, match=rf"{which}: .* no backward: call under torch.no_grad"):
        zo_linear_dual(**given, seed=1, stream=0, eps=0.1)
    if which == "weight":
        with pytest.raises(RuntimeError, match=r"weight: .*no backward"):
            zo_embedding_dual(
                torch.zeros(2, 1, dtype=torch.int64), given["weight"], seed=1, stream=0, eps=0.1
            )


def test_autocast_changes_nothing():
    want = network(*operands(), 3, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = network(*operands(), 3, 0.1)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


class Redirect(TorchFunctionMode):
    """A model's own F.linear and F.embedding calls, turned into perturbed ones."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, w, *b = args
            bias = b[0] if b else (kwargs or {}).get("bias")
            return zo_linear_dual(x, w, bias, seed=1, stream=0, bias_stream=1, eps=0.1)
        return func(*args, **(kwargs or {}))


def test_inside_a_torch_function_mode():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.randn(2, 4, 8)
    with torch.no_grad():
        with Redirect():
            got = model(x)
        first, last = model[0], model[2]
        options = {"seed": 1, "stream": 0, "bias_stream": 1, "eps": 0.1}
        h = zo_linear_dual(x, first.weight, first.bias, **options).relu()
        assert torch.equal(got, zo_linear_dual(h, last.weight, last.bias, **options))


def test_numpy_arrays_come_and_go():
    x, w = np.ones((2, 3, 8), np.float32), np.ones((5, 8), np.float32)
    y = zo_linear_dual(x, w, seed=1, stream=0, eps=0.1)
    assert isinstance(y, np.ndarray)
    want = zo_linear_dual(torch.ones(2, 3, 8), torch.ones(5, 8), seed=1, stream=0, eps=0.1)
    assert np.array_equal(y, want.numpy())


def test_the_native_backend_is_the_default():
    for op in ("zo_linear_perturbed", "zo_embedding_perturbed"):
        assert tenfold._backend.chosen_backend(op, "cpu") == "cpu"


# -- what is refused ------------------------------------------------------------------------------------

X, W, B = torch.zeros(2, 3, 8), torch.zeros(5, 8), torch.zeros(5)
BAD: dict[str, tuple[type[Exception], str, dict]] = {
    "a weight of three dimensions": (
        ValueError,
        "weight: expected a matrix",
        {"weight": torch.zeros(2, 5, 8)},
    ),
    "another width": (ValueError, r"x: expected shape \[P, ..., 8\]", {"x": torch.zeros(2, 3, 7)}),
    "no copies": (ValueError, "x: expected shape", {"x": torch.zeros(0, 3, 8)}),
    "another dtype": (TypeError, "x.dtype: expected", {"x": X.bfloat16()}),
    "an integer weight": (TypeError, "weight: expected dtype", {"weight": W.long()}),
    "a bias of another length": (ValueError, r"bias: expected shape \[5\]", {"bias": torch.zeros(4)}),
    "a bias of another dtype": (TypeError, "bias.dtype", {"bias": B.double()}),
    "a list for x": (TypeError, "x: expected", {"x": [1.0]}),
    "three queries": (ValueError, "queries: expected 2 entries", {"queries": [0, 0, 0]}),
    "one coefficient": (ValueError, "coefs: expected 2 entries", {"coefs": [0.1]}),
    "query of 25 bits": (ValueError, r"queries\[1\]", {"queries": [0, 2**24]}),
    "NaN": (ValueError, r"coefs\[0\]", {"coefs": [math.nan, 0.1]}),
    "beyond float32": (ValueError, r"coefs\[1\]", {"coefs": [0.1, 1e39]}),
    "seed": (ValueError, "seed", {"seed": 2**64}),
    "stream": (ValueError, "stream", {"stream": -1}),
    "bias stream": (ValueError, "bias_stream", {"bias_stream": 2**32}),
    "distribution": (ValueError, "dist", {"dist": "uniform"}),
    "mode": (ValueError, "mode", {"mode": "both"}),
    "z_round": (TypeError, "z_round", {"z_round": torch.float64}),
    "out_dtype": (TypeError, "out_dtype", {"out_dtype": torch.int32}),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_arguments_are_named(case):
    kind, message, changed = BAD[case]
    given = {"x": X, "weight": W, "bias": B, "seed": 1, "queries": [0, 0], "coefs": [0.1, -0.1], **changed}
    with pytest.raises(kind, match=message):
        zo_linear_perturbed(**given)


@pytest.mark.parametrize(
    ("kind", "message", "changed"),
    [
        (ValueError, "weight: expected a matrix", {"weight": B}),
        (TypeError, "ids: expected dtype", {"ids": torch.zeros(2, 3)}),
        (ValueError, "ids: expected shape", {"ids": torch.zeros((), dtype=torch.int64)}),
        (ValueError, "eps", {"eps": 0.0}),
        (ValueError, "ids: expected 4 copies, two for each query", {"query": [1, 2]}),
        (ValueError, "padding_idx", {"padding_idx": 5}),
        (TypeError, "stream", {"stream": None}),
    ],
)
def test_bad_arguments_of_the_embedding(kind, message, changed):
    given = {
        "ids": torch.zeros(2, 3, dtype=torch.int64),
        "weight": W,
        "seed": 1,
        "stream": 0,
        "eps": 0.1,
        **changed,
    }
    with pytest.raises(kind, match=message):
        zo_embedding_dual(**given)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.inf, math.nan])
def test_eps_is_positive(eps):
    with pytest.raises(ValueError, match="eps"):
        zo_linear_dual(X, W, seed=1, stream=0, eps=eps)


def test_copies_of_the_embedding_are_counted():
    with pytest.raises(ValueError, match="coefs: expected 2 entries"):
        zo_embedding_perturbed(torch.zeros(2, 3, dtype=torch.int64), W, seed=1, queries=[0, 0], coefs=[0.1])
