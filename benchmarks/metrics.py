"""Scores of pictures' features against what image-generation code runs.

torch-fidelity needs torchvision to be imported: "torch_fidelity" is its published expression, NumPy's general
eigenvalues of S1 S2 and, for moments, np.cov. "scipy_sqrtm" is the matrix root of the first FID code and of
clean-fid. On the Frechet cases every side but the few-rows one has the moments given, as these libraries do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing, version_of
from .zo import _version

D = 2048
ROWS = 5000
KID = {"subsets": 100, "subset_size": 1000}


def _features(n: int, d: int, seed: int, device: torch.device) -> Tensor:
    """Float32 rows like pooled activations: correlated, with a falling spectrum, and not negative."""
    generator = torch.Generator(device).manual_seed(seed)
    basis = torch.randn(d // 4, d, device=device, generator=generator) / (d // 4) ** 0.5
    scale = torch.logspace(0, -2, d // 4, device=device)
    low = torch.randn(n, d // 4, device=device, generator=generator) * scale
    rows = low @ basis + 0.1 * torch.randn(n, d, device=device, generator=generator) + 0.01 * seed
    return rows.relu()


def _pair(n: int, device: torch.device, tiny: bool) -> tuple[Tensor, Tensor]:
    rows, size = (40, 32) if tiny else (n, D)
    return _features(rows, size, 1, device), _features(rows, size, 2, device)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double().mean(0), torch.cov(x.double().T)


# ---- the Frechet distance --------------------------------------------------------------------------------

Stats = tuple[Tensor, Tensor]


def _with_root(a: Stats, b: Stats, root: float) -> Tensor:
    gap = a[0] - b[0]
    return gap @ gap + a[1].trace() + b[1].trace() - 2.0 * root


def _eigvals(a: Stats, b: Stats) -> Tensor:
    values = np.linalg.eigvals(a[1].cpu().numpy() @ b[1].cpu().numpy())
    return _with_root(a, b, float(np.sqrt(values.astype(complex)).real.sum()))


def _sqrtm(a: Stats, b: Stats) -> Tensor:
    root = import_module("scipy.linalg").sqrtm(a[1].cpu().numpy() @ b[1].cpu().numpy())
    return _with_root(a, b, float(np.trace(root).real))


def _torchmetrics(a: Stats, b: Stats) -> Tensor:
    found: Tensor = import_module("torchmetrics.image.fid")._compute_fid(a[0], a[1], b[0], b[1])
    return found


def _close(tolerance: float, ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
    return compare_values([ours[0].cpu()], [theirs[0].cpu()], tolerance)


def _frechet(n: int, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import frechet_distance

    x, y = _pair(n, device, tiny)
    few = n <= D
    a, b = _statistics(x), _statistics(y)
    given: tuple[Any, Any] = (x, y) if few else (a, b)
    close = partial(_close, 1e-2 if few else 1e-6)

    def side(name: str, run: Callable[[Stats, Stats], Tensor], version: str, **more: Any) -> Side:
        return Side(name, lambda: [run(a, b)], version=version, agree=close, **more)

    scipy = partial(missing, "scipy")
    peers = [
        side("torch_fidelity", _eigvals, f"0.4's expression, numpy {np.__version__}", fewest=1, host=True),
    ]
    if not few:
        torchmetrics = partial(missing, "torchmetrics")
        version = "" if torchmetrics() else import_module("torchmetrics").__version__
        peers += [
            side("torchmetrics", _torchmetrics, version, fewest=1, prepare=torchmetrics),
            side(
                "scipy_sqrtm",
                _sqrtm,
                "" if scipy() else import_module("scipy").__version__,
                fewest=1,
                host=True,
                prepare=scipy,
            ),
        ]
    rows = 2.0 * n * n * D if few else 0.0
    flops = rows + 4 / 3 * min(n, D) ** 3 + (2.0 * n**3 if few else 5 / 3 * D**3)
    return Workload(
        ours=Side(
            "tenfold",
            lambda: [frechet_distance(*given)],
            version=_version(),
            kind="ours",
            backend=lambda: "LAPACK by torch",
        ),
        others=peers,
        work=Work(bytes=float(2 * x.nbytes if few else 2 * a[1].nbytes), flops=flops),
        keep=lambda found: [v.clone() for v in found],
        note=f"{n} rows a side, {D} dimensions"
        + (", from rows; the peer's moments are given and not timed" if few else ", moments given"),
    )


# ---- moments, KID, resizing ------------------------------------------------------------------------------


def _moments(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import moments_update

    x, y = _pair(ROWS, device, tiny)

    def ours() -> list[Tensor]:
        return [moments_update(v).covariance for v in (x, y)]

    def cov() -> list[Tensor]:
        return [torch.from_numpy(np.cov(v.cpu().double().numpy(), rowvar=False)) for v in (x, y)]

    def plain() -> list[Tensor]:
        return [torch.cov(v.double().T) for v in (x, y)]

    def close(mine: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values([v.cpu() for v in mine], [v.cpu() for v in theirs], 1e-12)

    n, d = x.shape
    return Workload(
        ours=Side("tenfold", ours, version=_version(), kind="ours", backend=lambda: "BLAS by torch"),
        others=[
            Side("numpy_cov", cov, version=np.__version__, agree=close, host=True),
            Side("torch", plain, version=f"torch.cov of {torch.__version__}", agree=close, kind="reference"),
        ],
        work=Work(bytes=2.0 * x.nbytes + 16.0 * d * d, flops=2.0 * n * d * (d + 1)),
        keep=lambda found: [v.clone() for v in found],
        note="mean and covariance of both sets in float64, from float32 rows",
    )


def _plain_kid(x: Tensor, y: Tensor, picks: tuple[Tensor, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each subset's three kernel matrices, as torch-fidelity and TorchMetrics make them."""
    values = []
    for i, j in zip(*picks, strict=True):
        a, b = x[i].to(dtype), y[j].to(dtype)
        n = len(a)
        kernels = [(p @ q.T / p.shape[1] + 1.0) ** 3 for p, q in ((a, a), (b, b), (a, b))]
        own = sum((k.double().sum() - k.double().trace()) / (n * (n - 1)) for k in kernels[:2])
        values.append(own - 2 * kernels[2].double().mean())
    found = torch.stack([torch.as_tensor(v) for v in values])
    return [found.mean(), found.std(correction=0)]


def _kid(device: torch.device, tiny: bool) -> Workload:
    from tenfold.metrics.features import _subsets, kernel_distance

    x, y = _pair(ROWS, device, tiny)
    options = {"subsets": 3, "subset_size": 10} if tiny else KID
    picks = _subsets(len(x), len(y), options["subsets"], options["subset_size"], 2020)
    places = (picks[0].to(device), picks[1].to(device))

    def close(mine: list[Tensor], theirs: list[Tensor]) -> Agreement:
        scale = mine[0].abs()
        return compare_values([v / scale for v in mine], [v / scale for v in theirs], 1e-3, "relative")

    n, d = x.shape
    return Workload(
        ours=Side(
            "tenfold",
            lambda: list(kernel_distance(x, y, **options)),
            version=_version(),
            kind="ours",
            backend=lambda: "BLAS by torch",
        ),
        others=[
            Side(
                "per_subset",
                lambda: _plain_kid(x, y, places, torch.float32),
                version=f"expression of TorchMetrics 1.9, torch {torch.__version__}",
                agree=close,
                fewest=1,
            )
        ],
        work=Work(bytes=2.0 * x.nbytes, flops=4.0 * n * n * d),
        keep=lambda found: [v.clone() for v in found],
        note=f"{n} rows a side, {d} dimensions, 100 subsets of 1000, float32 products",
    )


def _resize(filter: str, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import resize_antialias

    sizes = (16, 9) if tiny else (512, 299)
    generator = torch.Generator(device).manual_seed(0)
    shape = (2 if tiny else 16, sizes[0], sizes[0], 3)
    x = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)

    def pillow() -> list[Tensor]:
        image = import_module("PIL.Image")
        how = getattr(image.Resampling, filter.upper())
        rows = [np.asarray(image.fromarray(v).resize((sizes[1],) * 2, how)) for v in x.cpu().numpy()]
        return [torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float().contiguous()]

    def close(mine: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values([mine[0].cpu()], theirs, 1.0)

    pixels = 3.0 * shape[0] * sizes[1]
    reach = (2 if filter == "bilinear" else 4) * sizes[0] / sizes[1]
    return Workload(
        ours=Side(
            "tenfold",
            lambda: [resize_antialias(x, (sizes[1],) * 2, filter=filter)],
            version=_version(),
            kind="ours",
            backend=lambda: "torch",
        ),
        others=[
            Side(
                "pillow",
                pillow,
                version=version_of("PIL"),
                agree=close,
                host=True,
                prepare=partial(missing, "PIL"),
            )
        ],
        work=Work(bytes=x.nbytes + 4 * pixels * sizes[1], flops=2 * reach * pixels * (sizes[0] + sizes[1])),
        keep=lambda found: [v.clone() for v in found],
        note=f"{shape[0]} pictures of {sizes[0]} x {sizes[0]} to {sizes[1]} x {sizes[1]}",
    )


def cases() -> list[Case]:
    """The cases of this family."""
    return [
        Case("metrics.frechet.f64.d2048-n5000", partial(_frechet, 5000)),
        Case("metrics.frechet.f64.d2048-n500", partial(_frechet, 500)),
        Case("metrics.moments.f64.d2048-n5000", _moments),
        Case("metrics.kid.f32.d2048-n5000", _kid),
        Case("metrics.resize.bilinear.16x512-299", partial(_resize, "bilinear")),
        Case("metrics.resize.bicubic.16x512-299", partial(_resize, "bicubic")),
    ]
