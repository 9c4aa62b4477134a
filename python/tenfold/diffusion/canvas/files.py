"""Results as files: lines of JSON, a matrix, tables in the paper's order, and the published `.pth`
results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold import _checks
from tenfold._npy import array_names, read_npz
from tenfold._reading import out_of_memory
from tenfold.diffusion.attack.asr import Rate
from tenfold.diffusion.canvas.judging import Predictions
from tenfold.diffusion.canvas.keys import Key
from tenfold.diffusion.canvas.scores import ConceptTable, Costs, Score, Summary, score_matrix
from tenfold.diffusion.canvas.vocabulary import Canvas
from tenfold.runs.files import read_json, replacing, save_torch, write_json, write_text

__all__ = [
    "COLUMNS",
    "read_answers_json",
    "read_matrix",
    "read_published_result",
    "read_results",
    "reference_results",
    "table_rows",
    "write_answers_json",
    "write_matrix",
    "write_published_result",
    "write_results",
    "write_table",
]

COLUMNS = (
    *("style_ua", "style_ira", "style_cra", "object_ua", "object_ira", "object_cra"),
    *("fid", "seconds", "memory_gb", "storage_gb"),
)
"""Of the paper's table: accuracies in percent, seconds, and 10^9 bytes."""
_HEADS = (
    *("Style UA", "IRA", "CRA", "Object UA", "IRA", "CRA"),
    *("FID", "Time (s)", "Memory (GB)", "Storage (GB)"),
)
_FORMATS = {".csv": "csv", ".md": "markdown", ".tex": "latex"}


def write_results(path: str | Path, scores: Sequence[Score]) -> None:
    """`results.jsonl`: one line for each score; shares in 0..1, intervals as [low, high]."""
    lines = [json.dumps(_plain(one), ensure_ascii=False, allow_nan=False) for one in scores]
    write_text(Path(path), "".join(f"{line}\n" for line in lines))


def _plain(one: Score) -> dict[str, Any]:
    data = asdict(one)
    data["ua"] = {"successes": one.ua.successes, "n": one.ua.n}
    data["UA"], data["UA_interval"] = one.ua.value, list(one.ua.interval)
    return data


def read_results(path: str | Path) -> list[Score]:
    """What `write_results` wrote.

    Raises:
        ValueError: a line is no score (it is named).
    """
    found = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            data = json.loads(line.decode("utf-8"))
            data = {k: v for k, v in data.items() if k not in ("UA", "UA_interval")}
            for name in ("ira_interval", "cra_interval"):
                data[name] = tuple(data[name])
            data["ua"] = Rate(**data["ua"])
            data["costs"] = Costs(**data["costs"]) if data["costs"] else None
            found.append(_checked(Score(**data)))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:  # noqa: PERF203
            raise ValueError(
                f"{path}, line {number}: expected a score, got another line ({error})"
            ) from error
    return found


def _checked(one: Score) -> Score:
    """A score as `score` makes them.

    Raises:
        ValueError, TypeError, KeyError: names or numbers that are none.
    """
    for name in ("method", "target"):
        if not isinstance(getattr(one, name), str):
            _checks.fail(TypeError, name, "a name", _checks.describe(getattr(one, name)))
    _checks.choice("domain", one.domain, ("style", "object"))
    if one.target not in getattr(one, one.domain):
        _checks.fail(ValueError, "target", f"one of the {one.domain}s", repr(one.target))
    _checks.integer("ua: n", one.ua.n, 1, 2**62)
    _checks.integer("ua: successes", one.ua.successes, 0, one.ua.n)
    shares = {"ira": one.ira, "cra": one.cra, "chance": one.chance, **one.style, **one.object}
    for name, value in shares.items():
        if not 0 <= _checks.real(name, value) <= 1:
            _checks.fail(ValueError, name, "a share in [0, 1]", value)
    if one.fid is not None:
        _checks.real(str(one.fid["name"]), one.fid["value"])
    return one


def write_answers_json(path: str | Path, predictions: Predictions) -> None:
    """`answers.json`: the prompt's style, object and seed of each picture, both judges' log-probabilities;
    `read_answers_json` gives the same numbers."""
    value = {
        "schema": "tenfold.judged/1",
        "method": predictions.method,
        "target": predictions.target,
        "canvas": predictions.canvas.to_plain(),
        "judges": list(predictions.judges),
        "style_classes": list(predictions.style_classes),
        "object_classes": list(predictions.object_classes),
        "answers": [
            {"style": k.style, "object": k.object, "seed": k.seed, "style_log": s.tolist(),
             "object_log": o.tolist()}
            for k, s, o in zip(predictions.keys, predictions.style_log, predictions.object_log, strict=True)
        ],
    }  # fmt: skip
    write_json(Path(path), value)


def read_answers_json(path: str | Path) -> Predictions:
    """What `write_answers_json` wrote; judges' cards are not kept.

    Raises:
        ValueError: it is another file.
    """
    data = read_json(Path(path))
    if not isinstance(data, dict) or data.get("schema") != "tenfold.judged/1":
        _checks.fail(ValueError, str(path), "judged answers (tenfold.judged/1)", str(data)[:60])
    try:
        return _predictions(data)
    except KeyError as error:
        raise ValueError(f"{path}: expected judged answers, got some without {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: expected judged answers, got others ({error!r})"[:300]) from error


def _predictions(data: dict[str, Any]) -> Predictions:
    canvas, rows = Canvas(**data["canvas"]), data["answers"]
    logs = [np.array([row[name] for row in rows], np.float64) for name in ("style_log", "object_log")]
    keys = tuple(
        Key(canvas.style(r["style"]), canvas.object(r["object"]),
            _checks.integer("seed", r["seed"], 0, 2**32 - 1))
        for r in rows
    )  # fmt: skip
    if not keys or len(set(keys)) != len(keys):
        _checks.fail(ValueError, "answers", "at least one, each picture once", f"{len(keys)}")
    return Predictions(
        canvas, keys, tuple(data["style_classes"]), tuple(data["object_classes"]), logs[0], logs[1],
        data["method"], data["target"], (data["judges"][0], data["judges"][1]),
    )  # fmt: skip


def write_matrix(path: str | Path, scores: Sequence[Score]) -> None:
    """`matrix.npz`: `shares` float64 [targets, concepts], with their names as `targets` and `concepts`, and
    `methods`. No pickles."""
    targets, concepts, shares = score_matrix(scores)
    with replacing(Path(path)) as aside, aside.open("wb") as file:
        np.savez_compressed(
            file, shares=shares, targets=np.array(targets), concepts=np.array(concepts),
            methods=np.array([one.method for one in scores]),
        )  # fmt: skip


def read_matrix(path: str | Path) -> dict[str, Any]:
    """{"shares", "targets", "concepts", "methods"}; ValueError: it is another file."""
    names = ("shares", "targets", "concepts", "methods")
    held = read_npz(Path(path), names)
    for name in names:
        if name not in held:
            _checks.fail(ValueError, str(path), f"an array {name}", ", ".join(array_names(path)))
    return {name: held[name] for name in names}


def table_rows(summaries: Sequence[Summary]) -> dict[str, dict[str, float | None]]:
    """method -> `COLUMNS`; None where a run has no such number. A method's style and object rows are one:
    FID and time are means over the targets of both, memory is the most.

    Raises:
        ValueError: a method's domain twice, or FIDs of different names.
    """
    by_method: dict[str, dict[str, Summary]] = {}
    for one in summaries:
        held = by_method.setdefault(one.method, {})
        if one.domain in held:
            _checks.fail(ValueError, "summaries", f"one {one.domain} row of {one.method!r}", "two")
        held[one.domain] = one
    names = {one.fid["name"] for one in summaries if one.fid is not None}
    if len(names) > 1:
        _checks.fail(ValueError, "summaries", "FIDs of one name", sorted(names))
    return {method: _row(held) for method, held in by_method.items()}


def _row(held: dict[str, Summary]) -> dict[str, float | None]:
    row: dict[str, float | None] = dict.fromkeys(COLUMNS)
    for domain, one in held.items():
        for name in ("ua", "ira", "cra"):
            row[f"{domain}_{name}"] = 100 * float(getattr(one, name))
    total = sum(one.n for one in held.values())
    if all(one.fid is not None for one in held.values()):
        row["fid"] = sum(one.n * one.fid["value"] for one in held.values() if one.fid) / total
    costs = [(one.n, one.costs) for one in held.values() if one.costs is not None]
    if len(costs) == len(held):
        row["seconds"] = sum(n * c.seconds for n, c in costs) / total
        row["memory_gb"] = max(c.peak_bytes for _, c in costs) / 1e9
        row["storage_gb"] = sum(n * c.storage_bytes for n, c in costs) / total / 1e9
    return row


def write_table(path: str | Path, summaries: Sequence[Summary], *, fid: str | None = None) -> None:
    """The table in the paper's column order: .csv (`COLUMNS`), .md or .tex, by the path's ending.

    fid: what the FID column is called; the name that the summaries' FIDs have if None.

    Raises:
        ValueError: another ending; see `table_rows`.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        _checks.fail(ValueError, "path", " or ".join(_FORMATS), path.name)
    rows = table_rows(summaries)
    name = fid or next((one.fid["name"] for one in summaries if one.fid is not None), "FID")
    kind = _FORMATS[path.suffix]
    write_text(path, _csv(rows) if kind == "csv" else _shown(rows, name, latex=kind == "latex"))


def _csv(rows: dict[str, dict[str, float | None]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("method", *COLUMNS))
    for method, row in rows.items():
        writer.writerow((method, *("" if row[c] is None else repr(row[c]) for c in COLUMNS)))
    return out.getvalue()


def _shown(rows: dict[str, dict[str, float | None]], fid: str, *, latex: bool) -> str:
    heads = ["Method", *(fid if head == "FID" else head for head in _HEADS)]
    cells = [[method, *(_number(column, row[column]) for column in COLUMNS)] for method, row in rows.items()]
    if not latex:
        heads, *cells = [[cell.replace("|", "\\|") for cell in line] for line in (heads, *cells)]
        lines = [heads, ["---", *["---:"] * len(COLUMNS)], *cells]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    body = "".join(f"{' & '.join(map(_escaped, line))} \\\\\n" for line in cells)
    head = f"{' & '.join(map(_escaped, heads))} \\\\\n"
    return (
        f"\\begin{{tabular}}{{l*{{{len(COLUMNS)}}}{{r}}}}\n\\hline\n{head}\\hline\n{body}"
        "\\hline\n\\end{tabular}\n"
    )


def _number(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if column == "seconds" else f"{value:.2f}"


def _escaped(text: str) -> str:
    words = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    return "".join(words.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def reference_results() -> dict[str, dict[str, Any]]:
    """The published table (Zhang et al., arXiv 2402.11846) and rows that others reported later: method ->
    `COLUMNS` (None where not reported) and "source". Its FID is not the usual one (another network, another
    resizing): compare it with nothing else."""
    text = Path(__file__).with_name("reference_results.csv").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(text.splitlines()):
        numbers = {c: float(row[c]) if row[c] else None for c in COLUMNS}
        found[row["method"]] = {**numbers, "source": row["source"]}
    return found


def read_published_result(path: str | Path, canvas: Canvas, domain: str) -> ConceptTable:
    """Counts of a judge's published result file, `{Target}.pth`. It is read without running code in it.

    Raises:
        ValueError: it is no such file; names are missing; its accuracies do not follow from its counts.
    """
    names = canvas.names(domain)
    try:
        data = torch.load(Path(path), map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # broken and hostile pickles raise what their bytes happen to lead to
        if out_of_memory(error):
            raise
        raise ValueError(f"{path}: expected a result file, got one that cannot be read ({error})") from error
    keys = ("loss", "acc", "pred_loss", "misclassified")
    if not isinstance(data, dict) or any(not isinstance(data.get(key), dict) for key in keys):
        _checks.fail(ValueError, str(path), f"a dictionary with {', '.join(keys)}", type(data).__name__)
    missing = [n for n in names if any(n not in data[key] for key in keys)]
    if missing:
        _checks.fail(
            ValueError, str(path), f"all {len(names)} {domain}s", f"none of {', '.join(missing[:4])}"
        )
    try:
        return _published_table(path, data, names, domain)
    except (TypeError, AttributeError, RuntimeError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: expected counts and numbers, got others ({error})") from error


def _published_table(
    path: str | Path, data: dict[str, Any], names: tuple[str, ...], domain: str
) -> ConceptTable:
    counts = data["misclassified"]
    seen = [c for name in names for c in counts[name]]
    classes = (*names, *dict.fromkeys(c for c in seen if c not in names))
    confusion = np.zeros((len(names), len(classes)), np.int64)
    for i, name in enumerate(names):
        for label, count in counts[name].items():
            exact = float(count)
            if not exact.is_integer() or exact < 0:
                _checks.fail(ValueError, f"{path}: {name}", "counts of pictures", f"{exact:g} of {label}")
            confusion[i, classes.index(label)] = int(exact)
    numbers = {
        key: np.array([_checks.real(f"{path}: {key} of {n}", float(data[key][n])) for n in names])
        for key in ("pred_loss", "loss", "acc")
    }
    table = ConceptTable(domain, names, classes, confusion, numbers["pred_loss"], numbers["loss"])
    for name, share, said in zip(names, table.shares, numbers["acc"], strict=True):
        if abs(said - share) > 1e-5:
            got = f"{said:.6f} for {name}"
            _checks.fail(ValueError, str(path), f"accuracies of its counts ({share:.6f})", got)
    return table


def write_published_result(
    path: str | Path, table: ConceptTable, *, target: str = "", input_dir: str = ""
) -> None:
    """A result file in the published layout: test_theme, input_dir, loss, acc, pred_loss (which is the sum of
    the true class' probabilities, whatever its name), misclassified (which counts right ones too)."""
    value = {
        "test_theme": target,
        "input_dir": input_dir,
        "loss": {
            n: torch.tensor(float(v), dtype=torch.float64)
            for n, v in zip(table.names, table.loss, strict=True)
        },
        "acc": {
            n: torch.tensor(float(v), dtype=torch.float64)
            for n, v in zip(table.names, table.shares, strict=True)
        },
        "pred_loss": {
            n: torch.tensor(float(v), dtype=torch.float64)
            for n, v in zip(table.names, table.chance, strict=True)
        },
        "misclassified": {
            n: {c: int(v) for c, v in zip(table.classes, row, strict=True)}
            for n, row in zip(table.names, table.confusion, strict=True)
        },
    }
    with replacing(Path(path)) as aside:
        save_torch(value, aside)
