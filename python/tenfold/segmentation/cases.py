"""One case of one team: read both sides, compare their geometry, score every structure, name what is wrong.

A fault never ends the work. It costs the structures that it touches, each is named with case, structure and
file, and everything else is scored. Masks are read one structure at a time, so memory does not grow with
their number.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.ops.overlap import overlap_counts
from tenfold.segmentation.crops import Crop, boxed, dice
from tenfold.segmentation.files import (
    Header,
    Place,
    Volume,
    compare,
    read_header,
    read_labels,
    read_mask,
    read_masks,
    reoriented,
)
from tenfold.segmentation.labels import Task, check_labels
from tenfold.segmentation.layouts import CaseFiles
from tenfold.segmentation.scoring import empty_scores, measure, measure_crops

__all__ = ["CaseJob", "CaseResult", "Options", "load_pair", "read_structures", "score_case"]

Row = dict[str, Any]

SWAPPED = 0.5
"""Sides are taken for swapped where the DSC with the other side's structure is above this and the own one."""


@dataclass(frozen=True)
class Options:
    """How cases are scored; the same for all."""

    keep_going: bool = False
    """Score a structure whose prediction cannot be used 0 and 0, as if it were missing."""
    reorient: bool = False
    """Flip and exchange axes of predictions that run otherwise than those of the reference."""
    edge: bool = False
    """Also the edge-voxel family of surface metrics."""
    empty_distance: str = "inf"
    """Distance where one mask is empty: inf, nan or diagonal."""
    geometry_tolerance: float = 1e-3
    """Largest difference of spacing, origin (mm) and direction."""


@dataclass(frozen=True)
class CaseJob:
    """What a worker needs; it can be sent to another process or machine that sees the same files."""

    team: str
    case: str
    task: Task
    target: CaseFiles
    pred: CaseFiles | None
    options: Options


@dataclass
class CaseResult:
    """Rows in the order of the structures; sentences of what is wrong or odd; file -> SHA-256."""

    team: str
    case: str
    rows: list[Row]
    faults: list[str]
    notes: list[str]
    files: dict[str, str]
    seconds: float


def score_case(job: CaseJob) -> CaseResult:
    """Score one case. What is wrong with its files is in the result; nothing is raised for it."""
    start = time.perf_counter()
    result = CaseResult(job.team, job.case, [], [], [], {}, 0.0)
    if job.pred is not None and job.pred.volume and job.target.volume:
        _score_maps(job, result)
    if not result.rows:
        _score_masks(job, result)
    result.faults = _folded(result.faults, job.case, job.task.organs)
    if job.pred is None:
        result.faults.append(f"{job.case}: no prediction; scored 0 and 0")
    result.seconds = time.perf_counter() - start
    return result


def load_pair(job: CaseJob, organ: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Header] | None:
    """The masks of one structure over the whole volume, (z, y, x); None where they cannot be compared."""
    scratch = CaseResult(job.team, job.case, [], [], [], {}, 0.0)
    if job.pred is None:
        return None
    pair = []
    for files in (job.target, job.pred):
        only = replace(files, organs={o: place for o, place in files.organs.items() if o == organ})
        found = next(mask for name, mask in read_structures(only, job.task, scratch) if name == organ)
        if not isinstance(found, Crop):
            return None
        pair.append(found)
    try:
        pred = _fitted_crop(pair[1], pair[0].header, job, scratch)
    except ValueError:
        return None
    return pair[0].whole(), pred.whole(), pair[0].header


def _score_maps(job: CaseJob, result: CaseResult) -> None:
    """Both sides are label maps: all structures in one pass. Leaves `rows` empty where that is not so."""
    assert job.pred is not None
    assert job.pred.volume is not None
    assert job.target.volume is not None
    try:
        if any(read_header(place).channels != 1 for place in (job.target.volume, job.pred.volume)):
            return
        target = _label_map(job.target, job.task)
        pred = _label_map(job.pred, job.task)
        pred = _fitted(pred, target.header, job, result)
    except (ValueError, OSError):
        result.notes.clear()
        return  # the other way says for each structure what is wrong
    task, options = job.task, job.options
    result.files |= {str(job.target.volume): target.sha256, str(job.pred.volume): pred.sha256}
    scores = measure(
        target.array, pred.array, list(task.parts.values()), target.header.spacing,
        [task.tolerance_of(organ) for organ in task.organs], edge=options.edge,
        empty_distance=options.empty_distance,
    )  # fmt: skip
    swaps = _swapped_maps(target, pred, scores, task)
    for organ, found in zip(task.organs, scores, strict=True):
        flags = _flags(found)
        if found["dsc"] < swaps.get(organ, 0.0) > SWAPPED:
            flags.append("swapped")
        result.rows.append(_row(job, organ, found, target.header, flags, result))


def _swapped_maps(
    target: Volume, pred: Volume, scores: list[dict[str, float]], task: Task
) -> dict[str, float]:
    """DSC with the structure of the other side, where the own one is below `SWAPPED`."""
    known = dict(zip(task.organs, scores, strict=True))
    low = [o for o, s in known.items() if s["dsc"] < SWAPPED and s["voxels_pred"] and task.partner(o)]
    if not low:
        return {}
    highest = max(int(target.array.max()), int(pred.array.max()), task.highest)
    joint = overlap_counts(target.array, pred.array, highest + 1)
    found = {}
    for organ in low:
        other = task.partner(organ) or ""
        both = int(joint[np.ix_(task.parts[other], task.parts[organ])].sum())
        total = known[other]["voxels_target"] + known[organ]["voxels_pred"]
        found[organ] = 2 * both / total
    return found


def _score_masks(job: CaseJob, result: CaseResult) -> None:
    """One structure after the other, whatever the two sides are."""
    sides: dict[str, tuple[Crop, Crop]] = {}
    preds = read_structures(job.pred, job.task, result) if job.pred else ((o, None) for o in job.task.organs)
    for (organ, target), (_, pred) in zip(read_structures(job.target, job.task, result), preds, strict=True):
        result.rows.append(_mask_row(job, organ, target, pred, sides, result))


Found = Crop | Exception | None


def _mask_row(
    job: CaseJob, organ: str, target: Found, pred: Found, sides: dict[str, tuple[Crop, Crop]],
    result: CaseResult,
) -> Row:  # fmt: skip
    options = job.options
    if target is None or isinstance(target, Exception):
        why = "no reference" if target is None else str(target)
        result.faults.append(f"{job.case}, {organ}: {why}; not scored")
        return _row(job, organ, {}, None, ["no_reference"], result)
    if isinstance(pred, Crop):
        try:
            pred = _fitted_crop(pred, target.header, job, result)
        except ValueError as error:
            pred = ValueError(f"{_place_of(job.pred, organ)}: {error}")
    if isinstance(pred, Crop):
        found = measure_crops(
            target,
            pred,
            job.task.tolerance_of(organ),
            edge=options.edge,
            empty_distance=options.empty_distance,
        )
        row = _row(job, organ, found, target.header, _flags(found), result)
        _mark_swapped(job.task, organ, row, target, pred, sides, result)
        return row
    if pred is None and job.pred is not None:
        result.faults.append(f"{job.case}, {organ}: no prediction; scored 0 and 0")
    if pred is not None:
        end = "scored 0 and 0" if options.keep_going else "not scored"
        result.faults.append(f"{job.case}, {organ}: {pred}; {end}")
    if pred is not None and not options.keep_going:
        return _row(job, organ, {}, target.header, ["failed"], result)
    zero = empty_scores(1, 0, _diagonal(target.header), options.empty_distance, options.edge)
    counts = {"voxels_target": target.count, "voxels_pred": 0, "voxels_both": 0}
    return _row(job, organ, counts | zero, target.header, ["missing" if pred is None else "failed"], result)


def _place_of(files: CaseFiles | None, organ: str) -> Place | None:
    return None if files is None else files.volume or files.organs.get(organ)


def _folded(faults: list[str], case: str, organs: tuple[str, ...]) -> list[str]:
    """One line for what is wrong with all structures in the same words, as where they share a file."""
    texts = {fault.removeprefix(f"{case}, {organ}") for organ, fault in zip(organs, faults, strict=False)}
    if len(organs) > 1 and len(faults) == len(organs) and len(texts) == 1:
        return [f"{case}, all {len(organs)} structures{texts.pop()}"]
    return faults


def _mark_swapped(
    task: Task, organ: str, row: Row, target: Crop, pred: Crop, sides: dict[str, tuple[Crop, Crop]],
    result: CaseResult,
) -> None:  # fmt: skip
    """Compare with the other side, if it has been read; each side is kept until its partner comes."""
    partner = task.partner(organ)
    if partner is None:
        return
    if partner not in sides:
        sides[organ] = (target, pred)
        return
    other_target, other_pred = sides.pop(partner)
    mates = [r for r in result.rows if r["organ"] == partner]
    for its_row, crossed in (
        (row, dice(other_target, pred)),
        *((m, dice(target, other_pred)) for m in mates),
    ):
        if its_row["dsc"] < crossed > SWAPPED:
            its_row["flags"] = " ".join(filter(None, (its_row["flags"], "swapped")))


def read_structures(files: CaseFiles, task: Task, result: CaseResult) -> Iterator[tuple[str, Found]]:
    """(structure, and its mask, or what is wrong with it, or None if there is none), in channel order."""
    if files.volume is None:
        for organ in task.organs:
            place = files.organs.get(organ)
            if place is None:
                yield organ, None
                continue
            try:
                crop = read_mask(place)
            except (ValueError, OSError) as error:
                yield organ, error
                continue
            result.files[str(place)] = crop.sha256
            yield organ, crop
        return
    try:
        channels = read_header(files.volume).channels
        if channels not in (1, len(task.parts)):
            raise ValueError(f"{files.volume}: expected {len(task.parts)} channels, got {channels}")
        volume = _label_map(files, task) if channels == 1 else None
    except (ValueError, OSError) as error:
        yield from ((organ, error) for organ in task.organs)
        return
    if volume is not None:
        result.files[str(files.volume)] = volume.sha256
        for organ in task.organs:
            yield organ, boxed(np.isin(volume.array, task.parts[organ]), volume.header)
        return
    yield from _stack(files, task, result)


def _stack(files: CaseFiles, task: Task, result: CaseResult) -> Iterator[tuple[str, Found]]:
    assert files.volume is not None
    masks = read_masks(files.volume)
    fault: Exception | None = None
    for organ in task.organs:
        if fault is None:
            try:
                crop = next(masks)
                if crop.sha256:
                    result.files[str(files.volume)] = crop.sha256
                yield organ, crop
                continue
            except (ValueError, OSError) as error:
                fault = error
        yield organ, fault


def _label_map(files: CaseFiles, task: Task) -> Volume:
    assert files.volume is not None
    volume = read_labels(files.volume)
    if task.official:
        check_labels(str(files.volume), volume.array, task)
    return volume


def _fitted(pred: Volume, target: Header, job: CaseJob, result: CaseResult) -> Volume:
    """`pred`, turned if asked for; ValueError if it does not lie on the reference."""
    if job.options.reorient:
        array, header = reoriented(pred.array, pred.header, target)
        pred = Volume(array, header, pred.sha256)
    errors, odd = compare(target, pred.header, job.options.geometry_tolerance)
    if errors:
        raise ValueError("; ".join(errors))
    _note(result, job.case, odd)
    return pred


def _fitted_crop(pred: Crop, target: Header, job: CaseJob, result: CaseResult) -> Crop:
    if job.options.reorient and np.abs(pred.header.matrix - target.matrix).max() > 1e-6:
        array, header = reoriented(pred.whole(), pred.header, target)
        pred = boxed(array, header)
    errors, odd = compare(target, pred.header, job.options.geometry_tolerance)
    if errors:
        raise ValueError("; ".join(errors))
    _note(result, job.case, odd)
    return pred


def _note(result: CaseResult, case: str, odd: list[str]) -> None:
    text = f"{case}: {', '.join(odd)}; compared voxel by voxel"
    if odd and text not in result.notes:
        result.notes.append(text)


def _flags(found: dict[str, float]) -> list[str]:
    empty = [name for name in ("target", "pred") if not found[f"voxels_{name}"]]
    return ["empty_" + "_".join(empty)] if empty else []


def _row(
    job: CaseJob, organ: str, found: dict[str, float], header: Header | None, flags: list[str],
    result: CaseResult,
) -> Row:  # fmt: skip
    tolerance = job.task.tolerance_of(organ)
    volumes = {
        f"ml_{side}": found[f"voxels_{side}"] * header.voxel_ml
        for side in ("target", "pred")
        if header is not None and found
    }
    scores = {name: value for name, value in found.items() if not name.startswith("voxels_")}
    return {
        "team": job.team, "case": job.case, "task": job.task.name, "organ": organ, "tolerance_mm": tolerance,
        **scores, **volumes, "flags": " ".join(flags + (["geometry"] if result.notes else [])),
    }  # fmt: skip


def _diagonal(header: Header) -> float:
    return float(np.linalg.norm(np.multiply(header.shape, header.spacing)))
