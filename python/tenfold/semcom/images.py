"""Pictures to send: photographs that come with scikit-learn and scikit-image, CIFAR-10, folders.

Training and test pictures are parted by whole photograph; no photograph is cut into both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold._pictures import read_pixels
from tenfold.assets import packaged_file

__all__ = ["PHOTOGRAPHS", "PictureSet", "both_sizes", "crops", "half_size", "load_pictures", "patches"]

PHOTOGRAPHS = {
    "astronaut": ("train", "skimage", "data/astronaut.png"),
    "chelsea": ("train", "skimage", "data/chelsea.png"),
    "china": ("train", "sklearn", "datasets/images/china.jpg"),
    "rocket": ("train", "skimage", "data/rocket.jpg"),
    "motorcycle": ("train", "skimage", "data/motorcycle_left.png"),
    "coffee": ("test", "skimage", "data/coffee.png"),
    "flower": ("test", "sklearn", "datasets/images/flower.jpg"),
}
"""Name -> part, package, file in it; the packages' own pages name photographers and licences."""

_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures as uint8 [3, H, W], parted into training and test; names in the same order."""

    name: str
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    train_names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()


def load_pictures(dataset: str = "photographs", data: str | Path = "") -> PictureSet:
    """Read a set of pictures.

    Args:
        dataset: "photographs", the seven embedded ones, five for training and two for the test. "cifar10",
            the published "python version" (folder cifar-10-batches-py). "folder", pictures in `data/train`
            and `data/test`, or, without these, in `data` itself: every fourth, by name, is for the test.

    Raises:
        ValueError, FileNotFoundError: `data` is not what the layout needs.
        ModuleNotFoundError: Pillow, scikit-learn or scikit-image is not installed.
    """
    _checks.choice("dataset", dataset, ("photographs", "cifar10", "folder"))
    if dataset == "photographs":
        return _photographs()
    if not str(data):
        _checks.fail(ValueError, "data", f"the folder of {dataset}", "nothing")
    return _cifar(Path(data)) if dataset == "cifar10" else _folder(Path(data))


def _photographs() -> PictureSet:
    parts: dict[str, list[Tensor]] = {"train": [], "test": []}
    for part, package, inside in PHOTOGRAPHS.values():
        parts[part].append(_read(packaged_file(package, inside)))
    names = {p: tuple(n for n, (part, _, _) in PHOTOGRAPHS.items() if part == p) for p in parts}
    return PictureSet(
        "photographs", tuple(parts["train"]), tuple(parts["test"]), names["train"], names["test"]
    )


def _read(path: Path) -> Tensor:
    return torch.from_numpy(read_pixels(path)).permute(2, 0, 1).contiguous()


def _cifar(folder: Path) -> PictureSet:
    from tenfold.eeg.unpickle import load_pickle

    inner = folder / "cifar-10-batches-py"
    where = inner if inner.is_dir() else folder
    found: dict[str, tuple[Tensor, ...]] = {}
    for part, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        rows = []
        for name in names:
            if not (where / name).is_file():
                raise FileNotFoundError(f"data: expected {name} of CIFAR-10 in {where}, got nothing")
            batch = load_pickle(where / name)
            if not isinstance(batch, dict):
                _checks.fail(ValueError, str(where / name), "a dictionary", type(batch).__name__)
            pixels = batch.get(b"data", batch.get("data"))
            if not isinstance(pixels, np.ndarray):
                _checks.fail(ValueError, str(where / name), "an array under the key data", list(batch))
            if pixels.ndim != 2 or pixels.shape[1] != 3072 or pixels.dtype != np.uint8:
                got = f"{pixels.dtype} {pixels.shape}"
                _checks.fail(ValueError, str(where / name), "data uint8 [n, 3072]", got)
            rows.append(torch.from_numpy(pixels.astype(np.uint8)).view(-1, 3, 32, 32))
        found[part] = tuple(torch.cat(rows))
    return PictureSet("CIFAR-10", found["train"], found["test"])


def _folder(folder: Path) -> PictureSet:
    if not folder.is_dir():
        raise FileNotFoundError(f"data: expected a folder of pictures, got {folder}")
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        files = {part: _pictures(folder / part) for part in ("train", "test")}
    else:
        every = _pictures(folder)
        files = {"train": [f for i, f in enumerate(every) if i % 4 != 3], "test": every[3::4]}
    for part, paths in files.items():
        if not paths:
            _checks.fail(ValueError, "data", f"pictures for the part {part!r} in {folder}", "none")
    read = {part: tuple(_read(path) for path in paths) for part, paths in files.items()}
    names = {part: tuple(path.stem for path in paths) for part, paths in files.items()}
    return PictureSet(folder.name, read["train"], read["test"], names["train"], names["test"])


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)


def half_size(picture: Tensor) -> Tensor:
    """Means of 2x2 pixels, uint8 [3, H // 2, W // 2]."""
    _, height, width = picture.shape
    even = picture[:, : height // 2 * 2, : width // 2 * 2].float()
    return torch.nn.functional.avg_pool2d(even, 2).round_().to(torch.uint8)


def both_sizes(pictures: Sequence[Tensor], side: int) -> list[Tensor]:
    """Every picture as it is and at half its size, where a patch fits."""
    fits = [picture for picture in pictures if min(picture.shape[1:]) >= side]
    fits += [half_size(picture) for picture in pictures if min(picture.shape[1:]) >= 2 * side]
    if not fits:
        _checks.fail(ValueError, "pictures", f"some of at least {side} x {side} pixels", "none")
    return fits


def crops(sources: Sequence[Tensor], side: int, count: int, seed: int) -> Tensor:
    """Random patches, half of them mirrored: float32 [count, 3, side, side] in [0, 1].

    `sources` (`both_sizes`) are cut where chance falls, each as often as any other.
    """
    draw = np.random.default_rng(seed)
    out = torch.empty((count, 3, side, side), dtype=torch.uint8)
    for i in range(count):
        picture = sources[int(draw.integers(len(sources)))]
        y, x = (int(draw.integers(size - side + 1)) for size in picture.shape[1:])
        patch = picture[:, y : y + side, x : x + side]
        out[i] = patch.flip(2) if draw.integers(2) else patch
    return out.float().div_(255)


def patches(pictures: Sequence[Tensor], side: int, count: int, seed: int) -> Tensor:
    """Patches for a test, that do not overlap within a size: float32 [<= count, 3, side, side] in [0, 1].

    Cut on a grid from every picture and its half, in an order drawn by `seed`; as many as there are.
    """
    grid = list(_grid(both_sizes(pictures, side), side))
    order = np.random.default_rng(seed).permutation(len(grid))[:count]
    return torch.stack([grid[i] for i in order]).float().div_(255)


def _grid(pictures: Sequence[Tensor], side: int) -> Iterator[Tensor]:
    for picture in pictures:
        for y in range(0, picture.shape[1] - side + 1, side):
            for x in range(0, picture.shape[2] - side + 1, side):
                yield picture[:, y : y + side, x : x + side]
