"""What scores of generated pictures need: resizing, statistics of feature maps, counts of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.kernels.moments import resize_reference
from tenfold.kernels.moments.resize_reference import FILTERS, MODES

__all__ = ["AnswerCounts", "adain_style_loss", "answer_counts", "channel_stats", "gram", "resize_antialias"]


def resize_antialias(
    x: Any,
    size: tuple[int, int],
    *,
    filter: str = "bilinear",
    mode: str = "pil",
    quantize: bool = True,
) -> Any:
    """Pictures in another size, as the library that a score was published with resizes them.

    Args:
        x: uint8 [H, W, C] or [B, H, W, C], any strides.
        size: (height, width), 1 to 65535 each.
        filter: "bilinear" or "bicubic" (Keys' with a = -1/2).
        mode: "pil": filters as wide as the step (antialiased). "cv2": two neighbours whatever the step, pixel
            centres meet; "tf1": the same, corners meet, as TensorFlow 1 and the FID code made from it. Both
            bilinear alone, without `quantize`.
        quantize: Pillow's uint8 arithmetic, rows first, equal in every bit to Pillow where it does the same.
            A Pillow of late 2026 takes columns first at some sizes where the height shrinks, be it hardly:
            bilinear then differs by at most 1, bicubic by some 30 levels at hard edges. False: Pillow's mode
            "F", float32 after each axis, as clean-fid (Parmar, Zhang and Zhu, arXiv 2104.11222); it may leave
            0..255.

    Returns:
        float32 [C, height, width] or [B, C, height, width], in 0..255.

    Raises:
        TypeError, ValueError: another dtype or shape, an unknown name, or a mode without the filter.
    """
    kind = _arrays.kind_of(x)
    pictures = _checks.tensor("x", _arrays.as_tensor("x", x, write=False), (torch.uint8,))
    if pictures.ndim not in (3, 4) or 0 in pictures.shape[-3:]:
        _checks.fail(ValueError, "x", "shape [H, W, C] or [B, H, W, C]", tuple(pictures.shape))
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        _checks.fail(ValueError, "size", "(height, width)", _checks.describe(size))
    height, width = (_checks.integer("size", side, 1, 65535) for side in size)
    _checks.choice("filter", filter, FILTERS)
    _checks.choice("mode", mode, MODES)
    if mode != "pil" and (filter != "bilinear" or quantize):
        expected = f"filter='bilinear' and quantize=False with mode={mode!r}"
        _checks.fail(ValueError, "mode", expected, f"filter={filter!r}, quantize={quantize}")
    batch = pictures if pictures.ndim == 4 else pictures[None]
    found = resize_reference.resize(batch, (height, width), filter, mode, bool(quantize))
    return kind(found if pictures.ndim == 4 else found[0])


def channel_stats(features: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Mean and deviation sqrt(unbiased variance + eps) of each channel (AdaIN, arXiv 1703.06868).

    Args:
        features: [N, C, H, W] with at least two pixels, floating; half precision is taken in float32.

    Returns:
        Two tensors [N, C]. Differentiable.

    Raises:
        TypeError, ValueError: another dtype or shape, or eps < 0.
    """
    x = _maps("features", features)
    if x.shape[2] * x.shape[3] < 2:
        _checks.fail(ValueError, "features", "at least two pixels", tuple(x.shape))
    eps = _checks.real("eps", eps, at_least=0.0)
    variance, mean = torch.var_mean(x.flatten(2), 2)
    return mean, (variance + eps).sqrt()


def gram(features: Tensor) -> Tensor:
    """[N, C, C]: inner products of channels over C H W (Gatys, Ecker and Bethge, arXiv 1508.06576).

    Raises:
        TypeError, ValueError: another dtype or shape than for `channel_stats`.
    """
    x = _maps("features", features)
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / x[0].numel()


def adain_style_loss(features: Tensor, target: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean squared difference of channel means, plus that of channel deviations (arXiv 1703.06868).

    Args:
        features, target: [N, C, H, W] and [N, C, h, w]; sizes of pictures may differ.

    Returns:
        A scalar, differentiable.

    Raises:
        TypeError, ValueError: as for `channel_stats`, or other pictures or channels.
    """
    mean, deviation = channel_stats(features, eps)
    wanted_mean, wanted_deviation = channel_stats(target, eps)
    if mean.shape != wanted_mean.shape:
        _checks.fail(ValueError, "target", f"[N, C] of {tuple(mean.shape)}", tuple(wanted_mean.shape))
    return (mean - wanted_mean).square().mean() + (deviation - wanted_deviation).square().mean()


def _maps(name: str, value: Any) -> Tensor:
    x = _checks.tensor(name, value)
    if x.ndim != 4 or 0 in x.shape:
        _checks.fail(ValueError, name, "shape [N, C, H, W]", tuple(x.shape))
    return x if x.dtype == torch.float64 else x.float()


class AnswerCounts(NamedTuple):
    """How two judges saw the pictures of each cell."""

    counts: Tensor
    """int64 [S, O, 4] by cell: pictures; style right; object right; both right."""
    style_confusion: Tensor
    """int64 [S, styles]: pictures of a style by the style that was seen."""
    object_confusion: Tensor
    """int64 [O, objects]: likewise."""


def answer_counts(
    style_logits: Any, object_logits: Any, cells: Any, *, names: Sequence[str] | None = None
) -> AnswerCounts:
    """Judged pictures as counts by cell, and the confusions. Of equal logits the first class is seen.

    Args:
        style_logits, object_logits: [N, S] and [N, O], any floating dtype (or probabilities).
        cells: int64 [N, 2], the wanted (style, object) of each picture.
        names: of the N pictures, for messages.

    Raises:
        TypeError, ValueError: shapes or dtypes, a cell that does not exist, or NaN logits: the message has
            the picture's name or number.
    """
    style, objects = (
        _checks.tensor(name, _arrays.as_tensor(name, value, write=False).detach())
        for name, value in (("style_logits", style_logits), ("object_logits", object_logits))
    )
    at = _checks.tensor("cells", _arrays.as_tensor("cells", cells, write=False), (torch.int64,))
    n = len(at)
    for name, logits in (("style_logits", style), ("object_logits", objects)):
        if logits.ndim != 2 or len(logits) != n or not logits.shape[1]:
            _checks.fail(ValueError, name, f"shape [{n}, classes]", tuple(logits.shape))
    if at.ndim != 2 or at.shape[1] != 2:
        _checks.fail(ValueError, "cells", "shape [N, 2]", tuple(at.shape))
    if names is not None:
        names = _checks.items("names", names, "texts")
        _checks.length("names", names, n, "the pictures")
    wide = (style.shape[1], objects.shape[1])
    if n and (int(at.min()) < 0 or bool((at >= at.new_tensor(wide)).any())):
        _checks.fail(ValueError, "cells", f"styles below {wide[0]}, objects below {wide[1]}", at.tolist()[:8])
    for name, logits in (("style_logits", style), ("object_logits", objects)):
        bad = torch.isnan(logits).any(1).nonzero()
        if len(bad):
            row = int(bad[0])
            got = f"NaN for {names[row]}" if names is not None else f"NaN in row {row}"
            _checks.fail(ValueError, name, "numbers", got)
    return _counted(style.argmax(1), objects.argmax(1), at, wide)


def _counted(style: Tensor, objects: Tensor, cells: Tensor, wide: tuple[int, int]) -> AnswerCounts:
    styles, kinds = wide
    right = style == cells[:, 0], objects == cells[:, 1]
    rows = torch.stack((torch.ones_like(right[0]), *right, right[0] & right[1]), 1).long()
    counts = rows.new_zeros(styles * kinds, 4)
    counts.index_add_(0, cells[:, 0] * kinds + cells[:, 1], rows)
    confusions = [
        torch.bincount(wanted * many + seen, minlength=many * many).view(many, many)
        for wanted, seen, many in ((cells[:, 0], style, styles), (cells[:, 1], objects, kinds))
    ]
    return AnswerCounts(counts.view(styles, kinds, 4), *confusions)
