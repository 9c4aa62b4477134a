"""Small runs that the tests of logs and of loops share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.optim import (
    FZOO,
    LOZO,
    ZOSGD,
    RandomSparsity,
    SparseMeZO,
    ZOAdam,
    ZOSGDConservative,
    ZOSGDMomentum,
    ZOSGDSign,
    zolog,
)

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (ZOSGD, {}),
    "sgd q=3": (ZOSGD, {"num_queries": 3}),
    "momentum": (ZOSGDMomentum, {"lr": 2e-3}),
    "adam": (ZOAdam, {}),
    "lozo": (LOZO, {"nu": 7}),
    "lozo-m": (LOZO, {"nu": 7, "momentum": 0.9}),
    "sparse": (ZOSGD, {"mask": RandomSparsity(0.5, every=3)}),
    "magnitude": (SparseMeZO, {}),
    "fzoo": (FZOO, {}),
    "conservative": (ZOSGDConservative, {}),
    "sign": (ZOSGDSign, {"mode": "scalar"}),
}

NUMERICS = {
    "f32": (torch.float32, "rne"),
    "bf16 sr": (torch.bfloat16, "sr"),
}


def network(dtype: torch.dtype = torch.float32, width: int = 12) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.Tanh(), nn.Linear(width, 1)).to(dtype)
    for p in model.parameters():
        p.data.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return model


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(8, 5, generator=generator)
    return x, x.sum(1, keepdim=True).sin()


def closure(model: nn.Module, step: int) -> Callable[[], Tensor]:
    """The loss on the batch of a step, read in float32."""
    x, y = batch(step)
    dtype = next(model.parameters()).dtype
    return lambda: (model(x.to(dtype)).float() - y).square().mean()


def optimizer(model: nn.Module, name: str = "sgd", **options: Any) -> Any:
    kind, own = OPTIMIZERS[name]
    return kind(model.named_parameters(), streams=model, **{"lr": 1e-2, "seed": 5, **own, **options})


def train(opt: Any, model: nn.Module, until: int) -> None:
    while opt.num_steps < until:
        opt.step(closure(model, opt.num_steps))


def logged_run(
    path: Path, steps: int, name: str = "sgd", numerics: str = "f32", **options: Any
) -> tuple[nn.Module, Any, nn.Module]:
    """The trained model, its optimizer, and the base model; the log is at `path`."""
    dtype, rounding = NUMERICS[numerics]
    model = network(dtype)
    base = copy.deepcopy(model)
    opt = optimizer(model, name, rounding=rounding, **options)
    with zolog.ZOLog.create(path, opt, model):
        train(opt, model, steps)
    return model, opt, base


def same_bits(a: nn.Module | Mapping[str, Tensor], b: nn.Module | Mapping[str, Tensor]) -> bool:
    first = dict(a.named_parameters()) if isinstance(a, nn.Module) else dict(a)
    second = dict(b.named_parameters()) if isinstance(b, nn.Module) else dict(b)
    assert first.keys() == second.keys()
    return all(torch.equal(first[k].detach(), second[k].detach()) for k in first)


def same_state(a: Any, b: Any) -> bool:
    """Whether two optimizers are at the same step with the same state, bit for bit."""
    states = [[opt.state[p] for p in opt._slots] for opt in (a, b)]
    for one, other in zip(*states, strict=True):
        if one.keys() != other.keys():
            return False
        for key, value in one.items():
            equal = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
            if not equal:
                return False
    return (a.num_steps, a.num_skipped) == (b.num_steps, b.num_skipped)
