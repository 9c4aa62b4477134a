"""The calls on samples: discrepancies, channels, power allocation, data selection."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tenfold import ops

from .calls_inputs import ON_CUDA, Call, Inputs, Run, with_gradient

# ---- discrepancies ---------------------------------------------------------------------------------------


def _mmd(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    s, t = x.normal(37, 13), x.normal(29, 13, scale=1.3)
    ys, yt = x.whole(3, 37), x.whole(3, 29)
    soft = x.normal(29, 3).softmax(1)
    losses: dict[str, Callable[..., Tensor]] = {
        "mmd": ops.mmd,
        "median": partial(ops.mmd, bandwidth="median", estimator="unbiased"),
        "linear": ops.linear_mmd,
        "coral": ops.coral,
        "joint": lambda s, t: ops.joint_mmd([s, s.tanh()], [t, t.tanh()]),
        "cdd": lambda s, t: (lambda found: found.intra - found.inter)(ops.cdd(s, ys, t, yt, 3)),
        "lmmd": lambda s, t: ops.lmmd(s, ys, t, soft),
    }
    return with_gradient([s, t], losses[name])


def _weighted(device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    z, v = x.normal(37, 13), x.normal(37, 4)
    base = torch.tensor(3.0, dtype=torch.float64, device=device)
    return with_gradient([z], lambda z: ops.weighted_mmd(z, v, base))


# ---- communications --------------------------------------------------------------------------------------


def _channel(name: str, device: torch.device, seed: int) -> Run:
    sent = torch.view_as_complex(Inputs(device, seed).normal(37, 2, 30, 2))
    options: dict[str, Any] = {"allocate": "joint", "power": (0.6, 0.4)} if name == "joint" else {}
    if name == "plain":
        return lambda: list(ops.noma_channel(sent, 1.5, 0.1, seed, 3, return_gains=True))
    received: Any = partial(ops.noma_channel, variance=1.5, noise_power=0.1, seed=seed, **options)
    return with_gradient([torch.view_as_real(sent)], lambda t: received(t).abs().square())


# ---- power allocation ------------------------------------------------------------------------------------


def _complex(x: Inputs, *shape: int) -> Tensor:
    return torch.complex(x.normal(*shape), x.normal(*shape))


def _power(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    g, s = _complex(x, 131, 3, 37), _complex(x, 131, 37)
    power, noise = x.normal(131, 3).abs() + 0.1, x.normal(131).abs()
    real = g[:, 0].abs()
    pair, budgets = g[:, :2].contiguous(), power[:, :2].contiguous()

    def allocated() -> list[Tensor]:
        found = [*ops.ssdt_joint(g, s, power, noise)[:4], *ops.ssdt_joint(pair, s, budgets, noise)[:4]]
        found += ops.ssdt_separable(g, power, noise)[:4]
        return [torch.view_as_real(t) if t.is_complex() else t for t in found]

    def filled(gains: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        found = ops.water_filling(gains, total)
        powers = (
            found.power,
            ops.mse_water_filling(gains, weights, total),
            ops.project_simplex(gains, total),
        )
        normal = ops.power_normalize(gains, total)
        return sum((p * weights).sum(-1) for p in (*powers, normal)) + found.level

    if name == "filling":
        return with_gradient((real, s.abs() + 0.1, noise + 0.1), filled)
    if name == "normalize":
        return lambda: [torch.view_as_real(ops.power_normalize(s, noise, mode="sum"))]
    if name == "gradient":
        return with_gradient((power, noise), lambda p, n: ops.ssdt_joint(g, s, p, n).objective)
    return allocated


# ---- data selection --------------------------------------------------------------------------------------
# Whole numbers, whose sums no order of additions changes, so that the picks are the same everywhere.


def _tensors(*found: Any) -> list[Tensor]:
    """The tensors of results, which are tensors or tuples of them."""
    flat: list[Tensor] = []
    for result in found:
        if isinstance(result, Tensor):
            flat.append(result)
        elif isinstance(result, tuple):
            flat += _tensors(*result)
    return flat


def _whole_points(x: Inputs, rows: int, width: int) -> Tensor:
    return x.whole(17, rows, width, dtype=torch.float32) - 8


def _distance(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    points, centers = _whole_points(x, 203, 19), _whole_points(x, 33, 19)
    if name == "nn":
        return lambda: _tensors(ops.nn_assign(points, centers, 3))
    if name == "kmeans":
        return lambda: _tensors(ops.kmeans(points, 33, iterations=3, init=centers))
    return lambda: _tensors(ops.kcenter_greedy(points, 21, init=0))


def _coverage(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    points = _whole_points(x, 203, 19)
    if name == "fl":
        return lambda: _tensors(ops.fl_greedy(points, 13))
    if name == "graphcut":
        return lambda: _tensors(ops.graphcut_greedy(points, 13, kind="inner"))
    if name == "logdet":
        smooth = x.normal(203, 5)
        return lambda: _tensors(ops.logdet_greedy(smooth, 13))
    return lambda: _tensors(ops.herding(points, 13))


def _scores(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    logits, labels = x.normal(131, 37), x.whole(37, 131)
    if name == "fused":
        norms = x.normal(131).square()
        return lambda: _tensors(ops.score_fused(logits, labels, feature_norms_squared=norms))
    if name == "dynamics":
        rows = torch.arange(131, device=device)

        def recorded() -> list[Tensor]:
            state = ops.new_dynamics(131, device=device)
            for epoch in range(3):
                ops.dynamics_update(state, rows, logits.roll(epoch, 1), labels)
            return _tensors(*(getattr(state, field) for field in state.__dataclass_fields__))

        return recorded
    if name == "classes":
        points, keep = _whole_points(x, 131, 19), torch.arange(0, 37, 3, device=device)
        return lambda: _tensors(
            ops.class_vote(logits, 37, target_labels=labels % 5, num_target_classes=5),
            ops.class_mask(labels, keep, 37),
            ops.class_median_distance(points, labels % 5, 5),
        )
    weights = x.normal(131).abs()
    return with_gradient((logits, weights), lambda z, w: ops.weighted_cross_entropy(z, labels, w))


def _fgrad(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    errors, hidden = x.normal(131, 7), x.normal(131, 19)
    if name == "omp":
        return lambda: _tensors(ops.omp_factored(errors, hidden, 11)[:2])
    matrix, weights = x.normal(7, 20), x.normal(131)
    return lambda: _tensors(
        ops.fgrad_gram(errors, hidden),
        ops.fgrad_mv(errors, hidden, matrix),
        ops.fgrad_rmv(errors, hidden, weights),
    )


_DISCREPANCIES = {
    "mmd": "mmd",
    "median": "median_distance",
    "linear": "linear_mmd",
    "coral": "coral",
    "joint": "joint_mmd",
    "cdd": "cdd",
    "lmmd": "lmmd",
}

SAMPLES: tuple[Call, ...] = (
    *(
        Call(f"mmd.{name}", partial(_mmd, name), 2e-5, captures=name in ("mmd", "linear"), covers=(op,))
        for name, op in _DISCREPANCIES.items()
    ),
    Call("mmd.weighted", _weighted, 2e-5, covers=("weighted_mmd",)),
    Call("channel.plain", partial(_channel, "plain"), captures=True, covers=("noma_channel",)),
    *(
        Call(f"channel.{name}", partial(_channel, name), 2e-5, covers=("noma_channel",))
        for name in ("gradient", "joint")
    ),
    *(
        Call(f"power.{name}", partial(_power, name), near, captures=name != "gradient", covers=covers)
        for name, near, covers in (
            ("allocation", 2e-5, ("ssdt_joint", "ssdt_separable")),
            ("gradient", 1e-4, ()),
            ("filling", 1e-4, ("water_filling", "mse_water_filling", "project_simplex")),
            ("normalize", 2e-6, ("power_normalize",)),
        )
    ),
    *(
        Call(f"distance.{name}", partial(_distance, name), 2e-6, covers=(op,))
        for name, op in (("nn", "nn_assign"), ("kmeans", "kmeans"), ("kcenter", "kcenter_greedy"))
    ),
    *(
        Call(f"coverage.{name}", partial(_coverage, name), 2e-5, covers=(op,))
        for name, op in (
            ("fl", "fl_greedy"),
            ("graphcut", "graphcut_greedy"),
            ("logdet", "logdet_greedy"),
            ("herding", "herding"),
        )
    ),
    *(
        Call(f"scores.{name}", partial(_scores, name), 2e-5, covers=(op,))
        for name, op in (
            ("fused", "score_fused"),
            ("dynamics", "dynamics_update"),
            ("weighted_ce", "weighted_cross_entropy"),
        )
    ),
    Call(
        "scores.classes",
        partial(_scores, "classes"),
        2e-5,
        backends=ON_CUDA,
        covers=("class_vote", "class_mask", "class_median_distance"),
    ),
    Call("scores.omp", partial(_fgrad, "omp"), 2e-5, covers=("omp_factored",)),
    Call(
        "scores.fgrad",
        partial(_fgrad, "products"),
        2e-5,
        backends=ON_CUDA,
        covers=("fgrad_gram", "fgrad_mv", "fgrad_rmv"),
    ),
)
