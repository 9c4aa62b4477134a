"""Shards of a tensor move as they would as parts of it: `firsts` of the zeroth-order passes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import tenfold
from tenfold.ops import (
    BitMask,
    MagnitudeMask,
    RandomMask,
    Term,
    magnitude_bits,
    zo_adam_,
    zo_chain_,
    zo_hizoo_perturb_,
    zo_hizoo_update_,
    zo_momentum_,
    zo_perturb_,
    zo_restore_update_,
    zo_sign_,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CUTS = (0, 3, 2051, 2051, 4096, 6000, 10007)  # unaligned, empty, aligned
N = CUTS[-1]
Pass = Callable[..., None]
State = Callable[[], "list[Tensor]"]


def _chain(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    zo_chain_(params, [7] * len(params), terms, decay=0.99, **options)


def _from_sources(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    zo_chain_(params, [7] * len(params), terms, sources=[p.clone() for p in params], **options)


def _perturb(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    options["z_round"] = None  # the pass that stays in registers
    zo_perturb_(params, [7] * len(params), 3, 1, 0.01, terms[0].dist, **options)


def _restore(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    zo_restore_update_(
        params, [7] * len(params), 3, 1, eps=1e-2, lr=0.1, projected_grad=0.3, dist=terms[0].dist, **options
    )


def _momentum(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    zo_momentum_(params, state(), [7] * len(params), terms, lr=0.1, first=False, **options)


def _adam(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    zo_adam_(params, state(), state(), [7] * len(params), terms, lr=0.1, step=3, **options)


def _adam_half(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    half = [[s if s.dtype == torch.float64 else s.bfloat16() for s in state()] for _ in range(2)]
    zo_adam_(params, *half, [7] * len(params), terms, lr=0.1, step=3, variant="radazo", **options)


def _sign(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    zo_sign_(params, [7] * len(params), terms, lr=0.1, **options)


def _hizoo_perturb(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    zo_hizoo_perturb_(params, state(), [7] * len(params), 5, 1, 0.1, terms[0].dist, **options)


def _hizoo_update(params: list[Tensor], state: State, terms: list[Term], **options: Any) -> None:
    bends = [0.1] * len(terms)
    zo_hizoo_update_(params, state(), [7] * len(params), terms, bends, lr=0.1, smoothing=0.1, **options)


PASSES = [
    _chain,
    _from_sources,
    _perturb,
    _restore,
    _momentum,
    _adam,
    _adam_half,
    _sign,
    _hizoo_perturb,
    _hizoo_update,
]
MASKS: dict[str, Callable[[list[Tensor]], Any]] = {
    "none": lambda params: None,
    "random": lambda params: RandomMask(3, 0, 0.4),
    "magnitude": lambda params: MagnitudeMask(0.7),
    "bits": lambda params: BitMask(magnitude_bits(params, [0.7] * len(params))),
}


def _whole_and_shards(one: Pass, dtype: torch.dtype, dist: str, mask: str, rounding: str) -> None:
    weights = torch.randn(N, generator=torch.Generator().manual_seed(0)).to(dtype)
    terms = [Term(5 + k, k, 0.01 * (k + 1), dist) for k in range(2)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def run(cuts: tuple[int, ...]) -> Tensor:
        out = weights.clone()
        spans = list(pairwise(cuts))
        parts = [out[a:b] for a, b in spans]

        def state() -> list[Tensor]:
            return [torch.linspace(0.5, 2, N)[a:b].to(wide, copy=True) for a, b in spans]

        one(
            parts,
            state,
            terms,
            mask=MASKS[mask](parts),
            z_round=torch.bfloat16,
            out_rounding=rounding,
            rounding_seed=9,
            firsts=[a for a, _ in spans],
        )
        return out

    whole, shards = run((0, N)), run(CUTS)
    assert not torch.equal(whole, weights)
    assert torch.equal(whole, shards)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("one", PASSES)
def test_shards_are_parts_of_the_whole(one: Pass, mask: str) -> None:
    for dtype in DTYPES:
        for dist in ("gaussian", "rademacher", "gauss16"):
            for rounding in ("rne", "sr"):
                _whole_and_shards(one, dtype, dist, mask, rounding)


@pytest.mark.parametrize("one", PASSES)
def test_the_reference_too(one: Pass) -> None:
    with tenfold.use_backend("reference"):
        for mask in MASKS:
            _whole_and_shards(one, torch.bfloat16, "gaussian", mask, "sr")


def test_a_shard_with_strides_and_far_into_a_stream() -> None:
    first = (1 << 33) + 5
    weights = torch.randn(50, 70, generator=torch.Generator().manual_seed(0))
    strided = weights.t().contiguous().t()
    flat = weights.clone()
    for params in ([strided], [flat]):
        zo_perturb_(params, [1], 3, 0, 0.1, firsts=[first])
    assert torch.equal(strided, flat)
    with tenfold.use_backend("reference"):
        zo_perturb_([weights], [1], 3, 0, 0.1, firsts=[first])
    assert torch.equal(weights, flat)


def test_threads_do_not_matter() -> None:
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            weights = torch.zeros(200_003)
            zo_perturb_([weights], [1], 3, 0, 0.1, firsts=[2047])
        finally:
            torch.set_num_threads(before)
        found.append(weights)
    assert torch.equal(*found)


def test_bad_firsts() -> None:
    weights = torch.zeros(4)
    before = weights.clone()
    with pytest.raises(ValueError, match=r"firsts\[0\]: expected an integer in \[0, .*\], got -1"):
        zo_perturb_([weights], [1], 3, 0, 0.1, firsts=[-1])
    with pytest.raises(ValueError, match="firsts: expected 1 entries"):
        zo_perturb_([weights], [1], 3, 0, 0.1, firsts=[1, 2])
    with pytest.raises(TypeError, match="firsts: expected a list of integers"):
        zo_perturb_([weights], [1], 3, 0, 0.1, firsts=3)  # type: ignore[arg-type]
    with tenfold.use_backend("triton"), pytest.raises(RuntimeError, match="it has cpu, reference"):
        zo_perturb_([weights], [1], 3, 0, 0.1, firsts=[1])
    assert torch.equal(weights, before)
