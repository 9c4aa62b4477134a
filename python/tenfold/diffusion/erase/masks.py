"""Which weights matter most for a loss, and training only those.

Saliency is a gradient (SalUn, arXiv 2310.12508) or a gradient times its weight (SNIP, arXiv 1810.02340;
Scissorhands, arXiv 2401.06187), ranked over all tensors together. A mask has one bit per weight: 107 MB for
Stable Diffusion 1.5.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks

__all__ = [
    "MODES",
    "MaskedAdam",
    "abs_quantile",
    "mask_density",
    "masked_adam_",
    "saliency_accum_",
    "topk_mask",
    "unpack_mask",
]

MODES = ("signed", "abs")


def saliency_accum_(acc: Sequence[Tensor], grads: Sequence[Tensor | None], *, mode: str = "signed") -> None:
    """acc += g ("signed": opposite batches cancel, as in SalUn) or acc += |g| ("abs", as in Scissorhands), in
    place; None is a weight that the loss does not reach.

    Raises:
        ValueError: lengths or shapes differ.
    """
    _checks.choice("mode", mode, MODES)
    _checks.length("grads", grads, len(acc), "acc")
    for i, (total, grad) in enumerate(zip(acc, grads, strict=True)):
        if grad is None:
            continue
        if grad.shape != total.shape:
            _checks.fail(ValueError, f"grads[{i}]", str(list(total.shape)), list(grad.shape))
        total.add_(grad if mode == "signed" else grad.abs())


def abs_quantile(tensors: Sequence[Tensor], q: float) -> tuple[float, int]:
    """(the k-th largest magnitude over all tensors, how many are at least that), k = round(q N) >= 1.

    Args:
        tensors: any shapes, one dtype. q: share of the weights, in (0, 1].

    Raises:
        ValueError: nothing is given, or not all values are finite.
    """
    _checks.real("q", q, positive=True)
    if q > 1:
        _checks.fail(ValueError, "q", "a share of at most 1", q)
    values = _magnitudes(tensors)
    if not len(values):
        _checks.fail(ValueError, "tensors", "at least one weight", "none")
    k = max(round(q * len(values)), 1)
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    if threshold == 0:
        warnings.warn("tensors: the threshold is 0: less than the share q is not 0", stacklevel=2)
    return float(threshold), int((values >= threshold).sum())


def topk_mask(tensors: Sequence[Tensor], q: float, *, largest: bool = True) -> list[Tensor]:
    """The share `q` of the weights with the largest magnitude over all tensors together: exactly round(q N)
    of them. Among equal ones the first are taken.

    Args:
        q: in [0, 1]. largest: False takes the smallest.

    Returns:
        Bits, uint8 [ceil(n / 8)] for each tensor of n weights: weight i is bit i % 8 of byte i // 8.

    Raises:
        ValueError: q outside [0, 1], or not all values are finite.
    """
    _checks.real("q", q, at_least=0.0)
    if q > 1:
        _checks.fail(ValueError, "q", "a share in [0, 1]", q)
    values = _magnitudes(tensors)
    k = round(q * len(values))
    chosen = np.zeros(len(values), dtype=bool)
    if k:
        ranked = values if largest else -values
        threshold = np.partition(ranked, len(ranked) - k)[len(ranked) - k]
        chosen = ranked > threshold
        ties = np.flatnonzero(ranked == threshold)
        chosen[ties[: k - int(chosen.sum())]] = True
    ends = np.cumsum([t.numel() for t in tensors])
    parts = np.split(chosen, ends[:-1]) if len(tensors) else []
    return [
        torch.from_numpy(np.packbits(part, bitorder="little")).to(tensor.device)
        for part, tensor in zip(parts, tensors, strict=True)
    ]


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


def mask_density(masks: Sequence[Tensor], tensors: Sequence[Tensor]) -> float:
    """Share of the weights of `tensors` that `masks` choose."""
    chosen = sum(int(unpack_mask(m, t).sum()) for m, t in zip(masks, tensors, strict=True))
    return chosen / max(sum(t.numel() for t in tensors), 1)


def masked_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One step of Adam (arXiv 1412.6980) with decoupled weight decay on the weights that the masks choose, in
    place. The others and their moments keep every bit: a masked gradient alone would leave them to the decay.

    Args:
        step: number of this step, from 1.
    """
    first, second = 1 - beta1**step, math.sqrt(1 - beta2**step)
    for param, grad, mean, square, bits in zip(params, grads, exp_avgs, exp_avg_sqs, masks, strict=True):
        keep = unpack_mask(bits, param)
        new_mean = mean.lerp(grad, 1 - beta1)
        new_square = (square * beta2).addcmul(grad, grad, value=1 - beta2)
        new = param * (1 - lr * weight_decay)
        new = new.addcdiv(new_mean, new_square.sqrt() / second + eps, value=-lr / first)
        mean.copy_(torch.where(keep, new_mean, mean))
        square.copy_(torch.where(keep, new_square, square))
        param.copy_(torch.where(keep, new, param))


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


def _magnitudes(tensors: Sequence[Tensor]) -> np.ndarray:
    kinds = {t.dtype for t in tensors}
    if len(kinds) > 1:
        _checks.fail(ValueError, "tensors", "one dtype", sorted(map(str, kinds)))
    wide = [t.detach().flatten().abs() for t in tensors]
    wide = [t if t.dtype == torch.float64 else t.float() for t in wide]
    values = np.concatenate([t.cpu().numpy() for t in wide]) if wide else np.zeros(0, np.float32)
    if not np.isfinite(values).all():
        _checks.fail(ValueError, "tensors", "finite values", "NaN or infinity")
    return np.asarray(values)
