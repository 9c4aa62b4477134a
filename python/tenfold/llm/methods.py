"""Optimizers of the fine-tuning engine by name: zeroth-order, forward gradient, back-propagation, none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["METHODS", "Method", "find", "make"]


@dataclass(frozen=True)
class Method:
    """One name.

    Attributes:
        title: for tables.
        paper: where the method is from.
        kind: ``"zo"`` (losses only), ``"forward"`` (forward-mode derivatives), ``"first-order"``, ``"probe"``
            (a logistic regression on frozen features) or ``"none"`` (the model as it is).
        cls: class in ``tenfold.optim`` or ``torch.optim``.
        options: what the name fixes.
        queries: usual directions per step.
    """

    title: str
    paper: str
    kind: str
    cls: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    queries: int = 1


METHODS: dict[str, Method] = {
    "none": Method("no training", "", "none"),
    "sgd": Method("FO-SGD", "back-propagation", "first-order", "SGD"),
    "adam": Method("FO-Adam", "arXiv 1412.6980", "first-order", "Adam"),
    "adamw": Method("FO-AdamW", "arXiv 1711.05101", "first-order", "AdamW"),
    "logreg": Method("logistic regression", "linear probing", "probe"),
    "forward-grad": Method("Forward-Grad", "arXiv 2202.08587", "forward", "ForwardGrad"),
    "zo-sgd": Method("ZO-SGD", "MeZO, arXiv 2305.17333", "zo", "ZOSGD"),
    "zo-mmt": Method("ZO-SGD-MMT", "arXiv 2402.11592", "zo", "ZOSGDMomentum"),
    "zo-cons": Method("ZO-SGD-Cons", "arXiv 2402.11592", "zo", "ZOSGDConservative"),
    "zo-sign": Method("ZO-SGD-Sign", "arXiv 2402.11592", "zo", "ZOSGDSign"),
    "zo-adam": Method("ZO-Adam", "arXiv 2402.11592", "zo", "ZOAdam"),
    "radazo": Method("R-AdaZO", "arXiv 2502.01014", "zo", "ZOAdam", {"variant": "radazo"}),
    "fzoo": Method("FZOO", "arXiv 2506.09034", "zo", "FZOO", queries=8),
    "lozo": Method("LOZO", "arXiv 2410.07698", "zo", "LOZO"),
    "lozo-m": Method("LOZO-M", "arXiv 2410.07698", "zo", "LOZO", {"momentum": 0.9}),
    "zo-muon": Method("ZO-Muon", "arXiv 2602.17155", "zo", "ZOMuon", queries=4),
    "sparse-mezo": Method("Sparse MeZO", "arXiv 2402.15751", "zo", "SparseMeZO"),
    "hizoo": Method("HiZOO", "arXiv 2402.15173", "zo", "HiZOO"),
}
"""Name -> method."""


def find(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"optimizer: expected one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def make(
    name: str,
    parameters: dict[str, nn.Parameter],
    model: nn.Module,
    *,
    lr: float,
    eps: float = 1e-3,
    num_queries: int | None = None,
    weight_decay: float = 0.0,
    seed: int = 0,
    restore: str | None = None,
    extra: dict[str, Any] | None = None,
) -> Any:
    """An optimizer over named parameters of a model.

    Args:
        lr, eps, num_queries, weight_decay, seed, restore: as in ``tenfold.optim``; the last five do not apply
            to back-propagation except ``weight_decay``. bfloat16 and float16 weights are rounded
            stochastically by the zeroth-order methods.
        extra: plain data for the options that hold objects: ``{"sparsity": {"ratio": 0.5, ...}}``,
            ``{"magnitude": {"ratio": 0.75}}``, ``{"blocks": {"level": "block", ...}}``, ``{"hybrid":
            {"last": 1, "optimizer": "adam", "lr": 1e-3}}``; anything else goes to the class as it is.

    Raises:
        ValueError: an unknown name, or one without an optimizer.
    """
    method = find(name)
    tensors = list(parameters.values())
    if method.kind == "first-order":
        cls = getattr(torch.optim, method.cls)
        return cls(tensors, lr=lr, weight_decay=weight_decay, **(extra or {}))
    if method.kind not in ("zo", "forward"):
        raise ValueError(f"optimizer: expected one that takes steps, got {name!r}")
    from tenfold import optim

    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in tensors)
    options: dict[str, Any] = {
        "lr": lr, "seed": seed, "streams": model, "weight_decay": weight_decay,
        "num_queries": num_queries or method.queries, "rounding": "sr" if half else "rne", **method.options,
    }  # fmt: skip
    if method.kind == "zo":
        options |= {"eps": eps, **({} if restore is None else {"restore": restore})}
    cls = getattr(optim, method.cls)
    return cls(list(parameters.items()), **(options | _objects(extra or {}, model)))


def _objects(extra: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    from tenfold import optim

    made: dict[str, Any] = {}
    for key, value in extra.items():
        if key == "sparsity":
            made["mask"] = optim.RandomSparsity(**value)
        elif key == "magnitude":
            made["mask"] = optim.MagnitudeSparsity(**value)
        elif key == "blocks":
            made["blocks"] = optim.Blocks(model, **value)
        elif key == "hybrid":
            made["hybrid"] = _hybrid(model, **value)
        else:
            made[key] = value
    return made


def _hybrid(model: nn.Module, last: int, optimizer: str = "sgd", lr: float = 1e-3) -> Any:
    from tenfold import optim

    cls = getattr(torch.optim, find(optimizer).cls)

    def first_order(params: Sequence[Any]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = cls(list(params), lr=lr)
        return made

    return optim.HybridFirstOrder(last=last, optimizer=first_order, model=model)
