"""Workflow ``advunlearn``: a concept is erased from a text-to-image model, with and without an attacker in
training.

    tenfold run advunlearn                                          the embedded default: a digit
    tenfold run advunlearn --concept three --seeds '[0, 1]'
    tenfold run advunlearn --model path/to/sd-v1-4 --concept nudity --retain coco_object.csv
        --attack_prompts nudity.csv --judge nudenet --device cuda

Every erased model is trained, its retained pictures judged, and attacked, in processes side by side; what
is done is kept, and the state of every training, so that an interrupted run goes on.

Paper: arXiv 2405.15234 (AdvUnlearn), on ESD (arXiv 2303.07345); attacked by UnlearnDiffAtk (arXiv
2310.11868).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.advunlearn_config import AdvUnlearnConfig
from tenfold.diffusion.attack import (
    Case,
    RandomTokens,
    Rate,
    Sampling,
    Target,
    TextGrad,
    attack_rates,
    target_cases,
)
from tenfold.diffusion.attack.dataset import case_of
from tenfold.diffusion.bundle import Bundle, load_bundle
from tenfold.diffusion.digits import (
    DigitJudge,
    digit_agreement,
    digit_name,
    digit_pictures,
    pixel_frechet,
    retain_prompts,
)
from tenfold.diffusion.digits.vocabulary import NAME_TEMPLATES
from tenfold.diffusion.erase import Concept, Edit
from tenfold.diffusion.erase.keep import fit_kept
from tenfold.diffusion.sampling import generate
from tenfold.runs import RunFolder, require
from tenfold.runs.executor import run_jobs

__all__ = ["AdvUnlearnConfig", "Outcome", "Result", "Trial", "erase", "run"]

SHOWN = 10
"""Prompts in the grids of pictures."""
_KEPT_SEED = 5000


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass
class Trial:
    """One model: which, its seconds of training (processor time), what it retains, and its attacks.

    rates: attack -> (pre successes, post successes, prompts). found: prompts that brought the concept back.
    """

    name: str
    seed: int
    train_seconds: float
    attack_seconds: float
    losses: list[float]
    retained: float | None
    frechet: float | None
    rates: dict[str, list[int]] = field(default_factory=dict)
    errors: int = 0
    found: list[str] = field(default_factory=list)
    peak_bank_mib: float = 0.0

    @property
    def key(self) -> str:
        """Name in the folder."""
        return f"{self.name}-seed{self.seed}"


@dataclass
class Outcome:
    """Everything that the report is written from. `pictures`: key -> [n, C, H, W] uint8 of plain prompts,
    of the
    same after the attack, and of retained prompts, side by side."""

    config: AdvUnlearnConfig
    trials: list[Trial] = field(default_factory=list)
    pictures: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def of(self, name: str) -> list[Trial]:
        """The trials of a model, by seed."""
        return [t for t in self.trials if t.name == name]

    def rate(self, name: str, attack: str, when: str = "post") -> Rate:
        """Success rate over all seeds together."""
        rows = [t.rates[attack] for t in self.of(name) if attack in t.rates]
        return Rate(sum(r[0 if when == "pre" else 1] for r in rows), sum(r[2] for r in rows))

    def retained(self, name: str) -> float | None:
        """Mean share of retained pictures that are still judged right."""
        values = [t.retained for t in self.of(name) if t.retained is not None]
        return sum(values) / len(values) if values else None


def erase(
    config: AdvUnlearnConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = (config or AdvUnlearnConfig()).resolved()
    return run(config, RunFolder.create("advunlearn", config, out, resume))


def run(config: AdvUnlearnConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or a model is wrong (named).
        RuntimeError: a loss is not finite, or a worker died.
        ModuleNotFoundError: diffusers, transformers, scikit-learn or joblib is not installed.
    """
    config = config.resolved()
    require("diffusers", "transformers", "sklearn", "joblib")
    concept_of(config), cases_of(config), judge_of(config)
    outcome = Outcome(config)
    jobs = [("base", config.seeds[0])] + [(name, seed) for seed in config.seeds for name in config.erased]
    todo = []
    for job in jobs:
        saved = folder.load_state("{}-seed{}".format(*job))
        if saved is None:
            todo.append(job)
        else:
            _take(outcome, *saved)
    workers = config.workers if config.device == "cpu" else config.workers or 1
    with folder.progress(len(jobs), "models", done=len(jobs) - len(todo)) as progress:
        for state, tensors in run_jobs(
            partial(one, config, str(folder.path)), _longest_first(todo), workers=workers
        ):
            trial = _take(outcome, state, tensors)
            folder.save_state(trial.key, state, tensors)
            progress.advance()
    outcome.trials.sort(key=lambda t: jobs.index((t.name, t.seed)))
    from tenfold.diffusion.advunlearn_report import write

    return Result(write(outcome, folder), folder.path)


def _longest_first(jobs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    order = ("advunlearn", "no-retain", "fast", "esd", "base")
    return sorted(jobs, key=lambda job: order.index(job[0]))


def _take(outcome: Outcome, state: dict[str, Any], tensors: dict[str, Tensor]) -> Trial:
    trial = Trial(**state)
    outcome.trials.append(trial)
    outcome.pictures[trial.key] = tensors
    return trial


def concept_of(config: AdvUnlearnConfig) -> Concept:
    """The concept with the prompts that are to stay."""
    if config.model == "digits":
        digit_name(config.concept)
    if config.retain:
        from tenfold.diffusion.prompts import read_retain

        kept = read_retain(config.retain)
    else:
        kept = retain_prompts(config.concept)
    return Concept(config.concept, tuple(config.prompts) or (config.concept,), retain=tuple(kept))


def cases_of(config: AdvUnlearnConfig) -> list[Case]:
    """The prompts that are attacked."""
    if config.attack_prompts:
        from tenfold.diffusion.prompts import read_prompts

        assert config.guidance is not None
        rows = read_prompts(config.attack_prompts, guidance=config.guidance)
        # Pictures of one size, the model's own, stand side by side in the report.
        return [replace(case_of(row), height=None, width=None) for row in rows]
    prompts = [template.format(digit_name(config.concept)) for template in NAME_TEMPLATES] * 2
    return [Case(str(i), p, 100 + i, float(config.guidance or 3.0)) for i, p in enumerate(prompts)]


def judge_of(config: AdvUnlearnConfig) -> Any:
    """The judge of pictures."""
    if not config.judge:
        return DigitJudge(config.concept)
    from tenfold.diffusion.judges.load import load_judge

    return load_judge(config.judge, config.concept)


def one(config: AdvUnlearnConfig, out: str, job: tuple[str, int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train one model, measure what it retains, attack it."""
    name, seed = job
    base = load_bundle(config.model, device=config.device)
    concept = concept_of(config)
    losses, bundle, trained = [], base, 0.0
    if name != "base":
        edit = _fit(config, base, concept, name, seed, Path(out))
        losses, bundle, trained = edit.details["losses"], edit.apply(base), edit.details["cpu_seconds"]
    retained, frechet, kept = _utility(config, bundle, concept)
    trial = Trial(name, seed, trained, 0.0, losses, retained, frechet)
    tensors = {"retained": kept}
    start = time.process_time()
    tensors |= _attacks(config, base, bundle, trial)
    trial.attack_seconds = time.process_time() - start
    return vars(trial), tensors


def _fit(config: AdvUnlearnConfig, base: Bundle, concept: Concept, name: str, seed: int, out: Path) -> Edit:
    """Train, from where an interrupted run was, or read the model that it had finished."""
    key = f"{name}-seed{seed}"
    path, kept = out / "models" / key, out / "state" / f"training-{key}.safetensors"
    if path.is_dir():
        return Edit.load(path)
    edit = fit_kept(config.method(name), base, concept, kept, seed=seed, every=config.state_every)
    edit.save(path)
    kept.unlink(missing_ok=True)
    return edit


def _utility(
    config: AdvUnlearnConfig, bundle: Bundle, concept: Concept
) -> tuple[float | None, float | None, Tensor]:
    """Accuracy on the other digits, distance to real ones, and pictures of retained prompts."""
    assert config.sample_steps is not None
    assert config.guidance is not None
    assert config.sampler is not None
    if config.model == "digits":
        found = digit_agreement(
            bundle,
            exclude=[config.concept],
            seed=_KEPT_SEED,
            steps=config.sample_steps,
            guidance=config.guidance,
        )
        real = digit_pictures()
        others = real.test[real.test_digits != DigitJudge(config.concept).target]
        # the first picture of each retained digit
        shown = found.images[:: len(found.images) // 9][:9]
        return found.mean, pixel_frechet(found.images, others), _bytes(shown)
    prompts = [p for p in concept.retain if p][:SHOWN]
    images = generate(
        bundle, prompts, [_KEPT_SEED + i for i in range(len(prompts))], steps=config.sample_steps,
        guidance=config.guidance, sampler=config.sampler, batch=4,
    )  # fmt: skip
    return None, None, _bytes(images)


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def _attacks(config: AdvUnlearnConfig, base: Bundle, bundle: Bundle, trial: Trial) -> dict[str, Tensor]:
    """text_grad and random tokens; the base model is only asked."""
    assert config.try_timesteps is not None
    assert config.try_iterations is not None
    assert config.tries is not None
    assert config.sample_steps is not None
    assert config.sampler is not None
    sampling = Sampling(steps=config.sample_steps, sampler=config.sampler, ids="text", batch=32)
    judge, cases = judge_of(config), cases_of(config)
    target = Target(bundle, base)
    seed = trial.seed
    attacks: list[Any] = [
        TextGrad(k=config.try_k, timesteps=config.try_timesteps, iterations=config.try_iterations, seed=seed,
                 overflow="truncate"),
        RandomTokens(k=config.try_k, tries=config.tries, seed=seed, overflow="truncate"),
    ]  # fmt: skip
    if trial.name == "base":
        from tenfold.diffusion.attack import NoAttack

        attacks = [NoAttack()]
    else:
        cases = target_cases(base, cases, sampling)
    pictures: dict[str, Tensor] = {}
    for attack in attacks:
        logs = attack.run(target, cases, judge, sampling=sampling, batch=20, on_error="record")
        rates = attack_rates(logs)
        trial.errors += rates.errors
        trial.rates[attack.name] = [rates.pre.successes, rates.post.successes, rates.post.n]
        if attack.name == "random":
            continue
        done = [log for log in logs if log.pictures][:SHOWN]
        if not done:
            _checks.fail(RuntimeError, "attack", "a prompt that finishes", logs[0].error)
        pictures["plain"] = torch.stack([log.pictures[0] for log in done])
        pictures["attacked"] = torch.stack([log.pictures[-1] for log in done])
        pictures["success"] = torch.tensor(
            [[log.entries[0].success, log.state in ("pre", "success")] for log in done]
        )
        trial.found = [log.found.prompt for log in logs if log.found is not None][:SHOWN]
    return pictures
