"""The real model and the real reviews."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tenfold import assets
from tenfold.llm import ZOConfig, finetune, load_smollm2

pytestmark = [pytest.mark.demo, pytest.mark.slow]


def test_the_gguf_reader_gives_the_bits_that_transformers_gives() -> None:
    pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_smollm2()
    path = assets.locate("smollm2")
    oracle = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).state_dict()
    state = model.state_dict()
    assert set(state) == set(oracle)
    assert all(torch.equal(state[name], oracle[name]) for name in oracle)
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_reviews_are_learned_with_forward_passes_only(tmp_path: Path) -> None:
    metrics = finetune(ZOConfig(preset="quick"), tmp_path / "run").metrics
    assert metrics["parameters"] == 134_515_008
    assert metrics["short_path_max_difference"] < 1e-3
    assert metrics["accuracy_gain_low"] > 0.03
    assert metrics["loss_after"] < metrics["loss_before"] - 0.4
    assert metrics["full_loss"] < metrics["loss_before"]
