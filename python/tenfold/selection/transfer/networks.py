"""Networks by name, their heads, and weights from safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks
from tenfold.runs.files import read_safetensors
from tenfold.selection.transfer.resnet import resnet
from tenfold.selection.transfer.vit import vit_b_16

__all__ = [
    "ARCHITECTURES", "BlurPoolConv2d", "Network", "apply_blurpool", "build", "head_of", "load_weights",
    "replace_head",
]  # fmt: skip

ARCHITECTURES = (
    "small", "cnn", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vit_b_16",
)  # fmt: skip


class Network(Protocol):
    """Logits of images, and the features that the head sees."""

    def features(self, x: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class SmallCNN(nn.Module):
    """Convolutions of 3 x 3 with ReLU, the first two with a max pool, then the mean, then `fc`: 8-16-32.

    The surrogate of the embedded experiments.
    """

    def __init__(self, channels: int = 1, classes: int = 10, widths: tuple[int, ...] = (8, 16, 32)):
        super().__init__()
        self.body = nn.Sequential()
        for k, width in enumerate(widths):
            self.body.append(nn.Conv2d(channels, width, 3, padding=1))
            self.body.append(nn.BatchNorm2d(width))
            self.body.append(nn.ReLU())
            if k < 2:
                self.body.append(nn.MaxPool2d(2))
            channels = width
        self.fc = nn.Linear(channels, classes)

    def features(self, x: Tensor) -> Tensor:
        """Channel means, [B, 32]."""
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class WiderCNN(nn.Module):
    """Two convolutions (16, 32) with batch normalisation, ReLU and max pool, 64 hidden units, then `fc`.

    The model that is pretrained and transferred in the embedded experiments.
    """

    def __init__(self, channels: int = 1, classes: int = 10, side: int = 8):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(32 * (side // 4) ** 2, 64), nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(64, classes)

    def features(self, x: Tensor) -> Tensor:
        """Hidden units, [B, 64]."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def build(
    name: str, classes: int, *, channels: int = 3, side: int = 224, blurpool: bool = False
) -> nn.Module:
    """A network with fresh weights (drawn from torch's generator).

    Args:
        name: one of ARCHITECTURES. small and cnn take any channels and sides (multiples of 4).
        classes: outputs.
        channels, side: of the images, for small and cnn.
        blurpool: low-pass before the convolutions with a stride, in ResNets (arXiv 1904.11486).
    """
    _checks.choice("name", name, ARCHITECTURES)
    _checks.integer("classes", classes, 1, 1 << 24)
    if name == "small":
        return SmallCNN(channels, classes)
    if name == "cnn":
        return WiderCNN(channels, classes, side)
    if channels != 3:
        _checks.fail(ValueError, "channels", f"3 for {name}", channels)
    network: nn.Module = vit_b_16(classes) if name == "vit_b_16" else resnet(name, classes)
    if blurpool:
        apply_blurpool(network)
    return network


class BlurPoolConv2d(nn.Module):
    """A convolution behind a fixed 3 x 3 binomial low-pass."""

    blur_filter: Tensor

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.conv = conv
        self.register_buffer("blur_filter", (row[:, None] * row).repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(x, self.blur_filter, padding=1, groups=x.shape[1]))


def apply_blurpool(module: nn.Module) -> None:
    """Put a low-pass before every convolution that has a stride and at least 16 input channels."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(module, name, BlurPoolConv2d(child))
        else:
            apply_blurpool(child)


def head_of(network: nn.Module) -> nn.Linear:
    """The last linear layer: `fc`, or ViT's `heads.head`."""
    for name in ("fc", "heads.head"):
        try:
            found = network.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.Linear):
            return found
    _checks.fail(ValueError, "network", "a linear head `fc` or `heads.head`", type(network).__name__)


def replace_head(network: nn.Module, classes: int) -> nn.Linear:
    """A new head with `classes` outputs, drawn as nn.Linear does; returned."""
    old = head_of(network)
    new = nn.Linear(old.in_features, classes, device=old.weight.device, dtype=old.weight.dtype)
    if hasattr(network, "fc"):
        network.fc = new
    else:
        cast(Any, network).heads.head = new
    return new


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a .safetensors file strictly; "module." and "network." before the names are dropped.

    Raises:
        ValueError: another kind of file (pickled checkpoints run code when they are read: convert them once
            with safetensors.torch.save_file), or names or shapes that differ (the first of each is named).
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        expected = "a .safetensors file (safetensors.torch.save_file writes one from a state dict)"
        _checks.fail(ValueError, "weights", expected, repr(str(path)))
    if not path.exists():
        raise FileNotFoundError(f"weights: expected a file, got {path}, which is not there")
    stored = {_bare(name): value for name, value in read_safetensors(path)[0].items()}
    own = network.state_dict()
    missing = [name for name in own if name not in stored]
    foreign = [name for name in stored if name not in own]
    if missing or foreign:
        got = [f"no {missing[0]} ({len(missing)} missing)"] if missing else []
        got += [f"{foreign[0]} ({len(foreign)} that it does not have)"] if foreign else []
        expected = f"the tensors of {type(network).__name__}"
        _checks.fail(ValueError, str(path), expected, " and ".join(got))
    for name, value in stored.items():
        if value.shape != own[name].shape:
            _checks.fail(ValueError, f"{path}: {name}", f"shape {tuple(own[name].shape)}", tuple(value.shape))
    network.load_state_dict(stored)


def _bare(name: str) -> str:
    for prefix in ("module.", "network."):
        name = name.removeprefix(prefix)
    return name
