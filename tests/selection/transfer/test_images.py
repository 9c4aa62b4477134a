"""Image sets: folders, arrays, FFCV files; crops; what is random depends on the image alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
from PIL import Image

from tenfold.selection.transfer import beton
from tenfold.selection.transfer.augment import View, centre_box, random_box
from tenfold.selection.transfer.images import Images, load_images


def pictures(count: int = 7, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (5 + i, 9 - i % 3, 3), dtype=np.uint8) for i in range(count)]


def make(count: int = 7) -> Images:
    made = pictures(count)
    labels = torch.arange(count) % 3
    return Images(labels, ("a", "b", "c"), lambda i: made[i], identifiers=torch.arange(count) * 10)


def test_a_folder_per_class_in_the_order_of_names(tmp_path: Path) -> None:
    made = pictures(4)
    for name, k in (("zebra/b", 2), ("ant/deep/x", 0), ("zebra/a", 1)):
        path = tmp_path / "train" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made[k]).save(path)
    Image.fromarray(made[3]).convert("L").save(tmp_path / "train" / "ant" / "grey.png")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no picture")
    images = load_images(tmp_path)
    assert images.classes == ("ant", "zebra")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.read is not None
    np.testing.assert_array_equal(images.read(0), made[0])
    assert images.read(1).shape == (*made[3].shape[:2], 3)
    np.testing.assert_array_equal(images.read(2), made[1])
    with pytest.raises(ValueError, match="expected a folder val"):
        load_images(tmp_path, "val")
    (tmp_path / "train" / "zebra" / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected a picture"):
        images.read(2)


def test_arrays(tmp_path: Path) -> None:
    x = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)
    np.savez(
        tmp_path / "a.npz", images=x, labels=[1, 0, 2, 1], classes=["x", "y", "z"], identifiers=[5, 6, 7, 8]
    )
    images = load_images(tmp_path / "a.npz")
    assert images.classes == ("x", "y", "z")
    assert images.read is not None
    np.testing.assert_array_equal(images.read(2), np.repeat(x[2][:, :, None], 3, 2))
    picked = images.with_identifiers([8, 5])
    assert picked.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(picked.read(1), images.read(0))  # type: ignore[misc]
    with pytest.raises(ValueError, match="indices: expected identifiers of a, got 9"):
        images.with_identifiers([9])
    np.savez(tmp_path / "b.npz", images=x, labels=[1, 0, 2])
    with pytest.raises(ValueError, match=r"labels: expected 4, one per image, got 3"):
        load_images(tmp_path / "b.npz")


@pytest.mark.parametrize("jpeg", [0.0, 0.5, 1.0])
def test_beton_round_trip(tmp_path: Path, jpeg: float) -> None:
    images = make(9)
    beton.write_beton(tmp_path / "a.beton", images, jpeg=jpeg, page_size=1 << 21, quality=95)
    again = load_images(tmp_path / "a.beton")
    assert again.labels.tolist() == images.labels.tolist()
    assert again.identifiers.tolist() == images.identifiers.tolist()
    assert again.read is not None
    assert images.read is not None
    samples, table = beton.read_fields(tmp_path / "a.beton")
    modes = samples["image"]["mode"]
    assert (modes == beton.JPEG).all() if jpeg == 1 else (modes == beton.RAW).any()
    for i in range(9):
        if modes[i] == beton.RAW:
            np.testing.assert_array_equal(again.read(i), images.read(i))
        else:
            stream = io.BytesIO()
            Image.fromarray(images.read(i)).save(stream, "JPEG", quality=95)
            np.testing.assert_array_equal(again.read(i), np.asarray(Image.open(stream)))
    assert len(table) == 9


def test_beton_has_the_published_layout(tmp_path: Path) -> None:
    """Byte for byte where FFCV 1.0 would look for things: written here by hand, from its format."""
    import struct

    image = np.arange(2 * 3 * 3, dtype=np.uint8)
    page = 1 << 21
    header = struct.pack("<HHIQQ", 2, 3, page, 1, 2 * page)
    fields = b"".join(
        struct.pack("<B16s1024s", kind, name, b"")
        for kind, name in ((2, b"image"), (1, b"label"), (1, b"identifier"))
    )
    # a C structure: 13 packed bytes of the image, then two int64 on multiples of 8
    sample = struct.pack("<BHHQ", 1, 3, 2, page) + bytes(3) + struct.pack("<qq", 4, 77)
    assert len(header) == 24
    assert len(fields) == 3 * 1041
    assert len(sample) == 32
    start = header + fields + sample
    data = start + bytes(page - len(start)) + image.tobytes()
    data += bytes(2 * page - len(data)) + struct.pack("<QQQ", 0, page, image.nbytes)
    (tmp_path / "a.beton").write_bytes(data)
    images = load_images(tmp_path / "a.beton")
    assert images.labels.tolist() == [4]
    assert images.identifiers.tolist() == [77]
    assert images.read is not None
    np.testing.assert_array_equal(images.read(0).reshape(-1), image)
    beton.write_beton(tmp_path / "b.beton", images, page_size=page)
    assert (tmp_path / "b.beton").read_bytes() == data


def test_beton_pages_hold_whole_samples(tmp_path: Path) -> None:
    big = np.zeros((500, 500, 3), np.uint8)  # 750,000 bytes: two in a page of 2 MiB
    images = Images(torch.zeros(5, dtype=torch.int64), ("a",), lambda i: big)
    beton.write_beton(tmp_path / "a.beton", images, page_size=1 << 21)
    _, table = beton.read_fields(tmp_path / "a.beton")
    first, last = table["place"] >> 21, (table["place"] + table["size"] - 1) >> 21
    assert (first == last).all()
    assert first.tolist() == [1, 1, 2, 2, 3]
    beton.write_beton(tmp_path / "b.beton", images, max_resolution=100)
    assert load_images(tmp_path / "b.beton").read(4).shape == (100, 100, 3)  # type: ignore[misc]


def test_broken_beton(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    beton.write_beton(path, make(3), page_size=1 << 21)
    data = path.read_bytes()
    path.write_bytes(b"\1\0" + data[2:])
    with pytest.raises(ValueError, match=r"expected .beton version 2, got version 1"):
        load_images(path)
    path.write_bytes(data[:100])
    with pytest.raises(ValueError, match=r"expected a whole .beton file"):
        load_images(path)
    path.write_bytes(data[:24] + b"\5" + data[25:])
    with pytest.raises(ValueError, match="field 'image': expected a number or an RGB image, got kind 5"):
        load_images(path)
    with pytest.raises(ValueError, match="page_size: expected a power of two"):
        beton.write_beton(path, make(3), page_size=(1 << 21) + 1)


def test_crops() -> None:
    assert centre_box(10, 20, 1.0) == (0, 5, 10, 10)
    assert centre_box(256, 256, 224 / 256) == (16, 16, 224, 224)
    generator = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        top, left, h, w = random_box(80, 100, generator)
        assert 0 <= top <= 80 - h
        assert 0 <= left <= 100 - w
        assert 0.7 < w / h < 1.42
        areas.append(h * w / 8000)
    assert min(areas) < 0.15
    assert max(areas) > 0.85
    assert random_box(10, 1000, generator)[2:] == (10, 13)  # no part of at least 8 % fits: the central one


def test_what_is_random_depends_on_the_image_alone() -> None:
    images = make(6)
    view = View(8, "random", flip=0.5)
    whole = {
        int(i): x
        for xs, _, at in images.batches(view, 4, seed=3, epoch=1)
        for x, i in zip(xs, at, strict=True)
    }
    order = torch.tensor([5, 2, 0])
    for xs, labels, at in images.batches(view, 1, order=order, seed=3, epoch=1):
        assert torch.equal(xs[0], whole[int(at)])
        assert int(labels) == int(images.labels[at])
    other = next(iter(images.batches(view, 6, seed=3, epoch=2)))[0]
    assert not torch.equal(other[0], whole[0])


def test_normalisation() -> None:
    grey = np.full((4, 4, 3), 51, np.uint8)
    x = View(4).of_picture(grey, 0, 0, 0)
    expected = [(0.2 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    np.testing.assert_allclose(x[:, 0, 0], expected, rtol=1e-5)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="labels: expected classes 0 to 1, got 2"):
        Images(torch.tensor([0, 2]), ("a", "b"), lambda i: np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match="read and pixels: expected one of both"):
        Images(torch.tensor([0]), ("a",))
    with pytest.raises(ValueError, match="labels: expected 2, one for each image, got 1"):
        Images(torch.tensor([0]), ("a",), pixels=torch.zeros(2, 1, 4, 4))
    with pytest.raises(FileNotFoundError, match="expected a folder or file"):
        load_images(tmp_path / "nothing")
    with pytest.raises(ValueError, match="positions 0 to 6, got 7"):
        make(7).subset([7])
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"expected an .npz file of arrays"):
        load_images(tmp_path / "a.npz")
