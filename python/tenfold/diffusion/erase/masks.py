"""Training only the weights that a mask of one bit per weight chooses (107 MB for Stable Diffusion 1.5).

`tenfold.ops` has what makes the masks, `saliency_accum_` and `topk_mask`, and the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops import masked_adam_

__all__ = ["MaskedAdam", "mask_density", "sums_of", "unpack_mask"]


def unpack_mask(bits: Tensor, like: Tensor) -> Tensor:
    """bool, of the shape of `like`.

    Raises:
        ValueError: bits for another number of weights.
    """
    if bits.dtype != torch.uint8 or bits.shape != (math.ceil(like.numel() / 8),):
        expected = f"uint8 [{math.ceil(like.numel() / 8)}]"
        _checks.fail(ValueError, "mask", expected, f"{bits.dtype} {list(bits.shape)}")
    weights = torch.arange(8, dtype=torch.uint8, device=bits.device)
    spread = (bits[:, None] >> weights) & 1
    return spread.flatten()[: like.numel()].view(like.shape).bool()


def sums_of(weight: Tensor) -> Tensor:
    """Zeros in which a weight's saliency is summed: float64 as the weight, else float32."""
    return torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))


def mask_density(masks: Sequence[Tensor], tensors: Sequence[Tensor]) -> float:
    """Share of the weights of `tensors` that `masks` choose."""
    chosen = sum(int(unpack_mask(m, t).sum()) for m, t in zip(masks, tensors, strict=True))
    return chosen / max(sum(t.numel() for t in tensors), 1)


class MaskedAdam(torch.optim.Optimizer):
    """Adam on the weights that masks choose (`masked_adam_`).

    Args:
        params: parameters. masks: bits of each (`topk_mask`).
    """

    def __init__(
        self, params: Sequence[Tensor], masks: Sequence[Tensor], *, lr: float, weight_decay: float = 0.0
    ):
        params = list(params)
        _checks.length("masks", masks, len(params), "params")
        for param, bits in zip(params, masks, strict=True):
            unpack_mask(bits, param)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.masks = {id(p): bits for p, bits in zip(params, masks, strict=True)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; `closure` is not called for."""
        if closure is not None:
            _checks.fail(TypeError, "closure", "None", "a function")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
                state["step"] += 1
                masked_adam_(
                    [param], [param.grad], [state["exp_avg"]], [state["exp_avg_sq"]],
                    [self.masks[id(param)]], step=int(state["step"]), lr=group["lr"],
                    weight_decay=group["weight_decay"],
                )  # fmt: skip
        return None
