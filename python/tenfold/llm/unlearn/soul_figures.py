"""Pictures of a ``soul`` run."""

from __future__ import annotations

from typing import Any

from tenfold.llm.unlearn import methods
from tenfold.llm.unlearn.soul import KEPT, Outcome
from tenfold.llm.unlearn.soul_numbers import OPTIMIZER_NAMES, title
from tenfold.runs import RunFolder, figures

__all__ = ["TRADEOFF", "TRAINING", "WIN", "draw"]

TRADEOFF, TRAINING, WIN = "tradeoff", "training", "win-rate"
MARKERS = {
    "adamw": "o", "sophia": "s", "sophia-h": "P", "empirical-fisher": "X", "liuhong99": "v", "soul-legacy":
    "D",
    "sign": "^",
}  # fmt: skip
COLOURS = dict(
    zip(("adamw", "sophia", "soul-legacy", "sign", "sophia-h", "liuhong99"), figures.SERIES, strict=True)
)


def draw(outcome: Outcome, folder: RunFolder) -> list[str]:
    """Write every picture that the outcome has numbers for; returns their names."""
    names = []
    with figures.style():
        for name, make in ((TRADEOFF, _tradeoff), (TRAINING, _training), (WIN, _win_rate)):
            made = make(outcome)
            if made is not None:
                folder.write_figure(name, *made)
                names.append(name)
    return names


def _colour(optimizer: str) -> str:
    return COLOURS.get(optimizer, figures.MUTED)


def _tradeoff(outcome: Outcome) -> tuple[Any, str, str]:
    """Retain against forget probability, a panel per method."""
    shown = list(dict.fromkeys(a.job.method for a in outcome.attempts))
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure, panels = figures.figure(
        2.9 * columns + 1.4, 3.0 * rows + 0.7,
        nrows=rows, ncols=columns, sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    flat = list(panels.flat)
    least = min(a.probability["forget"] for a in outcome.attempts)
    low = max(1e-6, 0.6 * least)
    for axes, method in zip(flat, shown, strict=False):
        for optimizer in outcome.config.steppers(method):
            mine = [a for a in outcome.attempts if a.job.method == method and a.job.optimizer == optimizer]
            mine.sort(key=lambda a: (a.job.seed, a.job.lr))
            for seed in dict.fromkeys(a.job.seed for a in mine):
                line = [a for a in mine if a.job.seed == seed]
                axes.plot(
                    [max(low, a.probability["forget"]) for a in line],
                    [a.probability["retain"] for a in line],
                    color=_colour(optimizer), marker=MARKERS.get(optimizer, "p"), markersize=6, alpha=0.85,
                    linewidth=1.2,
                    label=OPTIMIZER_NAMES[optimizer] if seed == mine[0].job.seed else None,
                )  # fmt: skip
        axes.plot(
            outcome.before["forget"], outcome.before["retain"], marker="*", markersize=14, color=figures.INK,
            linestyle="none", label="before",
        )  # fmt: skip
        axes.axhline(KEPT * outcome.before["retain"], color=figures.MUTED, linewidth=1, linestyle="--")
        axes.axvline(outcome.before["forget"] / 5, color=figures.MUTED, linewidth=1, linestyle="--")
        axes.set_xscale("log")
        axes.set_xlim(low, 1.2)
        axes.set_title(methods.find(method).title)
    for axes in flat[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("probability of forget answers")
    for axes in panels[:, 0]:
        axes.set_ylabel("probability of retain answers")
    told = [axes.get_legend_handles_labels() for axes in flat[: len(shown)]]
    named = {label: handle for pair in told for handle, label in zip(*pair, strict=True)}
    labels, handles = list(named), list(named.values())
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)))
    caption = (
        "Each point is a run from the same taught weights at one learning rate; lines join the learning "
        "rates of "
        "an optimizer where there are several, one line per seed. Up and to the left is better. Dashed: a "
        "fifth of the forget probability, "
        "and 80 % "
        "of the retain probability."
    )
    alt = "; ".join(
        f"{title(a)}: forget {a.probability['forget']:.3f}, retain {a.probability['retain']:.3f}"
        for a in outcome.chosen.values()
    )
    return figure, caption, f"Scatter of retain against forget probability. Chosen runs: {alt}."


def _training(outcome: Outcome) -> tuple[Any, str, str] | None:
    """Forget and retain terms of the chosen runs of the first method that takes more than one step."""
    method = next((a.job.method for a in outcome.attempts if a.job.method != "iu"), None)
    if method is None:
        return None
    runs = [a for a in outcome.chosen.values() if a.job.method == method]
    figure, panels = figures.figure(7.6, 3.4, ncols=2)
    for axes, part in zip(panels, ("forget", "retain"), strict=True):
        for a in runs:
            steps = [r for r in a.history.steps if part in r]
            axes.plot(
                [r["step"] for r in steps], [r[part] for r in steps], color=_colour(a.job.optimizer),
                label=f"{OPTIMIZER_NAMES[a.job.optimizer]}, lr {a.job.lr:g}",
            )  # fmt: skip
        axes.set(xlabel="step", ylabel=f"{part} term")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].legend(loc="lower left")
    panels[0].set_title(f"{methods.find(method).title} while unlearning")
    caption = "Terms of the loss on the rows of each step; the forget term of gradient ascent goes down "
    "without end."
    alt = ", ".join(f"{title(a)}: {len(a.history.steps)} steps" for a in runs)
    return figure, caption, f"Line charts of the forget and the retain term. {alt}."


def _win_rate(outcome: Outcome) -> tuple[Any, str, str] | None:
    """Share of coordinates that are not clipped, step by step."""
    runs = [a for a in outcome.chosen.values() if any("win_rate" in r for r in a.history.steps)]
    if not runs:
        return None
    figure, axes = figures.figure(7.0, 3.4)
    kinds = dict.fromkeys(a.job.method for a in runs)
    styles = dict(zip(kinds, ("-", "--", ":", "-."), strict=False))
    runs = [a for a in runs if a.job.method in styles]  # a legend of more lines leaves no room for them
    for a in runs:
        axes.plot(
            [r["step"] for r in a.history.steps if "win_rate" in r],
            [100 * r["win_rate"] for r in a.history.steps if "win_rate" in r],
            color=_colour(a.job.optimizer), linestyle=styles[a.job.method], label=title(a),
        )  # fmt: skip
    axes.axhspan(10, 50, color=figures.GRID, alpha=0.5, zorder=0)
    axes.set(xlabel="step", ylabel="coordinates not clipped, %", ylim=(-2, 102))
    axes.set_title("How much of a step is second order")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    caption = (
        "A coordinate that is clipped moves by its sign alone, as in sign-momentum. The band is what "
        "Sophia's "
        "authors ask for, 10 to 50 %."
    )
    if len(kinds) > len(styles):
        caption += f" Of {len(kinds)} methods the first {len(styles)} are drawn; the table has all."
    last = "; ".join(f"{title(a)}: {100 * a.history.steps[-1].get('win_rate', 0):.1f} %" for a in runs)
    return figure, caption, f"Line chart of the share of coordinates not clipped. In the last step: {last}."
