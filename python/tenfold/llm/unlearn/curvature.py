"""Optimizers of an unlearning run by name, and the gradients that a Hessian estimate is made from.

    adamw              torch.optim.AdamW, first order
    sophia             Sophia as in its paper (arXiv 2305.14342): labels drawn from the model (GNB), every k steps
    sophia-h           the same with Hutchinson's estimator: one Hessian-vector product every k steps
    empirical-fisher   the same with the labels of the data
    liuhong99          the order of the published Sophia code: refresh after the step, denominators rho bs h
    soul-legacy        the optimizer of SOUL's published code: squares of the unlearning gradient at every step
    sign               the momentum's sign and nothing else, the ablation
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.llm.unlearn import _standin as ops
from tenfold.llm.unlearn.subject import Subject

__all__ = ["FIRST_ORDER", "OPTIMIZERS", "accumulate_hessian_gradient", "make_optimizer", "parameter_groups"]

OPTIMIZERS = (
    "adamw", "sophia", "sophia-h", "empirical-fisher", "liuhong99", "soul-legacy", "sign"
)  # fmt: skip
FIRST_ORDER = ("adamw", "sign")

_MODES = {
    "sophia": "paper", "sophia-h": "paper", "empirical-fisher": "empirical_fisher", "liuhong99": "liuhong99",
    "soul-legacy": "soul_legacy", "sign": "sign",
}  # fmt: skip


def parameter_groups(
    model: nn.Module, parameters: dict[str, nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups: weights that decay, and norms and biases that do not."""
    norms = {
        id(p)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for p in module.parameters(recurse=False)
    }
    spared = {n: p for n, p in parameters.items() if id(p) in norms or n.endswith("bias")}
    groups = [
        {"params": [p for n, p in parameters.items() if n not in spared], "weight_decay": weight_decay},
        {"params": list(spared.values()), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str,
    subject: Subject,
    *,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] | None = None,
    rho: float | None = None,
    gamma: float | None = None,
    every: int = 10,
    state_dtype: Any = torch.float32,
    rounding: str = "nearest",
    master: bool = False,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """An optimizer over the trained parameters of a subject.

    Args:
        betas: None for the optimizer's own: (0.9, 0.999) of AdamW, (0.9, 0.95) of SOUL's, (0.965, 0.99) of
            Sophia's.
        rho: of ``liuhong99`` and ``soul-legacy`` (0.04).
        gamma: of the others: the share of h that the momentum is held against (0.05 GNB, 0.01 Hutchinson).
        every: steps between Hessian estimates.

    Raises:
        ValueError: an unknown name, or a setting out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    groups = parameter_groups(subject.model, subject.parameters, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas or (0.9, 0.999), weight_decay=weight_decay)
    from tenfold.optim import Sophia

    settings: dict[str, Any] = {}
    if name in ("liuhong99", "soul-legacy"):
        settings["rho"] = 0.04 if rho is None else rho
    elif name != "sign":
        settings["gamma"] = (0.01 if name == "sophia-h" else 0.05) if gamma is None else gamma
    own = (0.9, 0.95) if name == "soul-legacy" else (0.965, 0.99)
    return Sophia(
        groups, lr=lr, betas=betas or own, weight_decay=weight_decay, mode=_MODES[name], update_interval=every,
        estimator="hutchinson" if name == "sophia-h" else "gnb", state_dtype=state_dtype, master=master,
        rounding=rounding, seed=seed, **settings,
    )  # fmt: skip


def accumulate_hessian_gradient(
    subject: Subject, batches: Sequence[tuple[str, Sequence[int]]], *, seed: int, sampled: bool = True
) -> int:
    """Add to ``.grad`` the gradient of the *summed* cross-entropy of every labelled position; their number B.

    With labels drawn from the model (``sampled``) this is the Gauss-Newton-Bartlett gradient, with the data's
    own labels the empirical Fisher's. As the estimate is B times the square of the mean gradient, the
    optimizer takes the square of this sum divided by B.

    Args:
        batches: (set, rows) of each part; parts are summed.
        seed: of the draws; each position of each part has draws of its own.
    """
    count = 0
    for name, chosen in batches:
        rows, head = subject.labelled(subject.batch(name, chosen)), subject.head
        if not sampled:
            logp = subject_logp(rows, head)
        else:
            logp = ops.linear_gnb_sample(
                rows.hidden, head.weight, head.bias, seed=seed, row_offset=count
            ).logp  # fmt: skip
        (-logp.sum()).backward()
        count += len(rows.targets)
    return count


def subject_logp(rows: Any, head: Any) -> Tensor:
    """Log-probabilities of the data's labels."""
    return ops.linear_logprob(rows.hidden, head.weight, rows.targets, head.bias, softcap=head.softcap).logp
