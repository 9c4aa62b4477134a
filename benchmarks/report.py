"""The result as Markdown and as plots. The JSON is the record itself; everything here is made from it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .clocks import CLOCKS
from .harness import Plan

SCHEMA = "tenfold.bench/1"


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(plan: Plan) -> dict[str, Any]:
    """What a reader needs to judge the figures; names no host and no path."""
    import tenfold

    found: dict[str, Any] = {
        "tenfold": str(getattr(tenfold, "__version__", "unknown")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": plan.threads,
        "device": str(plan.device),
        "clock": plan.clock,
        "ms_is": f"median of the samples; {CLOCKS[plan.clock]}",
        "backend_forced": os.environ.get("TENFOLD_BACKEND"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if hasattr(os, "getloadavg"):
        found["load_average_at_start"] = os.getloadavg()[0]
    if plan.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(plan.device)
        found["cuda"] = torch.version.cuda
    return found


def write_text(path: Path, text: str) -> None:
    """Writes aside, then renames, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def to_json(result: dict[str, Any]) -> str:
    """Strict JSON (no NaN, no infinity)."""
    return json.dumps(result, indent=1, allow_nan=False) + "\n"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _memory(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _peer_cells(peer: dict[str, Any]) -> list[str]:
    if peer["ms"] is None:
        return [peer["name"], f"missing: {peer['why_missing']}", "", "", ""]
    times = peer.get("times_ours")
    agrees = "yes" if peer["agrees"] else "**no**"
    return [
        peer["name"],
        f"{times:.2f}x" if times else "",
        agrees,
        _number(peer["max_error"], 2),
        _memory(peer["peak_extra_mib"]),
    ]


def markdown(result: dict[str, Any]) -> str:
    """A table of ratios, one row per peer. Absolute times are printed only for a named GPU."""
    env = result["environment"]
    absolute = "gpu" in env
    where = env.get("gpu", env["cpu"])
    lines = [
        f"Tenfold {env['tenfold']}, torch {env['torch']}, {where}, threads: {env['threads']}.",
        f"Times: {env['ms_is']}.",
        "",
    ]
    head = [
        "id",
        "backend",
        "time / floor",
        "extra MiB",
        "peer",
        "peer time / ours",
        "agrees",
        "max error",
        "peer MiB",
    ]
    if absolute:
        head.insert(2, "ms")
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for record in result["records"]:
        lines += _rows(record, absolute)
    lines += ["", *_floor_lines(result["floors"])]
    return "\n".join(lines) + "\n"


def _rows(record: dict[str, Any], absolute: bool) -> list[str]:
    ratio = ""
    if record["ms"] is None:
        ratio = f"missing: {record['why_missing']}"
    elif record["floor_ms"]:
        ratio = f"{record['ms'] / record['floor_ms']:.2f}"
    first = [f"`{record['id']}`", record["backend"], ratio, _memory(record["peak_extra_mib"])]
    if absolute:
        first.insert(2, _number(record["ms"], 4))
    rows = []
    for i, peer in enumerate(record["peers"] or [None]):
        left = first if i == 0 else [""] * len(first)
        right = _peer_cells(peer) if peer else [""] * 5
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in [*left, *right]) + " |")
    return rows


def _floor_lines(floors: dict[str, Any]) -> list[str]:
    lines = ["Floors measured in this run:", ""]
    for threads, rates in floors.get("rates", {}).items():
        generator = rates.get("generator_gnormals")
        made = f"{generator:.2f} G normals/s" if generator else "generator not measured"
        lines.append(
            f"- {threads} thread(s): copy {rates['copy_gbps']:.1f} GB/s, "
            f"in place {rates['inplace_gbps']:.1f} GB/s, "
            f"f32 multiply-add {rates['fma_gflops']:.0f} GFLOP/s ({rates['fma_by']}), "
            f"{_products(rates)}{made}"
        )
    return lines


def _products(rates: dict[str, Any]) -> str:
    if "bf16_gflops" not in rates:
        return ""
    return f"TF32 {rates['tf32_gflops']:.0f}, bfloat16 {rates['bf16_gflops']:.0f} GFLOP/s, "


def _curves(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    curves: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("sweep") and record["ms"] is not None:
            curves.setdefault(record["sweep"]["curve"], []).append(record)
    return curves


def plot(result: dict[str, Any], folder: Path) -> list[Path]:
    """One plot of time against size per sweep, with the floor, as SVG and PNG; [] when nothing was swept.

    Raises ImportError when matplotlib is not installed.
    """
    curves = _curves(result["records"])
    if not curves:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    env = result["environment"]
    written = []
    for name, records in curves.items():
        records = sorted(records, key=lambda r: r["sweep"]["elements"])
        fig, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        _draw_curves(ax, records)
        ax.set(xscale="log", yscale="log", xlabel="elements", ylabel="ms", title=name)
        ax.grid(True, which="major", alpha=0.3)
        ax.legend(frameon=False)
        fig.text(
            0.01,
            0.005,
            f"{env.get('gpu', env['cpu'])}, {env['threads']} thread(s), {env['clock']}",
            fontsize=6,
        )
        for suffix in (".svg", ".png"):
            path = folder / f"{name}{suffix}"
            fig.savefig(path, dpi=160)
            written.append(path)
        plt.close(fig)
    return written


def _draw_curves(ax: Any, records: Sequence[dict[str, Any]]) -> None:
    sizes = [r["sweep"]["elements"] for r in records]
    quartiles = [r["ms_quartiles"] for r in records]
    ax.plot(sizes, [r["ms"] for r in records], "o-", lw=2, label="tenfold", zorder=3)
    ax.fill_between(sizes, [q[0] for q in quartiles], [q[1] for q in quartiles], alpha=0.25)
    for peer_name in dict.fromkeys(p["name"] for r in records for p in r["peers"]):
        points = [
            (r["sweep"]["elements"], p["ms"])
            for r in records
            for p in r["peers"]
            if p["name"] == peer_name and p["ms"] is not None
        ]
        if points:
            ax.plot(*zip(*points, strict=True), "s--", ms=4, lw=1, label=peer_name)
    if all(r["floor_ms"] for r in records):
        ax.plot(sizes, [r["floor_ms"] for r in records], "k:", label="floor of this machine")
