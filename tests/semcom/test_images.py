"""Pictures: photographs parted whole, patches on a grid, the published layouts."""

from __future__ import annotations

import os
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.semcom.images import PHOTOGRAPHS, both_sizes, crops, half_size, load_pictures, patches


@pytest.mark.skipif(
    find_spec("skimage") is None or find_spec("sklearn") is None,
    reason="the photographs' packages are missing",
)
def test_photographs_are_parted_whole() -> None:
    found = load_pictures()
    assert (len(found.train), len(found.test)) == (5, 2)
    assert not set(found.train_names) & set(found.test_names)
    sizes = {n: tuple(p.shape) for n, p in zip(found.test_names, found.test, strict=True)}
    assert sizes == {"coffee": (3, 400, 600), "flower": (3, 427, 640)}
    assert set(found.train_names + found.test_names) == set(PHOTOGRAPHS)


def test_patches_cover_a_grid_once() -> None:
    picture = torch.arange(3 * 70 * 100).view(3, 70, 100).remainder(251).to(torch.uint8)
    found = patches([picture], 32, 100, seed=0)
    assert found.shape == (2 * 3 + 1 * 1, 3, 32, 32)
    assert len({bytes((p * 255).round().to(torch.uint8).numpy().tobytes()) for p in found}) == 7
    assert torch.equal(patches([picture], 32, 3, seed=0), found[:3])
    with pytest.raises(ValueError, match="pictures: expected some of at least 128"):
        patches([picture], 128, 1, seed=0)


def test_crops_are_cut_from_the_pictures_and_their_halves() -> None:
    draw = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (3, 20, 24), generator=draw, dtype=torch.uint8)
    sources = both_sizes([picture], 8)
    assert [tuple(s.shape) for s in sources] == [(3, 20, 24), (3, 10, 12)]
    cut = crops(sources, 8, 6, seed=1)
    assert torch.equal(cut, crops(sources, 8, 6, seed=1))
    windows = {
        w.contiguous().numpy().tobytes()
        for s in sources
        for w in s.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    }
    for patch in (cut * 255).round().to(torch.uint8):
        assert patch.numpy().tobytes() in windows or patch.flip(2).contiguous().numpy().tobytes() in windows


def test_half_size_is_the_mean_of_four() -> None:
    picture = torch.tensor([[[0, 10, 9], [20, 30, 9]]], dtype=torch.uint8).expand(3, 2, 3)
    assert half_size(picture).tolist() == [[[15]]] * 3


def test_cifar_in_its_published_layout(tmp_path: Path) -> None:
    where = tmp_path / "cifar-10-batches-py"
    where.mkdir()
    draw = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = draw.integers(0, 256, (4, 3072)).astype(np.uint8)
        (where / name).write_bytes(pickle.dumps({b"data": data, b"labels": [0] * 4}))
    found = load_pictures("cifar10", tmp_path)
    assert (len(found.train), len(found.test), tuple(found.test[0].shape)) == (20, 4, (3, 32, 32))
    assert torch.equal(found.test[3].flatten(), torch.from_numpy(data[3]))
    (where / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match="test_batch"):
        load_pictures("cifar10", tmp_path)


def _published(folder: Path, name: str, value: object) -> None:
    """As Python 2 and an old NumPy wrote it: protocol 2, text as bytes, numpy.core."""
    written = pickle.dumps(value, protocol=2).replace(b"numpy._core", b"numpy.core")
    (folder / name).write_bytes(written)


def test_cifar_as_python_2_wrote_it(tmp_path: Path) -> None:
    data = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        _published(
            tmp_path, name, {"data": data, "labels": [0, 1], "batch_label": b"x", "filenames": [b"a.png"]}
        )
    assert b"cnumpy.core.multiarray\n" in (tmp_path / "test_batch").read_bytes()
    assert torch.equal(load_pictures("cifar10", tmp_path).test[1].flatten(), torch.from_numpy(data[1]))


class _Call:
    """Its pickle makes a folder when it is loaded by the standard library."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_batch_that_runs_code_is_refused(tmp_path: Path) -> None:
    good = {b"data": np.zeros((1, 3072), np.uint8)}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (tmp_path / name).write_bytes(pickle.dumps(good))
    made = tmp_path / "made"
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps({b"data": _Call(made)}))
    with pytest.raises(ValueError, match=r"data_batch_3: expected a pickle of plain data .*mkdir"):
        load_pictures("cifar10", tmp_path)
    assert not made.exists()
    for wrong, got in (({b"data": np.zeros((1, 3071))}, "3071"), ({b"labels": [1]}, "labels"), ([1], "list")):
        (tmp_path / "data_batch_3").write_bytes(pickle.dumps(wrong))
        with pytest.raises(ValueError, match=rf"data_batch_3: expected .*{got}"):
            load_pictures("cifar10", tmp_path)


def test_folders(pictures: Path, tmp_path: Path) -> None:
    found = load_pictures("folder", pictures)
    assert (len(found.train), len(found.test)) == (3, 2)
    flat = tmp_path / "flat"  # as Kodak's pictures come: one folder, every fourth for the test
    flat.mkdir()
    for i, source in enumerate(sorted((pictures / "train").iterdir()) * 2):
        (flat / f"kodim{i:02}.PNG").write_bytes(source.read_bytes())
    (flat / "readme.txt").write_text("no picture")
    mixed = load_pictures("folder", flat)
    assert mixed.test_names == ("kodim03",)
    assert mixed.train_names == ("kodim00", "kodim01", "kodim02", "kodim04", "kodim05")
    assert torch.equal(mixed.test[0], found.train[0])
    with pytest.raises(FileNotFoundError, match="data: expected a folder"):
        load_pictures("folder", tmp_path / "nothing")
    with pytest.raises(ValueError, match="data: expected pictures for the part"):
        load_pictures("folder", tmp_path)
    with pytest.raises(ValueError, match="data: expected the folder"):
        load_pictures("folder")
