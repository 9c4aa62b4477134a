"""Image classifiers of transformers as judges: objects (ImageNet) and styles (a classifier of artists)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.folders import whole
from tenfold.diffusion.judges import Verdict

__all__ = ["IMAGENET", "ImageClassifierJudge", "as_pil", "is_label"]

IMAGENET = {
    "tench": 0,
    "english springer": 217,
    "cassette player": 482,
    "chain saw": 491,
    "church": 497,
    "french horn": 566,
    "garbage truck": 569,
    "gas pump": 571,
    "golf ball": 574,
    "parachute": 701,
}
"""The ten classes of Imagenette, by ImageNet's numbers: the objects of the published attack benchmarks."""


class ImageClassifierJudge:
    """Is one of the k likeliest classes the concept?

    Objects: `ImageClassifierJudge(FOLDER, "church")` with ImageNet weights (the benchmarks use ResNet-50).
    Styles: `ImageClassifierJudge(FOLDER, "vincent-van-gogh", top_k=3)` with a classifier of artists.

    model: folder or hub id of an `AutoModelForImageClassification`, safetensors.
    target: the label's name, or its number; for ImageNet one of `IMAGENET` too.
    top_k: 1, 3 or 10 in the published tables. score: the target's probability. details: the ten likeliest
    labels of each picture.
    A classifier of a closed set gives every picture one of its classes: `accepted` is always true here.
    """

    def __init__(self, model: str | Path, target: str | int, *, top_k: int = 1, device: Any = "cpu") -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.processor = AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
        self.model = whole("model", AutoModelForImageClassification, model, trust_remote_code=False)
        self.model.to(device).eval().requires_grad_(False)
        self.labels = {int(i): str(name) for i, name in self.model.config.id2label.items()}
        self.target = _class_of(target, self.labels)
        self.top_k = _checks.integer("top_k", top_k, 1, len(self.labels))
        self.name = f"{Path(model).name}-{self.labels[self.target]}" + (f"-top{top_k}" if top_k > 1 else "")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Verdict:
        if not images.shape[0]:
            none = torch.empty(0, dtype=torch.bool)
            return Verdict(none, (), torch.empty(0), none)
        pixels = self.processor(images=as_pil(images), return_tensors="pt")["pixel_values"]
        chances = self.model(pixel_values=pixels.to(self.model.device)).logits.float().softmax(-1).cpu()
        order = torch.sort(chances, dim=-1, descending=True, stable=True).indices
        success = (order[:, : self.top_k] == self.target).any(-1)
        ranked = tuple(tuple(self.labels[i] for i in row[:10]) for row in order.tolist())
        first = tuple(row[0] for row in ranked)
        return Verdict(success, first, chances[:, self.target], torch.ones_like(success), ranked)


def is_label(name: str, label: str) -> bool:
    """Whether `name` means a label, whatever its case and hyphens. ImageNet's labels are lists of synonyms:
    "tench, Tinca tinca"."""
    return _plain(name) in (_plain(label), *(_plain(part) for part in label.split(",")))


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", " ").replace("-", " ")


def _class_of(target: str | int, labels: dict[int, str]) -> int:
    if isinstance(target, int) and not isinstance(target, bool):
        return _checks.integer("target", target, 0, len(labels) - 1)
    for number, label in labels.items():
        if is_label(str(target), label):
            return number
    if _plain(str(target)) in IMAGENET and len(labels) == 1000:
        return IMAGENET[_plain(str(target))]
    _checks.fail(ValueError, "target", f"a label of the classifier ({_some(labels)})", repr(target))


def _some(labels: dict[int, str]) -> str:
    names: Sequence[str] = list(labels.values())
    return ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")


def as_pil(images: Tensor) -> list[Any]:
    """Pictures [B, C, H, W] in [0, 1] as PIL images of 8 bits, rounded; gray ones become RGB."""
    from PIL import Image

    rows = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    rows = rows.expand(-1, 3, -1, -1) if rows.shape[1] == 1 else rows
    return [Image.fromarray(row) for row in rows.permute(0, 2, 3, 1).contiguous().numpy()]
