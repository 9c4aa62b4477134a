"""The Sophia kernels on a GPU, or their CUDA source on the host, give the reference's bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tenfold.kernels.sophia import sophia8_reference, sophia_native, sophia_reference
from tenfold.kernels.sophia.sophia_reference import Rounding, State, StepArgs
from torch import Tensor

F32, F64, BF16, F16, U8 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8
SIZES = (1, 255, 257, 0, 2048, 5003)
FORMATS = [
    (F32, F32, F32),
    (F64, F64, F64),
    (BF16, F32, U8),
    (F16, F16, BF16),
    (F32, F32, U8),
    (BF16, BF16, F32),
]


def modules(gpu: Any) -> Any:
    """The kernels under test: what `gpu` sends to the emulator, to CUDA, or to Triton."""
    if gpu.name == "triton":
        from tenfold.kernels.sophia import sophia_triton

        return sophia_triton
    return sophia_native


def tensors(param: torch.dtype, grad: torch.dtype, state: torch.dtype, extra: str) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    wide = F64 if param == F64 else F32

    def draw(scale: float) -> list[Tensor]:
        return [scale * torch.randn(n, generator=generator, dtype=wide) for n in SIZES]

    params, grads, means = draw(0.02), draw(1e-2), draw(1e-2)
    bends = [0.01 * t.exp() for t in draw(1.0)]
    for g in (grads[2], grads[5]):
        g[:4] = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0])
    out = {"params": [t.to(param) for t in params], "grads": [t.to(grad) for t in grads]}
    if state == U8:
        codes = [sophia8_reference.encode_exp_avg(t) for t in means]
        roots = [sophia8_reference.encode_hessian(t) for t in bends]
        out |= {"exp_avgs": [c for c, _ in codes], "exp_avg_scales": [s for _, s in codes]}
        out |= {"hessians": [c for c, _ in roots], "hessian_scales": [s for _, s in roots]}
    else:
        out |= {"exp_avgs": [t.to(state) for t in means], "hessians": [t.to(state) for t in bends]}
    if extra == "masters":
        out["masters"] = [t + 1e-4 for t in params]
    if extra == "kahan":
        out["compensations"] = [torch.zeros_like(t) for t in out["params"]]
    return out


def same(got: Tensor, want: Tensor, name: str) -> None:
    got = got.cpu()
    if want.is_floating_point():
        assert torch.equal(got.isnan(), want.isnan()), name
        got, want = got.nan_to_num(7.0, 8.0, 9.0), want.nan_to_num(7.0, 8.0, 9.0)
    assert torch.equal(got, want), f"{name}: {int((got != want).sum())} of {want.numel()} differ"


@pytest.mark.parametrize("extra", ["nearest", "stochastic", "kahan", "masters"])
@pytest.mark.parametrize("formats", FORMATS, ids=lambda f: "-".join(str(d).removeprefix("torch.") for d in f))
def test_step(gpu: Any, formats: tuple[torch.dtype, ...], extra: str) -> None:
    if extra == "masters" and formats[0] == F64:
        pytest.skip("float64 weights have no masters")
    kind = "stochastic" if extra == "masters" else extra
    for skip, denom in ((False, "max"), (True, "add"), (True, "sign")):
        args = StepArgs(
            lr=1e-3, beta1=0.9, denom_scale=0.5, decay=0.999, shrink=-1e-3, eps=1e-12, add=denom == "add",
            maximize=skip, skip=skip, hessian_beta2=0.95 if denom == "add" else None,
        )  # fmt: skip
        runs = []
        for module, device in ((modules(gpu), gpu.device), (sophia_reference, torch.device("cpu"))):
            made = {k: [t.to(device) for t in v] for k, v in tensors(*formats, extra).items()}
            params, grads = made["params"], made["grads"]
            beside = {k: v for k, v in made.items() if k not in ("params", "grads")}
            if denom == "sign":
                beside = {k: v for k, v in beside.items() if not k.startswith("hessian")}
            stats = torch.zeros(6, dtype=F64, device=device)
            for step, found in enumerate((0.0, 1.0, 0.0)):
                module.step_(
                    params, grads, State(**beside), range(3, 9), args, Rounding(kind, 2**64 - 3, step),
                    torch.tensor([0.5], device=device), torch.tensor([found], device=device),
                    None if step == 2 and skip else stats,
                )  # fmt: skip
            runs.append((made, stats))
        for name, listed in runs[1][0].items():
            for i, want in enumerate(listed):
                same(runs[0][0][name][i], want, f"{denom} {name}[{i}]")
        torch.testing.assert_close(runs[0][1].cpu(), runs[1][1], rtol=1e-9, atol=0, equal_nan=True)


@pytest.mark.parametrize("probed", [False, True])
@pytest.mark.parametrize(("state", "grad"), [(F32, F32), (F64, F64), (BF16, F16), (U8, BF16), (U8, F32)])
def test_hessian(gpu: Any, state: torch.dtype, grad: torch.dtype, probed: bool) -> None:
    runs = []
    for module, device in ((modules(gpu), gpu.device), (sophia_reference, torch.device("cpu"))):
        made = tensors(F64 if state == F64 else F32, grad, state, "nearest")
        listed = [[t.to(device) for t in made.get(k, [])] for k in ("hessians", "grads", "hessian_scales")]
        probes = [g.sign().nan_to_num(1.0) for g in listed[1]] if probed else []
        module.hessian_(
            listed[0], listed[1], probes, listed[2], range(6), 0.99, 4.8, Rounding(seed=7, step=2),
            torch.tensor([0.37], device=device), None,
        )  # fmt: skip
        runs.append([*listed[0], *listed[2]])
    for i, (got, want) in enumerate(zip(*runs, strict=True)):
        same(got, want, f"hessian {i}")


@pytest.mark.parametrize("hessian", [False, True])
@pytest.mark.parametrize("rounding", [None, Rounding("stochastic", 5, 6)], ids=["nearest", "stochastic"])
def test_codes(gpu: Any, hessian: bool, rounding: Rounding | None) -> None:
    x = torch.randn(5003, generator=torch.Generator().manual_seed(1)) ** 7
    x[1000:1300] = 0
    if hessian:
        x = x.abs()
    runs = []
    for module, device in ((modules(gpu), gpu.device), (sophia_reference, torch.device("cpu"))):
        codes = torch.empty(5003, dtype=U8, device=device)
        scales, back = torch.empty(20, device=device), torch.empty(5003, device=device)
        module.quantize(x.to(device), codes, scales, hessian, rounding, 9)
        module.dequantize(codes, scales, back, hessian)
        runs.append((codes, scales, back))
    for got, want in zip(*runs, strict=True):
        assert torch.equal(got.cpu(), want)


def test_unaligned_views(gpu: Any) -> None:
    base = torch.rand(4 * 700, generator=torch.Generator().manual_seed(4)).to(gpu.device)
    args = StepArgs(1e-3, 0.9, 0.5, 1.0, 0.0, 1e-12, False, False, False)
    parts = [base[1 + 700 * k :][:699] for k in range(4)]
    copies = [t.cpu().clone() for t in parts]
    modules(gpu).step_([parts[0]], [parts[1]], State([parts[2]], [parts[3]]), [0], args, Rounding())
    sophia_reference.step_([copies[0]], [copies[1]], State([copies[2]], [copies[3]]), [0], args, Rounding())
    for got, want in zip(parts, copies, strict=True):
        assert torch.equal(got.cpu(), want)
