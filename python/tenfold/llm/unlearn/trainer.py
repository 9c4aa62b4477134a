"""The training loop of unlearning: a job, a subject, a folder that keeps its state.

    job = Job(key="graddiff-sophia", method="graddiff", optimizer="sophia", lr=1e-4, epochs=5)
    trained = train(subject, job, folder)

Micro-batches add up to a step, the learning rate warms up and falls linearly, gradients are clipped to a
norm, the
Hessian is estimated where the optimizer asks for it, every step leaves one flat row in the history.
Everything a
step draws is a function of the seed and its number, so that a run killed at any moment and resumed has the
bits of
one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold.llm.training import pack, unpack
from tenfold.llm.unlearn import curvature, methods, one_shot, soul_ranks
from tenfold.llm.unlearn.objective import Objective
from tenfold.llm.unlearn.pairs import epoch_pairs
from tenfold.llm.unlearn.subject import Subject
from tenfold.runs import RunFolder, ranks

__all__ = ["History", "Job", "check", "learning_rate", "steps_of", "train"]

HESSIAN_SOURCES = ("retain", "forget", "both")
SCHEDULES = ("linear", "hf", "constant")
MOST_SKIPPED = 3  # steps in a row without a finite loss that are borne


@dataclass(frozen=True)
class Job:
    """What one unlearning run does. Plain data: it is stored beside the state.

    Attributes:
        key: names the saved state (letters, digits, ``_.-``).
        method: of :data:`tenfold.llm.unlearn.methods.METHODS`.
        gamma, forget_weight, retain_loss, options: as in :class:`tenfold.llm.unlearn.objective.Objective`.
        ramp: let gamma grow from 0 with the epochs, as SOUL's ``*_epoch`` methods do.
        optimizer: of :data:`tenfold.llm.unlearn.curvature.OPTIMIZERS`.
        lr, weight_decay, betas, rho: of the optimizer.
        every: steps between Hessian estimates.
        hessian_source: rows that they are made from: ``"retain"``, ``"forget"`` or ``"both"``. The empirical
            Fisher of a forget set is that of the data's labels, never of the ascent.
        hessian_batch: rows of an estimate.
        epochs: passes over the forget set; ``steps`` takes their place where it is given.
        batch_size, accumulation: forget rows of a micro-batch; micro-batches of a step.
        retain_ratio: retain rows per forget row.
        clip: largest norm of the gradient; 0 for none.
        warmup: share of the steps in which the learning rate rises.
        schedule: ``"linear"``: rise to the learning rate in the last step of the warm-up, then fall, the last
            step above 0; ``"hf"``: as transformers counts, the first step at 0; ``"constant"``.
        topk: tokens per position kept of the model before unlearning, for KL and UNDIAL; 0 for hidden states.
        nonfinite: ``"error"`` ends the run at a loss or gradient that is not finite; ``"skip"`` leaves the
            step out, counts it, and ends the run at the third in a row.
    """

    key: str
    method: str
    optimizer: str = "adamw"
    lr: float = 1e-5
    gamma: float | None = None
    forget_weight: float = 1.0
    retain_loss: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    ramp: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    rho: float | str | None = None
    every: int = 10
    hessian_source: str = "retain"
    hessian_batch: int = 8
    epochs: float = 5.0
    steps: int | None = None
    batch_size: int = 4
    accumulation: int = 1
    retain_ratio: int = 1
    clip: float = 1.0
    warmup: float = 0.1
    schedule: str = "linear"
    state_dtype: str = "float32"
    rounding: str = "nearest"
    master: bool = False
    topk: int = 0
    nonfinite: str = "error"
    seed: int = 0


@dataclass
class History:
    """What a run did so far: a flat row per step, and sums."""

    steps: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    dual: float | None = None
    predictions: int | None = None


def check(job: Job) -> None:
    """Whether the settings of a job fit each other, before anything is loaded.

    Raises:
        ValueError: they do not; named.
    """
    methods.find(job.method)
    if job.method == "iu":
        one_shot.check(job)
    steppers = one_shot.SOLVERS if job.method == "iu" else curvature.OPTIMIZERS
    for name, value, choices in (
        ("optimizer", job.optimizer, steppers), ("schedule", job.schedule, SCHEDULES),
        ("hessian_source", job.hessian_source, HESSIAN_SOURCES),
        ("nonfinite", job.nonfinite, ("error", "skip")),
    ):  # fmt: skip
        if value not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    for name in ("lr", "gamma", "forget_weight", "weight_decay", "clip", "warmup"):
        value = getattr(job, name)
        if value is not None and not (
            isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
        ):
            raise ValueError(f"{name}: expected a number >= 0, got {value!r}")
    for name in ("every", "hessian_batch", "batch_size", "accumulation", "retain_ratio"):
        value = getattr(job, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
    if job.steps is not None and job.steps < 1:
        raise ValueError(f"steps: expected a whole number >= 1, got {job.steps!r}")
    if job.steps is None and not job.epochs > 0:
        raise ValueError(f"epochs: expected a number > 0, got {job.epochs!r}")


def steps_of(job: Job, forget: int) -> int:
    """Optimizer steps: epochs times forget rows over rows of a step, one at least."""
    if job.steps is not None:
        return job.steps
    return max(1, int(job.epochs * forget / (job.batch_size * job.accumulation)))


def learning_rate(job: Job, step: int, steps: int) -> float:
    """Learning rate of ``step`` (from 0) out of ``steps``."""
    if job.schedule == "constant":
        return job.lr
    rising = max(1, int(job.warmup * steps)) if job.warmup else 0
    if job.schedule == "hf":
        factor = step / rising if step < rising else (steps - step) / max(1, steps - rising)
    else:
        factor = (step + 1) / rising if step < rising else (steps - step) / max(1, steps - rising)
    return job.lr * factor


def train(
    subject: Subject,
    job: Job,
    folder: RunFolder | None = None,
    *,
    label: str = "",
    save_seconds: float = 20.0,
    deadline: float | None = None,
) -> History:
    """Unlearn: the subject is left with the weights of the last step.

    Args:
        subject: holds the sets ``forget`` and ``retain``, and those that the method needs.
        folder: keeps the state under ``job.key`` and shows progress; a state that is there is gone on with.
        deadline: value of ``time.monotonic()`` past which no further step begins, or None; not for several
            processes.

    Under torchrun (:mod:`tenfold.runs.ranks`) the micro-batches of a step are dealt out to the processes, if
    there are enough for all; see :mod:`tenfold.llm.unlearn.soul_ranks`.

    Raises:
        ValueError: a setting is wrong, a set is missing, or the saved state is of another job.
        RuntimeError: a loss or gradient is not finite (see ``nonfinite``).
    """
    check(job)
    if job.method == "iu":
        return _one_step(subject, job, folder, label)
    saved = None if folder is None else folder.load_state(job.key)
    group = ranks.current()
    if group is None or job.accumulation < group.size or (saved is not None and saved[0]["done"]):
        return _train(subject, job, folder, label, save_seconds, deadline, saved, None)
    if deadline is not None:
        raise ValueError(f"deadline: expected None on {group.size} processes, got {deadline!r}")
    with group.working():
        if group.rank == 0:
            soul_ranks.send(group, subject, job, saved)
        else:
            saved = soul_ranks.receive_state(group)
        soul_ranks.begin(group, subject)
        return _train(subject, job, folder, label, save_seconds, None, saved, group)


def _train(
    subject: Subject, job: Job, folder: RunFolder | None, label: str, save_seconds: float,
    deadline: float | None, saved: Any, group: ranks.Ranks | None,
) -> History:  # fmt: skip
    objective = Objective(
        subject, job.method, gamma=job.gamma, forget_weight=job.forget_weight, retain_loss=job.retain_loss,
        options=job.options, seed=job.seed, topk=job.topk, topk_file=_topk_file(folder, job),
    )  # fmt: skip
    optimizer = curvature.make_optimizer(
        job.optimizer, subject, lr=job.lr, weight_decay=job.weight_decay, betas=job.betas, rho=job.rho,
        every=job.every, rounding=job.rounding, master=job.master, seed=job.seed,
        state_dtype=job.state_dtype if job.state_dtype == "8bit" else getattr(torch, job.state_dtype),
    )  # fmt: skip
    running = Running(subject, job, objective, optimizer, History(), group)
    if saved is not None:
        _restore(running, *saved)
        if saved[0]["done"]:
            return running.history
    steps = steps_of(job, subject.count("forget"))
    if folder is None:
        while _done(running) < steps:
            _step(running, steps)
            _compare(running, _done(running) == steps)
    else:
        _loop(running, steps, folder, label or job.key, save_seconds, deadline)
        _save(running, folder, done=True)
    for parameter in subject.parameters.values():
        parameter.grad = None
    return running.history


def _topk_file(folder: RunFolder | None, job: Job) -> Path | None:
    """Where the reference of a job lies: beside its state, which goes when the run is finished."""
    return None if folder is None or not job.topk else folder.path / "state" / f"{job.key}.topk.safetensors"


def _one_step(subject: Subject, job: Job, folder: RunFolder | None, label: str) -> History:
    """Influence unlearning: the whole run is one step."""
    saved = None if folder is None else folder.load_state(job.key)
    if saved is not None:
        _same_job(job, saved[0]["job"])
        subject.put({n.removeprefix("theta/"): t for n, t in saved[1].items()})
        return History(**saved[0]["history"])
    row = one_shot.step(subject, job, folder, label)
    history = History(steps=[row], seconds=row["seconds"])
    if folder is not None:
        weights = {f"theta/{name}": t.contiguous() for name, t in subject.weights().items()}
        state = {"done": True, "job": _plain(job), "history": vars(history), "optimizer": None}
        folder.save_state(job.key, state, weights)
    return history


@dataclass
class Running:
    """What the loop works on."""

    subject: Subject
    job: Job
    objective: Objective
    optimizer: Any
    history: History
    group: ranks.Ranks | None = None


def _done(running: Running) -> int:
    return len(running.history.steps)


def _loop(
    running: Running, steps: int, folder: RunFolder, label: str, save_seconds: float, deadline: float | None
) -> None:
    last_save = time.monotonic()
    with folder.progress(steps, label, done=min(steps, _done(running))) as progress:
        while _done(running) < steps:
            if deadline is not None and time.monotonic() > deadline:
                break
            row = _step(running, steps)
            shown = {k: row[k] for k in ("forget", "retain", "win_rate") if k in row}
            progress.advance(1, **shown)
            saving = time.monotonic() - last_save > save_seconds
            _compare(running, saving or _done(running) == steps)
            if saving:
                _save(running, folder, done=False)
                last_save = time.monotonic()


def _compare(running: Running, saving: bool) -> None:
    if running.group is not None:
        soul_ranks.compare(running.group, running.subject, running.optimizer, _done(running), saving)


def _step(running: Running, steps: int) -> dict[str, float]:
    job, optimizer, history = running.job, running.optimizer, running.history
    number = _done(running)
    started = time.perf_counter()
    lr = learning_rate(job, number, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    row: dict[str, float] = {"step": number + 1, "lr": lr}
    if job.optimizer in ("sophia", "sophia-h", "empirical-fisher") and number % job.every == 0:
        _refresh(running, number)
        row["refreshed"] = 1
    optimizer.zero_grad(set_to_none=True)
    parts = _backward(running, number)
    norm = _gradient_norm(running, job.clip)
    row |= {**parts, "grad_norm": norm}
    if math.isfinite(parts["loss"]) and math.isfinite(norm):
        history.in_a_row = 0
        row |= _apply(running, number)
        if "retain" in parts:
            running.objective.after_step(parts["retain"])
            history.dual = running.objective.dual
    else:
        _not_finite(running, number, parts["loss"], norm)
        row = {k: v for k, v in row.items() if math.isfinite(v)} | {"skipped": 1}
    if job.optimizer == "liuhong99" and number % job.every == job.every - 1:
        _refresh(running, number)
        row["refreshed"] = 1
    row["seconds"] = time.perf_counter() - started
    history.seconds += row["seconds"]
    history.steps.append(row)
    return row


def _backward(running: Running, number: int) -> dict[str, float]:
    """Gradients of the micro-batches of a step, averaged; the losses, averaged likewise."""
    job, group = running.job, running.group
    if group is None:
        return _averaged([_micro_batch(running, number, micro) for micro in range(job.accumulation)])
    return _averaged(
        soul_ranks.in_turn(
            group, running.subject, job.accumulation, lambda micro: _micro_batch(running, number, micro)
        )
    )


def _micro_batch(running: Running, number: int, micro: int) -> dict[str, float]:
    """Add the gradient of a micro-batch, over the number of them, to ``.grad``; its losses."""
    count = running.job.accumulation
    forget, retain = rows_of(running, number * count + micro)
    loss, parts = running.objective.loss(forget, retain, _ramped(running, number))
    (loss / count).backward()
    return {"loss": float(loss.detach()), **parts}


def _averaged(found: list[dict[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {"loss": 0.0}
    for parts in found:
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value / len(found)
    return sums


def rows_of(running: Running, micro: int) -> tuple[list[int], list[int]]:
    """Forget and retain rows of a micro-batch: the epochs are one endless list that it is cut from."""
    job, subject = running.job, running.subject
    forget = subject.count("forget")
    retain = subject.count("retain") if running.objective.needs_retain else 0
    chosen: tuple[list[int], list[int]] = ([], [])
    for place in range(micro * job.batch_size, (micro + 1) * job.batch_size):
        epoch, at = divmod(place, forget)
        pair = _pairs(forget, retain, epoch, job.seed, min(job.retain_ratio, max(1, retain)))[at]
        chosen[0].extend(pair[0])
        chosen[1].extend(pair[1])
    return chosen


@lru_cache(maxsize=4)
def _pairs(
    forget: int, retain: int, epoch: int, seed: int, ratio: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return epoch_pairs(forget, retain, epoch=epoch, seed=seed, ratio=ratio)


def _ramped(running: Running, number: int) -> float | None:
    from tenfold.llm.unlearn.losses import ramp

    job, forget = running.job, running.subject.count("forget")
    if not job.ramp:
        return None
    per_step = job.batch_size * job.accumulation / forget
    epochs = max(1, math.ceil(steps_of(job, forget) * per_step))
    return ramp(running.objective.gamma, math.floor(number * per_step), epochs)


def _gradient_norm(running: Running, clip: float) -> float:
    """Norm of the gradient before it is clipped to ``clip``."""
    parameters = list(running.subject.parameters.values())
    return float(torch.nn.utils.clip_grad_norm_(parameters, clip if clip else math.inf))


def _apply(running: Running, number: int) -> dict[str, float]:
    """The optimizer's step and what can be told of it."""
    job, optimizer = running.job, running.optimizer
    if job.optimizer == "adamw":
        before = running.subject.weights() if number % job.every == 0 else None
        optimizer.step()
        return {} if before is None else _moved(running, before)
    # of the published code, B enters at the step
    optimizer.step(**({"bs": running.history.predictions} if job.optimizer == "liuhong99" else {}))
    stats = optimizer.stats()
    return {k: float(v) for k, v in stats.items() if v is not None and math.isfinite(float(v))}


def _moved(running: Running, before: dict[str, Tensor]) -> dict[str, float]:
    """Root mean square of the update, and share of weights whose stored value changed."""
    square, changed, count = 0.0, 0, 0
    for name, parameter in running.subject.parameters.items():
        difference = parameter.detach().double() - before[name].double()
        square += float(difference.square().sum())
        changed += int(difference.count_nonzero())
        count += parameter.numel()
    return {"update_rms": math.sqrt(square / count), "changed": changed / count}


def _refresh(running: Running, number: int) -> None:
    """A Hessian estimate from ``hessian_batch`` rows of the source sets."""
    job = running.job
    running.history.predictions = curvature.refresh(
        running.optimizer, job.optimizer, running.subject, hessian_rows(running, number),
        seed=(job.seed << 24) + number,
    )  # fmt: skip
    if running.group is not None:
        soul_ranks.share_curvature(running.group, running.subject, running.optimizer)


def hessian_rows(running: Running, number: int) -> list[tuple[str, list[int]]]:
    """(set, rows) of an estimate: a permutation of its own for every refresh."""
    job, subject = running.job, running.subject
    asked = ("retain", "forget") if job.hessian_source == "both" else (job.hessian_source,)
    names = [name for name in asked if name in subject]
    if not names:
        raise ValueError(f"hessian_source: expected rows of {job.hessian_source}, got none")
    found = []
    for turn, name in enumerate(names):
        generator = torch.Generator().manual_seed((job.seed << 24) + 2 * number + turn)
        size = max(1, job.hessian_batch // len(names))
        found.append((name, torch.randperm(subject.count(name), generator=generator)[:size].tolist()))
    return found


def _not_finite(running: Running, number: int, loss: float, norm: float) -> None:
    job, history = running.job, running.history
    history.skipped += 1
    history.in_a_row += 1
    if job.nonfinite == "error" or history.in_a_row >= MOST_SKIPPED:
        what, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
        raise RuntimeError(
            f"{what}: expected a finite number, got {value} in step {number + 1} of {job.method} with "
            f"{job.optimizer} and lr {job.lr:g}; a smaller learning rate may help"
        )


# -- state ---------------------------------------------------------------------------------------------------


def _save(running: Running, folder: RunFolder, *, done: bool) -> None:
    """Weights, optimizer and history in one file. Of a finished run the optimizer is not needed any more."""
    tensors = {f"theta/{name}": tensor for name, tensor in running.subject.weights().items()}
    optimizer = None if done else pack(running.optimizer.state_dict(), tensors)
    state = {
        "done": done, "job": _plain(running.job), "history": vars(running.history), "optimizer": optimizer
    }  # fmt: skip
    folder.save_state(running.job.key, state, {name: t.contiguous() for name, t in tensors.items()})


def _restore(running: Running, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    _same_job(running.job, state["job"])
    running.subject.put({n.removeprefix("theta/"): t for n, t in tensors.items() if n.startswith("theta/")})
    running.history = History(**state["history"])
    if running.history.dual is not None:
        running.objective.dual = running.history.dual
    if not state["done"]:
        running.optimizer.load_state_dict(unpack(state["optimizer"], tensors))


def _same_job(job: Job, begun: dict[str, Any]) -> None:
    now = _plain(job)
    differing = [name for name in now if now[name] != begun.get(name)]
    if differing:
        got = ", ".join(f"{name}={now[name]!r} (was {begun.get(name)!r})" for name in differing)
        raise ValueError(f"job: expected the settings that {job.key} was begun with, got {got}")


def _plain(job: Job) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(job)))
    return plain
