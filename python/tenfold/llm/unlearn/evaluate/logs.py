"""Logs as open-unlearning writes them: ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json``.

``TOFU_EVAL.json`` maps a metric to ``{"agg_value": number, "value_by_index": {index: {...}}}``;
``TOFU_SUMMARY.json`` maps it to the number. A retain model's log is the reference of forget quality, ours or
theirs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold._reading import parse_json

__all__ = ["EVAL", "SUMMARY", "read_log", "reference_auc", "reference_ratios", "write_logs"]

EVAL = "TOFU_EVAL.json"
SUMMARY = "TOFU_SUMMARY.json"


def write_logs(log: Mapping[str, Mapping[str, Any]], folder: str | Path) -> tuple[Path, Path]:
    """Write both files, each aside and then renamed. Indices become texts, as JSON has no others.

    Raises:
        ValueError: a value that is not finite, which JSON cannot hold.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {name: entry["agg_value"] for name, entry in log.items() if entry.get("agg_value") is not None}
    return _write(folder / EVAL, log), _write(folder / SUMMARY, summary)


def _write(path: Path, content: Any) -> Path:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text + "\n", encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def read_log(path: str | Path) -> dict[str, dict[str, Any]]:
    """A ``TOFU_EVAL.json``: the file, or the folder that it lies in.

    Raises:
        ValueError: no such file, or not of this layout.
    """
    path = Path(path)
    path = path / EVAL if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"reference: expected {EVAL} or its folder, got {str(path)!r}, which is none")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: expected JSON, got {error}") from None
    if not isinstance(content, dict) or not all(
        isinstance(entry, dict) and "agg_value" in entry for entry in content.values()
    ):
        raise ValueError(f"{path.name}: expected an object of metrics with 'agg_value', got another layout")
    return content


def reference_ratios(log: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Truth ratios of the forget set in a log, in the order of their indices.

    Raises:
        ValueError: the log has none.
    """
    entry = log.get("forget_truth_ratio") or log.get("forget_Truth_Ratio")
    values = (entry or {}).get("value_by_index")
    if not values or not isinstance(values, Mapping):
        raise ValueError(
            "reference: expected 'forget_truth_ratio' with 'value_by_index' in the retain model's log, got "
            f"{sorted(log)}"
        )
    try:
        found = [values[index].get("score") for index in sorted(values, key=int) if values[index]]
        ratios = [float(score) for score in found if score is not None]
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"reference: expected indices with scores, got others ({error})") from error
    if not ratios:
        raise ValueError("reference: expected truth ratios in the retain model's log, got none")
    return ratios


def reference_auc(log: Mapping[str, Mapping[str, Any]], attack: str) -> float | None:
    """AUC of a membership attack in a retain model's log; None where it has none."""
    entry = log.get(f"mia_{attack}")
    value = None if entry is None else entry.get("agg_value")
    if isinstance(value, Mapping):
        value = value.get("auc")
    return None if value is None else float(value)
