"""The style-transfer benchmark: stylised photographs against the data set's own stylisation of them.

For each of 60 styles and 20 objects, contents are photographs 19 and 20, references are pictures 1 to 18 of
the style, and the truth is the same object's picture 19 or 20 in that style: 43,200 results,
`ROOT/{Style}/{Object}_test{19|20}_ref{1..18}.jpg`. Features come from a callable that the user gives: no
weights of VGG or ViT are in the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.canvas.dataset import SPLITS, CanvasData
from tenfold.diffusion.canvas.manifest import fitted, read_pictures

__all__ = [
    "VIT_BLOCKS", "Statistics", "TransferPair", "art_fid", "channel_stats", "gram_loss", "transfer_pairs",
    "transfer_scores", "vgg_losses", "vit_loss",
]  # fmt: skip

VIT_BLOCKS = (3, 7, 11, 15, 19, 23)
"""Blocks of ViT-L whose tokens the published loss compares, from 0."""
_EPS = 1e-5
Features = Callable[[Tensor], Sequence[Tensor]]
"""Pictures float32 [B, 3, H, W] in [0, 1] -> feature maps [B, c, h, w] (VGG) or token maps [B, n, d]
(ViT)."""


def channel_stats(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [B, c] of each channel of [B, c, h, w]: unbiased variance + 1e-5, as in
    AdaIN (Huang and Belongie, arXiv 1703.06868).

    Raises:
        ValueError: another shape, or fewer than two positions.
    """
    if features.ndim != 4 or features.shape[2] * features.shape[3] < 2:
        _checks.fail(ValueError, "features", "[B, c, h, w] of two positions or more", list(features.shape))
    flat = features.flatten(2)
    return flat.mean(2), (flat.var(2, unbiased=True) + _EPS).sqrt()


def _same(result: Sequence[Tensor], truth: Sequence[Tensor], count: int | None = None) -> None:
    if count is not None:
        _checks.length("result", list(result), count, "the layers")
    _checks.length("truth", list(truth), len(result), "the result's layers")
    for i, (a, b) in enumerate(zip(result, truth, strict=True)):
        if a.shape != b.shape:
            _checks.fail(ValueError, f"truth[{i}]", f"shape {list(a.shape)}", list(b.shape))
        if not bool(a.isfinite().all() and b.isfinite().all()):
            _checks.fail(ValueError, f"result[{i}]", "finite features", "NaN or infinity")


def _mse(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


def vgg_losses(result: Sequence[Tensor], truth: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(content [B], style [B]) of a result against the true stylisation.

    content: squared error of relu4_1 and relu5_1, each channel brought to mean 0 and deviation 1. style:
    squared errors of the channels' means and deviations, summed over the layers.

    Args:
        result, truth: relu1_1, relu2_1, relu3_1, relu4_1, relu5_1, each [B, c, h, w]. (The published script
            gave them to a network that stylises once more, and scored what came out of it.)

    Raises:
        ValueError: not five layers, shapes that differ, values that are not finite.
    """
    _same(result, truth, 5)
    content = torch.zeros(len(result[0]), dtype=result[0].dtype, device=result[0].device)
    style = torch.zeros_like(content)
    for layer, (a, b) in enumerate(zip(result, truth, strict=True)):
        (mean_a, std_a), (mean_b, std_b) = channel_stats(a), channel_stats(b)
        style = style + _mse(mean_a, mean_b) + _mse(std_a, std_b)
        if layer >= 3:
            content = content + _mse(_normal(a, mean_a, std_a), _normal(b, mean_b, std_b))
    return content, style


def _normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (x - mean[..., None, None]) / std[..., None, None]


def vit_loss(result: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """[B]: squared error of the tokens [B, n, d], summed over the layers (`VIT_BLOCKS` of the style judge, on
    pictures as that judge reads them, normalised).

    Raises:
        ValueError: no layer, shapes that differ, values that are not finite.
    """
    if not result:
        _checks.fail(ValueError, "result", "at least one layer", "none")
    _same(result, truth)
    return torch.stack([_mse(a, b) for a, b in zip(result, truth, strict=True)]).sum(0)


def gram_loss(result: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
    """[B]: squared error of Gram matrices F F^T / (c h w), summed over layers [B, c, h, w] (Gatys et al.,
    arXiv 1508.06576). Not among the published losses."""
    _same(result, truth)
    total = [_mse(_gram(a), _gram(b)) for a, b in zip(result, truth, strict=True)]
    return torch.stack(total).sum(0)


def _gram(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / (x.shape[1] * flat.shape[2])


def art_fid(lpips: float, fid: float) -> float:
    """(1 + mean LPIPS of contents and results) (1 + FID of style pictures and results), Wright and Ommer,
    arXiv 2207.12280. Not among the published losses."""
    return (1 + _checks.real("lpips", lpips, at_least=0.0)) * (1 + _checks.real("fid", fid, at_least=0.0))


@dataclass(frozen=True)
class TransferPair:
    """One result and its truth. number: of the content photograph. reference: of the style picture."""

    style: str
    object: str
    number: int
    reference: int
    result: Path
    truth: Path


def transfer_pairs(
    root: str | Path, data: CanvasData, *, ending: str | None = "jpg"
) -> Iterator[TransferPair]:
    """All pairs, style by style (without the photographs), in one order.

    Args:
        ending: of the results; None, that of each file, jpg or png.

    Raises:
        FileNotFoundError: a result or a truth is missing (it is named). ValueError: a result has two files.
    """
    for style in (one for one in data.canvas.styles if one != data.canvas.photo):
        for thing in data.canvas.objects:
            for number in SPLITS["test"]:
                truth = data.path(style, thing, number)
                for reference in SPLITS["train"]:
                    stem = Path(root) / style / f"{thing}_test{number}_ref{reference}"
                    yield TransferPair(style, thing, number, reference, _result(stem, ending), truth)


def _result(stem: Path, ending: str | None) -> Path:
    tried = [Path(f"{stem}.{one}") for one in ((ending,) if ending else ("jpg", "png"))]
    there = [path for path in tried if path.is_file()]
    if len(there) > 1:
        _checks.fail(ValueError, "root", f"one file for the result {stem}", "two")
    if not there:
        raise FileNotFoundError(f"root: expected the result {tried[0]}, got no such file")
    return there[0]


@dataclass(frozen=True)
class Statistics:
    """Of a number of losses. std: of these numbers themselves (divided by n)."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Statistics:
        """Raises: ValueError: no value."""
        if not values:
            _checks.fail(ValueError, "values", "at least one", "none")
        return cls(float(np.mean(values)), float(np.std(values)), len(values))


def transfer_scores(
    pairs: Sequence[TransferPair],
    features: Features,
    *,
    kind: str = "vgg",
    size: int | None = None,
    batch: int = 16,
) -> dict[str, Any]:
    """Losses of results against truths.

    Args:
        pairs: of `transfer_pairs`. features: see `Features`. kind: "vgg" (content and style), "vit" or
            "gram".
        size: results and truths are squeezed to a square of this side, so that pictures of different shapes
            can be compared; None, they must have one shape.

    Returns:
        {"styles": {style: {loss: Statistics}}, "objects": ..., "overall": {loss: Statistics}}; losses are
        "content" and "style", or the kind's name.

    Raises:
        ValueError: no pair, or a picture that cannot be read.
    """
    _checks.choice("kind", kind, ("vgg", "vit", "gram"))
    batch = _checks.integer("batch", batch, 1, 2**16)
    if size is not None:
        _checks.integer("size", size, 1, 2**16)
    if not pairs:
        _checks.fail(ValueError, "pairs", "at least one", "none")
    rows: list[dict[str, float]] = []
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        with torch.no_grad():
            result, truth = _unit([p.result for p in part], size), _unit([p.truth for p in part], size)
            if result.shape != truth.shape:
                got = f"{list(truth.shape[2:])} and {list(result.shape[2:])}"
                _checks.fail(ValueError, "size", f"a side, as {part[0].truth} and its result differ", got)
            rows += _losses(kind, features(result), features(truth))
    found: dict[str, Any] = {"styles": {}, "objects": {}, "overall": _statistics(rows)}
    for name, of in (("styles", "style"), ("objects", "object")):
        for value in dict.fromkeys(getattr(p, of) for p in pairs):
            chosen = [row for row, p in zip(rows, pairs, strict=True) if getattr(p, of) == value]
            found[name][value] = _statistics(chosen)
    return found


def _unit(paths: Sequence[Path], size: int | None) -> Tensor:
    """float32 [B, 3, H, W]."""
    if size is None:
        return read_pictures(paths).expand(-1, 3, -1, -1).float() / 255
    rows = [fitted(read_pictures([path])[0], (size, size), crop=False) for path in paths]
    return torch.stack(rows).float() / 255


def _losses(kind: str, result: Sequence[Tensor], truth: Sequence[Tensor]) -> list[dict[str, float]]:
    if kind == "vgg":
        content, style = vgg_losses(result, truth)
        pairs = zip(content.tolist(), style.tolist(), strict=True)
        return [{"content": c, "style": s} for c, s in pairs]
    loss = vit_loss(result, truth) if kind == "vit" else gram_loss(result, truth)
    return [{kind: value} for value in loss.tolist()]


def _statistics(rows: Sequence[dict[str, float]]) -> dict[str, Statistics]:
    return {name: Statistics.of([row[name] for row in rows]) for name in rows[0]}
