"""The small problems the optimizer tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

CURVATURE = (1.0, 0.5, 2.0)
START = (1.0, -2.0, 0.5)


@pytest.fixture
def quadratic() -> Callable[..., tuple[nn.Parameter, Callable[[], Tensor]]]:
    """L = 0.5 sum(A theta^2) in three dimensions, and its closure."""

    def make(dtype: torch.dtype = torch.float64):
        theta = nn.Parameter(torch.tensor(START, dtype=dtype))
        curvature = torch.tensor(CURVATURE, dtype=dtype)
        return theta, lambda: 0.5 * (curvature * theta * theta).sum()

    return make


@pytest.fixture
def network() -> Callable[..., tuple[nn.Module, Callable[[], Tensor]]]:
    """A small network with norms and biases, and a regression closure whose loss is read in float32."""

    def make(dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1)).to(dtype)
        for p in model.parameters():
            p.data.copy_(0.3 * torch.randn(p.shape, generator=generator))
        x = torch.randn(12, 6, generator=generator).to(dtype)
        y = torch.randn(12, 1, generator=generator)
        return model, lambda: (model(x).float() - y).square().mean()

    return make


class Tagger(nn.Module):
    """Tokens in, one score per token out: an embedding, a list of equal layers, a norm and a tied head."""

    def __init__(self, layers: int = 4, width: int = 8, words: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


@pytest.fixture
def tagger() -> Callable[..., tuple[Tagger, Callable[[], Tensor]]]:
    """`Tagger` with the closure of its loss on one batch."""

    def make(dtype: torch.dtype = torch.float32, **options: Any):
        generator = torch.Generator().manual_seed(1)
        model = Tagger(**options).to(dtype)
        for p in model.parameters():
            p.data.copy_(0.4 * torch.randn(p.shape, generator=generator))
        ids = torch.randint(0, 11, (3, 5), generator=generator)
        labels = torch.randint(0, 11, (15,), generator=generator)
        return model, lambda: nn.functional.cross_entropy(model(ids).flatten(0, 1).float(), labels)

    return make


def tiny_language_model(family: str) -> nn.Module:
    """A random member of a model family of transformers, two layers wide 32; dropout off."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    makers = {
        "opt": lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(ffn_dim=64, word_embed_proj_dim=32, pad_token_id=1, **common)
        ),
        "llama": lambda: transformers.LlamaForCausalLM(
            transformers.LlamaConfig(intermediate_size=64, **common)
        ),
        "mistral": lambda: transformers.MistralForCausalLM(
            transformers.MistralConfig(intermediate_size=64, num_key_value_heads=2, **common)
        ),
        "roberta": lambda: transformers.RobertaForMaskedLM(
            transformers.RobertaConfig(intermediate_size=64, pad_token_id=1, **common)
        ),
    }
    return makers[family]().eval()


@pytest.fixture
def language_model() -> Callable[..., tuple[nn.Module, Callable[[], Tensor]]]:
    """`tiny_language_model` with the closure of its loss on one batch."""

    def make(family: str, dtype: torch.dtype = torch.float32):
        model = tiny_language_model(family).to(dtype)
        ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(2))
        return model, lambda: model(input_ids=ids, labels=ids).loss

    return make
