from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.eeg import Corpus, Domain

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 0])
TRIAL = np.array([1, 1, 2, 2])


def corpus(**changes: Any) -> Corpus:
    domains = tuple(
        Domain(f"subject {s}, session {d}", X + s, Y, TRIAL, str(s), d) for d in (2, 1) for s in (10, 2)
    )
    return Corpus(**{"name": "toy", "domains": domains, "classes": ("a", "b"), **changes})


def test_arrays_become_tensors_that_share_memory() -> None:
    x = X.copy()
    domain = Domain("a", x, Y, TRIAL)
    x[0, 0] = 99
    assert (float(domain.x[0, 0]), domain.x.dtype, len(domain)) == (99, torch.float32, 4)
    assert domain.y is not None
    assert domain.y.dtype == domain.trial.dtype == torch.int64
    assert (domain.subject, domain.session) == ("a", 1)
    assert domain.without_labels().y is None
    assert Domain("a", domain.x, domain.y, domain.trial).x is domain.x


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"x": X.astype(np.float64)}, TypeError, r"a: x: expected dtype float32, got torch\.float64"),
        ({"x": X[0]}, ValueError, r"a: x: expected 2 dimensions, got shape \(3,\)"),
        ({"x": X[:0]}, ValueError, r"a: x: expected at least one row, got \(0, 3\)"),
        ({"x": np.where(X == 7, np.nan, X)}, ValueError, r"a: x: expected finite values, .* in row 2"),
        ({"y": Y[:3]}, ValueError, r"a: y: expected 4 values \(one per row of x\), got 3"),
        ({"y": Y.astype(np.int32)}, TypeError, r"a: y: expected dtype int64, got torch\.int32"),
        ({"trial": None}, TypeError, r"a: trial: expected a torch\.Tensor"),
        ({"trial": TRIAL[:, None]}, ValueError, r"a: trial: expected 1 dimension, got shape \(4, 1\)"),
        ({"name": ""}, TypeError, r"name: expected a name, got str ''"),
        ({"session": 0}, ValueError, r"session: expected an integer in"),
    ],
)
def test_bad_domains(arguments: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        Domain(**{"name": "a", "x": X, "y": Y, "trial": TRIAL, **arguments})


def test_a_corpus_knows_its_parts() -> None:
    made = corpus(channels=("CZ",), bands=("p", "q", "r"))
    assert (made.width, made.subjects, made.sessions) == (3, ("10", "2"), (1, 2))
    assert made["subject 2, session 1"].session == 1
    with pytest.raises(KeyError, match=r"expected one of .*, got 'subject 3'"):
        made["subject 3"]
    assert not made.simulated
    assert corpus(metadata={"simulated": True}).simulated
    assert len(made.with_domains(made.domains[:1])) == 1
    unlabelled = made.with_domains([domain.without_labels() for domain in made.domains])
    assert unlabelled.domains[0].y is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ("a",)}, r"subject 10, session 2: y: expected classes in \[0, 1\), got 1"),
        ({"classes": ("a", "a")}, r"classes: expected every name once, got 'a' more than once"),
        ({"classes": ()}, "domains and classes: expected at least one of each, got none"),
        ({"domains": ()}, "domains and classes: expected at least one of each, got none"),
        (
            {"channels": ("CZ", "PZ"), "bands": ("p",)},
            "channels and bands: expected 3 columns together, got 2",
        ),
        ({"channels": ("CZ", "PZ", "OZ")}, "expected 3 columns together, got 3 channels and 0 bands"),
        ({"domains": [Domain("a", X, Y, TRIAL)] * 2}, "domains: expected every name once, got 'a'"),
        (
            {"domains": [Domain("a", X, Y, TRIAL), Domain("b", X[:, :2], Y, TRIAL)]},
            "b: x: expected 3 columns as in a, got 2",
        ),
        ({"domains": [Domain("a", X, Y - 1, TRIAL)]}, r"a: y: expected classes in \[0, 2\), got -1"),
    ],
)
def test_bad_corpora(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        corpus(**changes)


def test_replacing_checks_again() -> None:
    with pytest.raises(ValueError, match="a: y: expected 4 values"):
        replace(Domain("a", X, Y, TRIAL), y=torch.zeros(3, dtype=torch.int64))
