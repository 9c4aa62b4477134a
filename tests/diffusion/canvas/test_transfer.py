"""Style-transfer losses against sums written out, and names of UNet weights both ways."""

import numpy as np
import pytest
import torch

from tenfold.diffusion.canvas.dataset import write_tree
from tenfold.diffusion.canvas.manifest import write_picture
from tenfold.diffusion.canvas.transfer import (
    art_fid,
    channel_stats,
    gram_loss,
    transfer_pairs,
    transfer_scores,
    vgg_losses,
    vit_loss,
)
from tenfold.diffusion.canvas.vocabulary import Canvas

SMALL = Canvas("small", ("Seed_Images", "Winter"), ("Cats", "Dogs"), resolution=8)


def layers(seed, batch=2):
    draw = torch.Generator().manual_seed(seed)
    sizes = (8, 8, 4, 4, 2)
    return [torch.randn(batch, 3, n, n, generator=draw, dtype=torch.float64) + 1 for n in sizes]


def test_vgg_losses_by_numpy():
    result, truth = layers(0), layers(1)
    content, style = vgg_losses(result, truth)
    for b in range(2):
        wanted_content = wanted_style = 0.0
        for i in range(5):
            x, y = (f[i][b].numpy().reshape(3, -1) for f in (result, truth))
            stats = [(v.mean(1), np.sqrt(v.var(1, ddof=1) + 1e-5)) for v in (x, y)]
            wanted_style += sum(((p - q) ** 2).mean() for p, q in zip(*stats, strict=True))
            if i >= 3:
                nx, ny = ((v - m[:, None]) / s[:, None] for v, (m, s) in zip((x, y), stats, strict=True))
                wanted_content += ((nx - ny) ** 2).mean()
        assert content[b] == pytest.approx(wanted_content, abs=1e-12)
        assert style[b] == pytest.approx(wanted_style, abs=1e-12)


def test_losses_compare_the_result_itself():
    """The result is scored against the truth, not a network's output of both: equal pictures lose nothing,
    and content does not see a change of every channel's mean and deviation, which style does."""
    same = layers(0)
    content, style = vgg_losses(same, same)
    assert content.abs().max() == style.abs().max() == 0
    content, style = vgg_losses([2 * f + 3 for f in same], same)
    assert content.max() < 1e-8
    assert style.min() > 1


def test_vit_and_gram():
    a, b = ([torch.randn(2, 5, 4, dtype=torch.float64) for _ in range(6)] for _ in range(2))
    wanted = sum(((x - y) ** 2).mean((1, 2)) for x, y in zip(a, b, strict=True))
    assert torch.allclose(vit_loss(a, b), wanted, atol=1e-12)
    x, y = layers(0)[:1], layers(1)[:1]
    grams = [torch.einsum("bchw,bdhw->bcd", f[0], f[0]) / (3 * 64) for f in (x, y)]
    assert torch.allclose(gram_loss(x, y), ((grams[0] - grams[1]) ** 2).mean((1, 2)), atol=1e-12)
    assert art_fid(0.5, 3.0) == 6.0


def test_what_is_refused():
    with pytest.raises(ValueError, match="result: expected 5 entries"):
        vgg_losses(layers(0)[:4], layers(1)[:4])
    with pytest.raises(ValueError, match=r"truth\[0\]: expected shape \[2, 3, 8, 8\]"):
        vgg_losses(layers(0), layers(1, batch=1))
    with pytest.raises(ValueError, match="finite features"):
        vit_loss([torch.full((1, 2, 2), float("nan"))], [torch.zeros(1, 2, 2)])
    with pytest.raises(ValueError, match="two positions"):
        channel_stats(torch.zeros(1, 3, 1, 1))


def test_scores_of_a_tree(tmp_path):
    def images(style, thing, numbers):
        draw = torch.Generator().manual_seed(len(style) + len(thing) + numbers[0])
        return torch.randint(0, 256, (len(numbers), 3, 8, 8), generator=draw, dtype=torch.uint8)

    data = write_tree(tmp_path / "data", SMALL, images)
    with pytest.raises(FileNotFoundError, match=r"Winter/Cats_test19_ref1.png, got no such file"):
        next(transfer_pairs(tmp_path / "out", data, ending="png"))
    for thing in SMALL.objects:
        for number in (19, 20):
            truth = data.images("Winter", thing, "test")[number - 19]
            for reference in range(1, 19):
                result = truth if thing == "Cats" else 255 - truth
                name = f"{thing}_test{number}_ref{reference}.png"
                write_picture(tmp_path / "out" / "Winter" / name, result)
    pairs = list(transfer_pairs(tmp_path / "out", data, ending="png"))
    assert len(pairs) == 72

    def features(pictures):
        return [pictures[:, :, : 8 - i, : 8 - i] for i in range(5)]

    found = transfer_scores(pairs, features, batch=7)
    assert found["objects"]["Cats"]["style"].mean == 0
    dogs = found["objects"]["Dogs"]["content"]
    assert (dogs.n, found["overall"]["content"].n) == (36, 72)
    assert found["styles"]["Winter"]["content"].mean == pytest.approx(dogs.mean / 2)
    assert dogs.mean > 1
    assert set(transfer_scores(pairs, features, kind="gram")["overall"]) == {"gram"}


def test_compvis_names_cover_stable_diffusion_both_ways():
    pytest.importorskip("diffusers")
    from diffusers import UNet2DConditionModel

    from tenfold.diffusion.compvis import compvis_keys, unet_keys

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the defaults are SD 1.5's
    state = unet.state_dict()
    assert len(state) == 686
    there = compvis_keys(state, unet.config)
    assert len(there) == 686
    assert all(name.startswith("model.diffusion_model.") for name in there)
    for name in (
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
        "input_blocks.9.0.op.bias",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.0.skip_connection.weight",
        "middle_block.2.out_layers.3.weight",
        "time_embed.2.bias",
        "out.0.weight",
    ):
        assert f"model.diffusion_model.{name}" in there
    back = unet_keys(there, unet.config)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    with pytest.raises(ValueError, match="state: expected names of a UNet2DConditionModel"):
        compvis_keys({"a.weight": torch.zeros(1)}, unet.config)


@pytest.mark.parametrize("linear", [False, True])
def test_compvis_names_change_no_bit(linear):
    pytest.importorskip("diffusers")
    from tenfold.diffusion.compvis import compvis_keys, unet_keys
    from tenfold.diffusion.tiny import tiny_unet

    unet = tiny_unet(use_linear_projection=linear)
    state = unet.state_dict()
    there = compvis_keys(state, unet.config, prefix="")
    assert all(v.ndim == 4 for k, v in there.items() if k.endswith("proj_in.weight"))
    back = unet_keys(there, unet.config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], v) for k, v in state.items())
