"""Unified Concept Editing of a whole UNet, and the global threshold of a saliency mask.

The case of UCE is that of a style of UnlearnCanvas: 32 matrices (keys and values of the 16 cross attentions
of Stable Diffusion 1.5), 6 prompts erased, 951 kept, 77 rows each, embeddings given. They are synthetic, with
the outliers of CLIP's first token. Peer "reference" is the published loop of outer products, prompt by prompt
and matrix by matrix; it would take more than an hour, so it does one of the smallest matrices with 6 + 20
prompts, and its time is extrapolated to 957 prompts and to 32 matrices as if all were that small: a lower
bound. Its result is compared with ours on those prompts.

The case of saliency is the half of 10 million gradients with the largest magnitude, in three tensors: peers
are numpy.partition of the magnitudes put together, and the ranks by two sorts that published code makes.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .zo import _backend, _version

WIDTH, TOKENS = 768, 77
ERASED, KEPT = 6, 951
FIRST_TOKEN = 6
"""Position of the concept's last token: rows from there on are edited, 71 of 77 in each prompt."""
ROWS = [320] * 10 + [640] * 10 + [1280] * 12
"""Keys and values of 5, 5 and 6 cross attentions."""
SCALES = {"lam": 1.0, "erase_scale": 0.05, "retain_scale": 0.1}
SHOWN = 20
"""Kept prompts that the reference is run on."""
WEIGHTS = 10_000_000


def _texts(count: int, seed: int, device: torch.device) -> Tensor:
    """Embeddings [count, 77, 768]; all prompts have the same first row, with two large entries."""
    draw = torch.Generator(device).manual_seed(seed)
    found = torch.randn(count, TOKENS, WIDTH, generator=draw, device=device)
    first = torch.Generator(device).manual_seed(99)
    found[:, 0] = torch.randn(WIDTH, generator=first, device=device)
    found[:, 0, 100], found[:, 0, 600] = -28.0, 33.0
    return found


def _loop(w: Tensor, old: Tensor, new: Tensor, keep: Tensor) -> Tensor:
    """The published expression: outer products of every row, summed per prompt, and an inverse."""
    mat1 = SCALES["lam"] * w
    mat2 = SCALES["lam"] * torch.eye(w.shape[1], device=w.device)
    pairs = [(o, n, SCALES["erase_scale"]) for o, n in zip(old, new, strict=True)]
    pairs += [(k, k, SCALES["retain_scale"]) for k in keep]
    for context, wanted, scale in pairs:
        values = (wanted @ w.T)[:, :, None]
        rows = context[:, :, None]
        mat1 = mat1 + scale * (values @ rows.mT).sum(0)
        mat2 = mat2 + scale * (rows @ rows.mT).sum(0)
    return mat1 @ torch.linalg.inv(mat2)


def _uce(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import UceEdit, uce_apply, uce_apply_, uce_edit

    draw = torch.Generator(device).manual_seed(1)
    sides, kept = (ROWS[:1], SHOWN) if tiny else (ROWS, KEPT)
    weights = [0.05 * torch.randn(o, WIDTH, generator=draw, device=device) for o in sides]
    clean = [w.clone() for w in weights]
    old, new, keep = (_texts(n, s, device) for n, s in ((ERASED, 2), (ERASED, 3), (kept, 4)))
    old, new = old[:, FIRST_TOKEN:], new[:, FIRST_TOKEN:]

    def edit(prompts: Tensor) -> UceEdit:
        rows = [t.flatten(0, 1) for t in (old, new, prompts)]
        found = uce_edit(rows[0], rows[1], rows[2], lam=1.0, erase_scale=0.05, retain_scale=0.1)
        return found.to(torch.float32)

    def ours() -> list[Tensor]:
        uce_apply_(weights, edit(keep))
        return weights

    def agree(_: list[Tensor], theirs: list[Tensor]) -> Agreement:
        same = uce_apply(clean[:1], edit(keep[:SHOWN]))
        return compare_values(same, theirs, 2e-3 * float(same[0].abs().max()))

    def reset() -> None:
        for w, first in zip(weights, clean, strict=True):
            w.copy_(first)

    rows, m = kept * TOKENS, ERASED * (TOKENS - FIRST_TOKEN)
    stored = 2 * m * WIDTH * 4
    part = 1.0 if tiny else (ERASED + SHOWN) / (ERASED + KEPT) / len(ROWS)
    return Workload(
        ours=Side("tenfold", ours, version=_version(), kind="ours", backend=lambda: "BLAS, LAPACK"),
        others=[
            Side(
                "reference",
                lambda: [_loop(clean[0], old, new, keep[:SHOWN])],
                version=f"expression of UCE on torch {torch.__version__}, one matrix of 320 rows and 6 + 20 "
                "prompts, extrapolated to 957 prompts and 32 such matrices",
                agree=agree,
                fewest=1,
                measure_memory=False,
                part=part,
            )
        ],
        work=Work(
            bytes=4.0 * rows * WIDTH + 8.0 * sum(sides) * WIDTH,
            # half a Gram matrix in float64, which counts twice, and one product with a square for each matrix
            flops=2.0 * rows * WIDTH**2 + 2.0 * sum(sides) * WIDTH**2,
        ),
        reset=reset,
        keep=lambda found: [found[0].clone()],
        note=f"{len(sides)} matrices of {WIDTH} columns, {ERASED} + {kept} prompts of {TOKENS} rows; "
        f"the stored edit has {stored / 1e6:.2f} MB",
    )


def _argsort(tensors: list[Tensor], wanted: int) -> list[Tensor]:
    """Published code ranks by two sorts: the rank of a weight among all, compared with k."""
    values = torch.cat([t.abs().flatten() for t in tensors])
    ranks = torch.argsort(torch.argsort(values, descending=True))
    return [values[ranks < wanted].min()]


def _partition(tensors: list[Tensor], wanted: int) -> list[Tensor]:
    values = np.concatenate([np.abs(t.cpu().numpy()) for t in tensors])
    values.partition(len(values) - wanted)
    return [torch.tensor(values[len(values) - wanted])]


def _saliency(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import abs_quantile

    count = 1000 if tiny else WEIGHTS
    draw = torch.Generator(device).manual_seed(7)
    grads = torch.randn(count, generator=draw, device=device)
    tensors = list(grads.split([count // 2, count // 5, count - count // 2 - count // 5]))
    wanted = round(0.5 * count)

    def agree(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values([ours[0].cpu()], [theirs[0].cpu()], 0.0)

    return Workload(
        ours=Side(
            "tenfold",
            lambda: [torch.tensor(abs_quantile(tensors, 0.5).threshold, dtype=torch.float32)],
            version=_version(),
            kind="ours",
            backend=partial(_backend, "abs_quantile", device),
        ),
        others=[
            Side(
                "numpy_partition",
                lambda: _partition(tensors, wanted),
                version=f"numpy {np.__version__}, of the magnitudes put together",
                agree=agree,
                host=True,
            ),
            Side(
                "argsort",
                lambda: _argsort(tensors, wanted),
                version=f"two sorts on torch {torch.__version__}, expression of SalUn",
                agree=agree,
            ),
        ],
        work=Work(bytes=float(grads.nbytes), flops=4.0 * count),
        note=f"the k-th of {count:,} magnitudes in {len(tensors)} tensors, k = half of them",
    )


def cases() -> list[Case]:
    """The cases of this family."""
    return [
        Case("erase.uce.f32.sd15-32matrices", _uce),
        Case("erase.saliency.f32.10m", _saliency),
    ]
