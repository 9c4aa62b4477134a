"""Similarity of pictures and squared errors in plain PyTorch: what the compiled kernels are compared with.

A window at (i, j) weighs the taps x taps pixels from (i, j) on with w_a w_b. With E its weighted mean,

    m_x = E[x]    m_y = E[y]    s = E[x^2 + y^2]    p = E[x y]
    luminance l = (2 m_x m_y + c1) / (m_x^2 + m_y^2 + c1)
    contrast  c = (2 u (p - m_x m_y) + c2) / (u (s - m_x^2 - m_y^2) + c2)

(Wang, Bovik, Sheikh and Simoncelli 2004, equation 13; u = n / (n - 1) makes covariances those of a sample of
n). The result is the mean over windows of l c, or of c. Only the sum of both variances is needed, so four
moments do where five are usually made.

The gradient is three fields of windows, of m_x, of p and of s, laid back on the pixels with the same weights:
d/dx = back[f_x] + y back[f_p] + 2 x back[f_s], and d/dy likewise.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOWS = ("gaussian", "uniform")


@dataclass(frozen=True)
class Options:
    """Which windows and constants. x and y are multiplied by `scale`, a power of two, before anything."""

    window: str
    c1: float
    c2: float
    scale: float
    contrast: bool = False
    """The contrast alone, without the luminance."""

    @property
    def taps(self) -> tuple[float, ...]:
        """Weights along one axis: 11 of a Gaussian of deviation 1.5, or 7 equal ones."""
        if self.window == "uniform":
            return (1 / 7,) * 7
        values = [exp(-(at**2) / (2 * 1.5**2)) for at in range(-5, 6)]
        return tuple(value / sum(values) for value in values)

    @property
    def unbiased(self) -> float:
        """u: 49/48 for equal weights, 1 for the Gaussian."""
        return 49 / 48 if self.window == "uniform" else 1.0


def math_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """What is computed in: float64 if either is, else float32."""
    return torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32


def similarity(x: Tensor, y: Tensor, options: Options, pool: bool) -> tuple[Tensor, Tensor, Tensor]:
    """float64 [B, C], the mean over windows, of pictures [B, C, H, W]; and with `pool` both in half the size.

    The halved pictures are means of 2 x 2 pixels [B, C, (H + 1) // 2, (W + 1) // 2]. Along a side of odd
    length a row of zeros stands before the first.
    """
    wide = math_dtype(x, y)
    rows = []
    for a, b in zip(x, y, strict=True):  # a picture at a time: memory stays small
        m = _moments(a.to(wide) * options.scale, b.to(wide) * options.scale, options)
        rows.append((m.contrast if options.contrast else m.luminance * m.contrast).double().mean((1, 2)))
    means = torch.stack(rows) if rows else x.new_empty(x.shape[:2], dtype=torch.float64)
    px, py = (pooled(v.to(wide)) if pool else x.new_empty(0, dtype=wide) for v in (x, y))
    return means, px, py


def similarity_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    halved: tuple[Tensor | None, Tensor | None],
    options: Options,
    out: tuple[Tensor | None, Tensor | None],
) -> None:
    """Gradients of `similarity` and of both halved pictures, into those of `out` that are there."""
    wide = math_dtype(x, y)
    for b in range(len(x)):
        a, c = x[b].to(wide) * options.scale, y[b].to(wide) * options.scale
        m = _moments(a, c, options)
        count = m.contrast.shape[-2] * m.contrast.shape[-1]
        g = (grad[b] / count).to(wide)[:, None, None]
        of_contrast = 2 * options.unbiased * g / m.below_c
        if not options.contrast:
            of_contrast = of_contrast * m.luminance
        of_luminance = torch.zeros_like(g) if options.contrast else 2 * g * m.contrast / m.below_l
        of_squares = _back(-m.contrast * of_contrast, options)  # 2 f_s
        of_product = _back(of_contrast, options)
        for mine, his, own, other, more, to in (
            (m.x, m.y, a, c, halved[0], out[0]),
            (m.y, m.x, c, a, halved[1], out[1]),
        ):
            if to is None:
                continue
            of_mean = of_luminance * (his - m.luminance * mine) + of_contrast * (m.contrast * mine - his)
            found = _back(of_mean, options) + other * of_product + own * of_squares
            found = found * options.scale
            if more is not None:
                found = found + _unpooled(more[b], own.shape[1:])
            to[b] = found.to(to.dtype)


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """float64 [B]: the mean of (x - y)^2 over a picture."""
    wide = math_dtype(x, y)
    rows = [(a.to(wide) - b.to(wide)).square().double().mean() for a, b in zip(x, y, strict=True)]
    return torch.stack(rows) if rows else x.new_empty(len(x), dtype=torch.float64)


def squared_error_backward(
    grad: Tensor, x: Tensor, y: Tensor, out: tuple[Tensor | None, Tensor | None]
) -> None:
    """2 (x - y) grad / n into those of `out` that are there. Where x = y it is 0, whatever `grad` is."""
    wide = math_dtype(x, y)
    for b in range(len(x)):
        gap = x[b].to(wide) - y[b].to(wide)
        slope = (2 * grad[b] / max(1, gap.numel())).to(wide)
        found = torch.where(gap == 0, torch.zeros_like(gap), slope * gap)
        for sign, to in ((1, out[0]), (-1, out[1])):
            if to is not None:
                to[b] = (sign * found).to(to.dtype)


@dataclass(frozen=True)
class _Moments:
    x: Tensor
    y: Tensor
    luminance: Tensor
    contrast: Tensor
    below_l: Tensor
    below_c: Tensor


def _moments(x: Tensor, y: Tensor, options: Options) -> _Moments:
    """Of one picture [C, H, W]: fields [C, H - taps + 1, W - taps + 1]."""
    mx, my = _smoothed(x, options), _smoothed(y, options)
    both, product = _smoothed(x * x + y * y, options), _smoothed(x * y, options)
    squares, cross = mx * mx + my * my, mx * my
    below_l = squares + options.c1
    below_c = options.unbiased * (both - squares) + options.c2
    luminance = (2 * cross + options.c1) / below_l
    contrast = (2 * options.unbiased * (product - cross) + options.c2) / below_c
    return _Moments(mx, my, luminance, contrast, below_l, below_c)


def _smoothed(x: Tensor, options: Options) -> Tensor:
    """Weighted means of all windows inside the picture, one axis after the other."""
    taps = x.new_tensor(options.taps)
    x = F.conv2d(x[:, None], taps.view(1, 1, -1, 1))
    return F.conv2d(x, taps.view(1, 1, 1, -1))[:, 0]


def _back(field: Tensor, options: Options) -> Tensor:
    """The transpose of `_smoothed`."""
    taps = field.new_tensor(options.taps)
    field = F.conv_transpose2d(field[:, None], taps.view(1, 1, 1, -1))
    return F.conv_transpose2d(field, taps.view(1, 1, -1, 1))[:, 0]


def pooled(x: Tensor) -> Tensor:
    """A picture in half the size, see `similarity`."""
    return F.avg_pool2d(x, 2, padding=[size % 2 for size in x.shape[-2:]])


def _unpooled(grad: Tensor, size: tuple[int, ...]) -> Tensor:
    """The transpose of `pooled`: a quarter of each mean's gradient to each of its pixels."""
    spread = grad.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
    return spread[:, size[0] % 2 :, size[1] % 2 :][:, : size[0], : size[1]]
