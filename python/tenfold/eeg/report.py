"""Tables, pictures, numbers and the page of a ``msdcda`` run."""

from __future__ import annotations

import dataclasses
from typing import Any

from tenfold.eeg import figures, importance, tables
from tenfold.eeg.normalise import is_transductive
from tenfold.eeg.options import Options
from tenfold.eeg.paper import HEADLINE, MS_MDA
from tenfold.eeg.run import Outcome
from tenfold.eeg.statistics import compare
from tenfold.eeg.study import CHOSEN_ON
from tenfold.runs import Claim, Headline, Report, RunFolder, Section, style

__all__ = ["write"]


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Everything that a finished run leaves; returns its numbers."""
    _save_weights(outcome, folder)
    with style():
        sections = [
            _results(outcome, folder), *_pairs(outcome, folder), *_split(outcome, folder),
            _confusion(outcome, folder),
            _geometry(outcome, folder), *_course(outcome, folder), *_importance(outcome, folder),
            _choices(outcome, folder), _targets(outcome, folder),
        ]  # fmt: skip
    numbers = tables.numbers(outcome)
    report = Report(
        title=f"Domain adaptation on {outcome.corpus.name}: {len(outcome.config.methods)} methods",
        lead=_lead(outcome),
        headlines=_headlines(outcome), sections=sections, claims=_claims(outcome),
        measured=_measured(outcome),
    )  # fmt: skip
    folder.finish(numbers, report)
    return numbers


def _save_weights(outcome: Outcome, folder: RunFolder) -> None:
    """One file per method: tensors are named trial/name."""
    for name in outcome.config.methods:
        kept = {t.key: outcome.weights[t.key] for t in outcome.of(name) if t.key in outcome.weights}
        flat = {
            f"{key.removeprefix(name + '-')}/{tensor}": value
            for key, tensors in kept.items() for tensor, value in tensors.items()
        }  # fmt: skip
        if flat:
            note = {"method": name, "data": outcome.corpus.name, "bn": outcome.config.bn}
            folder.write_safetensors(name, flat, note)


def _results(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("accuracy", *figures.accuracies(outcome))
    folder.write_table("methods", tables.method_rows(outcome))
    folder.write_table("trainings", tables.trial_rows(outcome))
    text = (
        "Every method has the same extractor, the same head, the same rows in the same order and the same "
        "length of training; baselines have one configuration each, the one they came with. The network "
        "after the last step is scored, once."
    )
    if outcome.config.select == "oracle":
        text = (
            "**Selected on target labels.** The weights that score best on the target's own labels are "
            "shown, as some reference code does. Nobody has these labels in practice: these figures are no "
            "honest result."
        )
    gone = [name for name in outcome.config.methods if outcome.collapsed(name)]
    if gone:
        told = ", ".join(f"{tables.title(outcome, n)} ({outcome.collapsed(n)} trainings)" for n in gone)
        text += (
            f"\n\n**Collapsed:** {told}. These trainings did not even learn their sources; the methods are "
            "left out of every comparison."
        )
    shown = ["methods"]
    if pairs := tables.pair_rows(outcome, tables.BASE):
        folder.write_table("gains", pairs)
        shown.append("gains")
    return Section("What came out", text, ["accuracy"], shown)


def _pairs(outcome: Outcome, folder: RunFolder) -> list[Section]:
    best = _best(outcome)
    if best is None or len(tables.compared(outcome)) < 3 or len(outcome.numbers) < 2:
        return []
    folder.write_table("against_best", tables.pair_rows(outcome, best))
    text = (
        f"**{tables.title(outcome, best)}** has the highest mean of the methods that are not MS-DCDA's. It "
        "is compared with every other, target by target: mean difference, bootstrap interval, Wilcoxon's "
        "signed-rank test, and p adjusted for the number of comparisons. It was picked by this same run, "
        "which favours it a little. Folds share most of their sources, so intervals speak of other targets "
        "with sources like these."
    )
    return [Section(f"Against {tables.title(outcome, best)}", text, [], ["against_best"])]


def _split(outcome: Outcome, folder: RunFolder) -> list[Section]:
    """The revised reconstruction on targets that had no part in revising it."""
    data, used = CHOSEN_ON
    names = [n for n in outcome.config.methods if n in (tables.BASE, _best(outcome)) or _is_ours(outcome, n)]
    revised = tables.REVISED in names
    if outcome.config.dataset != data or not revised or not set(outcome.numbers) - set(used):
        return []
    folder.write_table("revision", tables.split_rows(outcome, names, _best(outcome)))
    text = (
        "The first reconstruction of MS-DCDA was fixed before anything was run. It fails on these data, and "
        "the reason can be seen: from the first steps on its class-wise terms follow wrong predictions, "
        "which then confirm themselves in every branch. The **revised** one lets the branch of all sources "
        "label and predict, lets it count as much as all others, waits 30 % of the steps, and leaves out "
        "predictions below 0.8. These choices were made on speakers 0 to 7 **with their labels**, one seed: "
        "on these its accuracy is favoured. Speakers 8 to 14 had no part in it."
    )
    return [Section("Which choices decide", text, [], ["revision"])]


def _is_ours(outcome: Outcome, name: str) -> bool:
    return outcome.config.method(name).heads == "options"


def _confusion(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("confusion", *figures.confusions(outcome))
    for name in outcome.config.methods:
        counts = tables.mean_confusion(outcome, name)
        classes = outcome.corpus.classes
        rows = [
            {"true": classes[i]} | dict(zip(classes, map(int, row), strict=True))
            for i, row in enumerate(counts)
        ]
        folder.write_table(f"confusion-{name}", rows)
    return Section("Which classes are mistaken for which", "", ["confusion"])


def _geometry(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_table("features", tables.geometry_rows(outcome))
    picture = figures.embedding(outcome)
    if picture is not None:
        folder.write_figure("embedding", *picture)
    text = (
        "Distances are Euclidean, between the target's rows in the 32 features, by true class; their ratio "
        "does not depend on the features' scale. The proxy A-distance is 2 (1 - 2 err) of a linear "
        "classifier that tells sources from target: 0 where it cannot, 2 where it never fails."
    )
    return Section("What the features look like", text, ["embedding"] if picture else [], ["features"])


def _course(outcome: Outcome, folder: RunFolder) -> list[Section]:
    picture = figures.course(outcome)
    if picture is None:
        return []
    folder.write_figure("course", *picture)
    text = (
        "tau weighs the discrepancy of whole domains against the one of classes: 1, domains alone; 0, "
        "classes alone. The target's classes are predictions, right or wrong: where they are wrong, classes "
        "are pulled to the wrong places, and the discrepancies look as good as where they are right."
    )
    return [Section("How MS-DCDA trains", text, ["course"])]


def _importance(outcome: Outcome, folder: RunFolder) -> list[Section]:
    if not outcome.corpus.channels:
        if outcome.corpus.width > 40:
            return []
        folder.write_figure("features", *importance.bars(outcome))
        return [Section("Which features count", "", ["features"])]
    folder.write_figure("scalp", *importance.maps(outcome))
    folder.write_table("lobes", importance.lobe_rows(outcome))
    text = (
        "The paper finds frontal and parietal channels the most sensitive. A gradient says what the "
        "prediction reacts to, not where in the brain something happens."
    )
    return [Section("Which channels count", text, ["scalp"], ["lobes"])]


def _choices(outcome: Outcome, folder: RunFolder) -> Section:
    """The reconstruction, option by option."""
    standard = Options()
    rows: list[dict[str, Any]] = []
    names = [n for n in outcome.config.methods if outcome.config.method(n).heads == "options"]
    for name in names or outcome.config.methods[:1]:
        method = outcome.config.method(name)
        differing = [
            f"{f.name}={getattr(method.options, f.name)}" for f in dataclasses.fields(Options)
            if getattr(method.options, f.name) != getattr(standard, f.name)
        ]  # fmt: skip
        differing += [f"{key}={value}" for key, value in method.settings.items()]
        s = tables.summary(outcome, name)
        rows.append(
            {"name": name, "what": method.title, "other than the defaults": ", ".join(differing) or "nothing",
             "accuracy %": round(100 * s.mean, 1)}
        )  # fmt: skip
    folder.write_table("reconstruction", rows)
    text = (
        "Of MS-DCDA's paper the abstract was at hand, not the method section. The loss here is put together "
        "from the methods it most plausibly builds on, and every choice is an option of the run "
        "(`--options.NAME`). **No figure on this page is the paper's method, and none speaks against it.**"
    )
    return Section("What was reconstructed", text, [], ["reconstruction"])


def _targets(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_table("targets", tables.target_rows(outcome))
    text = "Accuracy on each target in percent, seeds averaged. `tables/trainings.csv` holds every training."
    return Section("Target by target", text, [], ["targets"])


def _best(outcome: Outcome) -> str | None:
    """The method with the highest mean that is not MS-DCDA or a variant of it."""
    names = tables.baselines(outcome)
    return max(names, key=lambda n: tables.summary(outcome, n).mean) if names else None


def _lead(outcome: Outcome) -> str:
    config, corpus = outcome.config, outcome.corpus
    trainings = len(outcome.trials)
    text = (
        f"{len(outcome.numbers)} targets of {corpus.name} ({len(corpus.classes)} classes, {corpus.width} "
        f"features), protocol {config.protocol}, {len(config.seeds)} seeds: {trainings:,} trainings of "
        f"{config.steps} steps. "
    )
    if corpus.simulated:
        text = "SIMULATED DATA, a test of formats: no accuracy here means anything. " + text
    if config.select == "oracle":
        text = "Selected on target labels. " + text
    return text + _verdict(outcome)


def _verdict(outcome: Outcome) -> str:
    """What the comparison says, whichever way it went."""
    told = [_placed(outcome, n) for n in (tables.OURS, tables.REVISED) if n in outcome.config.methods]
    return " ".join(told)


def _placed(outcome: Outcome, name: str) -> str:
    """A method beside source-only and beside the best that is not MS-DCDA's."""
    title = tables.title(outcome, name)
    if outcome.collapsed(name):
        return f"{title} collapsed and is compared with nothing."
    ours = outcome.by_subject(name)
    text = f"{title} reaches {100 * ours.mean():.1f} %"
    for other in dict.fromkeys((tables.BASE, _best(outcome))):
        if other is None or other not in tables.compared(outcome):
            continue
        c = compare(ours, outcome.by_subject(other))
        doubt = "" if c.low > 0 or c.high < 0 else ": no clear difference"
        way = "above" if c.difference > 0 else "below"
        text += f", {abs(100 * c.difference):.1f} points {way} {tables.title(outcome, other)}"
        text += f" (95 % interval {100 * c.low:+.1f} to {100 * c.high:+.1f}{doubt})"
    return text + "."


def _headlines(outcome: Outcome) -> list[Headline]:
    pairs = tables.against(outcome)
    tiles = []
    best = _best(outcome)
    for name in dict.fromkeys((tables.BASE, best, "ms-mda", tables.OURS, tables.REVISED)):
        if name is None or name not in outcome.config.methods:
            continue
        s = tables.summary(outcome, name)
        note = (
            f"± {100 * s.over_targets:.1f} over targets" if s.over_targets == s.over_targets else "one target"
        )
        if s.over_seeds == s.over_seeds:
            note += f", ± {100 * s.over_seeds:.1f} over seeds"
        if name in pairs:
            note += f"; {100 * pairs[name][0].difference:+.1f} to source-only"
        if s.collapsed:
            note += "; collapsed"
        source = 100 * float(outcome.by_subject(name, "source_accuracy").mean())
        note += f"; on sources {source:.0f} %"
        tiles.append(Headline(tables.title(outcome, name), f"{100 * s.mean:.1f} %", note))
    how = "selected on TARGET labels" if outcome.config.select == "oracle" else "no target label was used"
    tiles.append(
        Headline("Weights scored", "last iterate" if outcome.config.select == "last" else "oracle", how)
    )
    return tiles


def _claims(outcome: Outcome) -> list[Claim]:
    config = outcome.config
    kind = "cross-session" if "session" in config.protocol else "cross-subject"
    ours = "not run"
    if tables.OURS in config.methods:
        ours = f"{100 * tables.summary(outcome, tables.OURS).mean:.2f} % (reconstructed; {config.protocol})"
    key = (config.dataset, kind)
    if key not in HEADLINE:
        told = ", ".join(f"{v:.2f} % on {d.upper()} {k}" for (d, k), v in HEADLINE.items())
        return [
            Claim(f"MS-DCDA reaches {told}", f"other data, not comparable: {outcome.corpus.name}, {ours}",
                  "arXiv 2408.10235, abstract")
        ]  # fmt: skip
    claims = [Claim(f"MS-DCDA: {HEADLINE[key]:.2f} % {kind}", ours, "arXiv 2408.10235, abstract")]
    if "ms-mda" in config.methods:
        found = f"{100 * tables.summary(outcome, 'ms-mda').mean:.2f} % ({config.protocol}, last iterate)"
        said = f"MS-MDA: {MS_MDA[key]:.2f} % {kind}, every target once, batch 128"
        claims.append(Claim(said, found, "README of VoiceBeer/MS-MDA, best iterate by target labels"))
    return claims


def _measured(outcome: Outcome) -> str:
    config, corpus = outcome.config, outcome.corpus
    scaling = f"Features are scaled by `{config.normalise}`"
    if is_transductive(config.normalise) if config.normalise != "source" else False:
        scaling += ", which uses the target's own rows without their labels (transductive)"
    told = "; ".join(f"{key}: {value}" for key, value in corpus.metadata.items())
    text = (
        f"{scaling}. Adam, learning rate {config.lr:g}, {config.batch} rows per source, batch normalisation "
        f"`{config.bn}`. Means are over target subjects, sessions and seeds of a subject averaged first; "
        "intervals are percentile bootstrap over subjects. Source accuracy is each source's through its own "
        "branch, where there is one. Processor time is of the training alone; "
        "the memory is that of the main process, trainings ran in processes beside it."
    )
    if told:
        text += f"\n\nData: {told}."
    notes = sorted({f"{tables.title(outcome, t.method)}: {note}" for t in outcome.trials for note in t.notes})
    if notes:
        text += "\n\n" + "\n".join(f"- {note}" for note in notes[:10])
    return text
