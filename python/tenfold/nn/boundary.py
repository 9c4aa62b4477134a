"""Losses that weigh voxels by their distance to the boundary of the label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.ops.softdice import soft_overlap
from tenfold.ops.surface import edt, signed_distance

from ._region import Activation, RegionLoss, as_labels


def signed_distance_maps(labels: Tensor, num_classes: int, spacing: float | Sequence[float] = 1.0) -> Tensor:
    """`tenfold.ops.signed_distance` of every class: the level sets of the boundary loss (arXiv 1812.07032).

    Args:
        labels: [B, spatial...] integers.
        num_classes: C.
        spacing: of the spatial axes, in their order.

    Returns:
        float32 [B, C, spatial...]: the distance to the class outside it, -(d - 1) inside for unit spacing,
        zero for a class that is absent or fills the image. Computed on the CPU.

    Raises:
        ValueError: labels outside [0, C).
    """
    shape = (labels.shape[0], num_classes, *labels.shape[1:])
    out = torch.empty(shape, dtype=torch.float32)
    where = labels.cpu()
    if where.numel() and not 0 <= int(where.min()) <= int(where.max()) < num_classes:
        outside = where[(where < 0) | (where >= num_classes)][0].item()
        _checks.fail(ValueError, "labels", f"labels in [0, {num_classes})", outside)
    for b in range(shape[0]):
        for c in range(num_classes):
            out[b, c] = signed_distance(where[b] == c, spacing)
    return out.to(labels.device)


class BoundaryLoss(nn.Module):
    """The mean of p times the signed distance to the boundary of the label (Kervadec et al., arXiv
    1812.07032).

    Args:
        include_background: False leaves class 0 out.
        to_onehot_y: the target is a label map [B, 1, spatial...]; False: a signed distance map of the input's
            shape, made beforehand with `signed_distance_maps`.
        sigmoid, softmax: activation of the input, or neither.
        reduction: "mean" or "sum".
        spacing: of the spatial axes, for label maps.
    """

    def __init__(
        self,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        reduction: str = "mean",
        spacing: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__()
        if sigmoid and softmax:
            _checks.fail(ValueError, "sigmoid, softmax", "at most one of them", "both")
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.activation = "sigmoid" if sigmoid else "softmax" if softmax else "none"
        self.reduction = _checks.choice("reduction", reduction, ("mean", "sum"))
        self.spacing = spacing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input [B, C, spatial...], target as `to_onehot_y` says.

        The sum of p times a map is the intersection of `soft_overlap` with that map as soft label, so the
        loss is one pass each way.
        """
        if self.to_onehot_y:
            if target.ndim != input.ndim or target.shape[1] != 1:
                expected = f"shape [B, 1, spatial...] of input {tuple(input.shape)} with to_onehot_y"
                _checks.fail(ValueError, "target", expected, tuple(target.shape))
            target = signed_distance_maps(as_labels(target[:, 0]), input.shape[1], self.spacing)
        if target.shape != input.shape:
            _checks.fail(ValueError, "target", f"shape {tuple(input.shape)} of input", tuple(target.shape))
        sums = soft_overlap(
            input, target.to(input.device), activation=self.activation, squares=False, logs=False
        )
        first = 0 if self.include_background or input.shape[1] == 1 else 1
        loss = sums.intersection[:, first:].sum()
        if self.reduction == "mean":
            loss = loss / max(1, input[:, first:].numel())
        return loss.to(torch.promote_types(input.dtype, torch.float32))


class HausdorffDTLoss(RegionLoss):
    """(p - y)^2 weighted by distances to both boundaries (Karimi and Salcudean, arXiv 1904.10030).

    Arguments and values of monai.losses.HausdorffDTLoss: distances are those of p > 0.5 and of the label, in
    voxels, and are not differentiated.

    Args:
        alpha: exponent of the distances.
        The other arguments are those of `RegionLoss`.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Activation | None = None,
        reduction: str = "mean",
        batch: bool = False,
    ) -> None:
        super().__init__(include_background, to_onehot_y, sigmoid, softmax, other_act, reduction, batch=batch)
        self.alpha = alpha

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """input [B, C, H, W(, D)], target as `to_onehot_y` says."""
        if input.ndim not in (4, 5):
            _checks.fail(ValueError, "input", "shape [B, C, H, W] or [B, C, H, W, D]", tuple(input.shape))
        labels, _ = self.labels(input, target)
        self._warn(input)
        act = {"sigmoid": torch.sigmoid, "softmax": lambda x: torch.softmax(x, 1), "none": lambda x: x}
        p = act[self.activation(input)](input if self.other_act is None else self.other_act(input))
        if labels.ndim < input.ndim:
            labels = torch.nn.functional.one_hot(labels.long(), input.shape[1]).movedim(-1, 1)
        y = labels.to(p.dtype)
        if not self.include_background and input.shape[1] > 1:
            p, y = p[:, 1:], y[:, 1:]
        weight = self._field(p.detach()) ** self.alpha + self._field(y) ** self.alpha
        loss = ((p - y) ** 2 * weight).mean(tuple(range(2, input.ndim)))
        return self.shaped(loss.mean(0, keepdim=True) if self.batch else loss, input)

    @staticmethod
    def _field(values: Tensor) -> Tensor:
        """Distance of each voxel to the nearest one on the other side of 0.5, per channel.

        MONAI decides for a channel of all batch items one by one whether there is a boundary; so does this.
        """
        field = torch.zeros_like(values, dtype=torch.float32)
        for b in range(values.shape[0]):
            for c in range(values.shape[1]):
                inside = values[b, c] > 0.5
                if bool(inside.any()) and not bool(inside.all()):
                    field[b, c] = torch.where(inside, _edt(~inside), _edt(inside))
        return field


class LogHausdorffDTLoss(HausdorffDTLoss):
    """log(1 + HausdorffDTLoss); arguments and values of monai.losses.LogHausdorffDTLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As `HausdorffDTLoss`."""
        return torch.log1p(super().forward(input, target))


def _edt(features: Tensor, spacing: float | Sequence[float] = 1.0) -> Tensor:
    """Distance to the nearest True voxel, float32, computed on the CPU."""
    found: Tensor = edt(features.cpu(), spacing)
    return found.to(features.device)
