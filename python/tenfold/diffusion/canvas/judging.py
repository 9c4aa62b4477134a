"""What two judges, one of styles and one of objects, see in an answer set.

A judge is a callable from pictures, float32 [B, 3, H, W] in [0, 1], to logits [B, K], with a `name` and its
`classes`, K names. They are matched with the canvas' names whatever their case, spaces and underscores; a
judge may know more classes than the canvas has, never fewer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.canvas.answers import AnswerSet
from tenfold.diffusion.canvas.keys import Key
from tenfold.diffusion.canvas.vocabulary import Canvas, plain_name

__all__ = [
    "ConceptJudge",
    "FunctionJudge",
    "JudgeCard",
    "JudgeWarning",
    "Predictions",
    "ViTJudge",
    "judge_answers",
]

VALID_FROM = 0.8
"""Below this accuracy on what the base model draws, a judge says little of edited models."""


class JudgeWarning(UserWarning):
    """A judge does not know what the base model draws: outside its domain, or a model that draws badly."""


@dataclass(frozen=True)
class JudgeCard:
    """What a judge is. domain: "style" or "object". accuracy: share of `n` held-out pictures; None, unknown.
    trained_on: which pictures its answers are valid for."""

    name: str
    domain: str
    classes: tuple[str, ...]
    accuracy: float | None = None
    n: int = 0
    trained_on: str = ""


@runtime_checkable
class ConceptJudge(Protocol):
    """See the module. It may have a `card`, a `JudgeCard`."""

    name: str
    classes: Sequence[str]

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class FunctionJudge:
    """Any function of pictures [B, 3, H, W] to logits [B, K] as a judge."""

    name: str
    classes: tuple[str, ...]
    function: Callable[[Tensor], Tensor]
    card: JudgeCard | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images)


class ViTJudge:
    """A `ViTForImageClassification` (or another image classifier of transformers) from its folder.

    Pictures are squeezed to the model's square (Pillow's bilinear filter, the shape is not kept) and
    brought to (x - 0.5) / 0.5, as the published judges (ViT-L/16, 51 styles and 20 objects) read them.

    model: folder or hub id, safetensors. The published `style50.pth` and `style50_cls.pth` are pickles of a
    timm model and are not read: their weights must have been brought into such a folder, the names of its
    classes in `id2label`.
    classes: names by class number, if `id2label` does not have them.

    Raises:
        ValueError: a pickle, or another number of names. OSError: no such model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        classes: Sequence[str] | None = None,
        mean: float = 0.5,
        std: float = 0.5,
        device: Any = "cpu",
        card: JudgeCard | None = None,
    ) -> None:
        if Path(model).suffix in {".pth", ".pt", ".ckpt", ".bin", ".pkl"}:
            expected = "a folder of transformers with safetensors weights"
            _checks.fail(ValueError, "model", expected, f"{model}, a pickle, which may run code")
        from transformers import AutoModelForImageClassification

        from tenfold.diffusion.folders import whole

        self.model = whole("model", AutoModelForImageClassification, model, trust_remote_code=False)
        self.model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.classes = tuple(classes or (str(config.id2label[i]) for i in range(config.num_labels)))
        _checks.length("classes", self.classes, int(config.num_labels), "the model's classes")
        size = config.image_size
        self.size = (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.mean, self.std = _checks.real("mean", mean), _checks.real("std", std, positive=True)
        self.name, self.card = Path(model).name, card

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = (_squeezed(images, self.size) - self.mean) / self.std
        logits: Tensor = self.model(pixel_values=pixels.to(self.model.device)).logits
        return logits.float().cpu()


def _squeezed(images: Tensor, size: tuple[int, int]) -> Tensor:
    """float32 [B, 3, *size] by Pillow's antialiased bilinear filter on eight bits."""
    from PIL import Image

    from tenfold.diffusion.judges.classifier import as_pil

    rows = [
        np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
        for picture in as_pil(images)
    ]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True, eq=False)
class Predictions:
    """What judges said of each picture of an answer set.

    keys: the pictures, N. method, target: of the answer set.
    style_classes: the canvas' styles and, behind them, other classes that the judge knows. object_classes
    likewise.
    style_log: log-probabilities, float64 [N, S]. object_log: float64 [N, O].
    judges: names of both. cards: what is known of them. extra: files that belonged to no key.
    """

    canvas: Canvas
    keys: tuple[Key, ...]
    style_classes: tuple[str, ...]
    object_classes: tuple[str, ...]
    style_log: NDArray[np.float64]
    object_log: NDArray[np.float64]
    method: str = ""
    target: str = ""
    judges: tuple[str, str] = ("", "")
    cards: tuple[JudgeCard | None, JudgeCard | None] = (None, None)
    extra: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for what, found, names, need in (
            ("style_log", self.style_log, self.style_classes, self.canvas.styles),
            ("object_log", self.object_log, self.object_classes, self.canvas.objects),
        ):
            if found.shape != (len(self.keys), len(names)):
                _checks.fail(ValueError, what, f"shape {(len(self.keys), len(names))}", found.shape)
            if tuple(names[: len(need)]) != tuple(need):
                _checks.fail(ValueError, what, "classes in the canvas' order", names[: len(need)])
            if not bool((np.isfinite(found) | np.isneginf(found)).all()):
                _checks.fail(ValueError, what, "log-probabilities", "NaN or infinity")

    def __len__(self) -> int:
        return len(self.keys)

    def classes(self, domain: str) -> tuple[str, ...]:
        """Of the style judge or of the object judge."""
        _checks.choice("domain", domain, ("style", "object"))
        return self.style_classes if domain == "style" else self.object_classes

    def log(self, domain: str) -> NDArray[np.float64]:
        """Log-probabilities [N, K] of a domain's judge."""
        _checks.choice("domain", domain, ("style", "object"))
        return self.style_log if domain == "style" else self.object_log

    def truth(self, domain: str) -> NDArray[np.int64]:
        """[N]: the class of each picture's prompt."""
        names = self.canvas.names(domain)
        index = {name: i for i, name in enumerate(names)}
        return np.array([index[k.style if domain == "style" else k.object] for k in self.keys], np.int64)

    def said(self, domain: str) -> NDArray[np.int64]:
        """[N]: the judge's class; of equal ones the first."""
        return self.log(domain).argmax(axis=1).astype(np.int64)

    def right(self, domain: str) -> NDArray[np.bool_]:
        """[N]: the judge says what the prompt does."""
        return np.asarray(self.said(domain) == self.truth(domain), dtype=np.bool_)

    def accuracy(self, domain: str) -> float:
        """Share of pictures that the judge names as their prompt does."""
        return float(self.right(domain).mean())

    def doubts(self, at_least: float = VALID_FROM) -> list[str]:
        """What speaks against the judges, when these are the base model's pictures; none if all is well."""
        found = []
        for domain, judge in zip(("style", "object"), self.judges, strict=True):
            share = self.accuracy(domain)
            if share < at_least:
                found.append(
                    f"the {domain} judge {judge!r} is right on {100 * share:.1f} % of the base model's "
                    f"pictures, less than {100 * at_least:.0f} %: its answers on edited models say little"
                )
        return found


def judge_answers(
    answers: AnswerSet,
    style_judge: Any,
    object_judge: Any,
    *,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Let both judges see every picture.

    Args:
        style_judge, object_judge: see the module. batch: pictures at a time.
        progress: called with (pictures done, pictures in all).

    Warns:
        JudgeWarning: the pictures are a base model's (no target), and a judge is right on less than 80 %.

    Raises:
        TypeError: no judge, or no logits [B, K]. ValueError: a name of the canvas is not among a judge's
            classes; a file cannot be read, or logits are not finite (the file is named).
    """
    canvas = answers.canvas
    judges = (style_judge, object_judge)
    orders = [
        class_order(f"{domain}_judge", judge, canvas.names(domain))
        for domain, judge in zip(("style", "object"), judges, strict=True)
    ]
    found: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    for indices, pictures in answers.batches(batch):
        images = pictures.expand(-1, 3, -1, -1).float() / 255
        for rows, judge, (order, _), domain in zip(found, judges, orders, ("style", "object"), strict=True):
            logits = _logits(f"{domain}_judge", judge, images, len(order), answers, indices)
            rows.append(torch.log_softmax(logits[:, order], dim=1).numpy())
        if progress is not None:
            progress(indices.stop, len(answers))
    cards = tuple(getattr(judge, "card", None) for judge in judges)
    result = Predictions(
        canvas, answers.keys, orders[0][1], orders[1][1], np.concatenate(found[0]), np.concatenate(found[1]),
        answers.method, answers.target, (str(style_judge.name), str(object_judge.name)),
        (cards[0], cards[1]), answers.extra,
    )  # fmt: skip
    for doubt in result.doubts() if not answers.target else ():
        warnings.warn(doubt, JudgeWarning, stacklevel=2)
    return result


def class_order(what: str, judge: Any, names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """The judge's class numbers, the canvas' first, and the names in that order."""
    if not callable(judge) or not hasattr(judge, "classes") or not hasattr(judge, "name"):
        _checks.fail(TypeError, what, "a callable with `name` and `classes`", _checks.describe(judge))
    classes = [str(one) for one in judge.classes]
    number = {plain_name(one): i for i, one in enumerate(classes)}
    if len(number) != len(classes):
        _checks.fail(ValueError, what, "classes that differ", f"{len(classes) - len(number)} repeated")
    missing = [name for name in names if plain_name(name) not in number]
    if missing:
        shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        _checks.fail(ValueError, what, f"all {len(names)} names of the canvas", f"none of {shown}")
    first = [number[plain_name(name)] for name in names]
    rest = [i for i in range(len(classes)) if i not in set(first)]
    return [*first, *rest], (*names, *(classes[i] for i in rest))


def _logits(
    what: str, judge: Any, images: Tensor, classes: int, answers: AnswerSet, indices: range
) -> Tensor:
    with torch.no_grad():
        logits = judge(images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), classes):
        got = list(logits.shape) if isinstance(logits, Tensor) else _checks.describe(logits)
        _checks.fail(TypeError, what, f"logits {[len(images), classes]}", got)
    logits = logits.detach().double().cpu()
    bad = (~logits.isfinite()).any(dim=1)
    if bool(bad.any()):
        name = answers.name(indices[int(bad.nonzero()[0])])
        _checks.fail(ValueError, what, "finite logits", f"NaN or infinity for {name}")
    return logits
