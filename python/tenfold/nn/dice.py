"""Dice, Dice with cross-entropy, generalised Dice and Tversky losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold.ops.softdice import SoftOverlap
from tenfold.ops.softdice_losses import (
    PROFILES,
    Weight,
    class_weights,
    cross_entropy_of,
    dice_ce_loss,
    dice_of,
    generalized_of,
    weighted,
)

from ._region import Activation, RegionLoss, as_labels


class DiceLoss(RegionLoss):
    """1 - Dice, per batch item and class (V-Net, arXiv 1606.04797); arguments and values of
    monai.losses.DiceLoss.

    Args:
        squared_pred: sums of squares in the denominator.
        jaccard: intersection over union instead of Dice.
        weight: one number, or one per class that counts.
        The other arguments are those of `RegionLoss`.
    """

    class_weight: Tensor | None

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
        weight: Weight = None,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            smooth_nr,
            smooth_dr,
            batch,
            soft_label,
            ignore_index,
        )
        self.squared_pred = squared_pred
        self.jaccard = jaccard
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight))

    def of(self, sums: SoftOverlap) -> Tensor:
        """The loss of each batch item and class, from their sums."""
        smooth = (self.smooth_nr, self.smooth_dr)
        loss = dice_of(sums, self.include_background, self.squared_pred, self.jaccard, *smooth, self.batch)
        return weighted(loss, self.class_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input [B, C, spatial...], target as `to_onehot_y` says."""
        return self.shaped(self.of(self.sums(input, target, squares=self.squared_pred)), input)


class DiceCELoss(DiceLoss):
    """lambda_dice Dice + lambda_ce cross-entropy; arguments and values of monai.losses.DiceCELoss.

    With softmax=True (or sigmoid=True and one channel) logits are read once forward and once backward. With
    another activation of the Dice term the cross-entropy, which is that of the softmax, takes a second pass.
    label_smoothing > 0 leaves the cross-entropy to PyTorch.

    Args:
        weight: one number per class, class 0 included; with one channel the weight of positive voxels.
        profile: "monai", "nnunet" or "pymic": see `tenfold.ops.dice_ce_loss`. The last two take softmax=True
            and label maps.
        ignore_index: voxels with this label count in neither term.
        The other arguments are those of `DiceLoss`; reduction "mean" or "sum".
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
        weight: Weight = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
        profile: str = "monai",
    ) -> None:
        _checks.choice("reduction", reduction, ("mean", "sum"))
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
            ignore_index=ignore_index,
        )
        self.lambda_dice = _checks.real("lambda_dice", lambda_dice, at_least=0.0)
        self.lambda_ce = _checks.real("lambda_ce", lambda_ce, at_least=0.0)
        self.label_smoothing = _checks.real("label_smoothing", label_smoothing, at_least=0.0)
        self.profile = _checks.choice("profile", profile, PROFILES)
        if profile != "monai" and not (softmax and to_onehot_y):
            given = f"softmax={softmax}, to_onehot_y={to_onehot_y}"
            _checks.fail(ValueError, "profile", f"softmax=True and to_onehot_y=True with {profile!r}", given)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input: logits [B, C, spatial...]; target [B, 1, spatial...] or [B, C, spatial...]."""
        if input.ndim != target.ndim:
            _checks.fail(ValueError, "target", f"{input.ndim} axes as input", target.ndim)
        if target.shape[1] not in (1, input.shape[1]):
            _checks.fail(ValueError, "target", f"1 or {input.shape[1]} channels", target.shape[1])
        if self.profile != "monai":
            return self._profile(input, target)
        classes = input.shape[1]
        activation = self.activation(input)
        wanted = "softmax" if classes > 1 else "sigmoid"
        one_pass = activation == wanted and self.label_smoothing == 0
        sums = self.sums(input, target, squares=self.squared_pred, logs=one_pass)
        w = class_weights(self.class_weight, classes, sums.target)
        loss = dice_of(
            sums,
            self.include_background,
            self.squared_pred,
            self.jaccard,
            self.smooth_nr,
            self.smooth_dr,
            self.batch,
        )
        if w is not None and classes > 1:
            loss = loss * w[classes - loss.shape[1] :]
        return self.lambda_dice * self.shaped(loss, input) + self.lambda_ce * self._ce(
            input, target, sums if one_pass else None, w, wanted
        )

    def _ce(
        self, input: Tensor, target: Tensor, sums: SoftOverlap | None, w: Tensor | None, activation: str
    ) -> Tensor:
        dense = target.shape == input.shape
        if self.label_smoothing > 0 and activation == "softmax":
            labels = target.to(input.dtype) if dense else as_labels(target[:, 0]).long()
            weight = None if w is None else w.to(input.dtype)
            ignore = -100 if self.ignore_index is None else self.ignore_index
            return F.cross_entropy(
                input,
                labels,
                weight,
                ignore_index=ignore,
                reduction=self.reduction,
                label_smoothing=self.label_smoothing,
            )
        if sums is None:
            labelled = RegionLoss(to_onehot_y=not dense, ignore_index=self.ignore_index)
            sums = labelled.sums(input, target, logs=True, activation=activation)
        mask = self._mask(target) if dense else None
        count = input.shape[0] * input.shape[2:].numel()
        voxels = count if mask is None else mask.sum()
        ce = cross_entropy_of(sums, w, self.reduction, activation, voxels, dense)
        return ce.to(torch.promote_types(input.dtype, torch.float32))

    def _profile(self, input: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = dice_ce_loss(
            input,
            as_labels(target[:, 0]),
            batch=self.batch,
            weight=self.class_weight,
            lambda_dice=self.lambda_dice,
            lambda_ce=self.lambda_ce,
            ignore_index=self.ignore_index,
            profile=self.profile,
        )
        return loss


class GeneralizedDiceLoss(RegionLoss):
    """Generalised Dice (arXiv 1707.03237); arguments and values of monai.losses.GeneralizedDiceLoss.

    Args:
        w_type: "square", "simple" or "uniform": weights 1 / volume^2, 1 / volume or 1.
        The other arguments are those of `RegionLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        w_type: str = "square",
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            smooth_nr,
            smooth_dr,
            batch,
            soft_label,
        )
        self.w_type = _checks.choice("w_type", w_type, ("square", "simple", "uniform"))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input [B, C, spatial...], target as `to_onehot_y` says."""
        smooth = (self.smooth_nr, self.smooth_dr)
        sums = self.sums(input, target)
        return self.shaped(
            generalized_of(sums, self.include_background, self.w_type, *smooth, self.batch), input
        )


class TverskyLoss(RegionLoss):
    """Tversky loss (arXiv 1706.05721); arguments and values of monai.losses.TverskyLoss.

    Args:
        alpha: weight of false positives.
        beta: weight of false negatives.
        The other arguments are those of `RegionLoss`.
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        soft_label: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            reduction,
            smooth_nr,
            smooth_dr,
            batch,
            soft_label,
            ignore_index,
        )
        self.alpha = alpha
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input [B, C, spatial...], target as `to_onehot_y` says; reduction="none" gives [B, C] or [C]."""
        sums = self.sums(input, target)
        tp, p, y = (
            v.sum(0, keepdim=True) if self.batch else v
            for v in (sums.intersection, sums.prediction, sums.target)
        )
        false = self.alpha * (p - tp) + self.beta * (y - tp)
        loss = 1 - (tp + self.smooth_nr) / (tp + false + self.smooth_dr)
        if not self.include_background and loss.shape[1] > 1:
            loss = loss[:, 1:]
        if self.reduction == "none":
            dtype = torch.promote_types(input.dtype, torch.float32)
            return (loss[0] if self.batch else loss).to(dtype)
        return self.shaped(loss, input)
