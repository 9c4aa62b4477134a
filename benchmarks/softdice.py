"""Dice with cross-entropy on the logits of a segmentation network, forward and backward.

One batch of nnU-Net's plan for the 54 structures of SegRap2023: 55 classes on a patch of 28 x 224 x 224.
Peers: MONAI's DiceCELoss, the same loss in plain PyTorch operations as nnU-Net writes it (softmax, one-hot by
scatter, F.cross_entropy), and torch.compile of that.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing, version_of
from .zo import DTYPES, _backend, _version

CLASSES, PATCH = 55, (28, 224, 224)


def _batch(dtype: torch.dtype, device: torch.device, tiny: bool) -> tuple[Tensor, Tensor]:
    """Logits [1, 55, z, y, x] and labels [1, 1, z, y, x] in blocks of one class."""
    shape = (4, 16, 16) if tiny else PATCH
    generator = torch.Generator(device).manual_seed(3)
    logits = torch.randn(1, CLASSES, *shape, device=device, generator=generator).mul_(2).to(dtype)
    coarse = [-(-n // 8) for n in shape]
    labels = torch.randint(CLASSES, (1, 1, *coarse), device=device, generator=generator)
    for axis, n in enumerate(shape, 2):
        labels = labels.repeat_interleave(8, axis).narrow(axis, 0, n)
    return logits, labels.to(torch.uint8).contiguous()


def _eager(logits: Tensor, labels: Tensor) -> Tensor:
    y = labels.long()
    p = torch.softmax(logits, 1)
    truth = torch.zeros_like(p).scatter_(1, y, 1)
    axes = tuple(range(2, logits.ndim))
    tp, total = (p * truth).sum(axes), p.sum(axes) + truth.sum(axes)
    dice = 1 - (2 * tp + 1e-5) / (total + 1e-5)
    return dice.mean() + F.cross_entropy(logits, y[:, 0])


def _both(loss: Any, logits: Tensor) -> list[Tensor]:
    value = loss()
    (gradient,) = torch.autograd.grad(value, [logits])
    return [value.detach(), gradient]


def _close(tolerance: float, ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
    """The loss, and the gradient relative to its largest entry."""
    scales = [torch.ones(()), ours[1].abs().max()]
    mine, other = ([t / s for t, s in zip(side, scales, strict=True)] for side in (ours, theirs))
    return compare_values(mine, other, tolerance, "relative")


def _dice_ce(dtype_name: str, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import dice_ce_loss

    dtype = DTYPES[dtype_name]
    logits, labels = _batch(dtype, device, tiny)
    logits.requires_grad_()
    # In half precision the peers' softmax and sums are half precision too, ours are float32.
    close = partial(_close, 2e-6 if dtype == torch.float32 else 0.15)
    compiled: list[Any] = []

    def monai() -> list[Tensor]:
        loss = import_module("monai.losses").DiceCELoss(to_onehot_y=True, softmax=True)
        return _both(lambda: loss(logits, labels), logits)

    def monai_version() -> str:
        return version_of("monai")

    def compile_it() -> str | None:
        compiled.append(torch.compile(_eager, dynamic=False))
        try:
            _both(lambda: compiled[0](logits, labels), logits)
        except Exception as error:  # what the compiler lacks here is said in the record
            return f"torch.compile fails here: {type(error).__name__}"
        return None

    return Workload(
        ours=Side(
            "tenfold",
            lambda: _both(lambda: dice_ce_loss(logits, labels), logits),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "soft_overlap", device),
        ),
        others=[
            Side("monai", monai, version=monai_version(), agree=close, prepare=lambda: missing("monai")),
            Side(
                "torch",
                lambda: _both(lambda: _eager(logits, labels), logits),
                version=f"plain operations on torch {torch.__version__}",
                agree=close,
                kind="reference",
            ),
            Side(
                "torch_compile",
                lambda: _both(lambda: compiled[0](logits, labels), logits),
                version=f"torch {torch.__version__}",
                agree=close,
                prepare=compile_it,
                kind="compiled",
            ),
        ],
        work=Work(bytes=float(3 * logits.nbytes + 2 * labels.nbytes)),
        keep=lambda result: [t.float().clone() for t in result],
        note=f"Dice and cross-entropy of logits {tuple(logits.shape)} in {dtype_name}, forward and backward",
    )


def cases() -> list[Case]:
    """All cases; they belong to the family `overlap`."""
    names = ("f32", "bf16")
    return [Case(f"overlap.dice_ce.{name}.55x28x224x224", partial(_dice_ce, name)) for name in names]
