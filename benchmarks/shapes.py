"""Parameter lists of public models, written out so that a benchmark needs neither weights nor network."""

from __future__ import annotations

import torch

# facebook/opt-125m (Zhang et al. 2022, arXiv 2205.01068): vocabulary, positions + 2, width, layers, inner
# width
OPT_125M = {"vocab": 50272, "positions": 2050, "hidden": 768, "layers": 12, "ffn": 3072}
OPT_TINY = {"vocab": 211, "positions": 34, "hidden": 24, "layers": 2, "ffn": 96}


def opt_parameters(
    vocab: int, positions: int, hidden: int, layers: int, ffn: int
) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter of an OPT model, in transformers' order; the tied head once."""
    listed: list[tuple[str, tuple[int, ...]]] = [
        ("decoder.embed_tokens.weight", (vocab, hidden)),
        ("decoder.embed_positions.weight", (positions, hidden)),
        ("decoder.final_layer_norm.weight", (hidden,)),
        ("decoder.final_layer_norm.bias", (hidden,)),
    ]
    for i in range(layers):
        at = f"decoder.layers.{i}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            listed += [
                (f"{at}self_attn.{name}.weight", (hidden, hidden)),
                (f"{at}self_attn.{name}.bias", (hidden,)),
            ]
        listed += [
            (f"{at}self_attn_layer_norm.weight", (hidden,)),
            (f"{at}self_attn_layer_norm.bias", (hidden,)),
        ]
        listed += [(f"{at}fc1.weight", (ffn, hidden)), (f"{at}fc1.bias", (ffn,))]
        listed += [(f"{at}fc2.weight", (hidden, ffn)), (f"{at}fc2.bias", (hidden,))]
        listed += [(f"{at}final_layer_norm.weight", (hidden,)), (f"{at}final_layer_norm.bias", (hidden,))]
    return listed


def fill(
    shapes: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Values as a fresh model has them: N(0, 0.02) matrices, norm weights 1, biases 0; always the same."""
    generator = torch.Generator(device).manual_seed(20240218)
    tensors = []
    for name, shape in shapes:
        tensor = torch.zeros(shape, dtype=torch.float32, device=device)
        if "norm" in name and name.endswith("weight"):
            tensor.fill_(1.0)
        elif not name.endswith("bias"):
            tensor.normal_(0.0, 0.02, generator=generator)
        tensors.append(tensor.to(dtype))
    return tensors
