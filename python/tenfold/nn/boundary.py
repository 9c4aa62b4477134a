"""Losses that weigh voxels by their distance to the boundary of the label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.ops.softdice import soft_overlap

from ._region import Activation, RegionLoss, as_labels


def signed_distance(labels: Tensor, num_classes: int, spacing: float | Sequence[float] = 1.0) -> Tensor:
    """The distance of each voxel to each class: positive outside, -(d - 1) inside, d to the nearest outside
    voxel.

    The level-set map of the boundary loss (Kervadec et al., arXiv 1812.07032), in mm with `spacing`, where
    the
    voxel at the boundary inside lies at zero: d - 1 becomes d - the smallest spacing. A class that is absent
    or fills the image has zeros.

    Args:
        labels: [B, *spatial] integers.
        num_classes: C.
        spacing: of the spatial axes, in their order.

    Returns:
        float32 [B, C, *spatial].
    """
    steps = [spacing] * (labels.ndim - 1) if isinstance(spacing, (int, float)) else list(spacing)
    out = labels.new_zeros((labels.shape[0], num_classes, *labels.shape[1:]), dtype=torch.float32)
    for b in range(labels.shape[0]):
        for c in range(num_classes):
            inside = labels[b] == c
            if bool(inside.any()) and not bool(inside.all()):
                to_inside, to_outside = _edt(inside, steps), _edt(~inside, steps)
                out[b, c] = torch.where(inside, min(steps) - to_outside, to_inside)
    return out


class BoundaryLoss(nn.Module):
    """The mean of p times the signed distance to the boundary of the label (Kervadec et al., arXiv
    1812.07032).

    Args:
        include_background: False leaves class 0 out.
        to_onehot_y: the target is a label map [B, 1, *spatial]; False: a signed distance map of the input's
            shape, made beforehand with `signed_distance`.
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
        """input [B, C, *spatial], target as `to_onehot_y` says.

        The sum of p times a map is the intersection of `soft_overlap` with that map as soft label, so the
        loss is one pass each way.
        """
        if self.to_onehot_y:
            target = signed_distance(as_labels(target[:, 0]), input.shape[1], self.spacing)
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
                    steps = [1.0] * inside.ndim
                    field[b, c] = torch.where(inside, _edt(~inside, steps), _edt(inside, steps))
        return field


class LogHausdorffDTLoss(HausdorffDTLoss):
    """log(1 + HausdorffDTLoss); arguments and values of monai.losses.LogHausdorffDTLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """As `HausdorffDTLoss`."""
        return torch.log1p(super().forward(input, target))


def _edt(features: Tensor, spacing: Sequence[float]) -> Tensor:
    """Distance to the nearest True voxel, float32; minima over parabolas, axis by axis."""
    squared = torch.where(features, 0.0, torch.inf).double()
    for axis, step in enumerate(spacing):
        size = features.shape[axis]
        at = torch.arange(size, device=features.device, dtype=torch.float64) * step
        apart = (at[:, None] - at[None, :]) ** 2
        lines = squared.movedim(axis, -1)
        shape = lines.shape
        rows = lines.reshape(-1, size)
        piece = max(1, (1 << 22) // max(1, size * size))
        parts = [(part[:, None, :] + apart).amin(2) for part in rows.split(piece)]
        squared = torch.cat(parts).reshape(shape).movedim(-1, axis)
    return squared.sqrt().float()
