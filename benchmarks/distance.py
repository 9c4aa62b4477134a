"""Greedy k-center, nearest centres and k-means against what people run today.

Inputs are normal numbers, the worst case: nothing can be pruned. `kcenter.f32.50kx512-k500-clusters` has 100
clusters, as real features do. FAISS brings an OpenBLAS of 2021 that takes newer processors for very old ones
and multiplies four to five times slower than it can; it is told which kernels to use: measured at its best.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold import _native

from .harness import Agreement, Case, Side, Work, Workload
from .installed import missing, version_of
from .zo import _backend, _version

DEEPCORE = "expression of PatrickZH/DeepCore 8a2ec1d"
HAND = f"written by hand on numpy {np.__version__}"
KCENTER = (50_000, 512, 500)
NEAREST = (50_000, 500, 2048)
Array = Any


def _threads() -> None:
    """BLAS libraries of NumPy and FAISS take the number of threads that PyTorch has."""
    with suppress(ImportError):
        import_module("threadpoolctl").threadpool_limits(torch.get_num_threads())


def _faiss() -> Any:
    if "avx512" in _native.cpu.isa_available():
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    _threads()
    return faiss


def _ready(module: str) -> str | None:
    reason = missing(module)
    if reason is None:
        _threads()
    return reason


def _normal(n: int, d: int, device: torch.device, seed: int) -> Tensor:
    return torch.randn(n, d, device=device, generator=torch.Generator(device).manual_seed(seed))


# ---- k-center ----------------------------------------------------------------------------------------------


def _numpy_kcenter(x: Array, k: int) -> Array:
    """The loop everybody writes: a product with the last pick, a running minimum, its largest entry."""
    norms = (x * x).sum(1)
    nearest = np.full(len(x), np.inf, np.float32)
    picked = [0]
    while len(picked) < k:
        last = picked[-1]
        np.minimum(nearest, norms + norms[last] - 2 * (x @ x[last]), out=nearest)
        nearest[last] = -1
        picked.append(int(nearest.argmax()))
    return np.asarray(picked)


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    m, n = a.shape[0], b.shape[0]
    distance = a.pow(2).sum(1, keepdim=True).expand(m, n) + b.pow(2).sum(1, keepdim=True).expand(n, m).t()
    distance = distance.addmm(a, b.t(), beta=1, alpha=-2)
    return distance.clamp(min=1e-12).sqrt()


def _deepcore_kcenter(x: Tensor, k: int) -> Tensor:
    """A matrix of the distances to every pick, and the rows that are left copied for each of them."""
    chosen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    chosen[0] = True
    table = -torch.ones(k, len(x), device=x.device)
    table[0, ~chosen] = _euclidean(x[:1], x[~chosen])[0]
    least = table[0].clone()
    picked = [0]
    while len(picked) < k:
        top = int(least.argmax())
        picked.append(top)
        chosen[top] = True
        if len(picked) == k:
            break
        least[top] = -1
        table[len(picked) - 1, ~chosen] = _euclidean(x[top : top + 1], x[~chosen])[0]
        least = torch.minimum(least, table[len(picked) - 1])
    return torch.tensor(picked)


def _sklearn_kcenter(x: Array, k: int) -> Array:
    """The loop of google/active-learning: pairwise distances to the last pick."""
    pairwise = import_module("sklearn.metrics").pairwise_distances
    least = pairwise(x, x[:1])
    picked = [0]
    while len(picked) < k:
        picked.append(int(np.argmax(least)))
        least = np.minimum(least, pairwise(x, x[picked[-1]].reshape(1, -1)))
    return np.asarray(picked)


def _same_greedy(x: Tensor, ours: Tensor, theirs: Any) -> Agreement:
    """Where the picks part, both rows are equally far from all before, within float32."""
    mine, other = ours.cpu(), torch.as_tensor(theirs).cpu()
    parted = (mine != other).nonzero()
    how = "relative difference of the distances where picks part"
    if len(parted) == 0:
        return Agreement(True, 0.0, 1e-5, how)
    t = int(parted[0, 0])
    before = x[mine[:t].to(x.device)].double()
    far = [float((before - x[int(row)].double()).square().sum(1).min().sqrt()) for row in (mine[t], other[t])]
    gap = abs(far[0] - far[1]) / max(far)
    return Agreement(gap <= 1e-5, gap, 1e-5, how)


def _kcenter(clusters: int, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import kcenter_greedy

    n, d, k = (600, 16, 30) if tiny else KCENTER
    x = _normal(n, d, device, 1)
    if clusters:
        which = torch.randint(clusters, (n,), device=device, generator=torch.Generator(device).manual_seed(2))
        x += 3 * _normal(clusters, d, device, 3)[which]
    agree = partial(_same_greedy, x)
    host = x.cpu().numpy()

    def peer(name: str, run: Callable[[], Any], made: str, prepare: Any = None, slow: bool = False) -> Side:
        return Side(
            name,
            run,
            version=made,
            agree=agree,
            prepare=prepare,
            fewest=1 if slow else 3,
            measure_memory=not slow,
        )

    others = [peer("deepcore", lambda: _deepcore_kcenter(x, k), DEEPCORE, slow=True)]
    if device.type == "cpu":
        sklearn = version_of("sklearn")
        others = [
            peer("numpy_blas", lambda: _numpy_kcenter(host, k), HAND, lambda: _ready("numpy")),
            *others,
            peer("sklearn", lambda: _sklearn_kcenter(host, k), sklearn, lambda: _ready("sklearn"), slow=True),
        ]
    return Workload(
        ours=Side(
            "tenfold",
            lambda: kcenter_greedy(x, k, init=0).indices,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "kcenter_greedy", device),
        ),
        others=others[:1] if clusters and device.type == "cpu" else others,
        work=Work(bytes=float(x.nbytes), flops=2.0 * n * d * k),
        keep=lambda result: result,
        note=f"{k} of {n} rows, d = {d}" + (f", {clusters} clusters" if clusters else ", normal numbers"),
    )


# ---- nearest centres ---------------------------------------------------------------------------------------


def _share(ours: Tensor, theirs: Any) -> Agreement:
    """Rows for which float32 cannot tell the two nearest apart may differ."""
    other = torch.as_tensor(theirs).reshape(-1).to(ours.device)
    share = (ours.reshape(-1).long() != other).double().mean().item()
    return Agreement(share <= 1e-4, share, 1e-4, "share of rows with another centre")


def _numpy_nearest(x: Array, centers: Array) -> Array:
    norms = (centers * centers).sum(1)
    found = [(norms - 2 * (x[i : i + 1024] @ centers.T)).argmin(1) for i in range(0, len(x), 1024)]
    return np.concatenate(found)


def _nearest(precision: str, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import nn_assign

    n, m, d = (500, 40, 32) if tiny else NEAREST
    x, centers = _normal(n, d, device, 1), _normal(m, d, device, 2)
    host, targets = x.cpu().numpy(), centers.cpu().numpy()

    def search() -> Any:
        index = _faiss().IndexFlatL2(d)
        index.add(targets)
        return index.search(host, 1)[1]

    def peer(name: str, run: Callable[[], Any], made: str, prepare: Any = None) -> Side:
        return Side(name, run, version=made, agree=_share, prepare=prepare, fewest=2)

    by_cdist = peer("torch_cdist", lambda: torch.cdist(x, centers).argmin(1), f"torch {torch.__version__}")
    others = [by_cdist]
    if device.type == "cpu":
        metrics = "sklearn.metrics"
        sklearn = version_of("sklearn")
        others = [
            peer("faiss", search, version_of("faiss"), lambda: missing("faiss")),
            peer("numpy_blocked", lambda: _numpy_nearest(host, targets), HAND, lambda: _ready("numpy")),
            by_cdist,
            peer(
                "sklearn",
                lambda: import_module(metrics).pairwise_distances_argmin(host, targets),
                sklearn,
                lambda: _ready("sklearn"),
            ),
        ]
    return Workload(
        ours=Side(
            "tenfold",
            lambda: nn_assign(x, centers, precision=precision).indices,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "nn_assign", device),
        ),
        others=others,
        work=Work(bytes=float(x.nbytes), flops=2.0 * n * m * d),
        note=f"nearest of {m} centres for {n} rows, d = {d}"
        + ("" if precision == "f32" else "; 16-bit products, candidates measured again"),
    )


# ---- k-means -----------------------------------------------------------------------------------------------


def _same_inertia(ours: float, theirs: float) -> Agreement:
    gap = abs(ours - theirs) / ours
    return Agreement(gap <= 1e-4, gap, 1e-4, "relative difference of the sums of squared distances")


def _inertia(x: Tensor, result: Any) -> float:
    """Of the centres that a side ends with, whatever it counts itself."""
    from tenfold.ops import nn_assign

    centers = torch.as_tensor(result).to(x.device)
    return float(nn_assign(x, centers).distances_squared.double().sum())


def _kmeans(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import kmeans

    n, d, k, rounds = (600, 8, 10, 3) if tiny else (50_000, 256, 500, 10)
    x = _normal(n, d, device, 1)
    init = x[:k].clone()
    host, first = x.cpu().numpy(), init.cpu().numpy()

    def by_faiss() -> Any:
        options = {"niter": rounds, "max_points_per_centroid": n, "min_points_per_centroid": 1}
        found = _faiss().Kmeans(d, k, **options)
        found.train(host, init_centroids=first)
        return found.centroids

    def by_sklearn() -> Any:
        kind = import_module("sklearn.cluster").KMeans
        return (
            kind(k, init=first, n_init=1, max_iter=rounds, tol=0, algorithm="lloyd")
            .fit(host)
            .cluster_centers_
        )

    def peer(name: str, run: Callable[[], Any], made: str, prepare: Any) -> Side:
        return Side(name, run, version=made, agree=_same_inertia, prepare=prepare, fewest=2)

    others = []
    if device.type == "cpu":
        others = [
            peer("faiss", by_faiss, version_of("faiss"), lambda: missing("faiss")),
            peer("sklearn", by_sklearn, version_of("sklearn"), lambda: _ready("sklearn")),
        ]
    return Workload(
        ours=Side(
            "tenfold",
            lambda: kmeans(x, k, init=init, iterations=rounds).centers,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "kmeans", device),
        ),
        others=others,
        work=Work(bytes=float(x.nbytes) * (rounds + 1), flops=2.0 * n * k * d * (rounds + 1)),
        keep=partial(_inertia, x),
        note=f"{rounds} updates of {k} centres, {n} rows, d = {d}; ours also labels rows by the last centres",
    )


def cases() -> list[Case]:
    """All cases of distances."""
    return [
        Case("selection.kcenter.f32.50kx512-k500", partial(_kcenter, 0)),
        Case("selection.kcenter.f32.50kx512-k500-clusters", partial(_kcenter, 100)),
        Case("selection.nn1.f32.50kx500x2048", partial(_nearest, "f32")),
        Case("selection.nn1.bf16.50kx500x2048", partial(_nearest, "bf16")),
        Case("selection.kmeans.f32.50kx256-k500-it10", _kmeans),
    ]
