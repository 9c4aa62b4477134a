"""MeZO (Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", arXiv 2305.17333).

The published loop, written anew from its expressions (princeton-nlp/MeZO, revision 552cb1b): every pass seeds
torch's generator again and, tensor by tensor, draws z in the weights' dtype and binds a newly allocated
result to `.data`. A step is: pass +1, forward, pass -2, forward, pass +1, update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

VERSION = "expression of princeton-nlp/MeZO 552cb1b"

Named = Sequence[tuple[str, torch.Tensor]]


def draw(like: torch.Tensor) -> torch.Tensor:
    """Standard normals of a tensor's shape, dtype and device, from torch's global generator."""
    return torch.normal(mean=0, std=1, size=like.size(), device=like.device, dtype=like.dtype)


def perturb(named: Named, seed: int, scale: float, eps: float) -> None:
    """theta <- theta + scale * z * eps."""
    torch.manual_seed(seed)
    for _, p in named:
        z = draw(p.data)
        p.data = p.data + scale * z * eps


def decays(name: str) -> bool:
    """MeZO decides by the parameter's name which tensors are decayed."""
    return not any(word in name for word in ("bias", "layer_norm", "layernorm"))


def update(named: Named, seed: int, lr: float, projected_grad: float, weight_decay: float = 0.0) -> None:
    """theta <- theta - lr * (projected_grad * z + weight_decay * theta), the last term where `decays`.

    The decay term is computed also when weight_decay is 0, as in the published loop.
    """
    torch.manual_seed(seed)
    for name, p in named:
        z = draw(p.data)
        if decays(name):
            p.data = p.data - lr * (projected_grad * z + weight_decay * p.data)
        else:
            p.data = p.data - lr * (projected_grad * z)


def step(
    named: Named,
    loss: Callable[[], torch.Tensor],
    seed: int,
    *,
    eps: float,
    lr: float,
    weight_decay: float = 0.0,
) -> tuple[float, float, float]:
    """One optimizer step; returns (loss at +eps, loss at -eps, projected gradient)."""
    perturb(named, seed, 1, eps)
    with torch.inference_mode():
        plus = loss()
    perturb(named, seed, -2, eps)
    with torch.inference_mode():
        minus = loss()
    projected_grad = ((plus - minus) / (2 * eps)).item()
    perturb(named, seed, 1, eps)
    update(named, seed, lr, projected_grad, weight_decay)
    return plus.item(), minus.item(), projected_grad
