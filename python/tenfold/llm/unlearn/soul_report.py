"""Tables and the page of a ``soul`` run."""

from __future__ import annotations

import math
from typing import Any

from tenfold.llm.unlearn import soul_figures, soul_paper, tuning
from tenfold.llm.unlearn.curvature import FIRST_ORDER
from tenfold.llm.unlearn.soul import KEPT, Attempt, Outcome
from tenfold.llm.unlearn.soul_numbers import (
    best,
    by_figure,
    collect,
    evaluation_rows,
    fall,
    kept,
    optimizer_name,
    pair,
    rate,
    shown,
    sweep_rows,
    title,
    win_rate,
)
from tenfold.llm.unlearn.soul_seeds import comparison_rows, seed_rows
from tenfold.runs import Claim, Headline, Report, RunFolder, Section

__all__ = ["answer_rows", "write"]

MODEL_NAMES = {"smollm2": "SmolLM2-135M-Instruct"}


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Tables, pictures, numbers and page; returns the numbers."""
    numbers = collect(outcome)
    folder.write_table("runs", sweep_rows(outcome))
    tables = ["runs"]
    for name, rows in (
        ("seeds", seed_rows(outcome)), ("comparison", comparison_rows(outcome)),
        ("evaluation", evaluation_rows(outcome)), ("figures", by_figure(evaluation_rows(outcome))),
        ("answers", answer_rows(outcome)),
        ("steps", _steps(outcome)),
        ("paper", soul_paper.TOFU),
    ):  # fmt: skip
        if rows:
            folder.write_table(name, rows)
            tables.append(name)
    pictures = soul_figures.draw(outcome, folder)
    folder.finish(numbers, _report(outcome, pictures, tables))
    return numbers


def _steps(outcome: Outcome) -> list[dict[str, Any]]:
    return [{"run": a.job.key, **row} for a in outcome.attempts for row in a.history.steps]


def answer_rows(outcome: Outcome, each: int = 8) -> list[dict[str, Any]]:
    """Answers as text before and after: of the first- and the second-order run shown on top of the page."""
    before = outcome.before_result
    told = [a for _, a in shown(outcome) if a.result is not None]
    if before is None or not told:
        return []
    rows = []
    for part, count in (("forget", each), ("retain", each // 2), ("world_facts", each // 4)):
        items = [item for item in before.items if item["set"] == part]
        for item in items[:: max(1, len(items) // count)][:count]:
            row = {
                "set": part.replace("_", " "), "question": item["question"], "truth": item["answer"],
                "before": item["generated"],
            }  # fmt: skip
            for a in told:
                row[title(a)] = _answer(a, part, item["index"]) or "(nothing)"
            rows.append(row)
    return rows


def _answer(attempt: Attempt, part: str, index: int) -> str:
    assert attempt.result is not None
    found = [i["generated"] for i in attempt.result.items if i["set"] == part and i["index"] == index]
    return found[0] if found else ""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if value >= 0.001 or value == 0 else f"{100 * value:.2g} %"


def _times(value: float) -> str:
    return f"{value:,.0f} times" if value >= 20 else f"{value:.1f} times"


def _model(outcome: Outcome) -> str:
    return MODEL_NAMES.get(outcome.config.model, outcome.config.model)


def _report(outcome: Outcome, pictures: list[str], tables: list[str]) -> Report:
    top = best(outcome)
    before = outcome.before
    lead = (
        f"{_model(outcome)} ({outcome.parameters:,} parameters) was taught about invented authors and then "
        "made to "
        f"forget two of them. Before, it gave the right answer about those two a probability of "
        f"{_percent(before['forget'])} per token, and {_percent(before['retain'])} about the others. "
    )
    if top is None:
        lead += f"No run kept {_percent(KEPT)} of what it should keep: see the table of runs."
    else:
        lead += (
            f"{title(top)} did best here: the forget answers fell to {_percent(top.probability['forget'])} "
            f"({_times(fall(outcome, top))} less), while {_percent(kept(outcome, top))} of the retain "
            "probability was kept."
        )
    # few models: a column for each; else a row for each
    evaluation = [name for name in ("figures", "evaluation") if name in tables][:1]
    answers = [name for name in ("answers",) if name in tables]
    sections = [Section("Forgetting against keeping", _tradeoff_text(outcome), ["tradeoff"], ["runs"])]
    seeds = [name for name in ("seeds", "comparison") if name in tables]
    if seeds:
        sections.append(Section("Over several seeds", _seeds_text(outcome), [], seeds))
    if "iu" in outcome.config.methods:
        sections.append(Section("One step of influence unlearning", _one_shot_text(outcome)))
    if answers:
        sections.append(
            Section("What it says", "Greedy answers of the same model before and after.", [], answers)
        )
    if evaluation:
        sections.append(Section("The whole evaluation", _evaluation_text(outcome), [], evaluation))
    if "win-rate" in pictures:
        sections.append(Section("Is the second order at work?", _win_text(outcome), ["win-rate"]))
    if "training" in pictures:
        sections.append(Section("Training", "", ["training"]))
    sections.append(Section("What this setting can and cannot show", _honest(outcome)))
    sections.append(
        Section(
            "The paper's figures",
            "TOFU forget10 on LLaMA2-7B-chat, a model fifty times as large, taught 200 authors. Forget "
            "quality "
            "there compares the forget set with the retain set of the same model. The paper's first- and "
            "second-order rows differ in the weight of the retain term as well (0.3 against 2 for "
            "GradDiff, 1 "
            "against 5 for PO), here it is the same for all.",
            [],
            ["paper"],
        )
    )
    return Report(
        title=f"Unlearning in {_model(outcome)}: first order against second order", lead=lead,
        headlines=_headlines(outcome), sections=sections, claims=_claims(outcome),
        measured=_measured(outcome),
    )  # fmt: skip


def _headlines(outcome: Outcome) -> list[Headline]:
    tiles = []
    for label, attempt in shown(outcome):
        tiles.append(
            Headline(
                f"{label}: forget answers",
                f"{_percent(outcome.before['forget'])} → {_percent(attempt.probability['forget'])}",
                f"{title(attempt)}, {rate(attempt)}; keeps {_percent(kept(outcome, attempt))} of the retain "
                "probability",
            )
        )
    second = pair(outcome)[1]
    if second is not None and math.isfinite(win_rate(second)):
        tiles.append(
            Headline(
                "Coordinates not clipped", _percent(win_rate(second)),
                f"{title(second)}; the rest of the step is sign-momentum",
            )
        )  # fmt: skip
    facts = outcome.before.get("facts")
    top = best(outcome)
    if facts and top is not None:
        tiles.append(
            Headline(
                "World facts", f"{_percent(facts)} → {_percent(top.probability['facts'])}",
                "capitals and the like, which the model knew before it was taught",
            )
        )  # fmt: skip
    return tiles


def _tradeoff_text(outcome: Outcome) -> str:
    config = outcome.config
    gamma = "the method's own" if config.gamma is None else f"{config.gamma:g}"
    parts = [
        "All runs start from the same weights, with the same rows in the same order, the same weight of the "
        f"retain term ({gamma}) for every optimizer, and a learning rate chosen for each pair of method and "
        "optimizer. " + _selection_text(outcome)
    ]
    lines = []
    for method in config.methods:
        mine = [a for a in outcome.chosen.values() if a.job.method == method]
        told = ", ".join(
            f"{optimizer_name(a)} {_percent(a.probability['forget'])} (keeps {_percent(kept(outcome, a))}, "
            f"{rate(a)})"
            for a in sorted(mine, key=lambda a: a.probability["forget"])
        )
        if mine:
            lines.append(f"- **{title(mine[0]).split(',')[0]}**: {told}.")
    return parts[0] + "\n\n" + "\n".join(lines)


def _selection_text(outcome: Outcome) -> str:
    """How each learning rate was chosen, for those of this run."""
    config = outcome.config
    by: dict[str, list[str]] = {}
    for a in outcome.chosen.values():
        by.setdefault(config.selection(a.job.optimizer, a.job.method), []).append(title(a))
    rule = (
        "of the runs that keep {} of the retain probability the one that forgets most; where none does, "
        "the one "
        "that keeps most"
    )
    told = {
        "tuning": "was chosen while two other authors were made to be forgotten, from the same weights, "
        "with seed "
        f"{config.tuning_seed}, which no reported run has ({rule.format(_percent(tuning.TUNING_KEPT))}): "
        f"nothing "
        "that is shown chose it",
        "shown": f"was chosen by the very figures that are shown ({rule.format(_percent(KEPT))}), which "
        "flatters it",
        "tried": "was found beforehand by trial on the very authors and the seed that are shown, which "
        "flatters it (`--preset long` chooses on other authors and reports three seeds)",
        "given": "was given",
    }  # fmt: skip
    if len(by) == 1:
        ((how, _),) = by.items()
        return f"Each {told[how]}."
    return " ".join(f"That of {'; '.join(names)} {told[how]}." for how, names in by.items())


def _seeds_text(outcome: Outcome) -> str:
    seeds = ", ".join(str(seed) for seed in outcome.config.seeds or [])
    return (
        f"Means over the seeds {seeds} with Student's 95 % intervals (+-). A seed decides the order of "
        f"the rows, the "
        "retain rows that go with them and the labels that curvature is made from; the taught weights are "
        "one and "
        "the same, so that the intervals say nothing about other models or other authors. The second "
        "table sets "
        "every optimizer against AdamW seed by seed: where the interval of the difference holds 0, this "
        "run cannot "
        "tell the two apart."
    )


def _one_shot_text(outcome: Outcome) -> str:
    lines = []
    for a in (a for a in outcome.chosen.values() if a.job.method == "iu"):
        row = a.history.steps[0]
        solved = (
            f"residual {row['residual']:.2g}"
            if "residual" in row
            else "no inverse: the recursion in circulation"
        )
        lines.append(
            f"- {optimizer_name(a)}, {rate(a)}, damping {row['damp']:g} ({solved}): loss per label of the "
            f"forget rows "
            f"{row['forget_before']:.3f} → {row['forget']:.3f} (to first order "
            f"{row['forget_predicted']:+.3f}), of "
            f"the retain rows {row['retain_before']:.3f} → {row['retain']:.3f} "
            f"({row['retain_predicted']:+.3f})"
        )
    return (
        "θ + α (H + damping)⁻¹ v, v the difference of the gradients with and without the forget rows: at "
        "a minimum "
        "it is what leaving those rows out would change, to first order. Large steps leave the region "
        "where that "
        "holds, as the distance between change and prediction shows.\n\n" + "\n".join(lines)
    )


def _evaluation_text(outcome: Outcome) -> str:
    reference = (
        "Forget quality is the p-value of a Kolmogorov-Smirnov test of the truth ratios of the forget rows "
        "against those of a model that was taught the same but for the two authors: near 1, the two cannot "
        "be "
        "told apart; with 20 rows, a p above 0.05 says little."
        if outcome.reference is not None
        else "No model without the two authors was taught in this run, so there is no forget quality."
    )
    return (
        f"{reference} SOUL's code compares with the retain rows of the same model instead: that figure "
        f"stands "
        "last. Model utility is the harmonic mean of probability, ROUGE-L recall and truth "
        "ratio on "
        "retain rows and facts (the data has no real authors). Readability is the mean log-probability of "
        "the "
        "answers about the two authors under the model before it was taught: far below the first row means "
        "gibberish, which forget quality alone would praise. ES is extraction strength, MIA the AUC of "
        "Min-K% "
        "against rows that no model saw; 0.5 is chance. World facts and retain rows are a part of each set."
    )


def _win_text(outcome: Outcome) -> str:
    told = [
        f"- {title(a)}: {_percent(win_rate(a))}" for a in outcome.chosen.values()
        if a.job.optimizer not in FIRST_ORDER and math.isfinite(win_rate(a))
    ]  # fmt: skip
    return (
        "Sophia divides the momentum by curvature and clips the quotient to one. Where it is clipped, the "
        "step is "
        "that of sign-momentum, and curvature plays no part. SOUL's published optimizer, at its defaults, "
        "clips "
        "nearly every coordinate; sign-momentum, the ablation, clips all. For Sophia with GNB the scale of "
        "the "
        "Hessian is set after each estimate so that three coordinates in ten are not clipped, since at the "
        "paper's scale (0.05) all would be: the Hessian's average starts at zero and a run is over after a "
        "few "
        "estimates.\n\n" + "\n".join(told)
    )


def _honest(outcome: Outcome) -> str:
    runs = len(outcome.config.seeds or [])
    return (
        "It can show that each method forgets, what it costs, and what the optimizers do differently on "
        "equal "
        "terms. It cannot show which optimizer is better on a model of billions of parameters: the model "
        "is small, "
        "20 rows are forgotten, the trained part is the last few blocks, and "
        + (
            "one seed was run, so differences of a few points mean nothing. "
            if runs < 2
            else f"{runs} seeds were run. "
        )
        + "A probability that fell is no proof that the knowledge is gone: a few steps of training on "
        "part of it may bring it back."
    )


def _claims(outcome: Outcome) -> list[Claim]:
    first, second = pair(outcome)
    claims = []
    if first is not None and second is not None:
        claims.append(
            Claim(
                "Second-order optimization forgets better than first-order at equal utility (GradDiff: "
                "forget "
                "accuracy 10.25 against 72.75 %)",
                f"{title(second)}: forget {_percent(second.probability['forget'])}, keeps "
                f"{_percent(kept(outcome, second))}; {title(first)}: forget "
                f"{_percent(first.probability['forget'])}, keeps {_percent(kept(outcome, first))}",
                "arXiv 2404.18239; there the weight of the retain term differed as well",
            )
        )
    for a in outcome.chosen.values():
        if a.job.optimizer == "soul-legacy" and a.job.method == outcome.config.methods[0]:
            rates = [r["win_rate"] for r in a.history.steps if "win_rate" in r]
            signs = outcome.chosen.get(f"{a.job.method}-sign")
            beside = ""
            if signs is not None:
                beside = (
                    f"; sign-momentum: forget {_percent(signs.probability['forget'])}, SOUL's optimizer "
                    f"{_percent(a.probability['forget'])}"
                )
            claims.append(
                Claim(
                    "Sophia's step is second order: its authors ask that 10 to 50 % of the coordinates are "
                    "not "
                    "clipped",
                    f"{title(a)}: {_percent(min(rates))} to {_percent(max(rates))} of the coordinates"
                    f"{beside}",
                    "arXiv 2305.14342 and its code's README",
                )
            )
    return claims


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    steps = max(len(a.history.steps) for a in outcome.attempts)
    rows = int(config.batch_size or 1) * int(config.accumulation or 1)
    return (
        f"{config.trainable} trained ({outcome.trained_parameters:,} parameters), {steps} steps of "
        f"{rows} forget rows and {rows * config.retain_ratio} retain rows, gradients clipped to a norm of "
        f"{config.clip:g}, weight decay {config.weight_decay:g}, curvature on "
        f"{config.hessian_source} rows every {config.every} steps. The taught model was "
        + ("read from the cache. " if outcome.cached else "taught in this run. ")
        + "Probabilities are exp of the mean log-probability of an answer token, averaged over rows: all "
        "forget and "
        "retain rows, not the part that the whole evaluation takes. Losses are computed from hidden states; "
        "weights are float32 unless `dtype` says otherwise."
    )
