"""Sophia passes in every format of weights, gradients and states: the reference bit for bit, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tenfold
from tenfold import _native
from tenfold._backend import OPS
from tenfold.ops import sophia8_dequantize, sophia8_quantize, sophia_hessian_, sophia_step_


@pytest.fixture(autouse=True)
def _written_for(request: pytest.FixtureRequest) -> None:
    """Skips backends that the family is not written for; forcing one raises."""
    if "backend" in request.fixturenames:
        name = request.getfixturevalue("backend").name
        if name not in OPS["sophia_step_"]:
            pytest.skip(f"the Sophia passes are not written for {name}")


SIZES = [(1,), (255,), (257,), (3, 683), (4097,)]
SMALL = [(1,), (255,), (257,), (3, 43), (1025,)]
"""For the interpreter of Triton, whose time goes with the tiles of 1,024 elements."""
F32, F64, BF16, F16, U8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8

FORMATS = [
    (F32, F32, F32),
    (F64, F64, F64),
    (BF16, BF16, F32),
    (BF16, F32, BF16),
    (F16, F16, F32),
    (F16, F32, U8),
    (F32, F32, BF16),
    (F32, F32, U8),
    (BF16, BF16, BF16),
    (BF16, BF16, U8),
]


def _sizes(backend: Any) -> list[tuple[int, ...]]:
    return SMALL if backend.interpreted else SIZES


def _leave_to_slow(request: pytest.FixtureRequest, backend: Any, chosen: bool) -> None:
    """Triton is interpreted where there is no GPU: of the combinations a part is fast enough."""
    if backend.interpreted and not chosen and not request.config.getoption("--slow"):
        pytest.skip("slow in Triton's interpreter (run with --slow)")


class Problem:
    """Weights, gradients and states of several sizes, some gradients not finite, as keywords of the op."""

    def __init__(
        self,
        param: torch.dtype,
        grad: torch.dtype,
        state: torch.dtype,
        device: torch.device,
        sizes: list[tuple[int, ...]] = SIZES,
    ) -> None:
        generator = torch.Generator().manual_seed(5)
        wide = F64 if param == F64 else F32

        def draw(shape: tuple[int, ...], scale: float) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=wide) * scale

        self.params = [draw(s, 0.02).to(param).to(device) for s in sizes]
        self.grads = [draw(s, 1e-2).to(grad) for s in sizes]
        for g in self.grads[2:]:
            g.view(-1)[:4] = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0])
        self.grads = [g.to(device) for g in self.grads]
        means = [draw(s, 1e-2) for s in sizes]
        bends = [draw(s, 1.0).exp() * 1e-2 for s in sizes]
        for m, h in zip(means, bends, strict=True):
            m.view(-1)[5::97] = 0
            h.view(-1)[6::53] = 0
        self.scales: dict[str, Any] = {}
        if state == U8:
            with tenfold.use_backend("reference"):
                m8, h8 = (
                    [sophia8_quantize(t, kind) for t in tensors]
                    for kind, tensors in (("exp_avg", means), ("hessian", bends))
                )
            self.exp_avgs, self.hessians = ([c.to(device) for c, _ in pairs] for pairs in (m8, h8))
            self.scales = {
                "exp_avg_scales": [s.to(device) for _, s in m8],
                "hessian_scales": [s.to(device) for _, s in h8],
            }
        else:
            self.exp_avgs = [t.to(state).to(device) for t in means]
            self.hessians = [t.to(state).to(device) for t in bends]

    def extras(self, kind: str) -> dict[str, Any]:
        if kind == "masters":
            return {"masters": [p.float() + 1e-4 for p in self.params], "rounding": "stochastic"}
        if kind == "kahan":
            return {"compensations": [torch.zeros_like(p) for p in self.params], "rounding": kind}
        return {"rounding": kind}


def _run(
    backend_name: str,
    device: torch.device,
    formats: tuple[torch.dtype, ...],
    extra: str,
    steps: int = 2,
    sizes: list[tuple[int, ...]] = SIZES,
    **options: Any,
) -> tuple[dict[str, Tensor], Tensor]:
    """Everything the steps wrote, and the statistics."""
    p = Problem(*formats, device, sizes)
    extras = p.extras(extra)
    stats = torch.zeros(6, dtype=F64, device=device) if options.pop("with_stats", False) else None
    settings = (
        {"lr": 1e-3, "beta1": 0.9, "denom_scale": 0.5, "weight_decay": 0.1} | extras | p.scales | options
    )
    with tenfold.use_backend(backend_name):
        for step in range(steps):
            sophia_step_(
                p.params, p.grads, p.exp_avgs, p.hessians, seed=2**63 + 5, step=step, stats=stats, **settings
            )
    lists = {"params": p.params, "exp_avgs": p.exp_avgs, "hessians": p.hessians, **p.scales}
    lists |= {k: v for k, v in extras.items() if isinstance(v, list)}
    return {f"{k}[{i}]": t.cpu() for k, v in lists.items() for i, t in enumerate(v)}, (
        torch.zeros(6) if stats is None else stats.cpu()
    )


def _same_bits(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        a, b = got[name], value
        if a.is_floating_point():  # NaN has many bits
            assert torch.equal(a.isnan(), b.isnan()), name
            a, b = a.nan_to_num(7.0, 8.0, 9.0), b.nan_to_num(7.0, 8.0, 9.0)
        assert torch.equal(a, b), f"{name}: {int((a != b).sum())} of {a.numel()} differ"


@pytest.mark.parametrize("extra", ["nearest", "stochastic", "kahan", "masters"])
@pytest.mark.parametrize("formats", FORMATS, ids=lambda f: "-".join(str(d).removeprefix("torch.") for d in f))
def test_a_step_is_the_reference(
    backend: Any, formats: tuple[torch.dtype, ...], extra: str, request: pytest.FixtureRequest
) -> None:
    if extra == "masters" and formats[0] == F64:
        pytest.skip("float64 weights have no masters")
    in_turn = ("stochastic", "nearest", "kahan", "masters")[FORMATS.index(formats) % 4]
    _leave_to_slow(request, backend, extra == in_turn)
    options: dict[str, Any] = {"sizes": _sizes(backend)}
    options |= {"denom": "add", "hessian_beta2": 0.95, "maximize": True} if extra == "stochastic" else {}
    got, _ = _run(backend.name, backend.device, formats, extra, **options)
    expected, _ = _run("reference", torch.device("cpu"), formats, extra, **options)
    _same_bits(got, expected)


@pytest.mark.parametrize("extra", ["nearest", "stochastic", "kahan", "masters"])
@pytest.mark.parametrize(
    "formats", [FORMATS[0], FORMATS[1], FORMATS[2], FORMATS[5]], ids=["f32", "f64", "bf16", "u8"]
)
@pytest.mark.parametrize("nonfinite", ["propagate", "skip_element"])
def test_statistics_are_the_reference(
    backend: Any,
    formats: tuple[torch.dtype, ...],
    extra: str,
    nonfinite: str,
    request: pytest.FixtureRequest,
) -> None:
    if extra == "masters" and formats[0] == F64:
        pytest.skip("float64 weights have no masters")
    _leave_to_slow(request, backend, (extra == "kahan") == (nonfinite == "propagate") and formats[0] != F64)
    options: dict[str, Any] = {
        "sizes": _sizes(backend),
        "nonfinite": nonfinite,
        "with_stats": True,
        "steps": 1,
    }
    if extra == "kahan":
        options["hessian_beta2"] = 0.9
    got, stats = _run(backend.name, backend.device, formats, extra, **options)
    expected, wanted = _run("reference", torch.device("cpu"), formats, extra, **options)
    _same_bits(got, expected)
    torch.testing.assert_close(stats, wanted, rtol=1e-9, atol=0, equal_nan=True)
    assert stats[0] > 100
    assert stats[3] == 9


@pytest.mark.parametrize("state", [F32, BF16, U8])
def test_sign_mode_is_the_reference(backend: Any, state: torch.dtype) -> None:
    results = []
    for name, device in ((backend.name, backend.device), ("reference", torch.device("cpu"))):
        p = Problem(F32, F32, state, device, _sizes(backend))
        scales = {k: v for k, v in p.scales.items() if k.startswith("exp")}
        with tenfold.use_backend(name):
            sophia_step_(p.params, p.grads, p.exp_avgs, None, lr=1e-3, beta1=0.9, seed=3, **scales)
        results.append({f"{i}": t.cpu() for i, t in enumerate([*p.params, *p.exp_avgs])})
    _same_bits(results[0], results[1])


@pytest.mark.parametrize("source", ["gnb", "hvp"])
@pytest.mark.parametrize(
    ("state", "grad"), [(F32, F32), (F64, F64), (F32, BF16), (BF16, F16), (U8, F32), (U8, BF16)]
)
def test_the_hessian_is_the_reference(
    backend: Any, state: torch.dtype, grad: torch.dtype, source: str
) -> None:
    results = []
    for name, device in ((backend.name, backend.device), ("reference", torch.device("cpu"))):
        p = Problem(F64 if state == F64 else F32, F64 if grad == F64 else F32, state, device, _sizes(backend))
        grads = [g.to(grad) for g in p.grads]
        scales = {k: v for k, v in p.scales.items() if k.startswith("hessian")}
        probes = [torch.sign(g.nan_to_num(1.0)) for g in grads] if source == "hvp" else None
        inverse = torch.tensor([0.37], device=device)
        with tenfold.use_backend(name):
            sophia_hessian_(
                p.hessians, grads, beta2=0.99, scale=480.0, source=source, probes=probes, seed=9, step=4,
                inv_scale=inverse, **scales,
            )  # fmt: skip
        listed = [*p.hessians, *scales.get("hessian_scales", [])]
        results.append({f"{i}": t.cpu() for i, t in enumerate(listed)})
    _same_bits(results[0], results[1])


# -- what an element's result must not depend on ------------------------------------------------------------


@pytest.mark.parametrize("formats", [FORMATS[0], FORMATS[4], FORMATS[9]], ids=["f32", "f16", "bf16-u8"])
def test_lists_may_be_cut_anywhere(backend: Any, formats: tuple[torch.dtype, ...]) -> None:
    whole, cut = (Problem(*formats, backend.device, _sizes(backend)) for _ in range(2))
    options: dict[str, Any] = {
        "lr": 1e-3,
        "beta1": 0.9,
        "hessian_beta2": 0.9,
        "rounding": "stochastic",
        "seed": 4,
    }
    sophia_step_(whole.params, whole.grads, whole.exp_avgs, whole.hessians, **whole.scales, **options)
    for part in (slice(3, 5), slice(0, 3)):
        scales = {k: v[part] for k, v in cut.scales.items()}
        sophia_step_(
            cut.params[part], cut.grads[part], cut.exp_avgs[part], cut.hessians[part],
            streams=range(5)[part], **scales, **options,
        )  # fmt: skip
    for a, b in zip([*whole.params, *whole.exp_avgs], [*cut.params, *cut.exp_avgs], strict=True):
        _same_bits({"": a.cpu()}, {"": b.cpu()})


def test_threads_change_nothing(set_threads: Callable[[int], None], isa: str) -> None:
    results = []
    for threads in (1, 3):
        set_threads(threads)
        generator = torch.Generator().manual_seed(1)
        p, g, m, h = (torch.rand(3 * 65536 + 77, generator=generator) for _ in range(4))
        stats = torch.zeros(6, dtype=F64)
        p16 = p.bfloat16()
        for weights in (p, p16):
            with tenfold.use_backend("cpu"):
                sophia_step_([weights], [g], [m], [h], lr=1e-3, beta1=0.9, stats=stats, rounding="stochastic")
        results.append([p, p16, m, stats])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_statistics_do_not_depend_on_the_instruction_set() -> None:
    used, found = _native.cpu.isa_used(), []
    try:
        for isa in _native.cpu.isa_available():
            _native.cpu.use_isa(isa)
            generator = torch.Generator().manual_seed(2)
            p, g, m = (torch.randn(9999, generator=generator) for _ in range(3))
            h = torch.rand(9999, generator=generator) * 4
            stats = torch.zeros(6, dtype=F64)
            with tenfold.use_backend("cpu"):
                sophia_step_([p], [g], [m], [h], lr=1e-3, beta1=0.9, stats=stats)
            found.append((stats, p))
    finally:
        _native.cpu.use_isa(used)
    assert found[0][0][2] > 100
    for stats, p in found:
        assert torch.equal(stats, found[0][0])
        assert torch.equal(p, found[0][1])


def test_strides(backend: Any) -> None:
    """Weights, states and gradients that are not contiguous give what their copies give."""
    generator = torch.Generator().manual_seed(6)
    base = [torch.rand(40, 30, generator=generator).to(backend.device) for _ in range(4)]
    plain = [t.t().contiguous() for t in base]
    options: dict[str, Any] = {"lr": 1e-2, "beta1": 0.9, "hessian_beta2": 0.9, "rounding": "stochastic"}
    sophia_step_([plain[0]], [plain[1]], [plain[2]], [plain[3]], **options)
    views = [t.t() for t in base]
    assert not views[0].is_contiguous()
    sophia_step_([views[0]], [views[1]], [views[2]], [views[3]], **options)
    for a, b in zip(views, plain, strict=True):
        assert torch.equal(a, b)
    sophia_hessian_([views[3]], [views[1]], beta2=0.5)
    sophia_hessian_([plain[3]], [plain[1]], beta2=0.5)
    assert torch.equal(views[3], plain[3])
    expanded = torch.ones(1, device=backend.device).expand(30, 40)
    sophia_step_([views[0]], [expanded], [views[2]], [views[3]], **options)
    sophia_step_([plain[0]], [torch.ones_like(plain[0])], [plain[2]], [plain[3]], **options)
    assert torch.equal(views[0], plain[0])


# -- eight bits ----------------------------------------------------------------------------------------------


def test_codes_are_the_reference_and_close(backend: Any) -> None:
    generator = torch.Generator().manual_seed(8)
    m = torch.randn(1000, generator=generator) * torch.rand(1000, generator=generator).mul(-20).exp()
    m[::9] = 0
    m[900:] = 0
    for kind, x in (("exp_avg", m), ("hessian", m.square())):
        for seed in (None, 2**64 - 1):
            codes, scales = sophia8_quantize(x.to(backend.device), kind, seed=seed, step=3, stream=7)
            back = sophia8_dequantize(codes, scales, kind).cpu()
            with tenfold.use_backend("reference"):
                expected = sophia8_quantize(x, kind, seed=seed, step=3, stream=7)
                assert torch.equal(back, sophia8_dequantize(*expected, kind))
            assert torch.equal(codes.cpu(), expected[0])
            assert torch.equal(scales.cpu(), expected[1])
            assert torch.equal((x == 0) | (back != 0), (x == 0) | (x != 0)) or kind == "exp_avg"
            top = x.abs().max()
            within = (x.abs() > 1e-6 * top) & (back != 0)
            ratio = (back[within] / x[within]).double()
            spread = {("exp_avg", True): 1.11, ("hessian", True): 1.11}.get((kind, seed is None), 1.25)
            assert ratio.min() > 1 / spread
            assert ratio.max() < spread


def test_a_hessian_never_rounds_to_zero(backend: Any) -> None:
    h = torch.full((512,), 1e-38, device=backend.device)
    h[0], h[300] = 1e30, 0.0
    for seed in (None, 1):
        codes, scales = sophia8_quantize(h, "hessian", seed=seed)
        assert torch.equal(codes != 0, h != 0)
        assert scales.shape == (2,)


def test_stochastic_codes_have_the_right_mean(backend: Any) -> None:
    """An average in 8 bits follows a constant gradient; to nearest it would stop where steps get small."""
    n = 4096 if not backend.interpreted else 512
    g = torch.full((n,), 1e-3, device=backend.device)
    g[::256] = 1e-2
    p = torch.zeros(n, device=backend.device)
    m = torch.zeros(n, dtype=U8, device=backend.device)
    scales = torch.zeros(n // 256, device=backend.device)
    steps = 60 if not backend.interpreted else 20
    for step in range(steps):
        sophia_step_([p], [g], [m], None, lr=0.0, beta1=0.965, exp_avg_scales=[scales], seed=1, step=step)
    expected = 1e-3 * (1 - 0.965**steps)
    got = sophia8_dequantize(m, scales, "exp_avg")[g < 5e-3].mean().item()
    assert got == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("denom_scale", "cosine"), [(204.8, 0.995), (2e6, 0.97)])
def test_eight_bit_states_move_weights_alike(denom_scale: float, cosine: float) -> None:
    """60 steps that update the Hessian, gradients spread over decades: displacement as with float32."""
    n = 1 << 17
    generator = torch.Generator().manual_seed(12)
    spread = torch.exp(2 * torch.randn(n, generator=generator)) * 1e-4
    mean = 0.3 * torch.randn(n, generator=generator)
    p, q, m, h = (torch.zeros(n) for _ in range(4))
    m8, h8 = torch.zeros(n, dtype=U8), torch.zeros(n, dtype=U8)
    scales = {"exp_avg_scales": [torch.zeros(n // 256)], "hessian_scales": [torch.zeros(n // 256)]}
    options: dict[str, Any] = {
        "lr": 1e-3, "beta1": 0.81, "hessian_beta2": 0.95, "denom_scale": denom_scale, "eps": 1e-15,
        "denom": "add",
    }  # fmt: skip
    for step in range(60):
        g = (torch.randn(n, generator=generator) + mean) * spread
        sophia_step_([p], [g], [m], [h], **options)
        sophia_step_([q], [g], [m8], [h8], seed=1, step=step, **scales, **options)
    assert torch.cosine_similarity(p, q, dim=0).item() >= cosine


# -- what rounding is for ------------------------------------------------------------------------------------


def test_stochastic_rounding_moves_bfloat16_in_the_mean() -> None:
    """A million weights of N(0, 0.02^2) and a full step of 5e-6: nearest rounding moves less than a tenth."""
    n, lr = 1_000_000, 5e-6
    start = (torch.randn(n, generator=torch.Generator().manual_seed(3)) * 0.02).bfloat16()
    g, m, h = torch.ones(n), torch.zeros(n), torch.zeros(n)
    moved = {}
    for rounding in ("nearest", "stochastic", "kahan"):
        p, stats = start.clone(), torch.zeros(6, dtype=F64)
        extra = {"compensations": [torch.zeros_like(p)]} if rounding == "kahan" else {}
        sophia_step_([p], [g], [m], [h], lr=lr, beta1=0.9, rounding=rounding, stats=stats, **extra)
        residue = extra["compensations"][0].double() if extra else 0.0
        moved[rounding] = (p.double() + residue - start.double()).mean().item()
        assert stats[4] == (p != start).sum()
        if rounding == "nearest":
            assert stats[4] < 0.1 * n
    assert moved["stochastic"] == pytest.approx(-lr, rel=0.02)
    assert moved["kahan"] == pytest.approx(-lr, rel=2.0**-9)  # the residue is a bfloat16 too


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_kahan_follows_float32_over_many_steps(backend: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    p32 = (torch.randn(300, generator=generator) * 0.02).to(dtype).float().to(backend.device)
    p = p32.to(dtype)
    c = torch.zeros_like(p)
    states = [torch.zeros(300, device=backend.device) for _ in range(4)]
    for _ in range(50 if not backend.interpreted else 10):
        g = torch.randn(300, generator=generator).to(backend.device)
        options: dict[str, Any] = {"lr": 1e-5, "beta1": 0.9, "hessian_beta2": 0.95, "weight_decay": 0.1}
        sophia_step_([p32], [g], [states[0]], [states[1]], **options)
        sophia_step_([p], [g], [states[2]], [states[3]], rounding="kahan", compensations=[c], **options)
    torch.testing.assert_close(p.float() + c.float(), p32, rtol=0, atol=3e-6)


@pytest.mark.parametrize("denom", ["max", "add"])
def test_no_step_is_longer_than_the_rate(backend: Any, denom: str) -> None:
    generator = torch.Generator().manual_seed(9)
    p, g, m = (torch.randn(2000, generator=generator).to(backend.device) for _ in range(3))
    h = torch.rand(2000, generator=generator).to(backend.device) * 1e-2
    before, lr, decay = p.double(), 1e-2, 0.1
    sophia_step_(
        [p],
        [g],
        [m],
        [h],
        lr=lr,
        beta1=0.9,
        weight_decay=decay,
        denom=denom,
        hessian_beta2=0.9,
        denom_scale=9.0,
    )
    slack = 2.0**-24 * 4 * before.abs()  # of the weights' own rounding
    assert ((p.double() - before + lr * decay * before).abs() <= lr * (1 + 1e-6) + slack).all()
    assert (h >= 0).all()
