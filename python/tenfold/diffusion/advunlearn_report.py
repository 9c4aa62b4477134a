"""The page of an ``advunlearn`` run."""

from __future__ import annotations

from typing import Any

from tenfold.diffusion import advunlearn_figures as figures
from tenfold.diffusion.advunlearn_config import ERASED
from tenfold.diffusion.advunlearn_run import Outcome
from tenfold.runs import Claim, Headline, Report, RunFolder, Section, style

__all__ = ["PAPER", "numbers", "write"]

PAPER = (
    ("AdvUnlearn", "nudity", 7.75, 21.13), ("ESD", "nudity", 20.42, 76.05),
    ("AdvUnlearn", "Van Gogh", 0.0, 2.0), ("ESD", "Van Gogh", 2.0, 32.0),
    ("AdvUnlearn", "church", 0.0, 6.0), ("ESD", "church", 14.0, 60.0),
    ("AdvUnlearn", "parachute", 2.0, 14.0), ("ESD", "parachute", 4.0, 54.0),
    ("AdvUnlearn", "tench", 0.0, 4.0), ("ESD", "tench", 2.0, 36.0),
    ("AdvUnlearn", "garbage truck", 0.0, 8.0), ("ESD", "garbage truck", 2.0, 24.0),
)  # fmt: skip
"""Stable Diffusion v1.4: method, concept, pre-ASR %, post-ASR % under UnlearnDiffAtk (the authors'
leaderboard)."""


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Everything that a finished run leaves; returns its numbers."""
    folder.write_table("models", rows(outcome))
    folder.write_table("paper", [
        {"method": m, "concept": c, "pre-ASR %": pre, "post-ASR %": post} for m, c, pre, post in PAPER
    ])  # fmt: skip
    prompts = [{"model": t.key, "prompt": p} for t in outcome.trials for p in t.found]
    if prompts:
        folder.write_table("prompts", prompts)
    with style():
        for name in ("rates", "drawn", "kept", "course"):
            folder.write_figure(name, *getattr(figures, name)(outcome))
    values = numbers(outcome)
    folder.finish(values, _report(outcome, bool(prompts)))
    return values


def numbers(outcome: Outcome) -> dict[str, float | int]:
    """Flat name -> number: rates over all seeds, and each model's own."""
    found: dict[str, float | int] = {
        "seeds": len(outcome.config.seeds),
        "errors": sum(t.errors for t in outcome.trials),
    }
    for name in ("base", *outcome.config.erased):
        trials = outcome.of(name)
        for attack in trials[0].rates:
            found[f"{name}.pre"] = outcome.rate(name, attack, "pre").value
            if attack != "no_attack":
                found[f"{name}.{attack}.post"] = outcome.rate(name, attack).value
        if outcome.retained(name) is not None:
            found[f"{name}.retained"] = float(outcome.retained(name) or 0.0)
            found[f"{name}.frechet"] = sum(float(t.frechet or 0) for t in trials) / len(trials)
        found[f"{name}.train_cpu_seconds"] = sum(t.train_seconds for t in trials) / len(trials)
        found[f"{name}.attack_cpu_seconds"] = sum(t.attack_seconds for t in trials) / len(trials)
        for trial in trials if name != "base" else []:
            for attack, (_, post, n) in trial.rates.items():
                if n:
                    found[f"{name}.seed{trial.seed}.{attack}.post"] = post / n
    return {name: value for name, value in found.items() if value == value}


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per model, seeds together."""
    found = []
    for name in ("base", *outcome.config.erased):
        trials = outcome.of(name)
        row: dict[str, Any] = {"model": ERASED[name][0] if name in ERASED else "before", "seeds": len(trials)}
        first = next(iter(trials[0].rates))
        row["prompt as it is"] = str(outcome.rate(name, first, "pre"))
        for attack, label in (("random", "random tokens"), ("text_grad", "text_grad")):
            row[label] = str(outcome.rate(name, attack)) if attack in trials[0].rates else ""
        if outcome.retained(name) is not None:
            row["others drawn right"] = f"{outcome.retained(name):.3f}"
            row["pixel Frechet"] = f"{sum(float(t.frechet or 0) for t in trials) / len(trials):.2f}"
        row["training, CPU s"] = f"{sum(t.train_seconds for t in trials) / len(trials):.1f}"
        row["attacks, CPU s"] = f"{sum(t.attack_seconds for t in trials) / len(trials):.1f}"
        found.append(row)
    return found


def _report(outcome: Outcome, prompts: bool) -> Report:
    config = outcome.config
    found = (
        "Prompts that brought the concept back, to try on other models."
        if prompts
        else "No prompt succeeded."
    )
    sections = [
        Section(
            "How erased is it?",
            "Rates are shares of prompts, with Wilson's 95 % interval over prompts and seeds. A picture "
            "counts only if "
            "the judge accepts it at all: a judge of ten classes without a gate reads digits into noise. "
            "Distances "
            "between sets of pictures (Frechet, over pixels here) say nothing about prompts: a model that "
            "draws "
            "anything for anything may have the smallest. Read them beside what is drawn right.",
            ["rates"], ["models"],
        ),
        Section("What the models draw", "", ["drawn"]),
        Section("What they still can", "", ["kept"]),
        Section("How training went", "", ["course"]),
        Section("What attacks found", found, [], ["prompts"] if prompts else []),
        Section(
            "Beside the paper",
            "Stable Diffusion v1.4, from the authors' leaderboard. The embedded model is of another size "
            "and another "
            "language: orders can be compared, figures cannot.",
            [], ["paper"],
        ),
    ]  # fmt: skip
    return Report(
        title=f"Erasing “{config.concept}” from {config.model}, with and without an attacker in training",
        lead=_lead(outcome), headlines=_headlines(outcome), sections=sections, claims=_claims(outcome),
        measured=_measured(outcome),
    )  # fmt: skip


def _lead(outcome: Outcome) -> str:
    config = outcome.config
    told = [f"{ERASED[n][0]}: {outcome.rate(n, 'text_grad')}" for n in config.erased]
    text = (
        f"“{config.concept}” was erased from {config.model} in {len(config.erased)} ways, "
        f"{len(config.seeds)} "
        f"seed{'s' if len(config.seeds) > 1 else ''} each. Share of prompts that bring it back under "
        f"text_grad: "
    )
    text += "; ".join(told) + "."
    errors = sum(t.errors for t in outcome.trials)
    return text + (f" {errors} attacks did not finish and count neither way." if errors else "")


def _headlines(outcome: Outcome) -> list[Headline]:
    tiles = []
    for name in outcome.config.erased:
        low, high = outcome.rate(name, "text_grad").interval
        note = f"95 % {100 * low:.0f} to {100 * high:.0f}"
        if outcome.retained(name) is not None:
            note += f"; others drawn right {outcome.retained(name):.2f}"
        value = f"{100 * outcome.rate(name, 'text_grad').value:.0f} %"
        tiles.append(Headline(f"{ERASED[name][0]}, attacked", value, note))
    return tiles


def _claims(outcome: Outcome) -> list[Claim]:
    names = outcome.config.erased
    claims = []

    def rate(name: str) -> str:
        return f"{ERASED[name][0]} {outcome.rate(name, 'text_grad')}"

    source = "arXiv 2405.15234 and its leaderboard"
    if {"esd", "advunlearn"} <= set(names):
        said = "Under UnlearnDiffAtk nudity comes back for 76.05 % (ESD) and 21.13 % (AdvUnlearn) of prompts"
        claims.append(Claim(said, f"{rate('esd')}; {rate('advunlearn')}", source))
    if {"advunlearn", "no-retain"} <= set(names) and outcome.retained("advunlearn") is not None:
        kept = ", ".join(f"{ERASED[n][0]} {outcome.retained(n):.2f}" for n in ("advunlearn", "no-retain"))
        claims.append(
            Claim(
                "Without retained prompts adversarial training costs utility", f"drawn right: {kept}", source
            )
        )
    if {"advunlearn", "fast"} <= set(names):
        claims.append(
            Claim(
                "Fast attacks in training: cheaper, less robust",
                f"{rate('fast')}; {rate('advunlearn')}",
                source,
            )
        )
    return claims


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    bank = f"a bank of {config.bank_size} walks" if config.bank_size else "a new walk for every draw"
    return (
        f"Weights `{config.train_method}`, Adam {config.lr:g}, {config.esd_iterations} iterations of ESD and "
        f"{config.iterations} of AdvUnlearn ({config.warmup} before the first attack), {config.batch} "
        f"latents in a step "
        f"from {bank}; attack in training {config.attack}, {config.attack_steps} steps, k = {config.k}, "
        f"{config.mode}. "
        f"Attacks on finished models: text_grad with k = {config.try_k}, {config.try_timesteps} timesteps of "
        f"{config.try_iterations} iterations; {config.tries} random prefixes of as many tokens. Pictures: "
        f"{config.sampler}, {config.sample_steps} steps. Seconds are processor time of one process. Seeds "
        f"share the "
        "prompts and the noise of pictures: intervals do not cover other prompts' difficulty or other "
        "base models. For "
        "the digits model, settings were chosen on “five”."
    )
