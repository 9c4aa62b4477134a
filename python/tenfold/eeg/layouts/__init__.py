"""Published EEG emotion data sets, read as they were published.

    load("seed", "SEED/ExtractedFeatures")                 features that came with the data
    load("deap", "DEAP/data_preprocessed_python")          features computed from the raw EEG
    load("seed-iv", "SEED_IV/eeg_raw_data", raw=True)      likewise, where both are published

None of these sets may be passed on; their owners give them out on request. Files are told apart by their
names, subjects and trials are sorted by their numbers, never by the order of names or keys, and every error
names the file. `docs/eeg_data.md` lists what is expected where.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tenfold import _checks
from tenfold.eeg.corpus import Corpus
from tenfold.eeg.layouts.complexity import load_complexity
from tenfold.eeg.layouts.deap import load_deap
from tenfold.eeg.layouts.extraction import Extraction
from tenfold.eeg.layouts.faced import load_faced, load_faced_raw
from tenfold.eeg.layouts.saved import load_saved, save
from tenfold.eeg.layouts.seed import load_seed, load_seed_iv, load_seed_iv_raw, load_seed_raw
from tenfold.eeg.layouts.seed_v import load_seed_v

__all__ = [
    "LAYOUTS",
    "Extraction",
    "load",
    "load_complexity",
    "load_deap",
    "load_faced",
    "load_faced_raw",
    "load_saved",
    "load_seed",
    "load_seed_iv",
    "load_seed_iv_raw",
    "load_seed_raw",
    "load_seed_v",
    "save",
]

LAYOUTS: dict[str, tuple[Callable[..., Corpus] | None, Callable[..., Corpus] | None]] = {
    "seed": (load_seed, load_seed_raw),
    "seed-iv": (load_seed_iv, load_seed_iv_raw),
    "seed-v": (load_seed_v, None),
    "deap": (None, load_deap),
    "faced": (load_faced, load_faced_raw),
    "complexity": (load_complexity, None),
    "saved": (load_saved, None),
}
"""Name -> loaders of published features and of raw EEG; None where there is no such thing to load."""


def load(
    name: str,
    path: str | os.PathLike[str],
    *,
    raw: bool | None = None,
    subjects: Sequence[int] | None = None,
    extraction: Extraction | Mapping[str, Any] | None = None,
    **options: Any,
) -> Corpus:
    """A data set by its name.

    Args:
        name: key of :data:`LAYOUTS`.
        path: folder of the files; a file for ``"complexity"`` (see :func:`load_complexity`) and ``"saved"``.
        raw: compute features from raw EEG instead of reading published ones; None takes published features
            where there are any.
        subjects: numbers of the subjects to load; None for all.
        extraction: how features are computed from raw EEG, an :class:`Extraction` or its fields by name; only
            with raw files.
        options: of the loader, say ``feature="de_movingAve"`` for SEED or ``target="arousal"`` for DEAP.

    Raises:
        ValueError: an unknown name, a kind of files that the set has not, or files that are not as published.
        RuntimeError: scipy is needed (raw EEG) and is not installed.
    """
    published, from_raw = LAYOUTS[_checks.choice("name", name, LAYOUTS)]
    if raw is None:
        raw = published is None
    loader = from_raw if raw else published
    if loader is None:
        kind, other = ("raw EEG", "published features") if raw else ("published features", "raw EEG")
        _checks.fail(ValueError, "raw", f"{other}, which {name} has", f"a wish for {kind}")
    if extraction is not None:
        if not raw:
            _checks.fail(ValueError, "extraction", "None with published features", extraction)
        options["extraction"] = _extraction(extraction)
    if subjects is not None:
        options["subjects"] = subjects
    known = sorted(set(inspect.signature(loader).parameters) - {"path"})
    for option in options:
        _checks.choice(f"option of {name}", option, known)
    return loader(path, **options)


def _extraction(given: Extraction | Mapping[str, Any]) -> Extraction:
    if isinstance(given, Extraction):
        return given
    if not isinstance(given, Mapping):
        _checks.fail(TypeError, "extraction", "an Extraction or its fields by name", _checks.describe(given))
    known = [field.name for field in dataclasses.fields(Extraction)]
    for key in given:
        _checks.choice("extraction", key, known)
    return Extraction(**given)
