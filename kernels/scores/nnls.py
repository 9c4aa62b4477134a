"""Non-negative least squares of a small dense system."""

from __future__ import annotations

from typing import Any

import numpy as np


def nnls(a: Any, b: Any) -> Any:
    """argmin_{x >= 0} ||a x - b|| for float64 a [k, k], b [k]: the active-set method of Lawson and Hanson
    ("Solving Least Squares Problems", 1974, chapter 23), begun from the positive part of the unconstrained
    answer, which mostly is the answer."""
    size = b.shape[0]
    x = np.zeros(size)
    positive = np.ones(size, dtype=bool)
    while positive.any():  # drop what comes out negative until nothing does: a feasible start
        s = _least_squares(a[:, positive], b)
        if (s > 0).all():
            x[positive] = s
            break
        positive[positive] = s > 0
    largest = np.abs(a).sum(0).max(initial=0.0) * np.abs(b).max(initial=0.0)
    tolerance = 10 * np.finfo(np.float64).eps * size * largest
    for _ in range(3 * size):
        gradient = a.T @ (b - a @ x)
        gradient[positive] = -np.inf
        if not size or gradient.max() <= tolerance:
            break
        positive[int(gradient.argmax())] = True
        _towards_optimum(a, b, x, positive)
    return x


def _towards_optimum(a: Any, b: Any, x: Any, positive: Any) -> None:
    """Moves x to the optimum over the columns `positive`, giving up those that reach zero on the way."""
    while True:
        s = np.zeros_like(x)
        s[positive] = _least_squares(a[:, positive], b)
        if (s[positive] > 0).all():
            x[:] = s
            return
        blocking = positive & (s <= 0)
        step = (x[blocking] / (x[blocking] - s[blocking])).min()
        x += step * (s - x)
        positive &= x > 1e-14 * np.abs(x).max()
        x[~positive] = 0.0
        if not positive.any():
            return


def _least_squares(a: Any, b: Any) -> Any:
    q, r = np.linalg.qr(a)
    diagonal = np.abs(np.diag(r))
    if diagonal.size and diagonal.min() > 1e-12 * diagonal.max():
        return np.linalg.solve(r, q.T @ b)
    return np.linalg.lstsq(a, b, rcond=None)[0]
