"""FID, KID and CMMD: peers' expressions, labels, batches and shards, processes, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.metrics import (
    CLIPMaximumMeanDiscrepancy,
    FrechetInceptionDistance,
    KernelInceptionDistance,
    clip_mmd,
    frechet_distance,
    kernel_distance,
    score_label,
)

SMALL: dict[str, Any] = {"subsets": 7, "subset_size": 20}


def features(n: int, seed: int, d: int = 16) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw) @ torch.randn(d, d, generator=draw) / 4 + seed / 10


def torch_fidelity_kid(x: Tensor, y: Tensor, subsets: int, size: int) -> tuple[float, float]:
    """KID as torch-fidelity 0.4 publishes it, with its generator and order of draws."""
    draw, values = np.random.RandomState(2020), []
    for _ in range(subsets):
        a, b = (v[draw.choice(len(v), size, replace=False)].double().numpy() for v in (x, y))
        kxx, kyy, kxy = ((p @ q.T / p.shape[1] + 1.0) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        own = sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in (kxx, kyy))
        values.append(own - 2 * kxy.sum() / size**2)
    return float(np.mean(values)), float(np.std(values))


def test_kid_meets_torch_fidelity() -> None:
    x, y = features(90, 1).double(), features(70, 2).double()
    expected = torch_fidelity_kid(x, y, 7, 20)
    assert [float(v) for v in kernel_distance(x, y, **SMALL)] == pytest.approx(expected, rel=1e-9)
    single = kernel_distance(x.float(), y.float(), **SMALL)
    assert [float(v) for v in single] == pytest.approx(expected, rel=1e-4)


def test_kid_meets_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(50, 1).double(), features(50, 2).double()
    mean, deviation = kernel_distance(x, y, subsets=3, subset_size=50)
    assert float(mean) == pytest.approx(float(kid.poly_mmd(x, y)), rel=1e-9)
    assert float(deviation) == pytest.approx(0.0, abs=1e-9)


def test_cmmd_is_its_definition() -> None:
    x, y = features(40, 1), features(30, 2)
    a, b = (v.double() / v.double().norm(dim=1, keepdim=True) for v in (x, y))
    k = [torch.exp(-torch.cdist(p, q).square() / 200).mean() for p, q in ((a, a), (b, b), (a, b))]
    expected = 1000 * float(k[0] + k[1] - 2 * k[2])
    assert float(clip_mmd(x, y)) == pytest.approx(expected, rel=1e-7)
    assert float(clip_mmd(3 * x, y)) == pytest.approx(expected, rel=1e-7)
    with pytest.raises(ValueError, match="y: expected embeddings that are not all zero"):
        clip_mmd(x, torch.zeros(3, 16))


def test_labels_name_the_features() -> None:
    assert FrechetInceptionDistance(name="judge-192").label == "FID[judge-192]"
    assert KernelInceptionDistance(name="judge-192").label == "KID[judge-192]"
    assert CLIPMaximumMeanDiscrepancy(name="judge-192").label == "CMMD[judge-192]"
    assert score_label("FID", "pt_inception-2015-12-05") == "FID"
    assert score_label("CMMD", "pt_inception-2015-12-05") == "CMMD[pt_inception-2015-12-05]"
    with pytest.raises(ValueError, match="name: expected the name of the features"):
        FrechetInceptionDistance(name=" ")
    with pytest.raises(TypeError):
        FrechetInceptionDistance()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="feature: expected a callable"):
        FrechetInceptionDistance(2048, name="x")  # type: ignore[arg-type]


def fed(metric: Any, x: Tensor, y: Tensor, sizes: list[int]) -> Any:
    for rows, real in ((x, True), (y, False)):
        for part in rows.split(sizes):
            metric.update(part, real=real)
    return metric.compute()


@pytest.mark.parametrize("n", [12, 60])
def test_fid_over_batches(n: int) -> None:
    """Twelve rows of sixteen dimensions are kept; of sixty, their moments."""
    x, y = features(n, 1), features(n, 2)
    expected = float(frechet_distance(x, y))
    metric = FrechetInceptionDistance(name="test")
    assert float(fed(metric, x, y, [5, 0, n - 5])) == pytest.approx(expected, rel=1e-11)
    assert sum(v.numel() for v in metric.real) <= 16 + 16 * 16 + 16 + 9
    called = FrechetInceptionDistance(lambda images: images.flatten(1) / 255.0, name="test")
    images = [(v * 255).view(n, 4, 4) for v in (x, y)]
    assert float(fed(called, *images, [n])) == pytest.approx(expected, rel=1e-5)


def test_kid_and_cmmd_over_batches() -> None:
    x, y = features(60, 1), features(50, 2)
    kid = KernelInceptionDistance(name="test", **SMALL)
    kid.update(x[:9], True)
    kid.update(x[9:], True)
    kid.update(y, False)
    expected = [float(v) for v in kernel_distance(x.double(), y.double(), **SMALL)]
    assert [float(v) for v in kid.compute()] == pytest.approx(expected, rel=1e-12)
    cmmd = CLIPMaximumMeanDiscrepancy(name="test")
    assert float(fed(cmmd, x[:50], y, [20, 30])) == pytest.approx(float(clip_mmd(x[:50], y)), rel=1e-10)


def test_reset_keeps_the_real_pictures_if_asked() -> None:
    x, y, z = features(30, 1), features(30, 2), features(30, 3)
    metric = FrechetInceptionDistance(name="test", reset_real_features=False)
    fed(metric, x, y, [30])
    metric.reset()
    with pytest.raises(RuntimeError, match="generated pictures"):
        metric.compute()
    metric.update(z, real=False)
    assert float(metric.compute()) == pytest.approx(float(frechet_distance(x, z)), rel=1e-11)
    metric = FrechetInceptionDistance(name="test")
    fed(metric, x, y, [30])
    metric.reset()
    with pytest.raises(RuntimeError, match="real pictures"):
        metric.compute()


def test_bad_pictures() -> None:
    metric = FrechetInceptionDistance(name="test")
    with pytest.raises(ValueError, match="imgs: expected features of a floating dtype"):
        metric.update(torch.zeros(3, 4, dtype=torch.uint8), real=True)
    with pytest.raises(ValueError, match="imgs: expected finite"):
        metric.update(torch.full((3, 4), float("nan")), real=True)
    metric.update(torch.rand(3, 4), real=True)
    with pytest.raises(ValueError, match="imgs: expected features of one size"):
        metric.update(torch.rand(3, 5), real=True)
    with pytest.raises(NotImplementedError, match="expected update and compute"):
        metric(torch.rand(3, 4), real=True)
    with pytest.raises(ValueError, match="subset_size: expected at most 50"):
        kernel_distance(features(60, 1), features(50, 2))


SCRIPT = """
import sys

rank, store, alone, out = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "alone", sys.argv[4]
if alone:
    sys.modules["torchmetrics"] = None
import torch

from tenfold import metrics

torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
draw = torch.Generator().manual_seed(0)
x, y = (torch.randn(60, 16, generator=draw) for _ in range(2))
mine = slice(0, 11) if rank == 0 else slice(11, 60)
found = []
fid, kid = metrics.FrechetInceptionDistance, metrics.KernelInceptionDistance
for metric in (fid(name="t"), kid(name="t", subset_size=50), metrics.CLIPMaximumMeanDiscrepancy(name="t")):
    metric.update(x[mine], real=True)
    metric.update(y[mine], real=False)
    found.append(metric.compute())
idle = fid(name="t")
if rank == 1:
    idle.update(x, real=True)
    idle.update(y, real=False)
found.append(idle.compute())
torch.save(found, out)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("base", ["torchmetrics", "alone"])
def test_two_processes(tmp_path: Any, base: str) -> None:
    if base == "torchmetrics":
        pytest.importorskip("torchmetrics")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    places = [tmp_path / f"{rank}.pt" for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "store", base, places[rank]],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(60, 16, generator=draw) for _ in range(2))
    wide = x.double(), y.double()
    expected = [frechet_distance(x, y), kernel_distance(*wide, subset_size=50), clip_mmd(x, y)]
    for place in places:
        fid, kid, cmmd, idle = torch.load(place, weights_only=True)
        assert float(fid) == pytest.approx(float(expected[0]), rel=1e-11)
        assert [float(v) for v in kid] == pytest.approx([float(v) for v in expected[1]], rel=1e-9)
        assert float(cmmd) == pytest.approx(float(expected[2]), rel=1e-9)
        assert float(idle) == pytest.approx(float(expected[0]), rel=1e-11)
