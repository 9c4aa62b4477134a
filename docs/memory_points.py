"""The memory plan against measured steps: docs/memory.json, docs/_static/memory.svg, the tables of scale.md.

python docs/memory_points.py --measure    takes every step again (a few minutes), then the rest
python docs/memory_points.py              plans, draws and writes from docs/memory.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tenfold.llm._plan_probe import measure
from tenfold.llm.memory_plan import LLAMA_2_7B, LLAMA_2_70B, METHODS, WHOLE, Shape, memory_plan

HERE = Path(__file__).resolve().parent
RECORD, PICTURE, PAGE = HERE / "memory.json", HERE / "_static" / "memory.svg", HERE / "scale.md"
MIB, GIB = 2**20, 2**30

SHAPES = {
    "7M": Shape(8192, 256, 4, 8, 8, 672),
    "23M": Shape(8192, 384, 12, 8, 4, 1024, True),
    "69M": Shape(8192, 768, 8, 8, 8, 2048),
    "180M": Shape(8192, 1024, 13, 8, 8, 2720),
}
NAMES = {
    "zo-sgd": "ZO-SGD", "zo-adam": "ZO-Adam", "lozo": "LOZO", "adamw": "AdamW", "sophia": "Sophia",
    "sophia-8bit": "Sophia, 8-bit states",
}  # fmt: skip


def requests() -> list[dict[str, Any]]:
    """Every method at every size, and the variants at one."""
    found = [
        {"shape": shape, "method": method, "batch": 2 if name == "180M" else 4, "length": 64}
        for name, shape in SHAPES.items()
        for method in METHODS
    ]
    wide = {"shape": SHAPES["23M"], "batch": 8, "length": 128}
    for method, own in VARIANTS:
        found.append(wide | {"method": method} | own)
    return found


VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("adamw", {}), ("adamw", {"checkpointing": True}), ("adamw", {"chunked": True}), ("zo-sgd", {}),
    ("adamw", {"dtype": "bfloat16"}), ("zo-adam", {"dtype": "bfloat16"}),
)  # fmt: skip


def take() -> None:
    """Measure everything."""
    asked = requests()
    rows = []
    for request, peak in zip(asked, measure(asked), strict=True):
        rows.append(request | {"measured": peak})
        print(_line(rows[-1]), flush=True)
    RECORD.write_text(json.dumps(rows, indent=1) + "\n")


def planned(row: dict[str, Any]) -> Any:
    """The plan of a measured step."""
    asked = {key: value for key, value in row.items() if key not in ("measured", "shape")}
    return memory_plan(Shape(*row["shape"]), **asked)


def _line(row: dict[str, Any]) -> str:
    plan = planned(row)
    error = 100 * (plan.peak / row["measured"] - 1)
    what = NAMES[row["method"]] + "".join(
        f", {word}" for key, word in (("checkpointing", "checkpointing"), ("chunked", "loss by chunks"),
                                      ("dtype", "bfloat16")) if row.get(key)
    )  # fmt: skip
    size = f"{plan.parameters / 1e6:.0f} M"
    return (
        f"| {size} | {what} | {row['batch']} x {row['length']} | {plan.peak / MIB:,.0f} | "
        f"{row['measured'] / MIB:,.0f} | {error:+.0f} % |"
    )


def measured_table(rows: list[dict[str, Any]]) -> str:
    """Every measured step beside its plan."""
    columns = ("parameters", "method", "batch", "plan, MiB", "measured, MiB", "plan is off by")
    return "\n".join([*_head(columns), *map(_line, rows)])


def _head(columns: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def paper_table() -> str:
    """7 and 70 billion parameters, one row of 2,048 tokens per rank."""
    columns = ("model", "ranks", "method", "weights", "gradients", "states", "activations", "gathered")
    return "\n".join(
        [
            *_head((*columns, "peak", "with checkpointing")),
            *(
                _paper_line(name, shape, ranks, method)
                for name, shape in (("Llama-2-7B", LLAMA_2_7B), ("Llama-2-70B", LLAMA_2_70B))
                for ranks in (1, 8, 32)
                for method in METHODS
                if ranks == 1 or method not in WHOLE
            ),
        ]
    )


def _paper_line(name: str, shape: Shape, ranks: int, method: str) -> str:
    asked: dict[str, Any] = {"batch": 1, "length": 2048, "dtype": "bfloat16", "chunked": True}
    plan = memory_plan(shape, method=method, ranks=ranks, **asked)
    again = memory_plan(shape, method=method, ranks=ranks, checkpointing=True, **asked)
    parts = ("weights", "gradients", "states", "activations", "gathered", "peak")
    numbers = " | ".join(f"{getattr(plan, part) / GIB:.1f}" for part in parts)
    last = "" if method.startswith(("zo", "lozo")) else f"{again.peak / GIB:.1f}"
    return f"| {name} | {ranks} | {NAMES[method]} | {numbers} | {last} |"


CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AdamW and Sophia", ("adamw", "sophia")), ("ZO-Adam", ("zo-adam",)),
    ("Sophia, 8-bit states", ("sophia-8bit",)), ("ZO-SGD and LOZO", ("zo-sgd", "lozo")),
)  # fmt: skip
"""Methods that need the same lie on one line in float32."""


def draw(rows: list[dict[str, Any]]) -> None:
    """Plans as lines from millions to 70 billion parameters, measured steps as dots; beside it the error."""
    import matplotlib
    import matplotlib.pyplot as plt

    from tenfold.runs import figures

    as_text = {"svg.fonttype": "none", "svg.hashsalt": PICTURE.stem}  # letters as outlines are 2,000 lines
    with figures.style(), matplotlib.rc_context(as_text):
        figure, (axes, errors) = plt.subplots(
            1, 2, figsize=(8.4, 3.9), width_ratios=(1.6, 1), layout="constrained"
        )
        for colour, (label, methods) in zip(figures.SERIES, CURVES, strict=False):
            dots = [row for row in rows if row["method"] in methods and row["length"] == 64]
            found = [(planned(row), row["measured"]) for row in dots]
            curve = {plan.parameters: plan.peak for plan, _ in found}
            for shape in (LLAMA_2_7B, LLAMA_2_70B):
                plan = memory_plan(shape, method=methods[0], batch=4, length=64)
                curve[plan.parameters] = plan.peak
            size = [plan.parameters for plan, _ in found]
            axes.plot(list(curve), [peak / GIB for peak in curve.values()], color=colour, linewidth=1.2)
            axes.plot(size, [peak / GIB for _, peak in found], "o", color=colour, markersize=4, label=label)
            off = [100 * (plan.peak / peak - 1) for plan, peak in found]
            errors.plot(size, off, "o", color=colour, markersize=4)
        axes.set(xscale="log", yscale="log", xlabel="parameters", ylabel="peak of a step, GiB")
        axes.minorticks_off()
        axes.set_title("Planned (lines), measured (dots)")
        axes.legend(fontsize=8)
        errors.axhline(0, color=figures.MUTED, linewidth=0.8)
        errors.set(xscale="log", xlabel="parameters", ylabel="plan is off by, %", ylim=(-16, 16))
        errors.minorticks_off()
        errors.set_title("Error of the plan")
        figure.savefig(PICTURE, metadata={"Date": None})
        plt.close(figure)


def write(rows: list[dict[str, Any]]) -> None:
    """The tables of scale.md."""
    page = PAGE.read_text()
    for name, table in (("paper", paper_table()), ("measured", measured_table(rows))):
        begin, end = f"<!-- {name}:begin (docs/memory_points.py) -->\n", f"<!-- {name}:end -->"
        before, _, rest = page.partition(begin)
        page = before + begin + table + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="take every step again")
    if parser.parse_args().measure:
        take()
    stored = json.loads(RECORD.read_text())
    draw(stored)
    write(stored)
