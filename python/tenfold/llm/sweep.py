"""Choosing a learning rate on dev: each trains for the whole budget, test is scored for the chosen one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from tenfold.llm import methods
from tenfold.llm.engine import Job, run_job
from tenfold.runs import RunFolder

__all__ = ["run_swept"]


def run_swept(
    job: Job, folder: RunFolder, factors: Sequence[float], *, label: str, **options: Any
) -> dict[str, Any]:
    """:func:`tenfold.llm.engine.run_job` at the best of ``factors`` times the learning rate of ``job``.

    Best is the lowest dev loss at the step that a run keeps; a run whose losses are not finite is out. Runs
    of the sweep do not look at the test split. They are kept in the folder: an interrupted sweep goes on.

    Args:
        factors: at least one to sweep, or none to run the job as it is.

    Returns:
        The result of the chosen run, with ``sweep``: one ``{"lr", "dev loss", "loss evaluations"}`` per try.

    Raises:
        RuntimeError: no run of the sweep had a finite loss.
    """
    if not factors or methods.find(job.optimizer).kind in ("none", "probe"):
        return run_job(job, folder, label=label, **options)
    tried = []
    for number, factor in enumerate(factors):
        lr = factor * job.lr
        trial = dataclasses.replace(
            job, lr=lr, key=f"{job.key}-try{number}", keep=False, log=False, score_test=False
        )
        tried.append(_tried(trial, folder, label=f"{label}, lr {lr:g}", **options))
    best = min(tried, key=lambda row: row["dev loss"])
    if not math.isfinite(best["dev loss"]):
        raise RuntimeError(f"sweep: expected a finite dev loss for some learning rate, got none of {tried}")
    chosen = dataclasses.replace(job, lr=best["lr"])
    return run_job(chosen, folder, label=f"{label}, lr {best['lr']:g} chosen", **options) | {"sweep": tried}


def _tried(trial: Job, folder: RunFolder, **options: Any) -> dict[str, Any]:
    """What one run of a sweep came to."""
    try:
        result = run_job(trial, folder, **options)
    except RuntimeError as error:
        if "finite" not in str(error):
            raise
        return {"lr": trial.lr, "dev loss": math.inf, "loss evaluations": 0}
    loss = result["dev"]["loss"] if result["best_step"] else result["before"]["loss"]
    loss = loss if math.isfinite(loss) else math.inf
    return {"lr": trial.lr, "dev loss": loss, "loss evaluations": result["queries"]}
