"""Features of EEG: band-pass, differential entropy, smoothing over time.

Differential entropy as a feature of EEG: Duan, Zhu, Lu (NER 2013) and Zheng, Lu (IEEE TAMD 7(3), 2015). A
band-limited signal is taken to be Gaussian; its entropy is then a function of its variance alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks

__all__ = [
    "BANDS",
    "DEFINITIONS",
    "band_differential_entropy",
    "bandpass",
    "differential_entropy",
    "to_rows",
]

Array = NDArray[np.float64]

BANDS: dict[str, tuple[float, float]] = {
    "delta": (1.0, 4.0),
    "theta": (4.0, 8.0),
    "alpha": (8.0, 14.0),
    "beta": (14.0, 31.0),
    "gamma": (31.0, 50.0),
}
"""Name -> lower and upper edge in Hz: the five bands of SEED."""

DEFINITIONS = ("gaussian", "spectral", "spectral-shifted")
"""Definitions of a band's differential entropy, see :func:`band_differential_entropy`."""

VARIANCE_FLOOR = 1e-12
"""A dead channel has variance 0 and would have entropy minus infinity."""


def differential_entropy(variance: Array | float, *, unit: str = "bits") -> Array:
    """Entropy of a Gaussian, 0.5 log(2 pi e variance), elementwise.

    Args:
        variance: >= 0, in squared units of the signal; below 1e-12 it counts as 1e-12.
        unit: ``"bits"`` (logarithm to base 2) or ``"nats"``, which is ln 2 times as much.

    Raises:
        ValueError: a negative variance, or another unit.
    """
    _checks.choice("unit", unit, ("bits", "nats"))
    values = np.asarray(variance, dtype=np.float64)
    if (values < 0).any():
        _checks.fail(ValueError, "variance", "values >= 0", values.min())
    nats = 0.5 * np.log(2 * math.pi * math.e * np.maximum(values, VARIANCE_FLOOR))
    return np.asarray(nats / math.log(2) if unit == "bits" else nats)


def bandpass(
    signal: Array, fs: float, low: float, high: float, *, order: int = 5, causal: bool = False
) -> Array:
    """Butterworth band-pass along the last axis, in second-order sections.

    Args:
        signal: [..., samples], float32 or float64; more than about 3 * (2 * order + 1) samples unless causal.
        fs: sampling rate in Hz.
        low, high: edges in Hz, 0 < low < high < fs / 2; the causal filter's gain there is -3 dB.
        order: of the prototype; the filter has twice as many poles.
        causal: one pass forward from rest, without a look ahead, with the filter's delay. Otherwise forward
            and backward: no delay, the gain is squared (-6 dB at the edges), the output looks ahead.

    Returns:
        float64 of the signal's shape.

    Raises:
        TypeError, ValueError: input as described above is not given. RuntimeError: scipy is not installed.
    """
    signal = _samples(signal)
    fs, low, high = _band(fs, low, high)
    order = _checks.integer("order", order, 1, 12)
    filters = _scipy_signal()
    sections = filters.butter(order, (low, high), "bandpass", fs=fs, output="sos")
    if causal:
        return np.asarray(filters.sosfilt(sections, signal))
    shortest = 3 * (2 * len(sections) + 1)  # scipy's own padding
    if signal.shape[-1] <= shortest:
        expected = f"more than {shortest} samples to filter forward and backward"
        _checks.fail(ValueError, "signal", expected, signal.shape[-1])
    return np.asarray(filters.sosfiltfilt(sections, signal))


def band_differential_entropy(
    signal: Array,
    fs: float,
    window_s: float,
    *,
    bands: Mapping[str, tuple[float, float]] = BANDS,
    definition: str = "gaussian",
    order: int = 5,
    causal: bool = False,
) -> Array:
    """Differential entropy per channel, window and band.

    Args:
        signal: [channels, samples] of one trial, float32 or float64, in microvolts as published data are.
        fs: sampling rate in Hz.
        window_s: length of a window in seconds (a whole number of samples); windows follow each other without
            overlap, and what is left at the end is dropped. SEED uses 1 s, SEED-IV and SEED-V 4 s.
        bands: name -> edges in Hz.
        definition: ``"gaussian"``, entropy in bits of the band-passed signal (the whole trial is filtered
            once, the variance is each window's); ``"spectral"``, log2(100 p) with p the mean of \
|FFT|^2 of the Hann-windowed samples over the bins with low <= frequency < high (no band-pass);
            ``"spectral-shifted"``, the same over the bins floor(low n / fs) - 1 to floor(high n / fs) - 1, \
which is one bin lower: what public code for SEED's features counts (Shi, Jiao, Lu, EMBC 2013).
        order, causal: of :func:`bandpass`, for ``"gaussian"``.

    Returns:
        float64 [channels, windows, bands], SEED's own order.

    Raises:
        TypeError, ValueError: bad input, a trial shorter than a window, a band without a bin.
    """
    signal = _samples(signal)
    if signal.ndim != 2:
        _checks.fail(ValueError, "signal", "[channels, samples]", f"shape {signal.shape}")
    _checks.choice("definition", definition, DEFINITIONS)
    if not bands:
        _checks.fail(ValueError, "bands", "at least one band", "none")
    edges = [_band(fs, *band) for band in bands.values()]
    per_window = _per_window(fs, window_s)
    windows = signal.shape[1] // per_window
    if not windows:
        expected = f"at least {per_window} samples (one window of {window_s:g} s)"
        _checks.fail(ValueError, "signal", expected, signal.shape[1])

    def cut(values: Array) -> Array:
        return values[:, : windows * per_window].reshape(len(values), windows, per_window)

    if definition == "gaussian":
        parts = [bandpass(signal, fs, low, high, order=order, causal=causal) for fs, low, high in edges]
        return np.stack([differential_entropy(cut(part).var(axis=-1)) for part in parts], axis=-1)
    power = np.abs(np.fft.rfft(cut(signal) * np.hanning(per_window), axis=-1)) ** 2
    bins = [_bins(*edge, per_window, definition) for edge in edges]
    means = [power[..., first:last].mean(axis=-1) for first, last in bins]
    return np.log2(100 * np.maximum(np.stack(means, axis=-1), VARIANCE_FLOOR))


def to_rows(features: Array) -> Array:
    """[channels, windows, bands] -> [windows, channels * bands], column = channel * bands + band."""
    if features.ndim != 3:
        _checks.fail(ValueError, "features", "[channels, windows, bands]", f"shape {features.shape}")
    return np.ascontiguousarray(features.transpose(1, 0, 2)).reshape(features.shape[1], -1)


def _samples(signal: Any) -> Array:
    if not isinstance(signal, np.ndarray) or signal.dtype not in (np.float32, np.float64):
        got = f"dtype {signal.dtype}" if isinstance(signal, np.ndarray) else type(signal).__name__
        _checks.fail(TypeError, "signal", "a NumPy array of float32 or float64", got)
    if not signal.size:
        _checks.fail(ValueError, "signal", "at least one sample", f"shape {signal.shape}")
    if not np.isfinite(signal).all():
        _checks.fail(ValueError, "signal", "finite samples", "NaN or infinity")
    return signal.astype(np.float64, copy=False)


def _band(fs: float, low: float, high: float) -> tuple[float, float, float]:
    fs = _checks.real("fs", fs, positive=True)
    low = _checks.real("low", low, positive=True)
    high = _checks.real("high", high, positive=True)
    if not low < high < fs / 2:
        _checks.fail(ValueError, "low and high", f"low < high < fs / 2 = {fs / 2:g} Hz", f"{low:g}, {high:g}")
    return fs, low, high


def _per_window(fs: float, window_s: float) -> int:
    samples = fs * _checks.real("window_s", window_s, positive=True)
    if round(samples) < 2 or abs(samples - round(samples)) > 1e-6 * samples:
        _checks.fail(ValueError, "window_s", "a whole number of samples, at least 2", f"{samples:g}")
    return round(samples)


def _bins(fs: float, low: float, high: float, n: int, definition: str) -> tuple[int, int]:
    """First bin and the bin after the last, of those of an FFT over n samples."""
    tiny = 1e-9  # edges that fall on a bin, but for rounding
    if definition == "spectral":
        first, last = math.ceil(low * n / fs - tiny), math.ceil(high * n / fs - tiny)
    else:
        first, last = math.floor(low * n / fs + tiny) - 1, math.floor(high * n / fs + tiny)
    if first < 0 or first >= last:
        got = f"{low:g} to {high:g} Hz with bins {fs / n:g} Hz apart"
        _checks.fail(ValueError, "bands", "a band that holds a bin of the spectrum", got)
    return first, last


def _scipy_signal() -> Any:
    try:
        import scipy.signal
    except ImportError as error:
        raise RuntimeError("bandpass: expected scipy, got none; pip install scipy") from error
    return scipy.signal
