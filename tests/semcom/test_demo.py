"""The embedded default in full: the effect that it is to show."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tenfold.semcom import CtsemcomConfig, transfer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("skimage") is None or find_spec("sklearn") is None,
        reason="scikit-image or scikit-learn, which bring the photographs, is not installed",
    ),
]


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float | int]:
    top = tmp_path_factory.mktemp("ctsemcom")
    return transfer(CtsemcomConfig(cache=str(top / "cache")), top / "run").metrics


def test_the_codec_itself_is_good_enough(metrics: dict[str, float | int]) -> None:
    assert metrics["awgn.snr10.var1.psnr_db"] >= 22.5


@pytest.mark.parametrize("where", ["snr10.var1", "snr15.var1", "snr20.var1", "snr10.var2", "snr10.var4"])
def test_joint_comes_near_the_bound(metrics: dict[str, float | int], where: str) -> None:
    bound = metrics[f"awgn.{where}.psnr_db"]
    assert bound - 0.3 <= metrics[f"ssdt-joint.{where}.psnr_db"] <= bound + 0.3


def test_gains(metrics: dict[str, float | int]) -> None:
    assert metrics["gain.ssdt-joint.over.rx-lmmse.snr10.var1"] >= 4
    assert metrics["gain.ssdt-joint.over.e2e.snr10.var1"] >= 4
    assert metrics["gain.ssdt-joint.over.e2e-matched.snr10.var1.low"] > 0
    assert metrics["gain.ssdt-joint.over.e2e-matched.snr10.var4"] >= 4  # not trained there
    assert metrics["gain.ssdt-sep.over.rx-lmmse.snr10.var1"] >= 4
    assert metrics["gain.ssdt-sep.over.none.snr10.var1.low"] > 8


@pytest.mark.parametrize("method", ["ssdt-sep", "ssdt-joint"])
def test_more_signal_is_better(metrics: dict[str, float | int], method: str) -> None:
    snr = [metrics[f"{method}.snr{s}.var1.psnr_db"] for s in (0, 5, 10, 15, 20)]
    variance = [metrics[f"{method}.snr{s}.var{v}.psnr_db"] for s in (5, 10) for v in (0.25, 0.5, 1, 2, 4)]
    for values in (snr, variance[:5], variance[5:]):
        assert values == sorted(values)


def test_for_one_user_ssdt_gains_nothing_over_the_receiver(tmp_path: Path) -> None:
    config = CtsemcomConfig(
        power_w=[1.0], methods=["rx-lmmse", "ssdt-sep", "ssdt-joint"], steps=250, snr_db=[10.0],
        variances=[1.0], variance_snr_db=[10.0], csi_errors_db=[], csi_bits_tried=[], pairs=128,
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    found = transfer(config, tmp_path / "one").metrics
    for method in ("ssdt-sep", "ssdt-joint"):
        assert abs(found[f"gain.{method}.over.rx-lmmse.snr10.var1"]) <= 0.5


def test_a_stronger_end_to_end_codec_is_told_of(metrics: dict[str, float | int]) -> None:
    for variance in ("0.25", "1", "4"):
        where = f"snr10.var{variance}.psnr_db"
        assert metrics[f"e2e-matched.{where}"] > metrics[f"e2e.{where}"]
