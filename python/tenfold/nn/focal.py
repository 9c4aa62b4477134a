"""Focal loss, alone and with Dice."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold.ops.softdice import soft_overlap
from tenfold.ops.softdice_losses import Weight, weighted

from ._region import Activation, RegionLoss
from .dice import DiceLoss


class FocalLoss(RegionLoss):
    """Focal loss (arXiv 1708.02002) of logits; arguments and values of monai.losses.FocalLoss.

    Args:
        gamma: exponent, >= 0.
        alpha: a number: that of positive voxels, 1 - alpha that of negative ones (with use_softmax: of the
            foreground classes and of class 0); or one per class, of its positive voxels alone.
        weight: one number, or one per class that counts.
        reduction: "mean"; "sum", which as in MONAI is the mean over voxels summed over batch and classes; or
            "none", the loss of each voxel, which PyTorch computes.
        use_softmax: the softmax over the classes (class 0 dropped before it with include_background=False),
            else the sigmoid of each.
        ignore_index: as `RegionLoss`.
    """

    class_weight: Tensor | None
    class_alpha: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Weight = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            reduction=reduction,
            ignore_index=ignore_index,
        )
        self.gamma = _checks.real("gamma", gamma, at_least=0.0)
        self.use_softmax = use_softmax
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))
        self.register_buffer("class_alpha", None if alpha is None else torch.as_tensor(alpha))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input: logits [B, C, spatial...], target as `to_onehot_y` says."""
        dtype = torch.promote_types(input.dtype, torch.float32)
        if self.reduction == "none":
            return self._each_voxel(input, target).to(dtype)
        positive, negative = self._sums(input, target)
        up, down = self._factors(positive)
        loss = weighted(positive * up + negative * down, self.class_weight)
        if self.class_weight is not None and loss.shape[1] == 1:
            loss = loss * self.class_weight.to(loss)
        voxels = self._voxels(input, target)
        if self.reduction == "sum":
            return (loss / voxels[:, None]).sum().to(dtype)
        return (loss.sum() / (voxels.sum() * (1 if self.ignore_index is not None else loss.shape[1]))).to(
            dtype
        )

    def of(self, positive: Tensor, negative: Tensor, voxels: int) -> Tensor:
        """The loss of each batch item and class, a mean over voxels, from their sums."""
        up, down = self._factors(positive)
        return weighted((positive * up + negative * down) / voxels, self.class_weight)

    def _drops_background(self, input: Tensor) -> bool:
        return not self.include_background and input.shape[1] > 1

    def _sums(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Those of positive and of negative voxels, [B, C] of the classes that count."""
        if self.use_softmax and self._drops_background(input):
            target, mask = self.labels(input, target)
            self._warn(input)
            if target.ndim == input.ndim:
                target = target[:, 1:]
            else:
                mask = (
                    target > 0 if self.ignore_index is None else (target > 0) & (target != self.ignore_index)
                )
                target = target.long() - 1
            sums = soft_overlap(
                input[:, 1:], target, activation="softmax", mask=mask, gamma=self.gamma, squares=False
            )
            return sums.log_positive, sums.log_negative
        activation = "softmax" if self.use_softmax else "sigmoid"
        sums = self.sums(input, target, logs=True, gamma=self.gamma, activation=activation)
        first = 1 if self._drops_background(input) else 0
        return sums.log_positive[:, first:], sums.log_negative[:, first:]

    def _factors(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        if self.class_alpha is None:
            return 1.0, 1.0
        alpha = self.class_alpha.to(like)
        if alpha.ndim:
            if alpha.numel() != like.shape[1]:
                _checks.fail(
                    ValueError, "alpha", f"one number for each of {like.shape[1]} classes", alpha.numel()
                )
            return alpha, 1.0
        if not self.use_softmax:
            return alpha, 1 - alpha
        if not self.include_background:
            warnings.warn("use_softmax without class 0: a single alpha is ignored", stacklevel=3)
            return 1.0, 1.0
        foreground = torch.arange(like.shape[1], device=like.device) > 0
        return torch.where(foreground, alpha, 1 - alpha), 1.0

    def _voxels(self, input: Tensor, target: Tensor) -> Tensor:
        """How many voxels of each batch item count."""
        count = input.shape[2:].numel()
        if self.ignore_index is None:
            return torch.full((input.shape[0],), count, dtype=torch.float64, device=input.device)
        labels, mask = self.labels(input, target)
        if mask is None:
            mask = labels != self.ignore_index
        return mask.flatten(1).sum(1, dtype=torch.float64)

    def _each_voxel(self, input: Tensor, target: Tensor) -> Tensor:
        labels, mask = self.labels(input, target)
        if labels.ndim < input.ndim:
            if self.ignore_index is not None:
                mask = labels != self.ignore_index
                labels = torch.where(mask, labels, 0)
            labels = F.one_hot(labels.long(), input.shape[1]).movedim(-1, 1)
        y, x = labels.float(), input.float()
        if self._drops_background(input):
            y, x = y[:, 1:], x[:, 1:]
        if self.use_softmax:
            log_p = x.log_softmax(1)
            positive, negative = -((1 - log_p.exp()) ** self.gamma) * log_p, torch.zeros_like(x)
        else:
            log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
            positive, negative = -(self.gamma * log_q).exp() * log_p, -(self.gamma * log_p).exp() * log_q
        spread = (-1, *[1] * (x.ndim - 2))
        up, down = (
            f.view(spread) if isinstance(f, Tensor) and f.ndim else f for f in self._factors(x[:, :, 0])
        )
        loss = y * positive * up + (1 - y) * negative * down
        if self.class_weight is not None:
            w = self.class_weight.to(loss)
            loss = loss * (w.view(spread) if w.ndim else w)
        return loss if mask is None else loss * mask[:, None]


class DiceFocalLoss(DiceLoss):
    """lambda_dice Dice + lambda_focal focal loss; arguments and values of monai.losses.DiceFocalLoss.

    The focal term is that of the sigmoid, whatever the activation of the Dice term, as in MONAI; with
    sigmoid=True both come from one pass over the logits.

    Args:
        gamma, alpha: as `FocalLoss`.
        The other arguments are those of `DiceLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        gamma: float = 2.0,
        weight: Weight = None,
        lambda_dice: float = 1.0,
        lambda_focal: float = 1.0,
        alpha: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            squared_pred,
            jaccard,
            reduction,
            smooth_nr,
            smooth_dr,
            batch,
            weight,
        )
        self.focal = FocalLoss(include_background, to_onehot_y, gamma, alpha, weight, reduction)
        self.lambda_dice = _checks.real("lambda_dice", lambda_dice, at_least=0.0)
        self.lambda_focal = _checks.real("lambda_focal", lambda_focal, at_least=0.0)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input: logits [B, C, spatial...], target as `to_onehot_y` says."""
        if not self.sigmoid or self.reduction == "none":
            dice, focal = super().forward(input, target), self.focal(input, target)
            return self.lambda_dice * dice + self.lambda_focal * focal
        sums = self.sums(input, target, squares=self.squared_pred, logs=True, gamma=self.focal.gamma)
        first = 0 if self.include_background or input.shape[1] == 1 else 1
        positive, negative = sums.log_positive[:, first:], sums.log_negative[:, first:]
        focal = self.focal.of(positive, negative, max(1, input.shape[2:].numel()))
        dice = self.shaped(self.of(sums), input)
        return self.lambda_dice * dice + self.lambda_focal * self.shaped(focal, input)
