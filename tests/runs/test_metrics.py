from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tenfold.runs import metrics


def document(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {
        "schema": metrics.SCHEMA,
        "name": "toy",
        "config": {},
        "metrics": {"accuracy": 0.5},
        "environment": {},
        "seconds": 1.5,
        "peak_rss_mib": 100,
    }
    return {**whole, **changes}


def test_numbers_become_plain_numbers() -> None:
    checked = metrics.check_metrics({"a": np.float32(0.5), "b.c": np.int64(3), "d/e": 2, "f-g": 1.0})
    assert checked == {"a": 0.5, "b.c": 3, "d/e": 2, "f-g": 1.0}
    assert {type(value) for value in checked.values()} == {int, float}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match=r"metrics\['loss'\]: expected a finite number, got -?(nan|inf)"):
        metrics.check_metrics({"fine": 1, "loss": value})


@pytest.mark.parametrize("value", [None, True, "0.5", 1j, [1.0], torch.tensor(1.0)])
def test_what_is_no_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(TypeError, match=r"metrics\['loss'\]: expected a finite number, got"):
        metrics.check_metrics({"loss": value})


@pytest.mark.parametrize("name", ["", "with space", "_first", 3])
def test_malformed_names(name: Any) -> None:
    with pytest.raises(ValueError, match="metrics: expected names"):
        metrics.check_metrics({name: 1.0})


def test_nothing_and_nested_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one number"):
        metrics.check_metrics({})
    with pytest.raises(TypeError, match=r"metrics\['test'\]: expected a finite number, got dict"):
        metrics.check_metrics({"test": {"accuracy": 1.0}})
    with pytest.raises(TypeError, match="expected a mapping"):
        metrics.check_metrics([1.0])  # type: ignore[arg-type]


def test_whole_document() -> None:
    metrics.check_document(document())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"schema": "tenfold.metrics/0"}, "expected schema 'tenfold.metrics/1', got 'tenfold.metrics/0'"),
        ({"config": None}, "field 'config'"),
        ({"seconds": "1"}, "field 'seconds'"),
        ({"seconds": float("nan")}, r"metrics\['seconds'\]"),
        ({"metrics": {}}, "at least one number"),
    ],
)
def test_documents_that_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        metrics.check_document(document(**changes))
