"""Tiny families: the same each time, right sizes, and a language model that learns its text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import sentences

from tenfold.llm import families, models

TEXTS = [f"{text} It was {('terrible', 'great')[label]}" for text, label in sentences(300)]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_model_is_of_its_family_and_the_same_each_time(family: str) -> None:
    first, again = families.make_model(family), families.make_model(family)
    other = families.make_model(family, seed=1)
    names = {"vicuna": "llama"}
    assert type(first).__name__.lower().startswith(names.get(family, family))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not first.training


def test_making_a_model_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    families.make_model("opt")
    assert torch.equal(torch.rand(3), expected)


def test_mistral_has_grouped_queries() -> None:
    model = families.make_model("mistral", heads=8)
    assert model.config.num_key_value_heads == 2
    assert model.model.layers[0].self_attn.k_proj.out_features == 16


def test_bad_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="family: expected one of roberta"):
        families.make_model("gpt2")
    with pytest.raises(ValueError, match="width: expected a multiple of heads=4"):
        families.make_model("opt", width=30)
    with pytest.raises(ValueError, match="vocabulary: expected at least 300"):
        families.make_tokenizer(TEXTS, 100)
    with pytest.raises(ValueError, match="texts: expected at least one"):
        families.make_tokenizer([])


def test_the_tokenizer_keeps_text_and_makes_answer_words_whole() -> None:
    tokenizer = families.make_tokenizer(TEXTS, 400, whole=[" terrible", " great"])
    again = families.make_tokenizer(TEXTS, 400, whole=[" terrible", " great"])
    assert tokenizer.get_vocab() == again.get_vocab()
    assert len(tokenizer) <= 400
    for text in ("A fine film, naïvely!  Two blanks.", TEXTS[0]):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id == 0
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    for word in (" terrible", " great"):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("family", ["opt", "roberta"])
def test_pretraining_learns_the_text_and_is_kept(family: str, tmp_path: Path) -> None:
    tokenizer = families.make_tokenizer(TEXTS, 400, whole=[" terrible", " great"])
    folder = families.pretrained(
        family, TEXTS, tokenizer, tmp_path / family, width=32, steps=60, batch_size=32, lr=1e-2
    )
    assert len(models.load_tokenizer(str(folder))) == len(tokenizer)
    if family == "opt":
        model = models.load_model(str(folder))
        ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0]
        loss = float(F.cross_entropy(logits[:-1], ids[0, 1:]))
        assert loss < 0.6 * float(torch.tensor(float(len(tokenizer))).log())
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    families.pretrained(family, TEXTS, tokenizer, folder, steps=1)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
