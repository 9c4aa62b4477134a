"""Gradient scalers and mixed precision: what fp16 recipes put around a step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from zolog_cases import batch, network, same_bits

from tenfold.optim import FZOO, ZOSGD, ZOAdam, ZOSGDConservative


class Regression(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.net = network(dtype)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        x = x.to(self.net[0].weight.dtype)
        return {"loss": (self.net(x).float() - y).square().mean()}


CASES: list[Any] = [
    (ZOSGD, {}),
    (ZOAdam, {"num_queries": 2}),
    (FZOO, {}),
    (ZOSGDConservative, {}),
    (ZOSGD, {"restore": "arithmetic"}),
]


def make(kind: Any, **options: Any) -> tuple[Regression, Any]:
    model = Regression().train()
    return model, kind(model.parameters(), lr=1e-2, seed=3, **options)


def run(model: nn.Module, opt: Any, steps: int, pieces: int, scaler: Any = None, clip: bool = False) -> None:
    for step in range(steps):
        x, y = batch(step)
        for a, b in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            loss = model(a, b)["loss"] / pieces
            (loss if scaler is None else scaler.scale(loss)).backward()
        if clip and scaler is not None:
            scaler.unscale_(opt)
            assert float(nn.utils.clip_grad_norm_(model.parameters(), 1e-3)) < 1e-3
        if scaler is None:
            opt.step()
        else:
            scaler.step(opt)
            scaler.update()
        opt.zero_grad()


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_scaler_changes_nothing(kind: Any, options: dict[str, Any], clip: bool) -> None:
    model, opt = make(kind, **options)
    opt.attach(model)
    run(model, opt, 4, pieces=2)
    other, scaled = make(kind, **options)
    scaled.attach(other, scaler=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    run(other, scaled, 4, pieces=2, scaler=scaler, clip=clip)
    assert scaler.get_scale() == 2.0**12  # it has seen four steps, none with an overflow
    assert (scaled.num_steps, scaled.last_step.losses) == (4, opt.last_step.losses)
    assert same_bits(model, other)
    assert all(p.grad is None for p in other.parameters())


def test_a_loss_that_is_not_finite_skips_the_step_alone() -> None:
    model, opt = make(ZOSGD)
    opt.attach(model, scaler=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
    x, y = batch(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler.scale(model(x, y * float("inf"))["loss"]).backward()
    scaler.step(opt)
    scaler.update()
    assert (opt.num_steps, opt.num_skipped, scaler.get_scale()) == (1, 1, 8.0)
    assert same_bits(model, before)
    opt.zero_grad()
    run(model, opt, 1, pieces=1, scaler=scaler)
    assert (opt.num_steps, opt.num_skipped) == (2, 1)
    assert not same_bits(model, before)


def test_a_scale_that_overflows_is_lowered_and_the_step_left_out() -> None:
    model, opt = make(ZOSGD)
    opt.attach(model, scaler=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38, growth_interval=100)
    x, y = batch(0)
    scaler.scale(1e30 * model(x, y)["loss"]).backward()
    scaler.step(opt)
    scaler.update()
    assert opt.num_steps == 0
    assert scaler.get_scale() == pytest.approx(1.5e38)
    opt.zero_grad()
    opt.step(lambda: 1.0)  # nothing is left of it
    assert opt.num_steps == 1


def test_without_the_option_it_is_told() -> None:
    model, opt = make(ZOSGD)
    handle = opt.attach(model)
    scaler = torch.amp.GradScaler("cpu")
    x, y = batch(0)
    scaler.scale(model(x, y)["loss"]).backward()
    with pytest.raises(RuntimeError, match=r"step: expected no GradScaler.*scaler=True"):
        scaler.step(opt)
    handle.remove()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.ones(1))
    with pytest.raises(
        RuntimeError, match=r"step: expected no GradScaler.*optimizer\.step\(closure\) itself"
    ):
        scaler.step(opt, lambda: 1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)  # which steps as if it were not there
    assert same_bits(model, before)
    scaler.step(opt, lambda: model(x, y)["loss"])
    scaler.update()
    assert opt.num_steps == 1


def test_a_term_added_to_the_loss_is_still_noticed() -> None:
    model, opt = make(ZOSGD)
    opt.attach(model, scaler=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    x, y = batch(0)
    loss = model(x, y)["loss"]
    penalty = sum(p.square().sum() for p in model.parameters())
    scaler.scale(loss + penalty).backward()
    with pytest.raises(RuntimeError, match="expected None where steps follow from the losses"):
        scaler.step(opt)


def test_half_precision_weights_need_no_scaler() -> None:
    model = Regression(torch.float16)
    opt = ZOSGD(model.parameters())
    with pytest.raises(
        ValueError, match="scaler: expected False, and no GradScaler, got no trainable float32"
    ):
        opt.attach(model, scaler=True)
    opt.attach(model)


def test_a_removed_token_leaves_no_gradient() -> None:
    model, opt = make(ZOSGD)
    x, y = batch(0)
    with opt.attach(model, scaler=True):
        model(x, y)["loss"].backward()
        assert sum(p.grad is not None for p in model.parameters()) == 1
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    model, opt = make(ZOSGD)
    opt.attach(model)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    prepared, stepper = accelerator.prepare(model, opt)
    other, plain = make(ZOSGD)
    plain.attach(other)
    for step in range(3):
        x, y = batch(step)
        for a, b in zip(x.chunk(2), y.chunk(2), strict=True):
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(a, b)["loss"])
                stepper.step()
                stepper.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = other(a, b)["loss"]
            (loss.float() / 2).backward()
        plain.step()
        plain.zero_grad()
    assert opt.num_steps == 3
    assert same_bits(model, other)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_with_a_scaler() -> None:
    """What mixed_precision="fp16" makes of an optimizer, which accelerate does on GPUs only."""
    accelerate = pytest.importorskip("accelerate")
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.Accelerator(cpu=True)
    model, opt = make(ZOSGD)
    opt.attach(model, scaler=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    stepper = AcceleratedOptimizer(opt, scaler=scaler)
    other, plain = make(ZOSGD)
    plain.attach(other)
    run(other, plain, 3, pieces=1)
    for step in range(3):
        scaler.scale(model(*batch(step))["loss"]).backward()
        stepper.step()
        assert not stepper.step_was_skipped
        stepper.zero_grad()
    assert same_bits(model, other)
    AcceleratorState._reset_state(reset_partial_state=True)
