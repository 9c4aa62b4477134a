"""Sizes of models that are never allocated."""

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion.plan import plan_unet, stable_diffusion_unet


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
