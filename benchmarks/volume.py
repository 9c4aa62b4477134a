"""After the network: labels at the size of the image, and the largest component of every label."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing, version_of
from .zo import _backend, _version

HAND = f"written by hand on torch {torch.__version__}"


def _class_by_class(logits: Tensor, size: tuple[int, int, int]) -> Tensor:
    """What is written by hand where memory is short: one class at a time, and the running maximum."""
    best = torch.full(size, -torch.inf, device=logits.device)
    label = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for c in range(logits.shape[0]):
        value = F.interpolate(logits[c][None, None], size, mode="trilinear")[0, 0]
        wins = value > best
        best = torch.where(wins, value, best)
        label[wins] = c
    return label


def _mostly_equal(ours: Tensor, theirs: Tensor) -> Agreement:
    """Roundings decide where two classes tie."""
    share = (ours != theirs).double().mean().item()
    return Agreement(share <= 1e-5, share, 1e-5, "share of voxels with another label")


def _resample(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import resample_argmax

    shape, size = ((5, 4, 8, 8), (8, 20, 20)) if tiny else ((55, 32, 96, 96), (64, 256, 256))
    logits = torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(1))

    def peer(name: str, run: Any) -> Side:
        return Side(name, run, version=HAND, agree=_mostly_equal, fewest=1)

    return Workload(
        ours=Side(
            "tenfold",
            lambda: resample_argmax(logits, size),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "resample_argmax", device),
        ),
        others=[
            peer(
                "torch_interpolate",
                lambda: F.interpolate(logits[None], size, mode="trilinear")[0].argmax(0).to(torch.uint8),
            ),
            peer("torch_by_class", lambda: _class_by_class(logits, size)),
        ],
        work=Work(bytes=float(logits.nbytes + torch.Size(size).numel())),
        keep=lambda result: result.clone(),
        note=f"argmax of logits {shape} interpolated to {size}",
    )


def _organs(tiny: bool) -> Tensor:
    """uint8 [z, y, x]: 60 structures, the cells of scattered points in a body, each with specks off it."""
    size = (12, 40, 40) if tiny else (120, 512, 512)
    generator = torch.Generator().manual_seed(2)
    coarse = [max(1, n // 4) for n in size]
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in coarse), indexing="ij"), -1)
    points = torch.rand(60, 3, generator=generator) * 1.4 - 0.7
    nearest = torch.cdist(grid.reshape(-1, 3), points).argmin(1).reshape(coarse)
    labels = torch.where((grid**2).sum(-1) < 0.8, nearest + 1, 0).to(torch.uint8)
    for axis in range(3):
        labels = labels.repeat_interleave(4, axis)
    labels = F.pad(
        labels, [p for n, m in zip(size[::-1], labels.shape[::-1], strict=True) for p in (0, n - m)]
    )
    specks = torch.rand(size, generator=generator) < 1e-3
    return torch.where(specks, torch.randint(61, size, generator=generator, dtype=torch.uint8), labels)


def _with_cc3d(volume: Any) -> Tensor:
    """Largest component of each value by cc3d's labels and numpy's counts."""
    import numpy as np

    cc3d: Any = import_module("cc3d")
    labels, count = cc3d.connected_components(volume, connectivity=26, return_N=True)
    sizes = np.bincount(labels.reshape(-1), minlength=count + 1)
    value = np.zeros(count + 1, volume.dtype)
    value[labels.reshape(-1)] = volume.reshape(-1)
    keep = np.zeros(count + 1, bool)
    for v in np.unique(value[1:]):
        of_value = np.flatnonzero(value[1:] == v) + 1
        keep[of_value[sizes[of_value].argmax()]] = True
    return torch.from_numpy(np.where(keep[labels], volume, 0))


def _cc3d_labels(volume: Any) -> Any:
    return import_module("cc3d").connected_components(volume, connectivity=26)


def _keep_largest(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import keep_largest

    volume = _organs(tiny)
    array = volume.numpy()

    cc3d_version = version_of("cc3d")
    return Workload(
        ours=Side(
            "tenfold",
            lambda: keep_largest(volume),
            version=_version(),
            kind="ours",
            backend=lambda: "cpu",
        ),
        others=[
            Side(
                "cc3d",
                lambda: _with_cc3d(array),
                version=cc3d_version,
                agree=lambda a, b: compare_values([a], [b], 0.0),
                prepare=lambda: missing("cc3d"),
            ),
            Side(
                "cc3d_labels_only",
                lambda: _cc3d_labels(array),
                version=cc3d_version,
                agree=lambda a, b: Agreement(True, 0.0, 0.0, "labels alone, without choosing: not compared"),
                prepare=lambda: missing("cc3d"),
            ),
        ],
        work=Work(bytes=2.0 * volume.nbytes),
        keep=lambda result: torch.as_tensor(result),
        note=f"largest component (26 neighbours) of each of 60 labels in {tuple(volume.shape)}",
    )


def cases() -> list[Case]:
    """All cases of the family."""
    return [
        Case("volume.resample_argmax.f32.55x32x96x96", _resample),
        Case("volume.keep_largest.u8.60x120x512x512", _keep_largest, devices=("cpu",)),
    ]
