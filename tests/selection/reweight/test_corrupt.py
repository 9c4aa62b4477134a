"""Noise, long tails, coresets and their parts."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold.selection.reweight import (
    class_counts,
    long_tail,
    moderate_coreset,
    noisy_labels,
    purity,
    random_coreset,
    split_meta,
)
from tenfold.selection.reweight.coreset import Split, coreset_size, meta_count
from tenfold.selection.reweight.corrupt import CIFAR10_PAIRS


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_symmetric_noise_counts_the_right_class_among_all() -> None:
    y = rng().integers(0, 10, 40_000)
    noisy = noisy_labels(y, "symmetric", 0.4, 10, rng(1))
    assert (noisy != y).mean() == pytest.approx(0.4 * 0.9, abs=0.01)
    wrong = noisy[noisy != y]
    assert np.bincount(wrong, minlength=10) / len(wrong) == pytest.approx(np.full(10, 0.1), abs=0.01)
    assert noisy.dtype == np.int64
    assert (y == rng().integers(0, 10, 40_000)).all()


@pytest.mark.parametrize(("kind", "targets"), [("flip", 1), ("flip2", 2)])
def test_flips_go_to_as_many_other_classes(kind: str, targets: int) -> None:
    y = rng().integers(0, 10, 20_000)
    noisy = noisy_labels(y, kind, 0.3, 10, rng(1))
    assert (noisy != y).mean() == pytest.approx(0.3, abs=0.01)
    for c in range(10):
        assert len(np.unique(noisy[(y == c) & (noisy != y)])) == targets


def test_asymmetric_noise_follows_its_pairs() -> None:
    y = np.repeat(np.arange(10), 500)
    noisy = noisy_labels(y, "asymmetric", 0.4, 10, rng(), CIFAR10_PAIRS)
    for c in range(10):
        got = set(noisy[y == c].tolist())
        assert got == {c, CIFAR10_PAIRS[c]} if c in CIFAR10_PAIRS else got == {c}
    assert set(noisy_labels(y, "asymmetric", 0.4, 10, rng())[y == 9].tolist()) == {9, 0}


def test_nothing_is_drawn_anew_at_rate_0() -> None:
    y = rng().integers(0, 5, 100)
    assert (noisy_labels(y, "symmetric", 0.0, 5, rng()) == y).all()


def test_long_tail_of_cifar() -> None:
    """The numbers of each class that the literature has for CIFAR-10 at factor 100."""
    assert class_counts(5000, 100, 10).tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    y = rng().permutation(np.repeat(np.arange(10), 50))
    rows = long_tail(y, 10, 10, rng())
    assert np.bincount(y[rows]).tolist() == class_counts(50, 10, 10).tolist()
    assert (np.diff(rows) > 0).all()
    assert len(long_tail(y, 1, 10, rng())) == 500


def test_what_noise_refuses() -> None:
    y = np.array([0, 1, 2])
    for call, error, message in (
        (lambda: noisy_labels(y, "gauss", 0.1, 3, rng()), ValueError, "kind: expected one of"),
        (lambda: noisy_labels(y, "symmetric", 1.0, 3, rng()), ValueError, "rate: expected a finite number"),
        (
            lambda: noisy_labels(y, "symmetric", 0.1, 2, rng()),
            ValueError,
            "classes in 0..1, got 2",
        ),
        (lambda: noisy_labels(y * 1.5, "symmetric", 0.1, 3, rng()), TypeError, "labels: expected whole"),
        (
            lambda: noisy_labels(y[:2], "flip2", 0.1, 2, rng()),
            ValueError,
            "num_classes: expected more",
        ),
        (lambda: long_tail(y, 0.5, 3, rng()), ValueError, "factor: expected"),
        (lambda: coreset_size(0.0, 10), ValueError, "ratio: expected"),
        (lambda: coreset_size(1.5, 10), ValueError, r"ratio: expected a share in \(0, 1\], got 1.5"),
    ):
        with pytest.raises(error, match=message):
            call()


def by_hand(x: np.ndarray, y: np.ndarray, q: int) -> list[int]:
    chosen = []
    for c in np.unique(y):
        at = np.flatnonzero(y == c)
        d = np.linalg.norm(x[at] - np.median(x[at], 0), axis=1)
        take = min(q, len(at))
        low = (len(at) - take) // 2
        chosen += at[np.argsort(d, kind="stable")[low : low + take]].tolist()
    return sorted(chosen)


def test_moderate_coreset_is_the_middle_of_each_class() -> None:
    x, y = rng().normal(size=(300, 8)), rng(1).integers(0, 4, 300)
    assert moderate_coreset(x, y, 43, 4).tolist() == by_hand(x.astype(np.float32), y, 10)
    assert len(moderate_coreset(x, y, 3, 4)) == 3  # fewer than classes: of all rows at once
    small = np.concatenate([np.zeros(5, int), np.ones(50, int)])
    found = moderate_coreset(x[:55], small, 40, 2)
    assert np.bincount(small[found]).tolist() == [5, 20]


def test_moderate_coreset_of_the_digits() -> None:
    """Ten of each class, raw pixels: sums that an independent implementation gave."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    found = moderate_coreset(digits.data, digits.target, 100, 10)
    assert found.sum() == 85300
    assert found[:10].tolist() == [43, 49, 52, 66, 70, 100, 113, 120, 122, 164]


def test_rounding_of_the_published_code_is_kept_by_name_alone() -> None:
    x, y = rng().normal(size=(10, 3)), np.zeros(10, int)
    assert len(moderate_coreset(x, y, 1, 1)) == 1
    assert len(moderate_coreset(x, y, 1, 1, rounding="reference")) == 2


def test_meta_rows_are_not_trained_on() -> None:
    y = rng().integers(0, 7, 333)
    split = split_meta(y, 7, rng())
    assert not set(split.train.tolist()) & set(split.meta.tolist())
    assert sorted([*split.train, *split.meta]) == list(range(333))
    assert len(split.meta) == meta_count(333) == 100
    share = np.bincount(y[split.meta]) / np.bincount(y)
    assert np.ptp(share) < 0.03
    assert len(split_meta(y, 7, rng(), count=5).meta) == 5


def test_the_published_split_that_overlaps() -> None:
    y = rng().integers(0, 3, 60)
    split = split_meta(y, 3, rng(), compat="reference")
    assert split.train.tolist() == split.meta.tolist() == list(range(60))
    with pytest.raises(ValueError, match="meta: expected rows that are not trained on, got row 4 in both"):
        Split(np.arange(5), np.arange(4, 9))
    with pytest.raises(ValueError, match="split: expected rows in both parts"):
        Split(np.arange(5), np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="labels: expected at least two rows"):
        split_meta([1], 3, rng())
    with pytest.raises(ValueError, match="count: expected an integer"):
        split_meta(y, 3, rng(), count=60)


def test_meta_counts_of_the_published_rule() -> None:
    assert [meta_count(n) for n in (2, 100, 500, 10_000)] == [1, 50, 100, 200]


def test_purity_and_random_coresets() -> None:
    assert purity([1, 2, 3, 4], [1, 2, 0, 0]) == 0.5
    assert purity([1, 2, 3, 4], [1, 2, 0, 0], [0, 1]) == 1.0
    drawn = random_coreset(50, 20, rng())
    assert len(set(drawn.tolist())) == 20
    assert (np.diff(drawn) > 0).all()
    with pytest.raises(ValueError, match="budget: expected an integer"):
        random_coreset(5, 6, rng())
