from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold.eeg import Corpus, Domain
from tenfold.eeg import smoothing as module
from tenfold.eeg.smoothing import describe, lds_smooth, moving_average, smooth


def walk(n: int, q: float, r: float, seed: int = 0, columns: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((n, columns)).cumsum(axis=0) * q**0.5
    return hidden + rng.standard_normal((n, columns)) * r**0.5


def one_trial(x: np.ndarray) -> np.ndarray:
    return np.zeros(len(x), dtype=np.int64)


def dense(x: np.ndarray, ratio: float) -> np.ndarray:
    """The same mean from the normal equations: minimise sum (x - z)^2 + sum (z_t - z_{t-1})^2 / ratio."""
    steps = np.diff(np.eye(len(x)), axis=0)
    return np.linalg.solve(np.eye(len(x)) + steps.T @ steps / ratio, x)


@pytest.mark.parametrize("ratio", [1e-3, 0.3, 50.0])
def test_smoother_is_the_posterior_mean(ratio: float) -> None:
    x = walk(40, 0.2, 1.0)
    assert np.allclose(lds_smooth(x, one_trial(x), ratio=ratio), dense(x, ratio), atol=1e-10)


def test_filter_is_the_posterior_mean_of_the_rows_so_far() -> None:
    x = walk(25, 0.2, 1.0)
    got = lds_smooth(x, one_trial(x), ratio=0.3, causal=True)
    for t in range(len(x)):
        assert np.allclose(got[t], dense(x[: t + 1], 0.3)[-1], atol=1e-10)


def test_known_numbers() -> None:
    """x = 0, 3, 0 with q = r, by hand: z = (3, 6, 3) / 4; filtered 0, then 3 * 2 / 3 = 2, then 3 / 4."""
    x = np.array([[0.0], [3.0], [0.0]])
    assert lds_smooth(x, one_trial(x), ratio=1.0)[:, 0] == pytest.approx([0.75, 1.5, 0.75])
    assert lds_smooth(x, one_trial(x), ratio=1.0, causal=True)[:, 0] == pytest.approx([0, 2, 0.75])


def log_likelihood(x: np.ndarray, q: float, r: float) -> float:
    """Of the differences of x, which do not see where the walk starts: a Gaussian with a known covariance."""
    n = len(x) - 1
    covariance = (q + 2 * r) * np.eye(n) - r * (np.eye(n, k=1) + np.eye(n, k=-1))
    d = np.diff(x)
    return float(-0.5 * (np.linalg.slogdet(covariance)[1] + d @ np.linalg.solve(covariance, d)))


def test_em_climbs_to_the_maximum_of_the_likelihood() -> None:
    x = walk(60, 0.5, 1.0, columns=2)
    seen = np.ones((60, 1, 1), dtype=bool)
    q, r = module._moments(x[:, None], seen)
    likelihood = [[-np.inf] * 2]
    for _ in range(400):
        likelihood.append([log_likelihood(x[:, c], q[0, c], r[0, c]) for c in range(2)])
        q, r = module._em(x[:, None], seen, q, r)
    assert (np.diff(likelihood[1:], axis=0) > -1e-9).all()
    for c in range(2):
        around = [
            log_likelihood(x[:, c], q[0, c] * a, r[0, c] * b)
            for a, b in [(1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95), (1.05, 0.95), (0.95, 1.05)]
        ]
        assert max(around) < likelihood[-1][c]


def test_em_finds_the_noise() -> None:
    """White noise around a constant is averaged away; a walk without noise stays as it is."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((200, 4))
    assert lds_smooth(noise, one_trial(noise), iterations=200).std() < 0.2
    steps = walk(200, 1.0, 0.0)
    assert np.abs(lds_smooth(steps, one_trial(steps), iterations=200) - steps).mean() < 0.2


def test_trials_are_smoothed_each_by_itself() -> None:
    """Trials of different lengths, rows of one scattered among those of others."""
    x = walk(57, 0.2, 1.0)
    trial = np.sort(np.random.default_rng(1).integers(0, 4, 57))
    for kwargs in ({"ratio": 0.3}, {"ratio": 0.3, "causal": True}, {}):
        together = lds_smooth(x, trial, **kwargs)
        for number in range(4):
            alone = x[trial == number]
            assert np.allclose(together[trial == number], lds_smooth(alone, one_trial(alone), **kwargs))
    interleaved = np.argsort(np.concatenate([np.arange(c) for c in np.bincount(trial)]), kind="stable")
    got = lds_smooth(x[interleaved], trial[interleaved])
    assert np.allclose(got, lds_smooth(x, trial)[interleaved])


def test_causal_does_not_look_ahead() -> None:
    x = walk(30, 0.2, 1.0)
    changed = np.concatenate([x[:20], x[20:] + 100])
    for smoother in (
        lambda v: lds_smooth(v, one_trial(v), ratio=0.3, causal=True),
        lambda v: moving_average(v, one_trial(v), window=4, causal=True),
    ):
        assert np.array_equal(smoother(x)[:20], smoother(changed)[:20])
    with pytest.raises(ValueError, match=r"ratio: expected a number with causal=True .*, got None"):
        lds_smooth(x, one_trial(x), causal=True)


@pytest.mark.parametrize("iterations", [1, 20])
def test_constants_and_single_rows_come_back(iterations: int) -> None:
    x = np.full((6, 2), 0.1)
    trial = np.array([0, 0, 0, 0, 0, 1])
    x[5] = 7.0
    assert np.array_equal(lds_smooth(x, trial, iterations=iterations), x)
    assert np.allclose(moving_average(x, trial), x, rtol=1e-15)


def test_scale_does_not_matter() -> None:
    x = walk(50, 0.2, 1.0)
    for scale in (1e-12, 1e12):
        assert np.allclose(lds_smooth(x * scale, one_trial(x)) / scale, lds_smooth(x, one_trial(x)))


def test_moving_average_by_hand() -> None:
    x = np.array([[0.0], [3.0], [6.0], [0.0], [10.0], [20.0]])
    trial = np.array([0, 0, 0, 0, 1, 1])
    assert moving_average(x, trial, window=3)[:, 0] == pytest.approx([1.5, 3, 3, 3, 15, 15])
    assert moving_average(x, trial, window=2, causal=True)[:, 0] == pytest.approx([0, 1.5, 4.5, 3, 10, 15])
    assert np.array_equal(moving_average(x, trial, window=1), x)


def test_moving_average_does_not_cancel() -> None:
    x = np.tile([[1e9 + 1], [1e9 - 1]], (500, 1))
    assert moving_average(x, one_trial(x), window=3)[1:-1, 0] - 1e9 == pytest.approx([1 / 3, -1 / 3] * 499)


def test_the_kind_given_comes_back() -> None:
    x = walk(12, 0.2, 1.0).astype(np.float32)
    array = lds_smooth(x, one_trial(x))
    tensor = lds_smooth(torch.from_numpy(x), torch.zeros(12, dtype=torch.int64))
    assert array.dtype == np.float32
    assert tensor.dtype == torch.float32
    assert np.array_equal(array, tensor.numpy())
    assert np.array_equal(x, walk(12, 0.2, 1.0).astype(np.float32))  # the input is left alone


def test_a_corpus_says_how_it_was_smoothed() -> None:
    x = walk(12, 0.2, 1.0).astype(np.float32)
    trial = np.repeat([0, 1], 6)
    corpus = Corpus("toy", (Domain("a", x, trial, trial),), ("p", "q"))
    smoothed = smooth(corpus, "lds", ratio=0.3, causal=True)
    assert smoothed.metadata["smoothing"] == "lds (q/r = 0.3), causal"
    assert torch.equal(smoothed.domains[0].x, lds_smooth(corpus.domains[0].x, trial, ratio=0.3, causal=True))
    assert smooth(corpus, "none") is corpus
    averaged = smooth(corpus, "moving-average", window=3)
    assert averaged.metadata["smoothing"] == "moving-average (3 rows), offline"
    assert describe("lds") == "lds (EM, 20 iterations), offline"
    with pytest.raises(ValueError, match=r"toy: features: expected features that are not yet smoothed"):
        smooth(averaged, "lds")


def test_bad_input() -> None:
    x, trial = np.zeros((4, 2)), np.zeros(4, dtype=np.int64)
    with pytest.raises(TypeError, match=r"x: expected float32 or float64 \[n, d\], got int64"):
        lds_smooth(x.astype(np.int64), trial)
    with pytest.raises(ValueError, match=r"x: expected \[n, d\] with n, d >= 1, got shape \(0, 2\)"):
        lds_smooth(x[:0], trial[:0])
    with pytest.raises(ValueError, match="x: expected finite values"):
        moving_average(np.full((4, 2), np.nan), trial)
    with pytest.raises(ValueError, match=r"trial: expected 4 numbers \(one per row of x\), got shape \(3,\)"):
        lds_smooth(x, trial[:3])
    with pytest.raises(TypeError, match="trial: expected int64"):
        lds_smooth(x, trial.astype(float))
    with pytest.raises(ValueError, match="ratio: expected a finite number > 0"):
        lds_smooth(x, trial, ratio=0)
    with pytest.raises(ValueError, match="window: expected an odd number of rows"):
        moving_average(x, trial, window=4)
    with pytest.raises(ValueError, match="kind: expected one of 'lds'"):
        smooth(Corpus("toy", (Domain("a", x.astype(np.float32), None, trial),), ("p",)), "kalman")
