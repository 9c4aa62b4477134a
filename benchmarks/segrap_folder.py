"""A whole case from files to scores: `python -m tenfold.benchmarks.segrap_folder ARCHIVE FOLDER`.

ARCHIVE is the source archive of TotalSegmentator 2.18.0 (`pip download --no-deps --no-binary :all:
TotalSegmentator==2.18.0`). Its 61 labelled structures are brought to 120 x 512 x 512 voxels of 2.8 x 0.59 x
0.71 mm and written as the challenge wants them, a compressed mask for each structure; the prediction is the
same, moved by two rows and three columns. 122 files are then scored by

- a plain script: SimpleITK reads each pair, NumPy counts, `surface_distance` gives the surface Dice
  (what the challenge's own script does, with a package in place of its copy);
- `tenfold.segmentation`, which gives twelve metrics where the script gives two.

Processor time of one process is compared; peak memory is that of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (120, 512, 512)
SPACING = (2.8, 303 / 512, 366 / 512)
MEMBER = "example_seg_fast_force_split"


def make(archive: Path, folder: Path, copies: int) -> None:
    """folder/gt/<case>/<structure>.nii.gz, folder/pred/... and folder/task.json."""
    from tenfold.segmentation.ct_pair import extract
    from tenfold.segmentation.files import Header, read_labels, write_nifti

    if (folder / "task.json").exists():
        return
    small = read_labels(extract(archive, folder / "source")[MEMBER]).array
    picks = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(SHAPE, small.shape, strict=True)]
    target = small[np.ix_(*picks)]
    pred = np.zeros_like(target)
    pred[:, 2:, :-3] = target[:, :-2, 3:]
    z, y, x = SPACING
    affine = ((x, 0.0, 0.0, 0.0), (0.0, y, 0.0, 0.0), (0.0, 0.0, z, 0.0), (0.0, 0.0, 0.0, 1.0))
    header = Header(SHAPE, SPACING, affine)
    labels = [int(label) for label in np.unique(target) if label]
    for side, volume in (("gt", target), ("pred", pred)):
        for case in range(copies):
            for label in labels:
                path = folder / side / f"case{case}" / f"structure_{label:02d}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                first = folder / side / "case0" / path.name
                if case:
                    path.hardlink_to(first)
                else:
                    write_nifti(path, (volume == label).astype(np.uint8), header)
    (folder / "task.json").write_text(json.dumps({f"structure_{label:02d}": label for label in labels}))


def plain(folder: Path) -> dict[str, tuple[float, float]]:
    """Structure -> (DSC, NSD at 1 mm) of the first case, as a short script does it."""
    SimpleITK, surface_distance = (import_module(name) for name in ("SimpleITK", "surface_distance"))
    np_module: Any = np
    np_module.Inf, np_module.NaN = np.inf, np.nan  # names it uses that NumPy 2 has removed
    found = {}
    for path in sorted((folder / "gt" / "case0").glob("*.nii.gz")):
        image = SimpleITK.ReadImage(str(path))
        target = SimpleITK.GetArrayFromImage(image) > 0
        pred = (
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "pred" / "case0" / path.name))) > 0
        )
        dsc = 2 * np.sum(target & pred) / (np.sum(target) + np.sum(pred))
        surfaces = surface_distance.compute_surface_distances(target, pred, image.GetSpacing()[::-1])
        nsd = surface_distance.compute_surface_dice_at_tolerance(surfaces, 1.0)
        found[path.name.partition(".")[0]] = (float(dsc), float(nsd))
    return found


def ours(folder: Path, workers: int = 1, copies: int = 1) -> dict[str, tuple[float, float]]:
    """The same of the first case; `copies` cases are scored."""
    from tenfold.segmentation import Options, evaluate, find_submissions, load_task

    task = load_task(str(folder / "task.json"))
    (reference,), (team,) = (find_submissions(folder / side, task) for side in ("gt", "pred"))
    reference.cases = dict(list(reference.cases.items())[:copies])
    found = evaluate([team], reference, task, Options(), workers=workers)
    return {row["organ"]: (row["dsc"], row["nsd_dm"]) for row in found.rows if row["case"] == "case0"}


def _measured(folder: Path, what: str) -> dict[str, Any]:
    """Processor time of the work and peak memory, in a process of its own."""
    command = [sys.executable, "-m", "tenfold.benchmarks.segrap_folder", "-", str(folder), "--only", what]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _only(folder: Path, what: str) -> None:
    import torch

    torch.set_num_threads(1)
    start = time.process_time()
    found = plain(folder) if what == "plain" else ours(folder)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "scores": found}))


def main() -> None:
    """Make the files, measure both sides in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=4, help="cases for the comparison of workers")
    parser.add_argument("--only", default="")
    settings = parser.parse_args()
    if settings.only:
        return _only(settings.folder, settings.only)
    make(settings.archive, settings.folder, settings.copies)
    sides: dict[str, list[dict[str, Any]]] = {"tenfold": [], "plain": []}
    for _ in range(settings.rounds):
        for name, runs in sides.items():
            runs.append(_measured(settings.folder, name))
    names = sorted(sides["plain"][0]["scores"])
    one, other = (np.array([sides[side][0]["scores"][name] for name in names]) for side in sides)
    print(f"structures {len(one)}, mean DSC {one[:, 0].mean():.6f}, mean NSD {one[:, 1].mean():.6f}, "
          f"largest difference {np.abs(one - other).max():.1e}")  # fmt: skip
    middle = {name: float(np.median([run["seconds"] for run in runs])) for name, runs in sides.items()}
    for name, runs in sides.items():
        peak = max(run["peak_mib"] for run in runs)
        print(f"{name:8} {middle[name]:7.2f} s of one core, peak {peak:6.0f} MiB")
    print(f"ratio {middle['plain'] / middle['tenfold']:.1f}")
    _compare_workers(settings.folder, settings.copies)


def _compare_workers(folder: Path, copies: int) -> None:
    """Wall and processor time of several cases with one worker and with two, worker processes included."""
    from joblib.externals.loky import get_reusable_executor

    for workers in (1, 2):
        before, start = os.times(), time.perf_counter()
        ours(folder, workers, copies)
        wall = time.perf_counter() - start
        if workers > 1:
            get_reusable_executor().shutdown(wait=True)  # children's times are known once they have ended
        spent = sum(os.times()[:4]) - sum(before[:4])
        print(f"{copies} cases, {workers} at a time: {wall:.1f} s on the clock, {spent:.1f} s of processors")


if __name__ == "__main__":
    main()
