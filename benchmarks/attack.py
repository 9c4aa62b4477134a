"""Projection on the simplex of a vocabulary, and the nearest word embedding: token steps of UnlearnDiffAtk.

Rows of the projection are those of the first step of an attack: all words alike, 1 / 49,408, moved by Adam's
first step of 0.01 up or down. Peer "reference_bisection" is the published way, row by row, the threshold
halved until it is known to 1e-5, with three sums a round; "entmax" is the exact projection by sorting of the
package of that name.

Queries are eight word embeddings with noise. Peer "torch_gemm_argmax" keeps the normed table; "reference" is
the published expression, which norms the table anew and broadcasts a cosine over it, query by query.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing, version_of
from .zo import _backend, _version

WORDS, WIDTH = 49408, 768
XI = 1e-5
"""How far the published bisection goes."""


def _bisection(p: Tensor) -> list[Tensor]:
    """The threshold of each row between its least number less 1 and its largest, halved until known to XI.

    As published, every round evaluates how far the sum is off at the middle and at both ends.
    """
    rows = []
    for row in p:
        low, high = (row.min() - 1).item(), row.max().item()
        while high - low > XI:
            middle = (low + high) / 2
            off, off_low, off_high = ((row - at).clamp(0, 1).sum() - 1 for at in (middle, low, high))
            if off == 0:
                break
            if off * (off_low + 1e-8) < 0:
                high = middle
            elif off * off_high < 0:
                low = middle
            else:
                raise ArithmeticError("the ends do not enclose the threshold")
        rows.append((row - middle).clamp(0, 1))
    return [torch.stack(rows)]


def _sparsemax(p: Tensor) -> list[Tensor]:
    from entmax import sparsemax

    return [sparsemax(p, dim=1)]


def _simplex(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import simplex_project

    rows, columns = (2, 500) if tiny else (5, WORDS)
    draw = torch.Generator(device).manual_seed(3)
    moved = torch.randn(rows, columns, generator=draw, device=device).sign()
    p = 1 / columns + 0.01 * moved

    def agree(tolerance: float, ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values(ours, theirs, tolerance)

    return Workload(
        ours=Side(
            "tenfold",
            lambda: [simplex_project(p)],
            version=_version(),
            kind="ours",
            backend=partial(_backend, "simplex_project", device),
        ),
        others=[
            Side(
                "reference_bisection",
                lambda: _bisection(p),
                version=f"expression of UnlearnDiffAtk on torch {torch.__version__}, xi = {XI}",
                agree=partial(agree, XI),
            ),
            Side(
                "entmax",
                lambda: _sparsemax(p),
                version=f"entmax {version_of('entmax')}, sparsemax",
                agree=partial(agree, 1e-6),
                prepare=partial(missing, "entmax"),
            ),
        ],
        work=Work(bytes=2.0 * p.nbytes, flops=6.0 * p.numel()),
        note=f"{rows} rows of {columns:,}, each number 1 / {columns:,} +- 0.01",
    )


def _published(q: Tensor, table: Tensor) -> list[Tensor]:
    """The table normed in every call, and a cosine of every query with every row of it."""
    words = torch.nn.functional.normalize(table, dim=1)
    found = [torch.cosine_similarity(row[None], words, dim=1).argmax() for row in q]
    return [torch.stack(found)]


def _nearest(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import inverse_norms, nearest_token

    count = 500 if tiny else WORDS
    draw = torch.Generator(device).manual_seed(5)
    table = 0.02 * torch.randn(count, WIDTH, generator=draw, device=device)
    q = table[:: count // 8][:8] + 0.01 * torch.randn(8, WIDTH, generator=draw, device=device)
    norms = inverse_norms(table)
    normed = table * norms[:, None]

    def agree(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values(ours, theirs, 0.0, "id")

    return Workload(
        ours=Side(
            "tenfold",
            lambda: [nearest_token(q, table, norms)[0]],
            version=_version(),
            kind="ours",
            backend=partial(_backend, "nearest_token", device),
        ),
        others=[
            Side(
                "torch_gemm_argmax",
                lambda: [(q @ normed.T).argmax(1)],
                version=f"torch {torch.__version__}, the normed table kept",
                agree=agree,
            ),
            Side(
                "reference",
                lambda: _published(q, table),
                version=f"expression of P4D on torch {torch.__version__}",
                agree=agree,
            ),
        ],
        work=Work(bytes=float(table.nbytes), flops=2.0 * 8 * table.numel()),
        note=f"8 queries, {count:,} words of {WIDTH} numbers, norms kept",
    )


def cases() -> list[Case]:
    """The cases of this family."""
    return [
        Case("attack.simplex.f32.r5-v49408", _simplex),
        Case("attack.nearest_token.f32.r8-49408x768", _nearest),
    ]
