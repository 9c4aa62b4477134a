"""The corpus that a run's settings name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tenfold.eeg.corpus import Corpus

if TYPE_CHECKING:
    from tenfold.eeg.run_config import MsdcdaConfig

__all__ = ["load_corpus"]


def load_corpus(config: MsdcdaConfig) -> Corpus:
    """Read the data set.

    Raises:
        FileNotFoundError, ValueError: files that are missing or not as their data set is published.
        tenfold.assets.AssetError: the embedded file is missing; the message says how to install it.
    """
    if config.dataset == "vowel":
        from tenfold.eeg.vowel import load_vowel

        return load_vowel(config.data or None)
    from tenfold.eeg.layouts import load

    given = {"feature": config.feature, "target": config.label, "threshold": config.threshold}
    options: dict[str, Any] = {name: value for name, value in given.items() if value not in ("", None)}
    return load(
        config.dataset, config.data, raw=config.raw, subjects=config.subjects or None,
        extraction=config.extraction or None, **options,
    )  # fmt: skip
