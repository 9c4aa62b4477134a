"""Overlap counts of all structures of a pair of label volumes (benchmarks/ts512.py).

One pass over both volumes is the work. Peers are given what they take, converted before the clock starts.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import torch

from . import softdice, ts512
from .harness import Agreement, Case, Side, Work, Workload
from .installed import missing, version_of
from .zo import _backend, _version

Array = np.ndarray[Any, Any]


def dice_of(counts: Array) -> Array:
    """Dice of each label above 0 that is present, from a joint histogram."""
    sizes = counts.sum(0) + counts.sum(1)
    present = np.flatnonzero(sizes)
    present = present[present > 0]
    scores: Array = 2 * np.diag(counts)[present] / sizes[present]
    return scores


def close(ours: Array, theirs: Array, tolerance: float, how: str) -> Agreement:
    """Largest difference of two arrays of scores."""
    if ours.shape != theirs.shape:
        return Agreement(False, float("inf"), tolerance, f"{how}: {ours.shape} and {theirs.shape} scores")
    gap = float(np.abs(ours - theirs).max()) if ours.size else 0.0
    return Agreement(gap <= tolerance, gap, tolerance, how)


def dice_agrees(ours: Array, theirs: Array, tolerance: float = 1e-6) -> Agreement:
    """A peer's Dice scores against those of our counts."""
    return close(dice_of(ours), theirs, tolerance, "largest difference of the Dice of any structure")


def _numpy_side(a: Array, b: Array, labels: int) -> Side:
    def run() -> Array:
        pairs = a.ravel().astype(np.int64) * labels + b.ravel()
        return np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)

    def agree(ours: Array, theirs: Array) -> Agreement:
        return close(ours, theirs, 0.0, "largest difference of a count")

    return Side("numpy_bincount", run, version=np.__version__, agree=agree)


def _torch_side(x: torch.Tensor, y: torch.Tensor, labels: int) -> Side:
    def run() -> torch.Tensor:
        pairs = x.reshape(-1).long() * labels + y.reshape(-1)
        return torch.bincount(pairs, minlength=labels * labels).view(labels, labels)

    def agree(ours: Array, theirs: Array) -> Agreement:
        return close(ours, theirs, 0.0, "largest difference of a count")

    return Side("torch_bincount", run, version=f"torch {torch.__version__}", agree=agree)


def _simpleitk_side(a: Array, b: Array) -> Side:
    held: dict[str, Any] = {}

    def prepare() -> str | None:
        why = missing("SimpleITK")
        if why is None and not held:
            import SimpleITK as sitk

            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
            held["images"] = (sitk.GetImageFromArray(a), sitk.GetImageFromArray(b))
            held["filter"] = sitk.LabelOverlapMeasuresImageFilter()
            held["labels"] = ts512.present(a, b)
        return why

    def run() -> Array:
        measures = held["filter"]
        measures.Execute(*held["images"])
        return np.array([measures.GetDiceCoefficient(label) for label in held["labels"]])

    return Side(
        "simpleitk", run, version=version_of("SimpleITK"), agree=dice_agrees, prepare=prepare, host=True
    )


def _memory_needed(voxels: int, labels: int, device: torch.device) -> str | None:
    """Why one-hot tensors of int64, several at a time, do not fit, or None."""
    need = 3 * 8 * voxels * labels
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        have = torch.cuda.get_device_properties(device).total_memory
    if need < 0.6 * have:
        return None
    return (
        f"would hold one-hot tensors of about {need / 2**30:.0f} GiB; this machine has {have / 2**30:.0f} GiB"
    )


def _torchmetrics_side(a: torch.Tensor, b: torch.Tensor, labels: int, present: list[int]) -> Side:
    def prepare() -> str | None:
        return missing("torchmetrics") or _memory_needed(a.numel(), labels, a.device)

    def run() -> Array:
        from torchmetrics.functional.segmentation import dice_score

        preds, target = (x.long()[None] for x in (b, a))
        options: dict[str, Any] = {"include_background": True, "input_format": "index", "average": "none"}
        scores = dice_score(preds, target, labels, **options)
        return scores[0].cpu().numpy()[present]

    return Side(
        "torchmetrics", run, version=version_of("torchmetrics"), agree=dice_agrees, prepare=prepare, fewest=1
    )


def _monai_side(a: torch.Tensor, b: torch.Tensor, labels: int, present: list[int]) -> Side:
    def run() -> Array:
        from monai.metrics import DiceHelper

        tensors = (x[None, None] for x in (b, a))
        helper = DiceHelper(
            include_background=True,
            get_not_nans=False,
            ignore_empty=True,
            num_classes=labels,
            reduction="none",
        )
        return helper(*tensors)[0].cpu().numpy()[present]

    return Side(
        "monai",
        run,
        version=version_of("monai"),
        agree=dice_agrees,
        prepare=partial(missing, "monai"),
        fewest=1,
    )


def _counts(dtype: str, boxes: bool, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import overlap_counts

    target, pred, note = ts512.volumes(tiny)
    a, b = target.astype(dtype), pred.astype(dtype)
    labels = int(max(a.max(), b.max())) + 1
    x, y = (torch.from_numpy(v).to(device) for v in (a, b))

    def ours() -> Any:
        found = overlap_counts(x, y, labels, boxes=boxes)
        return found[0] if boxes else found

    by_hand = _torch_side(x, y, labels) if device.type == "cuda" else _numpy_side(a, b, labels)
    peers = [_simpleitk_side(a, b), by_hand]
    if dtype == "uint8" and not boxes:
        present = ts512.present(target, pred)
        peers += [_monai_side(x, y, labels, present), _torchmetrics_side(x, y, labels, present)]
    return Workload(
        ours=Side(
            "tenfold",
            ours,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "overlap_counts", device),
        ),
        others=peers,
        work=Work(bytes=float(a.nbytes + b.nbytes)),
        keep=lambda result: result.cpu().numpy() if isinstance(result, torch.Tensor) else result,
        note=note + f"; joint histogram of {labels} labels" + (" and boxes" if boxes else ""),
    )


def cases() -> list[Case]:
    """All cases of the family."""
    return [
        Case("overlap.counts.u8.ts512", partial(_counts, "uint8", False)),
        Case("overlap.counts.i16.ts512", partial(_counts, "int16", False)),
        Case("overlap.counts_boxes.u8.ts512", partial(_counts, "uint8", True)),
        *softdice.cases(),
    ]
