"""Region losses on the sums of `soft_overlap`: a few operations on [B, C] numbers, whatever the image.

Names and defaults are MONAI's. `profile` gives the conventions of nnU-Net (arXiv 1809.10486) and of PyMIC.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks

from .softdice import SoftOverlap, soft_overlap

PROFILES = ("monai", "nnunet", "pymic")
REDUCTIONS = ("mean", "sum", "none")
Weight = Sequence[float] | float | Tensor | None


def dice_loss(
    logits: Any,
    target: Any,
    *,
    activation: str = "softmax",
    include_background: bool = True,
    squared_pred: bool = False,
    jaccard: bool = False,
    reduction: str = "mean",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Weight = None,
    mask: Any = None,
    ignore_index: int | None = None,
) -> Any:
    """1 - (2 sum p y + smooth_nr) / (sum p + sum y + smooth_dr), the mean over batch items and classes.

    Args:
        logits, target, activation, mask, ignore_index: as `soft_overlap`.
        include_background: False leaves class 0 out (where there is more than one).
        squared_pred: sums of squares in the denominator (V-Net, arXiv 1606.04797).
        jaccard: the denominator 2 (sum p + sum y - sum p y): soft intersection over union.
        reduction: "mean", "sum" or "none" ([B, C], [1, C] with batch=True).
        batch: sums over the batch before the quotient.
        weight: a number or one per class (without class 0 where that is left out); not normalised.

    Returns:
        The dtype of the logits, at least float32.

    Raises:
        TypeError, ValueError, RuntimeError: as `soft_overlap`.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    sums = soft_overlap(
        logits,
        target,
        activation=activation,
        mask=mask,
        ignore_index=ignore_index,
        squares=squared_pred,
        logs=False,
    )
    loss = dice_of(sums, include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch)
    return _out(reduce(weighted(loss, weight), reduction), logits)


def dice_ce_loss(
    logits: Any,
    target: Any,
    *,
    activation: str = "softmax",
    include_background: bool = True,
    squared_pred: bool = False,
    jaccard: bool = False,
    reduction: str = "mean",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    weight: Weight = None,
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    mask: Any = None,
    ignore_index: int | None = None,
    profile: str = "monai",
) -> Any:
    """lambda_dice Dice + lambda_ce cross-entropy, the logits read once forward and once backward.

    The cross-entropy is that of the softmax, weighted as `torch.nn.CrossEntropyLoss` does it, or with
    activation="sigmoid" the binary one, `weight` being that of the positive voxels.

    Args:
        logits, target, activation, mask, ignore_index: as `soft_overlap`.
        weight: one number per class, class 0 included. The Dice term takes those of the classes it counts.
        profile: "monai"; "nnunet": no class 0, minus the mean Dice coefficient, `batch` pools over the batch;
            "pymic": Dice pooled over the batch, class weights normalised to their sum, cross-entropy summed
            with the weights as they are and divided by the number of voxels. Profiles but the first take no
            squared_pred, jaccard or reduction, and the softmax only.
        The other arguments are those of `dice_loss`.

    Raises:
        TypeError, ValueError, RuntimeError: as `soft_overlap`; reduction="none", which has no meaning here.
    """
    _checks.choice("profile", profile, PROFILES)
    _checks.choice("reduction", reduction, REDUCTIONS[:2])
    dice_factor = _checks.real("lambda_dice", lambda_dice, at_least=0.0)
    ce_factor = _checks.real("lambda_ce", lambda_ce, at_least=0.0)
    if activation == "none":
        _checks.fail(ValueError, "activation", "'softmax' or 'sigmoid'", repr(activation))
    if profile != "monai" and (squared_pred or jaccard or reduction != "mean" or activation != "softmax"):
        expected = "no squared_pred or jaccard, reduction='mean' and activation='softmax'"
        _checks.fail(ValueError, "profile", expected, repr(profile))
    sums = soft_overlap(
        logits, target, activation=activation, mask=mask, ignore_index=ignore_index, squares=squared_pred
    )
    classes = int(sums.target.shape[1])
    w = class_weights(weight, classes, sums.target)
    if profile != "monai":
        both = (_nnunet if profile == "nnunet" else _pymic)(sums, w, batch)
        return _out(dice_factor * both[0] + ce_factor * both[1], logits)
    loss = dice_of(sums, include_background, squared_pred, jaccard, smooth_nr, smooth_dr, batch)
    if w is not None and classes > 1:
        loss = loss * w[classes - loss.shape[1] :]
    dense = tuple(target.shape) == tuple(logits.shape)
    ce = cross_entropy_of(sums, w, reduction, activation, _voxels(logits, mask, sums, dense), dense)
    return _out(dice_factor * reduce(loss, reduction) + ce_factor * ce, logits)


def tversky_loss(
    logits: Any,
    target: Any,
    *,
    activation: str = "softmax",
    include_background: bool = True,
    alpha: float | Tensor = 0.5,
    beta: float | Tensor = 0.5,
    reduction: str = "mean",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    mask: Any = None,
    ignore_index: int | None = None,
) -> Any:
    """1 - (tp + smooth_nr) / (tp + alpha fp + beta fn + smooth_dr) (Tversky loss, arXiv 1706.05721).

    Args:
        alpha, beta: weights of false positives and of false negatives; tensors have gradients.
        The other arguments are those of `dice_loss`.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    sums = soft_overlap(
        logits,
        target,
        activation=activation,
        mask=mask,
        ignore_index=ignore_index,
        squares=False,
        logs=False,
    )
    tp, p, y = (
        _pooled(v, include_background, batch) for v in (sums.intersection, sums.prediction, sums.target)
    )
    _numbers(smooth_nr=smooth_nr, smooth_dr=smooth_dr, alpha=alpha, beta=beta)
    loss = 1 - (tp + smooth_nr) / (tp + alpha * (p - tp) + beta * (y - tp) + smooth_dr)
    return _out(reduce(loss, reduction), logits)


def generalized_dice_loss(
    logits: Any,
    target: Any,
    *,
    activation: str = "softmax",
    include_background: bool = True,
    w_type: str = "square",
    reduction: str = "mean",
    smooth_nr: float = 1e-5,
    smooth_dr: float = 1e-5,
    batch: bool = False,
    mask: Any = None,
    ignore_index: int | None = None,
) -> Any:
    """Dice of classes joined with weights 1 / volume^2 (generalised Dice, arXiv 1707.03237).

    Args:
        w_type: "square", "simple" (1 / volume) or "uniform". A class without voxels gets the largest weight
            of the others.
        The other arguments are those of `dice_loss`.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    _checks.choice("w_type", w_type, ("square", "simple", "uniform"))
    sums = soft_overlap(
        logits,
        target,
        activation=activation,
        mask=mask,
        ignore_index=ignore_index,
        squares=False,
        logs=False,
    )
    return _out(
        reduce(generalized_of(sums, include_background, w_type, smooth_nr, smooth_dr, batch), reduction),
        logits,
    )


# ---- from sums to losses ---------------------------------------------------------------------------------


def dice_of(
    sums: SoftOverlap,
    include_background: bool,
    squared_pred: bool,
    jaccard: bool,
    smooth_nr: float,
    smooth_dr: float,
    batch: bool,
) -> Tensor:
    """The loss of each batch item and class, [B, C] or [1, C]."""
    _numbers(smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    p = sums.prediction_squared if squared_pred else sums.prediction
    y = sums.target_squared if squared_pred else sums.target
    tp, p, y = (_pooled(v, include_background, batch) for v in (sums.intersection, p, y))
    denominator = 2 * (p + y - tp) if jaccard else p + y
    return 1 - (2 * tp + smooth_nr) / (denominator + smooth_dr)


def generalized_of(
    sums: SoftOverlap, include_background: bool, w_type: str, smooth_nr: float, smooth_dr: float, batch: bool
) -> Tensor:
    """[B, 1], or [1, C] -> [1] with batch=True."""
    _numbers(smooth_nr=smooth_nr, smooth_dr=smooth_dr)
    tp, p, y = (
        _pooled(v, include_background, batch) for v in (sums.intersection, sums.prediction, sums.target)
    )
    w = torch.ones_like(y) if w_type == "uniform" else 1 / (y * y if w_type == "square" else y)
    absent = torch.isinf(w)
    w = torch.where(absent, 0, w)
    w = torch.where(absent, w.amax(1, keepdim=True), w)
    numerator = 2 * (tp * w).sum(1, keepdim=True) + smooth_nr
    return 1 - numerator / (((p + y) * w).sum(1, keepdim=True) + smooth_dr)


def cross_entropy_of(
    sums: SoftOverlap, w: Tensor | None, reduction: str, activation: str, voxels: Tensor | float, dense: bool
) -> Tensor:
    """As torch's: the weighted mean for labels, the plain mean over voxels for maps and the binary one."""
    positive = sums.log_positive if w is None else sums.log_positive * w
    if activation == "sigmoid":
        total = (positive + sums.log_negative).sum()
        return total if reduction == "sum" else total / (voxels * sums.target.shape[1])
    total = positive.sum()
    if reduction == "sum":
        return total
    return total / (voxels if dense else (sums.target if w is None else sums.target * w).sum())


def _nnunet(sums: SoftOverlap, w: Tensor | None, batch: bool) -> tuple[Tensor, Tensor]:
    tp, p, y = (_pooled(v, False, batch) for v in (sums.intersection, sums.prediction, sums.target))
    coefficient = (2 * tp + 1e-5) / (p + y + 1e-5).clamp(min=1e-8)
    return -coefficient.mean(), cross_entropy_of(sums, w, "mean", "softmax", 0.0, False)


def _pymic(sums: SoftOverlap, w: Tensor | None, _: bool) -> tuple[Tensor, Tensor]:
    tp, p, y = (_pooled(v, True, True)[0] for v in (sums.intersection, sums.prediction, sums.target))
    loss = 1 - (2 * tp + 1e-5) / (p + y + 1e-5)
    dice = loss.mean() if w is None else (loss * w).sum() / w.sum()
    positive = sums.log_positive if w is None else sums.log_positive * w
    return dice, positive.sum() / sums.target.sum()


def _pooled(value: Tensor, include_background: bool, batch: bool) -> Tensor:
    if batch:
        value = value.sum(0, keepdim=True)
    return value if include_background or value.shape[1] == 1 else value[:, 1:]


def _numbers(**values: float | Tensor) -> None:
    """Tensors are not looked at: that would wait for the device, and `vmap` has no single value."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            _checks.real(name, value)
        elif value.numel() != 1:
            _checks.fail(ValueError, name, "a number", f"a tensor of shape {tuple(value.shape)}")


def class_weights(weight: Weight, classes: int, like: Tensor) -> Tensor | None:
    """float64 [C]; a number counts for every class."""
    if weight is None:
        return None
    try:
        # on the CPU: a device's own errors (no memory left) are no fault of the argument
        given = (
            weight
            if isinstance(weight, Tensor)
            else torch.as_tensor(weight, dtype=torch.float64, device="cpu")
        )
    except (TypeError, ValueError, RuntimeError, OverflowError):
        _checks.fail(TypeError, "weight", "a number or numbers", _checks.describe(weight))
    w = given.to(like.device, torch.float64)
    if w.ndim > 1 or (w.ndim == 1 and w.numel() not in (1, classes)):
        _checks.fail(ValueError, "weight", f"a number or one for each of {classes} classes", tuple(w.shape))
    if not torch.compiler.is_compiling() and w.device.type == "cpu" and bool((w < 0).any()):
        _checks.fail(ValueError, "weight", "numbers >= 0", w.tolist())
    return w.expand(classes)


def weighted(loss: Tensor, weight: Weight) -> Tensor:
    """One class alone is not weighted, as in MONAI."""
    w = class_weights(weight, loss.shape[1], loss) if loss.shape[1] > 1 else None
    return loss if w is None else loss * w


def reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _voxels(logits: Any, mask: Any, sums: SoftOverlap, dense: bool) -> Tensor | float:
    """How many voxels count, where the mean over voxels is asked for."""
    if not dense:
        return sums.target.sum()
    if mask is not None:
        return (torch.as_tensor(mask) != 0).sum().double()
    count = logits.shape[0]
    for size in logits.shape[2:]:
        count = count * size
    return count


def _out(loss: Tensor, logits: Any) -> Any:
    from tenfold import _arrays

    dtype = torch.float64 if logits.dtype in (torch.float64, "float64") else torch.float32
    return _arrays.kind_of(logits)(loss.to(dtype))
