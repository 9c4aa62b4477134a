"""What the region losses share: MONAI's arguments, and the way from a batch to the sums of `soft_overlap`."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.ops.softdice import LABEL_DTYPES, SoftOverlap, soft_overlap

Activation = Callable[[Tensor], Tensor]


class RegionLoss(nn.Module):
    """Base of the region losses.

    Args:
        include_background: False leaves class 0 out of the loss (not of the softmax).
        to_onehot_y: the target is a label map [B, 1, spatial...] (any dtype with integral values); False: a
            map of the input's shape.
        sigmoid, softmax, other_act: at most one of them; none if the input holds probabilities.
        reduction: "mean", "sum" or "none".
        smooth_nr, smooth_dr: added to numerator and denominator.
        batch: sums over the batch before the quotient.
        soft_label: the formula for labels between 0 and 1 (arXiv 2303.16296); it makes one array of the size
            of the input.
        ignore_index: voxels with this label do not count; in a map, those that have this class, or none
            where it is no class.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if other_act is not None and not callable(other_act):
            _checks.fail(TypeError, "other_act", "a function or None", _checks.describe(other_act))
        if bool(sigmoid) + bool(softmax) + (other_act is not None) > 1:
            given = f"sigmoid={sigmoid}, softmax={softmax}, other_act={other_act}"
            _checks.fail(ValueError, "sigmoid, softmax, other_act", "at most one of them", given)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid = sigmoid
        self.softmax = softmax
        self.other_act = other_act
        self.reduction = _checks.choice("reduction", reduction, ("mean", "sum", "none"))
        self.smooth_nr = float(smooth_nr)
        self.smooth_dr = float(smooth_dr)
        self.batch = batch
        self.soft_label = soft_label
        if ignore_index is not None:
            ignore_index = _checks.integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
        self.ignore_index = ignore_index

    def sums(
        self,
        input: Tensor,
        target: Tensor,
        *,
        squares: bool = False,
        logs: bool = False,
        gamma: float = 0.0,
        activation: str | None = None,
    ) -> SoftOverlap:
        """The sums of a batch, under the module's activation or the one given."""
        target, mask = self.labels(input, target)
        self._warn(input)
        if activation is None:
            activation = self.activation(input)
            if self.other_act is not None:
                input = self.other_act(input)
        ignore = self.ignore_index if mask is None else None
        sums = soft_overlap(
            input,
            target,
            activation=activation,
            mask=mask,
            ignore_index=ignore,
            gamma=gamma,
            squares=squares,
            logs=logs,
        )
        if self.soft_label and not squares and target.ndim == input.ndim:
            apart = _difference(input, target, mask, activation)
            tp = (sums.prediction + sums.target - apart) / 2
            sums = sums._replace(intersection=tp)
        return sums

    def activation(self, input: Tensor) -> str:
        if self.sigmoid:
            return "sigmoid"
        return "softmax" if self.softmax and input.shape[1] > 1 else "none"

    def labels(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Labels [B, spatial...] or a map, and which voxels count if a map leaves some out."""
        if self.to_onehot_y and input.shape[1] > 1:
            if target.ndim != input.ndim or target.shape[1] != 1:
                expected = f"shape [B, 1, spatial...] of input {tuple(input.shape)} with to_onehot_y"
                _checks.fail(ValueError, "target", expected, tuple(target.shape))
            return as_labels(target[:, 0]), None
        if target.shape != input.shape:
            _checks.fail(ValueError, "target", f"shape {tuple(input.shape)} of input", tuple(target.shape))
        return target, self._mask(target)

    def _mask(self, target: Tensor) -> Tensor | None:
        if self.ignore_index is None:
            return None
        if target.shape[1] == 1:
            return target[:, 0] != self.ignore_index
        if 0 <= self.ignore_index < target.shape[1]:
            return target[:, self.ignore_index] == 0
        return (target != 0).any(1)

    def _warn(self, input: Tensor) -> None:
        if input.shape[1] > 1 or torch.compiler.is_compiling():
            return
        ignored = {"softmax=True": self.softmax, "to_onehot_y=True": self.to_onehot_y}
        ignored["include_background=False"] = not self.include_background
        for name in (name for name, asked in ignored.items() if asked):
            warnings.warn(f"one channel in the input: {name} is ignored", stacklevel=4)

    def shaped(self, loss: Tensor, input: Tensor) -> Tensor:
        """[B, C] or [1, C] -> reduced, or with reduction="none" [B, C, 1, ...] or [C, 1, ...] as MONAI."""
        loss = loss.to(torch.promote_types(input.dtype, torch.float32))
        if self.reduction != "none":
            return loss.mean() if self.reduction == "mean" else loss.sum()
        sizes = loss.shape[1:] if self.batch else loss.shape
        return loss.reshape(*sizes, *[1] * (input.ndim - 2))


def as_labels(target: Tensor) -> Tensor:
    """Labels as integers; floating ones must be integral (checked on the CPU, where it costs no waiting)."""
    if target.dtype in LABEL_DTYPES:
        return target
    labels = target.to(torch.int64)
    if target.device.type == "cpu" and not torch.compiler.is_compiling():
        wrong = labels.to(target.dtype) != target
        if bool(wrong.any()):
            _checks.fail(ValueError, "target", "integral labels", target[wrong][0].item())
    return labels


def _difference(input: Tensor, target: Tensor, mask: Tensor | None, activation: str) -> Tensor:
    """sum |p - y| per batch item and class."""
    act = {"sigmoid": torch.sigmoid, "softmax": lambda x: torch.softmax(x, 1), "none": lambda x: x}
    apart = (act[activation](input) - target).abs()
    if mask is not None:
        apart = torch.where(mask[:, None], apart, 0)
    return apart.flatten(2).sum(2, dtype=torch.float64)
