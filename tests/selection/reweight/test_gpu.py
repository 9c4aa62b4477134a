"""The same on a GPU: the meta gradient, and trainings on CUDA."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.selection.reweight import CwermConfig, WeightNet, make_model, meta_weight_step, reweight

pytestmark = pytest.mark.gpu


def test_meta_gradient_on_a_gpu_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    model = make_model("resnet20", (3, 32, 32), 10, 0).double()
    v = WeightNet(20).double()
    data = (torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.randint(0, 10, (16,)))
    here = meta_weight_step(model, v, data, data, lr=0.1).gradients
    there = meta_weight_step(
        copy.deepcopy(model).cuda(), copy.deepcopy(v).cuda(), (data[0].cuda(), data[1].cuda()),
        (data[0].cuda(), data[1].cuda()), lr=0.1,
    ).gradients  # fmt: skip
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-7, atol=1e-10)


def test_a_run_on_a_gpu(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    y = g.integers(0, 4, 600)
    x = (g.integers(0, 60, (600, 32, 32, 3)) + 60 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x[:400], y=y[:400], x_test=x[400:], y_test=y[400:], y_true=y[:400],
             mean=[0.5] * 3, std=[0.25] * 3)  # fmt: skip
    config = CwermConfig(
        dataset="arrays", data=str(tmp_path / "a.npz"), settings=["symmetric:0.2"], model="preactresnet18",
        methods=["cw-erm", "w-erm", "label-aware-normalised"], meta_model="resnet20", augment=True, ratio=0.2,
        epochs=6, meta_epochs=2, seeds=[0], device="cuda", precision="bfloat16", workers=1,
    )  # fmt: skip
    m = reweight(config, tmp_path / "run").metrics
    assert m["symmetric-0.2/erm.accuracy"] > 0.5
    assert 0 < m["reweighting.coreset_seconds"] < m["reweighting.all_seconds"]
