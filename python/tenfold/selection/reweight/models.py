"""The classifiers of the experiments: an MLP, PreActResNet-18, and CIFAR's ResNet-20, -32, -44, -56.

All layers are initialised as the papers' code does; any other `nn.Module` works in the functions of this
package as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks

__all__ = ["MODELS", "CifarResNet", "PreActResNet", "make_model", "mlp"]


def mlp(inputs: int, num_classes: int, hidden: int = 128) -> nn.Module:
    """Linear, ReLU, Linear over flattened input."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
    )  # fmt: skip


class _PreActBlock(nn.Module):
    """BatchNorm and ReLU before each convolution (He et al., arXiv 1603.05027)."""

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Conv2d(inputs, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        found: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active)))) + kept
        return found


class PreActResNet(nn.Module):
    """PreActResNet for 32x32 images; `blocks=(2, 2, 2, 2)` is PreActResNet-18 (11.2 million parameters)."""

    def __init__(
        self, num_classes: int, blocks: tuple[int, ...] = (2, 2, 2, 2), *, channels: int = 3, width: int = 64
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            for block in range(count):
                layers.append(_PreActBlock(inputs, planes, 2 if stage and not block else 1))
                inputs = planes
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, num_classes] of images [n, channels, 32, 32]."""
        pooled = F.relu(self.bn(self.layers(self.conv1(x)))).mean((2, 3))
        logits: Tensor = self.linear(pooled)
        return logits


class _BasicBlock(nn.Module):
    """Option A of arXiv 1512.03385: the shortcut is every second pixel with zero channels on both sides."""

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride, self.grown = stride, planes - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1 or self.grown:
            half = self.grown // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.grown - half))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images: 16, 32, 64 feature maps, shortcuts without parameters."""

    def __init__(self, num_classes: int, depth: int = 32, *, channels: int = 3):
        super().__init__()
        if (depth - 2) % 6 or depth < 8:
            _checks.fail(ValueError, "depth", "6n + 2, as 20, 32, 44, 56", depth)
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        layers: list[nn.Module] = []
        inputs = 16
        for stage, planes in enumerate((16, 32, 64)):
            for block in range((depth - 2) // 6):
                layers.append(_BasicBlock(inputs, planes, 2 if stage and not block else 1))
                inputs = planes
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, num_classes] of images [n, channels, 32, 32]."""
        pooled = self.layers(F.relu(self.bn1(self.conv1(x)))).mean((2, 3))
        logits: Tensor = self.linear(pooled)
        return logits


MODELS = ("mlp", "preactresnet18", "resnet20", "resnet32", "resnet44", "resnet56")


def make_model(name: str, shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """A classifier of :data:`MODELS` for inputs of `shape`, its weights drawn with `seed` alone.

    Images are [channels, height, width]; the convolutional ones take any size of at least 8.
    """
    _checks.choice("model", name, MODELS)
    if name != "mlp" and (len(shape) != 3 or min(shape[1:]) < 8):
        _checks.fail(ValueError, "model", f"mlp for inputs of shape {shape}", repr(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "mlp":
            inputs = 1
            for size in shape:
                inputs *= size
            return mlp(inputs, num_classes)
        if name == "preactresnet18":
            return PreActResNet(num_classes, channels=shape[0])
        return CifarResNet(num_classes, int(name.removeprefix("resnet")), channels=shape[0])
