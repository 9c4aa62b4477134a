"""A run of the engine on a model larger than memory: `tenfold run zo --task T --model FOLDER --offload DIR`.

The weights are copied from the model's folder into DIR, a file for each tensor, and one block at a time is
computed, in training and in looks at dev and test (`tenfold.llm.offload`). The run's log of seeds and scalars
takes the place of copies of the weights: a killed run makes the steps of its log again on the folder's
weights, and so are the weights of the step with the lowest dev loss found at the end, bit for bit.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold.llm import engine, models
from tenfold.llm.engine import History, Job, Running
from tenfold.llm.objective import Batch, Objective
from tenfold.llm.offload import OffloadedZO
from tenfold.llm.schemes import Adapted
from tenfold.runs import RunFolder

__all__ = ["Streamed", "Streaming", "check", "start"]

OPTIMIZERS, SCHEMES, RESTORES = ("zo-sgd",), ("ft",), (None, "exact")


def check(job: Job) -> None:
    """Whether the settings of a job fit `offload`, before anything is read.

    Raises:
        ValueError: they do not; named.
    """
    if job.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer: expected zo-sgd with offload, got {job.optimizer!r}")
    if job.scheme not in SCHEMES:
        raise ValueError(f"scheme: expected ft with offload, got {job.scheme!r}")
    if job.restore not in RESTORES:
        raise ValueError(f"restore: expected auto or exact with offload, got {job.restore!r}")
    unknown = sorted(set(job.extra) - {"dist"})
    if unknown:
        raise ValueError(f"extra: expected nothing but dist with offload, got {', '.join(unknown)}")
    if job.model == models.EMBEDDED or not (Path(job.model) / "config.json").is_file():
        expected = "a local folder with config.json and safetensors with offload"
        raise ValueError(f"model: expected {expected}, got {job.model!r}")


class Streamed(Adapted):
    """The model of an :class:`OffloadedZO` under full fine-tuning, as the objective reads it."""

    def __init__(self, trainer: OffloadedZO) -> None:
        super().__init__(trainer.model, "ft", {})
        self.trainer = trainer
        self.parameters = dict(trainer.model.named_parameters())  # placeholders: shapes, no data

    @property
    def device(self) -> torch.device:
        return self.trainer.device

    def head(self) -> tuple[Tensor, Tensor | None]:
        return self.trainer.head()

    def _entering_head(self, given: dict[str, Any]) -> Tensor:
        return self.trainer.hidden(given)


class _Record(NamedTuple):
    """Of a step, what the engine writes down."""

    losses: tuple[float, ...]
    skipped: bool
    passes: int
    seconds: dict[str, float]


@dataclasses.dataclass
class Streaming(Running):
    """What the engine's loop works on: a model whose weights lie elsewhere."""

    def zo_step(self, batch: Batch) -> tuple[float, Any]:
        trainer: OffloadedZO = self.optimizer
        skipped = trainer.num_skipped
        inputs = self.adapted.inputs(batch.ids, batch.mask)
        loss = float(trainer.step(inputs, partial(self.objective.head_loss, batch)))
        losses = (loss,) * (2 * trainer.num_queries)
        passes = 2 * trainer.num_queries + 1
        return loss, _Record(losses, trainer.num_skipped > skipped, passes, trainer.seconds)

    def remember(self) -> None:
        """Nothing: the log leads back to this step."""

    def choose(self) -> None:
        if self.history.best_step < len(self.history.steps):
            self.optimizer.rewind(self.history.best_step)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {}, {}

    def save(self, folder: RunFolder) -> None:
        self.optimizer.save(folder.path / "checkpoints" / self.job.key)

    def close(self) -> None:
        """Let go of the model and delete the working copy of its weights."""
        self.optimizer.close()
        self.optimizer.store.remove()


def start(job: Job, folder: RunFolder, saved: Any) -> tuple[Streaming, str]:
    """Copy the weights and make the steps that were done before.

    Returns:
        what the engine's loop works on, and where the examples come from.

    Raises:
        ValueError: a masked model, a folder that is not empty, or a tensor that is missing; named.
        ZOLogError: the model's weights are others than those that the run began with.
    """
    check(job)
    if engine._is_masked_folder(job.model):
        raise ValueError(f"model: expected a causal language model with offload, got {job.model!r}")
    tokenizer = models.load_tokenizer(job.model)
    splits = engine._splits(job, None)
    engine.check_batch_size(job, splits)
    history = History() if saved is None else History(**saved[0]["history"])
    if saved is None:  # from now on the working copy is that of this run
        _check_store(Path(job.offload))
        begun = {"done": False, "job": dataclasses.asdict(job), "history": vars(history)}
        folder.save_state(job.key, begun)
    dtype = getattr(torch, job.dtype)
    log = folder.path / "logs" / f"{job.key}.zolog"
    log.parent.mkdir(parents=True, exist_ok=True)
    if history.steps:
        engine.cut_log(log, len(history.steps))
    else:
        log.unlink(missing_ok=True)
    trainer = OffloadedZO.from_pretrained(
        job.model, job.offload, dtype=dtype, journal=log, resume=bool(history.steps), reuse=saved is not None,
        lr=job.lr, eps=job.eps, num_queries=job.num_queries or 1, weight_decay=job.weight_decay,
        seed=job.seed, rounding="rne" if dtype == torch.float32 else "sr", device=job.device, **job.extra,
    )  # fmt: skip
    adapted = Streamed(trainer)
    objective = Objective(
        adapted, splits, task=job.task, tokenizer=tokenizer, max_length=job.max_length,
        calibrate=job.calibrate,
    )  # fmt: skip
    return Streaming(job, adapted, objective, trainer, history), splits.source


def _check_store(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"offload: expected an empty or new folder, got {folder}")
