from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.cli import main
from tenfold.llm import engine, models


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


CODE = """
import pathlib
from transformers import PretrainedConfig
pathlib.Path(__file__).with_name("touched").write_text("")
class C(PretrainedConfig):
    model_type = "unheard-of"
"""


@pytest.mark.parametrize(
    "load",
    [
        models.load_model,
        models.load_tokenizer,
        lambda name: engine.load_any_model(name, torch.float32),
        lambda name: main(["plan", "--model", name, "--debug"]),
    ],
)
def test_code_of_a_model_folder_is_not_run_and_nobody_is_asked(
    load: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks at the terminal, and a word there would run what lies in the folder."""
    home = tmp_path / "model"
    home.mkdir()
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    named = {"AutoConfig": "conf.C", "AutoTokenizer": ["conf.C", None]}
    (home / "config.json").write_text(json.dumps({"model_type": "unheard-of", "auto_map": named}))
    (home / "tokenizer_config.json").write_text(json.dumps({"auto_map": named}))
    (home / "conf.py").write_text(CODE)
    with pytest.raises(ValueError, match="custom code"):
        load(str(home))
    assert not list(tmp_path.rglob("touched"))


def test_memory_that_runs_out_is_not_told_as_another_model(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(MemoryError, match="no room"):
        models.load_model(str(model_folder))
