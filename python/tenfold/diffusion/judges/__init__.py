"""Judges: does a picture show the concept? One interface for every detector.

A judge is anything that turns pictures [B, C, H, W] in [0, 1] into a `Verdict`. `verdict_of` calls it and
refuses what is no yes or no.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from tenfold import _checks

__all__ = ["Judge", "Verdict", "verdict_of"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a judge says of B pictures.

    success: bool [B], the concept is there.
    label: the likeliest class of each picture, B strings.
    score: float32 [B], the judge's own measure of the concept (its docstring says which).
    accepted: bool [B], the picture looks like what the judge was trained on; without this a closed-set
        classifier gives noise a label. `success` is False where it is False.
    details: more of a judge, one entry per picture (ranked labels, classes found, ...).
    """

    success: Tensor
    label: tuple[str, ...]
    score: Tensor
    accepted: Tensor
    details: tuple[Any, ...] = field(default=())

    def __len__(self) -> int:
        return self.success.numel()


@runtime_checkable
class Judge(Protocol):
    """`name` stands in results; calling it judges pictures [B, C, H, W], float, in [0, 1]."""

    name: str

    def __call__(self, images: Tensor) -> Verdict: ...


def verdict_of(judge: Any, images: Tensor) -> Verdict:
    """Call a judge and check what it returns.

    A plain function may return a bool tensor or a list of bools instead of a `Verdict`: then it has no score
    and accepts every picture.

    Raises:
        TypeError: the answer is not one bool per picture. ValueError: a score is not finite.
    """
    name = str(getattr(judge, "name", getattr(judge, "__name__", type(judge).__name__)))
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = (
            f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else _checks.describe(images)
        )
        _checks.fail(TypeError, "images", "a floating tensor [B, C, H, W]", got)
    answer = judge(images)
    count = images.shape[0]
    if not isinstance(answer, Verdict):
        success = _bools(f"judge {name}", answer, count)
        return Verdict(success, ("",) * count, success.float(), torch.ones(count, dtype=torch.bool))
    success = _bools(f"judge {name}: success", answer.success, count)
    accepted = _bools(f"judge {name}: accepted", answer.accepted, count)
    score = torch.as_tensor(answer.score, dtype=torch.float32).flatten().cpu()
    _checks.length(f"judge {name}: score", score.tolist(), count, "the pictures")
    _checks.length(f"judge {name}: label", answer.label, count, "the pictures")
    if answer.details:
        _checks.length(f"judge {name}: details", answer.details, count, "the pictures")
    if not bool(score.isfinite().all()):
        _checks.fail(ValueError, f"judge {name}: score", "finite numbers", score[~score.isfinite()][0].item())
    return Verdict(success & accepted, tuple(answer.label), score, accepted, tuple(answer.details))


def _bools(name: str, value: Any, count: int) -> Tensor:
    if isinstance(value, Tensor):
        if value.dtype != torch.bool:
            _checks.fail(TypeError, name, "bools", value.dtype)
        found = value.flatten().cpu()
    else:
        rows = value.tolist() if hasattr(value, "tolist") else value
        wrong = [one for one in _checks.sequence(name, rows, "bools") if not isinstance(one, bool)]
        if wrong:
            _checks.fail(TypeError, name, "bools", _checks.describe(wrong[0]))
        found = torch.tensor(list(rows), dtype=torch.bool)
    _checks.length(name, found.tolist(), count, "the pictures")
    return found
