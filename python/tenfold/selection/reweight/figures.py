"""Pictures of a run: accuracies with controls, weights, V, ratios, time, samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tenfold.runs import figures
from tenfold.selection.reweight import tables
from tenfold.selection.reweight.arms import ARMS, Arm
from tenfold.selection.reweight.run import Outcome, problem_of
from tenfold.selection.reweight.weigh import CURVE

__all__ = ["Picture", "accuracies", "curves", "learning", "ratio_sweep", "samples", "times", "weights"]

BLUE, ORANGE, TEAL, MAGENTA, GOLD, VIOLET = figures.SERIES


class Picture(NamedTuple):
    """`folder.write_figure(name, *picture)`."""

    figure: Any
    caption: str
    alt: str


def _colour(arm: Arm) -> str:
    if arm.control:
        return figures.MUTED
    if arm.name == "erm":
        return figures.INK
    if arm.rows != "all":
        return VIOLET
    if arm.mode == "label_aware":
        return TEAL
    return MAGENTA if arm.source == "all" else GOLD if arm.source == "given" else ORANGE


def accuracies(outcome: Outcome) -> Picture:
    """Every method and control in every problem: seeds as dots, their mean, ERM as a line."""
    problems = range(len(outcome.problems))
    arms = [a for a in ARMS.values() if any(a in outcome.config.arms(k) for k in problems)]
    fig, axes = figures.figure(
        2.6 + 2.0 * len(outcome.problems), 1.6 + 0.29 * len(arms), ncols=len(outcome.problems), sharey=True,
        squeeze=False,
    )  # fmt: skip
    told = []
    behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.3}
    for k, axis in enumerate(axes[0]):
        here = outcome.config.arms(k)
        base = 100 * outcome.values("erm", k).mean()
        axis.axvline(base, color=figures.INK, linewidth=1, linestyle=":")
        for y, arm in enumerate(arms):
            if arm not in here:
                continue
            values = 100 * outcome.values(arm.name, k)
            shape = "D" if arm.control else "o"
            axis.plot(values, np.full(len(values), y), ".", color=_colour(arm), markersize=4, alpha=0.6)
            axis.plot(values.mean(), y, shape, color=_colour(arm), markersize=5 if arm.control else 7)
            axis.annotate(f"{values.mean():.1f}", (values.mean(), y), (0, 5), textcoords="offset points",
                          ha="center", fontsize=7, color=figures.MUTED, bbox=behind)  # fmt: skip
        axis.set_title(_wrapped(outcome.problems[k].title, 24), fontsize=9)
        axis.set(xlabel="test accuracy, %", yticks=range(len(arms)), ylim=(len(arms) - 0.4, -0.8))
        axis.set_yticklabels([arm.title for arm in arms], fontsize=8)
        axis.margins(x=0.12)
        told.append(f"{outcome.problems[k].title}: " + ", ".join(
            f"{a.title} {100 * outcome.values(a.name, k).mean():.1f} %" for a in here))  # fmt: skip
    caption = (
        "Small dots are seeds, large ones their mean; the dotted line is ERM. **Grey diamonds are controls** "
        "of the method above them: every sample at the same weight, or the same weights given to other "
        "samples. A method that is not to the right of its controls owes its gain to the scale of the loss."
    )
    return Picture(fig, caption, "Dot plot. " + "; ".join(told) + ".")


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def weights(outcome: Outcome, setting: int) -> Picture | None:
    """Histograms of weights for samples with right and with wrong labels."""
    shown = [a for a in outcome.config.arms(setting) if a.source and not a.control]
    shown = [a for a in shown if a.name not in ("cw-erm-normalised", "w-erm-normalised")][:4]
    if not shown:
        return None
    known = problem_of(outcome.config, setting, outcome.config.seeds[0])[0].true_y is not None
    fig, axes = figures.figure(max(3.1 * len(shown) + 0.4, 9.4), 3.1, ncols=len(shown), squeeze=False)
    told = []
    for axis, arm in zip(axes[0], shown, strict=True):
        w, right = tables.pooled(outcome, arm, setting)
        top = max(float(np.quantile(w, 0.999)), 1e-6)
        bins = np.linspace(0.0, top if arm.normalise else max(top, 1.0), 41)
        axis.hist(np.minimum(w[right], bins[-1]), bins, color=BLUE, alpha=0.65, label="right label")
        if (~right).any():
            axis.hist(np.minimum(w[~right], bins[-1]), bins, color=ORANGE, alpha=0.65, label="wrong label")
            area = tables.auc(w, right)
            axis.set_title(f"{_wrapped(arm.title, 24)}\nAUC {area:.2f}", fontsize=9)
            told.append(
                f"{arm.title}: mean {w[right].mean():.3f} for right, {w[~right].mean():.3f} for wrong "
                f"labels, AUC {area:.2f}"
            )
        else:
            axis.set_title(_wrapped(arm.title, 24), fontsize=9)
            told.append(f"{arm.title}: mean {w.mean():.3f}, deviation {w.std():.3f}")
        axis.set(xlabel="weight")
    axes[0, 0].set_ylabel("samples, all seeds")
    axes[0, 0].legend(fontsize=8)
    caption = f"{outcome.problems[setting].title}: " + "; ".join(told) + "."
    if known and outcome.problems[setting].noise:
        caption += " An AUC of 0.5 means that a weight does not tell right labels from wrong ones."
    return Picture(fig, caption, "Histograms of weights. " + "; ".join(told) + ".")


def curves(outcome: Outcome) -> Picture | None:
    """Accuracy after each epoch, mean over seeds, where a run watched it."""
    if not outcome.config.watch:
        return None
    fig, axis = figures.figure(7.6, 3.6)
    told = []
    for arm in outcome.config.arms():
        found = [outcome.trials[(0, s, outcome.at(None), arm.name)].curve for s in outcome.config.seeds]
        mean = 100 * np.mean([[e["accuracy"] for e in curve] for curve in found], axis=0)
        line = {"constant": ":", "shuffled": "--"}.get(arm.control, "-")
        colour = _colour(ARMS[arm.of]) if arm.of else _colour(arm)
        axis.plot(range(1, len(mean) + 1), mean, line, color=colour, linewidth=1.3, label=arm.title)
        told.append(f"{arm.title} {mean[-1]:.1f} %")
    axis.set(xlabel="epoch", ylabel="test accuracy, %")
    axis.set_title(outcome.problems[0].title, fontsize=10)
    fig.legend(fontsize=7, loc="outside lower center", ncols=3)
    caption = (
        "Mean over seeds. Dotted and dashed lines are the controls of the same colour. Nothing is chosen by "
        "these."
    )
    return Picture(fig, caption, f"Line chart of accuracies. At the end: {'; '.join(told)}.")


def learning(outcome: Outcome) -> Picture:
    """V before and after, and what it is trained by, on coresets (and on all rows)."""
    fig, axes = figures.figure(9.4, 3.2, ncols=3)
    moved: dict[str, float] = {}
    for colour, whole, name in ((ORANGE, False, "coreset"), (MAGENTA, True, "all rows")):
        found = [w for job, w in outcome.weighed.items() if job.setting == 0 and job.everything == whole
                 and (whole or job.ratio == outcome.at(None))]  # fmt: skip
        for k, w in enumerate(found):
            label = {"label": f"after, {name}"} if not k else {}
            first = {"label": "before"} if not k and not whole else {}
            axes[0].plot(CURVE, w.arrays["before"], color=figures.MUTED, linestyle="--", linewidth=1, **first)
            axes[0].plot(CURVE, w.arrays["after"], color=colour, **label)
            change = float(np.abs(w.arrays["after"] - w.arrays["before"]).max())
            moved[name] = max(change, moved.get(name, 0.0))
            history = w.state["history"]
            epochs = [h["epoch"] for h in history]
            axes[1].plot(epochs, [h["weight"] for h in history], color=colour, alpha=0.8)
            axes[2].plot(epochs, [h["meta_loss"] for h in history], color=colour, alpha=0.8)
    axes[0].set(xlabel="loss of a sample", ylabel="weight V", ylim=(0, 1))
    axes[0].set_title("V, one line a seed", fontsize=10)
    axes[0].legend(fontsize=8)
    axes[1].set(xlabel="epoch", ylim=(0, 1))
    axes[1].set_title("mean weight of a batch", fontsize=10)
    axes[2].set(xlabel="epoch", ylim=(0, None))
    axes[2].set_title("loss on meta rows", fontsize=10)
    told = "; ".join(f"on {name} by at most {change:.3f}" for name, change in moved.items())
    caption = (
        "First problem. V starts near 0.5, the sigmoid of a small number, and training moves it "
        f"(largest change at any loss, any seed) {told}."
    )
    if outcome.config.meta == "split" and outcome.problems[0].noise:
        caption += " Wrong labels are among the meta rows too: their loss cannot come near 0."
    return Picture(fig, caption, f"Line charts. Training moves V {told}.")


def ratio_sweep(outcome: Outcome) -> Picture | None:
    """Accuracy against the coreset's share, with controls; purity; seconds."""
    ratios = tables.ratios(outcome)
    arms = outcome.config.swept()
    if len(ratios) < 2 or not arms:
        return None
    states = {r: [outcome.coreset(0, s, r).state for s in outcome.config.seeds] for r in ratios}
    pure = bool(states[ratios[0]][0]["purity"])
    fig, axes = figures.figure(
        10.6, 4.6, ncols=4 if pure else 3, squeeze=False, width_ratios=[2, 1, 1, 1][: 4 if pure else 3]
    )
    left, second = axes[0, :2]
    share = 100 * np.array(ratios)
    told = []
    for arm in arms:
        values = np.array([100 * outcome.values(arm.name, 0, r) for r in ratios])
        line = {"constant": ":", "shuffled": "--"}.get(arm.control, "-")
        colour = _colour(ARMS[arm.of]) if arm.of else _colour(arm)
        if arm.rows == "random":
            colour = BLUE
        axis = left if arm.rows == "all" else second
        axis.plot(share, values.mean(1), line, color=colour, marker="" if arm.control else "o", markersize=4,
                  label=arm.title, linewidth=1.4)  # fmt: skip
        if not arm.control and values.shape[1] > 1:
            axis.fill_between(share, values.min(1), values.max(1), color=colour, alpha=0.12, linewidth=0)
        told.append(f"{arm.title} {values.mean(1)[0]:.1f} to {values.mean(1)[-1]:.1f} %")
    for name, style in (("erm", figures.INK), ("w-erm", MAGENTA)):
        values = outcome.values(name)
        if len(values):
            left.axhline(
                100 * values.mean(), color=style, linewidth=1, linestyle="-.", label=ARMS[name].title
            )
    paper = tables.paper_sweep(outcome)
    if paper:
        left.plot([100 * r for r in paper], list(paper.values()), "s", color=GOLD, label="CW-ERM, the paper")
    left.set(xscale="log", xlabel="coreset, % of the rows", ylabel="test accuracy, %")
    left.set_title("trained on all rows", fontsize=10)
    second.set(xscale="log", xlabel="coreset, %")
    second.set_title("on the coreset alone, %", fontsize=10)
    _plain_ticks(left, share)
    _plain_ticks(second, share)
    lines = [pair for axis in (left, second) for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    fig.legend(*zip(*lines, strict=True), fontsize=8, loc="outside lower center", ncols=3)
    last = axes[0, -1]
    last.plot(
        share, [tables.reweighting_seconds(outcome, r) for r in ratios], "o-", color=ORANGE, markersize=4
    )
    last.set(xscale="log", xlabel="coreset, %", ylim=(0, None))
    last.set_title("reweighting, s", fontsize=10)
    _plain_ticks(last, share)
    if pure:
        middle = axes[0, 2]
        for key, colour, name in (("moderate", VIOLET, "moderate"), ("random", BLUE, "random"),
                                  ("data", figures.INK, "all rows")):  # fmt: skip
            means = [100 * np.mean([s["purity"][key] for s in states[r]]) for r in ratios]
            line = "-." if key == "data" else "o-"
            middle.plot(share, means, line, color=colour, markersize=4, label=name)
        middle.set(xscale="log", xlabel="coreset, %")
        middle.set_title("right labels, %", fontsize=10)
        middle.legend(fontsize=8)
        _plain_ticks(middle, share)
    caption = (
        f"{outcome.problems[0].title}. Solid lines are methods with the range of seeds, dotted and dashed "
        "ones of the same colour their controls (constant, shuffled)."
    )
    return Picture(fig, caption, "Line charts against the coreset's share. " + "; ".join(told) + ".")


def _plain_ticks(axis: Any, share: Any) -> None:
    axis.set_xticks(share, [f"{s:g}" for s in share], fontsize=8)
    axis.set_xticks([], minor=True)


def times(outcome: Outcome) -> Picture:
    """Where the time of each method goes."""
    arms = [
        a for a in outcome.config.arms() if (not a.control and not a.normalise) or a.mode == "label_aware"
    ]
    arms = [a for a in arms if not a.control]
    fig, axis = figures.figure(7.6, 1.3 + 0.36 * len(arms))
    left = np.zeros(len(arms))
    parts = [tables.time_of(outcome, a) for a in arms]
    colours = {"features": GOLD, "coreset": VIOLET, "weights": ORANGE, "carrying": TEAL, "training": BLUE}
    for name, colour in colours.items():
        width = np.array([p[name] for p in parts])
        if width.max() > 0:
            axis.barh(range(len(arms)), width, left=left, color=colour, label=name)
        left += width
    for y, total in enumerate(left):
        axis.annotate(f" {total:.2f} s", (total, y), va="center", fontsize=8, color=figures.INK)
    axis.set(
        yticks=range(len(arms)),
        ylim=(len(arms) - 0.4, -0.6),
        xlabel=_unit(outcome),
        xlim=(0, 1.12 * left.max()),
    )
    axis.set_yticklabels([a.title for a in arms], fontsize=8)
    axis.legend(fontsize=8, loc="lower right")
    told = "; ".join(f"{a.title} {t:.2f} s" for a, t in zip(arms, left, strict=True))
    return Picture(fig, f"First problem, mean over seeds: {told}.", f"Stacked bars. {told}.")


def _unit(outcome: Outcome) -> str:
    return "processor seconds" if outcome.config.device == "cpu" else "seconds"


def samples(outcome: Outcome, arm_name: str = "label-aware-normalised") -> Picture | None:
    """Pictures of the samples with the smallest and the largest weights, first seed, first problem."""
    arm = ARMS[arm_name]
    if arm not in outcome.config.arms():
        return None
    seed = outcome.config.seeds[0]
    data, _ = problem_of(outcome.config, 0, seed)
    w = outcome.weights_of(arm, 0, seed)
    shape = _picture_shape(data.shape, outcome.config.dataset)
    if shape is None:
        return None
    order = np.random.default_rng(0).permutation(len(w))
    order = order[np.argsort(w[order], kind="stable")]  # ties in a random order
    groups = (("smallest weights", order[:20]), ("largest weights of each class", _largest(order, data.y)))
    fig, axes = figures.figure(9.4, 5.6, nrows=4, ncols=10, squeeze=False)
    told = []
    for block, (name, rows) in enumerate(groups):
        for axis in axes[2 * block : 2 * block + 2].flat:
            axis.set_axis_off()
        for axis, row in zip(axes[2 * block : 2 * block + 2].flat, rows, strict=False):
            _draw(axis, data.x[int(row)], shape)
            label = data.classes[data.y[row]]
            true = None if data.true_y is None else data.classes[data.true_y[row]]
            wrong = true is not None and true != label
            text = f"{label}, is {true}" if wrong else label
            axis.set_title(f"{text}\n{w[row]:.2f}", fontsize=8, fontweight="normal", loc="center",
                           color=ORANGE if wrong else figures.INK)  # fmt: skip
        if data.true_y is not None:
            share = 100 * float((data.y[rows] != data.true_y[rows]).mean())
            told.append(f"of the {name}, {share:.0f} % have a wrong label")
    caption = (
        f"{arm.title}, seed {seed}: above 20 samples with the smallest weights, below some with the largest "
        "of their class. The title is the label that is trained with, the weight below it; orange where the "
        "label is wrong. " + ("; ".join(told) + ".").capitalize() * bool(told)
    )
    return Picture(fig, caption, f"Forty pictures. {'; '.join(told) or arm.title}.")


def _largest(order: Any, labels: Any) -> Any:
    """Twenty rows from the end of `order`, equally many of each of up to ten classes."""
    found = order[::-1]
    classes = np.unique(labels)[:10]
    each = 20 // len(classes)
    picked = np.concatenate([found[labels[found] == c][:each] for c in classes])
    return np.concatenate([picked, np.setdiff1d(found[:40], picked)])[:20]


def _picture_shape(shape: tuple[int, ...], dataset: str) -> tuple[int, ...] | None:
    if len(shape) == 3 and shape[0] in (1, 3):
        return shape
    return (1, 8, 8) if dataset == "digits" else None


def _draw(axis: Any, x: Any, shape: tuple[int, ...]) -> None:
    picture = np.asarray(x).reshape(shape).transpose(1, 2, 0)
    if picture.shape[2] == 1:
        axis.imshow(picture[:, :, 0], cmap="gray_r", interpolation="nearest")
    else:
        axis.imshow(picture, interpolation="nearest")
    axis.grid(False)
