"""Workflow ``unlearndiffatk``: unlearned text-to-image models are attacked; does what was erased come back?

    tenfold run unlearndiffatk                                      the embedded default: an erased digit
    tenfold run unlearndiffatk --erased '["negative", "sld"]' --concept three
    tenfold run unlearndiffatk --model path/to/sd-v1-4 --target_checkpoint esd-church.safetensors
        --concept church --prompts church.csv --judge classifier=path/to/resnet-50 --device cuda

Target pictures are made first, then the erased models, then every attack runs on every model in processes
side by side. Each prompt's log is kept when it is done, so that an interrupted run goes on.

Paper: arXiv 2310.11868 (UnlearnDiffAtk); with P4D (arXiv 2309.06135), on ESD (arXiv 2303.07345) and
AdvUnlearn (arXiv 2405.15234).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack import (
    Case,
    CaseLog,
    LogFolder,
    Rates,
    Sampling,
    Target,
    attack_rates,
    settings_of,
    target_cases,
    write_jsonl,
)
from tenfold.diffusion.attack.dataset import case_of, cases_of_targets, draw_targets, write_targets
from tenfold.diffusion.bundle import Bundle, load_bundle
from tenfold.diffusion.erase import Concept, Edit
from tenfold.diffusion.erase.edit import digest
from tenfold.diffusion.unlearndiffatk_config import ORIGINAL, UnlearnDiffAtkConfig
from tenfold.runs import RunFolder, require
from tenfold.runs.executor import run_jobs

__all__ = ["Outcome", "Result", "Trial", "UnlearnDiffAtkConfig", "attack", "run"]

Job = tuple[str, str, int]
"""Model, attack's label, seed."""


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass
class Trial:
    """One attack on one model with one seed; processor seconds of it."""

    model: str
    label: str
    seed: int
    logs: list[CaseLog]
    cpu_seconds: float

    @property
    def key(self) -> str:
        """Name in the folder."""
        return _key((self.model, self.label, self.seed))


@dataclass
class Outcome:
    """Everything that the report is written from."""

    config: UnlearnDiffAtkConfig
    trials: list[Trial] = field(default_factory=list)
    train_seconds: dict[str, float] = field(default_factory=dict)

    def of(self, model: str, label: str) -> list[Trial]:
        """An attack's trials, by seed."""
        return [t for t in self.trials if (t.model, t.label) == (model, label)]

    def rates(self, model: str, label: str) -> Rates:
        """Of all seeds together."""
        return attack_rates([log for trial in self.of(model, label) for log in trial.logs])

    def best_p4d(self, model: str) -> str:
        """The label of P4D whose learning rate brings most prompts back; the first of equals."""
        labels = [label for label in self.config.labels if label.startswith("p4d")]
        return max(labels, key=lambda label: self.rates(model, label).post.successes)

    @property
    def errors(self) -> int:
        return sum(log.state == "error" for trial in self.trials for log in trial.logs)

    @property
    def cut(self) -> list[CaseLog]:
        """Prompts whose end did not fit, each once."""
        logs = {log.case_number: log for t in self.trials for log in t.logs if log.cut}
        return list(logs.values())


def attack(
    config: UnlearnDiffAtkConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = (config or UnlearnDiffAtkConfig()).resolved()
    return run(config, RunFolder.create("unlearndiffatk", config, out, resume))


def run(config: UnlearnDiffAtkConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or a model is wrong (named).
        RuntimeError: every prompt of an attack failed, or a worker died.
        ModuleNotFoundError: diffusers, transformers, scikit-learn or joblib is not installed.
    """
    config = config.resolved()
    require("diffusers", "transformers", "sklearn", "joblib")
    judge_of(config)
    outcome = Outcome(config)
    workers = config.workers if config.device == "cpu" else config.workers or 1
    _make_targets(config, folder.path)
    out = str(folder.path)
    for name, seconds in run_jobs(partial(make, config, out), config.names[::-1], workers=workers):
        outcome.train_seconds[name] = seconds
    jobs = jobs_of(config)
    todo = []
    for job in jobs:
        saved = folder.load_state(_key(job))
        if saved is None:
            todo.append(job)
        else:
            outcome.trials.append(_trial(job, *saved))
    with folder.progress(len(jobs), "attacks", done=len(jobs) - len(todo)) as progress:
        for job, state, tensors in run_jobs(partial(one, config, out), _longest_first(todo), workers=workers):
            folder.save_state(_key(job), state, tensors)
            outcome.trials.append(_trial(job, state, tensors))
            progress.advance()
    outcome.trials.sort(key=lambda t: jobs.index((t.model, t.label, t.seed)))
    for trial in outcome.trials:
        if all(log.state == "error" for log in trial.logs):
            _checks.fail(RuntimeError, trial.key, "a prompt whose attack finishes", trial.logs[0].error)
        write_jsonl(folder.path / "logs" / f"{trial.key}.jsonl", trial.logs)
    from tenfold.diffusion.unlearndiffatk_report import write

    return Result(write(outcome, folder), folder.path)


def jobs_of(config: UnlearnDiffAtkConfig) -> list[Job]:
    """Every attack on every erased model; prompts as they are need one seed only, and show the original."""
    jobs: list[Job] = [(ORIGINAL, "no_attack", config.seeds[0])]
    for name in config.names:
        for label in config.labels:
            fixed = label in ("no_attack", "transfer")
            jobs += [(name, label, seed) for seed in (config.seeds[:1] if fixed else config.seeds)]
    return jobs


def _longest_first(jobs: list[Job]) -> list[Job]:
    order = ("p4d", "text_grad", "random", "seed_search", "transfer", "no_attack")
    return sorted(jobs, key=lambda job: order.index(job[1].partition("-")[0]))


def _key(job: Job) -> str:
    model, label, seed = job
    return f"{model}-{label}-seed{seed}"


def _trial(job: Job, state: dict[str, Any], tensors: dict[str, Tensor]) -> Trial:
    logs = [CaseLog.from_plain(data) for data in state["logs"]]
    for i, log in enumerate(logs):
        log.pictures = [tensors[name] for name in (f"{i}.first", f"{i}.last") if name in tensors]
    return Trial(*job, logs, state["cpu_seconds"])


def _make_targets(config: UnlearnDiffAtkConfig, out: Path) -> None:
    """The original model's pictures, in the run's folder unless they were given."""
    if config.targets:
        cases_of_targets(config.targets)
        return
    if (out / "targets").is_dir():
        return
    cases = plain_cases(config)
    assert config.target_steps is not None
    assert config.sampler is not None
    sampling = Sampling(config.target_steps, config.sampler, batch=config.sampling().batch)
    original = load_bundle(config.model, device=config.device)
    write_targets(out / "targets", cases, draw_targets(original, cases, sampling))


def plain_cases(config: UnlearnDiffAtkConfig) -> list[Case]:
    """The prompts of a file, or the embedded ones: ten ways to name the digit, two seeds each."""
    if config.prompts:
        from tenfold.diffusion.prompts import read_prompts

        return [case_of(row) for row in read_prompts(config.prompts)]
    from tenfold.diffusion.digits import digit_name
    from tenfold.diffusion.digits.vocabulary import NAME_TEMPLATES

    prompts = [template.format(digit_name(config.concept)) for template in NAME_TEMPLATES] * 2
    return [Case(str(i), p, 100 + i, float(config.guidance or 3.0)) for i, p in enumerate(prompts)]


def judge_of(config: UnlearnDiffAtkConfig) -> Any:
    """The judge of pictures."""
    from tenfold.diffusion.judges.load import load_judge

    options: dict[str, Any] = {}
    if config.judge.startswith("classifier="):
        options["top_k"] = config.top_k
    if config.judge_prompts:
        options["prompts"] = config.judge_prompts
    return load_judge(config.judge or "digits", config.concept, **options)


def make(config: UnlearnDiffAtkConfig, out: str, name: str) -> tuple[str, float]:
    """Make an erased model, unless it is there: its name and the seconds it took (processor time)."""
    start, path = time.process_time(), Path(out) / "models" / name
    if name == "checkpoint":
        target_of(config, out, name)  # say now what is wrong with it
        return name, time.process_time() - start
    if path.is_dir():
        return name, Edit.load(path).details["cpu_seconds"]
    base = load_bundle(config.model, device=config.device)
    eraser, concept = _eraser(config, name)
    edit = eraser.fit(base, concept, seed=config.train_seed)
    edit.details["cpu_seconds"] = time.process_time() - start
    edit.save(path)
    return name, edit.details["cpu_seconds"]


def _eraser(config: UnlearnDiffAtkConfig, name: str) -> tuple[Any, Concept]:
    """Erasers of the digits model are set as `advunlearn` sets them."""
    if name in ("negative", "sld"):
        from tenfold.diffusion.erase.hooks import NegativePrompt, SafeLatent

        hook = NegativePrompt() if name == "negative" else SafeLatent(config.sld)
        return hook, Concept(config.concept, (config.concept,))
    from tenfold.diffusion.advunlearn_config import AdvUnlearnConfig
    from tenfold.diffusion.advunlearn_run import concept_of

    like = AdvUnlearnConfig(concept=config.concept).resolved()
    return like.method(name), concept_of(like)


def target_of(config: UnlearnDiffAtkConfig, out: str, name: str) -> Target:
    """What an attack gets: the erased model beside the original."""
    original = load_bundle(config.model, device=config.device)
    if name == ORIGINAL:
        return Target(original, original, name=name)
    if name == "checkpoint":
        return _given(config, original)
    edit = Edit.load(Path(out) / "models" / name)
    return Target(edit.apply(original), original, name=name, **edit.options)


def _given(config: UnlearnDiffAtkConfig, original: Bundle) -> Target:
    """The erased model that was given, whatever form it has."""
    from tenfold.diffusion.keys import apply_text_encoder, apply_unet, checkpoint_kind, load_component_state

    path = Path(config.target_checkpoint)
    if (path / "model_index.json").is_file():
        given = load_bundle(path, device=config.device)
        ours, theirs = original.modules(), given.modules()
        if ours.keys() == theirs.keys() and all(digest(theirs[n]) == digest(ours[n]) for n in ours):
            what = "weights that change something"
            _checks.fail(
                ValueError, "target_checkpoint", what, f"weights identical to {config.model}: {path}"
            )
        return Target(given, original, name=str(path))
    if any((path / about).is_file() for about in ("edit.json", "adv_unlearn.json")):
        edit = Edit.load(path)
        return Target(edit.apply(original), original, name=str(path), **edit.options)
    kind = checkpoint_kind(load_component_state(path))
    put = apply_unet if kind == "unet" else apply_text_encoder
    return Target(put(original, path), original, name=str(path))


def one(config: UnlearnDiffAtkConfig, out: str, job: Job) -> tuple[Job, dict[str, Any], dict[str, Tensor]]:
    """One attack on one model with one seed, prompt by prompt kept in the run's folder."""
    name, label, seed = job
    start = time.process_time()
    target = target_of(config, out, name)
    cases, pictures = cases_of_targets(config.targets or Path(out) / "targets")
    original = target.original
    assert original is not None
    if label.startswith(("p4d", "text_grad")):
        cases = target_cases(original, cases, pictures=pictures)
    chosen, sampling = config.attack(label, seed), config.sampling()
    settings = settings_of(chosen, target, sampling)
    store = LogFolder(Path(out) / "attacks" / name / f"{label}-seed{seed}", settings, images=config.images)
    logs = chosen.run(
        target, cases, judge_of(config), sampling=sampling, batch=config.batch, store=store,
        on_error=config.on_error,
    )  # fmt: skip
    tensors = {}
    for i, log in enumerate(logs):
        for place, picture in zip(("first", "last"), (log.pictures[:1] + log.pictures[-1:]), strict=False):
            tensors[f"{i}.{place}"] = picture.cpu().contiguous().clone()
    state = {"logs": [log.plain() for log in logs], "cpu_seconds": time.process_time() - start}
    return job, state, tensors


def shown(outcome: Outcome, model: str, label: str, most: int = 10) -> list[CaseLog]:
    """The first logs of an attack that have pictures, of its first seed."""
    trials = outcome.of(model, label)
    return [log for log in trials[0].logs if log.pictures][:most] if trials else []


def as_seen(picture: Tensor) -> Any:
    """uint8 [c, H, W] as matplotlib takes it."""
    shape = picture.permute(1, 2, 0).to(torch.uint8).numpy()
    return shape[:, :, 0] if shape.shape[2] == 1 else shape
