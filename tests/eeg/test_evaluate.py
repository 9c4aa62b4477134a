"""Scores against values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tenfold.eeg import Corpus, folds, normalise_fold
from tenfold.eeg.evaluate import (
    collapse_threshold,
    compactness,
    confusion_matrix,
    evaluate,
    macro_f1,
    margin,
    occlusion,
    proxy_a_distance,
    saliency,
    source_accuracy,
)
from tenfold.eeg.methods import METHODS
from tenfold.eeg.protocols import Fold
from tenfold.eeg.train import Settings, Trained, predict, train


@pytest.fixture(scope="module")
def fold(toy: Callable[..., Corpus]) -> Fold:
    return normalise_fold(folds(toy())[0], "zscore")


@pytest.fixture(scope="module")
def trained(fold: Fold) -> Trained:
    return train(fold, 3, METHODS["ms-mda"], Settings(steps=80, batch=16))


def test_confusion_and_f1() -> None:
    y, said = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 0, 3])
    found = confusion_matrix(y, said, 4)
    assert found.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert macro_f1(found) == pytest.approx((4 / 6 + 2 / 4 + 1) / 3)  # class 2 does not occur


def test_collapse_is_less_than_twice_chance() -> None:
    assert collapse_threshold(11) == pytest.approx(2 / 11)
    assert collapse_threshold(4) == 0.5
    assert collapse_threshold(2) == 0.75  # twice chance would be 1


def test_margin_and_compactness() -> None:
    z = torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 1.0], [3.0, 5.0]])
    y = torch.tensor([0, 0, 2, 2])
    assert margin(z, y, 4) == pytest.approx((9 + 4) ** 0.5)  # centres (0, 1) and (3, 3)
    assert compactness(z, y, 4) == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert margin(z, torch.zeros(4, dtype=torch.int64), 4) == 0.0


def test_proxy_a_distance() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(400, 8), torch.randn(100, 8)
    assert proxy_a_distance(a, b) < 0.4  # one distribution, whatever the sizes
    assert proxy_a_distance(a, b + 6) == 2.0
    assert 0.4 < proxy_a_distance(a, b + 0.8) < 2.0
    with pytest.raises(ValueError, match=r"target: expected at least 5 rows, got 3"):
        proxy_a_distance(a, b[:3])


def test_all_scores(fold: Fold, trained: Trained) -> None:
    scores = evaluate(trained, fold, METHODS["ms-mda"])
    label = predict(trained, fold.target.x)[0].argmax(1)
    assert fold.target.y is not None
    assert scores.accuracy == pytest.approx(float(torch.eq(label, fold.target.y).float().mean()))
    assert sum(map(sum, scores.confusion)) == 36
    assert scores.source_accuracy > 0.9
    assert not scores.collapsed
    assert scores.seconds > 0
    with pytest.raises(ValueError, match=r"person 0: y: expected labels"):
        evaluate(trained, replace(fold, target=fold.target.without_labels()), METHODS["ms-mda"])


def test_each_source_is_scored_through_its_own_branch(fold: Fold, trained: Trained) -> None:
    own = [
        float(torch.eq(trained.network(d.x)[1][j].argmax(1), d.y).double().mean())
        for j, d in enumerate(fold.sources)
    ]
    assert source_accuracy(trained, fold, METHODS["ms-mda"]) == pytest.approx(sum(own) / 3)


def test_a_network_that_learned_nothing_is_collapsed(fold: Fold) -> None:
    untrained = train(fold, 3, METHODS["source-only"], Settings(steps=1, batch=8, lr=1e-9))
    untrained.network.w2.data.zero_()
    assert evaluate(untrained, fold, METHODS["source-only"]).collapsed


def test_saliency_is_the_gradient(fold: Fold, trained: Trained) -> None:
    x = fold.target.x[:5]
    found = saliency(trained, x)
    step, double = 1e-5, trained.network.double()
    again = Trained(double, [], trained.weights.double())
    for column in range(x.shape[1]):
        nudge = torch.zeros(x.shape[1], dtype=torch.float64)
        nudge[column] = step
        label = predict(again, x.double())[0].argmax(1)
        up, down = (predict(again, x.double() + s * nudge)[0].log() for s in (1, -1))
        slope = (up - down)[torch.arange(5), label] / (2 * step)
        assert float(found[column]) == pytest.approx(float(slope.abs().mean()), rel=1e-3)
    trained.network.float()


def test_occlusion(fold: Fold, trained: Trained) -> None:
    x, y = fold.target.x, fold.target.y
    assert y is not None
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    without = x.clone()
    without[:, 2:4] = x[:, 2:4].mean(0)
    whole, less = (float(torch.eq(predict(trained, v)[0].argmax(1), y).double().mean()) for v in (x, without))
    lost = occlusion(trained, x, y, groups)
    assert lost.shape == (3,)
    assert float(lost[1]) == pytest.approx(whole - less)
