"""Teaching the embedded model what it is to forget, once: the weights are kept in a cache.

The file is named by a hash of everything that decides them (rows, settings, shapes), so that another setting
never finds them; it is written aside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tenfold.llm.unlearn.subject import EncodedRow, Subject
from tenfold.llm.unlearn.trainer import Job, train
from tenfold.runs import RunFolder
from tenfold.runs.files import read_safetensors, replacing

__all__ = ["cache_folder", "taught"]

FORM = "tenfold.taught/1"


def cache_folder(asked: str = "") -> Path:
    """The folder asked for, or $TENFOLD_CACHE, or ~/.cache/tenfold."""
    return Path(asked or os.environ.get("TENFOLD_CACHE", "") or Path.home() / ".cache" / "tenfold")


def taught(
    subject: Subject, parts: Sequence[str], *, model: str, epochs: float, label: str, folder: RunFolder,
    cache: Path | None,
) -> tuple[dict[str, Tensor], bool]:  # fmt: skip
    """Weights of the trained blocks after teaching the sets ``parts``, and whether they were in the cache.

    The subject must hold the model as it was; it is left with the taught weights. Its set ``forget`` is what
    it was before.

    Args:
        cache: folder, or None to teach in any case (a model whose name says nothing about its weights).
    """
    job = Job(
        key=f"teach-{label.replace(' ', '-')}", method="teach", optimizer="adamw", lr=1e-3, epochs=epochs,
        batch_size=20, warmup=0.1, weight_decay=0.0,
    )  # fmt: skip
    rows = [row for part in parts for row in subject.rows(part)]
    path = None if cache is None else cache / "soul" / f"{_hash(subject, rows, model, job)}.safetensors"
    if path is not None and path.exists():
        weights, _ = read_safetensors(path)
        subject.put(weights)
        return weights, True
    subject.join("forgotten", ["forget"])
    subject.join("forget", parts)
    train(subject, job, folder, label=label)
    subject.join("forget", ["forgotten"])
    weights = subject.weights()
    if path is not None:
        from safetensors.torch import save_file

        with replacing(path) as aside:
            dense = {name: tensor.contiguous().cpu() for name, tensor in weights.items()}
            save_file(dense, aside, {"format": FORM})
    return weights, False


def _hash(subject: Subject, rows: Sequence[EncodedRow], model: str, job: Job) -> str:
    said: dict[str, Any] = {
        "form": FORM, "model": model, "trainable": subject.trainable,
        "shapes": {name: [*p.shape, str(p.dtype)] for name, p in subject.parameters.items()},
        "lr": job.lr, "epochs": job.epochs, "batch": job.batch_size, "warmup": job.warmup,
        "rows": [[list(row.ids), list(row.labels)] for row in rows],
    }  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
