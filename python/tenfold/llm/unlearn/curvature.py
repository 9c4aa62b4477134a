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
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold import ops
from tenfold.llm.unlearn import losses
from tenfold.llm.unlearn.subject import Subject

__all__ = [
    "FIRST_ORDER",
    "OPTIMIZERS",
    "accumulate_sampled",
    "make_optimizer",
    "mean_loss",
    "parameter_groups",
    "refresh",
]

OPTIMIZERS = (
    "adamw", "sophia", "sophia-h", "empirical-fisher", "liuhong99", "soul-legacy", "sign"
)  # fmt: skip
FIRST_ORDER = ("adamw", "sign")
ESTIMATED = ("sophia", "sophia-h", "empirical-fisher", "liuhong99")
"""Those that estimate curvature on rows of their own."""

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
    rho: float | str | None = None,
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
        rho: scale of h in the denominator (the paper's gamma), or ``"auto"``, which holds the share of
            coordinates that are not clipped at 0.3. None: 0.05 with GNB, 0.01 with Hutchinson (the paper's),
            0.04
            in the modes that follow published code.
        every: steps between Hessian estimates.

    Raises:
        ValueError: an unknown name, or a setting out of range.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {name!r}")
    groups = parameter_groups(subject.model, subject.parameters, weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(
            groups, lr=lr, betas=betas or (0.9, 0.999), weight_decay=weight_decay, fused=True
        )
    from tenfold.optim import Sophia

    published = {"sophia": 0.05, "empirical-fisher": 0.05, "sophia-h": 0.01}.get(name, 0.04)
    own = (0.9, 0.95) if name == "soul-legacy" else (0.965, 0.99)
    return Sophia(
        groups, lr=lr, betas=betas or own, weight_decay=weight_decay, mode=_MODES[name],
        update_interval=every,
        estimator="hutchinson" if name == "sophia-h" else "gnb", state_dtype=state_dtype, master=master,
        rounding=rounding, seed=seed, rho=published if rho is None else rho,
    )  # fmt: skip


def refresh(
    optimizer: Any, name: str, subject: Subject, batches: Sequence[tuple[str, Sequence[int]]], *, seed: int
) -> int:
    """Take an estimate of curvature on ``batches`` into the optimizer; B, the number of predictions.

    Gradients that are there are kept. With sampled labels, :func:`accumulate_sampled` goes over hidden
    states and
    holds no logits; the other estimators take the loss of the data's labels.

    Args:
        name: of the optimizer, as in :data:`OPTIMIZERS`.
        batches: (set, rows) of each part.
        seed: of the sampled labels.
    """
    if name in ("sophia-h", "empirical-fisher"):
        second = name == "sophia-h"
        count: int = optimizer.estimate_hessian(
            subject.model, batches, loss=lambda _, batch: mean_loss(subject, batch, second), group=None
        )  # of several processes each takes all of the estimate: it is the one process's, bit for bit
        return count
    kept = {key: p.grad for key, p in subject.parameters.items()}
    optimizer.zero_grad(set_to_none=True)
    count = accumulate_sampled(subject, batches, seed=seed)
    # the published code keeps B out of h and multiplies by it in the step
    optimizer.update_hessian(scale=1.0 / count**2 if name == "liuhong99" else 1.0 / count)
    for key, parameter in subject.parameters.items():
        parameter.grad = kept[key]
    return count


def accumulate_sampled(subject: Subject, batches: Sequence[tuple[str, Sequence[int]]], *, seed: int) -> int:
    """Add to ``.grad`` the gradient of the *summed* cross-entropy of labels drawn from the model; their
    number.

    This is the Gauss-Newton-Bartlett gradient: as the estimate is B times the square of the mean gradient,
    the
    optimizer takes the square of this sum divided by B. Each position of each part has draws of its own.
    """
    count = 0
    for name, chosen in batches:
        rows, head = subject.labelled(subject.batch(name, chosen)), subject.head
        drawn = ops.linear_gnb_sample(
            rows.hidden, head.weight, head.bias, seed=seed, row_offset=count, softcap=head.softcap
        )
        (-drawn.logp.sum()).backward()
        count += len(rows.targets)
    return count


def mean_loss(subject: Subject, batch: tuple[str, Sequence[int]], second: bool) -> tuple[Tensor, int]:
    """Mean loss of the data's labels and their number; for second derivatives from the logits themselves."""
    rows, head = subject.labelled(subject.batch(*batch)), subject.head
    count = len(rows.targets)
    if not second:
        return losses.nll(losses.score(rows, head)), count
    logits = losses.logits(rows.hidden, head).float()
    return F.cross_entropy(logits, rows.targets), count
