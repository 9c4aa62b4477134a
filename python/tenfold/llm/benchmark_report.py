"""Tables, pictures and page of `tenfold run zo --tables`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenfold.llm import benchmark_figures, methods, stats, zo_paper
from tenfold.llm.benchmark import Cell, Tables
from tenfold.runs import Claim, Headline, Report, RunFolder, Section, figures

__all__ = ["write"]

WORDS = {
    "ft": "full fine-tuning", "lora": "LoRA", "prefix": "prefix tuning", "prompt": "prompt tuning",
    "head": "the head alone", "-": "untrained",
}  # fmt: skip
PARTS = ("forward", "backward", "passes", "rest")

SCHEME_NAMES = {
    "ft": "full", "lora": "LoRA", "prefix": "prefix", "prompt": "prompt", "head": "head", "-": "untrained",
}  # fmt: skip


def write(tables: Tables, folder: RunFolder) -> dict[str, float | int]:
    """Tables, pictures, numbers and page; returns the numbers."""
    sections = []
    with figures.style():
        for make in (_accuracy, _alignment, _memory, _ablations, _words):
            section = make(tables, folder)
            if section is not None:
                sections.append(section)
    if tables.cells:
        folder.write_table("runs", [_run_row(cell, found) for cell, found in tables.cells])
        folder.write_table("curves", _curves(tables))
    if any("sweep" in found for _, found in tables.cells):
        folder.write_table("sweep", _tries(tables))
    numbers = collect(tables)
    report = Report(
        title=f"Zeroth-order fine-tuning: the benchmark's tables on {_models(tables)}",
        lead=_lead(tables),
        headlines=_headlines(tables),
        sections=sections,
        claims=_claims(tables),
        measured=_measured(tables),
    )
    folder.finish(numbers, report)
    return numbers


def collect(tables: Tables) -> dict[str, float | int]:
    """The numbers of ``metrics.json``: figures of the cells as shares, memory in MiB, times in ms."""
    numbers: dict[str, float | int] = {"cells": len(tables.cells)}
    for cell, found in tables.cells:
        for name, value in found["test"].items():
            numbers[f"{cell.job.key}/test_{name}"] = value
        numbers[f"{cell.job.key}/dev_loss"] = found["dev"]["loss"]
        numbers[f"{cell.job.key}/queries"] = found["queries"]
    if len(tables.config.seeds or [0]) > 1:
        for table in ("accuracy", "alignment", "ablations"):
            for cell, found in tables.of(table):
                key = cell.job.key.rpartition("-seed")[0]
                for name, value in found["test"].items():
                    numbers[f"{key}/test_{name}"], numbers[f"{key}/test_{name}_sd"] = value, found["sd"][name]
    for row in tables.memory:
        key = f"memory/{row['scheme']}/{_flat(row['what'])}"
        numbers[f"{key}/above_model_mib"] = row["above_model_mib"]
        numbers[f"{key}/ms"] = row["ms"]
    for row in tables.words:
        numbers[f"words/{_flat(row['optimizer'])}/accuracy"] = row["accuracy"]
    return {name: value for name, value in numbers.items() if value == value and abs(value) != float("inf")}


def _flat(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).strip("_")


def metric(found: dict[str, Any]) -> tuple[str, float]:
    """Name and value of the task's first figure on the test split."""
    test: dict[str, float] = found["test"]
    name = next(name for name in test if name != "loss")
    return name, test[name]


def figure(found: dict[str, Any]) -> float | str:
    """The task's figure in percent; of several seeds the mean and the standard deviation."""
    name, value = metric(found)
    if found.get("seeds", 1) == 1:
        return round(100 * value, 1)
    return f"{100 * value:.1f} ± {100 * found['sd'][name]:.1f}"


# -- tables --------------------------------------------------------------------------------------------------


def _run_row(cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
    """One run in full: what zo.md 4.4 and the protocol ask of a result."""
    job = cell.job
    ms = found["step_ms"]
    return {
        "table": cell.table, "model": cell.family, "row": cell.row, "column": cell.column,
        "optimizer": job.optimizer, "scheme": job.scheme, "seed": job.seed, "lr": found["job"]["lr"],
        "eps": job.eps, "steps": found["steps"], "loss evaluations": found["queries"],
        "backward passes": found["backwards"],
        **{f"test {name}": round(value, 4) for name, value in found["test"].items()},
        "dev loss before": round(found["before"]["loss"], 4), "dev loss": round(found["dev"]["loss"], 4),
        "step kept": found["best_step"], "skipped": found["skipped"], "trained": found["trainable"],
        "forwards ms": round(ms["forwards"], 3), "backwards ms": round(ms["backwards"], 3),
        "passes ms": round(ms["passes"], 3), "rest ms": round(ms["rest"], 3),
        "seconds": round(found["seconds"], 2), "peak MiB": round(found["peak_bytes"] / 2**20, 1),
    }  # fmt: skip


def _tries(tables: Tables) -> list[dict[str, Any]]:
    """Every learning rate that was tried; the lowest dev loss was taken."""
    return [
        {"table": cell.table, "model": cell.family, "row": cell.row, "column": cell.column,
         "seed": cell.job.seed, **tried}
        for cell, found in tables.cells for tried in found.get("sweep", [])
    ]  # fmt: skip


def _curves(tables: Tables) -> list[dict[str, Any]]:
    """Every look at the dev split of every run."""
    return [
        {"table": cell.table, "model": cell.family, "row": cell.row, "column": cell.column,
         "seed": cell.job.seed, "step": look["step"], "loss evaluations": look["forwards"],
         **{f"dev {k}": v for k, v in look.items() if k not in ("step", "forwards", "train_seconds")}}
        for cell, found in tables.cells
        for look in found["evals"]
    ]  # fmt: skip


def grid(cells: Sequence[tuple[Cell, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows by columns of the test figure in percent."""
    rows: dict[str, dict[str, Any]] = {}
    for cell, found in cells:
        row = rows.setdefault(cell.row, {"optimizer": cell.row})
        row[SCHEME_NAMES.get(cell.column, cell.column)] = figure(found)
    return list(rows.values())


def _families(tables: Tables, table: str) -> list[str]:
    return list(dict.fromkeys(cell.family for cell, _ in tables.of(table)))


def _accuracy(tables: Tables, folder: RunFolder) -> Section | None:
    shown, names = [], []
    for family in _families(tables, "accuracy"):
        cells = tables.of("accuracy", family)
        name = f"accuracy-{_flat(family)}"
        folder.write_table(name, grid(cells))
        folder.write_figure(name, *benchmark_figures.accuracy(tables, family, cells, metric))
        shown.append(name)
        names.append(name)
        paper = _paper_rows(tables, family)
        if paper:
            folder.write_table(f"paper-{_flat(family)}", paper)
            names.append(f"paper-{_flat(family)}")
    if not shown:
        return None
    text = (
        f"Each number is {_metric_name(tables)} in percent on {_test_size(tables)} held-out examples, of "
        f"{_runs_words(tables)} whose step was chosen by the loss on other examples; the test examples are "
        f"scored once. {_budget_words(tables.of('accuracy'))} `head` trains the unembedding alone; "
        "logistic regression is fitted to the hidden states of the untrained model."
    )
    if len(names) > len(shown):
        text += (
            "\n\nThe paper's own figures stand below it, for models a thousand times larger on SST-2 itself: "
            "compare the order of methods, not the numbers. `checked: no` marks figures that are known from "
            "memory only and could not be read in a source when this was written."
        )
    return Section("Accuracy: optimizer by fine-tuning scheme", text, shown, names)


def _runs_words(tables: Tables) -> str:
    count = len(tables.config.seeds or [0])
    return "one run" if count == 1 else f"{count} runs (mean ± standard deviation over their seeds)"


def _budget_words(cells: Sequence[tuple[Cell, dict[str, Any]]]) -> str:
    """What the methods had, read from the runs."""
    text = []
    for kinds, what, part, unit in (
        (("zo",), "Methods without back-propagation", "queries", "evaluations of the loss"),
        (("forward",), "Forward-Grad", "queries", "forward-mode derivatives (each dearer than a loss)"),
        (("first-order",), "Back-propagation", "steps", "steps"),
    ):
        runs = [(cell, found) for cell, found in cells if methods.find(cell.job.optimizer).kind in kinds]
        if not runs:
            continue
        counts = [found[part] for _, found in runs]
        asked = {cell.job.forwards for cell, _ in runs}
        least, most = min(counts), max(counts)
        had = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        if least != most and len(asked) == 1 and min(asked, key=str) == least:
            had += " (a step that was begun was finished)"
        text.append(f"{what} had {had} {unit} in each run.")
    if any(found["stopped_early"] for _, found in cells):
        text.append("Some runs were ended early by `--max_minutes`.")
    return " ".join(text) + " `tables/runs.csv` has the count of every run."


def _paper_rows(tables: Tables, family: str) -> list[dict[str, Any]]:
    """The paper's rows for the family, where the task is the paper's (or stands in for it)."""
    if tables.config.task != "sst2" or family not in zo_paper.ACCURACY:
        return []
    return [
        {
            "paper: " + zo_paper.MODELS[family]: methods.find(name).title,
            **{SCHEME_NAMES[scheme]: figure.value for scheme, figure in row.items()},
            "checked": "yes" if all(f.checked for f in row.values())
            else "full only" if row["ft"].checked else "no",
        }
        for name, row in zo_paper.ACCURACY[family].items()
    ]  # fmt: skip


def _alignment(tables: Tables, folder: RunFolder) -> Section | None:
    cells = tables.of("alignment")
    if not cells:
        return None
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    shown: dict[tuple[str, str, str], float | str] = {}
    for cell, found in cells:
        pairs.setdefault((cell.family, cell.job.optimizer), {})[cell.column] = 100 * metric(found)[1]
        shown[cell.family, cell.job.optimizer, cell.column] = figure(found)
    paper = zo_paper.ALIGNMENT.get(str(tables.config.task), {})
    rows = []
    for (family, name), pair in pairs.items():
        row: dict[str, Any] = {"model": family, "optimizer": methods.find(name).title}
        row |= {column: shown[family, name, column] for column in pair}
        row["gain"] = round(pair["with the template"] - pair["without"], 1)
        if name in paper:
            row |= {"paper, with": paper[name][0], "paper, without": paper[name][1], "paper checked": "no"}
        rows.append(row)
    folder.write_table("alignment", rows)
    folder.write_figure("alignment", *benchmark_figures.alignment(tables, pairs))
    text = (
        "The same full fine-tuning with the task's template (`It was` and an answer word for SST-2) and "
        "with the bare text."
    )
    if paper:
        text += " The paper's figures beside are RoBERTa-large's, known from memory only."
    return Section("Task alignment", text, ["alignment"], ["alignment"])


def _memory(tables: Tables, folder: RunFolder) -> Section | None:
    if not tables.memory:
        return None
    rows = [
        {
            "what": row["what"], "scheme": SCHEME_NAMES[row["scheme"]],
            "on top of the model, MiB": round(row["above_model_mib"], 1),
            "above the empty process, MiB": round(row["above_start_mib"], 1),
            "trained": row["trainable"], "loss evaluations": row["forwards"],
            "ms a step": round(row["ms"], 1), **{f"{part} ms": round(row[f"{part}_ms"], 1) for part in PARTS},
        }
        for row in tables.memory
    ]  # fmt: skip
    folder.write_table("memory", rows)
    full = [row for row in tables.memory if row["scheme"] == "ft"]
    folder.write_figure("memory", *benchmark_figures.memory(full))
    folder.write_figure("time", *benchmark_figures.time(full))
    first = tables.memory[0]
    batch = "16 rows of 64 tokens" if tables.tiny else f"the {tables.config.batch_size} longest prompts"
    text = (
        f"One step on the same batch ({batch}), each row in a process of its own, on a model of "
        f"{first['parameters']:,} parameters{' with random weights' if tables.tiny else ''} "
        f"({first['model_mib']:,.0f} MiB){_measured_family(tables)}. Memory is "
        f"{first['method']}, the larger of two steps, time the faster of two. "
        "Methods with several directions were measured with the least number of them that "
        "they take: their memory does not depend on it, and their time grows with it. "
        "Forward, backward, weight passes and rest add up to the step; what a perturbed layer computes "
        "inside the forward pass (no weight is written in a probe) counts as forward."
    )
    return Section("Memory and time", text, ["memory", "time"], ["memory"])


def _measured_family(tables: Tables) -> str:
    family = next(iter(tables.models))
    if not tables.tiny:
        return ""
    return ", a causal one of the OPT family" if family == "roberta" else f" of the {family} family"


def _ablations(tables: Tables, folder: RunFolder) -> Section | None:
    cells = tables.of("ablations")
    if not cells:
        return None
    rows = [
        {
            "variant": cell.row, _metric_name(tables): figure(found),
            "dev loss": round(found["dev"]["loss"], 4), "steps": found["steps"],
            "loss evaluations": found["queries"], "seconds": round(found["seconds"], 2),
        }
        for cell, found in cells
    ]  # fmt: skip
    folder.write_table("ablations", rows)
    folder.write_figure("ablations", *benchmark_figures.ablations(tables, cells, metric))
    text = (
        f"ZO-SGD with full fine-tuning on {cells[0][0].family}, one thing changed in each row, the same "
        "budget of evaluations of the loss (a block-wise step takes two per block). "
        f"{_budget_words(cells)} Block-wise steps keep the "
        "activations in front of the block under probe, so an evaluation costs them less. The hybrid rows "
        "back-propagate through the last layer alone; their evaluations include the one with gradients. "
        "Masks are exact: a masked element moves neither in a probe nor in an update."
    )
    return Section("Block-wise, hybrid, sparse", text, ["ablations"], ["ablations"])


def _words(tables: Tables, folder: RunFolder) -> Section | None:
    if not tables.words:
        return None
    rows = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()
         if key not in ("accuracies", "source")}
        for row in tables.words
    ]  # fmt: skip
    folder.write_table("words", rows)
    folder.write_figure("words", *benchmark_figures.words(tables.words))
    text = (
        "Logistic regression on which of 2,000 words a review holds, batch 64, the same data and seeds for "
        f"all ({tables.words[0]['source']}). A convex problem: what separates the methods is the noise of "
        "the estimate alone."
    )
    return Section("Every optimizer on a bag of words", text, ["words"], ["words"])


# -- words of the page ---------------------------------------------------------------------------------------


def _models(tables: Tables) -> str:
    if not tables.tiny:
        return ", ".join(tables.models)
    return f"tiny models ({', '.join(tables.models)})"


def _metric_name(tables: Tables) -> str:
    return metric(tables.cells[0][1])[0] if tables.cells else "accuracy"


def _test_size(tables: Tables) -> int:
    return int(tables.cells[0][1]["sizes"]["test"])


def _best(
    tables: Tables, kinds: Sequence[str], table: str = "accuracy"
) -> tuple[Cell, dict[str, Any]] | None:
    """The run of the lowest dev loss among methods of some kinds."""
    found = [
        (cell, result) for cell, result in tables.of(table) if methods.find(cell.job.optimizer).kind in kinds
    ]
    return min(found, key=lambda pair: pair[1]["dev"]["loss"]) if found else None


def _lead(tables: Tables) -> str:
    config = tables.config
    if not tables.cells:
        return (
            f"Tables {config.tables} on {_models(tables)}: what the optimizers of the benchmark cost and "
            "find, each measured in this run."
        )
    source = tables.cells[0][1]["source"]
    lead = f"{len(tables.cells)} fine-tuning runs on {source} ({config.task}) with {_models(tables)}. "
    if tables.tiny:
        lead += (
            "The models have two layers and were pre-trained in this run, on other reviews; they are there "
            "to put every optimizer and every scheme through the same procedure in minutes. "
        )
    zo, fo = _best(tables, ("zo",)), _best(tables, ("first-order",))
    if zo and fo:
        lead += (
            f"By dev loss the best run without back-propagation is {zo[0].row}, {WORDS[zo[0].column]} "
            f"({_percent(zo[1])} on the test examples), the best with it {fo[0].row}, "
            f"{WORDS[fo[0].column]} ({_percent(fo[1])})."
        )
    return lead


def _percent(found: dict[str, Any]) -> str:
    return f"{100 * metric(found)[1]:.1f} %"


def _headlines(tables: Tables) -> list[Headline]:
    tiles = []
    for label, kinds in (
        ("Best without back-propagation", ("zo",)),
        ("Best with back-propagation", ("first-order",)),
    ):
        best = _best(tables, kinds)
        if best is not None:
            cell, found = best
            note = f"{cell.row}, {WORDS[cell.column]}; {_certainty(found)}"
            tiles.append(Headline(label, _percent(found), note))
    by_label = {row["what"]: row for row in tables.memory if row["scheme"] == "ft"}
    if {"ZO-SGD", "FO-Adam"} <= set(by_label):
        zo, fo = by_label["ZO-SGD"], by_label["FO-Adam"]
        note = f"a ZO-SGD step; FO-Adam: {fo['above_model_mib']:,.0f} MiB"
        if "FO-SGD, checkpointing" in by_label:
            note += (
                f", FO-SGD with checkpointing: {by_label['FO-SGD, checkpointing']['above_model_mib']:,.0f}"
            )
        tiles.append(Headline("Memory on top of the model", f"{zo['above_model_mib']:,.0f} MiB", note))
    return tiles


def _certainty(found: dict[str, Any]) -> str:
    total, (name, value), seeds = found["sizes"]["test"], metric(found), found.get("seeds", 1)
    if seeds > 1:
        return f"mean of {seeds} seeds, standard deviation {100 * found['sd'][name]:.1f}, {total} examples"
    if name != "accuracy":
        return f"one seed, {total} examples"
    low, high = stats.wilson(round(value * total), total)
    return f"95 % interval over {total} examples {100 * low:.1f} to {100 * high:.1f} %"


def _claims(tables: Tables) -> list[Claim]:
    claims = []
    for family in _families(tables, "accuracy"):
        by_place = {(c.job.optimizer, c.column): found for c, found in tables.of("accuracy", family)}
        sgd, zo = by_place.get(("sgd", "ft")), by_place.get(("zo-sgd", "ft"))
        if not (sgd and zo) or tables.config.task != "sst2":
            continue
        claims.append(
            Claim(
                "Full fine-tuning of OPT-1.3B on SST-2: FO-SGD 91.1 %, ZO-SGD 90.8 %.",
                f"{family}: FO-SGD {_percent(sgd)}, ZO-SGD {_percent(zo)}; untrained "
                f"{100 * zo['before']['accuracy']:.1f} % on dev.",
                "arXiv 2402.11592, read in ReLIZO's table",
            )
        )
    gains = {
        (cell.family, cell.job.optimizer, cell.column): metric(found)[1]
        for cell, found in tables.of("alignment")
    }
    if gains and tables.config.task == "sst2":
        words = [
            f"{methods.find(name).title} {100 * (value - gains[family, name, 'without']):+.1f} ({family})"
            for (family, name, column), value in gains.items()
            if column != "without"
        ]
        claims.append(
            Claim(
                "Without the task's template ZO-SGD loses about ten points on SST-2, FO-SGD 0.1 "
                "(RoBERTa-large; known from memory, not checked).",
                "Points gained by the template: " + ", ".join(words) + ".",
                "arXiv 2402.11592",
            )
        )
    by_label = {row["what"]: row for row in tables.memory if row["scheme"] == "ft"}
    if {"ZO-SGD", "FO-SGD"} <= set(by_label):
        zo_row, fo_row = by_label["ZO-SGD"], by_label["FO-SGD"]
        claims.append(
            Claim(
                "Peak memory of full fine-tuning, OPT-1.3B, batch 128: FO-SGD 44.1 GB, ZO-SGD 28.7 GB.",
                f"FO-SGD {fo_row['above_start_mib']:,.0f} MiB, ZO-SGD {zo_row['above_start_mib']:,.0f} MiB, "
                "the model included.",
                "ReLIZO's rerun of the benchmark's table",
            )
        )
    return claims


def _measured(tables: Tables) -> str:
    config = tables.config
    text = (
        "Selection: the step with the lowest dev loss, out of the looks that `tables/curves.csv` lists; the "
        "test split is scored once per run, with the weights kept. Seeds "
        f"{', '.join(map(str, config.seeds or [0]))}: differences of a few points between rows are within "
        "what other seeds or other examples would give; `tables/runs.csv` has every run with its "
        "settings, times and counts, and results/ one JSON file each. "
    )
    if tables.tiny:
        text += (
            "Learning rates of the tiny models come from a coarse grid on the dev reviews with another "
            "seed, or are carried over from ZO-SGD by the length of a step. "
            "Pre-training: AdamW on reviews of up to 90 letters that no split holds, each followed by "
            "`It was` and a rating word; `great` after 40 % of the positive and 15 % of the negative "
            "ones, `terrible` after 30 % of the negative ones, other words after the rest."
        )
    else:
        text += (
            "Learning rates are starting points (MeZO's for ZO-SGD), the same for every model and task "
            "unless `--lr` was given: sweep before you draw conclusions about a method."
        )
    if any("sweep" in found for _, found in tables.cells):
        text += " A sweep chose among multiples of them by the dev loss (`tables/sweep.csv`)."
    return text + " Times are wall times of this machine, whatever else it was doing."
