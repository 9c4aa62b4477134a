"""metrics.json: the numbers of a run in a form that other programs can rely on.

    {"schema": "tenfold.metrics/1", "name", "config": {...}, "metrics": {flat name: number},
     "environment": {...}, "seconds": wall time, "peak_rss_mib": largest resident memory}

The number after the slash rises when a reader of the old form could misread the new one.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["SCHEMA", "check_document", "check_metrics"]

SCHEMA = "tenfold.metrics/1"

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": str,
    "name": str,
    "config": dict,
    "metrics": dict,
    "environment": dict,
    "seconds": (int, float),
    "peak_rss_mib": (int, float),
}
_FLAT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")


def check_metrics(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """Plain finite numbers under flat names (letters, digits, `_ . / -`).

    NumPy scalars become Python numbers. TypeError for what is no number (None, bool, text, tensors: call
    `.item()`), ValueError for NaN, infinities, malformed names and an empty mapping.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics: expected a mapping of name to number, got {type(metrics).__name__}")
    if not metrics:
        raise ValueError("metrics: expected at least one number, got none")
    return {_check_name(name): _check_number(name, value) for name, value in metrics.items()}


def check_document(document: Any) -> None:
    """Raise ValueError or TypeError unless `document` has the form above."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        got = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"metrics.json: expected schema {SCHEMA!r}, got {got!r}")
    for field, kind in _FIELDS.items():
        if not isinstance(document.get(field), kind):
            raise ValueError(f"metrics.json: expected field {field!r}, got {document.get(field)!r}")
    for field in ("seconds", "peak_rss_mib"):
        _check_number(field, document[field])
    check_metrics(document["metrics"])


def _check_name(name: Any) -> str:
    if not isinstance(name, str) or not _FLAT_NAME.fullmatch(name):
        raise ValueError(f"metrics: expected names of letters, digits, '_', '.', '/' or '-', got {name!r}")
    return name


def _check_number(name: str, value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"metrics[{name!r}]: expected a finite number, got {_shown(value)}")
    if not math.isfinite(value):
        raise ValueError(f"metrics[{name!r}]: expected a finite number, got {float(value)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (bool, str, type(None))) else type(value).__name__
