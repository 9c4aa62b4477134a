"""A small reader of GGUF files: LLaMA-architecture models in F32, Q8_0 and Q4_1, with their byte-level BPE
tokenizer.

``transformers`` reads the same files through the package ``gguf`` and needs 25 s of one core for the 135M
model, nearly all of it walking the metadata in Python and comparing tensor names; this reader needs two, so
that nothing has to be cached on disk. The weights are the same bits (a test compares them). Format:
ggml-org's GGUF specification, v3.

One difference is deliberate: the file says ``tokenizer.ggml.pre = smollm``: digits are split one by
one before the byte-level pattern, as SmolLM2's own tokenizer does; the conversion in transformers 5 leaves
that out.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold import _checks
from tenfold._reading import reading

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK = 32  # weights that share one scale


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: GGUF type code, shape in PyTorch order (slowest first), byte offset in the data
    part."""

    kind: int
    shape: tuple[int, ...]
    offset: int


class GGUFFile:
    """Metadata and tensors of one file. ``meta`` maps keys to Python values, ``tensors`` names to positions.

    Raises:
        ValueError: not a whole GGUF file of version 2 or 3.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError(f"path: expected a GGUF file, got {path}, which is empty")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._parse()
        except (struct.error, LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
            told = str(error) if str(error).startswith("path: ") else None
            raise ValueError(
                told or f"path: expected a whole GGUF file, got {path}, which is damaged ({error})"
            ) from error

    def _parse(self) -> None:
        path, self._at = self.path, 0
        magic, version = self._bytes[:4], struct.unpack_from("<I", self._bytes, 4)[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(
                f"path: expected a GGUF file of version 2 or 3, got {path} ({magic!r}, version {version})"
            )
        self._at = 8
        tensor_count, key_count = self._scalar("Q"), self._scalar("Q")
        self.meta: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            self.meta[key] = self._value(self._scalar("I"))
        self.tensors = {self._string(): self._tensor_info() for _ in range(tensor_count)}
        align = int(self.meta.get("general.alignment", 32))
        if align < 1:
            raise ValueError(f"alignment {align}")
        self._data = -(-self._at // align) * align

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > len(self._bytes) - self._at:
            raise ValueError(f"a text of {length} bytes at byte {self._at}")
        self._at += length
        return self._bytes[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._scalar("I"), self._scalar("Q")
            return [self._value(element) for _ in range(count)]
        return self._scalar(_SCALARS[kind])

    def _tensor_info(self) -> TensorInfo:
        shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
        return TensorInfo(kind=self._scalar("I"), shape=shape[::-1], offset=self._scalar("Q"))

    def read(self, name: str) -> torch.Tensor:
        """A tensor in float32.

        Raises:
            KeyError: no such tensor.
            ValueError: a type other than F32, Q4_1 and Q8_0.
        """
        info = self.tensors[name]
        with reading(self.path, f"the tensor {name}"):
            return self._read(name, info)

    def _read(self, name: str, info: TensorInfo) -> torch.Tensor:
        count, start = math.prod(info.shape), self._data + info.offset
        stored = {_F32: 4 * count, _Q8_0: count // _BLOCK * 34, _Q4_1: count // _BLOCK * 20}.get(info.kind, 0)
        if stored > len(self._bytes) - start or (info.kind != _F32 and count % _BLOCK):
            _checks.fail(ValueError, str(self.path), f"{stored} bytes of {name}", len(self._bytes) - start)
        if info.kind == _F32:
            values = np.frombuffer(self._bytes, "<f4", count, start).copy()
        elif info.kind == _Q8_0:
            blocks = np.frombuffer(self._bytes, [("d", "<f2"), ("q", "i1", _BLOCK)], count // _BLOCK, start)
            values = blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
        elif info.kind == _Q4_1:
            layout = [("d", "<f2"), ("m", "<f2"), ("q", "u1", _BLOCK // 2)]
            blocks = np.frombuffer(self._bytes, layout, count // _BLOCK, start)
            values = np.empty((len(blocks), 2, _BLOCK // 2), np.float32)
            values[:, 0], values[:, 1] = blocks["q"] & 15, blocks["q"] >> 4
            values *= blocks["d"].astype(np.float32)[:, None, None]
            values += blocks["m"].astype(np.float32)[:, None, None]
        else:
            raise ValueError(
                f"{self.path}: {name}: expected GGUF type F32, Q4_1 or Q8_0, got type code {info.kind}"
            )
        return torch.from_numpy(values.reshape(info.shape))


_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hugging_face_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    _, number, part = stem.split(".")
    return f"model.layers.{number}.{_IN_BLOCK[part]}.{kind}"


def _rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF interleaves the members of each rotary pair of a head; transformers keeps them in two halves."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def llama_state(file: GGUFFile) -> dict[str, torch.Tensor]:
    """State dict of the file for ``LlamaForCausalLM``, float32 (without ``lm_head`` when it is tied)."""
    heads = {
        "attn_q": file.meta["llama.attention.head_count"],
        "attn_k": file.meta["llama.attention.head_count_kv"],
    }
    state = {}
    for name in file.tensors:
        tensor, part = file.read(name), name.split(".")[-2]
        state[_hugging_face_name(name)] = _rotary_halves(tensor, heads[part]) if part in heads else tensor
    return state


def llama_config(file: GGUFFile) -> Any:
    """``transformers.LlamaConfig`` of the file."""
    from transformers import LlamaConfig

    def meta(key: str) -> Any:
        return file.meta[f"llama.{key}"]

    width, heads = meta("embedding_length"), meta("attention.head_count")
    settings = {  # under names that transformers 4 and 5 both understand
        "vocab_size": meta("vocab_size"),
        "hidden_size": width,
        "intermediate_size": meta("feed_forward_length"),
        "num_hidden_layers": meta("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta("attention.head_count_kv"),
        "head_dim": meta("rope.dimension_count"),
        "max_position_embeddings": meta("context_length"),
        "rms_norm_eps": meta("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta("rope.freq_base"),
        "bos_token_id": file.meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": file.meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": file.meta["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    return LlamaConfig(**settings)


def bpe_tokenizer(file: GGUFFile) -> Any:
    """The byte-level BPE tokenizer of the file as ``transformers.PreTrainedTokenizerFast``.

    Raises:
        ValueError: the file's tokenizer is of another kind.
    """
    with reading(file.path, "a GGUF file with a tokenizer"):
        return _bpe_tokenizer(file.meta)


def _bpe_tokenizer(meta: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, variant = meta["tokenizer.ggml.model"], meta.get("tokenizer.ggml.pre")
    if (kind, variant) != ("gpt2", "smollm"):
        raise ValueError(
            f"tokenizer: expected gpt2 with the smollm pre-tokenizer, got {kind!r} with {variant!r}"
        )
    words = meta["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, meta["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=words[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=words[meta["tokenizer.ggml.eos_token_id"]],
        pad_token=words[meta["tokenizer.ggml.padding_token_id"]],
        unk_token=words[meta["tokenizer.ggml.unknown_token_id"]],
        padding_side="left",
    )
    wrapped.chat_template = meta.get("tokenizer.chat_template")
    return wrapped


def load_llama(file: GGUFFile, dtype: torch.dtype = torch.float32) -> Any:
    """``transformers.LlamaForCausalLM`` with the file's weights, de-quantised and cast to ``dtype``.

    Raises:
        ValueError: the tensors are not those of a LLaMA model.
    """
    from transformers import LlamaForCausalLM

    with reading(file.path, "a LLaMA model"):
        state = {name: tensor.to(dtype) for name, tensor in llama_state(file).items()}
        with torch.device("meta"):
            model = LlamaForCausalLM(llama_config(file))
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(
            f"path: expected the tensors of a LLaMA model, got {file.path}, missing {missing}, "
            f"unexpected {unexpected}"
        )
    model.tie_weights()
    rotary = (
        model.model.rotary_emb
    )  # its buffers are computed, not stored: build them again off the meta device
    model.model.rotary_emb = type(rotary)(config=model.config)
    return model
