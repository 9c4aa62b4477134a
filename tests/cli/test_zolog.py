"""`tenfold zolog` on files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tenfold.optim import ZOSGD, ZOAdam, zolog

Call = Callable[..., tuple[int, str, str]]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def run(
    path: Path, steps: int, kind: type = ZOSGD, seed: int = 1
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A logged run: base weights and final weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).to(torch.bfloat16)
    x = torch.randn(8, 4, dtype=torch.bfloat16)
    base = tensors(model)
    opt = kind(model.named_parameters(), lr=1e-2, seed=seed, rounding="sr")
    with zolog.ZOLog.create(path, opt, model):
        for _ in range(steps):
            opt.step(lambda: (model(x).float() - 1).square().mean())
    return base, tensors(model)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.zolog of five steps, base.safetensors and end.safetensors, each with one tensor more."""
    base, end = run(tmp_path / "a.zolog", 5)
    extra = {"frozen": torch.arange(3.0)}
    save_file(base | extra, tmp_path / "base.safetensors", metadata={"format": "pt"})
    save_file(end | extra, tmp_path / "end.safetensors")
    return tmp_path


def test_info(call: Call, folder: Path) -> None:
    code, out, _ = call("zolog", "info", "a.zolog", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["optimizer"], found["steps"], found["elements"]) == ("ZOSGD", 5, 37)
    code, out, _ = call("zolog", "info", "a.zolog")
    assert code == 0
    assert "base sha256" in out
    assert "torn bytes     0" in out
    data = (folder / "a.zolog").read_bytes()
    (folder / "a.zolog").write_bytes(data[:-3])
    code, out, _ = call("zolog", "info", "a.zolog")
    assert (code, "the last step is torn" in out, "torn bytes     37" in out) == (0, True, True)


def test_replay(call: Call, folder: Path) -> None:
    code, out, err = call(
        "zolog", "replay", "a.zolog", "--base", "base.safetensors", "--out", "new.safetensors"
    )
    assert (code, err) == (0, "")
    assert out == "weights before step 5: new.safetensors\n"
    assert equal(load_file(folder / "new.safetensors"), load_file(folder / "end.safetensors"))
    from safetensors import safe_open

    with safe_open(folder / "new.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    call(
        "zolog",
        "replay",
        "a.zolog",
        "--base",
        "base.safetensors",
        "--out",
        "none.safetensors",
        "--until",
        "0",
    )
    assert equal(load_file(folder / "none.safetensors"), load_file(folder / "base.safetensors"))
    assert not list(folder.glob("*.part"))


def test_weights_in_several_files(call: Call, folder: Path) -> None:
    (folder / "model").mkdir()
    for k, (name, tensor) in enumerate(load_file(folder / "base.safetensors").items()):
        save_file({name: tensor}, folder / "model" / f"part-{k}.safetensors")
    assert call("zolog", "replay", "a.zolog", "--base", "model", "--out", "new.safetensors")[0] == 0
    assert equal(load_file(folder / "new.safetensors"), load_file(folder / "end.safetensors"))
    save_file({"0.bias": torch.zeros(1)}, folder / "model" / "part-x.safetensors")
    code, _, err = call("zolog", "replay", "a.zolog", "--base", "model", "--out", "b.safetensors")
    assert (code, "expected tensors of new names, got '0.bias' again" in err) == (2, True)


def test_undo_both_ways(call: Call, folder: Path) -> None:
    call(
        "zolog",
        "replay",
        "a.zolog",
        "--base",
        "base.safetensors",
        "--out",
        "three.safetensors",
        "--until",
        "3",
    )
    three = load_file(folder / "three.safetensors")
    arguments = ("zolog", "undo", "a.zolog", "--steps", "2", "--out", "back.safetensors")
    code, out, _ = call(*arguments, "--base", "base.safetensors")
    assert (code, out) == (0, "weights before step 3, to the bit: back.safetensors\n")
    assert equal(load_file(folder / "back.safetensors"), three)
    code, out, _ = call(*arguments, "--weights", "end.safetensors")
    assert (code, "up to rounding" in out) == (0, True)
    back = load_file(folder / "back.safetensors")
    assert all(torch.allclose(back[k].float(), three[k].float(), atol=2e-2) for k in three)
    for more in ((), ("--base", "base.safetensors", "--weights", "end.safetensors")):
        code, _, err = call(*arguments, *more)
        assert (code, "--weights: expected either it or --base" in err) == (2, True)


def test_merge_joins_and_averages(call: Call, folder: Path) -> None:
    zolog.truncate(folder / "a.zolog", 2, folder / "start.zolog")
    code, out, _ = call(
        "zolog", "merge", "start.zolog", "a.zolog", "--out", "c.zolog", "--base", "base.safetensors"
    )
    assert (code, out) == (0, "2 logs, 5 steps: c.zolog\n")
    assert (folder / "c.zolog").read_bytes() == (folder / "a.zolog").read_bytes()
    run(folder / "b.zolog", 4, seed=2)
    assert call("zolog", "merge", "a.zolog", "b.zolog", "--out", "mean.zolog", "--average")[0] == 0
    code, out, _ = call(
        "zolog", "replay", "mean.zolog", "--base", "base.safetensors", "--out", "m.safetensors"
    )
    assert (code, out) == (0, "weights the mean of the runs: m.safetensors\n")
    code, _, err = call("zolog", "merge", "a.zolog", "--out", "d.zolog")
    assert (code, "paths: expected two logs or more" in err) == (2, True)


def test_what_does_not_fit_is_one_line_and_writes_nothing(call: Call, folder: Path) -> None:
    (folder / "text.safetensors").write_text("no tensors in here")
    run(folder / "adam.zolog", 2, kind=ZOAdam)
    (folder / "torn.zolog").write_bytes((folder / "a.zolog").read_bytes()[:-1])
    before = {path.name for path in folder.iterdir()}
    for arguments, what in (
        (("replay", "a.zolog", "--base", "end.safetensors", "--out", "x"), "the weights that it starts from"),
        (("replay", "a.zolog", "--base", "gone.safetensors", "--out", "x"), "gone.safetensors"),
        (("replay", "a.zolog", "--base", "text.safetensors", "--out", "x"), "expected a safetensors file"),
        (("replay", "end.safetensors", "--base", "base.safetensors", "--out", "x"), "expected a .zolog file"),
        (("replay", "torn.zolog", "--base", "base.safetensors", "--out", "x"), "expected whole steps"),
        (
            ("replay", "a.zolog", "--base", "base.safetensors", "--out", "x", "--until", "9"),
            "until: expected",
        ),
        (("replay", "a.zolog", "--out", "x"), "base"),
        (
            ("undo", "adam.zolog", "--steps", "1", "--weights", "end.safetensors", "--out", "x"),
            "base: expected",
        ),
        (("undo", "a.zolog", "--steps", "6", "--base", "base.safetensors", "--out", "x"), "steps: expected"),
        (("info", "gone.zolog"), "gone.zolog"),
        (("inof", "a.zolog"), "did you mean 'info'?"),
    ):
        code, out, err = call("zolog", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert what in err
    assert {path.name for path in folder.iterdir()} == before
    code, out, _ = call(
        "zolog", "replay", "torn.zolog", "--base", "base.safetensors", "--out", "y", "--recover"
    )
    assert (code, out) == (0, "weights before step 4: y\n")


def test_help(call: Call) -> None:
    code, out, _ = call("zolog", "--help")
    assert (code, out.startswith("usage: tenfold zolog info|replay|merge|undo")) == (0, True)
    assert call("zolog")[0] == 2
    for name in ("info", "replay", "merge", "undo"):
        code, out, _ = call("zolog", name, "--help")
        assert (code, "usage: tenfold zolog" in out) == (0, True)
