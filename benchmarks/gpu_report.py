"""What a run of gpu.py found, as Markdown: a page's table, and a short one for the terminal."""

from __future__ import annotations

from typing import Any

SCHEMA = "tenfold.gpu/1"


def checked(result: dict[str, Any]) -> dict[str, Any]:
    """The result itself; ValueError when it is not one of gpu.py."""
    if result.get("schema") != SCHEMA:
        raise ValueError(f"gpu.json: expected schema {SCHEMA!r}, got {result.get('schema')!r}")
    return result


def table(result: dict[str, Any]) -> str:
    """Device, versions, what was checked, floors, and one row for each benchmark."""
    parts = checked(result)["parts"]
    blocks = [_heading(result), *_checks(parts)]
    bench = parts.get("bench")
    if bench and bench["records"]:
        blocks += [_floors(bench["floors"]), _rows(bench["records"])]
        if bench.get("interrupted"):
            blocks.append(f"The benchmarks were interrupted {bench['interrupted']}.")
    return "\n\n".join(blocks)


def _heading(result: dict[str, Any]) -> str:
    device, versions = result["device"], result["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"Measured on {result['date'][:10]} on one {device['name']} ({device['memory']}, compute capability "
        f"{device['compute_capability']}, driver {device['driver']}) with {named}."
    )


def _checks(parts: dict[str, Any]) -> list[str]:
    lines = []
    if "tests" in parts:
        t = parts["tests"]
        ended = " The time was up before the last of them." if t["timed_out"] else ""
        lines.append(
            f"Tests on the GPU: {t['passed']} passed, {t['failed']} failed, {t['skipped']} skipped.{ended}"
        )
    if "sanitizer" in parts:
        s = parts["sanitizer"]
        found = "no result" if s["errors"] is None else f"{s['errors']} errors"
        lines.append(f"compute-sanitizer (memcheck) over {s['calls']} calls, one of every op: {found}.")
    return ["\n".join(f"- {line}" for line in lines)] if lines else []


def _floors(floors: dict[str, Any]) -> str:
    rates = next(iter(floors["rates"].values()))
    products = ", ".join(
        f"{name} {rates[key] / 1e3:.0f}"
        for name, key in (("float32", "fma_gflops"), ("TF32", "tf32_gflops"), ("bfloat16", "bf16_gflops"))
        if rates.get(key)
    )
    generator = rates.get("generator_gnormals")
    drawn = f"; {generator:.0f} billion normals a second" if generator else ""
    return (
        f"Floors measured in the same run: {rates['memory_gbps']:.0f} GB/s read and written; matrix products "
        f"of {products} TFLOP/s{drawn}."
    )


def _time(ms: float) -> str:
    return f"{ms * 1e3:.1f} us" if ms < 1 else f"{ms:.2f} ms"


def _peers(record: dict[str, Any]) -> str:
    ran = [p for p in record["peers"] if p["ms"] is not None]
    return ", ".join(
        f"{p['name']} {p['ms'] / record['ms']:.2f}{'' if p['agrees'] else ' (**disagrees**)'}" for p in ran
    )


def _rows(records: list[dict[str, Any]]) -> str:
    lines = ["| | backend | time | time / floor | others' time / ours |", "|---|---|--:|--:|---|"]
    for record in records:
        if record["ms"] is None:
            lines.append(f"| `{record['id']}` | | did not run: {record['why_missing']} | | |")
            continue
        floor = f"{record['ms'] / record['floor_ms']:.2f}" if record["floor_ms"] else ""
        cells = [f"`{record['id']}`", record["backend"], _time(record["ms"]), floor, _peers(record)]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def summary(result: dict[str, Any]) -> str:
    """One line a part, then what went wrong; for the end of a terminal's output."""
    lines = [f"{result['device']['name']}, {result['date']}"]
    for name, part in checked(result)["parts"].items():
        state = "ok" if part["ok"] else "FAILED"
        lines.append(f"{name:<10} {state:<7} {part['seconds']:6.1f} s  {_note(name, part)}")
    lines += [f"  {test}: {why}" for test, why in result["parts"].get("tests", {}).get("failures", [])[:20]]
    return "\n".join(lines)


def _note(name: str, part: dict[str, Any]) -> str:
    if name == "tests":
        return f"{part['passed']} passed, {part['failed']} failed, {part['skipped']} skipped"
    if name == "sanitizer":
        return f"{part['errors']} errors in {part['calls']} calls"
    if name == "bench":
        return f"{len(part['records'])} records"
    return str(part.get("wheel", ""))
