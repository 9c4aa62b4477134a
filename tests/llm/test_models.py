from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tenfold.llm import models


def test_a_folder_by_name(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = models.load(str(model_folder), dtype=torch.bfloat16)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "[PAD]")
    assert capfd.readouterr().err == ""  # no progress bars


def test_weights_are_private_memory(model_folder: Path) -> None:
    before = (model_folder / "model.safetensors").read_bytes()
    model = models.load_model(str(model_folder))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (model_folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["no/such-model-here", ""])
def test_unknown_models(name: str) -> None:
    with pytest.raises(ValueError, match="model: expected 'smollm2', a folder"):
        models.load_model(name)


def test_pickled_weights_are_refused(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        models.load_model(str(tmp_path))
