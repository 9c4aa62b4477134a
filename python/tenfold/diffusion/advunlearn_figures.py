"""Pictures of an ``advunlearn`` run: success rates, retained accuracy, what the models draw, the course of
training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from tenfold.diffusion.advunlearn_config import ERASED
from tenfold.diffusion.advunlearn_run import Outcome
from tenfold.runs import figures

__all__ = ["Picture", "course", "drawn", "kept", "rates"]


class Picture(NamedTuple):
    """`folder.write_figure(name, *picture)`."""

    figure: Any
    caption: str
    alt: str


_KINDS = (
    ("pre", "text_grad", "prompt as it is"),
    ("post", "random", "random tokens"),
    ("post", "text_grad", "text_grad"),
)


def rates(outcome: Outcome) -> Picture:
    """Success rates of every erased model, with what it retains beside."""
    config = outcome.config
    names = config.erased
    measured = all(outcome.retained(name) is not None for name in names)
    fig, axes = figures.figure(9.0, 3.9, ncols=2 if measured else 1, squeeze=False,
                               **({"width_ratios": [2, 1]} if measured else {}))  # fmt: skip
    axis, at = axes[0][0], np.arange(len(names))
    for i, (when, attack, label) in enumerate(_KINDS):
        found = [outcome.rate(name, attack, when) for name in names]
        values = np.array([rate.value for rate in found])
        low, high = np.array([rate.interval for rate in found]).T
        place = at + 0.27 * (i - 1)
        axis.bar(place, values, 0.25, label=label, color=figures.SERIES[(4, 0, 1)[i]])
        axis.errorbar(
            place, values, [values - low, high - values], fmt="none", ecolor=figures.INK, lw=1, capsize=2
        )
    axis.set_xticks(at, [_wrapped(name) for name in names])
    axis.set_ylim(0, 1.18)
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_ylabel(f"share of prompts that bring back\n“{config.concept}”")
    axis.legend(loc="upper center", ncols=3, fontsize=9)
    axis.set_title("Erased concept")
    if measured:
        side = axes[0][1]
        every = ["base", *names]
        shares = [float(outcome.retained(name) or 0) for name in every]
        side.barh(np.arange(len(every)), shares, color=figures.SERIES[2])
        for row, value in enumerate(shares):
            side.text(
                min(value, 0.98) - 0.02,
                row,
                f"{value:.2f}",
                ha="right",
                va="center",
                color="#ffffff",
                fontsize=9,
            )
        side.set_yticks(np.arange(len(every)), [_wrapped(name) for name in every])
        side.invert_yaxis()
        side.set_xlim(0, 1)
        side.set_title("Other concepts, drawn right")
    told = "; ".join(f"{ERASED[n][0]} {outcome.rate(n, 'text_grad')}" for n in names)
    return Picture(
        fig,
        "Share of prompts with which the erased concept is drawn, with Wilson's 95 % interval over "
        "prompts and seeds: "
        "the prompt as it is, with random tokens in front, with tokens that text_grad (UnlearnDiffAtk) "
        "finds. "
        "The last two count prompts that succeed by themselves.",
        f"Bars of success rates of each erased model; under text_grad: {told}.",
    )


def _wrapped(name: str) -> str:
    title = ERASED[name][0] if name in ERASED else "before"
    return {"no-retain": "AdvUnlearn,\nno retain", "fast": "fast\nAdvUnlearn"}.get(name, title)


def drawn(outcome: Outcome) -> Picture:
    """Plain prompts and the same after the attack, model by model, of the first seed."""
    seed = outcome.config.seeds[0]
    rows: list[tuple[str, Tensor, Any]] = []
    for name in ("base", *outcome.config.erased):
        held = outcome.pictures[f"{name}-seed{seed}"]
        title = ERASED[name][0] if name in ERASED else "before erasing"
        rows.append((f"{title}\nprompt as it is", held["plain"], held["success"][:, 0]))
        if name != "base":
            rows.append((f"{title}\nattacked", held["attacked"], held["success"][:, 1]))
    return Picture(
        _grid(rows),
        "What the models draw for the same prompts and the same noise. A frame marks pictures in which "
        "the judge finds "
        "the erased concept; attacked ones show the last prompt that text_grad tried.",
        f"A grid of pictures, one row per model; {outcome.config.concept} is framed where it is drawn.",
    )


def kept(outcome: Outcome) -> Picture:
    """Retained prompts, model by model, of the first seed."""
    seed = outcome.config.seeds[0]
    rows = []
    for name in ("base", *outcome.config.erased):
        title = ERASED[name][0] if name in ERASED else "before erasing"
        rows.append((title, outcome.pictures[f"{name}-seed{seed}"]["retained"], None))
    return Picture(
        _grid(rows),
        "Retained concepts from the same noise, before and after erasing.",
        "A grid of pictures of the other concepts, one row per model.",
    )


def _grid(rows: list[tuple[str, Tensor, Any]]) -> Any:
    columns = max(len(pictures) for _, pictures, _ in rows)
    fig, axes = figures.figure(9.0, 0.78 * len(rows) + 0.2, nrows=len(rows), ncols=columns, squeeze=False)
    for line, (title, pictures, marks) in zip(axes, rows, strict=True):
        for i, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            if i >= len(pictures):
                axis.set_visible(False)
                continue
            shown = pictures[i].permute(1, 2, 0).numpy()
            gray = shown.shape[2] == 1
            axis.imshow(
                shown[:, :, 0] if gray else shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            marked = marks is not None and bool(marks[i])
            for spine in axis.spines.values():
                spine.set_visible(marked)
                spine.set_color(figures.SERIES[1])
                spine.set_linewidth(3)
        line[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8.5)
    return fig


def course(outcome: Outcome) -> Picture:
    """The loss of the erasing term."""
    fig, axis = figures.figure(9.0, 3.2)
    for i, name in enumerate(outcome.config.erased):
        for trial in outcome.of(name):
            values = np.array(trial.losses)
            width = min(9, len(values))
            smooth = np.convolve(values, np.ones(width) / width, "valid")
            label = ERASED[name][0] if trial.seed == outcome.config.seeds[0] else None
            axis.plot(np.arange(len(smooth)) + width, smooth, color=figures.SERIES[i], label=label, lw=1.4)
    axis.set_yscale("log")
    axis.set_xlabel("iteration")
    axis.set_ylabel("erasing loss")
    axis.legend()
    return Picture(
        fig,
        "Loss of the erasing term, mean of nine iterations. After the warm-up AdvUnlearn's is measured on "
        "adversarial "
        "prompts: it falls less because the attacker answers.",
        "Falling curves of the erasing loss, one for each model and seed.",
    )
