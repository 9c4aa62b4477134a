"""Workflow ``zo``: fine-tune a language model with forward passes only.

    tenfold run zo                                    the embedded default
    tenfold run zo --preset long                      every parameter, a quarter of an hour
    tenfold run zo --model FOLDER --data FOLDER       your own model and data
    tenfold run zo --task rte --data FOLDER --scheme lora --optimizer zo-adam
    tenfold run zo --tables all                       the benchmark's tables

What the default does, in order: reads text and model; computes once what enters the trained blocks; scores
    the untrained model; trains once per seed and keeps the step with the lowest dev loss; trains every
    parameter for a few steps (``full_steps``); measures peak memory in child processes; writes the report.

Papers: Zhang et al. 2024 (ZO-LLM, arXiv 2402.11592), Malladi et al. 2023 (MeZO, arXiv 2305.17333), Dang et
    al. 2025 (FZOO, arXiv 2506.09034).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold.llm import data, memory, models, prompts, zo_ranks
from tenfold.llm.scorer import Scorer, find_blocks, trainable_depth, trainable_parameters
from tenfold.llm.training import Phase, Task, Trained, train
from tenfold.llm.zo_config import ZOConfig
from tenfold.runs import RunFolder
from tenfold.runs.files import read_safetensors

__all__ = ["Outcome", "Result", "ZOConfig", "finetune", "load_trained", "run"]

SPLITS = ("train", "dev", "test")
MEMORY_BATCH = 16  # prompts in the batch that memory is measured on


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


class Words(NamedTuple):
    """Token ids of the answer words (int64 [C]), and the one used for padding."""

    options: Tensor
    pad_id: int


@dataclass
class Outcome:
    """Everything that the report is written from."""

    config: ZOConfig
    source: str
    texts: list[str]
    labels: Tensor
    parameters: int
    trained_parameters: int
    blocks: int
    check: float
    before: dict[str, Tensor]
    dev_labels: Tensor
    seeds: dict[int, Trained] = field(default_factory=dict)
    full: Trained | None = None
    memory: list[memory.Measured] = field(default_factory=list)
    kept_seconds: float = 0.0
    usual_pass_ms: float = 0.0


def finetune(
    config: ZOConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = config or ZOConfig()
    return run(config, RunFolder.create("zo", config, out, resume))


def run(config: ZOConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError: a setting or a data file is wrong (named, with the line where there is one).
        RuntimeError: the architecture of the model is not supported, or three steps in a row lost their loss.
        tenfold.assets.AssetError: an embedded file is missing; the message holds the command that installs
        it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    zo_ranks.check(config)
    if config.mode == "tables":
        from tenfold.llm import benchmark

        return Result(benchmark.run(config, folder), folder.path)
    if config.mode == "task":
        from tenfold.llm import zo_task

        return Result(zo_task.run(config, folder), folder.path)
    splits = data.load_splits(
        config.data,
        train=_whole(config.train_size),
        dev=_whole(config.dev_size),
        test=_whole(config.test_size),
        classes=len(config.verbalizers),
        seed=config.data_seed,
    )
    tokenizer = models.load_tokenizer(config.model)
    words = Words(prompts.option_ids(tokenizer, config.verbalizers), tokenizer.pad_token_id)
    encoded = {
        name: prompts.encode(getattr(splits, name), tokenizer, config.template, config.max_length)
        for name in SPLITS
    }
    folder.log(f"loading {config.model}")
    model = models.load_model(config.model, dtype=getattr(torch, config.dtype)).to(config.device)
    zo_ranks.introduce(config, words.pad_id, words.options)
    outcome, task = _prepare(config, folder, splits, encoded, model, words)
    deadline = None if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    _train_seeds(outcome, task, folder, deadline)
    if config.full_steps:
        everything = Task(
            Scorer(model, words.pad_id, words.options), trainable_parameters(model, "full"), encoded, {}
        )
        _train_everything(outcome, everything, folder, deadline)
        task = everything
    outcome.usual_pass_ms = usual_pass_ms(task.parameters.values(), config.optimizer)
    if config.memory:
        outcome.memory = _measure_memory(config, folder, encoded["train"], words)
    from tenfold.llm.zo_report import write

    return Result(write(outcome, folder), folder.path)


def load_trained(model: Any, path: str | Path) -> list[str]:
    """Write the tensors of a checkpoint (``checkpoints/*.safetensors`` of a run) into a model of the same
    kind.

    Returns:
        The names of the tensors written.

    Raises:
        ValueError: the model lacks a tensor or has it in another shape.
    """
    tensors, _ = read_safetensors(path)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            got = tuple(parameters[name].shape) if name in parameters else "nothing"
            expected = f"a tensor {name} of shape {tuple(tensor.shape)}, as {Path(path).name} has it"
            raise ValueError(f"model: expected {expected}, got {got}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    return list(tensors)


def _prepare(
    config: ZOConfig,
    folder: RunFolder,
    splits: data.Splits,
    encoded: dict[str, prompts.Encoded],
    model: Any,
    words: Words,
) -> tuple[Outcome, Task]:
    """The task with its kept states, and the logits of the untrained model."""
    trainable = str(config.trainable)
    blocks = len(find_blocks(model)[1])
    scorer = Scorer(model, words.pad_id, words.options, depth=trainable_depth(trainable, blocks))
    difference = scorer.check(encoded["train"])
    kept, kept_seconds = _kept(folder, scorer, encoded)
    task = Task(scorer, trainable_parameters(model, trainable), encoded, kept)
    before = _before(folder, task)
    outcome = Outcome(
        config=config,
        source=splits.source,
        texts=[example.text for example in splits.test],
        labels=encoded["test"].labels,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained_parameters=sum(parameter.numel() for parameter in task.parameters.values()),
        blocks=blocks,
        check=difference,
        before=before,
        dev_labels=encoded["dev"].labels,
        kept_seconds=kept_seconds,
    )
    return outcome, task


def _kept(
    folder: RunFolder, scorer: Scorer, encoded: dict[str, prompts.Encoded]
) -> tuple[dict[str, Tensor], float]:
    """Hidden states entering the trained blocks, and the seconds they took; nothing if all are trained.

    Both are kept for ``--resume``.
    """
    if not scorer.depth:
        return {}, 0.0
    saved = folder.load_state("kept")
    if saved is not None:
        return {name: tensor.to(scorer.device) for name, tensor in saved[1].items()}, saved[0]["seconds"]
    started = time.perf_counter()
    with folder.progress(sum(map(len, encoded.values())), "frozen blocks, once per example") as progress:
        kept = {name: scorer.remember(rows, progress=progress.advance) for name, rows in encoded.items()}
    seconds = time.perf_counter() - started
    folder.save_state("kept", {"seconds": seconds}, kept)
    return kept, seconds


def _before(folder: RunFolder, task: Task) -> dict[str, Tensor]:
    saved = folder.load_state("before")
    if saved is not None:
        return saved[1]
    with folder.progress(len(task.data["dev"]) + len(task.data["test"]), "untrained model") as progress:
        before = {split: task.evaluate(split, progress.advance) for split in ("dev", "test")}
    folder.save_state("before", {}, before)
    return before


def _train_seeds(outcome: Outcome, task: Task, folder: RunFolder, deadline: float | None) -> None:
    config = outcome.config
    start = task.weights()
    for seed in config.seeds or []:
        task.put(start)
        phase = _phase(
            config,
            key=f"seed{seed}",
            label=f"{config.optimizer} {config.trainable}, seed {seed}",
            steps=_whole(config.steps),
            batch_size=_whole(config.batch_size),
            lr=float(config.lr or 0),
            seed=seed,
            select=True,
        )
        outcome.seeds[seed] = train(task, phase, folder, save_seconds=config.save_seconds, deadline=deadline)
        note = {"model": config.model, "trainable": str(config.trainable), "seed": str(seed)}
        folder.write_safetensors(f"{config.trainable}-seed{seed}", task.weights(), note)
    task.put(start)
    for parameter in task.parameters.values():
        parameter.requires_grad_(False)


def _train_everything(outcome: Outcome, task: Task, folder: RunFolder, deadline: float | None) -> None:
    """The second phase: a fixed number of steps on all parameters, none chosen, test scored at the end."""
    config = outcome.config
    phase = _phase(
        config,
        key="full",
        label=f"{config.optimizer} on every parameter",
        steps=_whole(config.full_steps),
        batch_size=_whole(config.full_batch_size),
        lr=float(config.full_lr or 0),
        seed=(config.seeds or [0])[0],
        select=False,
    )
    outcome.full = train(task, phase, folder, save_seconds=config.save_seconds, deadline=deadline)


@torch.no_grad()
def usual_pass_ms(parameters: Iterable[Tensor], optimizer: str) -> float:
    """Time of a weight pass as the papers' code writes it: draw z for each tensor, add it.

    In milliseconds, the faster of two; signs for FZOO, normals for the others. No weight is written.
    """
    parameters = list(parameters)

    def once() -> float:
        started = time.perf_counter()
        for theta in parameters:
            if optimizer == "fzoo":
                z = torch.randint(0, 2, theta.shape, dtype=theta.dtype, device=theta.device) * 2 - 1
            else:
                z = torch.normal(0.0, 1.0, theta.shape, dtype=theta.dtype, device=theta.device)
            theta + 1e-3 * z
        return 1e3 * (time.perf_counter() - started)

    return min(once(), once())


def _phase(config: ZOConfig, **own: Any) -> Phase:
    """A training run with the settings that both phases share."""
    return Phase(
        optimizer=config.optimizer,
        eps=config.eps or 1e-3,
        num_queries=_whole(config.num_queries),
        weight_decay=config.weight_decay,
        restore=config.restore,
        eval_every=_whole(config.eval_every),
        **own,
    )


def _measure_memory(
    config: ZOConfig, folder: RunFolder, train_data: prompts.Encoded, words: Words
) -> list[memory.Measured]:
    rows, labels = memory.longest(train_data, MEMORY_BATCH)
    request = {
        "model": config.model,
        "dtype": config.dtype,
        "device": config.device,
        "rows": rows,
        "labels": labels,
        "pad_id": words.pad_id,
        "options": words.options.tolist(),
        "optimizer": config.optimizer,
        "eps": config.eps,
        "restore": config.restore,
        "rounds": 2,
    }
    return memory.measure(folder, request)


def _whole(value: int | None) -> int:
    """A setting that ``ZOConfig`` has filled."""
    assert value is not None
    return value
