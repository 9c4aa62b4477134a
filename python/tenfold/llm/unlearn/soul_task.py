"""``tenfold run soul --task ...`` and ``--evaluate``: real data in its published files.

tenfold run soul --task tofu --data DIR --forget forget10 --model M --method graddiff,npo --optimizer
adamw,sophia
tenfold run soul --task copyright --data hp_train_qa_100.jsonl --retain c4.jsonl --model M --method po
tenfold run soul --task toxicity --data pku.jsonl --retain c4.jsonl --test prompts.jsonl --model M --method po
tenfold run soul --evaluate MODEL --task tofu --data DIR
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tenfold.llm import models, schemes
from tenfold.llm.unlearn import data as rows_of
from tenfold.llm.unlearn import formats, methods, soul_ranks
from tenfold.llm.unlearn.curvature import ESTIMATED
from tenfold.llm.unlearn.evaluate import (
    evaluate_copyright,
    evaluate_tofu,
    evaluate_toxicity,
    profanity_scorer,
    text_perplexity,
)
from tenfold.llm.unlearn.pairs import sample_forget
from tenfold.llm.unlearn.rows import Row, check_rows
from tenfold.llm.unlearn.soul import attempt, encode_sets, jobs
from tenfold.llm.unlearn.soul_config import SoulConfig
from tenfold.llm.unlearn.subject import Subject
from tenfold.runs import Headline, Report, RunFolder, Section
from tenfold.runs.files import read_safetensors

__all__ = ["load", "run"]


@dataclass
class Loaded:
    """Rows to train on, and what a model is scored with: ``score(model, tokenizer) -> (numbers, items)``."""

    data: rows_of.TofuData
    score: Callable[[Any, Any], tuple[dict[str, float], list[dict[str, Any]]]]
    shown: dict[str, str] = field(default_factory=dict)


def run(config: SoulConfig, folder: RunFolder) -> dict[str, float | int]:
    """Unlearn with every method, optimizer, learning rate and seed of the settings; score before and after.

    Raises:
        ValueError: a file or a setting is wrong; nothing has been loaded then.
        RuntimeError: a loss is not finite.
    """
    loaded = load(config)
    tokenizer = models.load_tokenizer(
        config.model if config.evaluate.endswith(".safetensors") else _model(config)
    )
    folder.log(f"loading {_model(config)}")
    model = models.load_model(_model(config), dtype=getattr(torch, config.dtype)).to(config.device)
    if config.evaluate:
        if config.evaluate.endswith(".safetensors"):
            _put(model, config.evaluate)
        found = {"model": _scored(folder, "model", loaded, model, tokenizer)}
        return _finish(config, folder, loaded, found, {})
    subject = Subject(model, tokenizer.pad_token_id, str(config.trainable), seed=(config.seeds or [0])[0])
    soul_ranks.introduce(config, subject, (config.seeds or [0])[0])
    lengths: dict[str, int] = {}
    encoded = encode_sets(tokenizer, loaded.data, config, lengths)
    for name, count in lengths.items():
        folder.log(f"{name}: {count} rows are longer than max_length {config.max_length}")
    for name, rows in encoded.items():
        subject.add(name, rows)
    weights = subject.weights()
    found = {"before": _scored(folder, "before", loaded, model, tokenizer)}
    steps: dict[str, list[dict[str, float]]] = {}
    for job in jobs(config):
        made = attempt(subject, job, folder, weights, config.save_seconds)
        steps[job.key] = made.history.steps
        found[job.key] = _scored(folder, job.key, loaded, model, tokenizer)
        if config.save:
            save_model(subject, folder.path / "checkpoints" / job.key, tokenizer)
    return _finish(config, folder, loaded, found, steps, lengths)


def load(config: SoulConfig) -> Loaded:
    """Read and check every file of a task before a model is loaded.

    Raises:
        ValueError: a missing file, a malformed line (named), an empty forget set, rows in both sets, no
        retain
            rows where a method needs them.
    """
    if config.task == "tofu" or not config.task:
        data = _sampled(config, rows_of.load_tofu_split(config.data, config.forget))
        data = dataclasses.replace(data, template=config.template or data.template or "question")
        loaded = Loaded(data, lambda model, tokenizer: _tofu(config, data, model, tokenizer))
    elif config.task == "copyright":
        data = _pairs(config, formats.load_copyright(config.data))
        test = formats.load_copyright(config.test) if config.test else data.forget
        loaded = Loaded(data, lambda model, tokenizer: _copyright(config, data, test, model, tokenizer))
    else:
        data = _pairs(config, formats.load_pku(config.data))
        if not config.test:
            raise ValueError("test: expected a file of prompts with toxicity, got ''")
        rtp = config.test == "realtoxicityprompts"
        prompts = formats.load_realtoxicityprompts() if rtp else formats.load_prompts(config.test)
        scorer = profanity_scorer()
        loaded = Loaded(
            data, lambda model, tokenizer: _toxicity(config, data, prompts, scorer, model, tokenizer)
        )
    if not config.evaluate:
        for method in config.methods:
            check_rows(data.forget, data.retain, retain_needed=_needs_retain(config, method))
        curved = [name for name in config.optimizers if name in ESTIMATED]
        if curved and config.hessian_source == "retain" and not data.retain:
            raise ValueError(
                f"hessian_source: expected 'forget' without retain rows with {curved[0]}, got 'retain'"
            )
    return loaded


def _needs_retain(config: SoulConfig, method: str) -> bool:
    known = methods.find(method)
    return (config.retain_loss or known.retain) != "none" or "random" in known.sets


def _pairs(config: SoulConfig, forget: list[Row]) -> rows_of.TofuData:
    retain = formats.load_texts(config.retain) if config.retain else []
    data = _sampled(config, rows_of.TofuData(
        config=config.task, source=config.data, forget=forget, retain=retain, forget_eval=forget,
        retain_eval=retain, template=config.template or "none",
    ))  # fmt: skip
    limit = config.limit
    return dataclasses.replace(data, forget_eval=data.forget_eval[:limit], retain_eval=data.retain[:limit])


def _sampled(config: SoulConfig, data: rows_of.TofuData) -> rows_of.TofuData:
    """The forget rows that ``forget_ratio`` leaves, in the order in which they were drawn."""
    if config.forget_ratio is None:
        return data
    chosen, rest = sample_forget(data.forget, config.forget_ratio, dataset_seed=config.dataset_seed)
    kept = {row.index for row in chosen}
    shown = [row for row in data.forget_eval if row.index in kept]
    retain = rest if config.self_retain else data.retain
    return dataclasses.replace(data, forget=chosen, retain=retain, forget_eval=shown)


def _model(config: SoulConfig) -> str:
    """The model to load: the one to evaluate, or the one that an adapter or checkpoint belongs to."""
    return (
        config.evaluate if config.evaluate and not config.evaluate.endswith(".safetensors") else config.model
    )


def _put(model: Any, path: str) -> None:
    """Write a file of a run into the model: an adapter, or the tensors of the trained blocks."""
    from tenfold.llm.zo import load_trained

    if not Path(path).is_file():
        raise ValueError(f"evaluate: expected a model or a file of a run, got {path!r}, which is none")
    if read_safetensors(path)[1].get("format") == "tenfold.adapter/1":
        schemes.load_adapter(model, path)
    else:
        load_trained(model, path)


def save_model(subject: Subject, target: Path, tokenizer: Any) -> Path:
    """Weights (or the adapter) in a folder, written aside and renamed."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        subject.save(aside, tokenizer)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


# -- scores --------------------------------------------------------------------------------------------------


def _scored(
    folder: RunFolder, key: str, loaded: Loaded, model: Any, tokenizer: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    saved = folder.load_state(f"eval-{key}")
    if saved is not None:
        return saved[0]["metrics"], saved[0]["items"]
    folder.log(f"evaluating {key}")
    metrics, items = loaded.score(model, tokenizer)
    folder.save_state(f"eval-{key}", {"metrics": metrics, "items": items})
    return metrics, items


def _tofu(
    config: SoulConfig, data: rows_of.TofuData, model: Any, tokenizer: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    result = evaluate_tofu(
        model, tokenizer, data, reference=config.reference or None, max_length=config.max_length,
        max_new_tokens=int(config.max_new_tokens or 200), limit=config.limit,
    )  # fmt: skip
    return result.metrics, result.items


def _copyright(
    config: SoulConfig, data: rows_of.TofuData, test: list[Row], model: Any, tokenizer: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    result = evaluate_copyright(
        model, tokenizer, test[: config.limit], template=data.template, max_new_tokens=config.max_new_tokens
    )
    return result.metrics | _perplexity(data, model, tokenizer), result.items


def _toxicity(
    config: SoulConfig, data: rows_of.TofuData, prompts: list[Row], scorer: Any, model: Any, tokenizer: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    result = evaluate_toxicity(  # prompts as they stand, as SOUL's evaluation takes them
        model, tokenizer, prompts[: config.limit], scorer=scorer, template="none",
        max_new_tokens=int(config.max_new_tokens or 100),
    )  # fmt: skip
    return result.metrics | _perplexity(data, model, tokenizer), result.items


def _perplexity(data: rows_of.TofuData, model: Any, tokenizer: Any) -> dict[str, float]:
    if not data.retain_eval:
        return {}
    return {"retain_perplexity": float(text_perplexity(model, tokenizer, data.retain_eval))}


# -- page ----------------------------------------------------------------------------------------------------


def _finish(
    config: SoulConfig, folder: RunFolder, loaded: Loaded,
    found: dict[str, tuple[dict[str, float], list[dict[str, Any]]]], steps: dict[str, list[dict[str, float]]],
    lengths: dict[str, int] | None = None,
) -> dict[str, float | int]:  # fmt: skip
    lengths = lengths or {}
    numbers: dict[str, float | int] = {
        f"{key}.{name}": value
        for key, (metrics, _) in found.items()
        for name, value in metrics.items()
        if value == value and abs(value) != float("inf")
    }
    numbers |= lengths
    folder.write_table("evaluation", [{"model": key, **metrics} for key, (metrics, _) in found.items()])
    folder.write_table(
        "answers", [{"model": key, **_short(item)} for key, (_, items) in found.items() for item in items]
    )
    tables = ["evaluation", "answers"]
    rows = [{"run": key, **row} for key, told in steps.items() for row in told]
    if rows:
        folder.write_table("steps", rows)
    what = "scored" if config.evaluate else f"made to forget {len(loaded.data.forget)} rows"
    lead = (
        f"{_model(config)} was {what} ({config.task or 'mini-TOFU'}, {loaded.data.source}), "
        f"{len(loaded.data.retain)} rows to keep. Every row of the table is one model: before, and after "
        "each run."
    )
    for name, count in lengths.items():
        part, _, what = name.rpartition("_")
        done = (
            "were cut at their end" if what == "truncated" else "were left out, their prompt alone fills it"
        )
        lead += f" {count} rows of {part} are longer than {config.max_length} tokens and {done}."
    folder.finish(
        numbers,
        Report(
            title=f"Unlearning: {config.task or 'mini-TOFU'}", lead=lead, headlines=_tiles(found),
            sections=[Section("Evaluation", "", [], tables[:1]), Section("Answers", "", [], tables[1:])],
        ),
    )  # fmt: skip
    return numbers


def _tiles(found: dict[str, tuple[dict[str, float], list[dict[str, Any]]]]) -> list[Headline]:
    """The figures of the task that people look at first, before and in the last run."""
    (_, (first, _)), (name, (last, _)) = next(iter(found.items())), list(found.items())[-1]
    shown = (
        "forget_prob",
        "retain_prob",
        "model_utility",
        "bleu",
        "rougeL_recall",
        "toxicity",
        "retain_perplexity",
    )
    return [
        Headline(key.replace("_", " "), f"{first[key]:.3g} → {last[key]:.3g}", f"before, and after {name}")
        for key in shown
        if key in first and key in last
    ]


def _short(item: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in item.items() if isinstance(v, (str, int, float)) and v is not None}
