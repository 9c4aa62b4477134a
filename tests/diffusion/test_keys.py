"""Checkpoints in every naming that is about, loaded whole or refused by name."""

import copy
import subprocess
import sys

import pytest
import torch

pytest.importorskip("diffusers")
from safetensors.torch import load_file, save_file

from tenfold.diffusion import apply_text_encoder, apply_unet, tiny_bundle
from tenfold.diffusion.compvis import unet_keys
from tenfold.diffusion.keys import checkpoint_kind, load_component_state, load_strict


@pytest.fixture(scope="module")
def erased(tiny):
    """A text encoder that differs from the tiny one."""
    module = copy.deepcopy(tiny.text_encoder)
    with torch.no_grad():
        next(module.encoder.parameters()).add_(0.5)
    return module


def renamed(module, rename):
    return {rename(k): v.clone() for k, v in module.state_dict().items() if "position_ids" not in k}


NAMINGS = {
    "own": lambda k: k,
    "before transformers 5.6": lambda k: f"text_model.{k}",
    "in a pipeline": lambda k: f"text_encoder.text_model.{k}",
    "DDP": lambda k: f"module.{k}",
    "AdvUnlearn's wrapper": lambda k: k.replace("embeddings.", "embedding.", 1),
    "CompVis": lambda k: f"cond_stage_model.transformer.text_model.{k}",
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_text_encoders_of_every_naming(tiny, erased, tmp_path, naming):
    save_file(renamed(erased, NAMINGS[naming]), tmp_path / "a.safetensors")
    changed = apply_text_encoder(tiny, tmp_path / "a.safetensors")
    for key, value in erased.state_dict().items():
        assert torch.equal(changed.text_encoder.state_dict()[key], value)
    assert changed.unet is tiny.unet
    assert not torch.equal(next(tiny.text_encoder.encoder.parameters()), next(erased.encoder.parameters()))


def test_a_pipeline_is_changed_in_place(erased, tmp_path):
    erased.save_pretrained(tmp_path)
    pipe = tiny_bundle(0).to_pipeline()
    assert apply_text_encoder(pipe, tmp_path) is pipe
    assert torch.equal(next(pipe.text_encoder.encoder.parameters()), next(erased.encoder.parameters()))


def test_nested_encoders_load_flat_names():
    module = tiny_bundle(1, projection=True).text_encoder
    state = {k.removeprefix("text_model."): v + 1 for k, v in module.state_dict().items()}
    load_strict(module, state)
    assert torch.equal(module.text_model.final_layer_norm.weight, state["final_layer_norm.weight"])


def test_missing_and_unexpected_keys_are_named(tiny, erased, tmp_path):
    state = renamed(erased, NAMINGS["own"])
    first = state.pop("final_layer_norm.weight")
    save_file({**state, "strange.weight": first}, tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"1 missing: final_layer_norm\.weight; 1 unexpected: strange\.weight"
    ):
        apply_text_encoder(tiny, tmp_path / "a.safetensors")


def test_what_changes_nothing_is_refused(tiny, tmp_path):
    tiny.text_encoder.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="identical to base"):
        apply_text_encoder(tiny, tmp_path)
    assert apply_text_encoder(tiny, tmp_path, allow_identical=True).text_encoder is not tiny.text_encoder


def test_other_vocabulary_broken_values_and_wrong_kind(tiny, erased, tmp_path):
    state, file = renamed(erased, NAMINGS["own"]), tmp_path / "a.safetensors"
    table = "embeddings.token_embedding.weight"
    save_file({**state, table: state[table][:-1].clone()}, file)
    with pytest.raises(ValueError, match=r"token_embedding.weight: expected shape \(572, 32\)"):
        apply_text_encoder(tiny, file)
    save_file({**state, table: state[table] * float("nan")}, file)
    with pytest.raises(ValueError, match="expected finite values"):
        apply_text_encoder(tiny, file)
    with pytest.raises(ValueError, match="expected a checkpoint of a unet, got one of a text_encoder"):
        apply_unet(tiny, file)
    with pytest.raises(ValueError, match="one tensor for each name"):
        load_strict(erased, {**state, **renamed(erased, NAMINGS["DDP"])})


def test_pickles_are_refused_with_a_line_that_works(tiny, erased, tmp_path):
    torch.save({"state_dict": erased.state_dict()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a pickle, which may run code") as caught:
        load_component_state(tmp_path / "a.pt")
    code = str(caught.value).split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert load_file(tmp_path / "a.safetensors").keys() == erased.state_dict().keys()
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.pt").read_bytes())
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_component_state(tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError, match="one safetensors file"):
        load_component_state(tmp_path)
    with pytest.raises(FileNotFoundError, match="path: expected"):
        load_component_state(tmp_path / "none.safetensors")


def test_names_from_files_neither_break_the_line_nor_the_command(tiny, erased, tmp_path):
    state = renamed(erased, NAMINGS["own"])
    save_file({**state, "a\nTraceback: \x1b[2J": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="1 unexpected") as caught:
        apply_text_encoder(tiny, tmp_path / "a.safetensors")
    assert str(caught.value).isprintable()
    file = tmp_path / "x'); __import__('os').system('id'); ('$(id).pt"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="a pickle, which may run code") as caught:
        load_component_state(file)
    line = str(caught.value).split("python -c ")[1]
    assert "torch.load('IN'," in line
    assert "os" not in line.replace("torch", "").replace("safetensors", "")


# diffusers -> CompVis for a UNet of two levels with one layer each, from CompVis' own construction.
BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def compvis_name(key):
    block = max((b for b in BLOCKS if key.startswith(f"{b}.")), key=len)
    rest = key[len(block) :]
    if ".resnets." in block:
        part = rest.split(".")[1]
        rest = rest.replace(part, PARTS[part], 1)
    return f"model.diffusion_model.{BLOCKS[block]}{rest}"


def test_compvis_names_of_a_unet(tiny, tmp_path):
    state = {compvis_name(k): v + 0.25 for k, v in tiny.unet.state_dict().items()}
    assert len(state) == len(tiny.unet.state_dict())
    other = {"first_stage_model.decoder.weight": torch.ones(1), "model_ema.decay": torch.ones(1)}
    save_file({**state, **other}, tmp_path / "compvis.safetensors")
    changed = apply_unet(tiny, tmp_path / "compvis.safetensors")
    for key, value in tiny.unet.state_dict().items():
        assert torch.equal(changed.unet.state_dict()[key], value + 0.25), key


def test_compvis_names_at_stable_diffusions_size():
    """Spots in a UNet of four levels with two layers each; attention in 1, 2, 4, 5, 7, 8 on the way down."""
    names = {
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight":
            "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.9.0.op.bias": "down_blocks.2.downsamplers.0.conv.bias",
        "output_blocks.2.1.conv.weight": "up_blocks.0.upsamplers.0.conv.weight",
        "output_blocks.5.2.conv.weight": "up_blocks.1.upsamplers.0.conv.weight",
        "output_blocks.6.1.norm.weight": "up_blocks.2.attentions.0.norm.weight",
        "output_blocks.8.0.emb_layers.1.weight": "up_blocks.2.resnets.2.time_emb_proj.weight",
        "output_blocks.11.0.skip_connection.weight": "up_blocks.3.resnets.2.conv_shortcut.weight",
    }  # fmt: skip
    found = unet_keys(dict.fromkeys(names, torch.ones(1)), {"layers_per_block": 2})
    assert list(found) == list(names.values())


def test_kind_by_keys():
    assert checkpoint_kind({"down_blocks.0.x": torch.ones(1)}) == "unet"
    assert checkpoint_kind({"text_model.encoder.layers.0.self_attn.q": torch.ones(1)}) == "text_encoder"
    with pytest.raises(ValueError, match="checkpoint: expected the keys"):
        checkpoint_kind({"weight": torch.ones(1)})
