"""Perturbed linear layers: both probes of a step in one call, the weight only read."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from .harness import Case, Side, Work, Workload, compare_values
from .zo import DTYPES, EPS, SEED, _backend, _version


def _linear(dtype_name: str, m: int, k: int, n: int, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import zo_linear_dual, zo_perturb_

    if tiny:
        m, k, n = 8, 32, 48
    dtype = DTYPES[dtype_name]
    generator = torch.Generator(device).manual_seed(11)
    x = torch.randn(2, m, k, device=device, generator=generator).to(dtype)
    weight = (0.02 * torch.randn(n, k, device=device, generator=generator)).to(dtype)
    first = weight.clone()

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return zo_linear_dual(x, weight, seed=SEED, stream=0, eps=EPS)

    @torch.no_grad()
    def written() -> torch.Tensor:
        """Our passes over the weight, and two layers."""
        zo_perturb_([weight], [0], SEED, 0, EPS)
        plus = F.linear(x[0], weight)
        zo_perturb_([weight], [0], SEED, 0, -2 * EPS)
        minus = F.linear(x[1], weight)
        zo_perturb_([weight], [0], SEED, 0, EPS)
        return torch.stack((plus, minus))

    @torch.no_grad()
    def plain() -> torch.Tensor:
        """The floor in practice: two layers, nothing perturbed."""
        return torch.stack((F.linear(x[0], weight), F.linear(x[1], weight)))

    def reset() -> None:
        weight.copy_(first)

    # half precision: the written weight is rounded to its dtype, and so is the result
    tolerance = {torch.float32: 2e-4, torch.bfloat16: 0.25, torch.float16: 0.05}[dtype]
    return Workload(
        ours=Side(
            "tenfold",
            ours,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "zo_linear_perturbed", device),
            measure_memory=False,
        ),
        others=[
            Side(
                "three passes, two layers",
                written,
                version=f"{_version()}, torch {torch.__version__}",
                agree=lambda a, b: compare_values(a, b, tolerance),
                measure_memory=False,
            )
        ],
        parts=[Side("two layers, nothing perturbed", plain, kind="part")],
        work=Work(
            bytes=float(weight.nbytes + 2 * x.nbytes),
            normals=float(n * k),
            flops=4.0 * m * k * n,
            precision="f32" if dtype == torch.float32 else "bf16",
        ),
        reset=reset,
        keep=lambda result: [result.clone()],
        note=f"x [2, {m}, {k}], W [{n}, {k}]: y[0] = x[0] (W + eps Z)^T, y[1] = x[1] (W - eps Z)^T",
    )


def cases() -> list[Case]:
    """All cases of the family."""
    return [
        Case(f"dual.linear.{dtype}.m{m}-k{k}-n{n}", partial(_linear, dtype, m, k, n))
        for dtype in ("f32", "bf16")
        for m, k, n in ((512, 768, 768), (512, 768, 3072), (512, 2048, 2048))
    ]
