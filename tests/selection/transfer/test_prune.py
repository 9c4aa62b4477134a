"""Pruning as a function, its index files, and single trainings from published settings on small pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from tenfold.selection import transfer
from tenfold.selection.transfer import index_files, networks
from tenfold.selection.transfer.augment import View
from tenfold.selection.transfer.beton import write_beton
from tenfold.selection.transfer.images import Images

from .test_training import settings


def coloured(count: int, classes: int, seed: int) -> Images:
    """Pictures of noise whose class is their brightest channel and half (0 to 5)."""
    generator = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = generator.integers(0, 90, (count, 40, 48, 3), dtype=np.uint8)
    for i, c in enumerate(y):
        x[i, :, 24 * (c // 3) : 24 * (c // 3) + 24, c % 3] += 150
    return Images(
        torch.from_numpy(y), tuple("abcdef"[:classes]), lambda i: x[i], identifiers=torch.arange(count) + 7
    )


@pytest.fixture
def surrogate() -> torch.nn.Module:
    torch.manual_seed(0)
    return networks.build("small", 6, channels=3, side=16).eval()


def test_one_pass_for_all_ratios(surrogate: torch.nn.Module, tmp_path: Path) -> None:
    source, target, validation = coloured(48, 6, 0), coloured(12, 2, 1), coloured(12, 6, 2)
    found = transfer.prune(
        source, target, surrogate, "lm", ratios=[0.5, 0.8], validation=validation, out=tmp_path / "pets",
        view=View(16),
    )  # fmt: skip
    assert [len(p.classes) for p in found] == [3, 1]
    assert found[1].classes == found[0].classes[:1]
    votes = index_files.read_frequency(tmp_path / "pets_lm.frequency")
    assert votes.sum() == 12
    assert found[0].classes == np.argsort(-votes.numpy(), kind="stable")[:3].tolist()
    names = index_files.read_indices(tmp_path / "pets_lm_train_top3.indices")
    assert set(source.with_identifiers(names).labels.tolist()) == set(found[0].classes)
    held = index_files.read_indices(tmp_path / "pets_lm_val_top3.indices")
    assert len(held) == 6
    note = json.loads((tmp_path / "pets_lm.json").read_text())
    assert note["votes"] == votes.tolist()
    assert note["kept"][0]["images"] == len(names) == 24
    matrix = np.load(tmp_path / "pets_lm_votes.npz")["matrix"]
    np.testing.assert_array_equal(matrix.sum(0), votes)


def test_names_of_the_published_files(surrogate: torch.nn.Module, tmp_path: Path) -> None:
    source, target = coloured(24, 6, 0), coloured(6, 2, 1)
    for method in ("fm", "lm-reverse", "moderate", "fm-kmeans", "grand"):
        transfer.prune(
            source, target, surrogate, method, ratios=[0.5], out=tmp_path / "x", view=View(16), clusters=4
        )
    names = {p.name for p in tmp_path.iterdir()}
    assert {
        "xfm_Top3_class_index.pth", "xfm_Top3_train_data_index.pth", "x_lm_train_bottom3.indices",
        "x_moderate_50.indices", "x_fm-kmeans_50.indices", "x_grand_50.indices",
    } <= names  # fmt: skip
    assert len(index_files.read_indices(tmp_path / "xfm_Top3_class_index.pth")) == 3
    assert len(index_files.read_indices(tmp_path / "x_fm-kmeans_50.indices")) == 12


def test_what_needs_no_surrogate(tmp_path: Path) -> None:
    source = coloured(24, 6, 0)
    assert len(transfer.prune(source, None, None, "random", ratios=[0.5])[0].kept) == 12
    x = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    target = coloured(4, 2, 1)
    found = transfer.prune(source, target, None, "fm-kmeans", ratios=[0.5], unlabelled=(x, x[:4]), clusters=5)
    assert len(found[0].kept) == 12
    with pytest.raises(ValueError, match="surrogate: expected a network"):
        transfer.prune(source, target, None, "lm")
    with pytest.raises(ValueError, match="target: expected images, for the method lm"):
        transfer.prune(source, None, None, "lm")
    with pytest.raises(ValueError, match="ratios: expected"):
        transfer.prune(source, None, None, "random", ratios=[1.0])
    with pytest.raises(ValueError, match="scores: expected a CSV file"):
        transfer.prune(source, None, None, "file")
    assert not list(tmp_path.iterdir())


def small(document: dict[str, Any], size: int = 32) -> dict[str, Any]:
    document["train"] |= {"epoch": 3, "batch_size": 8}
    document["dataset"]["num_workers"] = 0
    return document


@pytest.mark.slow
def test_pretraining_and_transfer_from_settings_files(tmp_path: Path) -> None:
    """ResNet-18 on FFCV files, on the images of an index file, then a probe with both heads."""
    write_beton(tmp_path / "train.beton", coloured(24, 6, 0), page_size=1 << 21)
    write_beton(tmp_path / "val.beton", coloured(12, 6, 1), page_size=1 << 21)
    document = small(settings())
    document["dataset"] |= {
        "train_path": str(tmp_path / "train.beton"),
        "val_path": str(tmp_path / "val.beton"),
    }
    document["train"]["resolution"] = {"min_res": 32, "max_res": 64, "start_ramp": 1, "end_ramp": 2}
    document["validation"]["resolution"] = 32
    (tmp_path / "pretrain.json").write_text(json.dumps(document))
    index_files.write_indices(tmp_path / "kept.indices", np.arange(7, 7 + 18))
    lines: list[str] = []
    done = transfer.pretrain(
        tmp_path / "pretrain.json", tmp_path / "out", indices=tmp_path / "kept.indices", say=lines.append
    )
    assert (done.images, done.steps, len(lines)) == (18, 9, 3)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["steps"] == 9
    assert stored["last"] == done.last
    assert not (tmp_path / "out" / "epochs.safetensors").exists()
    for name, classes, seed in (("t-train", 2, 2), ("t-test", 2, 3)):
        write_beton(tmp_path / f"{name}.beton", coloured(8, classes, seed), page_size=1 << 21)
    document = small(settings(network__finetune_method="lp", train__scheduler_type="cosine"))
    document["train"] |= {"progressive_resize": 0, "static_resolution": {"res": 32}}
    document["train"]["optimizer"] = {"lr": 0.01, "weight_decay": 0.0}
    del document["train"]["resolution"], document["validation"], document["dataset"]["val_path"]
    document["dataset"] |= {
        "train_path": str(tmp_path / "t-train.beton"), "test_path": str(tmp_path / "t-test.beton"),
    }  # fmt: skip
    document["test"] = {"batch_size": 8, "resolution": 32, "lr_tta": 1}
    (tmp_path / "finetune.json").write_text(json.dumps(document))
    for compat in (False, True):
        tuned = transfer.finetune(
            tmp_path / "finetune.json", tmp_path / f"tuned{compat}",
            weights=done.path / "network.safetensors", source_classes=6, compat_head=compat, say=lines.append,
        )  # fmt: skip
        assert networks.head_of(tuned.network).out_features == (6 if compat else 2)
        before, after = done.network.state_dict(), tuned.network.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before if not k.startswith("fc"))
    with pytest.raises(ValueError, match="expected a file for transfer"):
        transfer.finetune(tmp_path / "pretrain.json", tmp_path / "x", weights="w.safetensors")
    with pytest.raises(ValueError, match="expected a file for training from first weights"):
        transfer.pretrain(tmp_path / "finetune.json", tmp_path / "x")
