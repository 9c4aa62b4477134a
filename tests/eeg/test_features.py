from __future__ import annotations

import math

import numpy as np
import pytest

from tenfold.eeg.features import (
    BANDS,
    band_differential_entropy,
    bandpass,
    differential_entropy,
    to_rows,
)

FS = 200.0


def tone(frequency: float, seconds: float = 20.0, amplitude: float = 1.0, fs: float = FS) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * fs)) / fs)


def test_entropy_of_a_gaussian() -> None:
    """A unit Gaussian has 2.047095585 bits, 1.418938533 nats; every factor of 4 in variance adds one bit."""
    assert differential_entropy(1.0) == pytest.approx(2.047095585180641, rel=1e-14)
    assert differential_entropy(1.0, unit="nats") == pytest.approx(1.4189385332046727, rel=1e-14)
    values = differential_entropy(np.array([4.0, 0.25]))
    assert values == pytest.approx([3.047095585180641, 1.047095585180641], rel=1e-14)


def test_entropy_of_nothing_is_finite() -> None:
    floor = 0.5 * math.log2(2 * math.pi * math.e * 1e-12)
    assert differential_entropy(np.array([0.0, 1e-300])).tolist() == pytest.approx([floor, floor])
    with pytest.raises(ValueError, match=r"variance: expected values >= 0, got -1\.0"):
        differential_entropy(-1.0)
    with pytest.raises(ValueError, match="unit: expected one of 'bits', 'nats', got 'hartleys'"):
        differential_entropy(1.0, unit="hartleys")


@pytest.mark.parametrize(("causal", "edge"), [(False, 0.5), (True, 0.5**0.5)])
def test_bandpass_gain(causal: bool, edge: float) -> None:
    """1 inside the band, -6 or -3 dB at its edges, next to nothing far outside."""
    for frequency, gain, tolerance in [(10.6, 1, 0.01), (8, edge, 0.01), (14, edge, 0.01), (2, 0, 1e-4)]:
        out = bandpass(tone(frequency), FS, 8.0, 14.0, causal=causal)[1000:3000]
        assert math.sqrt(2 * out.var()) == pytest.approx(gain, abs=tolerance), frequency


def test_bandpass_without_delay() -> None:
    x = tone(10.6)
    assert np.abs(bandpass(x, FS, 8, 14) - x)[1000:3000].max() < 0.01


def test_causal_bandpass_does_not_look_ahead() -> None:
    x = np.random.default_rng(0).standard_normal((2, 1000))
    changed = x.copy()
    changed[:, 600:] = 100
    before, after = (bandpass(v, FS, 8, 14, causal=True) for v in (x, changed))
    assert np.array_equal(before[:, :600], after[:, :600])
    assert not np.array_equal(bandpass(x, FS, 8, 14)[:, :600], bandpass(changed, FS, 8, 14)[:, :600])


def test_bandpass_is_scipys_textbook_filter() -> None:
    from scipy.signal import butter, lfilter

    x = np.random.default_rng(1).standard_normal((3, 2000))
    b, a = butter(5, [14 / 100, 31 / 100], btype="band")
    assert np.allclose(bandpass(x, FS, 14, 31, causal=True), lfilter(b, a, x), atol=1e-9)


def test_gaussian_entropy_of_a_tone() -> None:
    """Amplitude 3 in band alpha: variance 4.5. The other bands hear almost nothing."""
    de = band_differential_entropy(np.stack([tone(10, amplitude=3), tone(22, amplitude=3)]), FS, 1.0)
    assert de.shape == (2, 20, 5)
    inner = de[:, 3:17]
    expected = 0.5 * math.log2(2 * math.pi * math.e * 4.5)
    assert inner[0, :, 2] == pytest.approx(np.full(14, expected), abs=0.02)
    assert inner[1, :, 3] == pytest.approx(np.full(14, expected), abs=0.02)
    assert inner[0].argmax(axis=-1).tolist() == [2] * 14
    assert (inner[0, :, 2] - inner[0, :, 0]).min() > 8


def test_spectral_entropy_of_a_tone() -> None:
    """By hand: a sine on bin k of an n-point Hann window has |FFT|^2 = (A n / 4)^2 there, a quarter of it at
    both neighbours (up to 1 / n), and nothing elsewhere."""
    n, amplitude = 200, 3.0
    de = band_differential_entropy(
        tone(11, 1.0, amplitude)[None], FS, 1.0, bands={"alpha": (8, 14)}, definition="spectral"
    )
    power = (amplitude * n / 4) ** 2 * (1 + 0.5) / 6
    assert de.shape == (1, 1, 1)
    assert de[0, 0, 0] == pytest.approx(math.log2(100 * power), abs=0.02)


@pytest.mark.parametrize(
    ("definition", "bins"), [("spectral", slice(8, 14)), ("spectral-shifted", slice(7, 14))]
)
def test_spectral_bins(definition: str, bins: slice) -> None:
    """`spectral-shifted` is the published expression, written out."""
    from scipy.signal.windows import hann

    x = np.random.default_rng(2).standard_normal((4, 600))
    got = band_differential_entropy(x, FS, 1.0, bands={"alpha": (8, 14)}, definition=definition)
    for w in range(3):
        spectrum = np.abs(np.fft.fft(x[:, 200 * w : 200 * (w + 1)] * hann(200)))[:, :100]
        expected = np.log2(100 * np.mean(spectrum[:, bins] ** 2, axis=1))
        assert np.allclose(got[:, w, 0], expected, rtol=1e-12)


def test_longer_windows_have_more_bins() -> None:
    """At 4 s bins are 0.25 Hz apart: 24 in [8, 14)."""
    x = np.random.default_rng(3).standard_normal((1, 800))
    got = band_differential_entropy(x, FS, 4.0, bands={"alpha": (8, 14)}, definition="spectral")
    power = np.abs(np.fft.fft(x[0] * np.hanning(800))) ** 2
    assert got[0, 0, 0] == pytest.approx(math.log2(100 * power[32:56].mean()), rel=1e-12)


@pytest.mark.parametrize("definition", ["gaussian", "spectral", "spectral-shifted"])
def test_all_definitions_are_finite_on_a_dead_channel_and_drop_the_rest(definition: str) -> None:
    x = np.stack([np.zeros(1099), np.random.default_rng(0).standard_normal(1099)]).astype(np.float32)
    de = band_differential_entropy(x, FS, 1.0, bands=dict(list(BANDS.items())[1:]), definition=definition)
    assert de.shape == (2, 5, 4)
    assert np.isfinite(de).all()
    assert (de[0] < de[1]).all()


def test_rows_hold_channel_by_channel_the_bands() -> None:
    features = np.arange(3 * 4 * 5, dtype=float).reshape(3, 4, 5)
    rows = to_rows(features)
    assert rows.shape == (4, 15)
    for channel, window, band in [(0, 0, 0), (2, 3, 4), (1, 2, 3)]:
        assert rows[window, channel * 5 + band] == features[channel, window, band]
    # The reference code's own expression for SEED's arrays of (62, T, 5).
    assert np.array_equal(rows, np.reshape(np.transpose(features, (1, 2, 0)), (-1, 15), order="F"))


def test_bad_input() -> None:
    x = np.zeros((2, 400))
    with pytest.raises(
        TypeError, match=r"signal: expected a NumPy array of float32 or float64, got dtype int"
    ):
        bandpass(x.astype(int), FS, 8, 14)
    with pytest.raises(ValueError, match=r"low and high: expected low < high < fs / 2 = 50 Hz, got 31, 50"):
        bandpass(x, 100.0, 31, 50)
    with pytest.raises(ValueError, match=r"signal: expected more than 33 samples .*, got 20"):
        bandpass(x[:, :20], FS, 8, 14)
    with pytest.raises(ValueError, match="signal: expected finite samples, got NaN or infinity"):
        bandpass(np.full((1, 400), np.nan), FS, 8, 14)
    with pytest.raises(
        ValueError, match=r"signal: expected at least 800 samples \(one window of 4 s\), got 400"
    ):
        band_differential_entropy(x, FS, 4.0)
    with pytest.raises(ValueError, match=r"window_s: expected a whole number of samples, .* got 66\.6"):
        band_differential_entropy(x, FS, 1 / 3)
    with pytest.raises(ValueError, match=r"bands: expected a band that holds a bin .* 0\.5 to 0\.9 Hz"):
        band_differential_entropy(x, FS, 1.0, bands={"slow": (0.5, 0.9)}, definition="spectral")
    with pytest.raises(ValueError, match=r"bands: expected a band that holds a bin .* 0\.9 to 4 Hz"):
        band_differential_entropy(x, FS, 1.0, bands={"slow": (0.9, 4)}, definition="spectral-shifted")
    with pytest.raises(ValueError, match="definition: expected one of 'gaussian'"):
        band_differential_entropy(x, FS, 1.0, definition="v1")
    with pytest.raises(ValueError, match=r"signal: expected \[channels, samples\], got shape \(400,\)"):
        band_differential_entropy(x[0], FS, 1.0)
