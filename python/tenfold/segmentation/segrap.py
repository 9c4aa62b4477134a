"""Workflow ``segrap``: score segmentations case by case, rank the teams, show where they fail.

    tenfold run segrap                                                   the embedded default
    tenfold run segrap --predictions DIR --ground_truth DIR --task 1     yours
    tenfold run segrap --archive totalsegmentator-2.18.0.tar.gz --train  a real CT, two models and a small
    network

Papers: Luo et al. 2025 (SegRap2023, arXiv 2312.09576), Nikolov et al. 2018 (surface Dice, arXiv 1809.04430),
Wiesenfarth et al. 2021 (challengeR, arXiv 1910.05121).
"""

from __future__ import annotations

import csv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold._reading import reading
from tenfold.runs import RunFolder
from tenfold.runs.executor import run_jobs
from tenfold.segmentation.cases import Options
from tenfold.segmentation.evaluate import Evaluation, Store, evaluate
from tenfold.segmentation.labels import TASKS, Task, load_task
from tenfold.segmentation.layouts import Submission, find_submissions
from tenfold.segmentation.segrap_config import SegrapConfig

__all__ = ["Result", "SegrapConfig", "run", "score"]

NOTES = 20
"""So many notes on files stand in the log; all are in the report."""


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``), the folder that holds everything else,
    and the
    exit code: 1 if something was wrong with the files of a case, else 0."""

    metrics: dict[str, float | int]
    path: Path
    exit_code: int = 0


@dataclass
class Source:
    """What is compared: from your files, the embedded brains or the archive."""

    task: Task
    reference: Submission
    teams: list[Submission]
    about: str
    """One sentence for the top of the page."""
    images: dict[str, Path]
    """Case -> its CT."""
    descriptions: dict[str, str]
    """Team -> what it is, where that is known."""


def score(config: SegrapConfig, out: str | Path | None = None, *, resume: bool = False) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = config.resolved()
    return run(config, RunFolder.create("segrap", config, out, resume))


def run(config: SegrapConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a folder holds no cases, or the same twice, or a label table is wrong.
        RuntimeError: a worker died, or the cluster cannot be reached.
        tenfold.assets.AssetError: an embedded file is missing; the message holds the command that installs
        it.

    What is wrong with single files is in the result and the report, and makes the exit code 1.
    """
    config = config.resolved()
    source = source_of(config, folder)
    found = evaluated(config, folder, source)
    from tenfold.segmentation.segrap_report import write

    numbers = write(config, source, found, folder)
    return Result(numbers, folder.path, 1 if found.flagged else 0)


def source_of(config: SegrapConfig, folder: RunFolder) -> Source:
    """What the settings say to compare; the embedded default predicts first."""
    if config.archive:
        from tenfold.segmentation import ct_pair

        return ct_pair.source(config, folder)
    if config.embedded:
        return _brains(config, folder)
    task = load_task(config.task, config.tolerance)
    references = find_submissions(config.ground_truth, task)
    if len(references) != 1:
        names = ", ".join(r.team for r in references)
        expected = f"the cases of one reference, of {task.title}"
        raise ValueError(f"ground_truth: expected {expected}, got folders {names}{_other_task(config, task)}")
    teams = [team for path, name in _paths(config.predictions) for team in find_submissions(path, task, name)]
    about = f"{len(teams)} sets of predictions in {config.predictions} against {config.ground_truth}"
    return Source(task, references[0], teams, about, _images(config.images, references[0]), {})


def _other_task(config: SegrapConfig, task: Task) -> str:
    """A hint where the references are masks of the other task: `--task` was forgotten."""
    for name, other in TASKS.items():
        with suppress(ValueError):
            if other.title != task.title and len(find_submissions(config.ground_truth, other)) == 1:
                return f"; they are masks of {other.title} (--task {name})"
    return ""


def _paths(text: str) -> list[tuple[str, str]]:
    """(path, team or nothing) of each entry of `predictions`."""
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, equals, path = entry.partition("=")
        if equals and not path.strip():
            raise ValueError(f"predictions: expected TEAM=PATH, got {entry!r}")
        found.append((path, name) if equals and not Path(entry).exists() else (entry, ""))
    return found


def _images(folder: str, reference: Submission) -> dict[str, Path]:
    if not folder:
        return {}
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"images: expected a folder, got {folder!r}")
    found = {}
    for case in reference.cases:
        for name in (f"{case}/image.nii.gz", f"{case}.nii.gz", f"{case}_0000.nii.gz"):
            if (Path(folder) / name).is_file():
                found[case] = Path(folder) / name
                break
    return found


def _brains(config: SegrapConfig, folder: RunFolder) -> Source:
    from tenfold.segmentation import brains
    from tenfold.segmentation.fusion import PREDICTORS

    reference = brains.references()
    place = folder.path / "predictions"
    jobs = brains.donor_jobs(place)
    with folder.progress(len(brains.DONORS), "predict", done=len(brains.DONORS) - len(jobs)) as progress:
        for _ in run_jobs(brains.predict_donor, jobs, workers=config.workers, cluster=config.cluster):
            progress.advance()
    about = "82 structures of six human brains, each predicted from the other five in eight ways"
    return Source(brains.brain_task(), reference, brains.submissions(place), about, {}, PREDICTORS)


def evaluated(config: SegrapConfig, folder: RunFolder, source: Source) -> Evaluation:
    """Every case scored or taken from the folder's state; faults are logged, one line each."""
    options = Options(
        keep_going=config.keep_going, reorient=config.reorient, edge=bool(config.edge),
        empty_distance=config.empty_distance, geometry_tolerance=config.geometry_tolerance,
    )  # fmt: skip

    def load(key: str) -> Any:
        saved = folder.load_state(key)
        return None if saved is None else saved[0]

    store = Store(load, folder.save_state)
    count = len(source.teams) * len(source.reference.cases)
    with folder.progress(count, "score") as progress:
        found = evaluate(
            source.teams, source.reference, source.task, options, workers=config.workers,
            cluster=config.cluster, store=store, advance=progress.advance,
            begin=lambda total, done: progress.advance(done),
        )  # fmt: skip
    for fault in found.faults:
        folder.log(fault)
    for note in found.notes[:NOTES]:
        folder.log(f"note: {note}")
    if len(found.notes) > NOTES:
        folder.log(f"note: {len(found.notes) - NOTES} more in the report")
    return found


def read_cohorts(path: str) -> dict[str, str]:
    """Case -> cohort of a CSV with these columns. ValueError for another file."""
    if not path:
        return {}
    with reading(path, "a CSV file"), Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"case", "cohort"} <= set(rows[0]):
        raise ValueError(f"cohorts: expected a CSV with columns case and cohort, got {path}")
    return {row["case"]: row["cohort"] for row in rows}
