"""The model before unlearning as its likeliest tokens at the labelled positions, kept in a file.

KL and UNDIAL compare with the whole distribution of that model. Kept are K tokens per position with their
log-probabilities and the logarithm of the mass of all others, 8 K + 4 bytes, and no second model. What that
costs in accuracy: :func:`tenfold.ops.linear_topk_kl`.

The file is safetensors. For each set of rows: ``SET.tokens`` int32 [M, K], ``SET.logp`` float32 [M, K],
``SET.log_rest`` float32 [M], ``SET.starts`` int64 [R + 1]: positions starts[i] to starts[i + 1] are those of
row i, in order. The metadata names the format, K, and a hash of the rows and of the trained weights that it
was made with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tenfold import ops
from tenfold._reading import reading
from tenfold.llm.unlearn.subject import Subject

__all__ = ["Kept", "load", "remember", "save", "take"]

FORMAT = "tenfold.topk/1"


class Kept(NamedTuple):
    """tokens int32 [M, K], logp float32 [M, K], log_rest float32 [M] of all positions of a set, row by row;
    starts int64 [R + 1]. On the CPU."""

    tokens: Tensor
    logp: Tensor
    log_rest: Tensor
    starts: Tensor


def take(kept: Kept, chosen: Sequence[int], device: torch.device) -> ops.TopK:
    """The positions of the chosen rows, in their order."""
    at = torch.cat([torch.arange(int(kept.starts[i]), int(kept.starts[i + 1])) for i in chosen])
    found = (kept.tokens[at].long(), kept.logp[at], kept.log_rest[at])
    return ops.TopK(*(t.to(device) for t in found))


def remember(subject: Subject, names: Sequence[str], k: int, path: Path | None = None) -> dict[str, Kept]:
    """The k likeliest tokens, the label among them, at the labelled positions of each set.

    Args:
        path: read if it is there, else written.

    Raises:
        ValueError: k above the vocabulary; a file of another model, other rows or another k.
    """
    size = subject.head.weight.shape[0]
    if k > size:
        raise ValueError(f"topk: expected at most {size}, the vocabulary, got {k}")
    mark = _mark(subject, names)
    if path is not None and path.exists():
        return load(path, names, k, mark)
    found = {name: _make(subject, name, k) for name in names}
    if path is not None:
        save(path, found, mark)
    return found


@torch.no_grad()
def _make(subject: Subject, name: str, k: int) -> Kept:
    pieces: list[tuple[Tensor, ...]] = [()] * subject.count(name)
    head = subject.head
    for chosen in subject.by_length(name, 32):
        rows = subject.labelled(subject.batch(name, chosen))
        top = ops.linear_topk(
            rows.hidden, head.weight, k, head.bias, targets=rows.targets, softcap=head.softcap
        )
        for place, i in enumerate(chosen):
            mine = rows.sequence == place
            pieces[i] = (top.tokens[mine].int().cpu(), top.logp[mine].cpu(), top.log_rest[mine].cpu())
    tokens, logp, log_rest = (torch.cat(column) for column in zip(*pieces, strict=True))
    lengths = torch.tensor([0, *(len(piece[2]) for piece in pieces)])
    return Kept(tokens, logp, log_rest, lengths.cumsum(0))


def save(path: Path, kept: dict[str, Kept], mark: str) -> None:
    """Write the sets aside, then rename. ``mark``: what they belong to."""
    from safetensors.torch import save_file

    tensors = {f"{name}.{field}": t for name, one in kept.items() for field, t in one._asdict().items()}
    k = next(iter(kept.values())).tokens.shape[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, aside, metadata={"format": FORMAT, "k": str(k), "mark": mark})
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path, names: Iterable[str], k: int, mark: str) -> dict[str, Kept]:
    """The sets of a file.

    Raises:
        ValueError: another format, k or mark; a set that is not there.
    """
    from safetensors import safe_open

    with reading(path, "kept tokens"), safe_open(path, framework="pt") as file:
        found = file.metadata() or {}
        for name, expected in (("format", FORMAT), ("k", str(k)), ("mark", mark)):
            if found.get(name) != expected:
                raise ValueError(f"{path.name}: expected {name} {expected}, got {found.get(name)}")
        there = set(file.keys())
        missing = [f"{n}.{field}" for n in names for field in Kept._fields if f"{n}.{field}" not in there]
        if missing:
            raise ValueError(f"{path.name}: expected {missing[0]}, got {', '.join(sorted(there))}")
        return {n: Kept(*(file.get_tensor(f"{n}.{field}") for field in Kept._fields)) for n in names}


def _mark(subject: Subject, names: Sequence[str]) -> str:
    """Hash of the trained weights and of the rows."""
    found = hashlib.sha256()
    for name, parameter in subject.parameters.items():
        found.update(name.encode())
        found.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    for name in names:
        rows = [(list(row.ids), list(row.labels)) for row in subject.rows(name)]
        found.update(repr((name, rows)).encode())
    return found.hexdigest()
