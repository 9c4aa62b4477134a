"""A folder of predictions against a folder of references: all cases, all cores, bounded memory.

from tenfold.segmentation import Options, TASKS, evaluate, find_submissions

task = TASKS["1"]
(reference,) = find_submissions("ground_truth", task)
found = evaluate(find_submissions("predictions", task), reference, task, Options())
found.rows        # one for each team, case and structure
found.faults      # what was wrong, with case, structure and file
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenfold.runs.executor import run_jobs
from tenfold.segmentation.cases import CaseJob, CaseResult, Options, Row, score_case
from tenfold.segmentation.labels import Task
from tenfold.segmentation.layouts import CaseFiles, Submission, match_cases

__all__ = ["Evaluation", "Store", "evaluate"]


@dataclass
class Evaluation:
    """All rows, in the order of teams, cases and structures, and what was wrong or odd."""

    task: Task
    options: Options
    teams: list[str]
    rows: list[Row]
    faults: list[str]
    notes: list[str]
    files: dict[str, str] = field(default_factory=dict)
    """File -> SHA-256, as it is stored."""
    jobs: list[CaseJob] = field(default_factory=list)
    """What was scored, in the order of the rows."""

    @property
    def flagged(self) -> bool:
        """Whether something could not be scored, or was scored 0 and 0 for want of a file."""
        return bool(self.faults)


@dataclass
class Store:
    """Where finished cases are kept, so that an interrupted evaluation goes on."""

    load: Callable[[str], Any]
    """Key -> what was saved, or None."""
    save: Callable[[str, Any], None]


def evaluate(
    teams: Sequence[Submission], reference: Submission, task: Task, options: Options, *, workers: int = 0,
    cluster: str = "", store: Store | None = None, advance: Callable[[int], None] = lambda _: None,
    begin: Callable[[int, int], None] = lambda total, done: None,
) -> Evaluation:  # fmt: skip
    """Score every case of `reference` for every team.

    Args:
        teams, reference: from `find_submissions`; team names must differ.
        task, options: what is scored, and how.
        workers, cluster: as for `tenfold.runs.executor.run_jobs`.
        store: finished cases are taken from it if their files have not changed since, and put there.
        advance, begin: told how many cases are done: begin(total, from the store), advance(1).

    Raises what `run_jobs` raises, and ValueError for team names that occur twice. Faults of files are no
    errors: they stand in the result.
    """
    names = [team.team for team in teams]
    if len(set(names)) < len(names):
        raise ValueError(f"teams: expected different names, got {', '.join(names)}")
    jobs, notes = _jobs(teams, reference, task, options)
    stamps = [_stamp(job) for job in jobs]
    results: dict[tuple[str, str], CaseResult] = {}
    left = []
    for job, stamp in zip(jobs, stamps, strict=True):
        saved = store.load(_key(job)) if store else None
        if saved is not None and saved["stamp"] == stamp:
            results[job.team, job.case] = CaseResult(**saved["result"])
        else:
            left.append(job)
    begin(len(jobs), len(jobs) - len(left))
    by_name = {(job.team, job.case): (job, stamp) for job, stamp in zip(jobs, stamps, strict=True)}
    for result in run_jobs(score_case, left, workers=workers, cluster=cluster):
        results[result.team, result.case] = result
        if store:
            job, stamp = by_name[result.team, result.case]
            store.save(_key(job), {"stamp": stamp, "result": dataclasses.asdict(result)})
        advance(1)
    return _joined(jobs, results, notes, task, options, names)


def _jobs(
    teams: Sequence[Submission], reference: Submission, task: Task, options: Options
) -> tuple[list[CaseJob], list[str]]:
    jobs, notes = [], [f"references: {note}" for note in reference.notes]
    for team in teams:
        matched, odd = match_cases(reference, team)
        notes += [f"{team.team}: {note}" for note in odd]
        jobs += [
            CaseJob(team.team, case, task, reference.cases[case], files, options)
            for case, files in matched.items()
        ]
    return jobs, notes


def _joined(
    jobs: Sequence[CaseJob], results: dict[tuple[str, str], CaseResult], notes: list[str], task: Task,
    options: Options, teams: list[str],
) -> Evaluation:  # fmt: skip
    found = Evaluation(task, options, teams, [], [], notes, jobs=list(jobs))
    for job in jobs:
        result = results[job.team, job.case]
        found.rows += result.rows
        found.faults += [f"{job.team}: {fault}" for fault in result.faults]
        found.notes += [f"{job.team}: {note}" for note in result.notes]
        found.files |= result.files
    return found


def _key(job: CaseJob) -> str:
    return "case-" + hashlib.sha256(f"{job.team}\0{job.case}".encode()).hexdigest()[:24]


def _stamp(job: CaseJob) -> list[Any]:
    def of(files: CaseFiles | None) -> Any:
        return [] if files is None else files.stamps()

    return [of(job.target), of(job.pred)]
