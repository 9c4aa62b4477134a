"""The 3-D U-Net of the challenge's tutorial, and its file: weights with all that is needed to use them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold._reading import reading
from tenfold.runs.files import read_safetensors
from tenfold.segmentation.preprocess import SPACING, Statistics

__all__ = ["Recipe", "UNet3D", "load_network", "save_network"]


@dataclass
class Recipe:
    """A network and how volumes come to it; stored with its weights."""

    classes: int
    """Outputs, background included."""
    channels: int = 2
    """Inputs: non-contrast and contrast-enhanced CT."""
    features: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    """Feature maps of each resolution."""
    dropout: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.1, 0.2])
    """Of each resolution."""
    patch: list[int] = field(default_factory=lambda: [32, 128, 320])
    """Window (z, y, x), each divisible by 2 to the number of halvings."""
    spacing: list[float] = field(default_factory=lambda: list(SPACING))
    """Grid of the network in mm, (z, y, x)."""
    statistics: list[dict[str, float]] = field(default_factory=list)
    """Of each channel; see `tenfold.segmentation.preprocess.Statistics`."""
    task: str = "1"
    """What the labels mean: task 1, 2, or something else."""

    def check(self) -> None:
        """Raise ValueError for what does not fit."""
        if self.classes < 2 or len(self.features) < 2 or len(self.dropout) != len(self.features):
            raise ValueError(f"recipe: expected >= 2 classes and as many dropouts as features, got {self}")
        step = 2 ** (len(self.features) - 1)
        if len(self.patch) != 3 or any(n < step or n % step for n in self.patch):
            raise ValueError(f"patch: expected three multiples of {step}, got {self.patch}")

    def scales(self) -> list[Statistics]:
        """The stored statistics of the channels."""
        return [Statistics(**values) for values in self.statistics]


class UNet3D(nn.Module):
    """Two 3 x 3 x 3 convolutions per block, BatchNorm, LeakyReLU, max pooling; up by 1 x 1 x 1 and trilinear.

    Input [B, channels, z, y, x]; output logits [B, classes, z, y, x]. With `deep`, forward gives a list in
    training: full resolution first, then each coarser one.
    """

    def __init__(self, recipe: Recipe, deep: bool = False):
        super().__init__()
        recipe.check()
        sizes = recipe.features
        self.deep = deep
        ins = [recipe.channels, *sizes[:-1]]
        self.down = nn.ModuleList(
            _block(a, b, drop) for a, b, drop in zip(ins, sizes, recipe.dropout, strict=True)
        )
        pairs = list(zip(sizes[1:], sizes[:-1], strict=True))[::-1]  # (coarse, fine), coarsest first
        self.reduce = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for coarse, fine in pairs)
        self.up = nn.ModuleList(_block(2 * fine, fine, 0.0) for _, fine in pairs)
        self.head = nn.Conv3d(sizes[0], recipe.classes, 1)
        coarse_heads = [fine for _, fine in pairs[:-1]] if deep else []
        self.coarse_heads = nn.ModuleList(nn.Conv3d(n, recipe.classes, 1) for n in coarse_heads)

    def forward(self, x: Tensor) -> Any:
        """Logits, or their list."""
        kept = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool3d(x, 2) if i else x)
            kept.append(x)
        outputs = []
        for i, (reduce, block) in enumerate(zip(self.reduce, self.up, strict=True)):
            fine = kept[-2 - i]
            x = F.interpolate(reduce(x), fine.shape[2:], mode="trilinear", align_corners=True)
            x = block(torch.cat([fine, x], 1))
            if i < len(self.coarse_heads):
                outputs.append(self.coarse_heads[i](x))
        logits = self.head(x)
        return [logits, *outputs[::-1]] if self.deep and self.training else logits


def _block(ins: int, outs: int, dropout: float) -> nn.Sequential:
    def layer(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.LeakyReLU(inplace=True)]

    return nn.Sequential(*layer(ins, outs), nn.Dropout3d(dropout), *layer(outs, outs))


def save_network(path: Path, network: UNet3D, recipe: Recipe) -> None:
    """Weights as safetensors, the recipe in their metadata."""
    from safetensors.torch import save_file

    from tenfold.runs.files import replacing

    with replacing(path) as aside:
        tensors = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
        save_file(tensors, aside, metadata={"recipe": json.dumps(asdict(recipe))})


def load_network(path: Path) -> tuple[UNet3D, Recipe]:
    """The network, ready for inference, and its recipe. ValueError for another file."""
    tensors, metadata = read_safetensors(path)
    if "recipe" not in metadata:
        raise ValueError(f"{path}: expected a network with its recipe, got other tensors")
    with reading(path, "a network with its recipe"):
        recipe = Recipe(**json.loads(metadata["recipe"]))
        deep = any(name.startswith("coarse_heads.") for name in tensors)
        with torch.device("meta"):  # the recipe may claim any size: refused before there is room
            UNet3D(recipe, deep).load_state_dict(tensors, assign=True)
        network = UNet3D(recipe, deep)
        network.load_state_dict(tensors)
    return network.eval(), recipe
