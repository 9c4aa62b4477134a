"""Kernel discrepancies, forward and backward, against what domain-adaptation code runs today.

Peers have conventions of their own (widths, averages, estimators): each is compared with ours in its own
convention, on the same points.  A peer that would need more memory than the machine has is named with what
it would need.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing
from .peers import compiled
from .zo import _backend, _version

KERNELS, WIDTH = 5, 64
EXPRESSION = "expression of {}, torch " + torch.__version__


def _points(n: int, d: int, device: torch.device, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(3)
    x = torch.randn((*batch, n, d), device=device, generator=generator)
    y = 1.2 * torch.randn((*batch, n, d), device=device, generator=generator) + 0.3
    return x.requires_grad_(), y.requires_grad_()


def _gradients(loss: Callable[[], Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, (x, y))]


def _relative(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
    """Each of value, d x, d y relative to its largest entry."""
    scales = [t.abs().max().clamp_min(1e-30) for t in ours]
    mine, other = ([t / s for t, s in zip(side, scales, strict=True)] for side in (ours, theirs))
    return compare_values(mine, other, 2e-4, "relative")


def _in_their_way(loss: Callable[[], Tensor], x: Tensor, y: Tensor) -> Callable[[Any, Any], Agreement]:
    """Ours in the peer's convention instead of ours as it was timed."""
    return lambda _, theirs: _relative(_gradients(loss, x, y), theirs)


def _fits(size: float, device: torch.device) -> Callable[[], str | None]:
    """Why `size` bytes are too many here, or None."""

    def prepare() -> str | None:
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size < 0.6 * free:
            return None
        return f"out of memory: it would need about {size / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"

    return prepare


def _msmda(x: Tensor, y: Tensor) -> Tensor:
    """All pairs as a tensor [n, n, d], twice: as MS-MDA, DSAN and torcheeg publish it."""
    n = x.shape[0] + y.shape[0]
    total = torch.cat((x, y))
    rows = total.unsqueeze(0).expand(n, n, total.shape[1])
    columns = total.unsqueeze(1).expand(n, n, total.shape[1])
    distance = ((rows - columns) ** 2).sum(2)
    width = distance.detach().sum() / (n**2 - n) / 2.0 ** (KERNELS // 2)
    k = sum(torch.exp(-distance / (width * 2.0**u)) for u in range(KERNELS))
    assert isinstance(k, Tensor)
    m = x.shape[0]
    return k[:m, :m].mean() + k[m:, m:].mean() - k[:m, m:].mean() - k[m:, :m].mean()


def _matmul(x: Tensor, y: Tensor) -> Tensor:
    """As a careful user writes it: distances from one matrix product, and each kernel in memory once."""
    m, total = x.shape[0], torch.cat((x, y))
    n = total.shape[0]
    square = total.square().sum(1)
    distance = (square[:, None] + square[None] - 2 * total @ total.T).clamp_min(0)
    width = distance.detach().sum() / (n * n - n) / 2.0 ** (KERNELS // 2)
    k = torch.exp(-distance / width)
    for u in range(1, KERNELS):
        k = k + torch.exp(-distance / (width * 2.0**u))
    return k[:m, :m].mean() + k[m:, m:].mean() - 2 * k[:m, m:].mean()


def _tllib(x: Tensor, y: Tensor) -> Tensor:
    """Five Gaussian kernels, each with its own pass over all pairs, and an index matrix."""
    m = x.shape[0]
    total = torch.cat((x, y))
    k = torch.zeros(2 * m, 2 * m, device=x.device)
    for u in range(-3, 2):
        distance = ((total.unsqueeze(0) - total.unsqueeze(1)) ** 2).sum(2)
        k = k + torch.exp(-distance / (2 * 2.0**u * distance.detach().mean()))
    index = torch.full((2 * m, 2 * m), 1.0 / (m * (m - 1)), device=x.device)
    index[:m, m:] = index[m:, :m] = -1.0 / (m * m)
    index.fill_diagonal_(0.0)
    return (k * index).sum() + 2.0 / (m - 1)


def _tllib_ours(x: Tensor, y: Tensor) -> Tensor:
    from tenfold.ops import mmd

    return mmd(x, y, bandwidth="tllib", estimator="unbiased") + 2.0 / (x.shape[0] - 1)


def _adapt(x: Tensor, y: Tensor, scales: int) -> Tensor:
    layers = import_module("pytorch_adapt.layers")
    values = torch.tensor([2.0**u for u in range(-(scales // 2), scales // 2 + 1)], device=x.device)
    return layers.MMDLoss(kernel_scales=values if scales > 1 else 1, mmd_type="quadratic")(x, y)


def _adapt_ours(x: Tensor, y: Tensor, scales: int) -> Tensor:
    from tenfold.ops import mmd

    return mmd(x, y, kernels=scales, bandwidth="median", estimator="unbiased") / scales


def _geomloss(x: Tensor, y: Tensor) -> Tensor:
    return import_module("geomloss").SamplesLoss("gaussian", blur=8.0, backend="tensorized")(x, y)


def _geomloss_ours(x: Tensor, y: Tensor) -> Tensor:
    from tenfold.ops import mmd

    return 0.5 * mmd(x, y, kernels=1, bandwidth=2.0 * 8.0**2)


def _compiled(x: Tensor, y: Tensor, device: torch.device, size: float) -> Side:
    from tenfold.ops import mmd

    agree = _in_their_way(lambda: mmd(x, y), x, y)
    found = compiled.side(_matmul, lambda f: _gradients(lambda: f(x, y), x, y), agree, device)
    compile_it, fits = found.prepare, _fits(size, device)
    assert compile_it is not None
    found.prepare = lambda: fits() or compile_it()
    return found


def _mk(n: int, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import mmd

    n = min(n, 64) if tiny else n
    x, y = _points(n, WIDTH, device)
    pairs = float((2 * n) ** 2)
    few = n > 1000

    def peer(
        name: str,
        loss: Callable[[Tensor, Tensor], Tensor],
        mine: Callable[[Tensor, Tensor], Tensor],
        version: str,
        size: float,
        package: str | None = None,
    ) -> Side:
        def prepare() -> str | None:
            return (missing(package) if package else None) or _fits(size, device)()

        return Side(
            name,
            lambda: _gradients(lambda: loss(x, y), x, y),
            version=version,
            agree=_in_their_way(lambda: mine(x, y), x, y),
            prepare=prepare,
            fewest=1 if few else 3,
        )

    return Workload(
        ours=Side(
            "tenfold",
            lambda: _gradients(lambda: mmd(x, y), x, y),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "mmd", device),
        ),
        others=[
            peer("msmda", _msmda, mmd, EXPRESSION.format("VoiceBeer/MS-MDA"), pairs * WIDTH * 16),
            peer("torch", _matmul, mmd, f"written by hand on torch {torch.__version__}", pairs * 4 * 14),
            _compiled(x, y, device, pairs * 4 * 8),
            peer("tllib", _tllib, _tllib_ours, EXPRESSION.format("TLlib"), pairs * WIDTH * 32),
            peer(
                "pytorch_adapt",
                partial(_adapt, scales=KERNELS),
                partial(_adapt_ours, scales=KERNELS),
                "pytorch-adapt",
                pairs * 4 * 16,
                "pytorch_adapt",
            ),
            peer(
                "pytorch_adapt_one_kernel",
                partial(_adapt, scales=1),
                partial(_adapt_ours, scales=1),
                "pytorch-adapt",
                pairs * 4 * 5,
                "pytorch_adapt",
            ),
            peer("geomloss", _geomloss, _geomloss_ours, "geomloss, one kernel", pairs * 4 * 3, "geomloss"),
        ],
        work=Work(bytes=float(4 * 2 * 2 * n * WIDTH), flops=3.0 * pairs * WIDTH),
        keep=lambda result: [t.clone() for t in result],
        note=f"squared MMD of {n} and {n} points in {WIDTH} dimensions, {KERNELS} kernels, with its gradient",
    )


def _batched_cdd(s: Tensor, ys: Tensor, t: Tensor, yt: Tensor, classes: int) -> Tensor:
    """intra - inter with the kernel matrices of all branches and pairs of classes in memory."""
    z = torch.cat((s, t), 1)
    n = s.shape[1]
    distance = (z[:, :, None] - z[:, None]).square().sum(-1)
    a = torch.nn.functional.one_hot(ys, classes).to(z.dtype)  # [J, N, C]
    b = torch.nn.functional.one_hot(yt, classes).to(z.dtype)
    size_a, size_b = a.sum(1), b.sum(1)
    held = distance.detach()
    within_a = torch.einsum("jia,jik,jka->ja", a, held[:, :n, :n], a)
    within_b = torch.einsum("jia,jik,jka->ja", b, held[:, n:, n:], b)
    between = torch.einsum("jia,jik,jkb->jab", a, held[:, :n, n:], b)
    m = size_a[:, :, None] + size_b[:, None, :]
    base = (within_a[:, :, None] + within_b[:, None, :] + 2 * between) / (m * m - m).clamp_min(1)
    base = base.clamp_min(1e-5)
    counted = (size_a[:, :, None] >= 2) & (size_b[:, None, :] >= 2)

    def kernel(d: Tensor) -> Tensor:  # [J, C, C, rows, columns]
        total = torch.zeros(())
        for u in range(-(KERNELS // 2), KERNELS // 2 + 1):
            total = total + torch.exp(-d[:, None, None] / (base[..., None, None] * 2.0**u))
        return total

    xx = torch.einsum("jia,jabik,jka->jab", a, kernel(distance[:, :n, :n]), a)
    yy = torch.einsum("jib,jabik,jkb->jab", b, kernel(distance[:, n:, n:]), b)
    xy = torch.einsum("jia,jabik,jkb->jab", a, kernel(distance[:, :n, n:]), b)
    p, q = size_a.clamp_min(1)[:, :, None], size_b.clamp_min(1)[:, None, :]
    matrix = torch.where(counted, xx / (p * p) + yy / (q * q) - 2 * xy / (p * q), 0.0)
    same = torch.eye(classes, dtype=torch.bool, device=s.device)
    intra = (matrix * same).sum((1, 2)) / (counted & same).sum((1, 2)).clamp_min(1)
    inter = (matrix * ~same).sum((1, 2)) / (counted & ~same).sum((1, 2)).clamp_min(1)
    return (intra - inter).sum()


def _cdd(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import cdd

    branches, n, d, classes = (2 if tiny else 15), 32, 32, 3
    s, t = _points(n, d, device, (branches,))
    generator = torch.Generator(device).manual_seed(5)
    ys, yt = (torch.randint(classes, (branches, n), device=device, generator=generator) for _ in range(2))

    def ours() -> Tensor:
        found = cdd(s, ys, t, yt, classes)
        value = (found.intra - found.inter).sum()
        assert isinstance(value, Tensor)
        return value

    return Workload(
        ours=Side(
            "tenfold",
            lambda: _gradients(ours, s, t),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "cdd", device),
        ),
        others=[
            Side(
                "torch_batched",
                lambda: _gradients(lambda: _batched_cdd(s, ys, t, yt, classes), s, t),
                version=f"written by hand on torch {torch.__version__}",
                agree=_relative,
            )
        ],
        work=Work(bytes=float(4 * 4 * branches * n * d), flops=float(branches * (2 * n) ** 2 * 3 * d)),
        keep=lambda result: [x.clone() for x in result],
        note=f"intra - inter of {branches} branches, {n} and {n} points in {d} dimensions, {classes} classes",
    )


def cases() -> list[Case]:
    """The cases of the family."""
    return [
        *(Case(f"mmd.mk.f32.{n}x{WIDTH}", partial(_mk, n)) for n in (32, 512, 8192)),
        Case("mmd.cdd.f32.j15-32x32-c3", _cdd),
    ]
