"""The page of a run for who was not there: what was run, what came out, what it means beside the paper."""

from __future__ import annotations

import base64
import csv
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenfold._reading import reading
from tenfold.runs import metrics as metrics_file
from tenfold.runs.figures import dark_svg
from tenfold.runs.files import read_json, write_text
from tenfold.runs.progress import duration

__all__ = ["SCHEMA", "Claim", "Headline", "Report", "Section", "command", "picture", "render", "to_json"]

SCHEMA = "tenfold.report/1"

_COMMANDS = {
    "segrap-rank": "tenfold segrap rank",
    "segrap-evaluate": "tenfold segrap evaluate",
}
"""Runs that are no workflow's."""
_ROWS_SHOWN = 40
_LARGEST_SVG = 1_500_000  # bytes; a scatter of a million points is shown as its PNG


@dataclass
class Headline:
    """One number worth a tile: `value` as it should be read ("77.0 %"), `note` what to hold it against."""

    label: str
    value: str | float
    note: str = ""


@dataclass
class Section:
    """A part of the page. Its figures stand first, then the text, then its tables.

    `body` is plain text: blank lines part paragraphs, lines that begin with "- " make a list, `code` and
    **bold** are understood, everything else is shown as it is. `figures` and `tables` are names given to
    `RunFolder.write_figure` and `write_table`.
    """

    title: str
    body: str = ""
    figures: Sequence[str] = ()
    tables: Sequence[str] = ()


@dataclass
class Claim:
    """A sentence or number of the paper, what this run found, and where the paper's figure is from."""

    paper_says: str
    this_run: str
    source: str


@dataclass
class Report:
    """The page. `lead` is one paragraph: what was run on what, and the result in words.

    `measured` says how the numbers came about (text as in `Section.body`); wall time, memory, processor,
    threads and seed are added to it.
    """

    title: str
    lead: str
    headlines: Sequence[Headline] = ()
    sections: Sequence[Section] = ()
    claims: Sequence[Claim] = ()
    measured: str = ""
    figures: dict[str, dict[str, str]] = field(default_factory=dict)
    """Filled by `RunFolder.finish`: name -> caption and alt text."""


def to_json(report: Report) -> dict[str, Any]:
    """The stored form, from which `render` makes the page again."""
    return {"schema": SCHEMA, **asdict(report)}


def render(folder: Path) -> Path:
    """Write report.html from what `folder` holds: report.json, metrics.json, config.yaml, figures and tables.

    FileNotFoundError names what is missing; ValueError a file of another schema.
    """
    folder = Path(folder)
    page = read_json(_present(folder / "report.json"))
    schema = page.get("schema") if isinstance(page, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{folder / 'report.json'}: expected schema {SCHEMA!r}, got {schema!r}")
    document = read_json(_present(folder / "metrics.json"))
    with reading(folder / "metrics.json", "the numbers of a run"):
        metrics_file.check_document(document)
    with reading(folder, "a run with its report"):
        return write_page(folder, page, document)


def write_page(folder: Path, page: dict[str, Any], document: dict[str, Any]) -> Path:
    """Fill the template; `page` as `to_json` gives it, `document` as metrics.json."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("tenfold.runs", "template"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters.update(number=show_number, blocks=blocks, inline=inline, duration=duration)
    config = folder / "config.yaml"
    html = templates.get_template("report.html.j2").render(
        page=page,
        run=document,
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        sections=[_section(folder, page, section) for section in page["sections"]],
        facts=_facts(document),
        command=command(document["name"]),
    )
    write_text(folder / "report.html", html)
    return folder / "report.html"


def command(name: str) -> str:
    """What makes a run of this name."""
    return _COMMANDS.get(name, f"tenfold run {name}")


def show_number(value: Any) -> str:
    """Numbers with four significant digits and commas between thousands; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Text -> [("p", [paragraph]) or ("ul", [items])]."""
    found: list[tuple[str, list[str]]] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if lines and all(line.startswith("- ") for line in lines):
            found.append(("ul", [line[2:] for line in lines]))
        elif lines:
            found.append(("p", [" ".join(lines)]))
    return found


def inline(text: str) -> Any:
    """Escaped text with `code` and **bold** marked up."""
    from markupsafe import Markup, escape

    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe))


def _section(folder: Path, page: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    pictures = [{**page["figures"][name], **picture(folder / "figures", name)} for name in section["figures"]]
    return {**section, "figures": pictures, "tables": [_table(folder, name) for name in section["tables"]]}


def picture(figures: Path, name: str) -> dict[str, str]:
    """Data URIs of a figure for light and dark pages; `dark` is empty where there is only the PNG."""
    svg = _present(figures / f"{name}.svg")
    if svg.stat().st_size > _LARGEST_SVG:
        return {"light": _data_uri("image/png", (figures / f"{name}.png").read_bytes()), "dark": ""}
    text = svg.read_text(encoding="utf-8")
    return {
        "light": _data_uri("image/svg+xml", text.encode()),
        "dark": _data_uri("image/svg+xml", dark_svg(text).encode()),
    }


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _table(folder: Path, name: str) -> dict[str, Any]:
    with _present(folder / "tables" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    shown = [[_cell(text) for text in row] for row in rows[:_ROWS_SHOWN]]
    return {"name": name, "head": head, "rows": shown, "count": len(rows), "left_out": len(rows) - len(shown)}


def _cell(text: str) -> dict[str, Any]:
    """A table cell; numbers are set to the right and shortened to four digits."""
    try:
        value = float(text)
    except ValueError:
        return {"text": text, "number": False}
    whole = re.fullmatch(r"[+-]?\d+", text)
    return {"text": show_number(int(text) if whole else value), "number": True}


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What every page says about how its numbers were measured."""
    environment = document["environment"]
    cpu, threads = environment.get("cpu", {}), environment.get("threads", {})
    facts = [
        ("Wall time", duration(document["seconds"])),
        ("Peak memory of the process", f"{show_number(round(document['peak_rss_mib']))} MiB"),
        ("Processor", f"{cpu.get('model', 'unknown')}, {cpu.get('usable', '?')} cores usable"),
        ("Threads", str(threads.get("torch", "unknown"))),
    ]
    facts += [("GPU", f"{gpu['name']}, {gpu['memory_gib']} GiB") for gpu in environment.get("gpu", [])]
    seed = environment.get("seed")
    if isinstance(seed, list):
        facts.append(("Seeds", ", ".join(map(str, seed))))
    elif seed is not None:
        facts.append(("Seed", str(seed)))
    return facts


def _present(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected the file of a finished run, got nothing")
    return path
