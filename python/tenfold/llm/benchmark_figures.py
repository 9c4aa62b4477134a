"""Pictures of the benchmark's tables. Each function gives (figure, caption, alt text)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tenfold.llm import methods, zo_paper
from tenfold.runs import figures

if TYPE_CHECKING:
    from tenfold.llm.benchmark import Cell, Tables

Drawn = tuple[Any, str, str]
Found = Sequence[tuple["Cell", dict[str, Any]]]
Metric = Callable[[dict[str, Any]], tuple[str, float]]

SCHEMES = {"ft": "full", "lora": "LoRA", "prefix": "prefix", "prompt": "prompt", "head": "head"}
THEIRS = ". On the right the paper's own figures, which its models reach on SST-2; some are unchecked."
MARKERS = ("o", "s", "^", "D", "v")


def accuracy(tables: Tables, family: str, cells: Found, metric: Metric) -> Drawn:
    """A row of dots per method, one for each scheme; the paper's in a second panel where it has them."""
    titles = list(dict.fromkeys(cell.row for cell, _ in cells if cell.job.optimizer != "none"))
    paper = zo_paper.ACCURACY.get(family, {}) if tables.config.task == "sst2" else {}
    by_title = {methods.find(name).title: row for name, row in paper.items()}
    figure, axes = figures.figure(
        7.8, 1.3 + 0.3 * len(titles), ncols=2 if paper else 1, sharey=True, squeeze=False,
        gridspec_kw={"width_ratios": [3, 2] if paper else [1]},
    )  # fmt: skip
    left = axes[0][0]
    places = {title: len(titles) - i for i, title in enumerate(titles)}
    for i, (scheme, label) in enumerate(SCHEMES.items()):
        dots = [(100 * metric(found)[1], places[cell.row]) for cell, found in cells
                if cell.column == scheme and cell.row in places]  # fmt: skip
        if dots:
            _dots(left, dots, i, label)
        theirs = [
            (row[scheme].value, places[t]) for t, row in by_title.items() if scheme in row and t in places
        ]
        if theirs:
            _dots(axes[0][1], theirs, i, "")
    untrained = [100 * metric(found)[1] for cell, found in cells if cell.job.optimizer == "none"]
    for value in untrained:
        left.axvline(value, color=figures.MUTED, linewidth=1.2, linestyle="--", zorder=0)
        left.text(value, len(titles) + 0.62, " untrained", color=figures.MUTED, fontsize=8)
    left.set_yticks(list(places.values()), list(places))
    left.set(xlabel="right answers, %", ylim=(0.3, len(titles) + 1.2))
    left.set_title(f"This run: {family}", pad=24)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5, borderaxespad=0.1, columnspacing=0.8,
                handletextpad=0.2, fontsize=8)  # fmt: skip
    if paper:
        axes[0][1].set(xlabel="right answers, %")
        axes[0][1].set_title(f"The paper: {zo_paper.MODELS[family]}", pad=24)
    caption = f"Test accuracy of every method, one mark for each fine-tuning scheme{THEIRS if paper else '.'}"
    best = max(cells, key=lambda pair: metric(pair[1])[1])
    alt = (
        f"Dot chart of accuracy. Highest: {best[0].row}, {best[0].column}, {100 * metric(best[1])[1]:.1f} %."
    )
    return figure, caption, alt


def _dots(axes: Any, points: Sequence[tuple[float, float]], i: int, label: str) -> None:
    axes.scatter(
        [x for x, _ in points], [y + 0.12 * (2 - i) for _, y in points], s=26, marker=MARKERS[i % 5],
        color=figures.SERIES[i % len(figures.SERIES)], label=label or None, zorder=3,
    )  # fmt: skip


def alignment(tables: Tables, pairs: dict[tuple[str, str], dict[str, float]]) -> Drawn:
    """Pairs of bars, with the template and without."""
    figure, axes = figures.figure(7.0, 3.4)
    paper = zo_paper.ALIGNMENT.get(str(tables.config.task), {})
    for i, ((_, name), pair) in enumerate(pairs.items()):
        for j, (column, value) in enumerate(pair.items()):
            axes.bar(
                i + 0.36 * (j - 0.5), value, 0.34, color=figures.SERIES[j], label=column if i == 0 else None
            )
            axes.text(i + 0.36 * (j - 0.5), value + 0.8, f"{value:.1f}", ha="center", fontsize=8)
            if name in paper:
                axes.plot(
                    i + 0.36 * (j - 0.5), paper[name][j], marker="_", markersize=16, color=figures.INK,
                    label="the paper's (unchecked)" if i == j == 0 else None, linestyle="none",
                )  # fmt: skip
    labels = [f"{methods.find(name).title}\n{family}" for family, name in pairs]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set(ylim=(0, 105), ylabel="right answers, %")
    axes.set_title("The task's template on and off", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.1)
    axes.grid(axis="x", visible=False)
    caption = "Test accuracy after full fine-tuning with the task's template and with the bare text."
    alt = "; ".join(
        f"{family} {name}: " + ", ".join(f"{column} {value:.1f} %" for column, value in pair.items())
        for (family, name), pair in pairs.items()
    )
    return figure, caption, f"Bar chart. {alt}."


def memory(rows: Sequence[dict[str, Any]]) -> Drawn:
    """The model and what a step adds at its peak."""
    figure, axes = figures.figure(7.4, 1.2 + 0.28 * len(rows))
    places = range(len(rows))[::-1]
    base = [row["model_mib"] for row in rows]
    above = [row["above_model_mib"] for row in rows]
    axes.barh(places, base, 0.62, color=figures.MUTED, label="the model itself")
    axes.barh(places, above, 0.62, left=base, color=figures.SERIES[1], label="on top of it, at the peak")
    for place, start, more in zip(places, base, above, strict=True):
        axes.text(start + more, place, f"  +{more:,.0f} MiB", va="center", fontsize=8)
    axes.set_yticks(list(places), [row["what"] for row in rows])
    axes.set(xlabel="MiB", xlim=(0, 1.2 * max(a + b for a, b in zip(base, above, strict=True))))
    axes.set_title("Peak memory of a step, all parameters trained", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.1)
    axes.grid(axis="y", visible=False)
    alt = "; ".join(f"{row['what']}: +{row['above_model_mib']:.0f} MiB" for row in rows)
    caption = "Peak memory of one step on the same batch, each in a process of its own."
    return figure, caption, f"Bar chart of peak memory above the model. {alt}."


def time(rows: Sequence[dict[str, Any]]) -> Drawn:
    """Parts of a step."""
    figure, axes = figures.figure(7.4, 1.2 + 0.28 * len(rows))
    places = range(len(rows))[::-1]
    parts = (("forward_ms", "forward"), ("backward_ms", "backward"), ("passes_ms", "weight passes, update"),
             ("rest_ms", "rest"))  # fmt: skip
    left = [0.0] * len(rows)
    for (key, label), colour in zip(parts, (*figures.SERIES[:3], figures.MUTED), strict=True):
        axes.barh(places, [row[key] for row in rows], 0.62, left=left, color=colour, label=label)
        left = [a + row[key] for a, row in zip(left, rows, strict=True)]
    for place, row, whole in zip(places, rows, left, strict=True):
        axes.text(
            whole, place, f"  {row['ms']:,.0f} ms, forwards: {row['forwards']}", va="center", fontsize=8
        )
    axes.set_yticks(list(places), [row["what"] for row in rows])
    axes.set(xlabel="milliseconds", xlim=(0, 1.35 * max(left)))
    axes.set_title("Time of a step, all parameters trained", pad=24)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.1)
    axes.grid(axis="y", visible=False)
    alt = "; ".join(f"{row['what']}: {row['ms']:.0f} ms" for row in rows)
    return figure, "Where the time of one step goes; the faster of two steps.", f"Bar chart of times. {alt}."


def ablations(tables: Tables, cells: Found, metric: Metric) -> Drawn:
    """Accuracy and time of every variant."""
    figure, (left, right) = figures.figure(7.8, 1.3 + 0.28 * len(cells), ncols=2, sharey=True,
                                           gridspec_kw={"width_ratios": [3, 2]})  # fmt: skip
    places = range(len(cells))[::-1]
    for place, (_, found) in zip(places, cells, strict=True):
        value = 100 * metric(found)[1]
        first = place == len(cells) - 1
        left.plot(value, place, "o", color=figures.SERIES[1 if first else 0])
        left.text(value + 0.4, place, f"{value:.1f}", va="center", fontsize=8)
        right.barh(place, found["seconds"], 0.6, color=figures.SERIES[1 if first else 0])
    left.axvline(100 * metric(cells[0][1])[1], color=figures.MUTED, linewidth=1, linestyle="--", zorder=0)
    left.set_yticks(list(places), [cell.row for cell, _ in cells])
    left.set(xlabel="right answers, %")
    left.margins(x=0.12)
    left.set_title("Variants of ZO-SGD")
    right.set(xlabel="seconds of training")
    right.set_title("Time")
    right.grid(axis="y", visible=False)
    alt = "; ".join(f"{cell.row}: {100 * metric(found)[1]:.1f} %" for cell, found in cells)
    caption = (
        "Test accuracy and training time of ZO-SGD (first row, dashed line) with one thing changed, at the "
        "same number of evaluations of the loss."
    )
    return figure, caption, f"Dot chart of accuracy. {alt}."


def words(rows: Sequence[dict[str, Any]]) -> Drawn:
    """Accuracy on the bag of words, with the spread of the seeds."""
    figure, axes = figures.figure(7.0, 1.2 + 0.28 * len(rows))
    places = range(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        colour = figures.SERIES[1 if row["optimizer"].startswith("FO") else 0]
        axes.plot([100 * a for a in row["accuracies"]], [place] * len(row["accuracies"]), "o", markersize=4,
                  color=figures.MUTED)  # fmt: skip
        axes.plot(100 * row["accuracy"], place, "D", color=colour)
        axes.text(100 * row["accuracy"] + 0.5, place + 0.05, f"{100 * row['accuracy']:.1f}", va="bottom",
                  fontsize=8)  # fmt: skip
    axes.set_yticks(list(places), [row["optimizer"] for row in rows])
    axes.set(xlabel="right answers, %")
    axes.set_title("Logistic regression on a bag of words")
    alt = "; ".join(f"{row['optimizer']}: {100 * row['accuracy']:.1f} %" for row in rows)
    return figure, "Test accuracy: mean (diamond) and single seeds (dots).", f"Dot chart. {alt}."
