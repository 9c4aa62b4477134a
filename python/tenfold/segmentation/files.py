"""Volumes in NIfTI and MetaImage files, read slice by slice: geometry, masks, label maps, 4-D stacks.

Arrays are indexed (z, y, x), spacing is in mm in the same order, as SimpleITK gives them. Affines map voxel
indices (x, y, z) to millimetres towards right, anterior and superior, as nibabel gives them. Headers of NIfTI
files are read by nibabel, MetaImage headers (MHA, MHD) here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.runs.files import replacing
from tenfold.segmentation.crops import Crop, joined, piece_of
from tenfold.segmentation.streams import PIECE, Place, Stream

__all__ = [
    "Crop", "Header", "Place", "Volume", "compare", "read_header", "read_labels", "read_mask", "read_masks",
    "read_volume", "reoriented", "upright", "write_mha", "write_nifti",
]  # fmt: skip

ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd")
"""File names that are understood, the longest ending first."""

_MET = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_MET_NAMES = {
    "int8": "MET_CHAR", "uint8": "MET_UCHAR", "int16": "MET_SHORT", "uint16": "MET_USHORT",
    "int32": "MET_INT", "uint32": "MET_UINT", "int64": "MET_LONG_LONG", "uint64": "MET_ULONG_LONG",
    "float32": "MET_FLOAT",
    "float64": "MET_DOUBLE",
}  # fmt: skip


_LPS = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Header:
    """Where the voxels of a volume lie, and how they are stored."""

    shape: tuple[int, int, int]
    """Slices, rows, columns: (z, y, x)."""
    spacing: tuple[float, float, float]
    """Distance of voxel centres in mm, (z, y, x)."""
    affine: tuple[tuple[float, ...], ...]
    """4 x 4, voxel index (x, y, z, 1) to mm (right, anterior, superior, 1)."""
    channels: int = 1
    """Volumes behind each other in a 4-D file."""
    dtype: str = "u1"
    """NumPy's name of the stored type, with its byte order."""
    slope: float = 1.0
    """A stored value times `slope` plus `inter` is the value."""
    inter: float = 0.0

    @property
    def matrix(self) -> NDArray[np.float64]:
        """`affine` as an array."""
        return np.array(self.affine, float)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(np.prod(self.spacing)) / 1000.0

    @property
    def scaled(self) -> bool:
        """Whether stored values are not the values themselves."""
        return self.slope != 1.0 or self.inter != 0.0


@dataclass
class Volume:
    """An array (z, y, x) and where it lies."""

    array: NDArray[Any]
    header: Header
    sha256: str = ""
    """Of the file as it is stored."""


def read_header(place: Place | str | Path) -> Header:
    """The header alone. ValueError names the file if it is damaged or of an unknown kind."""
    with Stream(_place(place)) as stream:
        return _open(stream)[0]


def read_mask(place: Place | str | Path) -> Crop:
    """A mask: every voxel that is not 0 belongs to it.

    Raises ValueError, naming the file: damaged, not 3-D, values that are negative, fractional or not finite.
    """
    masks = list(read_masks(place))
    if len(masks) != 1:
        raise ValueError(f"{place}: expected one volume, got {len(masks)}")
    return masks[0]


def read_masks(place: Place | str | Path) -> Iterator[Crop]:
    """The masks of a 4-D file, one channel after the other; nothing but the current one is kept."""
    with Stream(_place(place)) as stream:
        header, stream = _open(stream)
        for channel in range(header.channels):
            pieces = []
            for first, values in _slabs(stream, header, skip_zeros=True):
                piece = None if values is None else piece_of(_checked(stream.place, values), first)
                if piece is not None:
                    pieces.append(piece)
            digest = stream.finish() if channel == header.channels - 1 else ""
            yield joined(pieces, header, digest)


def read_labels(place: Place | str | Path) -> Volume:
    """A label map in the smallest of uint8, int16, int32 that holds its labels; errors as in `read_mask`."""
    return _read(place, _labels)


def read_volume(place: Place | str | Path) -> Volume:
    """An image, scaled as its header says; integers without scaling keep their type, the rest is float32."""
    return _read(place, lambda _, values: values)


def _read(place: Place | str | Path, convert: Any) -> Volume:
    with Stream(_place(place)) as stream:
        header, stream = _open(stream)
        if header.channels != 1:
            raise ValueError(f"{stream.place}: expected one volume, got {header.channels}")
        parts = [convert(stream.place, values) for _, values in _slabs(stream, header)]
        kind = np.result_type(*parts) if parts else np.uint8
        array = np.empty(header.shape, kind)
        at = 0
        while parts:
            part = parts.pop(0)
            array[at : at + len(part)] = part
            at += len(part)
        return Volume(array, header, stream.finish())


def _labels(place: Place, values: NDArray[Any]) -> NDArray[Any]:
    values = _checked(place, values)
    top = values.max(initial=0)
    if top >= 2**31:
        raise ValueError(f"{place}: expected labels below 2^31, got {top}")
    return values.astype(np.uint8 if top < 256 else np.int16 if top < 2**15 else np.int32, copy=False)


def _checked(place: Place, values: NDArray[Any]) -> NDArray[Any]:
    """The values, if they are whole numbers >= 0."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError(f"{place}: expected finite values, got {values[~np.isfinite(values)][0]}")
        if (values != np.floor(values)).any():
            got = values[values != np.floor(values)][0]
            raise ValueError(f"{place}: expected whole numbers, got {got:g}")
    if values.dtype.kind in "fi" and values.size and (low := values.min()) < 0:
        raise ValueError(f"{place}: expected values >= 0, got {low:g}")
    return values


@lru_cache(maxsize=4)
def _zeros(count: int) -> bytes:
    return bytes(count)


def _slabs(stream: Stream, header: Header, *, skip_zeros: bool = False) -> Iterator[tuple[int, Any]]:
    """(first slice, values) of slabs of about a megabyte, or None as values where all is 0."""
    depth, rows, columns = header.shape
    kind = np.dtype(header.dtype)
    size = rows * columns * kind.itemsize
    step = max(1, PIECE // max(size, 1))
    for first in range(0, depth, step):
        here = min(step, depth - first)
        data = stream.read(here * size)
        if skip_zeros and not header.inter and data == _zeros(len(data)):
            yield first, None
            continue
        values = np.frombuffer(data, kind).reshape(here, rows, columns)
        if header.scaled:
            values = values * header.slope + header.inter
        elif not kind.isnative:
            values = values.astype(kind.newbyteorder("="))
        yield first, values


def _place(place: Place | str | Path) -> Place:
    return place if isinstance(place, Place) else Place(Path(place))


def ending(name: str) -> str:
    """The ending of a volume's file name ('.nii.gz'), or an empty string if it is none."""
    return next((end for end in ENDINGS if name.lower().endswith(end)), "")


def _open(stream: Stream) -> tuple[Header, Stream]:
    """Read the header; the stream stands at the first voxel then (for MHD it is another one)."""
    end = ending(stream.place.name)
    if end == ".nii.gz":
        stream.inflate(31)
    if end in (".nii", ".nii.gz"):
        return _open_nifti(stream), stream
    if end in (".mha", ".mhd"):
        try:
            return _open_meta(stream)
        except (ValueError, OverflowError) as error:  # numbers that are none, names that cannot be
            if str(error).startswith(str(stream.place)):
                raise
            raise ValueError(
                f"{stream.place}: expected a MetaImage header, got a damaged one ({error})"
            ) from error
    raise ValueError(
        f"{stream.place}: expected a file ending in {', '.join(ENDINGS)}, got {stream.place.name!r}"
    )


def _open_nifti(stream: Stream) -> Header:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    start = stream.read(4)
    sizes = struct.unpack("<i", start)[0], struct.unpack(">i", start)[0]
    kind: Any = Nifti1Header if 348 in sizes else Nifti2Header if 540 in sizes else None
    if kind is None:
        raise ValueError(f"{stream.place}: expected a NIfTI header, got something else")
    block = start + stream.read(kind.template_dtype.itemsize - 4)
    try:
        found = kind(block, check=False)
        shape = tuple(int(n) for n in found.get_data_shape())
        dtype = found.get_data_dtype()
        affine = np.asarray(found.get_best_affine(), float)
        slope, inter = found.get_slope_inter()
        offset = int(found.get_data_offset())
    except (HeaderDataError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{stream.place}: expected a NIfTI header, got a damaged one ({error})") from error
    if offset < len(block):
        raise ValueError(f"{stream.place}: expected voxels behind the header, got offset {offset}")
    stream.read(offset - len(block))
    spacing = tuple(float(n) for n in found["pixdim"][1:4])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return _header(
        stream.place, shape, spacing, affine, dtype, slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
    )  # fmt: skip


def _open_meta(stream: Stream) -> tuple[Header, Stream]:
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields:
        line = stream.line().decode("latin-1")
        key, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"{stream.place}: expected a MetaImage header, got {line[:40]!r}")
        fields[key.strip()] = value.strip()
    try:
        header = _meta_header(stream.place, fields)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{stream.place}: expected a MetaImage header, got one without {error}") from error
    if fields["ElementDataFile"] != "LOCAL":
        if stream.place.member:
            raise ValueError(f"{stream.place}: expected an MHA file in an archive, got MHD")
        stream = Stream(Place(stream.place.path.with_name(fields["ElementDataFile"])))
    if fields.get("CompressedData", "False").lower() == "true":
        stream.inflate(15)
    return header, stream


def _meta_header(place: Place, fields: dict[str, str]) -> Header:
    count = int(fields["NDims"])
    if not 1 <= count <= 8:
        raise ValueError(f"{place}: expected 3 or 4 axes, got {count}")
    size = [int(n) for n in fields["DimSize"].split()]
    spacing = [float(n) for n in fields.get("ElementSpacing", "1 " * count).split()]
    origin = [float(n) for n in fields.get("Offset", fields.get("Position", "0 " * count)).split()]
    axes = np.array([float(n) for n in fields.get("TransformMatrix", "").split()] or np.eye(count).ravel())
    if not len(size) == len(spacing) == len(origin) == count or axes.size != count * count:
        raise ValueError(f"{place}: expected {count} numbers for each axis, got {fields}")
    if int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise ValueError(f"{place}: expected channels as the fourth axis, got vectors as voxels")
    affine = np.eye(4)
    if count >= 3:
        direction = axes.reshape(count, count)[:3, :3].T  # a row for each axis, in LPS
        affine[:3, :3] = np.diag([-1, -1, 1]) @ direction @ np.diag(spacing[:3])
        affine[:3, 3] = np.diag([-1, -1, 1]) @ np.array(origin[:3])
    order = (
        ">"
        if fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "")).lower() == "true"
        else "<"
    )
    if fields["ElementType"] not in _MET:
        raise ValueError(f"{place}: expected one of {', '.join(_MET)}, got {fields['ElementType']}")
    kind = np.dtype(order + _MET[fields["ElementType"]])
    return _header(place, tuple(size), tuple(spacing[:3]), affine, kind)


def _header(
    place: Place, shape: tuple[int, ...], spacing: tuple[float, ...], affine: NDArray[np.float64], dtype: Any,
    slope: float = 1.0, inter: float = 0.0,
) -> Header:  # fmt: skip
    """`shape` and `spacing` as stored (x, y, z[, channel])."""
    if len(shape) not in (3, 4):
        raise ValueError(
            f"{place}: expected a 3-D volume (or a 4-D stack of them), got {len(shape)}-D {shape}"
        )
    if min(shape) < 1:
        raise ValueError(f"{place}: expected sizes > 0, got {shape}")
    if not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise ValueError(f"{place}: expected spacing > 0 on each axis, got {spacing}")
    if np.dtype(dtype).kind not in "uif":
        raise ValueError(f"{place}: expected numbers as voxels, got {dtype}")
    if not np.isfinite(affine).all():
        raise ValueError(f"{place}: expected a finite orientation, got NaN or infinity")
    z, y, x = shape[2::-1]
    back = spacing[2::-1]
    return Header(
        (z, y, x), (back[0], back[1], back[2]), tuple(tuple(float(v) for v in row) for row in affine),
        shape[3] if len(shape) == 4 else 1, np.dtype(dtype).str, slope, inter,
    )  # fmt: skip


def compare(target: Header, other: Header, tolerance: float = 1e-3) -> tuple[list[str], list[str]]:
    """(what makes `other` impossible to lay over `target`, what is merely odd), in words.

    Shape and spacing must agree; origin and direction may differ, since writers of 4-D stacks lose them.
    """
    errors, odd = [], []
    if target.shape != other.shape:
        errors.append(f"expected shape {target.shape} (z, y, x), got {other.shape}")
    if np.abs(np.subtract(target.spacing, other.spacing)).max() > tolerance:
        errors.append(
            f"expected spacing {_numbers(target.spacing)} mm (z, y, x), got {_numbers(other.spacing)}"
        )
    mine, theirs = target.matrix, other.matrix
    if np.abs(mine[:3, 3] - theirs[:3, 3]).max() > tolerance:
        odd.append(f"origin {_numbers(theirs[:3, 3])} instead of {_numbers(mine[:3, 3])}")
    if np.abs(_direction(mine) - _direction(theirs)).max() > tolerance:
        odd.append("axes in another direction")
    return errors, odd


def _direction(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    columns = affine[:3, :3]
    return columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)


def _numbers(values: Any) -> str:
    return "(" + ", ".join(f"{float(v):.6g}" for v in values) + ")"


def reoriented(array: NDArray[Any], header: Header, target: Header) -> tuple[NDArray[Any], Header]:
    """`array` with its axes flipped and exchanged to run as those of `target`; nothing is resampled."""
    from nibabel.orientations import inv_ornt_aff, io_orientation, ornt_transform

    move = ornt_transform(io_orientation(header.matrix), io_orientation(target.matrix))
    shape = array.shape[::-1]
    affine = header.matrix @ inv_ornt_aff(move, shape)
    stored = array.transpose(2, 1, 0)  # (x, y, z)
    for axis, flip in enumerate(move[:, 1]):
        if flip < 0:
            stored = np.flip(stored, axis)
    where = [int(n) for n in move[:, 0]]  # stored axis -> new axis
    stored = stored.transpose(np.argsort(where))
    spacing = np.array(header.spacing[::-1])[np.argsort(where)][::-1]
    result = np.ascontiguousarray(stored.transpose(2, 1, 0))
    z, y, x = result.shape
    return result, replace(
        header, shape=(z, y, x), spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        affine=tuple(tuple(float(v) for v in row) for row in affine),
    )  # fmt: skip


def upright(array: NDArray[Any], header: Header) -> tuple[NDArray[Any], Header]:
    """`array` as slices are looked at: from the feet up, front on top, the patient's left on the right."""
    return reoriented(array, header, replace(header, affine=_LPS))


def write_nifti(path: Path, array: NDArray[Any], header: Header, level: int = 6) -> None:
    """Write `array` (z, y, x) as .nii or .nii.gz with the geometry of `header`."""
    import gzip

    import nibabel

    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), header.matrix, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    with replacing(Path(path)) as aside:
        aside.write_bytes(gzip.compress(data, level, mtime=0) if str(path).endswith(".gz") else data)


def write_mha(path: Path, channels: Any, header: Header, level: int = 3) -> None:
    """Write arrays (z, y, x), one after the other, as a compressed 4-D MHA (3-D for a single array).

    `channels` may be an iterator: only one array and the compressed bytes are in memory. Origin and direction
    are kept, which the reference's writer loses.
    """
    pack = zlib.compressobj(level)
    parts: list[bytes] = []
    count, kind = 0, None
    for channel in channels:
        if channel.shape != header.shape or (kind is not None and channel.dtype != kind):
            raise ValueError(
                f"channels: expected shape {header.shape} and one type, got {channel.shape} {channel.dtype}"
            )
        count, kind = count + 1, channel.dtype
        parts.append(pack.compress(np.ascontiguousarray(channel).data))
    if kind is None or kind.name not in _MET_NAMES:
        raise ValueError(f"channels: expected at least one array of numbers, got {kind}")
    parts.append(pack.flush())
    dims = 4 if count > 1 else 3
    spacing = header.spacing[::-1]
    lps = np.diag([-1, -1, 1]) @ header.matrix[:3]
    axes = np.eye(dims)
    axes[:3, :3] = (lps[:, :3] / np.array(spacing)).T
    shape = [*header.shape[::-1], count][:dims]
    lines = {
        "ObjectType": "Image", "NDims": dims, "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True", "CompressedDataSize": sum(map(len, parts)),
        "TransformMatrix": _plain(axes.ravel()), "Offset": _plain([*lps[:, 3], 0.0][:dims]),
        "CenterOfRotation": _plain([0] * dims), "ElementSpacing": _plain([*spacing, 1.0][:dims]),
        "DimSize": _plain(shape), "ElementType": _MET_NAMES[kind.name], "ElementDataFile": "LOCAL",
    }  # fmt: skip
    head = "".join(f"{key} = {value}\n" for key, value in lines.items())
    with replacing(Path(path)) as aside, aside.open("wb") as file:
        file.write(head.encode())
        file.writelines(parts)


def _plain(values: Any) -> str:
    return " ".join(f"{float(v):.17g}" for v in values)
