"""What is scored: the structures of a task, the labels they are made of, tolerances and names.

SegRap2023 (arXiv 2312.09576) trains on one integer map per case, 54 disjoint parts for the organs at risk;
its 45 organs are unions of these parts and overlap (the brain holds the brain stem, the larynx its glottis).
Which organs own a part tells the parts apart, so the union can be undone: `merge` and `unmerge`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tenfold._reading import reading

__all__ = ["TASKS", "Task", "load_task", "merge", "swap_labels", "unmerge"]


@dataclass(frozen=True)
class Task:
    """The structures that are scored together."""

    name: str
    """Short name: "1", "2", or that of a label table."""
    title: str
    """What a reader should see."""
    parts: Mapping[str, tuple[int, ...]]
    """Structure -> labels it is the union of, in the order of the channels of a 4-D volume."""
    columns: tuple[str, ...] = ()
    """Structures in the order of the challenge's CSV; empty: the order of `parts`."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Structure -> tolerance of the surface Dice in mm, where it is not `tolerance`."""
    tolerance: float = 1.0
    """Tolerance of every other structure, in mm."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names in lower case -> structure."""
    official: bool = True
    """Whether the challenge defines it; then labels beyond the table are an error."""

    @property
    def organs(self) -> tuple[str, ...]:
        """The structures, in channel order."""
        return tuple(self.parts)

    @property
    def highest(self) -> int:
        """The largest label."""
        return max(label for labels in self.parts.values() for label in labels)

    @property
    def csv_order(self) -> tuple[str, ...]:
        """The structures, in the order of segrap.csv."""
        return self.columns or self.organs

    def tolerance_of(self, organ: str) -> float:
        """Tolerance of the surface Dice in mm."""
        return float(self.tolerances.get(organ, self.tolerance))

    def find(self, name: str) -> str | None:
        """The structure that `name` means, whatever its case, or None."""
        wanted = name.lower()
        for organ in self.parts:
            if organ.lower() == wanted:
                return organ
        return self.aliases.get(wanted)

    def partner(self, organ: str) -> str | None:
        """The same structure of the other side (Eye_L: Eye_R), or None."""
        for mine, other in (("_L", "_R"), ("_R", "_L"), ("_left", "_right"), ("_right", "_left")):
            if organ.endswith(mine):
                found = organ.removesuffix(mine) + other
                return found if found in self.parts else None
            middle, behind = f"{mine}_", f"{other}_"
            if middle in organ and organ.replace(middle, behind) in self.parts:
                return organ.replace(middle, behind)
        return None


_SIDED = {  # structures of both sides: the labels of the left one; the right one has each label + 1
    "TemporalLobe": (4, 6), "Hippocampus": (8, 6), "Eye": (10, 12), "Lens": (12,), "OpticNerve": (14,),
    "MiddleEar": (18, 16, 20, 24, 28, 30), "IAC": (18,), "TympanicCavity": (22, 20), "VestibulSemi": (26,
    24),
    "Cochlea": (28,), "ETbone": (32, 30), "Mandible": (36,), "Submandibular": (38,), "Parotid": (40,),
    "Mastoid": (42,), "TMjoint": (44,),
}  # fmt: skip
_SINGLE: dict[str, tuple[int, ...]] = {
    "Brain": tuple(range(1, 10)), "BrainStem": (2,), "Chiasm": (3,), "Pituitary": (34,),
    "OralCavity": (35,),
    "SpinalCord": (46,), "Esophagus": (47,), "Larynx": (48, 49, 50, 51), "Larynx_Glottic": (49,),
    "Larynx_Supraglot": (50,), "PharynxConst": (51, 52), "Thyroid": (53,), "Trachea": (54,),
}  # fmt: skip
_CHANNELS = [
    "Brain", "BrainStem", "Chiasm", "TemporalLobe", "Hippocampus", "Eye", "Lens", "OpticNerve",
    "MiddleEar", "IAC", "TympanicCavity", "VestibulSemi", "Cochlea", "ETbone", "Pituitary", "OralCavity",
    "Mandible", "Submandibular", "Parotid", "Mastoid", "TMjoint", "SpinalCord", "Esophagus", "Larynx",
    "Larynx_Glottic", "Larynx_Supraglot", "PharynxConst", "Thyroid", "Trachea",
]  # fmt: skip
_COLUMNS = [
    "Brain", "BrainStem", "Chiasm", "Cochlea_L", "Cochlea_R", "Esophagus", "ETbone_L", "ETbone_R", "Eye_L",
    "Eye_R", "Hippocampus_L", "Hippocampus_R", "IAC_L", "IAC_R", "Larynx", "Larynx_Glottic",
    "Larynx_Supraglot", "Lens_L", "Lens_R", "Mandible_L", "Mandible_R", "Mastoid_L", "Mastoid_R",
    "MiddleEar_L", "MiddleEar_R", "OpticNerve_L", "OpticNerve_R", "OralCavity", "Parotid_L", "Parotid_R",
    "PharynxConst", "Pituitary", "SpinalCord", "Submandibular_L", "Submandibular_R", "TemporalLobe_L",
    "TemporalLobe_R", "Thyroid", "Trachea", "TympanicCavity_L", "TMjoint_L", "TMjoint_R",
    "TympanicCavity_R", "VestibulSemi_L", "VestibulSemi_R",
]  # fmt: skip


def _organs_at_risk() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name in _CHANNELS:
        if name in _SINGLE:
            found[name] = _SINGLE[name]
        else:
            found[f"{name}_L"] = _SIDED[name]
            found[f"{name}_R"] = tuple(label + 1 for label in _SIDED[name])
    return found


TASKS: dict[str, Task] = {
    "1": Task(
        name="1", title="SegRap2023 task 1: 45 organs at risk", parts=_organs_at_risk(),
        columns=tuple(_COLUMNS), tolerances={"Larynx": 2.0, "OralCavity": 3.0},
    ),
    "2": Task(
        name="2", title="SegRap2023 task 2: gross tumour volumes", parts={"GTVp": (1,), "GTVnd": (2,)},
        aliases={"gtvnx": "GTVp"},  # the name of SegRap2025
    ),
}  # fmt: skip
"""The challenge's two tasks."""


def load_task(name: str, tolerance: float = 1.0) -> Task:
    """Task "1" or "2", or the task of a label table.

    A table is a CSV with columns id and label (and hemisphere, if there is one), or a JSON object of name to
    label or labels. `tolerance`, in mm, is for tables; the challenge's tasks have their own.

    Raises ValueError for a table that does not hold labels >= 1 under names that occur once.
    """
    if name in TASKS:
        return TASKS[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"task: expected 1, 2 or a file with a label table, got {name!r}")
    with reading(path, "a label table"):
        parts = _read_json(path) if path.suffix == ".json" else _read_csv(path)
    if not parts:
        raise ValueError(f"{path}: expected at least one structure, got none")
    for organ, labels in parts.items():
        if not labels or any(label < 1 for label in labels):
            raise ValueError(f"{path}: {organ}: expected labels >= 1, got {list(labels)}")
    return Task(
        path.stem, f"{len(parts)} structures of {path.name}", parts, tolerance=tolerance, official=False
    )


def _read_json(path: Path) -> dict[str, tuple[int, ...]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object of name to label, got {type(found).__name__}")
    listed = {n: v if isinstance(v, list) else [v] for n, v in found.items() if v != 0}
    for organ, labels in listed.items():
        if not all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
            raise ValueError(f"{path}: {organ}: expected whole numbers, got {labels}")
    return {organ: tuple(labels) for organ, labels in listed.items()}


def _read_csv(path: Path) -> dict[str, tuple[int, ...]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, tuple[int, ...]] = {}
    for row in rows:
        if "id" not in row or "label" not in row:
            raise ValueError(f"{path}: expected columns id and label, got {', '.join(row)}")
        side = row.get("hemisphere") or ""
        name = f"{row['label']}_{side}" if side in ("L", "R") else row["label"]
        if name in found:
            raise ValueError(f"{path}: expected every structure once, got {name!r} again")
        found[name] = (int(row["id"]),)
    return found


def owners(task: Task) -> NDArray[np.uint64]:
    """Label -> bits of the structures that own it (bit i: the i-th of `task.organs`)."""
    table = np.zeros(task.highest + 1, np.uint64)
    for bit, labels in enumerate(task.parts.values()):
        for label in labels:
            table[label] |= np.uint64(1 << bit)
    return table


def merge(volume: NDArray[np.integer], task: Task = TASKS["1"]) -> NDArray[np.bool_]:
    """The masks of all structures of a label map: bool [structures, *volume.shape], in channel order.

    Raises ValueError for a label that the task does not know, naming it.
    """
    check_labels("volume", volume, task)
    table = np.zeros((len(task.parts), task.highest + 1), bool)
    for i, labels in enumerate(task.parts.values()):
        table[i, list(labels)] = True
    return np.stack([row[volume] for row in table])


def unmerge(masks: NDArray[np.generic], task: Task = TASKS["1"]) -> NDArray[np.uint8]:
    """The label map that `masks` [structures, *shape] are the unions of: the inverse of `merge`.

    Raises ValueError if somewhere the structures that overlap are the owners of no part, naming them with the
    number of voxels (the brain stem outside the brain, say).
    """
    masks = np.asarray(masks)
    if masks.ndim < 2 or len(masks) != len(task.parts):
        raise ValueError(f"masks: expected {len(task.parts)} channels in front, got shape {masks.shape}")
    if len(task.parts) > 64:
        raise ValueError(f"task: expected at most 64 structures, got {len(task.parts)}")
    bits = np.zeros(masks.shape[1:], np.uint64)
    for bit, mask in enumerate(masks):
        bits |= (mask != 0).astype(np.uint64) << np.uint64(bit)
    known = owners(task)
    order = np.argsort(known, kind="stable")
    if (np.diff(known[order]) == 0).any():
        raise ValueError(
            f"task: expected parts with different owners, got {task.title}, which has the same twice"
        )
    at = np.minimum(np.searchsorted(known[order], bits), len(known) - 1)
    wrong = known[order][at] != bits
    if wrong.any():
        raise ValueError(
            f"masks: expected structures that overlap as their parts do, got {_strays(bits[wrong], task)}"
        )
    return order[at].astype(np.uint8)


def _strays(bits: NDArray[np.uint64], task: Task, most: int = 5) -> str:
    values, counts = np.unique(bits, return_counts=True)
    told = []
    for i in np.argsort(-counts, kind="stable")[:most]:
        names = [organ for bit, organ in enumerate(task.organs) if int(values[i]) >> bit & 1]
        told.append(f"{'+'.join(names)} in {counts[i]:,} voxels")
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(told) + more


def check_labels(name: str, volume: NDArray[np.integer], task: Task) -> None:
    """Raise ValueError, naming it, for a label that an official task does not have."""
    if volume.size == 0:
        return
    low, high = int(volume.min()), int(volume.max())
    if low < 0:
        raise ValueError(f"{name}: expected labels >= 0, got {low} in {int((volume == low).sum()):,} voxels")
    if high > task.highest:
        count = int((volume > task.highest).sum())
        raise ValueError(
            f"{name}: expected labels up to {task.highest}, got {high} ({count:,} "
            f"{'voxel' if count == 1 else 'voxels'} beyond)"
        )


def swap_labels(task: Task = TASKS["1"]) -> dict[int, int]:
    """Label -> label of the other side, both ways; what flipping left and right must be followed by."""
    pairs: dict[int, int] = {}
    for organ in task.organs:
        other = task.partner(organ)
        if other is not None:
            pairs.update(zip(task.parts[organ], task.parts[other], strict=True))
    return pairs
