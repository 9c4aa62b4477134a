"""ResNets (arXiv 1512.03385) in torchvision's topology and with its parameter names, without torchvision.

A state dict of torchvision's resnet18 to resnet152 (a bottleneck's stride is in its 3 x 3 convolution) loads
strictly. `fc` is the head; `features(x)` gives what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold import _checks

__all__ = ["ResNet", "resnet"]


def _convolution(width: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside the identity."""

    expansion = 1

    def __init__(self, width: int, planes: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1, self.bn1 = _convolution(width, planes, 3, stride), nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _convolution(planes, planes, 3), nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside the identity."""

    expansion = 4

    def __init__(self, width: int, planes: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        out = planes * self.expansion
        self.conv1, self.bn1 = _convolution(width, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = _convolution(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = _convolution(planes, out, 1), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, four stages of blocks, average pool, `fc`.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks of each stage.
        classes: outputs.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width = 64
        for k, depth in enumerate(depths):
            planes, blocks = 64 << k, []
            for j in range(depth):
                stride, out = (2 if k and not j else 1), planes * block.expansion
                shortcut = None
                if stride > 1 or width != out:
                    shortcut = nn.Sequential(_convolution(width, out, 1, stride), nn.BatchNorm2d(out))
                blocks.append(block(width, planes, stride, shortcut))
                width = out
            self.add_module(f"layer{k + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Pooled activations before the head, [B, 512 or 2048]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for k in range(1, 5):
            x = getattr(self, f"layer{k}")(x)
        return torch.flatten(self.avgpool(x), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


_DEPTHS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def resnet(name: str, classes: int = 1000) -> ResNet:
    """resnet18, resnet34, resnet50, resnet101 or resnet152 with fresh weights."""
    _checks.choice("name", name, tuple(_DEPTHS))
    block, depths = _DEPTHS[name]
    return ResNet(block, depths, classes)
