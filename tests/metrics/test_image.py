"""PSNR, SSIM, MS-SSIM against published values and peers; NMSE and PAPR by their definitions."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.metrics import (
    MultiScaleStructuralSimilarityIndexMeasure,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
    ms_ssim,
    nmse,
    papr,
    psnr,
    ssim,
)

needs_skimage = pytest.mark.skipif(find_spec("skimage") is None, reason="scikit-image is not installed")


@pytest.fixture(scope="module")
def astronaut() -> tuple[Tensor, Tensor]:
    """(picture, the same with noise), float64 [1, 3, 512, 512] in 0..255."""
    pytest.importorskip("PIL")
    from tenfold.assets import packaged_file
    from tenfold.semcom.images import _read

    clean = _read(packaged_file("skimage", "data/astronaut.png")).double()
    pixels = clean.permute(1, 2, 0).numpy()
    noise = np.random.default_rng(2024).normal(0, 12, pixels.shape)
    noisy = np.clip(np.rint(pixels + noise), 0, 255)
    assert noisy.sum() == 90697702
    return clean[None], torch.from_numpy(noisy).permute(2, 0, 1)[None]


@needs_skimage
def test_values_on_a_photograph(astronaut: tuple[Tensor, Tensor]) -> None:
    clean, noisy = astronaut
    assert float(psnr(noisy, clean, 255)) == pytest.approx(27.008393607, abs=1e-8)
    assert float(ssim(noisy, clean, 255)) == pytest.approx(0.570207422, abs=1e-8)
    assert float(ms_ssim(noisy, clean, 255)) == pytest.approx(0.93597, abs=2e-5)
    assert float(ms_ssim(noisy.float(), clean.float(), 255)) == pytest.approx(0.93597, abs=2e-5)


@needs_skimage
@pytest.mark.parametrize(
    ("variant", "value"), [("uniform", 0.58935), ("torchmetrics", 0.56588), ("piq", 0.81756)]
)
def test_variants_meet_the_other_libraries(
    astronaut: tuple[Tensor, Tensor], variant: str, value: float
) -> None:
    clean, noisy = astronaut
    assert float(ssim(noisy, clean, 255, variant=variant)) == pytest.approx(value, abs=6e-6)


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, 40, 33, dtype=torch.float64, generator=draw)
    return x, (x + 0.1 * torch.randn(x.shape, dtype=torch.float64, generator=draw)).clamp(0, 1)


def test_scikit_image_agrees(pair: tuple[Tensor, Tensor]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    x, y = pair
    options: dict[str, dict[str, Any]] = {
        "gaussian": {"gaussian_weights": True, "use_sample_covariance": False, "sigma": 1.5},
        "uniform": {},
    }
    for variant, given in options.items():
        found = ssim(y, x, reduction="none", variant=variant)
        for i in range(3):
            expected = metrics.structural_similarity(
                x[i].numpy(), y[i].numpy(), data_range=1.0, channel_axis=0, **given
            )
            assert float(found[i]) == pytest.approx(expected, abs=1e-9)
    expected = metrics.peak_signal_noise_ratio(x[1].numpy(), y[1].numpy(), data_range=1.0)
    assert float(psnr(y, x, reduction="none")[1]) == pytest.approx(expected, abs=1e-9)


def test_torchmetrics_agrees(pair: tuple[Tensor, Tensor]) -> None:
    peers = pytest.importorskip("torchmetrics.functional.image")
    x, y = pair
    expected = peers.structural_similarity_index_measure(y, x, data_range=1.0)
    assert float(ssim(y, x, variant="torchmetrics")) == pytest.approx(float(expected), abs=1e-6)


def test_the_mean_is_one_of_decibels() -> None:
    target = torch.zeros(2, 1, 8, 8)
    preds = torch.stack([torch.full((1, 8, 8), 0.1), torch.full((1, 8, 8), 0.01)])
    assert psnr(preds, target, reduction="none").tolist() == pytest.approx([20.0, 40.0], abs=1e-4)
    assert float(psnr(preds, target)) == pytest.approx(30.0, abs=1e-4)


def test_equal_and_opposite_pictures() -> None:
    x = torch.rand(1, 1, 176, 176, generator=torch.Generator().manual_seed(1))
    assert float(psnr(x, x)) == float("inf")
    assert float(ssim(x, x)) == pytest.approx(1)
    assert float(ms_ssim(x, x)) == pytest.approx(1)
    opposite = (1 - x).requires_grad_()
    value = ms_ssim(opposite, x)
    value.backward()
    assert 0 <= float(value) < 0.01
    assert opposite.grad is not None
    assert bool(torch.isfinite(opposite.grad).all())


def test_small_pictures_and_wrong_arguments_are_refused() -> None:
    x = torch.rand(1, 3, 32, 32)
    with pytest.raises(ValueError, match="preds: expected pictures of at least 161 x 161"):
        ms_ssim(x, x)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(x[..., :10], x[..., :10])
    with pytest.raises(ValueError, match="preds: expected the shape of target"):
        psnr(x, x[..., :31])
    with pytest.raises(ValueError, match="data_range: expected"):
        psnr(x, x, 0)
    with pytest.raises(ValueError, match="reduction: expected one of"):
        psnr(x, x, reduction="max")
    with pytest.raises(ValueError, match="variant: expected one of"):
        ssim(x, x, variant="scikit")


def test_gradients() -> None:
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(1, 1, 12, 12, dtype=torch.float64, generator=draw, requires_grad=True)
    y = torch.rand(1, 1, 12, 12, dtype=torch.float64, generator=draw)
    assert torch.autograd.gradcheck(lambda a: psnr(a, y), (x,))
    for variant in ("gaussian", "uniform", "torchmetrics"):
        assert torch.autograd.gradcheck(lambda a, v=variant: ssim(a, y, variant=v), (x,))


def test_integers_arrays_and_single_pictures(pair: tuple[Tensor, Tensor]) -> None:
    x, y = ((v * 255).round().to(torch.uint8) for v in pair)
    found = ssim(y.numpy(), x.numpy(), 255, "none")
    assert isinstance(found, np.ndarray)
    assert float(ssim(y[0], x[0], 255)) == pytest.approx(float(found[0]), abs=1e-6)


def test_classes_average_over_batches(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    for metric, function in ((PeakSignalNoiseRatio(), psnr), (StructuralSimilarityIndexMeasure(), ssim)):
        metric.update(y[:2], x[:2])
        metric.update(y[2:], x[2:])
        assert float(metric.compute()) == pytest.approx(float(function(y, x)), abs=1e-9)
        metric.reset()
        metric.update(y[:1], x[:1])
        assert float(metric.compute()) == pytest.approx(float(function(y[:1], x[:1])), abs=1e-9)
    large = torch.rand(2, 1, 161, 161, generator=torch.Generator().manual_seed(3))
    scales = MultiScaleStructuralSimilarityIndexMeasure()
    scales.update(large, large)
    assert float(scales.compute()) == pytest.approx(1)


def test_nmse_and_papr() -> None:
    wanted = torch.tensor([3.0 + 4j, 0.0])
    assert float(nmse(torch.tensor([3.0 + 4j, 5j]), wanted)) == pytest.approx(1.0)
    assert float(nmse(torch.tensor([3.0 + 4j, 0.5j]), wanted, db=True)) == pytest.approx(-20, abs=1e-5)
    one = torch.zeros(64, dtype=torch.complex64)
    one[5] = 1
    assert float(papr(one)) == pytest.approx(0, abs=1e-4)
    assert float(papr(torch.ones(64, dtype=torch.complex64), oversampling=1, db=False)) == pytest.approx(64)
