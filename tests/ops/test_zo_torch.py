"""The ops inside PyTorch: opcheck, compile, autocast, inference mode, version counters, gradients, vmap."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tenfold
from tenfold.ops import (
    Term,
    random_words,
    stochastic_round,
    zo_adam_,
    zo_chain_,
    zo_perturb_,
    zo_restore_update_,
    zo_sample,
)

from .test_zo_state_torch import CASES as STATEFUL

OPS = torch.ops.tenfold
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# -- opcheck ------------------------------------------------------------------------------------------------


def chain_args(params: list[Tensor], sources: list[Tensor] | None = None, stochastic: bool = False) -> tuple:
    terms = ([1, -(2**63)], [0, 2**24 - 1], [0.1, -0.2], ["gaussian", "rademacher"])
    return (params, sources or [], list(range(len(params))), *terms, 0.9, torch.bfloat16, stochastic, -1, 3)


def adam_args(*shape: int, dtype: torch.dtype = torch.float32) -> tuple:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    states = [torch.zeros(shape, dtype=wide)], [torch.ones(shape, dtype=wide)]
    options = (0.1, 0.9, 0.99, 1e-8, 2, 0.99, None, True, 7, 0)
    return ([torch.ones(shape, dtype=dtype)], *states, [3], [1], [0], [0.5], ["gaussian"], *options)


CASES: dict[str, tuple[str, Callable[[], tuple]]] = {
    "chain mixed dtypes": (
        "zo_chain_",
        lambda: chain_args([torch.randn(5).to(d) for d in FLOATS], stochastic=True),
    ),
    "chain strided": ("zo_chain_", lambda: chain_args([torch.randn(5, 6).t(), torch.randn(7)[::2]])),
    "chain sources": ("zo_chain_", lambda: chain_args([torch.randn(5, 3)], [torch.randn(3, 5).t()])),
    "chain empty and scalar": ("zo_chain_", lambda: chain_args([torch.empty(0, 3), torch.tensor(1.0)])),
    "adam": ("zo_adam_", lambda: adam_args(4, 5)),
    "adam bfloat16": ("zo_adam_", lambda: adam_args(30, dtype=torch.bfloat16)),
    "sample": ("zo_sample_", lambda: (torch.empty(70), -5, 1, 2, 3, "gaussian")),
    "sample bfloat16": ("zo_sample_", lambda: (torch.empty(70, dtype=torch.bfloat16), 1, 1, 2, 3, "uniform")),
    "words": ("random_words_", lambda: (torch.empty(7, 4, dtype=torch.int64), 1, 0, 0, "mask", 9)),
    **{
        f"round {str(dtype)[6:]} to {str(to)[6:]}": (
            "stochastic_round",
            lambda dtype=dtype, to=to: (torch.randn(3, 4).to(dtype).requires_grad_(), to, 1, 0, 0, 0),
        )
        for dtype, to in zip(FLOATS, (*FLOATS[1:], FLOATS[0]), strict=True)
    },
    "round a transpose": ("stochastic_round", lambda: (torch.randn(3, 4).t(), torch.float16, 1, 0, 0, 5)),
    "round nothing": ("stochastic_round", lambda: (torch.randn(0, 4), torch.float16, 1, 0, 0, 5)),
    "round channels last": (
        "stochastic_round",
        lambda: (torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.bfloat16, 1, 0, 0, 0),
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_opcheck(case):
    name, arguments = CASES[case]
    results = torch.library.opcheck(getattr(OPS, name).default, arguments())
    assert set(results.values()) == {"SUCCESS"}


def test_every_zeroth_order_op_is_checked():
    registered = {
        s.name.removeprefix("tenfold::")
        for s in torch._C._jit_get_all_schemas()
        if s.name.startswith("tenfold::")
    }
    elsewhere = ("zo_lowrank", "zo_linear", "zo_embedding")  # test_lowrank.py, test_dual.py
    passes = {n for n in registered if n.startswith("zo_") and not n.startswith(elsewhere)}
    ours = passes | ({"random_words_", "stochastic_round"} & registered)
    stateful = {name for name, _ in STATEFUL.values()}
    assert ours == {name for name, _ in CASES.values()} | {n for n in stateful if n.startswith("zo_")}


@pytest.mark.parametrize("op", ["zo_chain_", "zo_adam_", "zo_sample_", "random_words_", "stochastic_round"])
def test_fakes_say_shape_and_dtype_and_write_nothing(op):
    arguments = next(make for name, make in CASES.values() if name == op)()
    mode = torch._subclasses.FakeTensorMode()
    with mode:
        fake = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
        result = getattr(OPS, op)(*fake)
    if op == "stochastic_round":
        assert result.shape == arguments[0].shape
        assert result.dtype == arguments[1]
    else:
        assert result is None


def test_meta_tensors_cost_nothing():
    huge = torch.empty(2**50, device="meta", dtype=torch.bfloat16)
    zo_perturb_([huge], [0], 1, 0, 0.1)
    assert stochastic_round(torch.empty(2**50, device="meta"), torch.bfloat16, 1).shape == huge.shape
    assert zo_sample(1, n=2**50, device="meta").device.type == "meta"
    assert random_words(1, blocks=2**40, device="meta").shape == (2**40, 4)


# -- torch.compile ------------------------------------------------------------------------------------------


def everything(p: Tensor, q: Tensor, m: Tensor, v: Tensor, seed: int, c: float) -> Tensor:
    """Calls every public op once."""
    zo_perturb_([p, q], [0, 1], seed, 0, c)
    terms = [Term(seed, 1, c), Term(seed, 2, -c, "rademacher")]
    zo_chain_([p], [0], terms, decay=0.99, out_rounding="sr", z_round=torch.bfloat16)
    zo_restore_update_([p, q], [0, 1], seed, 0, eps=1e-3, lr=1e-2, projected_grad=c, weight_decay=0.1)
    zo_adam_([q], [m], [v], [1], terms, lr=0.1, step=3)
    words = random_words(seed, purpose="mask", blocks=2, device=p.device)
    rounded = stochastic_round(q, torch.bfloat16, seed)
    return (
        zo_sample(seed, n=6, device=p.device).sum() + words.sum() + rounded.float().sum() + p.float().mean()
    )


def fresh(device: torch.device | str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    tensors = [torch.randn(33).bfloat16(), torch.randn(4, 5), torch.zeros(4, 5), torch.zeros(4, 5)]
    return [t.to(device) for t in tensors]


def compare(compiled: Callable, seed: int, c: float) -> None:
    a, b = fresh(), fresh()
    got, want = compiled(*a, seed, c), everything(*b, seed, c)
    assert torch.equal(got, want)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


@pytest.fixture
def clean_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(clean_dynamo, backend):
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    for seed, c in ((1, 0.1), (2, 0.2), (2**63 + 5, 0.1)):
        compare(compiled, seed, c)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX") or "g++"), reason="needs a C++ compiler")
def test_compile_with_inductor(clean_dynamo):
    compiled = torch.compile(everything, fullgraph=True)
    for seed, c in ((1, 0.1), (2, 0.2), (3, -0.3)):
        compare(compiled, seed, c)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_new_seed_every_step_does_not_recompile(clean_dynamo, backend):
    """Every step of a run has its own seed; the ninth recompilation would end the run."""
    compiled = torch.compile(everything, fullgraph=True, backend=backend)
    torch._dynamo.utils.counters.clear()
    for step in range(20):
        compare(compiled, 0x9E3779B97F4A7C15 * (step + 1) % 2**64, 0.1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6


def test_compiled_model_with_perturbed_weights(clean_dynamo):
    def loss(weight: Tensor, x: Tensor, seed: int) -> Tensor:
        with torch.no_grad():
            zo_perturb_([weight], [0], seed, 0, 0.5)
        return (x @ weight).square().sum()

    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    w1 = torch.ones(8, 8)
    w2 = w1.clone()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(w1, x, 3), loss(w2, x, 3))
    assert torch.equal(w1, w2)


# -- modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    a, b = torch.ones(200), torch.ones(200)
    zo_perturb_([a], [0], 1, 0, 0.1)
    with torch.autocast("cpu", dtype=dtype):
        zo_perturb_([b], [0], 1, 0, 0.1)
        z = zo_sample(1, n=5)
        rounded = stochastic_round(a, torch.bfloat16, 1)
    assert torch.equal(a, b)
    assert z.dtype == torch.float32
    assert torch.equal(rounded, stochastic_round(a, torch.bfloat16, 1))


def test_inference_mode():
    outside, clean = torch.ones(100), torch.ones(100)
    with torch.inference_mode():
        inside = torch.ones(100)
        zo_perturb_([inside, outside], [0, 0], 1, 0, 0.1)
        zo_perturb_([inside], [0], 1, 1, 0.1, sources=[clean])
        zo_adam_([inside], [torch.zeros(100)], [torch.zeros(100)], [0], [Term(1, 0, 1.0)], lr=0.1, step=1)
        z = zo_sample(1, n=100)
        assert stochastic_round(inside, torch.float16, 1).shape == (100,)
    assert torch.equal(outside, torch.addcmul(torch.ones(100), z, torch.tensor(0.1)))
    assert not z.requires_grad


def test_default_device_and_dtype_do_not_matter():
    expected = zo_sample(1, n=10)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            z = zo_sample(1, n=10)
    finally:
        torch.set_default_dtype(torch.float32)
    assert z.dtype == torch.float32
    assert torch.equal(z, expected)


# -- autograd -----------------------------------------------------------------------------------------------


def test_version_counters_are_bumped():
    p, s, m, v = torch.ones(4, 30).unbind()
    p, s, m, v = (t.clone() for t in (p, s, m, v))
    before = [t._version for t in (p, s, m, v)]
    zo_perturb_([p], [0], 1, 0, 0.1, sources=[s])
    assert [t._version > b for t, b in zip((p, s, m, v), before, strict=True)] == [True, False, False, False]
    before = [t._version for t in (p, s, m, v)]
    zo_adam_([p], [m], [v], [0], [Term(1, 0, 1.0)], lr=0.1, step=1)
    assert [t._version > b for t, b in zip((p, s, m, v), before, strict=True)] == [True, False, True, True]
    base = torch.zeros(10)
    zo_restore_update_([base[2:5]], [0], 1, 0, eps=1e-3, lr=0.1, projected_grad=1.0)
    assert base._version > 0


def test_backward_through_changed_weights_is_refused():
    w = torch.nn.Parameter(torch.ones(10))
    x = torch.ones(10, requires_grad=True)
    loss = (w * x).sum()
    with torch.no_grad():
        zo_perturb_([w], [0], 1, 0, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_are_written_under_no_grad_and_stay_leaves():
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.LayerNorm(5))
    before = copy.deepcopy(model.state_dict())
    pointers = [p.data_ptr() for p in model.parameters()]
    with torch.no_grad():
        zo_perturb_(list(model.parameters()), range(4), 1, 0, 0.1)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.is_leaf and p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())
    model(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("to", FLOATS)
def test_the_gradient_of_rounding_passes_straight_through(to):
    x = torch.randn(6, dtype=torch.float32, requires_grad=True)
    weight = torch.arange(1.0, 7.0)
    (stochastic_round(x, to, 1).float() * weight).sum().backward()
    assert x.grad.dtype == torch.float32
    assert torch.equal(x.grad, weight)


def test_gradcheck_of_rounding():
    # To a float64 result nothing is rounded, so that the numerical derivative is that of the identity.
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: stochastic_round(t, torch.float64, 1), (x,))
    assert torch.autograd.gradgradcheck(lambda t: stochastic_round(t, torch.float64, 1), (x,))


def test_double_precision_is_not_rounded_on_the_way():
    x = torch.tensor([0.1, 1 / 3], dtype=torch.float64)
    got = stochastic_round(x, torch.float64, 1)
    assert torch.equal(got, x)
    assert got.data_ptr() != x.data_ptr()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_of_rounding():
    x = torch.randn(7, 40)
    got = torch.vmap(lambda row: OPS.stochastic_round(row, torch.bfloat16, 1, 0, 0, 0))(x)
    want = torch.stack([stochastic_round(row, torch.bfloat16, 1) for row in x])
    assert torch.equal(got, want)


# -- backends -----------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_the_backend(backend):
    """Every public op on every backend gives the bits of the reference."""
    a, b = fresh(backend.device), fresh(backend.device)
    calls = (0xABCDEF0123456789, 0.25)
    got = everything(*a, *calls)
    with tenfold.use_backend("reference"):
        want = everything(*b, *calls)
    for x, y in zip([*a, got], [*b, want], strict=True):
        assert torch.equal(x, y)
