"""What the tests of tenfold.llm share; nothing is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_models

import tiny_models


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As many threads as the processes under torchrun have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_models.make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny LLaMA with its tokenizer, saved as transformers saves models."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.make_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GLUE-like TSV of 120 sentences."""
    path = tmp_path_factory.mktemp("data") / "all.tsv"
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in tiny_models.sentences(120))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
