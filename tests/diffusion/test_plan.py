"""Sizes of models that are never allocated."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion.plan import plan_memory, plan_unet, stable_diffusion_unet
from tenfold.diffusion.tiny import tiny_unet


def test_stable_diffusion_is_as_large_as_it_is():
    unet = stable_diffusion_unet("1.4").requires_grad_(False)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("attn2" in name)
    found = plan_unet(unet)
    assert found.parameters == 859_520_964
    assert found.trainable == pytest.approx(43.96e6, rel=1e-3)  # ESD-x
    assert found.weight_bytes == 4 * found.parameters
    assert found.adam_bytes == 12 * found.trainable
    assert found.flops == pytest.approx(803e9, rel=0.01)
    half = plan_unet(unet, batch=2, dtype=torch.float16)
    assert half.weight_bytes == 2 * found.parameters
    assert half.flops == 2 * found.flops


def test_small_models_count_themselves(tiny):
    found = plan_unet(tiny.unet)
    assert found.parameters == sum(p.numel() for p in tiny.unet.parameters())
    assert found.trainable == 0
    with pytest.raises(ValueError, match="tokens: expected"):
        plan_unet(tiny.unet, tokens=-1)
    with pytest.raises(TypeError, match="dtype: expected"):
        plan_unet(tiny.unet, dtype="half")
    with pytest.raises(ValueError, match="version"):
        stable_diffusion_unet("9")


def test_sdxl_is_as_large_as_it_is():
    unet = stable_diffusion_unet("xl").requires_grad_(False)
    found = plan_unet(unet)
    assert found.parameters == 2_567_463_684
    assert found.weight_bytes == 4 * found.parameters


def kept_by(call, inputs, unet=None):
    """Bytes that a real call keeps: what autograd saves beside weights and inputs, and the result."""
    own = {
        t.untyped_storage().data_ptr()
        for t in (*(unet or call).parameters(), *inputs.values())
        if t is not False
    }
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call(**inputs)[0]
    saved[out.untyped_storage().data_ptr()] = out.untyped_storage()
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize(("trains", "text"), [("attn2", False), ("", False), ("none", True)])
def test_what_a_call_keeps_is_what_autograd_saves(trains, text):
    unet = tiny_unet()
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(trains in name)
    inputs = {
        "sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([5, 10]), "return_dict": False,
        "encoder_hidden_states": torch.randn(2, 77, 32, requires_grad=text),
    }  # fmt: skip
    found = plan_memory(unet, batch=2, text_gradient=text)
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    assert found.kept_bytes == kept_by(unet, inputs)
    assert found.state_bytes == 12 * trained
    assert found.peak_bytes >= found.weight_bytes + 8 * trained + found.kept_bytes
    half = plan_memory(unet, batch=2, text_gradient=text, dtype=torch.bfloat16)
    assert half.weight_bytes * 2 == found.weight_bytes
    assert half.peak_bytes < 0.6 * found.peak_bytes


def test_sdxls_pooled_text_has_a_gradient_too():
    """What it adds to the timestep is then kept for the backward pass."""
    unet = tiny_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    ).requires_grad_(False)  # fmt: skip
    added = {"text_embeds": torch.randn(2, 24, requires_grad=True), "time_ids": torch.zeros(2, 6)}
    inputs = {
        "sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([5, 10]), "return_dict": False,
        "encoder_hidden_states": torch.randn(2, 77, 32, requires_grad=True),
    }  # fmt: skip
    expected = kept_by(lambda **given: unet(added_cond_kwargs=added, **given), inputs, unet)
    assert plan_memory(unet, batch=2, text_gradient=True).kept_bytes == expected


def test_a_call_without_gradients_keeps_nothing():
    unet = tiny_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    ).requires_grad_(False)  # fmt: skip
    found = plan_memory(unet, batch=3)
    assert (found.kept_bytes, found.state_bytes) == (0, 0)
    assert found.weight_bytes == 4 * sum(p.numel() for p in unet.parameters()) < found.peak_bytes
    assert plan_memory(unet, batch=30).peak_bytes > found.peak_bytes
    with pytest.raises(ValueError, match="unet: expected one that reads text states, or SDXL's, got text"):
        plan_unet(tiny_unet(addition_embed_type="text"))
    with pytest.raises(ValueError, match="batch: expected"):
        plan_memory(unet, batch=0)


MIDDLE = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
"""142 million parameters, in Stable Diffusion's shape."""

MEASURE = """
import json, sys, torch
from diffusers import UNet2DConditionModel

def read(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

shape, trains, text = json.loads(sys.argv[1])
torch.set_num_threads(1)
conv = torch.nn.Conv2d(4, 4, 3)
conv(torch.zeros(1, 4, 8, 8)).sum().backward()  # libraries are loaded
before = read("VmRSS")
unet = UNet2DConditionModel(in_channels=4, out_channels=4, **shape)
for name, parameter in unet.named_parameters():
    parameter.requires_grad_(trains in name)
trained = [p for p in unet.parameters() if p.requires_grad]
adam = torch.optim.Adam(trained, lr=1e-4) if trained else None
z, states = torch.randn(2, 4, 32, 32), torch.randn(2, 77, 768, requires_grad=text)
for _ in range(2):
    with torch.set_grad_enabled(bool(trained) or text):
        loss = unet(z, torch.tensor([10, 20]), encoder_hidden_states=states).sample.square().mean()
    if trained:
        adam.zero_grad()
    if loss.requires_grad:
        loss.backward()
    if trained:
        adam.step()
print(read("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system tells no peak of memory")
@pytest.mark.parametrize(("trains", "text"), [("none", False), ("attn2", False), ("none", True)])
def test_the_plan_is_what_a_process_takes(trains, text):
    """Resident memory of 142 million parameters, within 10 %, where freed blocks go back at once."""
    with torch.device("meta"):
        unet = tiny_unet(**MIDDLE)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(trains in name)
    assert sum(p.numel() for p in unet.parameters()) == pytest.approx(142e6, rel=0.01)
    planned = plan_memory(unet, batch=2, text_gradient=text).peak_bytes
    back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps([MIDDLE, trains, text])],
        env={**os.environ, **back}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    taken = int(done.stdout.split()[-1])
    assert planned == pytest.approx(taken, rel=0.1), (
        f"planned {planned / 2**20:.0f}, took {taken / 2**20:.0f} MiB"
    )
