"""The workflow ``cwerm``: weights learned on a coreset, carried to all rows, trained with and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.runs import RunFolder, require
from tenfold.runs.executor import run_jobs
from tenfold.selection.reweight import carry
from tenfold.selection.reweight.arms import Arm
from tenfold.selection.reweight.config import CwermConfig
from tenfold.selection.reweight.coreset import (
    coreset_size,
    moderate_coreset,
    purity,
    random_coreset,
    split_meta,
)
from tenfold.selection.reweight.data import Labelled, load
from tenfold.selection.reweight.extract import (
    feature_key,
    features_of,
    kept_features,
    load_features,
    pixels,
)
from tenfold.selection.reweight.given import given_coreset, given_weights
from tenfold.selection.reweight.models import make_model
from tenfold.selection.reweight.settings import Setting, problem
from tenfold.selection.reweight.train import Clock, Recipe, fit
from tenfold.selection.reweight.weigh import MetaRecipe, learn_weights

__all__ = ["Outcome", "Result", "Training", "Trial", "Weighed", "Weighing", "reweight", "run"]


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass(frozen=True)
class Weighing:
    """One learning of weights: on a coreset of `ratio`, or on all rows."""

    setting: int
    seed: int
    ratio: float
    everything: bool = False


@dataclass
class Weighed:
    """What it found.

    Attributes:
        state: seconds of each part, purities, notes, history, sizes.
        arrays: core and random (rows), core_weights, core_losses, before and after (V), w-MODE (of all).
    """

    state: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Training:
    """One training."""

    setting: int
    seed: int
    ratio: float
    arm: Arm
    keep: bool = False


@dataclass
class Trial:
    """What came of it."""

    setting: int
    seed: int
    ratio: float
    arm: str
    accuracy: float
    seconds: float
    steps: int
    rows: int
    curve: list[dict[str, float]]
    correct: NDArray[np.bool_]
    recall: list[float]
    """Share of each class of the test set that is right."""


@dataclass
class Outcome:
    """Everything that the report is written from."""

    config: CwermConfig
    problems: list[Setting]
    weighed: dict[Weighing, Weighed] = field(default_factory=dict)
    trials: dict[tuple[int, int, float, str], Trial] = field(default_factory=dict)
    networks: dict[tuple[int, int, float, str], dict[str, Tensor]] = field(default_factory=dict)
    extract_seconds: float = 0.0

    def values(self, arm: str, setting: int = 0, ratio: float | None = None, what: str = "accuracy") -> Any:
        """One number for each seed; empty if the arm was not trained there."""
        found = [self.trials.get((setting, s, self.at(ratio), arm)) for s in self.config.seeds]
        return np.array([getattr(t, what) for t in found if t is not None], dtype=np.float64)

    def at(self, ratio: float | None) -> float:
        """The ratio, or the run's own."""
        assert self.config.ratio is not None
        return self.config.ratio if ratio is None else ratio

    def weights_of(self, arm: Arm, setting: int, seed: int, ratio: float | None = None) -> Any:
        """The weights that an arm is trained with, or None."""
        return weights_of(self.config, arm, setting, seed, self.at(ratio), self.weighed)

    def coreset(self, setting: int, seed: int, ratio: float | None = None) -> Weighed:
        """What was learned on the coreset."""
        return self.weighed[Weighing(setting, seed, self.at(ratio))]


def reweight(
    config: CwermConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = (config or CwermConfig()).resolved()
    return run(config, RunFolder.create("cwerm", config, out, resume))


def run(config: CwermConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a setting or a data file is wrong (named).
        RuntimeError: a loss is not finite, or a worker died.
        ModuleNotFoundError: scikit-learn, scipy or joblib is not installed.
    """
    config = config.resolved()
    require("sklearn", "scipy", "joblib")
    outcome = Outcome(config, config.problems())
    files = _prepare(config, folder, outcome)
    _weigh_all(config, folder, outcome, files)
    _train_all(config, folder, outcome)
    from tenfold.selection.reweight.report import write

    return Result(write(outcome, folder), folder.path)


_held: dict[str, tuple[str, Any]] = {}
"""What this process read last: name -> (from what, value)."""


def _hold(name: str, key: str, make: Callable[[], Any]) -> Any:
    if name not in _held or _held[name][0] != key:
        _held[name] = (key, make())
    return _held[name][1]


def base_data(config: CwermConfig, seed: int) -> Labelled:
    """The data set before anything is done to it; only digits depend on the seed."""
    own = seed if config.dataset == "digits" else 0
    key = repr((config.dataset, config.data, own, config.side))
    found: Labelled = _hold(
        "data", key, lambda: load(config.dataset, config.data, seed=own, side=config.side)
    )
    return found


def problem_of(config: CwermConfig, setting: int, seed: int) -> tuple[Labelled, NDArray[np.int64]]:
    """The data of a problem, and which rows of the data set are its training rows."""
    rows = config.meta_rows or 0 if config.meta == "clean" else 0
    key = repr((config.dataset, config.data, config.settings[setting], seed, config.side, rows))
    found: tuple[Labelled, NDArray[np.int64]] = _hold(
        "problem", key, lambda: problem(base_data(config, seed), config.problems()[setting], seed, rows)
    )
    return found


def _prepare(config: CwermConfig, folder: RunFolder, outcome: Outcome) -> str:
    """Read the data once, extract features; the file that they are in, "" for pixels."""
    for setting in range(len(outcome.problems)):
        data, rows = problem_of(config, setting, config.seeds[0])
        if config.meta == "given" and data.x_meta is None:
            _checks.fail(ValueError, "meta", "x_meta and y_meta in the data", "none")
        _check_sizes(config, data, rows)
        if config.given_weights:
            given_weights(config, len(data.y))
    data = base_data(config, config.seeds[0])
    if config.features:
        load_features(Path(config.features), data)
        return config.features
    if config.extractor == "pixels":
        return ""
    kept = Path(config.cache) if config.cache else folder.path / "features"
    clock = Clock(config.device)
    folder.log(f"features by {config.extractor}, kept in {kept}")
    found = features_of(
        data, config.extractor, weights=config.extractor_weights, cache=kept, device=config.device,
        compat=config.compat,
    )  # fmt: skip
    saved = folder.load_state("features")
    outcome.extract_seconds = clock.seconds if saved is None else saved[0]["seconds"]
    folder.save_state("features", {"seconds": outcome.extract_seconds})
    folder.log(f"features: {found.shape[0]:,} rows of {found.shape[1]:,} numbers")
    key = feature_key(data, config.extractor, Path(config.extractor_weights), config.compat)
    return str(kept_features(kept, config.extractor, key))


def _check_sizes(config: CwermConfig, data: Labelled, rows: NDArray[np.int64]) -> None:
    """Every coreset has more rows than are parted off as meta rows."""
    sizes = {
        f"of ratio {r:g}": coreset_size(r, len(data.y)) for r in [config.ratio, *(config.ratios or [])] if r
    }
    if config.coreset:
        sizes = {"given": len(given_coreset(config, len(base_data(config, config.seeds[0]).y), rows)[0])}
    least = 1 + (config.meta_rows or 1)
    for name, size in sizes.items():
        if config.meta == "split" and not config.compat and size < least:
            expected = f"at least {least} of {len(data.y)} rows, {least - 1} of them to be meta rows"
            _checks.fail(ValueError, f"coreset {name}", expected, size)


def weighings(config: CwermConfig) -> list[Weighing]:
    """All learnings of weights, the long ones first."""
    assert config.ratio is not None
    found = [
        Weighing(k, seed, 1.0, True)
        for k in range(len(config.settings)) if any(arm.source == "all" for arm in config.arms(k))
        for seed in config.seeds
    ]  # fmt: skip
    for ratio in sorted({*(config.ratios or []), config.ratio}, reverse=True):
        settings = range(len(config.settings)) if ratio == config.ratio else range(1)
        found += [Weighing(k, seed, ratio) for k in settings for seed in config.seeds]
    return found


def trainings(config: CwermConfig) -> list[Training]:
    """All trainings."""
    assert config.ratio is not None
    kept = {"first": config.seeds[:1], "all": config.seeds, "none": []}[config.save]
    found = []
    for ratio in dict.fromkeys([config.ratio, *(config.ratios or [])]):
        settings = range(len(config.settings)) if ratio == config.ratio else range(1)
        for k in settings:
            for seed in config.seeds:
                keep = seed in kept and ratio == config.ratio
                arms = config.arms(k) if ratio == config.ratio else config.swept()
                found += [Training(k, seed, ratio, arm, keep) for arm in arms]
    return found


def weighing_key(config: CwermConfig, job: Weighing) -> str:
    """Name in the folder."""
    part = "all" if job.everything else f"r{job.ratio:g}"
    return f"weigh-{config.problems()[job.setting].slug}-{part}-seed{job.seed}"


def training_key(config: CwermConfig, job: Training) -> str:
    """Name in the folder."""
    return f"train-{config.problems()[job.setting].slug}-{job.arm.name}-r{job.ratio:g}-seed{job.seed}"


def _workers(config: CwermConfig) -> int:
    return config.workers if config.device == "cpu" else config.workers or torch.cuda.device_count()


def _weigh_all(config: CwermConfig, folder: RunFolder, outcome: Outcome, features: str) -> None:
    todo = []
    for job in weighings(config):
        saved = folder.load_state(weighing_key(config, job))
        if saved is None:
            todo.append(job)
        else:
            outcome.weighed[job] = Weighed(saved[0], {n: t.numpy() for n, t in saved[1].items()})
    done = len(outcome.weighed)
    with folder.progress(done + len(todo), "learn weights", done=done) as progress:
        work = partial(weigh, config, features)
        for number, state, arrays in run_jobs(work, list(enumerate(todo)), workers=_workers(config)):
            job = todo[number]
            tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
            folder.save_state(weighing_key(config, job), state, tensors)
            outcome.weighed[job] = Weighed(state, arrays)
            progress.advance()


def weigh(
    config: CwermConfig, features: str, numbered: tuple[int, Weighing]
) -> tuple[int, dict[str, Any], dict[str, NDArray[Any]]]:
    """Choose a coreset, learn its weights, carry them to all rows."""
    number, job = numbered
    device = _device(config, number)
    data, rows = problem_of(config, job.setting, job.seed)
    x = _features(config, features, job.seed)[rows]
    count, rng = len(data.classes), np.random.default_rng([job.seed, 2])
    rounding = "reference" if config.compat else "exact"
    clock = Clock("cpu")
    notes: list[str] = []
    if job.everything:
        core = np.arange(len(data.y))
    elif config.coreset:
        core, notes = given_coreset(config, len(base_data(config, job.seed).y), rows)
    else:
        core = moderate_coreset(x, data.y, coreset_size(job.ratio, len(data.y)), count, rounding=rounding)
    seconds = {"select": clock.seconds}
    split = None
    if config.meta == "split":
        split = split_meta(data.y[core], count, rng, count=config.meta_rows, compat=config.compat)
    recipe = meta_recipe(config)
    model = make_model(config.meta_model, data.shape, count, job.seed)
    arms = config.arms(job.setting) if job.ratio == config.ratio else config.swept()
    modes = sorted({arm.mode for arm in arms if arm.source == "coreset"})
    learned = learn_weights(
        model, data, core, split, recipe, job.seed, device=device, compat=config.compat,
        everywhere="function" in modes and not job.everything,
    )  # fmt: skip
    seconds["learn"] = learned.seconds
    own = learned.weights if config.weights == "final" else learned.trajectory
    arrays: dict[str, NDArray[Any]] = {
        "core": core, "random": random_coreset(len(data.y), len(core), rng), "core_weights": own,
        "core_losses": learned.losses, "before": learned.before, "after": learned.after,
    }  # fmt: skip
    for mode in ["nn"] if job.everything else modes:
        clock = Clock("cpu")
        if job.everything:
            arrays["w-nn"] = own.copy()
        else:
            carried = carry.broadcast(
                own, x, core, mode, labels=data.y, function_weights=learned.everywhere,
                neighbours=config.neighbours, compat=config.compat,
            )  # fmt: skip
            arrays[f"w-{mode}"] = carried.weights
            notes += carried.notes
        seconds[f"carry-{mode}"] = clock.seconds
    state = {
        "seconds": seconds, "history": learned.history, "notes": notes, "size": len(core),
        "count": len(data.y), "purity": purities(data, core, arrays["random"]),
    }  # fmt: skip
    return number, state, arrays


def purities(data: Labelled, core: NDArray[np.int64], drawn: NDArray[np.int64]) -> dict[str, float]:
    """Share of right labels in all rows, in the coreset and in one drawn at random; empty if unknown."""
    if data.true_y is None:
        return {}
    return {
        "data": purity(data.y, data.true_y), "moderate": purity(data.y, data.true_y, core),
        "random": purity(data.y, data.true_y, drawn),
    }  # fmt: skip


def meta_recipe(config: CwermConfig) -> MetaRecipe:
    """How weights are learned."""
    return MetaRecipe(
        epochs=config.meta_epochs, batch=config.meta_batch, augment=bool(config.augment),
        meta_lr=config.meta_lr, meta_weight_decay=config.meta_weight_decay, meta_batch=config.meta_batch,
        meta_interval=config.meta_interval, normalise=config.meta_normalise,
    )  # fmt: skip


def recipe_of(config: CwermConfig, setting: Setting) -> Recipe:
    """How networks are trained in a problem."""
    epochs = setting.epochs or config.epochs
    assert epochs is not None
    assert config.batch is not None
    decay = config.weight_decay if setting.weight_decay is None else setting.weight_decay
    return Recipe(
        epochs, config.batch, config.lr, weight_decay=decay, clamp=config.clamp, augment=bool(config.augment),
        precision=config.precision,
    )  # fmt: skip


def _features(config: CwermConfig, file: str, seed: int) -> NDArray[np.float32]:
    data = base_data(config, seed)
    if not file:
        return pixels(data.x)
    key = repr((file, config.dataset, config.data))
    found: NDArray[np.float32] = _hold("features", key, lambda: load_features(Path(file), data))
    return found


def _device(config: CwermConfig, number: int) -> str:
    return "cpu" if config.device == "cpu" else f"cuda:{number % torch.cuda.device_count()}"


def weights_of(
    config: CwermConfig, arm: Arm, setting: int, seed: int, ratio: float, weighed: dict[Weighing, Weighed]
) -> NDArray[np.float32] | None:
    """Weights of all training rows for an arm; None for plain ERM."""
    if not arm.source:
        return None
    if arm.source == "scale":
        return np.full(len(problem_of(config, setting, seed)[0].y), arm.scale, np.float32)
    if arm.source == "given":
        found = given_weights(config, len(problem_of(config, setting, seed)[0].y))
    else:
        whole = arm.source == "all"
        job = Weighing(setting, seed, 1.0 if whole else ratio, whole)
        found = weighed[job].arrays["w-nn" if whole else f"w-{arm.mode}"]
    if arm.normalise:
        found = carry.normalised(found)
    if arm.control == "constant":
        return carry.constant(found)
    if arm.control == "shuffled":
        return carry.shuffled(found, np.random.default_rng([seed, 3]))
    return found


def _train_all(config: CwermConfig, folder: RunFolder, outcome: Outcome) -> None:
    todo = []
    for job in trainings(config):
        saved = folder.load_state(training_key(config, job))
        if saved is None:
            todo.append(job)
        else:
            _take(outcome, job, *saved)
    done = len(outcome.trials)
    work = [
        (number, job, outcome.weights_of(job.arm, job.setting, job.seed, job.ratio), _rows(outcome, job))
        for number, job in enumerate(todo)
    ]
    with folder.progress(done + len(todo), "train", done=done) as progress:
        made = run_jobs(partial(train, config, folder.path / "state"), work, workers=_workers(config))
        for number, state, arrays in made:
            tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
            folder.save_state(training_key(config, todo[number]), state, tensors)
            _take(outcome, todo[number], state, tensors)
            progress.advance(accuracy=state["accuracy"])


def _rows(outcome: Outcome, job: Training) -> NDArray[np.int64] | None:
    if job.arm.rows == "all":
        return None
    weighed = outcome.coreset(job.setting, job.seed, job.ratio)
    return weighed.arrays["core" if job.arm.rows == "moderate" else "random"]


def _take(outcome: Outcome, job: Training, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors = dict(tensors)
    correct = tensors.pop("correct").numpy().astype(bool)
    key = (job.setting, job.seed, job.ratio, job.arm.name)
    outcome.trials[key] = Trial(*key, **state, correct=correct)
    if tensors:
        outcome.networks[key] = tensors


def train(
    config: CwermConfig, states: Path,
    numbered: tuple[int, Training, NDArray[np.float32] | None, NDArray[np.int64] | None],
) -> tuple[int, dict[str, Any], dict[str, NDArray[Any]]]:  # fmt: skip
    """Train and test one network."""
    number, job, weights, rows = numbered
    setting = config.problems()[job.setting]
    data, _ = problem_of(config, job.setting, job.seed)
    model = make_model(config.model, data.shape, len(data.classes), job.seed)
    every = config.checkpoint_every if config.dataset != "digits" else 0
    fitted = fit(
        model, data, recipe_of(config, setting), job.seed, rows=rows, weights=weights,
        device=_device(config, number), watch=config.watch, every=every,
        checkpoint=states / f"{training_key(config, job)}.part.safetensors" if every else None,
    )  # fmt: skip
    state = {
        "accuracy": fitted.accuracy, "seconds": fitted.seconds, "steps": fitted.steps,
        "rows": len(data.y) if rows is None else len(rows), "curve": fitted.curve,
        "recall": [float(fitted.correct[data.y_test == c].mean()) if (data.y_test == c).any() else 0.0
                   for c in range(len(data.classes))],
    }  # fmt: skip
    arrays: dict[str, NDArray[Any]] = {"correct": fitted.correct.astype(np.uint8)}
    if job.keep:
        arrays |= {name: t.detach().cpu().numpy() for name, t in model.state_dict().items()}
    return number, state, arrays
