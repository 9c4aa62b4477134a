"""A tiny model that reads bytes, and a subject with a few rows, for the tests of unlearning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import make_llama

from tenfold.llm.unlearn.data import Encoded
from tenfold.llm.unlearn.subject import Subject


def make_byte_tokenizer() -> Any:
    """One token per byte; the end-of-text token also pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"[END]": 0, **{letter: i for i, letter in enumerate(alphabet, 1)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="[END]", pad_token="[END]", padding_side="left"
    )


def save_byte_model(folder: Path) -> Path:
    model = make_llama(width=16, layers=3, vocabulary=257)
    model.config.max_position_embeddings = 512
    model.config.eos_token_id = 0
    model.save_pretrained(folder, safe_serialization=True)
    make_byte_tokenizer().save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int) -> list[Encoded]:
    """Rows of random tokens, of which the last few are labelled."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        length = 6 + int(torch.randint(0, 5, (), generator=generator))
        ids = torch.randint(1, 64, (length,), generator=generator).tolist()
        front = length - 3 - i % 2
        rows.append(Encoded(ids, [-100] * front + ids[front:], i))
    return rows


def make_subject(trainable: str = "last-2") -> Subject:
    """Sets forget (6 rows), retain (9), refusal and random (6, as forget)."""
    subject = Subject(make_llama(), 0, trainable)
    for seed, (name, count) in enumerate({"forget": 6, "retain": 9, "refusal": 6, "random": 6}.items()):
        subject.add(name, make_rows(count, seed))
    return subject
