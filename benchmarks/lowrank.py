"""Low-rank directions (LOZO): Z = U V^T, U drawn anew each step."""

from __future__ import annotations

from functools import partial

import torch

from .harness import Case, Side, Work, Workload
from .shapes import OPT_125M, OPT_TINY, opt_parameters
from .zo import EPS, SEED, Shapes, Weights, _backend, _version


def _perturb(rank: int, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import LowRankTerm, zo_lowrank_

    shapes: Shapes = [(n, s) for n, s in opt_parameters(**(OPT_TINY if tiny else OPT_125M)) if len(s) == 2]
    w = Weights(shapes, torch.float32, device)
    generator = torch.Generator(device).manual_seed(5)
    vs = [torch.randn(t.shape[1], rank, device=device, generator=generator) for t in w.tensors]

    def ours() -> None:
        zo_lowrank_(w.tensors, vs, w.streams, [LowRankTerm(SEED, 0, EPS)])

    def theirs() -> None:
        torch.manual_seed(SEED)
        for p, v in zip(w.tensors, vs, strict=True):
            u = torch.randn(p.shape[0], rank, device=p.device, dtype=p.dtype)
            p.data = p.data + EPS * (u @ v.t())

    return Workload(
        ours=Side(
            "tenfold",
            ours,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "zo_lowrank_", device),
        ),
        others=[
            Side(
                "lozo",
                theirs,
                version="expression of optsuite/LOZO 5d1ade5",
                agree=partial(w.same_change, 5e-2),
            )
        ],
        work=Work(bytes=2.0 * w.bytes, flops=2.0 * rank * w.count),
        reset=w.reset,
        keep=w.copies,
        note=f"one pass W += {EPS} U V^T of rank {rank} over {len(w.tensors)} matrices, {w.count:,} elements",
    )


def cases() -> list[Case]:
    """All cases of the family."""
    return [Case(f"lowrank.perturb.r{rank}.f32.opt125m", partial(_perturb, rank)) for rank in (1, 2, 4, 8)]
