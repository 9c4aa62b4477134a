"""Features that nearness is measured in: pixels, or a frozen network's, computed once and kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold._npy import array_names, read_npy, read_npz
from tenfold._reading import reading
from tenfold.runs.files import read_json, replacing, write_json
from tenfold.selection.reweight.data import Labelled

__all__ = ["EXTRACTORS", "extract", "feature_key", "features_of", "load_features"]

EXTRACTORS = ("pixels", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vit_b_16")
SIDE = 224


def features_of(
    data: Labelled, extractor: str, *, weights: str = "", file: str = "", cache: Path | None = None,
    device: str = "cpu", compat: str = "", batch: int = 64,
) -> NDArray[np.float32]:  # fmt: skip
    """Features float32 [N, d] of the training rows.

    Args:
        extractor: "pixels", or a network with torchvision's names whose pooled features are taken.
        weights: its .safetensors file.
        file: features that exist already, .npy or .npz (:func:`load_features`); instead of an extractor.
        cache: folder to keep extracted features in, under a name with the hash of data and weights.
        compat: "reference": the network stays in training mode, so that BatchNorm takes the statistics of
            each batch of 16, as the published code does.
    """
    if file:
        return load_features(Path(file), data)
    _checks.choice("extractor", extractor, EXTRACTORS)
    if extractor == "pixels":
        return pixels(data.x)
    if not weights:
        _checks.fail(ValueError, "extractor_weights", f"the .safetensors file of {extractor}", "nothing")
    key = feature_key(data, extractor, Path(weights), compat)
    kept = None if cache is None else kept_features(cache, extractor, key)
    if kept is not None and kept.exists():
        return load_features(kept, data, key)
    network = _network(extractor, weights, device)
    found = extract(network, data, device=device, training=compat == "reference",
                    batch=16 if compat == "reference" else batch)  # fmt: skip
    if kept is not None:
        save_features(kept, found, key, data.fingerprint(), extractor)
    return found


def kept_features(cache: Path, extractor: str, key: str) -> Path:
    """Where extracted features are kept."""
    return cache / f"{extractor}-{key[:16]}.npy"


def pixels(x: Tensor) -> NDArray[np.float32]:
    """Rows laid out flat, images scaled to 0..1."""
    scaled = x.float() / 255 if x.dtype == torch.uint8 else x
    return np.ascontiguousarray(scaled.flatten(1).numpy())


def feature_key(data: Labelled, extractor: str, weights: Path, compat: str = "") -> str:
    """SHA-256 over the images, the network's name and weights, and how it is run."""
    digest = hashlib.sha256(f"{extractor} {compat} {SIDE} {data.fingerprint()} ".encode())
    if not weights.is_file():
        raise FileNotFoundError(f"extractor_weights: expected a file, got {weights}, which is not there")
    with weights.open("rb") as file:
        for block in iter(lambda: file.read(1 << 22), b""):
            digest.update(block)
    return digest.hexdigest()


def _network(extractor: str, weights: str, device: str) -> torch.nn.Module:
    from safetensors import safe_open

    from tenfold.selection.transfer.networks import build, load_weights

    classes = 1000
    with reading(weights, "a safetensors file"), safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if name.endswith(("fc.weight", "heads.head.weight")):
                classes = file.get_slice(name).get_shape()[0]
    with torch.random.fork_rng(devices=[]):
        network = build(extractor, classes)
    load_weights(network, weights)
    return network.to(device)


@torch.no_grad()
def extract(
    network: Any, data: Labelled, *, device: str = "cpu", training: bool = False, batch: int = 64
) -> NDArray[np.float32]:
    """Pooled features [N, d] of images 224 pixels square, normalised as ImageNet's, not augmented."""
    from tenfold.selection.transfer.augment import IMAGENET_MEAN, IMAGENET_STD

    if data.x.dtype != torch.uint8:
        _checks.fail(
            ValueError, "extractor", "pixels, for rows that are no uint8 images", tuple(data.x.shape)
        )
    before = network.training
    network.train(training)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    found = []
    for rows in data.x.split(batch):
        images = rows.to(device).float() / 255
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        sized = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        found.append(network.features((sized - mean) / std).float().cpu())
    network.train(before)
    return np.ascontiguousarray(torch.cat(found).numpy())


def save_features(
    path: Path, features: NDArray[np.float32], key: str, data_sha256: str, extractor: str
) -> None:
    """PATH.npy, and beside it PATH.json with what they were made from."""
    with replacing(path) as aside, aside.open("wb") as file:
        np.save(file, features)
    write_json(path.with_suffix(".json"), {"key": key, "data_sha256": data_sha256, "extractor": extractor})


def load_features(path: Path, data: Labelled, key: str = "") -> NDArray[np.float32]:
    """Features from a .npy file or from `features` of an .npz file, one row for each training row.

    Where the file says what it was made from (PATH.json, or `data_sha256` in the .npz), that is compared. The
    published code leaves DATASET_EXTRACTOR.npy and, beside it, the labels of its rows in DATASET_targets.npy:
    these are compared too.

    Raises:
        FileNotFoundError: no such file. ValueError: a wrong number of rows, values that are not finite, or
            made from other data.
    """
    if not path.exists():
        raise FileNotFoundError(f"features: expected a file, got {path}, which is not there")
    loaded, told = _read(path)
    x = np.asarray(loaded)
    beside = path.with_suffix(".json")
    if path.suffix == ".npy" and beside.exists():
        try:
            note = read_json(beside)
        except json.JSONDecodeError as error:
            raise ValueError(f"{beside}: expected JSON, got {error}") from error
        told = note.get("data_sha256", "")
        if key and note.get("key") != key:
            _checks.fail(
                ValueError, str(path), f"features with the key {key[:16]}", str(note.get("key"))[:16]
            )
    if x.ndim != 2 or len(x) != len(data.x) or x.dtype.kind != "f":
        _checks.fail(ValueError, str(path), f"numbers [{len(data.x)}, d], one row a sample", x.shape)
    if told and told != data.fingerprint():
        expected = f"features of these data (SHA-256 {data.fingerprint()[:16]}...)"
        _checks.fail(ValueError, str(path), expected, f"{told[:16]}...")
    _compare_targets(path, data)
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        _checks.fail(ValueError, str(path), "finite values", f"NaN or infinity in row {bad[0]}")
    return np.ascontiguousarray(x, dtype=np.float32)


def _read(path: Path) -> tuple[Any, str]:
    """The array, and the hash of the data that it was made from where an .npz holds it."""
    try:
        with path.open("rb") as file:  # `is_zipfile` finds its mark anywhere near the end, in numbers too
            zipped = file.read(4) == b"PK\x03\x04"
        if not zipped:
            return read_npy(path), ""
        held = read_npz(path, ("features", "data_sha256"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected arrays of NumPy, got a file that fails ({error})") from error
    if "features" not in held:
        _checks.fail(ValueError, str(path), "an array 'features'", array_names(path))
    return held["features"], str(held.get("data_sha256", ""))


def _compare_targets(path: Path, data: Labelled) -> None:
    """Features in another order than the data have labels in another order."""
    for beside in sorted(path.parent.glob("*_targets.npy")):
        if path.suffix == ".npy" and path.stem.startswith(beside.stem.removesuffix("targets")):
            told = read_npy(beside)
            right = data.y if data.true_y is None else data.true_y
            if told.shape != right.shape:
                _checks.fail(ValueError, str(beside), f"labels of {len(right)} rows", told.shape)
            other = np.flatnonzero(told != right)
            if len(other):
                expected = f"the label {right[other[0]]} of row {other[0]}"
                _checks.fail(ValueError, str(beside), expected, told[other[0]])
