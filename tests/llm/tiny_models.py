"""Tiny models, a tokenizer and sentences of our own making."""

from __future__ import annotations

from typing import Any

import torch

TEXT = """
good bad film fine dull a the plot cast is was very not what it great terrible warm cold bright grim funny sad
long short one two three
"""
WORDS = TEXT.split()
POSITIVE, NEGATIVE = ("good", "fine", "warm", "bright", "funny"), ("bad", "dull", "cold", "grim", "sad")


def make_tokenizer() -> Any:
    """One token per word; an unknown word is [UNK]."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[END]", "It", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[END]",
        padding_side="left",
    )


def make_llama(width: int = 32, layers: int = 3, vocabulary: int = 64, seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def make_opt(layers: int = 3, seed: int = 0) -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
        init_std=0.2,
        pad_token_id=0,
        dropout=0.0,
    )
    return OPTForCausalLM(config).eval().requires_grad_(False)


def make_mistral(layers: int = 3, seed: int = 0) -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,
        sliding_window=None,
    )
    return MistralForCausalLM(config).eval().requires_grad_(False)


MAKERS = {"llama": make_llama, "opt": make_opt, "mistral": make_mistral}


def sentences(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Different short sentences with one telling word each; labels alternate."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, int] = {}
    while len(found) < count:
        label = len(found) % 2
        pick = [int(torch.randint(0, 99, (1,), generator=generator)) for _ in range(5)]
        telling = (NEGATIVE, POSITIVE)[label][pick[0] % 5]
        filler = [WORDS[i % 15 + 4] for i in pick[1 : 2 + pick[0] % 4]]
        found.setdefault(" ".join([*filler, telling, *filler[:1]]), label)
    return list(found.items())
