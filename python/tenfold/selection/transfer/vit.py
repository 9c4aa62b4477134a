"""Vision transformer ViT-B/16 (arXiv 2010.11929) with torchvision's parameter names, without torchvision."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tenfold import _checks

__all__ = ["VisionTransformer", "vit_b_16"]


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        # torchvision's MLP has dropout (of 0) in the places 2 and 4
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Identity(), nn.Linear(hidden, width), nn.Identity()
        )
        for k in (0, 3):
            layer = self.mlp[k]
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _Encoder(nn.Module):
    def __init__(self, tokens: int, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, width).normal_(std=0.02))
        self.layers = nn.Sequential()
        for k in range(depth):
            self.layers.add_module(f"encoder_layer_{k}", _Block(width, heads, hidden))
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.ln(self.layers(x + self.pos_embedding))


class VisionTransformer(nn.Module):
    """Patches, class token, encoder, `heads`.

    Args:
        image: side of the input in pixels, a multiple of `patch`. Other inputs are refused: the positions
            are learnt.
        patch, width, depth, heads, hidden: sizes.
        classes: outputs.
    """

    def __init__(
        self, image: int = 224, patch: int = 16, width: int = 768, depth: int = 12, heads: int = 12,
        hidden: int = 3072, classes: int = 1000,
    ):  # fmt: skip
        super().__init__()
        self.image, self.patch = image, patch
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (3 * patch * patch)))
        assert self.conv_proj.bias is not None
        nn.init.zeros_(self.conv_proj.bias)
        self.encoder = _Encoder((image // patch) ** 2 + 1, width, depth, heads, hidden)
        head = nn.Linear(width, classes)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.heads = nn.Sequential()
        self.heads.add_module("head", head)

    def features(self, x: Tensor) -> Tensor:
        """The class token behind the encoder, [B, width]."""
        if x.shape[-2:] != (self.image, self.image):
            _checks.fail(ValueError, "x", f"images of {self.image} x {self.image}", tuple(x.shape[-2:]))
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.encoder(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.features(x))


def vit_b_16(classes: int = 1000) -> VisionTransformer:
    """ViT-B/16 for 224 x 224 pixels with fresh weights."""
    return VisionTransformer(classes=classes)
