"""Zeroth-order training of one model with saved states: a killed run goes on to the same numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold import optim
from tenfold.llm import zo_ranks
from tenfold.llm.prompts import Encoded
from tenfold.llm.scorer import Scorer
from tenfold.runs import RunFolder
from tenfold.runs.ranks import Ranks, current


@dataclass(frozen=True)
class Phase:
    """What one training run does. ``key`` names its saved state; ``select`` keeps the weights of the best dev
    loss."""

    key: str
    label: str
    optimizer: str
    steps: int
    batch_size: int
    lr: float
    eps: float
    num_queries: int
    weight_decay: float
    restore: str
    seed: int
    eval_every: int
    select: bool


@dataclass
class History:
    """What a training run did so far. ``steps`` and ``dev`` hold one flat row per step and per look at the
    dev set."""

    steps: list[dict[str, float]] = field(default_factory=list)
    dev: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    forwards: int = 0
    skipped: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    stopped_early: bool = False


@dataclass
class Trained:
    """Outcome: history, and answer logits [N, C] of the test split at the step that was kept."""

    history: History
    test_logits: Tensor


@dataclass
class Task:
    """Everything that a training run reads: scorer, splits, and their kept states where the front is frozen.

    The parameters are marked as trained from the start: PyTorch picks matrix kernels by that mark, even where
    no gradient is computed, and a resumed run must have the bits of an uninterrupted one.
    """

    scorer: Scorer
    parameters: dict[str, nn.Parameter]
    data: dict[str, Encoded]
    kept: dict[str, Tensor]

    def __post_init__(self) -> None:
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def evaluate(self, split: str, progress: Callable[[int], None] | None = None) -> Tensor:
        """Answer logits [N, C] of a split at the present weights."""
        return self.scorer.all_logits(self.data[split], self.kept.get(split), progress=progress)

    def loss_and_accuracy(self, split: str, logits: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy of logits of a split."""
        labels = self.data[split].labels
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())

    def weights(self) -> dict[str, Tensor]:
        """Copies of the trained tensors."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor]) -> None:
        """Write tensors back into the model.

        Raises:
            ValueError: names or shapes differ from the trained tensors.
        """
        for name, parameter in self.parameters.items():
            if name not in weights or weights[name].shape != parameter.shape:
                got = tuple(weights[name].shape) if name in weights else "nothing"
                raise ValueError(f"weights: expected {name} of shape {tuple(parameter.shape)}, got {got}")
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])


def make_optimizer(phase: Phase, task: Task, group: Ranks | None = None) -> Any:
    """The optimizer of a phase over the task's parameters; bfloat16 weights are rounded stochastically.

    ``group``: the processes that share its steps, or None.
    """
    kinds = {"fzoo": optim.FZOO, "zo-sgd": optim.ZOSGD, "zo-adam": optim.ZOAdam}
    half = next(iter(task.parameters.values())).dtype != torch.float32
    return kinds[phase.optimizer](
        list(task.parameters.values()),
        lr=phase.lr,
        eps=phase.eps,
        num_queries=phase.num_queries,
        weight_decay=phase.weight_decay,
        restore=phase.restore,
        rounding="sr" if half else "rne",
        seed=phase.seed,
        streams=task.scorer.model,
        parallel=None if group is None else zo_ranks.way(group, phase.restore, phase.num_queries),
    )


def batch_of_step(count: int, size: int, seed: int, step: int) -> list[int]:
    """Indices of a step: each epoch is a fresh permutation, and its remainder below one batch is left out."""
    per_epoch = count // size
    generator = torch.Generator().manual_seed((seed << 20) + step // per_epoch)
    order = torch.randperm(count, generator=generator)
    start = step % per_epoch * size
    return order[start : start + size].tolist()


def train(
    task: Task, phase: Phase, folder: RunFolder, *, save_seconds: float, deadline: float | None
) -> Trained:
    """Train, choose the step on the dev split (where the phase selects), score the test split once.

    The chosen weights are left in the model. State is kept in ``folder`` under ``phase.key``; when it holds a
    finished phase, nothing is computed again (and the weights come back only where the phase selects).

    Under torchrun all processes share the steps: see :mod:`tenfold.llm.zo_ranks`.

    Args:
        deadline: value of ``time.monotonic()`` past which no further step begins, or None.
    """
    saved = folder.load_state(phase.key)
    if saved is not None and saved[0]["done"]:
        state, tensors = saved
        if phase.select:
            task.put(_part(tensors, "theta"))
        return Trained(History(**state["history"]), tensors["test_logits"])
    group = current()
    if group is not None:
        zo_ranks.send(group, task, phase, saved)
    history, best, optimizer = _start(task, phase, saved, group)
    last_save = time.monotonic()
    first = len(history.steps)
    with folder.progress(phase.steps, phase.label, done=first) as progress:
        for step in range(first, phase.steps):
            if deadline is not None and time.monotonic() > deadline:
                history.stopped_early = True
                break
            shown = zo_ranks.told(group, partial(_step, task, phase, optimizer, history, step))
            if phase.select and ((step + 1) % phase.eval_every == 0 or step + 1 == phase.steps):
                best = _look(task, history, step + 1, best)
                shown["dev loss"] = history.dev[-1]["loss"]
            progress.advance(1, **shown)
            if time.monotonic() - last_save > save_seconds:
                _save(folder, phase.key, task, history, best, optimizer)
                last_save = time.monotonic()
    zo_ranks.done(group)
    if phase.select:
        task.put(best)
    else:
        history.best_step = len(history.steps)
    with folder.progress(len(task.data["test"]), f"{phase.label}: held-out examples") as progress:
        logits = task.evaluate("test", progress.advance)
    kept = _prefixed(task.weights(), "theta") if phase.select else {}
    folder.save_state(phase.key, {"done": True, "history": vars(history)}, kept | {"test_logits": logits})
    return Trained(history, logits)


def _start(
    task: Task, phase: Phase, saved: Any, group: Ranks | None
) -> tuple[History, dict[str, Tensor], Any]:
    optimizer = make_optimizer(phase, task, group)
    if saved is None:
        history = History()
        return history, (_look(task, history, 0, {}) if phase.select else {}), optimizer
    state, tensors = saved
    task.put(_part(tensors, "theta"))
    optimizer.load_state_dict(unpack(state["optimizer"], tensors))
    return History(**state["history"]), _part(tensors, "best"), optimizer


def _step(task: Task, phase: Phase, optimizer: Any, history: History, step: int) -> dict[str, float]:
    """A step, of which this process evaluates its part."""
    started = time.perf_counter()
    train_data = task.data["train"]
    chosen = batch_of_step(len(train_data), phase.batch_size, phase.seed, step)
    chosen = zo_ranks.part(optimizer, chosen)
    batch = task.scorer.batch(train_data, chosen, task.kept.get("train"))
    mean = float(optimizer.step(lambda: task.scorer.loss(batch)))
    seconds = time.perf_counter() - started
    record = optimizer.last_step
    loss = record.losses[0] if optimizer.one_sided else mean
    history.seconds += seconds
    history.forwards += len(record.losses)
    history.skipped += int(record.skipped)
    history.steps.append(
        {
            "step": step + 1,
            "forwards": history.forwards,
            "train_seconds": history.seconds,
            "loss": loss,
            "passes": record.passes,
            "forward_seconds": record.seconds["forward"],
            "pass_seconds": record.seconds["passes"],
            "rest_seconds": max(0.0, seconds - record.seconds["forward"] - record.seconds["passes"]),
        }
    )
    return {"loss": loss}


def _look(task: Task, history: History, step: int, best: dict[str, Tensor]) -> dict[str, Tensor]:
    """Score the dev split; returns the weights to keep, which are those of the lowest loss so far."""
    loss, accuracy = task.loss_and_accuracy("dev", task.evaluate("dev"))
    history.dev.append(
        {
            "step": step,
            "forwards": history.forwards,
            "train_seconds": history.seconds,
            "loss": loss,
            "accuracy": accuracy,
        }
    )
    if not loss < history.best_loss:
        return best
    history.best_loss, history.best_step = loss, step
    return task.weights()


def _save(
    folder: RunFolder, key: str, task: Task, history: History, best: dict[str, Tensor], optimizer: Any
) -> None:
    tensors = _prefixed(task.weights(), "theta") | _prefixed(best, "best")
    state = {"done": False, "history": vars(history), "optimizer": pack(optimizer.state_dict(), tensors)}
    folder.save_state(key, state, tensors)


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + "/")
    }


def pack(value: Any, tensors: dict[str, Tensor], path: str = "optimizer") -> Any:
    """A state dict as plain JSON data; its tensors go into ``tensors``. Keys keep their type."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [pack(item, tensors, f"{path}/{i}") for i, item in enumerate(value)]}
    return value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`pack`."""
    if not isinstance(value, dict):
        return value
    (kind, inner), *_ = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in inner}
    items = [unpack(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items
