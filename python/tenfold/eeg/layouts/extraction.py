"""From raw EEG to rows of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold import _checks
from tenfold.eeg.features import BANDS, DEFINITIONS, Array, band_differential_entropy, to_rows
from tenfold.eeg.smoothing import SMOOTHINGS, describe, lds_smooth, moving_average

__all__ = ["Extraction", "extract"]


@dataclass(frozen=True)
class Extraction:
    """How features are computed from raw EEG.

    Attributes:
        definition: of :func:`tenfold.eeg.features.band_differential_entropy`.
        window_s: seconds per row; None for the data set's own.
        smoothing: ``"lds"``, ``"moving-average"`` or ``"none"``, within each trial.
        causal: neither filter nor smoothing looks ahead; smoothing by ``"lds"`` then needs a ratio.
        ratio, iterations, window: of :mod:`tenfold.eeg.smoothing`.
        order: of the band-pass filter.
    """

    definition: str = "gaussian"
    window_s: float | None = None
    smoothing: str = "lds"
    causal: bool = False
    ratio: float | None = None
    iterations: int = 20
    window: int = 5
    order: int = 5

    def __post_init__(self) -> None:
        _checks.choice("definition", self.definition, DEFINITIONS)
        _checks.choice("smoothing", self.smoothing, SMOOTHINGS)
        if self.causal and self.smoothing == "lds" and self.ratio is None:
            _checks.fail(ValueError, "ratio", "a number with causal=True and smoothing='lds'", None)

    def metadata(self, window_s: float, bands: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
        """What a corpus says about its features."""
        look = "causal" if self.causal else "offline"
        return {
            "features": "differential entropy, computed from raw EEG",
            "de": f"{self.definition}, bits, {f'{look} filter, ' * (self.definition == 'gaussian')}"
            f"bands {', '.join(f'{name} {low:g}-{high:g} Hz' for name, (low, high) in bands.items())}",
            "smoothing": describe(
                self.smoothing,
                causal=self.causal,
                ratio=self.ratio,
                iterations=self.iterations,
                window=self.window,
            ),
            "window_s": self.window_s or window_s,
        }


def extract(
    trials: Sequence[tuple[int, Array]],
    fs: float,
    window_s: float,
    how: Extraction,
    *,
    bands: Mapping[str, tuple[float, float]] = BANDS,
    drop_s: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Features of one domain's trials.

    Args:
        trials: (number, signal [channels, samples]).
        fs: Hz.
        window_s: seconds per row unless `how` says so.
        how: the other choices.
        bands: name -> edges in Hz.
        drop_s: seconds at the start of each trial that are filtered with the rest, then left out.

    Returns:
        x float32 [n, channels * bands] and trial int64 [n].
    """
    window_s = how.window_s or window_s
    dropped = round(drop_s / window_s)
    if abs(dropped * window_s - drop_s) > 1e-9:
        _checks.fail(ValueError, "window_s", f"a length that divides the {drop_s:g} s to leave out", window_s)
    rows, numbers = [], []
    for number, signal in trials:
        if signal.shape[1] < round((drop_s + window_s) * fs):
            expected = f"at least {drop_s + window_s:g} s"
            _checks.fail(ValueError, f"trial {number}", expected, f"{signal.shape[1] / fs:g} s")
        kinds: dict[str, Any] = {"bands": bands, "definition": how.definition, "order": how.order}
        de = band_differential_entropy(signal, fs, window_s, causal=how.causal, **kinds)
        rows.append(to_rows(de[:, dropped:]))
        numbers.append(np.full(len(rows[-1]), number, dtype=np.int64))
    x, trial = np.concatenate(rows), np.concatenate(numbers)
    if how.smoothing == "lds":
        x = lds_smooth(x, trial, ratio=how.ratio, iterations=how.iterations, causal=how.causal)
    elif how.smoothing == "moving-average":
        x = moving_average(x, trial, window=how.window, causal=how.causal)
    return x.astype(np.float32), trial
