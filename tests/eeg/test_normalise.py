from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold.eeg import Domain, Fold
from tenfold.eeg.normalise import NORMALISATIONS, is_transductive, normalise, normalise_fold

X = torch.tensor([[1.0, 5.0, -2.0], [3.0, 5.0, 0.0], [2.0, 5.0, 6.0]])


def test_values() -> None:
    root = 1.5**0.5
    zscore = normalise(X, "zscore")
    assert torch.allclose(zscore[:, :2], torch.tensor([[-root, 0], [root, 0], [0, 0]]))
    assert torch.allclose(zscore[:, 2], torch.from_numpy((X[:, 2].numpy() - 4 / 3) / X[:, 2].numpy().std()))
    assert torch.allclose(normalise(X, "minmax"), torch.tensor([[0, 0, 0], [1, 0, 0.25], [0.5, 0, 1.0]]))
    assert torch.allclose(normalise(X, "sample")[0], torch.tensor([3 / 7, 1, 0]))
    assert torch.allclose(normalise(X, "global"), (X + 2) / 8)
    assert normalise(X, "none") is X


@pytest.mark.parametrize("kind", ["zscore", "minmax", "sample", "global"])
def test_a_constant_is_zero(kind: str) -> None:
    assert normalise(torch.full((4, 3), 0.1), kind).tolist() == [[0.0] * 3] * 4


@pytest.mark.parametrize("kind", ["zscore", "minmax"])
def test_a_column_that_is_constant_up_to_rounding_is_zero(kind: str) -> None:
    """Float32 neighbours of 1000: their spread is rounding, no signal; ten times as much is one."""
    steps = torch.tensor([0, 2**-14, 0])[:, None]
    assert normalise(1000 + steps, kind).abs().max() == 0
    assert normalise(1000 + 10 * steps, kind).abs().max() >= 1


@pytest.mark.parametrize("kind", ["zscore", "minmax", "global"])
def test_far_from_zero_nothing_is_lost(kind: str) -> None:
    x = torch.randn(50, 4, dtype=torch.float64) + 1e6
    assert torch.allclose(normalise(x, kind), normalise(x - 1e6, kind), atol=1e-8)


def fold() -> Fold:
    rng = np.random.default_rng(0)

    def domain(name: str, shift: float) -> Domain:
        x = (rng.standard_normal((20, 3)) * (1 + shift) + shift).astype(np.float32)
        return Domain(name, x, np.arange(20) % 2, np.arange(20))

    return Fold("c", (domain("a", 0.0), domain("b", 4.0)), domain("c", 9.0))


def test_each_domain_is_scaled_by_itself() -> None:
    scaled = normalise_fold(fold(), "zscore")
    for domain in (*scaled.sources, scaled.target):
        assert torch.allclose(domain.x.mean(0), torch.zeros(3), atol=1e-6)
        assert torch.allclose(domain.x.std(0, correction=0), torch.ones(3), atol=1e-6)
    assert (scaled.name, scaled.target.name, len(scaled.sources)) == ("c", "c", 2)


def test_source_statistics_do_not_see_the_target() -> None:
    given = fold()
    scaled = normalise_fold(given, "source")
    pooled = torch.cat([d.x for d in scaled.sources])
    assert torch.allclose(pooled.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(pooled.std(0, correction=0), torch.ones(3), atol=1e-6)
    raw = torch.cat([d.x for d in given.sources])
    expected = (given.target.x - raw.mean(0)) / raw.std(0, correction=0)
    assert torch.allclose(scaled.target.x, expected, atol=1e-5)
    alone = normalise_fold(Fold("c", given.sources, given.sources[0]), "source")
    assert torch.equal(alone.sources[0].x, scaled.sources[0].x)


def test_what_is_transductive_is_said() -> None:
    assert [kind for kind in NORMALISATIONS if is_transductive(kind)] == ["zscore", "minmax", "global"]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"kind: expected one of 'zscore', .*, got 'source'"):
        normalise(X, "source")
    with pytest.raises(ValueError, match=r"x: expected \[n, d\] with n, d >= 1, got shape \(0, 3\)"):
        normalise(X[:0], "zscore")
    with pytest.raises(TypeError, match=r"x: expected dtype float32 or float64, got torch.int64"):
        normalise(X.long(), "zscore")
    with pytest.raises(ValueError, match=r"kind: expected one of"):
        normalise_fold(fold(), "ele")
