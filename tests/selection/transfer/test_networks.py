"""Networks have torchvision's names, shapes and sizes; weights load strictly, from safetensors alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tenfold.selection.transfer import networks
from tenfold.selection.transfer.vit import VisionTransformer


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160),
     ("resnet152", 60_192_808), ("vit_b_16", 86_567_656)],
)  # fmt: skip
def test_sizes_are_the_published_ones(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = networks.build(name, 1000)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_names_are_torchvision_s() -> None:
    with torch.device("meta"):
        shallow, deep, vit = (networks.build(n, 7).state_dict() for n in ("resnet18", "resnet50", "vit_b_16"))
    assert len(shallow) == 122
    assert len(deep) == 320
    assert len(vit) == 152
    for name, shape in (
        ("conv1.weight", (64, 3, 7, 7)), ("layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("layer4.1.bn2.running_var", (512,)), ("layer3.0.downsample.1.num_batches_tracked", ()),
        ("fc.bias", (7,)),
    ):  # fmt: skip
        assert shallow[name].shape == shape
    assert deep["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert deep["layer3.5.conv3.weight"].shape == (1024, 256, 1, 1)
    for name, shape in (
        ("class_token", (1, 1, 768)), ("conv_proj.weight", (768, 3, 16, 16)),
        ("encoder.pos_embedding", (1, 197, 768)),
        ("encoder.layers.encoder_layer_11.self_attention.in_proj_weight", (2304, 768)),
        ("encoder.layers.encoder_layer_0.mlp.3.weight", (768, 3072)), ("encoder.ln.weight", (768,)),
        ("heads.head.weight", (7, 768)),
    ):  # fmt: skip
        assert vit[name].shape == shape


def test_a_resnet_halves_five_times_and_its_stride_is_in_the_middle() -> None:
    network = networks.build("resnet50", 5)
    second = network.get_submodule("layer2.0.conv2")
    assert isinstance(second, nn.Conv2d)
    assert second.stride == (2, 2)
    shapes = []
    network.get_submodule("layer4").register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    network.eval()
    x = torch.randn(1, 3, 64, 64)
    assert network(x).shape == (1, 5)
    assert shapes == [(1, 2048, 2, 2)]
    torch.testing.assert_close(network(x), network.fc(network.features(x)))  # type: ignore[operator]


def test_a_small_vit() -> None:
    network = VisionTransformer(32, 8, 16, 2, 2, 32, 5)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(ValueError, match="expected images of 32 x 32"):
        network(torch.randn(1, 3, 40, 40))


def test_blur_before_strides() -> None:
    with torch.device("meta"):
        network = networks.build("resnet18", 3, blurpool=True)
    blurred = [n for n, m in network.named_modules() if isinstance(m, networks.BlurPoolConv2d)]
    assert blurred == [f"layer{k}.0.{part}" for k in (2, 3, 4) for part in ("conv1", "downsample.0")]
    conv = nn.Conv2d(16, 4, 3, 2, 1)
    flat = torch.ones(1, 16, 12, 12)
    inside = networks.BlurPoolConv2d(conv)(flat)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, conv(flat)[..., 1:-1, 1:-1])  # a constant passes a low-pass unchanged


def test_weights_go_through_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    first, second = networks.build("small", 4, channels=1), networks.build("small", 4, channels=1)
    save_file({f"module.{k}": v for k, v in first.state_dict().items()}, tmp_path / "a.safetensors")
    networks.load_weights(second, tmp_path / "a.safetensors")
    x = torch.randn(3, 1, 8, 8)
    first.eval(), second.eval()
    assert torch.equal(first(x), second(x))
    with pytest.raises(ValueError, match=r"fc\.(weight|bias): expected shape \(5"):
        networks.load_weights(networks.build("small", 5, channels=1), tmp_path / "a.safetensors")
    own = networks.build("cnn", 4, channels=1, side=8).state_dict()
    foreign = [name for name in first.state_dict() if name not in own]
    said = rf"expected the tensors of WiderCNN, got body.* \({len(foreign)} that it does not have\)"
    with pytest.raises(ValueError, match=said):
        networks.load_weights(networks.build("cnn", 4, channels=1, side=8), tmp_path / "a.safetensors")
    del own["fc.bias"], own["body.0.weight"]
    save_file(own, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"tensors of WiderCNN, got no body.0.weight \(2 missing\)"):
        networks.load_weights(networks.build("cnn", 4, channels=1, side=8), tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"expected a .safetensors file"):
        networks.load_weights(second, tmp_path / "best.ckpt")
    (tmp_path / "b.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"b\.safetensors: expected a safetensors file"):
        networks.load_weights(second, tmp_path / "b.safetensors")
    with pytest.raises(FileNotFoundError):
        networks.load_weights(second, tmp_path / "c.safetensors")


@pytest.mark.parametrize("name", ["small", "cnn"])
def test_a_new_head(name: str) -> None:
    network = networks.build(name, 4, channels=1, side=8)
    width = networks.head_of(network).in_features
    networks.replace_head(network, 9)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 9)
    assert networks.head_of(network).in_features == width
    vit = VisionTransformer(16, 8, 8, 1, 1, 8, 5)
    networks.replace_head(vit, 3)
    assert vit(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    with pytest.raises(ValueError, match="a linear head"):
        networks.head_of(nn.Conv2d(1, 1, 1))
