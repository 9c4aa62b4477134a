"""FFCV's file format (.beton, version 2), read and written with NumPy and Pillow; FFCV is not needed.

Layout, little-endian:

    header        24 bytes: version u16, fields u16, page size u32, samples u64, place of the allocations u64
    fields        1,041 bytes each: kind u8, name 16 bytes, arguments 1,024 bytes
    samples       one structure per sample, aligned as C would: a float (f64), an int (i64), an RGB image
                  (mode u8, width u16, height u16, place u64, packed), ...
    pages         from the next multiple of the page size on; what a sample stores lies within one page
    allocations   (sample u64, place u64, size u64) of everything that is stored in pages

Images are stored as raw RGB rows (mode 1) or as JPEG (mode 0).
Format: Leclerc et al., FFCV (arXiv 2306.12517).
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import _checks
from tenfold._reading import reading
from tenfold.runs.files import replacing
from tenfold.selection.transfer.images import Images, as_rgb

__all__ = ["read_beton", "read_fields", "write_beton"]

VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("allocations", "<u8")]
)
FIELD = np.dtype([("kind", "u1"), ("name", "S16"), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample", "<u8"), ("place", "<u8"), ("size", "<u8")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("place", "<u8")])
FLOAT_KIND, INT_KIND, IMAGE_KIND = 0, 1, 2
STORED = {FLOAT_KIND: np.dtype("<f8"), INT_KIND: np.dtype("<i8"), IMAGE_KIND: IMAGE}
JPEG, RAW = 0, 1
MOST_CLASSES = 1 << 20
"""Each gets a name; labels that are not classes would ask for more memory than there is."""
PAGE = 8 << 20
"""FFCV's own default, 4 x 2 MiB."""


def read_fields(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """(one structure per sample with the file's field names, allocation table sorted by place).

    Raises:
        ValueError: no .beton of version 2, cut short, or with a field other than numbers and RGB images.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = _take(file, HEADER, 1, path)[0]
        if header["version"] != VERSION:
            _checks.fail(ValueError, str(path), f".beton version {VERSION}", f"version {header['version']}")
        described = _take(file, FIELD, int(header["fields"]), path)
        columns: list[tuple[str, np.dtype[Any]]] = []
        for one in described:
            name = one["name"].decode("ascii", "replace")
            if int(one["kind"]) not in STORED:
                expected = "a number or an RGB image"
                _checks.fail(ValueError, f"{path}: field {name!r}", expected, f"kind {one['kind']}")
            if name in dict(columns):
                _checks.fail(ValueError, f"{path}: field {name!r}", "different names of fields", "one again")
            columns.append((name, STORED[int(one["kind"])]))
        samples = _take(file, np.dtype(columns, align=True), int(header["samples"]), path)
        place = int(header["allocations"])
        if not 0 < place <= size or (size - place) % ALLOCATION.itemsize:
            _checks.fail(ValueError, str(path), "an allocation table at its end", f"{place} of {size} bytes")
        file.seek(place)
        table = _take(file, ALLOCATION, (size - place) // ALLOCATION.itemsize, path)
    outside = (table["place"] > size) | (table["size"] > size - np.minimum(table["place"], size))
    if outside.any():  # `read` would make room for what the table claims
        got = "place {} and {} bytes".format(*table[["place", "size"]][outside][0].tolist())
        _checks.fail(ValueError, str(path), f"data within the {size} bytes of the file", got)
    return samples, table[np.argsort(table["place"], kind="stable")]


def _take(file: Any, dtype: np.dtype[Any], count: int, path: Path) -> NDArray[Any]:
    left = path.stat().st_size - file.tell()  # `read` would first make room for what the header claims
    if not dtype.itemsize and count:
        _checks.fail(ValueError, str(path), "fields", f"none, of {count} samples")
    if left < dtype.itemsize * count:
        expected = f"a whole .beton file ({dtype.itemsize * count} bytes more)"
        _checks.fail(ValueError, str(path), expected, f"{left}")
    data = file.read(dtype.itemsize * count)
    return np.frombuffer(data, dtype, count)


@dataclass(frozen=True)
class _FromBeton:
    path: str
    images: NDArray[Any]
    places: NDArray[np.uint64]
    sizes: NDArray[np.uint64]

    def __call__(self, i: int) -> NDArray[np.uint8]:
        one = self.images[i]
        k = int(np.searchsorted(self.places, one["place"]))
        if k >= len(self.places) or self.places[k] != one["place"]:
            _checks.fail(ValueError, f"{self.path}: image {i}", "stored data", f"place {one['place']}")
        with open(self.path, "rb") as file:
            file.seek(int(one["place"]))
            data = file.read(int(self.sizes[k]))
        height, width = int(one["height"]), int(one["width"])
        if one["mode"] == JPEG:
            from PIL import Image

            with reading(self.path, f"a picture as image {i}"):
                picture = Image.open(io.BytesIO(data))
                if picture.size != (width, height):  # it may claim any size, and get room for it
                    raise ValueError(f"{picture.size[0]} x {picture.size[1]} pixels for {width} x {height}")
                return np.asarray(picture.convert("RGB"))
        if len(data) != 3 * height * width:
            expected = f"{3 * height * width} bytes"
            _checks.fail(ValueError, f"{self.path}: image {i}", expected, len(data))
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def read_beton(path: str | Path, image: str = "image", label: str = "label") -> Images:
    """Images of a .beton file with the fields `image`, `label` and, if it has one, `identifier`."""
    path = Path(path)
    samples, table = read_fields(path)
    names = samples.dtype.names or ()
    for name, dtype in ((image, IMAGE), (label, STORED[INT_KIND])):
        if name not in names or samples.dtype[name] != dtype:
            expected = f"a field {name!r} ({'image' if dtype is IMAGE else 'int'})"
            _checks.fail(ValueError, str(path), expected, list(names))
    labels = torch.from_numpy(samples[label].astype(np.int64))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < MOST_CLASSES:
        got = f"{int(labels.min())} to {int(labels.max())}"
        _checks.fail(ValueError, f"{path}: {label}", f"classes of at least 0, below {MOST_CLASSES}", got)
    count = int(labels.max()) + 1 if len(labels) else 0
    identifiers = (
        torch.from_numpy(samples["identifier"].astype(np.int64))
        if "identifier" in names
        else torch.arange(len(labels))
    )
    read = _FromBeton(str(path), samples[image].copy(), table["place"].copy(), table["size"].copy())
    return Images(labels, tuple(map(str, range(count))), read, None, identifiers, path.stem)


def write_beton(
    path: str | Path, images: Images, *, max_resolution: int = 0, jpeg: float = 0.0, quality: int = 90,
    page_size: int = PAGE, seed: int = 0,
) -> None:  # fmt: skip
    """Write `images` with the fields image, label and identifier.

    Args:
        path: the file, written aside and renamed.
        max_resolution: longest side in pixels; larger pictures are made smaller. 0 keeps them.
        jpeg: share of pictures that are stored as JPEG, drawn with `seed`. train_400_10_90.beton is
            max_resolution=400, jpeg=0.1, quality=90.
        page_size: bytes, a power of two from 2 MiB to 2 GiB.
    """
    if images.read is None:
        _checks.fail(ValueError, "images", "pictures of uint8", "a tensor that is normalised already")
    _checks.integer("quality", quality, 1, 100)
    if not 0 <= _checks.real("jpeg", jpeg, at_least=0.0) <= 1:
        _checks.fail(ValueError, "jpeg", "a share in [0, 1]", jpeg)
    _checks.integer("page_size", page_size, 1 << 21, 1 << 31)
    if page_size & (page_size - 1):
        _checks.fail(ValueError, "page_size", "a power of two", page_size)
    columns = [("image", IMAGE), ("label", "<i8"), ("identifier", "<i8")]
    samples = np.zeros(len(images), np.dtype(columns, align=True))
    samples["label"], samples["identifier"] = images.labels.numpy(), images.identifiers.numpy()
    fields = np.zeros(3, FIELD)
    fields["kind"] = [IMAGE_KIND, INT_KIND, INT_KIND]
    fields["name"] = [name for name, _ in columns]
    start = HEADER.itemsize + fields.nbytes + samples.nbytes
    pages = -(-start // page_size) * page_size
    as_jpeg = np.random.default_rng(seed).random(len(images)) < jpeg
    with replacing(Path(path)) as aside, aside.open("wb") as file:
        table, at = [], pages
        for i in range(len(images)):
            picture = _shrunk(as_rgb(images.read(i)), max_resolution)
            data = _encoded(picture, quality) if as_jpeg[i] else picture.tobytes()
            if len(data) > page_size:
                _checks.fail(ValueError, "page_size", f"at least {len(data)} (image {i})", page_size)
            if at % page_size + len(data) > page_size:
                at = -(-at // page_size) * page_size
            height, width = picture.shape[:2]
            samples["image"][i] = (JPEG if as_jpeg[i] else RAW, width, height, at)
            table.append((i, at, len(data)))
            file.seek(at)
            file.write(data)
            at += len(data)
        end = -(-at // page_size) * page_size
        header = np.array([(VERSION, 3, page_size, len(images), end)], HEADER)
        file.seek(end)
        file.write(np.array(table, ALLOCATION).tobytes())
        file.seek(0, os.SEEK_SET)
        file.write(header.tobytes() + fields.tobytes() + samples.tobytes())


def _shrunk(picture: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    ratio = longest / max(picture.shape[:2]) if longest else 1.0
    if ratio >= 1:
        return np.ascontiguousarray(picture)
    from PIL import Image

    height, width = (max(1, int(ratio * side)) for side in picture.shape[:2])
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def _encoded(picture: NDArray[np.uint8], quality: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
