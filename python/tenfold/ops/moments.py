"""Statistics of picture features: streaming moments and the Frechet distance, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.kernels.moments import moments_reference as reference
from tenfold.kernels.moments.moments_reference import Frechet, Moments, Rows

__all__ = ["Frechet", "Moments", "frechet_distance", "moments_merge", "moments_update"]


def moments_update(x: Any, state: Moments | None = None) -> Moments:
    """Number, mean and scatter of `state`'s rows and those of x, in float64.

    Args:
        x: [N, D] of any floating dtype and strides, N may be 0; converted a thousand rows at a time.
        state: what an earlier call returned, or None; it is left as it is.

    Returns:
        Moments(n, mean [D], scatter [D, D]) with the property `covariance`, scatter / (n - 1). Shards merged
        and one pass over all agree to about 1e-15 of the trace (Chan, Golub and LeVeque 1983).

    Raises:
        TypeError: no tensor or array, or a state that is not Moments in float64.
        ValueError: another shape or dtype, NaN or infinity, or a state of another size or device.
    """
    rows = _features("x", x)
    if state is None:
        return reference.update(reference.none(rows.shape[1], rows.device), rows)
    _moments("state", state)
    if state.mean.shape[0] != rows.shape[1] or state.mean.device != rows.device:
        expected = f"{state.mean.shape[0]} dimensions on {state.mean.device}, as state has"
        _checks.fail(ValueError, "x", expected, f"{rows.shape[1]} on {rows.device}")
    return reference.update(state, rows)


def moments_merge(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of both, as if from one pass.

    Raises:
        TypeError, ValueError: no Moments in float64, or of different sizes or devices.
    """
    _moments("a", a)
    _moments("b", b)
    if a.mean.shape != b.mean.shape or a.mean.device != b.mean.device:
        expected = f"moments [{a.mean.shape[0]}] on {a.mean.device}"
        _checks.fail(ValueError, "b", expected, f"[{b.mean.shape[0]}] on {b.mean.device}")
    return reference.merge(a, b)


def frechet_distance(x: Any, y: Any, *, diagnostics: bool = False) -> Any:
    """``|m1 - m2|^2`` + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2), the squared Frechet distance of two Gaussians.

    With Inception features this is FID (Heusel et al., arXiv 1706.08500). The trace of the root is a sum of
    singular values, found from symmetric eigenvalues instead of those of S1 S2: exact, and cheaper, above all
    where a side has no more rows than dimensions, for which its rows should be given instead of moments.

    Args:
        x, y: each of them features [N, D], N >= 2, of any floating dtype; Moments; or a pair (mean [D],
            unbiased covariance [D, D]).
        diagnostics: return Frechet(value, mean_term, trace, root_trace, route, rank, clipped) instead of the
            value. Route "eigh" (both covariances singular, and no rows given) is good to about 1e-7 of the
            trace, the others to about 1e-10.

    Returns:
        A float64 scalar >= 0, symmetric in x and y; 0 for equal input. No gradient.

    Raises:
        TypeError: an argument is none of these, or Moments are not in float64.
        ValueError: N < 2, NaN or infinity, dtypes that are not floating, or sizes that differ.
    """
    kind = _arrays.kind_of(x)
    with torch.no_grad():
        a, b = _given("x", x), _given("y", y)
        if _size(a) != _size(b):
            _checks.fail(ValueError, "y", f"{_size(a)} dimensions, as x has", _size(b))
        if _device(a) != _device(b):
            _checks.fail(ValueError, "y", f"the device of x ({_device(a)})", _device(b))
        found = reference.frechet(_side(a), _side(b))
    return found if diagnostics else kind(found.value)


# ---- arguments -------------------------------------------------------------------------------------------

Given = Tensor | tuple[Tensor, Tensor]


def _features(name: str, value: Any, least: int = 0) -> Tensor:
    """Rows [N, D], finite."""
    rows = _floating(name, value, "features of a floating dtype")
    if rows.ndim != 2 or not rows.shape[1]:
        _checks.fail(ValueError, name, "shape [N, D]", tuple(rows.shape))
    if len(rows) < least:
        _checks.fail(ValueError, name, f"at least {least} rows", len(rows))
    return _finite(name, rows)


def _floating(name: str, value: Any, expected: str = "a floating dtype") -> Tensor:
    found = _arrays.as_tensor(name, value, write=False).detach()
    if found.dtype not in _checks.FLOAT_DTYPES:
        _checks.fail(ValueError, name, expected, found.dtype)
    return _checks.tensor(name, found)


def _finite(name: str, values: Tensor) -> Tensor:
    # a sum of finite entries is finite unless it overflows: the slow look is for those alone
    if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
        _checks.fail(ValueError, name, "finite entries", "NaN or infinity")
    return values


def _moments(name: str, value: Any) -> None:
    if not isinstance(value, Moments):
        _checks.fail(TypeError, name, "Moments, as moments_update returns them", type(value).__name__)
    _checks.integer(f"{name}.n", value.n, 0, 2**63 - 1)
    for part in ("mean", "scatter"):
        _checks.tensor(f"{name}.{part}", getattr(value, part), (torch.float64,))
    width = value.mean.shape[:1]
    if value.mean.ndim != 1 or value.scatter.shape != width + width:
        got = f"{tuple(value.mean.shape)} and {tuple(value.scatter.shape)}"
        _checks.fail(ValueError, name, "mean [D] and scatter [D, D]", got)


def _given(name: str, value: Any) -> Given:
    """Features as they are, and everything else as mean and covariance in float64."""
    if isinstance(value, Moments):
        _moments(name, value)
        if value.n < 2:
            _checks.fail(ValueError, name, "moments of at least 2 rows", value.n)
        return _finite(name, value.mean), _finite(name, value.covariance)
    if not isinstance(value, (tuple, list)):
        return _features(name, value, least=2)
    if len(value) != 2:
        _checks.fail(ValueError, name, "a pair (mean, covariance)", f"{len(value)} entries")
    mean, covariance = (_floating(f"{name}[{i}]", part) for i, part in enumerate(value))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        got = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
        _checks.fail(ValueError, name, "shapes [D] and [D, D]", got)
    return _finite(name, mean.double()), _finite(name, covariance.double())


def _size(given: Given) -> int:
    return given.shape[1] if isinstance(given, Tensor) else len(given[0])


def _device(given: Given) -> torch.device:
    return given.device if isinstance(given, Tensor) else given[0].device


def _side(given: Given) -> Rows:
    if not isinstance(given, Tensor):
        return Rows(given[0], None, given[1])
    if len(given) <= given.shape[1]:
        first = given[:1].double()  # the mean about a row: far from the origin nothing is lost
        return Rows((given.double() - first).mean(0) + first[0], reference.spread(given), None)
    found = moments_update(given)
    return Rows(found.mean, None, found.covariance)
