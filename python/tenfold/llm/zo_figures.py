"""Pictures of a ``zo`` run."""

from __future__ import annotations

from typing import Any

from tenfold.llm import memory
from tenfold.llm.zo import Outcome
from tenfold.llm.zo_numbers import Score, milliseconds, part_name, time_rows, usual_share
from tenfold.runs import RunFolder, figures

ACCURACY, LOSS, MEMORY, TIME = "accuracy", "loss", "memory", "time"


def draw(outcome: Outcome, scores: dict[str, Score], folder: RunFolder) -> list[str]:
    """Write every picture that the outcome has numbers for; returns their names."""
    names = []
    with figures.style():
        for name, make in ((ACCURACY, _accuracy), (LOSS, _loss), (MEMORY, _memory), (TIME, _time)):
            if name == MEMORY and not outcome.memory:
                continue
            figure, caption, alt = make(outcome, scores)
            folder.write_figure(name, figure, caption, alt)
            names.append(name)
    return names


def _accuracy(outcome: Outcome, scores: dict[str, Score]) -> tuple[Any, str, str]:
    figure, axes = figures.figure(7.0, 3.6)
    bars = [
        ("before", "untrained"),
        ("after", f"{_label(part_name(outcome))},\n{outcome.config.steps} steps"),
    ]
    if outcome.full is not None:
        bars.append(("full", f"every parameter,\n{len(outcome.full.history.steps)} steps"))
    for place, (key, _) in enumerate(bars):
        score = scores[key]
        colour = figures.MUTED if key == "before" else figures.SERIES[place - 1]
        error = [[100 * (score.accuracy - score.low)], [100 * (score.high - score.accuracy)]]
        axes.bar(place, 100 * score.accuracy, 0.55, color=colour)
        axes.errorbar(place, 100 * score.accuracy, yerr=error, color=figures.INK, capsize=5, linewidth=1.4)
        axes.text(
            place + 0.32,
            100 * score.accuracy,
            f"{100 * score.accuracy:.1f} %",
            va="center",
            fontweight="bold",
        )
    seeds = [100 * scores[f"seed{seed}"].accuracy for seed in outcome.seeds]
    if len(seeds) > 1:
        places = [0.8 + 0.05 * (i - (len(seeds) - 1) / 2) for i in range(len(seeds))]  # beside the interval
        axes.scatter(
            places, seeds, s=26, color=figures.PAPER, edgecolor=figures.INK, zorder=5, label="each seed"
        )
        axes.legend(loc="upper left")
    chance = 100 / len(outcome.config.verbalizers)
    axes.axhline(chance, color=figures.MUTED, linewidth=1, linestyle="--", zorder=0)
    axes.text(-0.62, chance + 1, "chance", color=figures.MUTED)
    axes.set_xticks(range(len(bars)), [label for _, label in bars])
    axes.set(ylim=(0, 100), xlim=(-0.65, len(bars) - 0.3), ylabel="right answers, %")
    axes.set_title(f"Accuracy on {len(outcome.labels)} held-out examples")
    axes.grid(axis="x", visible=False)
    caption = (
        f"Share of {len(outcome.labels)} held-out examples answered rightly; bars with 95 % intervals over "
        f"the examples{', dots are single seeds' if len(seeds) > 1 else ''}."
    )
    alt = "; ".join(
        f"{label.replace(chr(10), ' ')}: {100 * scores[key].accuracy:.1f} %" for key, label in bars
    )
    return figure, caption, f"Bar chart of accuracy. {alt}."


def _loss(outcome: Outcome, scores: dict[str, Score]) -> tuple[Any, str, str]:
    figure, panels = figures.figure(7.6, 3.6, ncols=2, sharey=True)
    for axes, key, unit in zip(
        panels, ("forwards", "train_seconds"), ("forward passes", "seconds of training"), strict=True
    ):
        for colour, (seed, trained) in zip(_cycle(len(outcome.seeds)), outcome.seeds.items(), strict=True):
            steps, looks = trained.history.steps, trained.history.dev
            axes.plot(
                [r[key] for r in steps], [r["loss"] for r in steps], color=colour, alpha=0.3, linewidth=0.9
            )
            axes.plot(
                [r[key] for r in looks], [r["loss"] for r in looks], color=colour, marker="o", markersize=3,
                label=f"dev, seed {seed}",
            )  # fmt: skip
            chosen = next(r for r in looks if r["step"] == trained.history.best_step)
            axes.plot(
                chosen[key], chosen["loss"], marker="*", markersize=12, color=colour, markeredgecolor="white"
            )
        axes.set_xlabel(unit)
    panels[0].set_ylabel("cross-entropy")
    panels[1].legend(loc="upper right")
    panels[0].set_title(f"Loss while training {part_name(outcome)}")
    caption = (
        "Cross-entropy over the answer words: thin lines on each training batch before its step, dots on "
        "the dev examples, a star where the weights were kept."
    )
    losses = ", ".join(
        f"seed {seed} from {t.history.dev[0]['loss']:.2f} to {t.history.best_loss:.2f}"
        for seed, t in outcome.seeds.items()
    )
    return figure, caption, f"Line chart of the loss against forward passes and seconds. Dev loss: {losses}."


def _memory(outcome: Outcome, scores: dict[str, Score]) -> tuple[Any, str, str]:
    figure, axes = figures.figure(7.0, 3.0)
    labels = [memory.LABELS[row.mode] for row in outcome.memory]
    weights = [row.weights for row in outcome.memory]
    above = [row.above_model for row in outcome.memory]
    places = range(len(labels))[::-1]
    axes.barh(places, weights, 0.55, color=figures.MUTED, label="the model itself")
    axes.barh(places, above, 0.55, left=weights, color=figures.SERIES[1], label="on top of it, at the peak")
    for place, base, more in zip(places, weights, above, strict=True):
        axes.text(base + more, place, f"  +{more:,.0f} MiB", va="center", fontweight="bold")
    axes.set_yticks(list(places), labels)
    axes.set(xlabel="MiB", xlim=(0, 1.22 * max(b + m for b, m in zip(weights, above, strict=True))))
    axes.set_title("Peak memory of one step, all parameters", pad=26)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
    axes.grid(axis="y", visible=False)
    caption = (
        "Peak memory of one step on the same batch, each in a process of its own: what loading the model "
        "added, and what the step added on top."
    )
    alt = "; ".join(f"{memory.LABELS[row.mode]}: +{row.above_model:.0f} MiB" for row in outcome.memory)
    return figure, caption, f"Bar chart of peak memory above the model. {alt}.".replace("\n", " ")


def _time(outcome: Outcome, scores: dict[str, Score]) -> tuple[Any, str, str]:
    rows = time_rows(outcome)
    bars = [(f"{_label(row['what'])}\n{milliseconds(row['ms_per_step'])} a step", row) for row in rows]
    bars.append((f"{_label(rows[-1]['what'])},\npasses as papers' code", _as_usual(outcome, rows[-1])))
    figure, axes = figures.figure(7.0, 1.3 + 0.6 * len(bars))
    parts = (
        ("forward_share", "forward passes"),
        ("pass_share", "weight passes"),
        ("rest_share", "everything else"),
    )
    places = range(len(bars))[::-1]
    for place, (_, row) in zip(places, bars, strict=True):
        left = 0.0
        for (key, label), colour in zip(parts, (*figures.SERIES[:2], figures.MUTED), strict=True):
            share = 100 * float(row[key])
            axes.barh(place, share, 0.5, left=left, color=colour, label=label if place == places[0] else None)
            if share > 5:
                middle = left + share / 2
                axes.text(
                    middle,
                    place,
                    f"{share:.0f} %",
                    ha="center",
                    va="center",
                    color="white",
                    fontweight="bold",
                )
            left += share
    axes.set_yticks(list(places), [name for name, _ in bars])
    axes.set(xlim=(0, 100), xlabel="share of a training step, %")
    axes.set_title("Where the time of a step goes", pad=26)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
    axes.grid(axis="y", visible=False)
    caption = (
        "Share of a training step spent in forward passes, in passes over the weights (perturb, restore, "
        "update) and in everything else. The last bar is computed: the same step, with the time of one "
        "pass as the papers' code writes it, measured in this run."
    )
    alt = "; ".join(f"{name}: weight passes {100 * row['pass_share']:.0f} %" for name, row in bars)
    return figure, caption, f"Stacked bars of the time of a step. {alt}.".replace("\n", " ")


def _as_usual(outcome: Outcome, row: dict[str, Any]) -> dict[str, float]:
    """Shares of the step if its passes were written as in the papers' code."""
    share = usual_share(outcome)
    scale = (1 - share) / (1 - row["pass_share"])
    return {
        "forward_share": scale * row["forward_share"],
        "pass_share": share,
        "rest_share": scale * row["rest_share"],
    }


def _label(part: str) -> str:
    return part.removeprefix("the ")


def _cycle(count: int) -> list[str]:
    return [figures.SERIES[i % len(figures.SERIES)] for i in range(count)]
