"""The GGUF reader against files written and de-quantised by the package gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WORDS, make_llama

from tenfold.llm.gguf import GGUFFile, bpe_tokenizer, load_llama

gguf = pytest.importorskip("gguf")

HEADS, KV_HEADS, LAYERS, WIDTH = 4, 2, 2, 64


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs side by side, as GGUF stores them: the inverse of what the reader does."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def gguf_tensors(model: Any) -> dict[str, torch.Tensor]:
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "q_proj": "attn_q", "k_proj": "attn_k"}
    names |= {"v_proj": "attn_v", "o_proj": "attn_output", "input_layernorm": "attn_norm"}
    names |= {"post_attention_layernorm": "ffn_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up"}
    names |= {"down_proj": "ffn_down"}
    found = {}
    for name, tensor in model.named_parameters():
        parts = name.split(".")
        block = f"blk.{parts[2]}." if parts[1] == "layers" else ""
        if parts[-2] in ("q_proj", "k_proj"):
            tensor = interleaved(tensor.data, HEADS if parts[-2] == "q_proj" else KV_HEADS)
        found[f"{block}{names[parts[-2]]}.weight"] = tensor.data
    return found


@pytest.fixture(scope="module")
def model() -> Any:
    return make_llama(WIDTH, LAYERS)


def write(path: Path, model: Any, matrices: str) -> Path:
    """A GGUF file of the model; matrices in the named type, vectors in F32."""
    kind = gguf.GGMLQuantizationType[matrices]
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (
        ("vocab_size", 64), ("context_length", 128), ("embedding_length", WIDTH),
        ("feed_forward_length", 2 * WIDTH), ("block_count", LAYERS), ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS), ("rope.dimension_count", WIDTH // HEADS),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    for name, tensor in gguf_tensors(model).items():
        array = tensor.numpy()
        if array.ndim == 2 and matrices != "F32":
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    add_tokenizer(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer: Any) -> None:
    letters = sorted({*"".join(WORDS), *"0123456789", "Ġ"})
    tokens = ["<|end|>", *letters, "Ġg", "oo", "Ġgoo", "Ġgood"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["Ġ g", "o o", "Ġg oo", "Ġgoo d"])
    for add in (
        writer.add_bos_token_id,
        writer.add_eos_token_id,
        writer.add_unk_token_id,
        writer.add_pad_token_id,
    ):
        add(0)


def test_the_model_comes_back(tmp_path: Path, model: Any) -> None:
    loaded = load_llama(GGUFFile(write(tmp_path / "m.gguf", model, "F32")))
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_blocks_against_the_package_gguf(tmp_path: Path, model: Any, kind: str) -> None:
    file = GGUFFile(write(tmp_path / "m.gguf", model, kind))
    oracle = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert set(oracle) == set(file.tensors)
    for name, tensor in oracle.items():
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(name).numpy(), expected)


def test_cast_to_half(tmp_path: Path, model: Any) -> None:
    loaded = load_llama(GGUFFile(write(tmp_path / "m.gguf", model, "F32")), torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_the_tokenizer(tmp_path: Path, model: Any) -> None:
    tokenizer = bpe_tokenizer(GGUFFile(write(tmp_path / "m.gguf", model, "F32")))
    assert tokenizer.convert_ids_to_tokens(tokenizer(" good 12").input_ids) == ["Ġgood", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer(" good film").input_ids) == " good film"
    assert tokenizer("<|end|>").input_ids == [tokenizer.eos_token_id] == [0]
    assert tokenizer.padding_side == "left"


def test_other_files_are_refused(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04 no model")
    with pytest.raises(ValueError, match="path: expected a GGUF file"):
        GGUFFile(path)
    file = GGUFFile(write(tmp_path / "m.gguf", model, "Q5_1"))
    with pytest.raises(ValueError, match="expected GGUF type F32, Q4_1 or Q8_0, got type code 7"):
        load_llama(file)
