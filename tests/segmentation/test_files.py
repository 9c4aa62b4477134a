"""Reading and writing volumes, beside SimpleITK and nibabel where these are installed."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from tenfold.segmentation import files, streams
from tenfold.segmentation.files import (
    Place,
    compare,
    read_header,
    read_labels,
    read_mask,
    read_masks,
    read_volume,
    reoriented,
    write_mha,
    write_nifti,
)


def volume(dtype: str = "u1") -> NDArray[Any]:
    found = np.zeros((7, 9, 11), dtype)
    found[2:5, 3:6, 4:9] = np.random.default_rng(0).integers(0, 55, (3, 3, 5))
    return found


def turned() -> files.Header:
    angle = 0.3
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] = affine[:3, :3] @ np.diag([0.5, 0.75, 3.0])
    affine[:3, 3] = (1.0, -2.0, 30.5)
    return files.Header((7, 9, 11), (3.0, 0.75, 0.5), tuple(tuple(map(float, row)) for row in affine))


@pytest.fixture(params=["isal", "zlib"])
def inflater(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "isal":
        pytest.importorskip("isal")
    else:
        import zlib

        monkeypatch.setattr(streams, "inflater", lambda: zlib)


@pytest.mark.usefixtures("inflater")
@pytest.mark.parametrize("ending", ["nii.gz", "nii", "mha"])
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "mha":
        write_mha(path, [volume()], turned())
    else:
        write_nifti(path, volume(), turned())
    found = read_labels(path)
    np.testing.assert_array_equal(found.array, volume())
    assert found.header.spacing == (3.0, 0.75, 0.5)
    np.testing.assert_allclose(found.header.matrix, turned().matrix, atol=1e-6)
    mask = read_mask(path)
    inside = np.argwhere(volume() != 0)
    assert (*mask.start, *mask.stop) == (*inside.min(0), *inside.max(0) + 1)
    assert mask.count == len(inside)
    np.testing.assert_array_equal(mask.whole(), volume() != 0)
    assert found.sha256 == mask.sha256 == __import__("hashlib").sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", ["nii.gz", "nii", "mha", "mhd"])
def test_files_of_simpleitk(tmp_path: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(volume())
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((1, 2, -3))
    angle = 0.3
    image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"), ending in ("mha", "nii.gz"))
    write_nifti(tmp_path / "b.nii.gz", volume(), read_header(tmp_path / f"a.{ending}"))
    again = sitk.ReadImage(str(tmp_path / "b.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), volume())
    np.testing.assert_allclose(again.GetSpacing(), image.GetSpacing())
    np.testing.assert_allclose(again.GetOrigin(), image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(again.GetDirection(), image.GetDirection(), atol=1e-6)


def test_a_stack_keeps_origin_and_direction_and_is_read_channel_by_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    channels = [volume(), 0 * volume(), (volume() > 30).astype(np.uint8)]
    write_mha(path, iter(channels), turned())
    assert read_header(path).channels == 3
    for found, channel in zip(read_masks(path), channels, strict=True):
        np.testing.assert_array_equal(found.whole(), channel != 0)
    np.testing.assert_allclose(read_header(path).matrix, turned().matrix)
    with pytest.raises(ValueError, match="expected one volume, got 3"):
        read_labels(path)
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), np.stack(channels))
    assert image.GetSpacing() == (0.5, 0.75, 3.0, 1.0)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", ">u2", "i4", ">f4", "f8", "u8", "i8"])
def test_types_and_byte_orders(tmp_path: Path, dtype: str) -> None:
    image = nibabel.Nifti1Image(volume(dtype).transpose(2, 1, 0), np.eye(4), dtype=np.dtype(dtype))
    if dtype.startswith(">"):
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), np.eye(4), image.header.as_byteswapped(">"))
    nibabel.save(image, tmp_path / "a.nii.gz")
    found = read_labels(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.array, volume())
    assert found.array.dtype == np.uint8


def test_scaled_voxels_and_nifti_2(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(volume("i2").transpose(2, 1, 0), np.eye(4))
    image.header.set_slope_inter(2.0, -1024.0)
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    with (tmp_path / "a.nii").open("r+b") as file:
        file.seek(176)
        file.write(np.array([2.0, -1024.0], "<f8").tobytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").array, volume("f8") * 2 - 1024)
    with pytest.raises(ValueError, match=r"a\.nii: expected values >= 0, got -1024"):
        read_mask(tmp_path / "a.nii")


def test_a_member_of_an_archive(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", volume(), turned())
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a.nii.gz", "results/case/a.nii.gz")
    place = Place(tmp_path / "z.zip", "results/case/a.nii.gz")
    np.testing.assert_array_equal(read_labels(place).array, volume())
    assert str(place).endswith("z.zip:results/case/a.nii.gz")
    assert place.name == "a.nii.gz"


def test_several_gzip_members_and_padding(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", volume(), turned())
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(raw[:400]) + gzip.compress(raw[400:]) + bytes(10))
    np.testing.assert_array_equal(read_labels(tmp_path / "b.nii.gz").array, volume())


@pytest.mark.usefixtures("inflater")
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, volume(), turned())
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(
        ValueError, match=r"a\.nii\.gz: expected a whole compressed file, got one that is cut off"
    ):
        read_mask(path)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_nifti(path, volume(), turned())
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.nii\.gz: expected"):
        read_mask(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "whole numbers, got 0.5"), (np.nan, "finite values, got nan"), (np.inf, "finite values, got inf"),
     (-3, "values >= 0, got -3")],
)  # fmt: skip
def test_voxels_that_are_no_labels(tmp_path: Path, value: float, said: str) -> None:
    array = volume("f4")
    array[3, 4, 5] = value
    write_nifti(tmp_path / "a.nii.gz", array, turned())
    for read in (read_mask, read_labels):
        with pytest.raises(ValueError, match=rf"a\.nii\.gz: expected {said}"):
            read(tmp_path / "a.nii.gz")


def test_two_dimensions_wrong_spacing_and_unknown_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nibabel.Nifti1Image(volume()[0].T, np.eye(4)).to_bytes())
    with pytest.raises(ValueError, match=r"a\.nii: expected a 3-D volume .* got 2-D \(11, 9\)"):
        read_mask(tmp_path / "a.nii")
    for spacing in (0.0, -1.0, np.nan):
        write_nifti(tmp_path / "b.nii", volume(), turned())
        raw = bytearray((tmp_path / "b.nii").read_bytes())
        raw[80:84] = np.float32(spacing).tobytes()
        (tmp_path / "b.nii").write_bytes(raw)
        with pytest.raises(ValueError, match=r"b\.nii: expected spacing > 0"):
            read_mask(tmp_path / "b.nii")
    (tmp_path / "c.nrrd").write_bytes(b"NRRD0004\n")
    with pytest.raises(ValueError, match=r"expected a file ending in \.nii\.gz, \.nii, \.mha, \.mhd"):
        read_mask(tmp_path / "c.nrrd")
    (tmp_path / "d.nii").write_bytes(bytes(400))
    with pytest.raises(ValueError, match="expected a NIfTI header"):
        read_mask(tmp_path / "d.nii")
    (tmp_path / "e.mha").write_bytes(b"NDims = 3\nDimSize = 2 2 2\nElementDataFile = LOCAL\n")
    with pytest.raises(ValueError, match="expected a MetaImage header, got one without 'ElementType'"):
        read_mask(tmp_path / "e.mha")


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR", "SAL"])
def test_reorienting(tmp_path: Path, order: str) -> None:
    write_nifti(tmp_path / "a.nii.gz", volume(), turned())
    image = nibabel.load(tmp_path / "a.nii.gz")
    codes = nibabel.orientations.axcodes2ornt(order)
    change = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), codes)
    nibabel.save(image.as_reoriented(change), tmp_path / "b.nii.gz")
    other = read_labels(tmp_path / "b.nii.gz")
    target = read_header(tmp_path / "a.nii.gz")
    array, header = reoriented(other.array, other.header, target)
    np.testing.assert_array_equal(array, volume())
    assert compare(target, header) == ([], [])


def test_comparing_geometry() -> None:
    from dataclasses import replace

    here = turned()
    assert compare(here, here) == ([], [])
    errors, _ = compare(here, replace(here, shape=(7, 9, 12), spacing=(3.023, 0.75, 0.5)))
    assert errors == ["expected shape (7, 9, 11) (z, y, x), got (7, 9, 12)",
                      "expected spacing (3, 0.75, 0.5) mm (z, y, x), got (3.023, 0.75, 0.5)"]  # fmt: skip
    moved = here.matrix
    moved[0, 3] = 0
    moved[:3, :3] = np.diag([0.5, 0.75, 3])
    errors, odd = compare(here, replace(here, affine=tuple(tuple(map(float, row)) for row in moved)))
    assert errors == []
    assert odd == ["origin (0, -2, 30.5) instead of (1, -2, 30.5)", "axes in another direction"]
