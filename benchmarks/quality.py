"""SSIM, MS-SSIM and PSNR of a batch of colour pictures against what imaging and communications code runs.

Peers: pytorch-msssim, TorchMetrics, scikit-image (a picture after the other, on the CPU). piq needs
torchvision to be imported; "piq" is its published expression: a depthwise product with the whole 11 x 11
window for each of five moments, without downsampling. Libraries differ in borders: TorchMetrics is compared
with our `variant="torchmetrics"`, in time with the default, which skips the mirrored border.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing, version_of
from .zo import _backend, _version

SHAPE = (32, 3, 256, 256)
TAPS = 11
WINDOW_FLOPS = 4 * 2 * 2 * TAPS + 20
"""Four moments, each along rows and down columns, and the quotient."""
GRADIENT_FLOPS = 3 * 2 * 2 * TAPS + 20
"""Three fields likewise, and what they are made of."""
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

Score = Callable[[Tensor, Tensor], Tensor]


def _pictures(device: torch.device, tiny: bool, least: int) -> tuple[Tensor, Tensor]:
    """Smooth pictures with some noise, and the same with more of it, in [0, 1]."""
    shape = (1, 3, least, least) if tiny else SHAPE
    generator = torch.Generator(device).manual_seed(5)
    coarse = torch.rand(*shape[:2], 9, 9, device=device, generator=generator)
    x = F.interpolate(coarse, size=shape[2:], mode="bicubic", align_corners=False)
    x = (x + 0.02 * torch.randn(shape, device=device, generator=generator)).clamp(0, 1)
    y = (x + 0.08 * torch.randn(shape, device=device, generator=generator)).clamp(0, 1)
    return x, y


# ---- expressions -----------------------------------------------------------------------------------------


def _taps(like: Tensor) -> Tensor:
    at = torch.arange(TAPS, dtype=like.dtype, device=like.device) - TAPS // 2
    weights = torch.exp(-at.square() / (2 * 1.5**2))
    return weights / weights.sum()


def _separable(x: Tensor) -> Tensor:
    """Means of windows, one axis after the other, for all channels at once."""
    taps, channels = _taps(x), x.shape[1]
    x = F.conv2d(x, taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(x, taps.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _whole(x: Tensor) -> Tensor:
    taps, channels = _taps(x), x.shape[1]
    window = torch.outer(taps, taps).expand(channels, 1, -1, -1)
    return F.conv2d(x, window, groups=channels)


def _parts(smooth: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast [B, C] from five moments."""
    c1, c2 = 0.01**2, 0.03**2
    mx, my = smooth(x), smooth(y)
    xx, yy, xy = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
    contrast = (2 * xy + c2) / (xx + yy + c2)
    whole = (2 * mx * my + c1) / (mx * mx + my * my + c1) * contrast
    return whole.mean((2, 3)), contrast.mean((2, 3))


def _plain_ssim(smooth: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    return _parts(smooth, x, y)[0].mean(1)


def _plain_ms_ssim(smooth: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    values = []
    for scale in range(len(WEIGHTS)):
        whole, contrast = _parts(smooth, x, y)
        last = scale == len(WEIGHTS) - 1
        values.append((whole if last else contrast).relu())
        if not last:
            odd = [size % 2 for size in x.shape[2:]]
            x, y = (F.avg_pool2d(v, 2, padding=odd) for v in (x, y))
    powers = torch.tensor(WEIGHTS, device=x.device).view(-1, 1, 1)
    return (torch.stack(values) ** powers).prod(0).mean(1)


def _plain_psnr(x: Tensor, y: Tensor) -> Tensor:
    return -10 * torch.log10((x - y).square().mean((1, 2, 3)))


# ---- peers -----------------------------------------------------------------------------------------------


def _msssim(name: str, x: Tensor, y: Tensor) -> Tensor:
    found: Tensor = getattr(import_module("pytorch_msssim"), name)(x, y, data_range=1.0, size_average=False)
    return found


def _torchmetrics(name: str, x: Tensor, y: Tensor) -> Tensor:
    image = import_module("torchmetrics.functional.image")
    if name == "psnr":
        found = [image.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)]
        return torch.stack(found)
    named = {"ssim": "structural_similarity_index_measure"}
    one = getattr(image, named.get(name, "multiscale_structural_similarity_index_measure"))
    score: Tensor = one(x, y, data_range=1.0, reduction="none")
    return score


def _skimage(name: str, x: Tensor, y: Tensor) -> Tensor:
    metrics = import_module("skimage.metrics")
    options: dict[str, Any] = {"data_range": 1.0}
    one = metrics.peak_signal_noise_ratio
    if name == "ssim":
        one = metrics.structural_similarity
        options |= {"channel_axis": 0, "gaussian_weights": True, "use_sample_covariance": False, "sigma": 1.5}
    rows = [one(a, b, **options) for a, b in zip(x.cpu().numpy(), y.cpu().numpy(), strict=True)]
    return torch.tensor(rows, dtype=torch.float32)


def _run(score: Score, x: Tensor, y: Tensor, gradient: bool) -> list[Tensor]:
    if not gradient:
        return [score(x, y).detach()]
    leaf = x.detach().requires_grad_()
    found = score(leaf, y)
    return [found.detach(), *torch.autograd.grad(found.mean(), leaf)]


def _close(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
    """Values within 2e-5, the gradient within 1e-3 of its largest entry.

    That is float32: peers subtract squares of means from means of squares as they are, and ours about a pixel
    near by. In float64 ours and TorchMetrics agree within 1e-12.
    """
    allowed = (2e-5, 1e-3)
    scales = [t.abs().max().clamp_min(1.0 if i == 0 else 0.0) for i, t in enumerate(ours)]
    gaps = [
        compare_values([a.cpu() / scale.cpu()], [b.cpu() / scale.cpu()], tolerance, "relative")
        for a, b, scale, tolerance in zip(ours, theirs, scales, allowed, strict=False)
    ]
    return next((gap for gap in gaps if not gap.agrees), gaps[-1])


def _case(name: str, gradient: bool, device: torch.device, tiny: bool) -> Workload:
    from tenfold import ops

    x, y = _pictures(device, tiny, 176 if name == "ms_ssim" else 32)
    ours: Score = partial(getattr(ops, name), reduction="none")
    mirrored: Score = partial(ops.ssim, reduction="none", variant="torchmetrics")
    compiled: list[Score] = []

    def variant(_: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return _close(_run(mirrored, x, y, gradient), theirs)

    def compile_it() -> str | None:
        compiled.append(torch.compile(plain, dynamic=False))
        try:
            _run(compiled[0], x, y, gradient)
        except Exception as error:  # what the compiler lacks here is said in the record
            return f"torch.compile fails here: {type(error).__name__}"
        return None

    def side(label: str, score: Score, version: str, **more: Any) -> Side:
        more = {"agree": _close} | more
        return Side(label, lambda: _run(score, x, y, gradient), version=version, **more)

    torch_version = f"torch {torch.__version__}"
    plain: Score = _plain_psnr
    peers: list[Side] = []
    more: dict[str, Any]
    if name != "psnr":
        expression = _plain_ssim if name == "ssim" else _plain_ms_ssim
        plain = partial(expression, _separable)
        version = version_of("pytorch_msssim")
        peers.append(
            side(
                "pytorch_msssim", partial(_msssim, name), version, prepare=partial(missing, "pytorch_msssim")
            )
        )
        words = f"{torch_version}, expression of piq 0.8 without downsampling"
        peers.append(side("piq", partial(expression, _whole), words))
    version, absent = version_of("torchmetrics"), partial(missing, "torchmetrics")
    agree = variant if name == "ssim" else _close
    if name != "ms_ssim":  # its MS-SSIM has another border at each scale: no variant of ours meets it
        score = partial(_torchmetrics, name)
        peers.append(side("torchmetrics", score, version, prepare=absent, agree=agree))
    if name != "ms_ssim" and not gradient:
        version, absent = version_of("skimage"), partial(missing, "skimage")
        more = {"prepare": absent, "fewest": 1, "host": True, "measure_memory": False}
        peers.append(side("scikit_image", partial(_skimage, name), version, **more))
    peers.append(side("torch", plain, f"plain operations on {torch_version}", kind="reference"))
    more = {"prepare": compile_it, "kind": "compiled"}
    peers.append(side("torch_compile", lambda a, b: compiled[0](a, b), torch_version, **more))
    op = "image_squared_error" if name == "psnr" else "image_similarity"
    return Workload(
        ours=Side(
            "tenfold",
            lambda: _run(ours, x, y, gradient),
            version=_version(),
            kind="ours",
            backend=partial(_backend, op, device),
        ),
        others=peers,
        work=_work(name, x, gradient),
        keep=lambda found: [t.clone() for t in found],
        note=f"pictures {tuple(x.shape)} in float32" + (", forward and backward" if gradient else ""),
    )


def _work(name: str, x: Tensor, gradient: bool) -> Work:
    """Pictures are read once each way and the gradient is written; MS-SSIM adds a third of all that."""
    planes, (height, width) = x.shape[0] * x.shape[1], x.shape[2:]
    moved = (5 if gradient else 2) * x.nbytes
    if name == "psnr":
        return Work(bytes=float(moved), flops=float((5 if gradient else 3) * x.numel()))
    each = 2 * WINDOW_FLOPS + GRADIENT_FLOPS if gradient else WINDOW_FLOPS
    flops, scales = 0.0, len(WEIGHTS) if name == "ms_ssim" else 1
    for scale in range(scales):
        rows, columns = height >> scale, width >> scale
        flops += planes * (rows - TAPS + 1) * (columns - TAPS + 1) * each
    return Work(bytes=moved * (4 / 3 if name == "ms_ssim" else 1.0), flops=flops)


def cases() -> list[Case]:
    """The cases of this family."""
    return [
        Case(
            f"quality.{name}{'_backward' if gradient else ''}.f32.32x3x256x256",
            partial(_case, name, gradient),
        )
        for name in ("ssim", "ms_ssim", "psnr")
        for gradient in (False, True)
    ]
