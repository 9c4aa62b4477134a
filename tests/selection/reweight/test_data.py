"""Data sets: CIFAR as published without running its pickles, arrays, folders; features and their hash."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tenfold.selection.reweight import Labelled, features_of, load
from tenfold.selection.reweight.extract import load_features, save_features
from tenfold.selection.transfer.networks import build


def python2(value: dict[str, Any]) -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it: str of bytes, NumPy under its old name."""
    return pickle.dumps({k.encode(): v for k, v in value.items()}, 2).replace(b"numpy._core", b"numpy.core")


def cifar(folder: Path, count: int = 10) -> Path:
    g = np.random.default_rng(0)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"] if count == 10 else ["train", "test"]
    root = folder / "batches"
    root.mkdir(parents=True)
    for k, name in enumerate(names):
        data = g.integers(0, 256, (6, 3072)).astype(np.uint8)
        labels = [int(v) for v in g.integers(0, count, 6)]
        key = "labels" if count == 10 else "fine_labels"
        (root / name).write_bytes(python2({"data": data, key: labels, "batch_label": str(k)}))
    meta, key = ("batches.meta", "label_names") if count == 10 else ("meta", "fine_label_names")
    (root / meta).write_bytes(python2({key: [f"class {k}" for k in range(count)]}))
    return root


@pytest.mark.parametrize("count", [10, 100])
def test_cifar_as_published(tmp_path: Path, count: int) -> None:
    root = cifar(tmp_path, count)
    data = load(f"cifar{count}", str(tmp_path))  # the folder above the batches will do
    assert data.x.shape == (30 if count == 10 else 6, 3, 32, 32)
    assert data.x.dtype == torch.uint8
    assert data.x_test.shape == (6, 3, 32, 32)
    assert data.classes[3] == "class 3"
    name = "data_batch_1" if count == 10 else "train"
    raw = pickle.loads((root / name).read_bytes(), encoding="bytes")
    assert (data.x[0, 0, 0].numpy() == raw[b"data"][0, :32]).all()  # red plane, first row
    assert (data.x[0, 2, 31].numpy() == raw[b"data"][0, -32:]).all()
    assert data.y[:6].tolist() == raw[b"labels" if count == 10 else b"fine_labels"]
    assert data.mean[0] == pytest.approx(0.4914 if count == 10 else 0.5071)


def test_cifar_from_its_archive(tmp_path: Path) -> None:
    root = cifar(tmp_path / "a")
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(root, "cifar-10-batches-py")
    a, b = load("cifar10", str(tmp_path / "cifar.tar.gz")), load("cifar10", str(root))
    assert torch.equal(a.x, b.x)
    assert (a.y == b.y).all()


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_a_batch_that_names_a_function_is_refused_before_it_runs(tmp_path: Path) -> None:
    root = cifar(tmp_path)
    (root / "data_batch_2").write_bytes(pickle.dumps({b"data": Hostile(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=r"data_batch_2: expected a pickle of plain data and arrays"):
        load("cifar10", str(root))
    assert not (tmp_path / "ran").exists()


def test_what_is_wrong_with_a_folder_of_cifar(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data: expected a folder or"):
        load("cifar10", str(tmp_path / "none"))
    root = cifar(tmp_path)
    bad = np.zeros((6, 100), np.uint8)
    (root / "data_batch_3").write_bytes(python2({"data": bad, "labels": [0] * 6}))
    with pytest.raises(ValueError, match=r"data_batch_3: data: expected uint8 \[N, 3072\], got \(6, 100\)"):
        load("cifar10", str(root))
    (root / "data_batch_3").write_bytes(python2({"data": np.zeros((6, 3072), np.uint8), "labels": [10] * 6}))
    with pytest.raises(ValueError, match=r"expected classes in 0\.\.9, got 10 at row 0"):
        load("cifar10", str(root))
    (root / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="data: expected data_batch_3"):
        load("cifar10", str(root))
    with pytest.raises(ValueError, match="data: expected where the files of cifar10 are"):
        load("cifar10")


def test_digits_are_parted_by_the_seed() -> None:
    a, b, c = load("digits", seed=0), load("digits", seed=0), load("digits", seed=1)
    assert (len(a.y), len(a.y_test), a.x.shape[1]) == (1000, 797, 64)
    assert torch.equal(a.x, b.x)
    assert not torch.equal(a.x, c.x)
    rows = torch.cat([a.x, a.x_test])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, torch.cat([c.x, c.x_test]).tolist()))
    assert 0 <= float(a.x.min()) < float(a.x.max()) == 1


def arrays(path: Path, **changed: Any) -> Path:
    g = np.random.default_rng(0)
    made: dict[str, Any] = {
        "x": g.random((12, 5)).astype(np.float32), "y": g.integers(0, 3, 12),
        "x_test": g.random((4, 5)).astype(np.float32), "y_test": np.array([0, 1, 2, 0]),
    }  # fmt: skip
    np.savez(path, **{k: v for k, v in (made | changed).items() if v is not None})
    return path


def test_arrays(tmp_path: Path) -> None:
    path = arrays(tmp_path / "a.npz", y_true=np.zeros(12, int), classes=np.array(["a", "b", "c"]))
    data = load("arrays", str(path))
    assert (data.shape, data.classes) == ((5,), ("a", "b", "c"))
    assert data.true_y is not None
    pictures = np.arange(12 * 8 * 8 * 3, dtype=np.uint8).reshape(12, 8, 8, 3)
    data = load("arrays", str(arrays(tmp_path / "b.npz", x=pictures, x_test=pictures[:4])))
    assert data.shape == (3, 8, 8)
    assert (data.x[5, 1].numpy() == pictures[5, :, :, 1]).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": None}, "expected an array 'y'"),
        ({"y": np.zeros(11, int)}, "y: expected 12 labels, one a row, got 11"),
        ({"y": np.full(12, -1)}, r"y: expected classes in 0\.\.2, got -1 at row 0"),
        (
            {"x": np.full((12, 5), np.nan, np.float32)},
            "x: expected finite values, got NaN or infinity in",
        ),
        ({"x_test": np.zeros((4, 6), np.float32)}, r"x_test: expected rows of shape \(5,\), got \(6,\)"),
        ({"y_true": np.zeros(3, int)}, "true_y: expected 12 labels, got 3"),
        ({"x": np.zeros((0, 5), np.float32), "y": np.zeros(0, int)}, "x: expected rows to train and to test"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("arrays", str(arrays(tmp_path / "a.npz", **changed)))


def test_an_npz_of_objects_is_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([Hostile(tmp_path / "ran")], object))
    with pytest.raises(ValueError, match=r"expected an \.npz file of arrays"):
        load("arrays", str(tmp_path / "a.npz"))
    assert not (tmp_path / "ran").exists()


def test_folders_of_pictures(tmp_path: Path) -> None:
    from PIL import Image

    g = np.random.default_rng(0)
    for part, count in (("train", 3), ("test", 2)):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                picture = np.full((20, 30, 3), 100 * k + 10, np.uint8) + g.integers(
                    0, 5, (20, 30, 3), np.uint8
                )
                Image.fromarray(picture).save(tmp_path / part / name / f"{i}.png")
    data = load("images", str(tmp_path), side=16)
    assert data.x.shape == (6, 3, 16, 16)
    assert data.classes == ("cat", "dog")
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert float(data.x[3:].float().mean()) == pytest.approx(112, abs=2)
    with pytest.raises(ValueError, match="data: expected a part `test` or `val`"):
        load("images", str(tmp_path / "train"))


def pictures(n: int = 3) -> Labelled:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 8, 8), generator=g, dtype=torch.uint8)
    y = np.zeros(n, int)
    return Labelled("pictures", x, y, x[:1], y[:1], ("a", "b"), None, (0.5,) * 3, (0.2,) * 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file({k: v.contiguous() for k, v in build("resnet18", 7).state_dict().items()}, path)
    return path


def test_features_are_kept_by_the_hash_of_data_and_weights(tmp_path: Path, weights: Path) -> None:
    data = pictures()
    found = features_of(data, "resnet18", weights=str(weights), cache=tmp_path)
    assert found.shape == (3, 512)
    (kept,) = tmp_path.glob("*.npy")
    assert (features_of(data, "resnet18", weights=str(weights), cache=tmp_path) == found).all()
    # each image for itself: evaluation mode
    one = features_of(data.rows(np.array([1])), "resnet18", weights=str(weights))
    np.testing.assert_allclose(one[0], found[1], rtol=1e-4, atol=1e-5)
    # as the published code runs it, an image's features depend on its batch
    published = features_of(data, "resnet18", weights=str(weights), cache=tmp_path, compat="reference")
    alone = features_of(data.rows(np.array([1, 1])), "resnet18", weights=str(weights), compat="reference")
    assert np.abs(published[1] - alone[0]).max() > 1e-2
    assert len(list(tmp_path.glob("*.npy"))) == 2
    # a kept file of other data is refused
    with pytest.raises(ValueError, match="expected features of these data"):
        load_features(kept, pictures(3).rows(np.array([2, 1, 0])))


def test_features_that_are_refused(tmp_path: Path, weights: Path) -> None:
    data = pictures()
    with pytest.raises(ValueError, match="extractor_weights: expected the"):
        features_of(data, "resnet18")
    with pytest.raises(FileNotFoundError, match="extractor_weights: expected a file"):
        features_of(data, "resnet18", weights=str(tmp_path / "none.safetensors"))
    np.save(tmp_path / "f.npy", np.zeros((4, 8), np.float32))
    with pytest.raises(ValueError, match=r"expected numbers \[3, d\], one row a sample, got \(4, 8\)"):
        features_of(data, "pixels", file=str(tmp_path / "f.npy"))
    np.savez(tmp_path / "f.npz", features=np.zeros((3, 8), np.float32), data_sha256="0" * 64)
    with pytest.raises(ValueError, match="expected features of these data"):
        features_of(data, "pixels", file=str(tmp_path / "f.npz"))
    bad = np.zeros((3, 8), np.float32)
    bad[2, 1] = np.inf
    np.save(tmp_path / "g.npy", bad)
    with pytest.raises(ValueError, match="NaN or infinity in row 2"):
        features_of(data, "pixels", file=str(tmp_path / "g.npy"))
    digits = load("digits")
    with pytest.raises(ValueError, match="extractor: expected pixels, for rows that are no uint8 images"):
        features_of(digits, "resnet18", weights=str(weights))
    save_features(tmp_path / "h.npy", bad[:, 2:4], "key", data.fingerprint(), "resnet18")
    with pytest.raises(ValueError, match="expected features with the key other"):
        load_features(tmp_path / "h.npy", data, "other")


def test_pixels_are_scaled() -> None:
    data = pictures()
    found = features_of(data, "pixels")
    np.testing.assert_allclose(found, data.x.flatten(1).numpy() / 255, rtol=1e-6)


def test_old_pickles_hold_what_this_test_thinks(tmp_path: Path) -> None:
    """The helper above does write the names that Python 2 and NumPy 1 wrote."""
    text = python2({"data": np.zeros((1, 3072), np.uint8)})
    assert b"numpy.core.multiarray" in text
    assert b"numpy._core" not in text
    assert isinstance(pickle.load(io.BytesIO(text), encoding="bytes"), dict)
