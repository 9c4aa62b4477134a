"""Tables, pictures, numbers and the page of a ``dp4tl`` run."""

from __future__ import annotations

from typing import Any

from tenfold.runs import Claim, Headline, Report, RunFolder, Section, style
from tenfold.selection.transfer import figures, tables
from tenfold.selection.transfer.methods import METHODS
from tenfold.selection.transfer.run import Outcome

__all__ = ["write"]


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Everything that a finished run leaves; returns its numbers."""
    with style():
        sections = [
            _accuracy(outcome, folder), *_kept(outcome, folder), _cost(outcome, folder),
            _health(outcome, folder), _files(outcome, folder),
        ]  # fmt: skip
    numbers = tables.metrics(outcome)
    report = Report(
        title=f"Dataset pruning for transfer: {outcome.task.source.name} to {outcome.task.target.name}",
        lead=_lead(outcome), headlines=_headlines(outcome), sections=sections, claims=_claims(outcome),
        measured=_measured(outcome),
    )  # fmt: skip
    folder.finish(numbers, report)
    return numbers


def _accuracy(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("accuracy", *figures.accuracy(outcome))
    folder.write_table("methods", tables.rows(outcome))
    folder.write_table("trainings", tables.trial_rows(outcome))
    shown = ["methods"]
    if tables.ours(outcome):
        for kind in outcome.config.evaluate:
            folder.write_table(f"gains_{kind}", tables.gain_rows(outcome, kind))
            shown.append(f"gains_{kind}")
    text = (
        "Every row pretrains the same network from the same first weights for the same number of epochs, "
        "on what the method kept, and transfers it to the same labelled target images. Label and feature "
        "mapping look at target images without their labels. **Random classes, reversed mapping and random "
        "samples are the controls:** where they do as well, a mapping adds nothing."
    )
    return Section("Accuracy against pruning ratio", text, ["accuracy"], shown)


def _kept(outcome: Outcome, folder: RunFolder) -> list[Section]:
    method = next((m for m in ("lm", "fm") if m in outcome.config.methods), None)
    if method is None:
        return []
    pictures = []
    for name, picture in (("kept", figures.kept(outcome, method)), ("votes", figures.votes(outcome))):
        if picture is not None:
            folder.write_figure(name, *picture)
            pictures.append(name)
    rows = tables.kept_rows(outcome, method)
    if rows:
        folder.write_table("classes", rows)
    return [Section("What is kept", "", pictures, ["classes"] if rows else [])]


def _cost(outcome: Outcome, folder: RunFolder) -> Section:
    picture = figures.cost(outcome)
    if picture is not None:
        folder.write_figure("cost", *picture)
    text = (
        "Epochs are fixed, so that optimiser steps shrink with the kept share; that is all of the speed-up. "
        "The column `with surrogate` of the first table is the time saved when the surrogate's training, its "
        "passes over source and target, and the ranking are charged to a single pretraining. They pay when "
        "the model is much larger than the surrogate, or pretrained more than once; in the embedded task "
        "both are small networks."
    )
    return Section("What it costs", text, ["cost"] if picture is not None else [])


def _health(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("confidence", *figures.confidence(outcome))
    folder.write_table("health", tables.health_rows(outcome))
    warned = sorted({w for s in outcome.surveys for w in s.state["health"]["warnings"]})
    text = (
        "A mapping can fail without a sign of it: images that look like nothing in the source still vote. "
        "Warnings are given when the surrogate is much less sure of the target than of source images it has "
        "not seen, when one class takes more than half of the votes or the votes spread over fewer classes "
        "than half of the target's, or when label mapping and feature mapping disagree. Consistency (the "
        "share of a target class that goes to one source class) uses target labels and is for reading only."
    )
    if warned:
        text = "**Warnings.** " + "; ".join(warned) + ".\n\n" + text
    return Section("Can the mapping be trusted?", text, ["confidence"], ["health"])


def _files(outcome: Outcome, folder: RunFolder) -> Section:
    text = (
        "The folder `kept` has, for each method, ratio and seed, the kept images: `.indices` (torch int64, "
        "the identifiers, as the published code's loader takes them) and `.npz` (a "
        "`tenfold.selection.Selection` of positions, with `subset(dataset)` and `sampler()`); "
        "`manifest.json` lists them with votes and classes."
    )
    return Section("Files", text)


def _lead(outcome: Outcome) -> str:
    task, config = outcome.task, outcome.config
    text = (
        f"Source: {task.source.name}, {len(task.source):,} images of {len(task.source.classes)} classes. "
        f"Target: {task.target.name}, {len(task.target.classes)} classes, {len(task.target):,} images to "
        "map, "
        + (f"{config.shots} labelled images per class to learn from, " if config.shots else "")
        + f"{len(task.test):,} to test on. {len(config.seeds)} seeds, {len(outcome.trials)} pretrainings. "
    )
    return text + _verdict(outcome)


def _verdict(outcome: Outcome) -> str:
    """What the comparison says, whichever way it went."""
    kind, found = outcome.config.evaluate[0], []
    if "none" not in outcome.config.methods or not tables.ours(outcome):
        return ""
    ratio = _middle(outcome)
    full = tables.summary(outcome, "none", 0.0, kind)
    found.append(f"{figures.KINDS[kind].capitalize()}: the whole source gives {100 * full.mean:.1f} %")
    for method in tables.ours(outcome)[:3]:
        d, low, high = tables.difference(outcome, method, "none", ratio, kind)
        s = tables.summary(outcome, method, ratio, kind)
        found.append(
            f"{tables.title(method)} with {100 * ratio:.0f} % pruned {100 * s.mean:.1f} % ({100 * d:+.1f}, "
            f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}) in {full.steps / s.steps:.1f} times fewer "
            "steps"
        )
    text = "; ".join(found) + "."
    if "random" in outcome.config.methods:
        d, low, high = tables.difference(outcome, tables.ours(outcome)[0], "random", ratio, kind)
        name = tables.title(tables.ours(outcome)[0])
        doubt = "" if low > 0 or high < 0 else ", no clear difference"
        text += (
            f" {name.capitalize()} is {abs(100 * d):.1f} points {'above' if d > 0 else 'below'} random "
            f"classes ({100 * low:+.1f} to {100 * high:+.1f}{doubt})."
        )
    return text


def _middle(outcome: Outcome) -> float:
    """The ratio that headlines speak of: 60 % if it was run, else the one in the middle."""
    ratios = sorted(outcome.config.ratios)
    return 0.6 if 0.6 in ratios else ratios[len(ratios) // 2]


def _headlines(outcome: Outcome) -> list[Headline]:
    kind, ratio = outcome.config.evaluate[0], _middle(outcome)
    tiles = []
    chosen = [
        m for m in ("none", *tables.ours(outcome), "random", "lm-reverse") if m in outcome.config.methods
    ]
    full = tables.summary(outcome, "none", 0.0, kind) if "none" in outcome.config.methods else None
    for method in chosen[:6]:
        at = 0.0 if METHODS[method].unit == "all" else ratio
        s = tables.summary(outcome, method, at, kind)
        note = "nothing pruned" if not at else f"{100 * at:.0f} % pruned"
        if s.deviation == s.deviation:
            note += f", ± {100 * s.deviation:.1f} over seeds"
        note += f"; {s.steps:,.0f} steps"
        if full is not None and at:
            note += f", {full.steps / s.steps:.1f}x fewer"
        tiles.append(Headline(tables.title(method).capitalize(), f"{100 * s.mean:.1f} %", note))
    warned = sum(len(x.state["health"]["warnings"]) for x in outcome.surveys)
    worst = min(
        x.state["health"]["confidence"] / x.state["health"]["confidence_held_out"] for x in outcome.surveys
    )
    tiles.append(
        Headline("Mapping", "healthy" if not warned else f"{warned} warnings",
                 f"the surrogate is {worst:.2f} times as sure of the target as of held-out source images")
    )  # fmt: skip
    return tiles


def _claims(outcome: Outcome) -> list[Claim]:
    kind = outcome.config.evaluate[0]
    source = "arXiv 2310.08782"
    claims: list[Claim] = []
    mapped = tables.ours(outcome)
    if "none" in outcome.config.methods and mapped:
        told = []
        for ratio in sorted(outcome.config.ratios):
            best = max(mapped, key=lambda m: tables.difference(outcome, m, "none", ratio, kind)[0])
            d, low, high = tables.difference(outcome, best, "none", ratio, kind)
            told.append(
                f"{100 * ratio:.0f} %: {100 * d:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}, {best})"
            )
        claims.append(
            Claim("40 to 80 % of the source classes can be dropped without loss downstream",
                  "best mapping minus whole source: " + "; ".join(told), f"{source}, abstract")
        )  # fmt: skip
        full = tables.summary(outcome, "none", 0.0, kind)
        fewer = [
            full.steps / tables.summary(outcome, mapped[0], r, kind).steps
            for r in sorted(outcome.config.ratios)
        ]
        claims.append(
            Claim("pretraining becomes 2 to 5 times as fast",
                  "steps: " + ", ".join(f"{f:.1f}x" for f in fewer) + " (surrogate not counted)",
                  f"{source}, abstract")
        )  # fmt: skip
    claims.append(
        Claim("ResNet-18 surrogate, ResNet-101, OxfordPets and StanfordCars, frozen features: up to 5x "
              "faster with no drop", _comparable(outcome), f"{source}, caption of Fig. 1")
    )  # fmt: skip
    return claims


def _comparable(outcome: Outcome) -> str:
    if outcome.config.embedded:
        return "other data and networks: the effect is compared, not the figure"
    return (
        f"{outcome.config.surrogate}, {outcome.config.model}, {outcome.task.target.name}: see the first table"
    )


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    recipe = config.recipe("pretrain")
    kinds: dict[str, Any] = {"lp": "linear probe", "ff": "fine-tuning"}
    text = (
        f"Surrogate `{config.surrogate}`, model `{config.model}`; {recipe.optimizer}, learning rate "
        f"{recipe.lr:g}, schedule {recipe.scheduler}, {recipe.epochs} epochs, batch {recipe.batch}. "
        "± is the standard deviation over seeds (random draws of a seed averaged first); intervals are "
        "percentile bootstrap over test images, of the mean over seeds: they speak of other test images, not "
        "of other seeds. Times are processor time of the training loop alone. "
    )
    for kind in config.evaluate:
        r = config.recipe(kind)
        text += f"{kinds[kind].capitalize()}: {r.optimizer}, {r.lr:g}, {r.epochs} epochs, batch {r.batch}. "
    if {"el2n", "grand", "margin"} & set(config.methods):
        text += "EL2N, GraNd and margin come from the surrogate. "
    if config.embedded:
        text += (
            "Feature mapping with pseudo-classes uses 32 principal components of the pixels and no labels; "
            "pretraining on what it keeps is supervised, as in all rows."
        )
    return text
