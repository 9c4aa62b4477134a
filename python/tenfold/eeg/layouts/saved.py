"""A corpus in one file of our own, so that features are computed once.

An archive of NumPy arrays (.npz) without pickles: `x0`, `y0`, `trial0`, `x1` ...; the rest is JSON, `header`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from tenfold import _checks
from tenfold._npy import read_npz
from tenfold.eeg.corpus import Corpus, Domain
from tenfold.runs.files import replacing

__all__ = ["load_saved", "save"]

_SCHEMA = "tenfold.eeg.corpus/1"


def save(corpus: Corpus, path: str | os.PathLike[str]) -> None:
    """Write a corpus; the file appears when it is whole.

    Args:
        corpus: whose metadata are plain values (what JSON holds).
        path: ends in .npz.

    Raises:
        ValueError: another ending, or metadata that JSON cannot hold.
    """
    target = Path(path).expanduser()
    if target.suffix != ".npz":
        _checks.fail(ValueError, "path", "a name that ends in .npz", target.name)
    arrays: dict[str, np.ndarray] = {}
    for k, domain in enumerate(corpus.domains):
        arrays[f"x{k}"], arrays[f"trial{k}"] = domain.x.cpu().numpy(), domain.trial.cpu().numpy()
        if domain.y is not None:
            arrays[f"y{k}"] = domain.y.cpu().numpy()
    header = {
        "schema": _SCHEMA,
        "name": corpus.name,
        "domains": [{"name": d.name, "subject": d.subject, "session": d.session} for d in corpus.domains],
        "classes": corpus.classes,
        "channels": corpus.channels,
        "bands": corpus.bands,
        "metadata": corpus.metadata,
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: expected plain values, got {error}") from error
    arrays["header"] = np.frombuffer(text.encode(), dtype=np.uint8)
    with replacing(target) as aside, aside.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stubs take the names for `allow_pickle`


def load_saved(path: str | os.PathLike[str]) -> Corpus:
    """Read what :func:`save` has written.

    Raises:
        ValueError: another file, or one that was changed; the message names it.
    """
    source = Path(path).expanduser()
    try:
        header = json.loads(read_npz(source, ["header"])["header"].tobytes())
        if header["schema"] != _SCHEMA:
            _checks.fail(ValueError, "schema", _SCHEMA, header["schema"])
        names = {f"{kind}{k}" for kind in ("x", "y", "trial") for k in range(len(header["domains"]))}
        arrays = read_npz(source, names)
        domains = tuple(
            Domain(
                entry["name"],
                arrays[f"x{k}"],
                arrays.get(f"y{k}"),
                arrays[f"trial{k}"],
                entry["subject"],
                entry["session"],
            )
            for k, entry in enumerate(header["domains"])
        )
        parts = {key: tuple(header[key]) for key in ("classes", "channels", "bands")}
        return Corpus(header["name"], domains, metadata=header["metadata"], **parts)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{source}: expected a saved corpus, got {type(error).__name__}: {error}") from error
