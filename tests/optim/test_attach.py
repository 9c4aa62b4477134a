"""Optimizers in loops written for back-propagation: plain ones, transformers.Trainer, accelerate."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from zolog_cases import OPTIMIZERS, batch, network, optimizer, same_bits, same_state

from tenfold import PerformanceWarning
from tenfold.optim import ZOSGD, Blocks, ForwardGrad, zolog


class Regression(nn.Module):
    """The network with its loss inside, dropout, and an output as models of transformers have it."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.net = network()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        out = self.net(self.dropout(x))
        return {"out": out} if y is None else {"loss": (out - y).square().mean(), "out": out}


def closure(model: Regression, step: int) -> Any:
    x, y = batch(step)
    return lambda: (model.net(x) - y).square().mean()


def make(name: str = "sgd", **options: Any) -> tuple[Regression, Any]:
    model = Regression()
    return model, optimizer(model, name, **options)


def loop(opt: Any, model: nn.Module, until: int, pieces: int = 1) -> list[float]:
    """A training loop as it is written for back-propagation."""
    model.train()
    losses = []
    while opt.num_steps < until:
        x, y = batch(opt.num_steps)
        for k in range(pieces):
            loss = model(x[k::pieces], y[k::pieces])["loss"] / pieces
            loss.backward()
            losses.append(loss.item())
        opt.step()
        opt.zero_grad()
    return losses


@pytest.mark.parametrize("restore", ["exact", "dual", "arithmetic"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loop_makes_the_steps_of_the_closure(name: str, restore: str) -> None:
    model, opt = make(name, restore=restore)
    other, other_opt = make(name, restore=restore)
    with opt.attach(model):
        loop(opt, model, 4)
    while other_opt.num_steps < 4:
        other_opt.step(closure(other, other_opt.num_steps))
    assert opt.last_step.scalars == other_opt.last_step.scalars
    assert same_bits(model, other)
    assert same_state(opt, other_opt)
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert model.dropout.training


@pytest.mark.parametrize("kind", ["forward gradient", "blocks", "blocks, simultaneous"])
def test_steps_that_evaluate_again(kind: str) -> None:
    def build() -> tuple[Regression, Any]:
        model = Regression()
        if kind == "forward gradient":
            return model, ForwardGrad(model.parameters(), lr=1e-2)
        order = "simultaneous" if kind.endswith("simultaneous") else "coordinate"
        blocks = Blocks(model, level="linear", order=order)
        return model, ZOSGD(model.parameters(), lr=1e-2, blocks=blocks, streams=model)

    (model, opt), (other, other_opt) = build(), build()
    opt.attach(model)
    loop(opt, model, 3)
    while other_opt.num_steps < 3:
        other_opt.step(closure(other, other_opt.num_steps))
    assert same_bits(model, other)


@pytest.mark.parametrize("restore", ["exact", "arithmetic"])
def test_micro_batches_are_one_batch(restore: str) -> None:
    (model, opt), (other, other_opt) = make(restore=restore), make(restore=restore)
    opt.attach(model)
    other_opt.attach(other)
    loop(opt, model, 1)
    loop(other_opt, other, 1, pieces=4)
    c, d = opt.last_step.scalars[0].value, other_opt.last_step.scalars[0].value
    assert c == pytest.approx(d, rel=1e-3)  # float32 losses divided by eps
    losses, others = opt.last_step.losses, other_opt.last_step.losses
    assert losses == pytest.approx(others, rel=1e-6)


def test_accumulated_gradients_agree_to_a_millionth_where_losses_do() -> None:
    (model, opt), (other, other_opt) = make(), make()
    for m in (model, other):
        m.double()
    x, y = (t.double() for t in batch(0))
    for m, o, pieces in ((model, opt, 1), (other, other_opt, 4)):
        o.attach(m)
        for k in range(pieces):
            (m(x[k::pieces], y[k::pieces])["loss"] / pieces).backward()
        o.step()
    assert opt.last_step.scalars[0].value == pytest.approx(other_opt.last_step.scalars[0].value, rel=1e-6)


def test_the_loss_is_the_mean_of_the_probes() -> None:
    model, opt = make("sgd q=3")
    opt.attach(model)
    before = copy.deepcopy(model.state_dict())
    x, y = batch(0)
    output = model(x, y)
    assert same_bits(before, model.state_dict())  # put back at once
    output["loss"].backward()
    opt.step()
    assert output["loss"].item() == pytest.approx(sum(opt.last_step.losses) / 6, rel=1e-6)
    assert len(opt.last_step.losses) == 6


def test_evaluation_goes_by_untouched() -> None:
    model, opt = make()
    opt.attach(model)
    plain = Regression(0.0)
    x, y = batch(0)
    model.eval()
    assert torch.equal(model(x, y)["loss"], plain(x, y)["loss"])
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        dropped = model(x, y)["loss"]
    assert not torch.equal(dropped, plain(x, y)["loss"])  # as the model itself is in training mode
    with pytest.raises(RuntimeError, match="expected a backward pass"):
        opt.step()


def test_zero_grad_forgets_and_errors_leave_the_weights_alone() -> None:
    model, opt = make()
    opt.attach(model)
    before = copy.deepcopy(model.state_dict())
    x, y = batch(0)
    model(x, y)["loss"].backward()
    opt.zero_grad()
    with pytest.raises(RuntimeError, match="expected a backward pass"):
        opt.step()
    with pytest.raises(RuntimeError, match="size of tensor"):
        model(x, y[:3].expand(3, 7))
    with pytest.raises(TypeError, match="model: expected an output with a real scalar loss"):
        model(x)
    assert model.training
    assert same_bits(before, model.state_dict())
    assert opt.num_steps == 0


class Tuple(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        out = super().forward(x)
        return out.sum(), out


class Bare(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum()


class Named(nn.Linear):
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"objective": super().forward(x).sum()}


@pytest.mark.parametrize(
    ("kind", "find"),
    [
        (Tuple, lambda out: out[0]),
        (Bare, lambda out: out),
        (Named, lambda out: out["objective"]),
    ],
)
def test_where_the_loss_may_be(kind: Any, find: Any) -> None:
    model = kind(3, 2)
    opt = ZOSGD(model.parameters(), lr=1e-2)
    handle = opt.attach(model, loss=find if kind is Named else None)
    loss = find(model(torch.ones(1, 3)))
    loss.backward()
    opt.step()
    assert opt.num_steps == 1
    handle.remove()
    opt2 = ZOSGD(model.parameters())
    opt2.attach(model, loss=lambda out: 2 * find(out))
    with pytest.raises(TypeError, match="loss: expected a tensor that is part of the model's output"):
        model(torch.ones(1, 3))


def test_attaching_and_removing() -> None:
    model, opt = make()
    signature = inspect.signature(model.forward)
    handle = opt.attach(model)
    assert inspect.signature(model.forward) == signature
    with pytest.raises(ValueError, match="optimizer: expected one that is not attached"):
        opt.attach(Regression())
    with pytest.raises(ValueError, match="model: expected one that no optimizer is attached to"):
        optimizer(model).attach(model)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got int"):
        optimizer(Regression()).attach(3)
    with pytest.raises(TypeError, match="loss: expected a callable or None, got str"):
        optimizer(Regression()).attach(Regression(), loss="loss")  # type: ignore[arg-type]
    handle.remove()
    handle.remove()
    assert "forward" not in model.__dict__
    with pytest.raises(TypeError, match="closure: expected a callable"):
        opt.step()
    x, y = batch(0)
    assert model(x, y)["loss"].grad_fn is not None  # back-propagation again


def test_a_closure_still_works_while_attached() -> None:
    (model, opt), (other, other_opt) = make(), make()
    opt.attach(model)
    for step in range(2):
        opt.step(closure(model, step))
        other_opt.step(closure(other, step))
    assert same_bits(model, other)


@pytest.mark.parametrize("restore", ["exact", "arithmetic"])
def test_a_closure_that_calls_the_attached_model_and_backward(restore: str) -> None:
    """What Lightning's automatic optimization gives an optimizer: gradients are on in its closure."""
    (model, opt), (other, other_opt) = make(restore=restore), make(restore=restore)
    opt.attach(model)
    model.train()

    def automatic(step: int) -> Any:
        x, y = batch(step)

        def evaluate() -> Tensor:
            with torch.enable_grad():
                opt.zero_grad()
                loss = model(x, y)["loss"]
                loss.backward()
            return loss.detach()

        return evaluate

    with pytest.warns(PerformanceWarning, match="the closure calls backward") as told:
        opt.step(automatic(0))
    assert told[0].filename == __file__  # where the step was asked for, not within torch
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step(automatic(1))  # said once
        for step in range(2):
            other_opt.step(closure(other, step))
    assert same_bits(model, other)  # probes at the right places, dropout off
    assert model.dropout.training


def test_a_log_of_a_loop_replays(tmp_path: Path) -> None:
    model, opt = make("sgd q=3")
    base = copy.deepcopy(model)
    opt.attach(model)
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        loop(opt, model, 5, pieces=2)
    zolog.replay(base, tmp_path / "a.zolog")
    assert same_bits(model, base)


def test_scaled_losses_are_refused() -> None:
    model, opt = make()
    opt.attach(model)
    scaler = torch.amp.GradScaler("cpu")
    x, y = batch(0)
    scaler.scale(model(x, y)["loss"]).backward()
    with pytest.raises(RuntimeError, match="step: expected no GradScaler"):
        scaler.step(opt)
    assert opt.num_steps == 0


def test_learning_rate_schedules() -> None:
    (model, opt), (other, other_opt) = make(), make()
    opt.attach(model)
    model.train()
    schedules = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, 5) for o in (opt, other_opt)]
    for step in range(5):
        x, y = batch(step)
        model(x, y)["loss"].backward()
        opt.step()
        other_opt.step(closure(other, step))
        for schedule in schedules:
            schedule.step()
    assert opt.last_step.lrs == other_opt.last_step.lrs
    assert opt.last_step.lrs[0] < 1e-2
    assert same_bits(model, other)


# -- accelerate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 4])
def test_in_an_accelerate_loop(pieces: int) -> None:
    accelerate = pytest.importorskip("accelerate")
    (model, opt), (other, other_opt) = make(), make()
    opt.attach(model)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=pieces)
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, 5)
    prepared, optim, schedule = accelerator.prepare(model, opt, schedule)
    prepared.train()
    for step in range(3):
        x, y = batch(step)
        for k in range(pieces):
            with accelerator.accumulate(prepared):
                accelerator.backward(prepared(x[k::pieces], y[k::pieces])["loss"])
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optim.step()
                schedule.step()
                optim.zero_grad()
    assert opt.num_steps == 3
    other_opt.attach(other)
    reference = torch.optim.lr_scheduler.LinearLR(other_opt, 1.0, 0.1, 5)
    for step in range(3):
        loop(other_opt, other, step + 1, pieces)
        reference.step()
    assert same_bits(model, other)
    assert opt.last_step.lrs == other_opt.last_step.lrs


# -- transformers.Trainer -----------------------------------------------------------------------------


def llama() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        attention_dropout=0.3,
    )
    return transformers.LlamaForCausalLM(config)


def rows(n: int) -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 32, (n, 6), generator=generator).tolist()
    return [{"input_ids": row, "labels": row, "attention_mask": [1] * 6} for row in ids]


def trainer(model: Any, opt: Any, folder: Path, *, pieces: int, steps: int, **options: Any) -> Any:
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8 // pieces,
        gradient_accumulation_steps=pieces,
        max_steps=steps,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=2,
        seed=3,
        **{"save_strategy": "no", **options},
    )
    schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, 6)
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(48),
        eval_dataset=rows(4),
        optimizers=(opt, schedule),
    )


def zosgd(model: Any, **options: Any) -> ZOSGD:
    return ZOSGD(model.named_parameters(), lr=1e-2, streams=model, seed=2, **options)


@pytest.mark.parametrize("pieces", [1, 4])
def test_in_trainer(pieces: int, tmp_path: Path) -> None:
    model, other = llama(), llama()
    opt, other_opt = zosgd(model), zosgd(other)
    opt.attach(model)
    fed = []
    done = trainer(model, opt, tmp_path, pieces=pieces, steps=4, eval_strategy="steps", eval_steps=2)
    inner = done.training_step
    records = []
    opt.register_step_post_hook(lambda o, *_: records.append(o.last_step))

    def watched(model: Any, inputs: Any, *args: Any) -> Any:
        fed.append({k: v.clone() for k, v in inputs.items()})
        return inner(model, inputs, *args)

    done.training_step = watched
    done.train()
    assert opt.num_steps == 4
    assert len(fed) == 4 * pieces
    assert len([entry for entry in done.state.log_history if "eval_loss" in entry]) == 2
    assert all(p.grad is None for p in model.parameters())

    other.eval()
    schedule = torch.optim.lr_scheduler.LinearLR(other_opt, 1.0, 0.1, 6)
    for step in range(4):
        inputs = fed[step * pieces : (step + 1) * pieces]
        whole = {key: torch.cat([piece[key] for piece in inputs]) for key in inputs[0]}
        other_opt.step(lambda whole=whole: other(**whole).loss)
        schedule.step()
        if pieces > 1:  # one big batch: the same losses up to rounding
            assert records[0].losses == pytest.approx(other_opt.last_step.losses, rel=1e-6)
            return
    assert opt.last_step.lrs == other_opt.last_step.lrs
    assert opt.last_step.scalars == other_opt.last_step.scalars
    assert same_bits(model, other)


def loss_in_float64(
    logits: Tensor, labels: Tensor, vocab_size: int, num_items_in_batch: Any = None, **_: Any
) -> Tensor:
    """That of the model, which computes it in float32: too coarse a number to divide by eps."""
    assert num_items_in_batch is not None
    flat = logits[:, :-1].reshape(-1, vocab_size)
    return nn.functional.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum") / num_items_in_batch


def test_trainer_accumulates_to_one_big_batch(tmp_path: Path) -> None:
    found = []
    for pieces in (1, 4):
        model = llama().double()
        model.loss_function = loss_in_float64
        opt = zosgd(model)
        opt.attach(model)
        trainer(model, opt, tmp_path / str(pieces), pieces=pieces, steps=1).train()
        found.append(opt.last_step)
    assert found[0].losses == pytest.approx(found[1].losses, rel=1e-6)
    assert found[0].scalars[0].value == pytest.approx(found[1].scalars[0].value, rel=1e-6)


@pytest.mark.slow
def test_trainer_saves_and_resumes(tmp_path: Path) -> None:
    whole = llama()
    opt = zosgd(whole)
    opt.attach(whole)
    trainer(whole, opt, tmp_path / "a", pieces=2, steps=4, save_strategy="steps", save_steps=2).train()
    again = llama()
    its = zosgd(again)
    its.attach(again)
    resumed = trainer(again, its, tmp_path / "a", pieces=2, steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert its.num_steps == 4
    assert its.last_step.scalars == opt.last_step.scalars
    assert same_bits(whole, again)
