"""EEG emotion recognition across people and days: features, data sets, protocols, adaptation methods.

    tenfold.eeg.load_vowel()                            the embedded data: 15 speakers, 11 vowels
    tenfold.eeg.load("seed", "SEED/ExtractedFeatures")  a published data set
    tenfold.eeg.folds(corpus, "cross-session")          which domains train and which one is tested
    tenfold.eeg.adapt(MsdcdaConfig(seeds=[0]))          the workflow msdcda: methods compared on every fold

Submodules load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.eeg.corpus import Corpus, Domain
    from tenfold.eeg.layouts import LAYOUTS, Extraction, load, save
    from tenfold.eeg.normalise import NORMALISATIONS, normalise_fold
    from tenfold.eeg.protocols import PROTOCOLS, Fold, folds
    from tenfold.eeg.run import adapt
    from tenfold.eeg.run_config import MsdcdaConfig
    from tenfold.eeg.smoothing import smooth
    from tenfold.eeg.vowel import load_vowel

__all__ = [
    "LAYOUTS",
    "NORMALISATIONS",
    "PROTOCOLS",
    "Corpus",
    "Domain",
    "Extraction",
    "Fold",
    "MsdcdaConfig",
    "adapt",
    "folds",
    "load",
    "load_vowel",
    "normalise_fold",
    "save",
    "smooth",
]

_HOMES = {
    "LAYOUTS": "layouts",
    "Extraction": "layouts",
    "load": "layouts",
    "save": "layouts",
    "smooth": "smoothing",
    "adapt": "run",
    "MsdcdaConfig": "run_config",
    "NORMALISATIONS": "normalise",
    "PROTOCOLS": "protocols",
    "Corpus": "corpus",
    "Domain": "corpus",
    "Fold": "protocols",
    "folds": "protocols",
    "load_vowel": "vowel",
    "normalise_fold": "normalise",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tenfold.eeg.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
