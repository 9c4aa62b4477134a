"""`tenfold run zo --task ...`: one task, one scheme, one optimizer, a run for each seed.

tenfold run zo --task rte --data superglue/RTE --scheme lora --optimizer zo-adam --steps 2000
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from tenfold.llm import benchmark, methods, stats
from tenfold.llm.benchmark_report import metric
from tenfold.llm.engine import Job
from tenfold.llm.sweep import run_swept
from tenfold.llm.zo_config import ZOConfig
from tenfold.runs import Headline, Report, RunFolder, Section, figures

__all__ = ["jobs", "run"]

SCHEMES = {
    "ft": "all parameters", "lora": "LoRA", "prefix": "prefix", "prompt": "prompt tuning",
    "head": "the head alone",
}  # fmt: skip


def jobs(config: ZOConfig) -> list[Job]:
    """The runs: one for each seed, without a default tuned to tiny models."""
    found = []
    for seed in config.seeds or [0]:
        key = f"{config.task}-{config.scheme}-{config.optimizer}-seed{seed}"
        job = benchmark.make_job(
            config, config.model, config.optimizer, str(config.scheme), key=key, tiny=False, seed=seed
        )
        found.append(dataclasses.replace(job, keep=True, log=True))
    return found


def run(config: ZOConfig, folder: RunFolder) -> dict[str, float | int]:
    """Run every seed, then write numbers, tables and page; returns the numbers.

    Raises:
        ValueError, RuntimeError: as :func:`tenfold.llm.engine.run_job`.
    """
    deadline = None if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    found = [
        run_swept(
            job, folder, config.sweep, save_seconds=config.save_seconds, deadline=deadline,
            label=f"{job.optimizer}, {job.scheme}, seed {job.seed}",
        )
        for job in jobs(config)
    ]  # fmt: skip
    numbers = collect(found)
    folder.write_table("runs", [_row(result) for result in found])
    folder.write_table("dev", [{"seed": r["job"]["seed"], **look} for r in found for look in r["evals"]])
    steps = [{"seed": r["job"]["seed"], **row} for r in found for row in r["curve"]]
    swept = [{"seed": r["job"]["seed"], **row} for r in found for row in r.get("sweep", [])]
    if swept:
        folder.write_table("sweep", swept)
    pictures = []
    if steps:
        folder.write_table("steps", steps)
        with figures.style():
            folder.write_figure("loss", *_loss(found))
        pictures = ["loss"]
    folder.finish(numbers, _report(config, found, numbers, pictures))
    return numbers


def collect(found: list[dict[str, Any]]) -> dict[str, float | int]:
    """Numbers of ``metrics.json``: means over the seeds, and each seed's."""
    first = found[0]
    name = metric(first)[0]
    values = [metric(result)[1] for result in found]
    numbers: dict[str, float | int] = {
        f"{name}_after": sum(values) / len(values),
        "test_loss": sum(r["test"]["loss"] for r in found) / len(found),
        "dev_loss_before": first["before"]["loss"],
        "dev_loss_after": sum(r["dev"]["loss"] for r in found) / len(found),
        f"dev_{name}_before": first["before"].get(name, float("nan")),
        "parameters": first["parameters"],
        "trained_parameters": first["trainable"],
        "steps": max(r["steps"] for r in found),
        "forwards_per_seed": max(r["queries"] for r in found),
        "backwards_per_seed": max(r["backwards"] for r in found),
        "skipped_steps": sum(r["skipped"] for r in found),
        "train_seconds_per_seed": sum(r["seconds"] for r in found) / len(found),
        "peak_mib": max(r["peak_bytes"] for r in found) / 2**20,
    }
    for result in found:
        numbers[f"{name}_after_seed{result['job']['seed']}"] = metric(result)[1]
    for part, value in first["step_ms"].items():
        numbers[f"{part}_ms_per_step"] = value
    return {key: value for key, value in numbers.items() if value == value and abs(value) != float("inf")}


def _row(result: dict[str, Any]) -> dict[str, Any]:
    ms = result["step_ms"]
    return {
        "seed": result["job"]["seed"], "lr": result["job"]["lr"],
        **{f"test {name}": value for name, value in result["test"].items()},
        **{f"dev {name}": value for name, value in result["dev"].items()},
        "dev loss before": result["before"]["loss"], "step kept": result["best_step"],
        "steps": result["steps"], "loss evaluations": result["queries"], "skipped": result["skipped"],
        "seconds": round(result["seconds"], 2), **{f"{part} ms": round(v, 2) for part, v in ms.items()},
        "peak MiB": round(result["peak_bytes"] / 2**20, 1),
    }  # fmt: skip


def _loss(found: list[dict[str, Any]]) -> tuple[Any, str, str]:
    figure, axes = figures.figure(7.0, 3.4)
    for i, result in enumerate(found):
        colour, seed = figures.SERIES[i % len(figures.SERIES)], result["job"]["seed"]
        curve, looks = result["curve"], result["evals"]
        axes.plot(
            [r["step"] for r in curve], [r["loss"] for r in curve], color=colour, alpha=0.3, linewidth=0.8
        )
        axes.plot(
            [r["step"] for r in looks], [r["loss"] for r in looks], color=colour, marker="o", markersize=4,
            label=f"dev, seed {seed}",
        )  # fmt: skip
        kept = next(r for r in looks if r["step"] == result["best_step"])
        axes.plot(
            kept["step"], kept["loss"], marker="*", markersize=13, color=colour, markeredgecolor="white"
        )
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title("Loss while training")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    caption = "Thin lines: training batches. Dots: the dev examples; a star where the weights were kept."
    alt = "; ".join(
        f"seed {r['job']['seed']}: dev loss from {r['evals'][0]['loss']:.3f} to {r['dev']['loss']:.3f}"
        for r in found
    )
    return figure, caption, f"Line chart of the loss. {alt}."


def _report(
    config: ZOConfig, found: list[dict[str, Any]], numbers: dict[str, float | int], pictures: list[str]
) -> Report:
    first, method = found[0], methods.find(config.optimizer)
    name = metric(first)[0]
    value = numbers[f"{name}_after"]
    size = first["sizes"]["test"]
    before = first["before"].get(name)
    lead = (
        f"{config.model} ({first['parameters']:,} parameters) on {config.task} ({first['source']}): "
        f"{method.title}, {SCHEMES[str(config.scheme)]}, trains {first['trainable']:,} parameters for "
        f"{numbers['steps']:,} steps, {numbers['forwards_per_seed']:,} evaluations of the loss and "
        f"{numbers['backwards_per_seed']:,} backward passes. {name.capitalize()} on {size} held-out "
        f"examples: {100 * value:.1f} %{f' (mean of {len(found)} seeds)' if len(found) > 1 else ''}"
        + (f"; before training, on the dev examples, {100 * before:.1f} %." if before is not None else ".")
    )
    tiles = [
        Headline(f"{name.capitalize()} on held-out examples", f"{100 * value:.1f} %", _spread(found, size))
    ]
    ms = first["step_ms"]
    tiles.append(
        Headline(
            "Time of a step", f"{sum(ms.values()):.1f} ms", ", ".join(f"{k} {v:.1f}" for k, v in ms.items())
        )
    )
    tiles.append(
        Headline(
            "Peak memory", f"{numbers['peak_mib']:,.0f} MiB", f"the model included: {first['peak_method']}"
        )
    )
    sections = [
        Section(
            "Training",
            "The step with the lowest dev loss is kept; the test examples are scored once, with its weights. "
            f"`checkpoints/` holds {_kept(config)}, `results/` one JSON file per seed.",
            pictures,
            ["runs", "dev", *(["sweep"] if "sweep" in first else [])],
        )
    ]
    measured = (
        f"Learning rate {first['job']['lr']:g}, eps {first['job']['eps']:g}, batch "
        f"{first['job']['batch_size']}, weights in {config.dtype}, loss in float32, options scored as "
        f"{first['form']}. Test figures of a single seed vary by a few points with the seed. Times are wall "
        "times of this machine."
    )
    return Report(
        title=f"{config.task}: {method.title}, {SCHEMES[str(config.scheme)]}", lead=lead, headlines=tiles,
        sections=sections, measured=measured,
    )  # fmt: skip


def _kept(config: ZOConfig) -> str:
    if config.offload:
        return "the tuned model as a folder that transformers loads (it was never in memory as a whole)"
    return f"the trained tensors ({config.scheme})"


def _spread(found: list[dict[str, Any]], size: int) -> str:
    if len(found) > 1:
        return "seeds: " + ", ".join(f"{100 * metric(r)[1]:.1f}" for r in found)
    name, value = metric(found[0])
    if name != "accuracy":
        return "one seed"
    low, high = stats.wilson(round(value * size), size)
    return f"one seed; 95 % interval over {size} examples {100 * low:.1f} to {100 * high:.1f} %"
