"""Parameter lists of public models, written out so that a benchmark needs neither weights nor network."""

from __future__ import annotations

import torch

# facebook/opt-125m (Zhang et al. 2022, arXiv 2205.01068): vocabulary, positions + 2, width, layers, inner
# width
OPT_125M = {"vocab": 50272, "positions": 2050, "hidden": 768, "layers": 12, "ffn": 3072}
OPT_TINY = {"vocab": 211, "positions": 34, "hidden": 24, "layers": 2, "ffn": 96}


# GPT-2 (Radford et al. 2019), 124.4 million parameters in 148 tensors
GPT2_124M = {"vocab": 50257, "positions": 1024, "hidden": 768, "layers": 12}
GPT2_TINY = {"vocab": 211, "positions": 32, "hidden": 24, "layers": 2}


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


def gpt2_parameters(
    vocab: int, positions: int, hidden: int, layers: int
) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every parameter of a GPT-2 model, in transformers' order; the tied head once."""
    wide = 4 * hidden
    listed: list[tuple[str, tuple[int, ...]]] = [
        ("wte.weight", (vocab, hidden)),
        ("wpe.weight", (positions, hidden)),
    ]
    for i in range(layers):
        at = f"h.{i}."
        listed += [(f"{at}ln_1.weight", (hidden,)), (f"{at}ln_1.bias", (hidden,))]
        listed += [
            (f"{at}attn.c_attn.weight", (hidden, 3 * hidden)),
            (f"{at}attn.c_attn.bias", (3 * hidden,)),
        ]
        listed += [(f"{at}attn.c_proj.weight", (hidden, hidden)), (f"{at}attn.c_proj.bias", (hidden,))]
        listed += [(f"{at}ln_2.weight", (hidden,)), (f"{at}ln_2.bias", (hidden,))]
        listed += [(f"{at}mlp.c_fc.weight", (hidden, wide)), (f"{at}mlp.c_fc.bias", (wide,))]
        listed += [(f"{at}mlp.c_proj.weight", (wide, hidden)), (f"{at}mlp.c_proj.bias", (hidden,))]
    return [*listed, ("ln_f.weight", (hidden,)), ("ln_f.bias", (hidden,))]


def fill(
    shapes: list[tuple[str, tuple[int, ...]]], dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """Values as a fresh model has them: N(0, 0.02) matrices, norm weights 1, biases 0; always the same."""
    generator = torch.Generator(device).manual_seed(20240218)
    tensors = []
    for name, shape in shapes:
        tensor = torch.zeros(shape, dtype=torch.float32, device=device)
        if ("norm" in name or "ln_" in name) and name.endswith("weight"):
            tensor.fill_(1.0)
        elif not name.endswith("bias"):
            tensor.normal_(0.0, 0.02, generator=generator)
        tensors.append(tensor.to(dtype))
    return tensors
