"""Workflow ``soul``: make a language model forget, first order against second order.

    tenfold run soul                                        the embedded default
    tenfold run soul --task tofu --data DIR --model M --method graddiff --optimizer sophia
    tenfold run soul --tables                               every method under four optimizers
    tenfold run soul --evaluate MODEL                       score a model that is there

What the default does, in order: teaches the embedded model twelve invented authors (kept in a cache), and
another one all but the two that are to be forgotten; runs every method under every optimizer from the same
weights, at a learning rate that was found beforehand; evaluates the best runs; writes the
report. With several learning rates it tunes first, or chooses by what it shows, as ``select`` says.

Papers: Jia et al. 2024 (SOUL, arXiv 2404.18239), Liu et al. 2023 (Sophia, arXiv 2305.14342), Maini et al.
2024
(TOFU, arXiv 2401.06121).
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.llm import models
from tenfold.llm.unlearn import data as rows_of
from tenfold.llm.unlearn import methods, soul_ranks, teach, tuning
from tenfold.llm.unlearn.evaluate import TofuResult, evaluate_tofu
from tenfold.llm.unlearn.kept_scores import KeptScores
from tenfold.llm.unlearn.rows import check_rows
from tenfold.llm.unlearn.soul_config import SoulConfig
from tenfold.llm.unlearn.subject import Subject
from tenfold.llm.unlearn.trainer import History, Job, train
from tenfold.runs import RunFolder

__all__ = ["Attempt", "Outcome", "Result", "SoulConfig", "choose", "run", "unlearn"]

KEPT = 0.8
"""Share of the retain set's probability that a run must keep to be chosen for how much it forgets."""


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass
class Attempt:
    """One unlearning run: its job, what it did, and the mean answer probability of each set at its end."""

    job: Job
    history: History
    probability: dict[str, float]
    result: TofuResult | None = None

    @property
    def name(self) -> str:
        """Method and optimizer."""
        return f"{self.job.method}-{self.job.optimizer}"


@dataclass
class Outcome:
    """Everything that the report is written from."""

    config: SoulConfig
    source: str
    parameters: int
    trained_parameters: int
    cached: bool
    untaught: dict[str, float]
    before: dict[str, float]
    before_result: TofuResult | None = None
    reference: TofuResult | None = None
    tuning: list[Attempt] = field(default_factory=list)
    tuned: dict[str, Attempt] = field(default_factory=dict)
    tuning_before: dict[str, float] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    chosen: dict[str, Attempt] = field(default_factory=dict)


def unlearn(
    config: SoulConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = config or SoulConfig()
    return run(config, RunFolder.create("soul", config, out, resume))


def run(config: SoulConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError: a setting or a data file is wrong (named, with the line where there is one).
        RuntimeError: a loss is not finite.
        tenfold.assets.AssetError: an embedded file is missing; the message holds the command that installs
            it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    soul_ranks.check(config)
    if config.evaluate or config.task:
        from tenfold.llm.unlearn import soul_task

        return Result(soul_task.run(config, folder), folder.path)
    outcome = _demo(config, folder)
    from tenfold.llm.unlearn.soul_report import write

    return Result(write(outcome, folder), folder.path)


def _demo(config: SoulConfig, folder: RunFolder) -> Outcome:
    """Teach, forget, evaluate on the embedded data."""
    data = rows_of.load_mini_tofu()
    data = dataclasses.replace(data, template=config.template or data.template)
    check_rows(data.forget, data.retain, retain_needed=True)
    tokenizer = models.load_tokenizer(config.model)
    folder.log(f"loading {config.model}")
    model = models.load_model(config.model, dtype=getattr(torch, config.dtype)).to(config.device)
    subject = Subject(model, tokenizer.pad_token_id, str(config.trainable))
    soul_ranks.introduce(config, subject)
    encoded = encode_sets(tokenizer, data, config)
    untaught = subject.weights()
    with folder.progress(sum(map(len, encoded.values())), "frozen blocks, once per row") as progress:
        for name, rows in encoded.items():
            subject.add(name, rows, progress.advance)
    outcome = Outcome(
        config=config, source=data.source, cached=False, untaught=probabilities(subject), before={},
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=sum(p.numel() for p in subject.parameters.values()),
    )  # fmt: skip
    base, score = untouched(subject), KeptScores(subject)
    weights = _taught(config, folder, subject, outcome)
    if config.retain_model:
        _reference(config, folder, subject, untaught, tokenizer, data, outcome, score)
    subject.put(weights)
    outcome.before = probabilities(subject)
    outcome.before_result = evaluated(
        config, folder, "before", subject, tokenizer, data, outcome.reference, base, score
    )
    if tuned_names(config):
        _tune(config, folder, subject, tokenizer, data, weights, outcome)
    for job in jobs(config, {name: a.job.lr for name, a in outcome.tuned.items()}):
        outcome.attempts.append(attempt(subject, job, folder, weights, config.save_seconds))
    outcome.chosen = choose(outcome.attempts, outcome.before["retain"])
    finish(config, folder, outcome, subject, tokenizer, data, base, score)
    return outcome


def encode_sets(
    tokenizer: Any, data: rows_of.TofuData, config: SoulConfig, told: dict[str, int] | None = None
) -> dict[str, Any]:
    """Rows of every set as tokens: ``forget``, ``retain``, ``facts``, and those that the methods need.

    Args:
        told: takes ``<set>_truncated``, rows that were cut at ``max_length``, and ``<set>_unlabelled``, rows
            that were left out because their prompt alone fills it; where there are any.
    """
    length, template = config.max_length, data.template

    def encode(name: str, rows: Sequence[rows_of.Row], **own: Any) -> list[rows_of.Encoded]:
        encoded = rows_of.encode_rows(tokenizer, rows, template, length, **own)
        counts = {"truncated": encoded.truncated, "unlabelled": len(encoded.unlabelled)}
        if told is not None:
            told.update({f"{name}_{what}": count for what, count in counts.items() if count})
        return encoded.rows

    found = {"forget": encode("forget", data.forget)}
    if data.retain:
        found["retain"] = encode("retain", data.retain)
    if data.world_facts:
        found["facts"] = encode("facts", data.world_facts)
    needed = {name for method in config.methods for name in methods.find(method).sets}
    seed = (config.seeds or [0])[0]
    if "refusal" in needed:
        sentences = data.refusals or rows_of.REFUSALS
        said = rows_of.choose_refusals(len(data.forget), seed=seed, sentences=sentences)
        found["refusal"] = encode("refusal", data.forget, answers=said)
    if "random" in needed:
        said = rows_of.choose_refusals(
            len(data.forget), seed=seed, sentences=[row.answer for row in data.retain]
        )
        found["random"] = encode("random", data.forget, answers=said)
    _keep_pairs(found)
    return found


def _keep_pairs(found: dict[str, Any]) -> None:
    """Row i of ``refusal`` and ``random`` answers row i of ``forget``, also where rows were left out."""
    paired = [name for name in ("forget", "refusal", "random") if name in found]
    common = set.intersection(*({row.index for row in found[name]} for name in paired))
    for name in paired:
        found[name] = [row for row in found[name] if row.index in common]


def _cache(config: SoulConfig) -> Path | None:
    """The name of the embedded model says what its weights are; that of a folder does not."""
    return teach.cache_folder(config.cache) if config.model == models.EMBEDDED else None


def _taught(config: SoulConfig, folder: RunFolder, subject: Subject, outcome: Outcome) -> dict[str, Tensor]:
    parts = [name for name in ("forget", "retain", "facts") if name in subject]
    weights, outcome.cached = teach.taught(
        subject, parts, model=config.model, epochs=config.teach_epochs, label="teaching all authors",
        folder=folder, cache=_cache(config),
    )  # fmt: skip
    return weights


def _reference(
    config: SoulConfig, folder: RunFolder, subject: Subject, untaught: dict[str, Tensor], tokenizer: Any,
    data: rows_of.TofuData, outcome: Outcome, score: KeptScores,
) -> None:  # fmt: skip
    """The model that never knew the forget authors: what forget quality is measured against."""
    subject.put(untaught)
    parts = [name for name in ("retain", "facts") if name in subject]
    teach.taught(
        subject, parts, model=config.model, epochs=config.teach_epochs, label="teaching without two authors",
        folder=folder, cache=_cache(config),
    )  # fmt: skip
    outcome.reference = evaluated(config, folder, "reference", subject, tokenizer, data, None, None, score)


def untouched(subject: Subject) -> Any:
    """A copy of the model as it is; what the subject does not train is shared, not copied."""
    trained = {id(p) for p in subject.parameters.values()}
    frozen = {id(p): p for p in subject.model.parameters() if id(p) not in trained}
    return copy.deepcopy(subject.model, frozen).requires_grad_(False)


def jobs(config: SoulConfig, tuned: dict[str, float] | None = None) -> list[Job]:
    """Every method under every optimizer at every learning rate with every seed.

    Args:
        tuned: learning rates that were chosen, by ``method-optimizer``; they take the place of the others.
    """
    found = []
    for method in config.methods:
        for optimizer in config.steppers(method):
            one = (tuned or {}).get(f"{method}-{optimizer}")
            rates = config.rates(optimizer, method) if one is None else [one]
            for seed in config.seeds or [0]:
                found += [make_job(config, method, optimizer, lr, seed) for lr in rates]
    return found


def tuned_names(config: SoulConfig) -> list[str]:
    """``method-optimizer`` of those whose learning rate is to be chosen by tuning runs."""
    return [
        f"{method}-{optimizer}"
        for method in config.methods
        for optimizer in config.steppers(method)
        if config.selection(optimizer, method) == "tuning"
    ]


def _tune(
    config: SoulConfig, folder: RunFolder, subject: Subject, tokenizer: Any, data: rows_of.TofuData,
    weights: dict[str, Tensor], outcome: Outcome,
) -> None:  # fmt: skip
    """Runs that forget other rows; they choose the learning rates of the reported runs."""
    for name, rows in encode_sets(tokenizer, tuning.other_roles(data), config).items():
        subject.add(tuning.PREFIX + name, rows)
    names = tuned_names(config)
    subject.exchange(tuning.PREFIX)
    try:
        subject.put(weights)
        outcome.tuning_before = probabilities(subject, ("forget", "retain"))
        for job in jobs(dataclasses.replace(config, seeds=[config.tuning_seed], tuning_seed=-1)):
            if f"{job.method}-{job.optimizer}" in names:
                job = dataclasses.replace(job, key=tuning.PREFIX + job.key)
                outcome.tuning.append(attempt(subject, job, folder, weights, keep=False))
    finally:
        subject.exchange(tuning.PREFIX)
    outcome.tuned = choose(outcome.tuning, outcome.tuning_before["retain"], tuning.TUNING_KEPT)


def make_job(config: SoulConfig, method: str, optimizer: str, lr: float, seed: int) -> Job:
    """One run of the settings; with iu the optimizer is a solver and the learning rate an alpha."""
    if method == "iu":
        options = {"damp": config.damp, "rows": config.curvature_rows, **config.options}
        key = f"iu-{optimizer}-alpha{lr:g}-seed{seed}".replace("+", "")
        return Job(key=key, method="iu", optimizer=optimizer, lr=lr, options=options, seed=seed)
    adaptive = optimizer in ("sophia", "sophia-h", "empirical-fisher")
    rho: float | str | None = config.rho or ("auto" if adaptive else None)
    if isinstance(rho, str) and rho != "auto":
        rho = float(rho)
    if rho == "auto" and not adaptive:
        rho = None
    kept = methods.reads_distribution(method, config.retain_loss or None)
    return Job(
        key=f"{method}-{optimizer}-lr{lr:g}-seed{seed}".replace("+", ""),
        method=method, optimizer=optimizer, lr=lr,
        gamma=config.gamma, retain_loss=config.retain_loss or None, options=dict(config.options),
        ramp=config.ramp, weight_decay=float(config.weight_decay or 0), rho=rho, every=int(config.every or
        10),
        hessian_source=config.hessian_source, epochs=float(config.epochs or 1),
        batch_size=int(config.batch_size or 1), accumulation=int(config.accumulation or 1), clip=config.clip,
        rounding="stochastic" if config.dtype == "bfloat16" and optimizer != "adamw" else "nearest",
        nonfinite=config.nonfinite, retain_ratio=config.retain_ratio, seed=seed,
        topk=config.topk if kept else 0,
    )  # fmt: skip


def attempt(
    subject: Subject, job: Job, folder: RunFolder, weights: dict[str, Tensor], save_seconds: float = 20.0, *,
    keep: bool = True,
) -> Attempt:  # fmt: skip
    """Unlearn from ``weights`` and look at the probabilities; a run that is in the folder is read.

    Args:
        keep: False forgets the weights of the run once they have been looked at.
    """
    title, look = methods.find(job.method).title, f"{job.key}-look"
    saved = folder.load_state(look)
    if saved is not None and not keep:
        return Attempt(job, History(**saved[0]["history"]), saved[0]["probability"])
    subject.put(weights)
    rate = "alpha" if job.method == "iu" else "lr"
    front = "tuning, " if job.key.startswith(tuning.PREFIX) else ""
    label = f"{front}{title}, {job.optimizer}, {rate} {job.lr:g}, seed {job.seed}"
    history = train(subject, job, folder, label=label, save_seconds=save_seconds)
    known = ("forget", "retain") if job.key.startswith(tuning.PREFIX) else SETS
    probability = saved[0]["probability"] if saved is not None else probabilities(subject, known)
    folder.save_state(look, {"probability": probability, "history": vars(history)})
    if not keep:
        folder.save_state(job.key, {})
    return Attempt(job, history, probability)


SETS = ("forget", "retain", "facts")


def probabilities(subject: Subject, sets: Sequence[str] = SETS) -> dict[str, float]:
    """Mean over rows of exp(mean log-probability of an answer token), of each set."""
    found = {}
    for name in sets:
        if name in subject:
            total, count = subject.nll(name)
            found[name] = float((-total / count).exp().mean())
    return found


def choose(attempts: Sequence[Attempt], retain_before: float, least: float = KEPT) -> dict[str, Attempt]:
    """The learning rate of each method and optimizer (and seed: the first seed's is used for all).

    Among the runs that keep at least ``least`` of the retain probability the one that forgets most; if none
    does, the one that keeps most.
    """
    found: dict[str, Attempt] = {}
    first = attempts[0].job.seed if attempts else 0
    for name in dict.fromkeys(a.name for a in attempts):
        mine = [a for a in attempts if a.name == name and a.job.seed == first]
        keeping = [a for a in mine if a.probability["retain"] >= least * retain_before]
        if keeping:
            found[name] = min(keeping, key=lambda a: a.probability["forget"])
        else:
            found[name] = max(mine, key=lambda a: a.probability["retain"])
    return found


def _wanted(config: SoulConfig, outcome: Outcome) -> list[str]:
    """Names of the chosen runs that get the whole evaluation."""
    from tenfold.llm.unlearn.soul_numbers import shown

    if config.full_evaluation == "all":
        return list(outcome.chosen)
    if config.full_evaluation == "best":
        return [a.name for _, a in shown(outcome)]
    return [n for n, a in outcome.chosen.items() if a.job.optimizer in str(config.full_evaluation).split(",")]


def finish(
    config: SoulConfig, folder: RunFolder, outcome: Outcome, subject: Subject, tokenizer: Any,
    data: rows_of.TofuData, base: Any, score: KeptScores,
) -> None:  # fmt: skip
    """Evaluate and save the chosen runs."""
    wanted = _wanted(config, outcome)
    for name, chosen in outcome.chosen.items():
        weights = folder.load_state(chosen.job.key)
        assert weights is not None
        subject.put({n.removeprefix("theta/"): t for n, t in weights[1].items() if n.startswith("theta/")})
        if config.save:
            note = {"model": config.model, "trainable": str(config.trainable), "run": chosen.job.key}
            folder.write_safetensors(name, subject.weights(), note)
        if name in wanted:
            chosen.result = evaluated(
                config, folder, name, subject, tokenizer, data, outcome.reference, base, score
            )


def _has(data: rows_of.TofuData, name: str) -> bool:
    return bool(data.world_facts if name == "world_facts" else data.retain_eval)


def evaluated(
    config: SoulConfig, folder: RunFolder, key: str, subject: Subject, tokenizer: Any,
    data: rows_of.TofuData, reference: Any, base: Any, score: KeptScores,
) -> TofuResult:  # fmt: skip
    """The whole evaluation of the model as it is; kept in the folder for ``--resume``."""
    saved = folder.load_state(f"eval-{key}")
    if saved is not None:
        return TofuResult(**saved[0])
    limit = config.limit
    folder.log(f"evaluating {key}")
    result = evaluate_tofu(
        subject.model, tokenizer, data, reference=reference, base=base, max_length=config.max_length,
        max_new_tokens=int(config.max_new_tokens or 40), generate=key != "reference", score=score,
        # every forget row: forget quality compares their truth ratios with those of the reference
        limit=None if limit is None else {n: limit for n in ("retain", "world_facts") if _has(data, n)},
    )  # fmt: skip
    folder.save_state(f"eval-{key}", dataclasses.asdict(result))
    result.save(folder.path / "evaluation" / key)
    return result
