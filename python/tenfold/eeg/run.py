"""Workflow ``msdcda``: recognise the emotions (or vowels) of a person without labels of that person.

    tenfold run msdcda                                          the embedded default: vowels of 15 speakers
    tenfold run msdcda --data DIR --dataset seed --protocol cross-session
    tenfold run msdcda --ablations --options.labels cluster
    tenfold run msdcda --study                                  which choices of the reconstruction matter

Every fold of a protocol is trained with every method and seed, in processes side by side; each training that
is done is kept, so that an interrupted run goes on with the next one.

Papers: arXiv 2408.10235 (MS-DCDA, of which the abstract was at hand: reconstructed), 2107.07740 (MS-MDA:
network and protocol), 1901.00976 (CAN: contrastive discrepancy), 2103.13814 (DWL: moving weight).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.eeg.corpora import load_corpus
from tenfold.eeg.corpus import Corpus
from tenfold.eeg.evaluate import Scores, evaluate, occlusion, saliency
from tenfold.eeg.network import Network
from tenfold.eeg.normalise import normalise_fold
from tenfold.eeg.protocols import Fold, folds
from tenfold.eeg.run_config import MsdcdaConfig
from tenfold.eeg.train import Trained, predict, train
from tenfold.runs import RunFolder, require
from tenfold.runs.executor import run_jobs

__all__ = ["MsdcdaConfig", "Outcome", "Result", "Trial", "adapt", "run"]


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass
class Trial:
    """One training: which, its scores, its course, and how sensitive it is to each feature."""

    method: str
    fold: int
    seed: int
    scores: Scores
    history: list[dict[str, float]]
    notes: list[str]
    saliency: list[float]
    occlusion: list[float]

    @property
    def key(self) -> str:
        """Name in the folder."""
        return f"{self.method}-fold{self.fold}-seed{self.seed}"


@dataclass
class Outcome:
    """Everything that the report is written from."""

    config: MsdcdaConfig
    corpus: Corpus
    folds: list[Fold]
    numbers: list[int]
    """Numbers of the folds that were run."""
    trials: list[Trial] = field(default_factory=list)
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """Key of a trial -> its network's state, and the branches' weights under "branch_weights"."""

    def of(self, method: str) -> list[Trial]:
        """The trials of a method, by fold and seed."""
        return [t for t in self.trials if t.method == method]

    def table(self, method: str, name: str = "accuracy") -> NDArray[np.float64]:
        """[folds, seeds] of a score."""
        values = {(t.fold, t.seed): getattr(t.scores, name) for t in self.of(method)}
        return np.array([[float(values[k, s]) for s in self.config.seeds] for k in self.numbers])

    def by_subject(self, method: str, name: str = "accuracy") -> NDArray[np.float64]:
        """One value per target subject: the mean over seeds and sessions, in the order of the folds."""
        rows = self.table(method, name).mean(1)
        subjects = [self.folds[k].target.subject for k in self.numbers]
        return np.array([rows[[s == one for s in subjects]].mean() for one in dict.fromkeys(subjects)])

    def collapsed(self, method: str) -> int:
        """How many of its trainings learned nothing."""
        return sum(t.scores.collapsed for t in self.of(method))


def adapt(
    config: MsdcdaConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = (config or MsdcdaConfig()).resolved()
    return run(config, RunFolder.create("msdcda", config, out, resume))


def run(config: MsdcdaConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a setting or a data file is wrong (named).
        RuntimeError: a loss is not finite, or a worker died.
        ModuleNotFoundError: scipy, joblib or (for t-SNE) scikit-learn is not installed.
        tenfold.assets.AssetError: the embedded file is missing; the message says how to install it.
    """
    config = config.resolved()
    require("scipy", "joblib", *(["sklearn"] if config.embedding == "tsne" else []))
    corpus = load_corpus(config)
    every = folds(corpus, config.protocol)
    numbers = _chosen(config, len(every))
    outcome = Outcome(config, corpus, every, numbers)
    _train_all(config, folder, outcome)
    from tenfold.eeg.report import write

    return Result(write(outcome, folder), folder.path)


def _chosen(config: MsdcdaConfig, count: int) -> list[int]:
    for number in config.targets:
        if number >= count:
            _checks.fail(ValueError, "targets", f"numbers of the {count} folds, from 0", number)
    return sorted(set(config.targets)) or list(range(count))


@dataclass(frozen=True)
class Job:
    """One training, as it is handed to a process."""

    method: str
    fold: int
    seed: int
    keep: bool

    @property
    def key(self) -> str:
        """Name in the folder."""
        return f"{self.method}-fold{self.fold}-seed{self.seed}"


def jobs(config: MsdcdaConfig, numbers: list[int]) -> list[Job]:
    """All trainings; those of a fold stand together, for the data of a fold are scaled once."""
    kept = {"first": config.seeds[:1], "all": config.seeds, "none": []}[config.save]
    return [
        Job(name, number, seed, seed in kept)
        for number in numbers for seed in config.seeds for name in config.methods
    ]  # fmt: skip


def _train_all(config: MsdcdaConfig, folder: RunFolder, outcome: Outcome) -> None:
    todo = []
    for job in jobs(config, outcome.numbers):
        saved = folder.load_state(job.key)
        if saved is None:
            todo.append(job)
        else:
            _take(outcome, saved)
    done = len(outcome.trials)
    with folder.progress(done + len(todo), "train", done=done) as progress:
        for state, tensors in _results(config, todo):
            trial = _take(outcome, (state, tensors))
            folder.save_state(trial.key, state, tensors)
            progress.advance(accuracy=trial.scores.accuracy)
    outcome.trials.sort(key=lambda t: (config.methods.index(t.method), t.fold, t.seed))


def _take(outcome: Outcome, saved: tuple[Any, dict[str, Tensor]]) -> Trial:
    state, tensors = saved
    trial = Trial(**{**state, "scores": Scores(**state["scores"])})
    outcome.trials.append(trial)
    if tensors:
        outcome.weights[trial.key] = tensors
    return trial


def _results(config: MsdcdaConfig, todo: list[Job]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Trainings as they are done, side by side; on a GPU only if several workers are asked for."""
    workers = config.workers if config.device == "cpu" else config.workers or 1
    for state, arrays in run_jobs(partial(_arrays_of_one, config), todo, workers=workers):
        yield state, {name: torch.from_numpy(array) for name, array in arrays.items()}


def _arrays_of_one(config: MsdcdaConfig, job: Job) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """`one` with arrays, which travel better between processes."""
    state, tensors = one(config, job)
    return state, {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


_held: dict[str, tuple[str, Any]] = {}
"""What this process read last: name -> (from what, value)."""


def _hold(name: str, key: str, make: Callable[[], Any]) -> Any:
    if name not in _held or _held[name][0] != key:
        _held[name] = (key, make())
    return _held[name][1]


def _source(config: MsdcdaConfig) -> str:
    """What decides which rows are read."""
    names = ("dataset", "data", "subjects", "raw", "extraction", "feature", "label", "threshold")
    return repr([getattr(config, name) for name in names])


def _corpus(config: MsdcdaConfig) -> Corpus:
    corpus: Corpus = _hold("corpus", _source(config), lambda: load_corpus(config))
    return corpus


def scaled_fold(config: MsdcdaConfig, number: int) -> Fold:
    """The fold of that number as it is trained on: scaled, on its device."""

    def make() -> Fold:
        fold = normalise_fold(folds(_corpus(config), config.protocol)[number], config.normalise)
        domains = [replace(d, x=d.x.to(device), y=_moved(d.y, device)) for d in (*fold.sources, fold.target)]
        return replace(fold, sources=tuple(domains[:-1]), target=domains[-1])

    device = config.device
    key = repr((_source(config), config.protocol, config.normalise, device, number))
    found: Fold = _hold("fold", key, make)
    return found


def _moved(y: Tensor | None, device: str) -> Tensor | None:
    return None if y is None else y.to(device)


def one(config: MsdcdaConfig, job: Job) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train, score and describe; plain data and, if they are kept, the weights."""
    fold = scaled_fold(config, job.fold)
    method = config.method(job.method)
    corpus = _corpus(config)
    best = _accuracy(fold) if config.select == "oracle" else None
    trained = train(fold, len(corpus.classes), method, config.settings(job.seed, method), select=best)
    groups = torch.arange(corpus.width, device=fold.target.x.device) // max(1, len(corpus.bands))
    assert fold.target.y is not None
    state = {
        "method": job.method, "fold": job.fold, "seed": job.seed,
        "scores": evaluate(trained, fold, method).plain(), "history": trained.history, "notes": trained.notes,
        "saliency": saliency(trained, fold.target.x).tolist(),
        "occlusion": occlusion(trained, fold.target.x, fold.target.y, groups).tolist(),
    }  # fmt: skip
    tensors = {}
    if job.keep:
        tensors = {name: t.detach().cpu() for name, t in trained.network.state_dict().items()}
        tensors["branch_weights"] = trained.weights.cpu()
    return state, tensors


def _accuracy(fold: Fold) -> Any:
    """Accuracy on the target's labels: for --select oracle only."""

    def measure(trained: Trained) -> float:
        assert fold.target.y is not None
        return float(torch.eq(predict(trained, fold.target.x)[0].argmax(1), fold.target.y).double().mean())

    return measure


def restore(outcome: Outcome, key: str) -> Trained:
    """The trained network of a trial whose weights were kept."""
    tensors = dict(outcome.weights[key])
    weights = tensors.pop("branch_weights")
    corpus = outcome.corpus
    net = Network(corpus.width, len(corpus.classes), len(weights), bn=outcome.config.bn)
    net.load_state_dict(tensors)
    return Trained(net.eval(), [], weights)
