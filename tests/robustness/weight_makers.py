"""More of file_makers.py: checkpoints, edits and folders of models."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

Made = tuple[Path, Callable[[Path], Any]]


def _safetensors(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata)
    return path


def unet(folder: Path) -> Made:
    from tenfold.segmentation import unet as module

    recipe = module.Recipe(2, 1, [1, 1], [0.0, 0.0], [2, 2, 2])
    module.save_network(folder / "u.safetensors", module.UNet3D(recipe), recipe)
    return folder / "u.safetensors", module.load_network


def training_state(folder: Path) -> Made:
    from tenfold.diffusion.erase.keep import read_state, write_state

    write_state(folder / "s.safetensors", {"step": 3, "w": torch.ones(2)})
    return folder / "s.safetensors", read_state


def lowrank_adapter(folder: Path) -> Made:
    from tenfold.diffusion.erase.lowrank import read_lowrank

    path = _safetensors(folder / "l.safetensors", {"lora_unet_a.lora_up.weight": torch.ones(2, 1)}, rank="1")
    return path, read_lowrank


def edit_about(folder: Path) -> Made:
    from tenfold.diffusion.erase.edit import Edit

    about = {"schema": "tenfold.edit/1", "kind": "closed_form", "component": "unet"}
    about["details"] = {"layers": ["a.to_k"]}  # type: ignore[assignment]
    (folder / "edit.json").write_text(json.dumps(about))
    _safetensors(folder / "edit.safetensors", {"R": torch.ones(1, 2), "D": torch.ones(1, 2)})
    return folder / "edit.json", lambda path: Edit.load(path.parent)


def edit_weights(folder: Path) -> Made:
    path, read = edit_about(folder)
    return path.with_name("edit.safetensors"), read


def edit_encoder(folder: Path) -> Made:
    """A whole text encoder, which its JSON says how to build."""
    from transformers import CLIPTextConfig, CLIPTextModel

    from tenfold.diffusion.erase.edit import Edit

    sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    config = CLIPTextConfig(**sizes, num_attention_heads=1, max_position_embeddings=4)
    details = {"class": "CLIPTextModel", "config": json.loads(config.to_json_string())}
    edit = Edit("weights", "text_encoder", dict(CLIPTextModel(config).named_parameters()), details)
    edit.save(folder / "edit")
    return folder / "edit" / "edit.json", lambda path: Edit.load(path.parent)


def codec(folder: Path) -> Made:
    from tenfold.semcom.codec import CodecSpec, make_codec
    from tenfold.semcom.run import read_codec

    made = make_codec(CodecSpec(users=1, maps=1, width=1))
    tensors = {f"codec.{name}": value.contiguous() for name, value in made.state_dict().items()}
    tensors["losses"] = torch.ones(1, dtype=torch.float64)
    path = _safetensors(folder / "c.safetensors", tensors, codec=json.dumps(made.spec.plain()))
    return path, lambda path: read_codec(path, "codec")


def network_weights(folder: Path) -> Made:
    from tenfold.selection.transfer.networks import load_weights

    layer = torch.nn.Linear(2, 1)
    path = _safetensors(folder / "n.safetensors", {f"module.{k}": v for k, v in layer.state_dict().items()})
    return path, lambda path: load_weights(torch.nn.Linear(2, 1), path)


def transfer_checkpoint(folder: Path) -> Made:
    from dataclasses import dataclass

    from tenfold.selection.transfer.checkpoint import Checkpoint

    @dataclass
    class Done:
        steps: int = 0

    def parts() -> tuple[Any, ...]:
        layer = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, 0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return layer, optimizer, scheduler, torch.amp.GradScaler("cpu", enabled=False), Done()

    made = parts()
    made[0](torch.ones(1, 2)).sum().backward()
    made[1].step()
    Checkpoint(folder / "k.safetensors").save(*made, 1)
    return folder / "k.safetensors", lambda path: Checkpoint(path).load(*parts())


def reweight_checkpoint(folder: Path) -> Made:
    from tenfold.selection.reweight.train import _load_checkpoint

    def read(path: Path) -> Any:
        layer = torch.nn.Linear(2, 1)
        made: Any = SimpleNamespace(model=layer)
        return _load_checkpoint(path, made, torch.optim.SGD(layer.parameters(), 0.1), torch.Generator())

    tensors = {f"model.{k}": v for k, v in torch.nn.Linear(2, 1).state_dict().items()}
    tensors |= {"momentum.0": torch.ones(1, 2), "generator": torch.Generator().get_state()}
    told = json.dumps({"epoch": 1, "curve": [0.5], "steps": 3, "seconds": 1.0})
    return _safetensors(folder / "k.safetensors", tensors, state=told), read


def kept_top(folder: Path) -> Made:
    from tenfold.llm.unlearn import topk

    kept = topk.Kept(
        torch.ones(1, 2, dtype=torch.int32), torch.ones(1, 2), torch.ones(1), torch.tensor([0, 1])
    )
    topk.save(folder / "t.safetensors", {"forget": kept}, "m")
    return folder / "t.safetensors", lambda path: topk.load(path, ["forget"], 2, "m")


def safetensors_files(folder: Path) -> Made:
    from tenfold.llm._weight_store import read_tensor, tensor_files

    path = _safetensors(folder / "m.safetensors", {"a": torch.ones(2), "b": torch.ones(1)})
    return path, lambda path: [read_tensor(f, name) for name, f in tensor_files(path.parent).items()]


def plain_tensors(folder: Path) -> Made:
    from tenfold.runs.files import read_safetensors

    return _safetensors(folder / "m.safetensors", {"a": torch.ones(2)}, tool="x"), read_safetensors


def zolog_replay(folder: Path) -> Made:
    from tenfold.optim import ZOSGD, zolog

    def model() -> torch.nn.Module:
        layer = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
        return layer

    layer = model()
    optimizer = ZOSGD(layer.parameters(), lr=1e-3, seed=3)
    with zolog.ZOLog.create(folder / "a.zolog", optimizer, layer):
        for _ in range(2):
            optimizer.step(lambda: layer(torch.ones(1, 2)).sum())
    return folder / "a.zolog", lambda path: zolog.replay(model(), path)


@cache
def _language_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def adapter(folder: Path) -> Made:
    from tenfold.llm import schemes

    adapted = schemes.attach(_language_model(), "lora", rank=1)
    schemes.save_adapter(adapted, folder / "a.safetensors")
    adapted.detach()

    def read(path: Path) -> None:
        schemes.load_adapter(_language_model(), path).detach()

    return folder / "a.safetensors", read


def trained_blocks(folder: Path) -> Made:
    from tenfold.llm.unlearn.soul_task import _put

    path = _safetensors(folder / "t.safetensors", {"model.norm.weight": torch.ones(8)})
    return path, lambda path: _put(_language_model(), str(path))


def _model_folder(folder: Path, name: str) -> Made:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from tenfold.llm.engine import load_any_model
    from tenfold.llm.models import load_tokenizer

    _language_model().save_pretrained(folder / "model", max_shard_size="1KB")
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder / "model")

    def read(path: Path) -> Any:
        if "token" in path.name:
            return load_tokenizer(str(path.parent))
        return load_any_model(str(path.parent), torch.float32)

    return folder / "model" / name, read


def model_config(folder: Path) -> Made:
    return _model_folder(folder, "config.json")


def model_tokenizer(folder: Path) -> Made:
    return _model_folder(folder, "tokenizer.json")


def model_index(folder: Path) -> Made:
    return _model_folder(folder, "model.safetensors.index.json")


def model_shard(folder: Path) -> Made:
    path, read = _model_folder(folder, "")
    return sorted(path.glob("*.safetensors"))[0], read


def _gguf_value(value: Any) -> bytes:
    def text(of: str) -> bytes:
        return struct.pack("<Q", len(of.encode())) + of.encode()

    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 4
        parts = [text(v) if kind == 8 else struct.pack("<I", v) for v in value]
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(parts)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)


def gguf_model(folder: Path) -> Made:
    from tenfold.llm.gguf import GGUFFile, bpe_tokenizer, load_llama

    names = {"vocab_size": 4, "context_length": 8, "embedding_length": 4, "feed_forward_length": 4}
    names |= {"block_count": 1, "attention.head_count": 2, "attention.head_count_kv": 1}
    meta: dict[str, Any] = {
        f"llama.{name}": value for name, value in (names | {"rope.dimension_count": 2}).items()
    }
    meta |= {"llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.rope.freq_base": 1e4}
    words = {"tokens": ["<e>", "a", "b", "ab"], "token_type": [3, 1, 1, 1], "merges": ["a b"]}
    kinds = {"model": "gpt2", "pre": "smollm", "bos_token_id": 0, "eos_token_id": 0}
    kinds |= {"padding_token_id": 0, "unknown_token_id": 0}
    meta |= {f"tokenizer.ggml.{name}": value for name, value in (words | kinds).items()}
    shapes = {"token_embd": (4, 4), "output_norm": (4,), "blk.0.attn_q": (4, 4), "blk.0.attn_k": (2, 4)}
    shapes |= {"blk.0.attn_v": (2, 4), "blk.0.attn_output": (4, 4), "blk.0.attn_norm": (4,)}
    shapes |= {
        "blk.0.ffn_norm": (4,),
        "blk.0.ffn_gate": (4, 4),
        "blk.0.ffn_up": (4, 4),
        "blk.0.ffn_down": (4, 4),
    }
    data, at = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(meta)), 0
    for key, value in meta.items():
        data += struct.pack("<Q", len(key)) + key.encode() + _gguf_value(value)
    for name, shape in shapes.items():
        data += struct.pack("<Q", len(name) + 7) + f"{name}.weight".encode()
        data += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], 0, at)
        at += 4 * int(np.prod(shape))
    data += bytes(-len(data) % 32) + np.ones(at // 4, "<f4").tobytes()
    (folder / "m.gguf").write_bytes(data)

    def read(path: Path) -> Any:
        file = GGUFFile(path)
        return load_llama(file), bpe_tokenizer(file)

    return folder / "m.gguf", read


def _pipeline(folder: Path, name: str) -> Made:
    from tenfold.diffusion import load_bundle, tiny_bundle

    tiny_bundle(0).to_pipeline().save_pretrained(folder / "pipe", safe_serialization=True)
    return folder / "pipe" / name, lambda _: load_bundle(folder / "pipe")


def pipeline_index(folder: Path) -> Made:
    return _pipeline(folder, "model_index.json")


def pipeline_unet(folder: Path) -> Made:
    return _pipeline(folder, "unet/config.json")


def pipeline_encoder(folder: Path) -> Made:
    return _pipeline(folder, "text_encoder/config.json")


def pipeline_tokenizer(folder: Path) -> Made:
    return _pipeline(folder, "tokenizer/tokenizer_config.json")


def pipeline_scheduler(folder: Path) -> Made:
    return _pipeline(folder, "scheduler/scheduler_config.json")


def pipeline_weights(folder: Path) -> Made:
    path, read = _pipeline(folder, "vae")
    return sorted(path.glob("*.safetensors"))[0], read


MAKERS = {
    name: made
    for name, made in dict(globals()).items()
    if callable(made) and getattr(made, "__module__", None) == __name__ and not name.startswith("_")
}
