"""The stateful passes and selections inside PyTorch: opcheck, compile, version counters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tenfold.ops import (
    RandomMask,
    Term,
    magnitude_bits,
    zo_chain_,
    zo_hizoo_update_,
    zo_momentum_,
)

OPS = torch.ops.tenfold
TWO = ([1, -5], [0, 7], [0.1, -0.2], ["gaussian", "gauss16"])
ROUNDING = (0.9, torch.bfloat16, True, -1, 3)
NO_MASK = ("", 0, 0, [], None)


def weights() -> list[Tensor]:
    return [torch.randn(5, 6).t(), torch.randn(40).bfloat16(), torch.randn(9).double(), torch.empty(0)]


def states(half: bool = False) -> list[Tensor]:
    out = [torch.ones(6, 5), torch.ones(40), torch.ones(9).double(), torch.empty(0)]
    if half:
        out[0], out[1] = out[0].bfloat16(), out[1].bfloat16()
    return out


def random_mask() -> tuple:
    return ("random", -3, 4, [0.1, 0.5, 0.9, 1.0], None)


def bit_mask(params: list[Tensor]) -> tuple:
    return ("bits", 0, 0, [], magnitude_bits(params, 0.5))


STREAMS = [0, 1, 2, 3]
CASES: dict[str, tuple[str, Callable[[], tuple]]] = {
    "chain random": ("zo_chain_", lambda: (weights(), [], STREAMS, *TWO, *ROUNDING, *random_mask())),
    "chain magnitude": (
        "zo_chain_",
        lambda: (weights(), [], STREAMS, *TWO, *ROUNDING, "magnitude", 0, 0, [0.5] * 4, None),
    ),
    "chain bits": ("zo_chain_", lambda: ((p := weights()), [], STREAMS, *TWO, *ROUNDING, *bit_mask(p))),
    "momentum": (
        "zo_momentum_",
        lambda: (
            weights(), states(True), STREAMS, *TWO, 0.1, 0.9, 0.0, True, False, *ROUNDING, *random_mask(),
        ),
    ),
    "adam": (
        "zo_adam_",
        lambda: (
            weights(), states(), states(), STREAMS, *TWO, 0.1, 0.9, 0.99, 1e-8, 2, *ROUNDING, "radazo",
            *random_mask(),
        ),
    ),
    "sign": ("zo_sign_", lambda: (weights(), STREAMS, *TWO, 0.1, *ROUNDING, *NO_MASK)),
    "hizoo perturb": (
        "zo_hizoo_perturb_",
        lambda: (weights(), [], states(), STREAMS, 1, 2, 0.1, "gaussian", None, False, 3, 4, *random_mask()),
    ),
    "hizoo update": (
        "zo_hizoo_update_",
        lambda: (weights(), states(), STREAMS, *TWO, [0.1, 0.2], 0.1, 0.01, 0.0, *ROUNDING, *NO_MASK),
    ),
    "replay": (
        "zo_replay_",
        lambda: (
            weights(), STREAMS, *TWO, [1, 1], [0.9, 1.0], [1, 2], [3, 4], [5, 6], [7, 8],
            [0.5] * 4 + [-1.0] * 4, None, True,
        ),
    ),
    "quantile": ("quantile_abs", lambda: (weights(), 20)),
    "count": ("count_within", lambda: (weights(), [0.5] * 4)),
    "bits": ("magnitude_bits_", lambda: (magnitude_bits(weights(), 0.5), weights(), [0.7] * 4)),
}  # fmt: skip


@pytest.mark.parametrize("what", list(CASES))
def test_opcheck(what):
    name, arguments = CASES[what]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    results = torch.library.opcheck(getattr(OPS, name).default, arguments(), test_utils=tests)
    assert set(results.values()) == {"SUCCESS"}


def test_version_counters_move_for_what_is_written():
    p, m = torch.randn(8), torch.zeros(8)
    before = p._version, m._version
    zo_momentum_([p], [m], [0], [Term(1, 2, 0.5)], lr=0.1, first=True)
    assert p._version > before[0]
    assert m._version > before[1]


def test_compiled_passes_have_the_same_bits():
    def step(p: Tensor, h: Tensor) -> Tensor:
        zo_chain_([p], [0], [Term(1, 2, 0.5)], mask=RandomMask(3, 4, 0.5))
        zo_hizoo_update_([p], [h], [0], [Term(1, 2, 0.5)], [0.3], lr=0.1, smoothing=0.1)
        return p + h

    p, h = torch.randn(500), torch.rand(500) + 1
    q, k = p.clone(), h.clone()
    want = step(p, h)
    got = torch.compile(step, backend="aot_eager", fullgraph=True)(q, k)
    for a, b in ((want, got), (p, q), (h, k)):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
