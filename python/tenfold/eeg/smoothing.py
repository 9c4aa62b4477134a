"""Smoothing of features over time, trial by trial.

An emotion lasts longer than a window, so features are smoothed along the windows of a trial. The usual way is
a linear dynamical system (Shi, Lu, EMBC 2010; Duan, Zhu, Lu, NER 2013). Smoothing that looks ahead, and
parameters that are fitted to the whole trial, cannot be had while the trial is running: `causal=True` uses
the past alone, and every result says which of the two it was (`describe`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.eeg.corpus import Corpus

__all__ = ["SMOOTHINGS", "describe", "lds_smooth", "moving_average", "smooth"]

Array = NDArray[np.float64]
Rows = TypeVar("Rows", NDArray[np.float32], NDArray[np.float64], Tensor)

SMOOTHINGS = ("lds", "moving-average", "none")


def lds_smooth(
    x: Rows, trial: Any, *, ratio: float | None = None, iterations: int = 20, causal: bool = False
) -> Rows:
    """Mean of a hidden random walk given its noisy observations, column by column.

    x_t = z_t + noise of variance r, z_t = z_{t-1} + noise of variance q, z_1 free. A Kalman filter and the
    Rauch-Tung-Striebel smoother give the mean of z given all rows of the trial.

    Args:
        x: [n, d], float32 or float64, an array or a tensor.
        trial: int64 [n]; rows with the same number are one trial, in the order of time. Trials are smoothed
            each by itself.
        ratio: q / r > 0, the same for all columns; None fits q and r to each column of each trial by EM.
        iterations: of EM, >= 1.
        causal: the mean given the rows so far only (the filter without the smoother). Needs a `ratio`, since
            EM looks at the whole trial.

    Returns:
        As x; arithmetic is float64. A trial of one row and a constant column come back as they are.

    Raises:
        TypeError, ValueError: bad input.
    """
    values, numbers = _rows(x), _numbers(trial, len(x))
    iterations = _checks.integer("iterations", iterations, 1, 10_000)
    if ratio is not None:
        ratio = _checks.real("ratio", ratio, positive=True)
    elif causal:
        _checks.fail(ValueError, "ratio", "a number with causal=True (EM looks at the whole trial)", None)
    out = values.copy()
    rows = _by_trial(numbers)
    # All columns of all trials advance together, [time, trial, column]; shorter trials are padded with rows
    # that were not observed, which change nothing about the rows that were.
    seen: NDArray[np.bool_] = np.zeros((max(map(len, rows)), len(rows), 1), dtype=bool)
    padded = np.zeros((*seen.shape[:2], values.shape[1]))
    for k, index in enumerate(rows):
        seen[: len(index), k] = True
        padded[: len(index), k] = values[index]
    smoothed = _smooth(padded, seen, ratio, iterations, causal)
    for k, index in enumerate(rows):
        out[index] = smoothed[: len(index), k]
    return _as_given(x, out)


def moving_average(x: Rows, trial: Any, *, window: int = 5, causal: bool = False) -> Rows:
    """Mean over `window` rows of the same trial around each row, over fewer at the ends of the trial.

    Args:
        x, trial: as for :func:`lds_smooth`.
        window: rows, odd unless `causal`.
        causal: over the row and those before it, not around it.

    Raises:
        TypeError, ValueError: bad input, or an even window that would have no middle.
    """
    values, numbers = _rows(x), _numbers(trial, len(x))
    window = _checks.integer("window", window, 1, 2**31 - 1)
    if not causal and window % 2 == 0:
        _checks.fail(ValueError, "window", "an odd number of rows unless causal=True", window)
    out = values.copy()
    for index in _by_trial(numbers):
        rows, n = values[index], len(index)
        total, count = np.zeros_like(rows), np.zeros((n, 1))
        behind = window - 1 if causal else window // 2
        for shift in range(max(-behind, 1 - n), min(window - behind, n)):  # row t takes row t + shift
            to, of = slice(max(-shift, 0), n - max(shift, 0)), slice(max(shift, 0), n - max(-shift, 0))
            total[to] += rows[of]
            count[to] += 1
        out[index] = total / count
    return _as_given(x, out)


def smooth(
    corpus: Corpus,
    kind: str,
    *,
    causal: bool = False,
    ratio: float | None = None,
    iterations: int = 20,
    window: int = 5,
) -> Corpus:
    """A corpus with the features of every domain smoothed, its metadata saying how ("smoothing").

    Args:
        kind: ``"lds"``, ``"moving-average"`` or ``"none"``.
        causal, ratio, iterations, window: of :func:`lds_smooth` and :func:`moving_average`.

    Raises:
        ValueError: another kind, or features that are smoothed already.
    """
    _checks.choice("kind", kind, SMOOTHINGS)
    if kind == "none":
        return corpus
    before = corpus.metadata.get("smoothing", "none")
    if before != "none":
        _checks.fail(ValueError, f"{corpus.name}: features", "features that are not yet smoothed", before)
    domains = []
    for domain in corpus.domains:
        if kind == "lds":
            x = lds_smooth(domain.x, domain.trial, ratio=ratio, iterations=iterations, causal=causal)
        else:
            x = moving_average(domain.x, domain.trial, window=window, causal=causal)
        domains.append(replace(domain, x=x))
    how = describe(kind, causal=causal, ratio=ratio, iterations=iterations, window=window)
    return replace(corpus, domains=tuple(domains), metadata={**corpus.metadata, "smoothing": how})


def describe(
    kind: str, *, causal: bool = False, ratio: float | None = None, iterations: int = 20, window: int = 5
) -> str:
    """A smoothing in words, for metadata and reports: "lds (EM, 20 iterations), offline"."""
    if kind == "none":
        return "none"
    how = f"{window} rows" if kind == "moving-average" else f"q/r = {ratio:g}" if ratio else ""
    return f"{kind} ({how or f'EM, {iterations} iterations'}), {'causal' if causal else 'offline'}"


def _smooth(x: Array, seen: NDArray[np.bool_], ratio: float | None, iterations: int, causal: bool) -> Array:
    """Smoothed (or filtered) means of [time, trial, column]; `seen` is [time, trial, 1]."""
    if ratio is not None:
        q, r = np.full(x.shape[1:], ratio), np.ones(x.shape[1:])
        means, variances, steps = _filter(x, seen, q, r)
        return means if causal else _smoother(means, variances, steps)[0]
    q, r = _moments(x, seen)
    smallest = np.maximum(1e-10 * (q + r), np.finfo(np.float64).tiny)
    q, r = np.maximum(q, smallest), np.maximum(r, smallest)
    for _ in range(iterations):
        q, r = (np.maximum(variance, smallest) for variance in _em(x, seen, q, r))
    means, variances, steps = _filter(x, seen, q, r)
    return _smoother(means, variances, steps)[0]


def _filter(x: Array, seen: NDArray[np.bool_], q: Array, r: Array) -> tuple[Array, Array, Array]:
    """Means and variances of z_t given x_1 .. x_t, and the variances of z_{t+1} given the same (Kalman).

    z_1 has a flat prior: after the first observation its mean is x_1 and its variance r.
    """
    means, variances, ahead = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    means[0], variances[0] = x[0], r
    for t in range(1, len(x)):
        ahead[t - 1] = variances[t - 1] + q
        gain = np.where(seen[t], ahead[t - 1] / (ahead[t - 1] + r), 0.0)
        means[t] = means[t - 1] + gain * (x[t] - means[t - 1])
        variances[t] = (1 - gain) * ahead[t - 1]
    ahead[-1] = variances[-1] + q
    return means, variances, ahead


def _smoother(means: Array, variances: Array, ahead: Array) -> tuple[Array, Array, Array]:
    """Means, variances and gains of z_t given all rows (Rauch, Tung, Striebel 1965)."""
    mean, variance, gains = means.copy(), variances.copy(), variances / ahead
    for t in range(len(means) - 2, -1, -1):
        mean[t] += gains[t] * (mean[t + 1] - means[t])
        variance[t] += gains[t] ** 2 * (variance[t + 1] - ahead[t])
    return mean, variance, gains


def _em(x: Array, seen: NDArray[np.bool_], q: Array, r: Array) -> tuple[Array, Array]:
    """One step of EM (Shumway, Stoffer 1982): q and r that maximise the expected log-likelihood."""
    mean, variance, gains = _smoother(*_filter(x, seen, q, r))
    residual = np.where(seen, (x - mean) ** 2 + variance, 0.0).sum(axis=0) / seen.sum(axis=0)
    moved = (mean[1:] - mean[:-1]) ** 2 + variance[:-1] + (1 - 2 * gains[:-1]) * variance[1:]
    steps = np.maximum(seen[1:].sum(axis=0), 1)
    return np.where(seen[1:], moved, 0.0).sum(axis=0) / steps, residual


def _moments(x: Array, seen: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Where EM starts: half of the variance of x_{t+1} - x_t, which is q + 2 r, to either of them."""
    squares = np.where(seen[1:], (x[1:] - x[:-1]) ** 2, 0.0).sum(axis=0)
    variance = squares / np.maximum(seen[1:].sum(axis=0), 1)
    return variance / 2, variance / 4


def _by_trial(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Row numbers of each trial, ascending."""
    order = np.argsort(numbers, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def _rows(x: Any) -> Array:
    values = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    if not isinstance(values, np.ndarray) or values.dtype not in (np.float32, np.float64):
        _checks.fail(TypeError, "x", "float32 or float64 [n, d]", getattr(values, "dtype", type(x).__name__))
    if values.ndim != 2 or not values.size:
        _checks.fail(ValueError, "x", "[n, d] with n, d >= 1", f"shape {values.shape}")
    if not np.isfinite(values).all():
        _checks.fail(ValueError, "x", "finite values", "NaN or infinity")
    return values.astype(np.float64)


def _numbers(trial: Any, n: int) -> NDArray[np.int64]:
    numbers = trial.detach().cpu().numpy() if isinstance(trial, Tensor) else np.asarray(trial)
    if numbers.dtype != np.int64:
        _checks.fail(TypeError, "trial", "int64 [n]", f"dtype {numbers.dtype}")
    if numbers.shape != (n,):
        _checks.fail(ValueError, "trial", f"{n} numbers (one per row of x)", f"shape {numbers.shape}")
    return numbers


def _as_given(x: Rows, out: Array) -> Rows:
    if isinstance(x, Tensor):
        return torch.from_numpy(out).to(x.device, x.dtype)
    return out.astype(x.dtype)
