"""Pictures of an ``unlearndiffatk`` run: success rates, success by candidate, what was drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tenfold.diffusion.attack import CaseLog
from tenfold.diffusion.attack.gradient import attack_times
from tenfold.diffusion.unlearndiffatk_config import ERASED, ORIGINAL
from tenfold.diffusion.unlearndiffatk_run import Outcome, as_seen, shown
from tenfold.runs import figures

__all__ = ["Picture", "curves", "drawn", "rates", "searching", "title_of"]


class Picture(NamedTuple):
    """`folder.write_figure(name, *picture)`."""

    figure: Any
    caption: str
    alt: str


_TITLES = {
    "no_attack": "prompt as it is", "random": "random tokens", "seed_search": "other seeds",
    "transfer": "transferred", "text_grad": "UnlearnDiffAtk",
}  # fmt: skip
_COLOURS = {"no_attack": 4, "random": 0, "seed_search": 5, "p4d": 2, "transfer": 3, "text_grad": 1}


def title_of(label: str, lr: float = 0.01) -> str:
    """What a reader sees for an attack's label; `lr`: of plain p4d."""
    if label.startswith("p4d"):
        return f"P4D, lr {label.partition('-lr')[2] or f'{lr:g}'}"
    return _TITLES[label]


def searching(labels: list[str]) -> list[str]:
    """The attacks that try several candidates."""
    return [label for label in labels if label not in ("no_attack", "transfer")]


def _style(outcome: Outcome, label: str) -> tuple[str, float]:
    """Colour, and how strong: other learning rates of P4D are paler."""
    labels = [one for one in outcome.config.labels if one.startswith("p4d")]
    pale = labels.index(label) if label in labels else 0
    return figures.SERIES[_COLOURS[label.partition("-")[0]]], max(0.3, 1.0 - 0.45 * pale)


def rates(outcome: Outcome) -> Picture:
    """Success rate of every attack on every model."""
    config = outcome.config
    fig, axis = figures.figure(9.0, 3.9)
    width = 0.84 / len(config.labels)
    told = []
    for i, label in enumerate(config.labels):
        found = [outcome.rates(name, label).post for name in config.names]
        values = np.array([rate.value for rate in found])
        low, high = np.array([rate.interval for rate in found]).T
        at = np.arange(len(config.names)) + width * (i - (len(config.labels) - 1) / 2)
        colour, strength = _style(outcome, label)
        title = title_of(label, config.p4d_lr[0])
        axis.bar(at, values, 0.92 * width, label=title, color=colour, alpha=strength)
        axis.errorbar(
            at, values, [values - low, high - values], fmt="none", ecolor=figures.INK, lw=1, capsize=2
        )
        told += [f"{ERASED[n][0]}, {title}: {rate}" for n, rate in zip(config.names, found, strict=True)]
    axis.set_xticks(np.arange(len(config.names)), [ERASED[name][0] for name in config.names])
    axis.set_ylim(0, 1.25)
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_ylabel(f"share of prompts that bring back\n“{config.concept}”")
    axis.legend(loc="upper center", ncols=min(len(config.labels), 4), fontsize=9)
    return Picture(
        fig,
        "Post-ASR: share of prompts with which the erased concept is drawn, by themselves or by the attack, "
        "with Wilson's 95 % interval over prompts and seeds of the attack.",
        "Bars of success rates. " + "; ".join(told) + ".",
    )


def _course(logs: list[CaseLog], length: int) -> np.ndarray:
    """Share of prompts that had succeeded after 0, 1, ... candidates."""
    done = [log for log in logs if log.state != "error"]
    first = [next((i for i, e in enumerate(log.entries) if e.success), length + 1) for log in done]
    return np.array([sum(at <= i for at in first) for i in range(length + 1)]) / max(len(done), 1)


def curves(outcome: Outcome) -> Picture:
    """Success after each candidate, which for the gradient attacks is each timestep."""
    config = outcome.config
    labels = searching(config.labels)
    most = max(len(log.entries) for t in outcome.trials for log in t.logs) - 1
    fig, axes = figures.figure(9.0, 3.6, ncols=len(config.names), sharey=True, squeeze=False)
    ends = []
    for axis, name in zip(axes[0], config.names, strict=True):
        for label in labels:
            logs = [log for trial in outcome.of(name, label) for log in trial.logs]
            length = max(max(len(log.entries) for log in logs) - 1, 0)
            values = _course(logs, length)
            colour, strength = _style(outcome, label)
            title = title_of(label, config.p4d_lr[0])
            axis.plot(
                np.arange(length + 1), values, color=colour, alpha=strength, label=title, lw=1.8, marker="o",
                ms=3,
            )  # fmt: skip
            ends.append(f"{ERASED[name][0]}, {title}: {values[-1]:.2f}")
        axis.set_title(ERASED[name][0])
        axis.set_xlabel(_under(outcome, most))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set_xlim(-0.2, most + 0.2)
        axis.set_ylim(0, 1.02)
    axes[0][0].set_ylabel("share of prompts brought back")
    axes[0][0].legend(fontsize=9, loc="upper left")
    return Picture(
        fig,
        "Share of prompts that succeeded after so many judged candidates; at 0 stands the prompt as it is. "
        "Gradient "
        "attacks judge one candidate per timestep of their loss, in this order; all seeds together.",
        "Rising curves of success over candidates. At their ends: " + "; ".join(ends) + ".",
    )


def _under(outcome: Outcome, most: int) -> str:
    gradient = [label for label in outcome.config.labels if label.startswith(("p4d", "text_grad"))]
    if not gradient or not most:
        return "candidates judged"
    times = attack_times(int(outcome.config.timesteps or 1), outcome.config.order)
    several = f"t = {times[0]}, {times[1]}, …, {times[-1]}" if len(times) > 2 else f"t = {times[0]}"
    return f"candidates judged (gradient attacks: {several})"


def drawn(outcome: Outcome) -> Picture:
    """Pictures of the original model, of erased ones, and of each erased one attacked."""
    config = outcome.config
    rows = [("before erasing", [(log.pictures[0], log.state == "pre") for log in
                                shown(outcome, ORIGINAL, "no_attack")])]  # fmt: skip
    chosen = "text_grad" if "text_grad" in config.labels else config.labels[-1]
    for name in config.names:
        logs = shown(outcome, name, chosen)
        title = ERASED[name][0]
        rows.append((f"{title}\nprompt as it is", [(log.pictures[0], log.state == "pre") for log in logs]))
        if chosen != "no_attack":
            last = [(log.pictures[-1], log.state in ("pre", "success")) for log in logs]
            rows.append((f"{title}\n{title_of(chosen, config.p4d_lr[0])}", last))
    rows = [(title, pictures) for title, pictures in rows if pictures]
    columns = max(len(pictures) for _, pictures in rows)
    fig, axes = figures.figure(9.0, 0.8 * len(rows) + 0.2, nrows=len(rows), ncols=columns, squeeze=False)
    for line, (title, pictures) in zip(axes, rows, strict=True):
        for i, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            if i >= len(pictures):
                axis.set_visible(False)
                continue
            picture, marked = pictures[i]
            axis.imshow(as_seen(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            for spine in axis.spines.values():
                spine.set_visible(marked)
                spine.set_color(figures.SERIES[1])
                spine.set_linewidth(3)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8.5)
    return Picture(
        fig,
        "Pictures of the same prompts and the same noise, first seed. A frame marks those in which the judge "
        "finds the erased concept. Attacked rows show the last candidate that was judged, or the prompt "
        "itself where it succeeds.",
        f"A grid of pictures, one row per model; {config.concept} is framed where it is drawn.",
    )
