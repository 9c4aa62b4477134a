"""Tables, pictures, numbers and the page of a ``cwerm`` run."""

from __future__ import annotations

from typing import Any

import numpy as np

from tenfold.runs import Claim, Headline, Report, RunFolder, Section, style
from tenfold.runs.files import replacing
from tenfold.selection.result import Selection
from tenfold.selection.reweight import figures, tables
from tenfold.selection.reweight.arms import ARMS
from tenfold.selection.reweight.paper import TABLE
from tenfold.selection.reweight.run import Outcome, problem_of

__all__ = ["write"]

SMALL = 0.015
"""Accuracy within which CW-ERM and its constant control count as the same."""


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Everything that a finished run leaves; returns its numbers."""
    _save(outcome, folder)
    folder.write_table("trainings", tables.seed_rows(outcome))
    folder.write_table("curves", tables.curve_rows(outcome))
    with style():
        sections = [
            _results(outcome, folder), _explained(outcome, folder), *_problems(outcome, folder),
            *_weights(outcome, folder), *_ratios(outcome, folder), _time(outcome, folder),
            _paper(outcome, folder), _coresets(outcome, folder),
        ]  # fmt: skip
    numbers = tables.numbers(outcome)
    report = Report(
        title=f"Coreset reweighting on {_data(outcome).name}, with controls",
        lead=_lead(outcome), headlines=_headlines(outcome), sections=sections, claims=_claims(outcome),
        measured=_measured(outcome),
    )  # fmt: skip
    folder.finish(numbers, report)
    return numbers


def _data(outcome: Outcome) -> Any:
    return problem_of(outcome.config, 0, outcome.config.seeds[0])[0]


def _save(outcome: Outcome, folder: RunFolder) -> None:
    """Networks, weights and coresets of the seeds that are kept."""
    config = outcome.config
    kept = {"first": config.seeds[:1], "all": config.seeds, "none": []}[config.save]
    for k, setting in enumerate(outcome.problems):
        for seed in kept:
            stem = f"{setting.slug}-seed{seed}"
            flat = {
                f"{name}/{tensor}": value
                for (s, own, _, name), tensors in outcome.networks.items() if (s, own) == (k, seed)
                for tensor, value in tensors.items()
            }  # fmt: skip
            if flat:
                folder.write_safetensors(stem, flat, {"model": config.model, "problem": setting.text})
            _save_selections(outcome, folder, k, seed, stem)


def _save_selections(outcome: Outcome, folder: RunFolder, k: int, seed: int, stem: str) -> None:
    config, weighed = outcome.config, outcome.coreset(k, seed)
    core, count = weighed.arrays["core"], weighed.state["count"]
    note = {"method": "moderate", "n": count, "problem": outcome.problems[k].text, "seed": seed}
    chosen = Selection(core, weighed.arrays["core_weights"], info={**note, "weights": config.weights})
    _made(folder, "coresets", f"{stem}.npz", chosen)
    # as the published code names it, and which problem and seed
    name = f"idx_{config.dataset}_{config.extractor}_{len(core)}-{stem}.npy"
    path = folder.path / "coreset_indices" / name
    with replacing(path) as aside, aside.open("wb") as file:
        np.save(file, core)
    for arm in config.arms(k):
        if arm.source and not arm.control:
            w = outcome.weights_of(arm, k, seed)
            chosen = Selection(np.arange(count), w, info={**note, "method": arm.name})
            _made(folder, "weights", f"{stem}-{arm.name}.npz", chosen)


def _made(folder: RunFolder, under: str, name: str, selection: Selection) -> None:
    (folder.path / under).mkdir(exist_ok=True)
    selection.save(folder.path / under / name)


def _results(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("accuracy", *figures.accuracies(outcome))
    folder.write_table("methods", tables.method_rows(outcome, 0))
    text = (
        f"The table is of the first problem, **{outcome.problems[0].title}**. All methods have the same "
        "first weights, the same order of rows and the same length of training; the network after the last "
        "epoch is tested, once. Intervals are Student's t over seeds, paired."
    )
    shown = ["accuracy"]
    picture = figures.curves(outcome)
    if picture is not None:
        folder.write_figure("curves", *picture)
        shown.append("curves")
    return Section("What came out", text, shown, ["methods"])


def _explained(outcome: Outcome, folder: RunFolder) -> Section:
    """The finding: what the controls say, whichever way it went."""
    folder.write_figure("learning", *figures.learning(outcome))
    paragraphs = [_verdict(outcome, "cw-erm", k) for k in range(len(outcome.problems))]
    paragraphs += [_verdict(outcome, "w-erm", 0), _verdict(outcome, "label-aware-normalised", 0)]
    paragraphs += [_verdict(outcome, "label-aware-normalised", k) for k in range(1, len(outcome.problems))]
    paragraphs += [_why(outcome), _inverted(outcome)]
    if "label-aware-normalised" in outcome.config.methods:
        paragraphs.append(
            "The label-aware weight is the carried one times the share of the nearest coreset samples that "
            "have the sample's own label, divided by the mean. Its mean is 1, so its control at the same "
            "scale is ERM itself."
        )
    return Section("What explains the gain", "\n\n".join(p for p in paragraphs if p), ["learning"])


def _why(outcome: Outcome) -> str:
    """What V did on the coreset, and what a weight near 0.5 does to SGD."""
    if "cw-erm" not in outcome.config.methods:
        return ""
    found = [outcome.coreset(0, s).arrays for s in outcome.config.seeds]
    moved = max(float(np.abs(a["after"] - a["before"]).max()) for a in found)
    mean = float(np.mean([a["w-nn"].mean() for a in found])) if "w-nn" in found[0] else float("nan")
    text = (
        f"On the coreset, training moved V by at most {moved:.3f} at any loss; the carried weights have the "
        f"mean {mean:.2f}. "
    )
    if moved < 0.1:
        text += (
            "V ends in a sigmoid, so it starts near 0.5, and with Adam at "
            f"{outcome.config.meta_lr:g} it stays there. Weights near 0.5 halve every loss. With SGD, "
            "momentum and weight decay that is the same as half the learning rate and twice the weight "
            "decay: a stronger regularisation, of which noisy labels profit whoever gets which weight. "
        )
    return text + (
        "A weight that is carried by the nearness of inputs alone cannot see the label: of two samples at "
        "the same place, the one with the wrong label gets the same weight."
    )


def _inverted(outcome: Outcome) -> str:
    """Where weights prefer wrong labels, that is said."""
    told = [
        f"{row['weights']} {row['AUC']:.2f}" for row in tables.weight_rows(outcome, 0) if row["AUC"] < 0.45
    ]
    if not told:
        return ""
    return (
        f"**Weights that prefer wrong labels** (AUC below 0.45): {', '.join(told)}. V was taught by meta "
        "rows that are as noisy as what it weighs, and gives more to large losses."
    )


def _verdict(outcome: Outcome, name: str, setting: int) -> str:
    """A weighted method beside ERM, beside the constant control and beside its own weights shuffled."""
    arms = [a.name for a in outcome.config.arms(setting)]
    if name not in arms:
        return ""
    arm = ARMS[name]
    gain = tables.difference(outcome, name, "erm", setting)
    text = f"**{arm.title}, {outcome.problems[setting].title}.** Minus ERM: {gain.told()} points."
    constant = tables.constant_of(arm)
    shuffled = tables.difference(outcome, name, f"{name}-shuffled", setting)
    if constant != "erm":
        over = tables.difference(outcome, name, constant, setting)
        text += f" Minus the constant control: {over.told()}. Minus its weights shuffled: {shuffled.told()}."
        text += " " + _reading(gain, over, shuffled)
        return text
    text += f" Minus its weights shuffled: {shuffled.told()}."
    if gain.mean > 0 and shuffled.mean > SMALL:
        text += " **The gain is in which samples get which weight**, and scale plays no part (the mean is 1)."
        text += "" if gain.clear else " The interval over seeds does not leave 0 out."
    elif gain.mean <= 0:
        text += " No gain here: weights that leave samples out cost accuracy where no label is wrong."
    return text


def _reading(gain: tables.Difference, over: tables.Difference, shuffled: tables.Difference) -> str:
    same = abs(over.mean) <= SMALL and abs(shuffled.mean) <= SMALL
    if gain.mean > SMALL and same:
        return (
            "**The gain over ERM is explained by the constant control**: every sample at the mean weight "
            "does as well, and so do the same weights given to other samples. Which sample gets which "
            "weight plays no part that these runs can see."
        )
    if abs(gain.mean) <= SMALL and same:
        return "No difference to ERM or to the controls worth speaking of."
    if over.mean > SMALL and shuffled.mean > SMALL:
        return "Both controls fall behind: the weights of single samples matter here."
    return "The controls do not agree on an explanation; more seeds would be needed."


def _problems(outcome: Outcome, folder: RunFolder) -> list[Section]:
    sections = []
    for k, setting in enumerate(outcome.problems):
        if k:
            name = f"methods-{setting.slug}"
            folder.write_table(name, tables.method_rows(outcome, k))
            sections.append(Section(f"Another problem: {setting.title}", "", [], [name]))
    return sections


def _weights(outcome: Outcome, folder: RunFolder) -> list[Section]:
    names, listed = [], []
    for k, setting in enumerate(outcome.problems):
        picture = figures.weights(outcome, k)
        if picture is None or ((setting.epochs or setting.weight_decay) is not None and k):
            continue  # the weights of another regime on the same labels are the same
        folder.write_figure(f"weights-{setting.slug}", *picture)
        names.append(f"weights-{setting.slug}")
        rows = tables.weight_rows(outcome, k)
        if rows:
            folder.write_table(f"weights-{setting.slug}", rows)
            listed.append(f"weights-{setting.slug}")
    picture = figures.samples(outcome)
    if picture is not None:
        folder.write_figure("samples", *picture)
        names.append("samples")
    if not names:
        return []
    text = (
        "AUC is the probability that a sample with a right label weighs more than one with a wrong one. "
        "`weights/` holds the weights of the seeds that were kept, as files that `Selection.load` reads; "
        "`Selection.sampler(weighted=True)` draws by them in a loader of your own."
    )
    return [Section("Weights of right and wrong labels", text, names, listed)]


def _ratios(outcome: Outcome, folder: RunFolder) -> list[Section]:
    picture = figures.ratio_sweep(outcome)
    if picture is None:
        return []
    folder.write_figure("ratios", *picture)
    folder.write_table("ratios", tables.ratio_rows(outcome))
    return [Section("How large a coreset", "", ["ratios"], ["ratios"])]


def _time(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("time", *figures.times(outcome))
    folder.write_table("time", tables.time_rows(outcome))
    return Section("Time saved", _time_text(outcome), ["time"], ["time"])


def _time_text(outcome: Outcome) -> str:
    core, whole = tables.reweighting_seconds(outcome), tables.learning_seconds(outcome, True)
    unit = "processor seconds" if outcome.config.device == "cpu" else "seconds"
    if whole is None:
        return f"Reweighting on the coreset took {core:.2f} {unit}; W-ERM was not run."
    return (
        "Reweighting, that is choosing the coreset, learning weights on it and carrying them, took "
        f"{core:.2f} {unit}; learning weights on all rows took {whole:.2f}: **{whole / core:.1f} times as "
        "long**. The paper's ratio of totals is 308.7 to 54.7 minutes, 5.6 (CIFAR-10, PreActResNet-18, "
        "ViT). Each meta step here is two passes forward and back and one Jacobian-vector product; no "
        "second-order graph is kept."
    )


def _paper(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_table("paper", tables.paper_rows(outcome))
    column = tables.paper_column(outcome)
    told = "another data set: the first column is not to be compared with the others"
    if column is not None:
        told = f"column {column + 1} of the paper is the one to compare with"
    text = (
        f"Test accuracy in percent, minutes in brackets, mean of five seeds, coreset 1 %; this run: {told}. "
        "ERM uses no extractor, so the two columns of each network (94.1 and 93.6, for one) are the same "
        "experiment: **the spread between them is of the size of the gain that is claimed.** The paper has "
        "no control of the loss's scale."
    )
    return Section("The paper's table", text, [], ["paper"])


def _coresets(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_table("coresets", tables.coreset_rows(outcome))
    meta = {
        "split": "Meta rows are a part of the coreset that is not trained on",
        "clean": f"Meta rows are {outcome.config.meta_rows} rows with right labels, put aside beforehand",
        "given": "Meta rows are those of the data file",
    }[outcome.config.meta]
    if outcome.config.compat:
        meta = "Meta rows are the training rows themselves, as in the published code (`compat=reference`)"
    text = (
        f"{meta}. Features: {outcome.config.features or outcome.config.extractor}. Coresets: moderate, "
        "class by class with the labels that are trained with."
    )
    return Section("Coresets", text, [], ["coresets"])


def _lead(outcome: Outcome) -> str:
    config, data = outcome.config, _data(outcome)
    text = (
        f"{len(data.y):,} training and {len(data.y_test):,} test rows of {data.name} ({len(data.classes)} "
        f"classes), {len(outcome.problems)} problems, {len(config.seeds)} seeds, {len(outcome.trials):,} "
        f"trainings of {config.model}. "
    )
    if "cw-erm" not in config.methods:
        return text
    gain = tables.difference(outcome, "cw-erm", "erm")
    over = tables.difference(outcome, "cw-erm", "cw-erm-constant")
    text += (
        f"In {outcome.problems[0].title}, CW-ERM as published is {100 * gain.mean:+.1f} points from ERM, and "
        f"{100 * over.mean:+.1f} from the same loss with every weight at the mean"
    )
    if gain.mean > SMALL and abs(over.mean) <= SMALL:
        text += ": its gain is that of a smaller loss, not of its weights"
    text += ". "
    if "label-aware-normalised" in config.methods:
        text += "Label-aware weights at unchanged scale: " + ", ".join(
            f"{100 * tables.difference(outcome, 'label-aware-normalised', 'erm', k).mean:+.1f} "
            f"({outcome.problems[k].title})" for k in range(len(outcome.problems))) + "."  # fmt: skip
    return text


def _headlines(outcome: Outcome) -> list[Headline]:
    config = outcome.config
    tiles = []
    for name in ("erm", "cw-erm", "cw-erm-constant", "w-erm", "label-aware-normalised", "given"):
        if name not in config.methods:
            continue
        values = 100 * outcome.values(name)
        note = outcome.problems[0].title
        if len(values) > 1:
            note = f"± {values.std(ddof=1):.1f} over seeds"
        if name != "erm":
            note += f"; {tables.difference(outcome, name, 'erm').told()} to ERM"
        tiles.append(Headline(ARMS[name].title, f"{values.mean():.1f} %", note))
    for k in range(1, len(outcome.problems)):
        if outcome.problems[k].noise and "label-aware-normalised" in config.methods:
            values = 100 * outcome.values("label-aware-normalised", k)
            note = f"{outcome.problems[k].title}; ERM {100 * outcome.values('erm', k).mean():.1f} %"
            tiles.append(Headline("Label-aware", f"{values.mean():.1f} %", note))
    core, whole = tables.reweighting_seconds(outcome), tables.learning_seconds(outcome, True)
    if whole is not None:
        tiles.append(
            Headline("Reweighting", f"{whole / core:.1f} x faster", f"{core:.2f} s for {whole:.2f} s")
        )
    states = [outcome.coreset(0, s).state["purity"] for s in config.seeds]
    if states[0] and outcome.problems[0].noise:
        means = {key: 100 * float(np.mean([s[key] for s in states])) for key in ("moderate", "data")}
        tiles.append(
            Headline(
                "Right labels in the coreset", f"{means['moderate']:.0f} %", f"{means['data']:.0f} % in all"
            )
        )
    return tiles


def _claims(outcome: Outcome) -> list[Claim]:
    claims = []
    column = tables.paper_column(outcome)
    have = outcome.config.methods
    source = "arXiv 2403.12166, its table"

    def ours(name: str) -> str:
        return f"{100 * outcome.values(name).mean():.1f} %"

    other = "" if column is not None else " (another data set)"
    at = 1 if column is None else column
    cells = {name: TABLE[name][at][0] for name in TABLE}
    where = "CIFAR-10, PreActResNet-18, ResNet-50" if column is None else "this column"
    if "cw-erm" in have:
        found = f"{tables.difference(outcome, 'cw-erm', 'erm').told()} points{other}"
        if "cw-erm-constant" in have:
            found += f"; the constant control {tables.difference(outcome, 'cw-erm-constant', 'erm').told()}"
        claims.append(
            Claim(
                f"CW-ERM is above ERM: {cells['cw-erm']:.1f} to {cells['erm']:.1f} % ({where})", found, source
            )
        )
    if {"c-random", "c-moderate"} <= set(have):
        said = f"the coreset alone is not enough: {cells['c-random']:.1f} and {cells['c-moderate']:.1f} %"
        claims.append(Claim(said, f"random {ours('c-random')}, moderate {ours('c-moderate')}{other}", source))
    if {"w-erm", "cw-erm"} <= set(have):
        times = {n: sum(tables.time_of(outcome, ARMS[n]).values()) for n in ("w-erm", "cw-erm")}
        minutes = {n: TABLE[n][at][1] for n in times}
        claims.append(
            Claim(
                f"reweighting all data costs {minutes['w-erm'] / minutes['cw-erm']:.1f} times the time of "
                "CW-ERM",
                f"{times['w-erm'] / times['cw-erm']:.1f} times in all, "
                f"{tables.learning_seconds(outcome, True) or 0:.2f} s to "
                f"{tables.reweighting_seconds(outcome):.2f} s of reweighting{other}",
                source,
            )
        )
    return claims


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    clock = "processor time of the process" if config.device == "cpu" else "wall time to the end of GPU work"
    text = (
        f"Weighted training: SGD, learning rate {config.lr:g} with a cosine over epochs, momentum 0.9, "
        f"weight decay {config.weight_decay:g}, batch {config.batch}, {config.epochs} epochs, gradients "
        f"clamped to {config.clamp:g}; loss mean(w CE), weights as they are. Meta-Weight-Net: "
        f"{config.meta_model}, {config.meta_epochs} epochs, batch {config.meta_batch}, Adam on V "
        f"{config.meta_lr:g}; weights `{config.weights}`. Times are {clock}, of the work itself; the memory "
        "is that of the main process."
    )
    notes = sorted({note for w in outcome.weighed.values() for note in w.state["notes"]})
    if notes:
        text += "\n\n" + "\n".join(f"- {note}" for note in notes[:10])
    return text
