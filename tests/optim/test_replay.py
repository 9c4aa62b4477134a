"""A step is a function of its scalars: replayed, it gives the same bits."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tenfold.optim import ZOSGD, Blocks, ZOAdam, from_hyperparameters

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def same_state(a, b) -> bool:
    """Whether two optimizers hold the same states, bit for bit."""
    for p, q in zip(a._slots, b._slots, strict=True):
        if set(a.state[p]) != set(b.state[q]):
            return False
        for key, value in a.state[p].items():
            other = b.state[q][key]
            same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
            if not same:
                return False
    return True


def replayed_equals(make, case, dtype, **options):
    """Run five steps, the third without finite losses, and replay them on a fresh model."""
    model, closure = make(dtype)
    opt = case.make(model.parameters(), lr=0.01, seed=5, streams=model, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(opt, 0.5)
    records = []
    for step in range(5):
        calls = []

        def spoilt(calls=calls, step=step):
            calls.append(0)
            loss = closure()
            return loss * math.nan if step == 2 and len(calls) > 1 else loss

        opt.step(spoilt)
        records.append(opt.last_step)
        scheduler.step()
    written = json.loads(json.dumps(opt.hyperparameters()))
    fresh, _ = make(dtype)
    copy = from_hyperparameters(written, fresh.parameters(), streams=fresh)
    for record in records:
        copy.replay_step(record.scalars, record.lrs, record.eps)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert same_state(opt, copy)
    assert (copy.num_steps, copy.num_skipped) == (opt.num_steps, opt.num_skipped)
    assert opt.num_skipped == 1
    assert copy.param_groups[0]["lr"] == 0.01 * 0.5**5
    return records


@pytest.mark.parametrize("restore", ["auto", "arithmetic", "exact", "dual"])
def test_float32(tagger, case, restore):
    records = replayed_equals(tagger, case, torch.float32, restore=restore)
    assert records[0].lrs == (0.01,)
    assert records[0].eps == (pytest.approx(records[0].eps[0]),)
    assert all(math.isfinite(s.value) for r in records for s in r.scalars)


@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
def test_bfloat16_with_stochastic_rounding(tagger, case, restore):
    replayed_equals(tagger, case, torch.bfloat16, restore=restore, rounding="sr")


@pytest.mark.parametrize("restore", ["arithmetic", "exact", "dual"])
@pytest.mark.parametrize("order", ["coordinate", "simultaneous"])
@pytest.mark.parametrize("one_sided", [False, True])
def test_block_wise_steps(tagger, restore, order, one_sided):
    """Also a step that stopped in its second block."""
    model, closure = tagger(torch.bfloat16)
    opt = ZOSGD(
        model.parameters(),
        lr=0.01,
        restore=restore,
        rounding="sr",
        one_sided=one_sided,
        streams=model,
        blocks=Blocks(model, order=order),
    )
    records = []
    for step in range(3):
        calls = []

        def spoilt(calls=calls, step=step):
            calls.append(0)
            return closure() * (math.nan if step == 1 and len(calls) == 4 else 1.0)

        opt.step(spoilt)
        records.append(opt.last_step)
    assert [r.skipped for r in records] == [False, True, False]
    fresh, _ = tagger(torch.bfloat16)
    written = json.loads(json.dumps(opt.hyperparameters()))
    copy = from_hyperparameters(written, fresh.parameters(), streams=fresh)
    for record in records:
        copy.replay_step(record.scalars, record.lrs, record.eps)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_groups_keep_their_numbers(tagger):
    model, closure = tagger()
    split = [
        {"params": list(model.layers.parameters()), "lr": 0.1, "eps": 1e-2, "weight_decay": 0.1},
        {"params": [*model.embed.parameters(), *model.norm.parameters()], "betas": (0.8, 0.9)},
    ]
    opt = ZOAdam(split, lr=0.01, streams=model)
    records = []
    for _ in range(3):
        opt.step(closure)
        records.append(opt.last_step)
    assert records[0].lrs == (0.1, 0.01)
    assert records[0].eps == (1e-2, 1e-3)
    fresh, _ = tagger()
    params = [*fresh.layers.parameters(), *fresh.embed.parameters(), *fresh.norm.parameters()]
    copy = from_hyperparameters(json.loads(json.dumps(opt.hyperparameters())), params, streams=fresh)
    assert copy.param_groups[1]["betas"] == (0.8, 0.9)
    for record in records:
        copy.replay_step(record.scalars, record.lrs, record.eps)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))


def test_slots_name_every_parameter(tagger):
    model, _ = tagger()
    opt = ZOSGD(list(model.layers.parameters()), streams=model)
    names = dict(model.named_parameters())
    order = list(names)
    for name, stream, shape, dtype in opt.named_slots():
        assert order[stream] == name
        assert tuple(names[name].shape) == shape
        assert dtype == torch.float32
    assert ZOSGD(list(model.parameters())).named_slots()[0][:2] == (None, 0)


def test_what_a_replay_refuses(tagger):
    model, closure = tagger()
    opt = ZOSGD(model.parameters(), lr=0.01, streams=model)
    opt.step(closure)
    record = opt.last_step
    with pytest.raises(ValueError, match=r"^lrs: expected 1 entries"):
        opt.replay_step(record.scalars, (0.1, 0.1), record.eps)
    written = opt.hyperparameters()
    with pytest.raises(ValueError, match=r"^streams: expected the module"):
        from_hyperparameters(written, model.parameters())
    with pytest.raises(ValueError, match=r"^params: expected \d+ tensors, got 1"):
        from_hyperparameters(written, [model.embed.weight], streams=model)
    with pytest.raises(ValueError, match=r"^hyperparameters: expected the class"):
        from_hyperparameters({**written, "class": "SGD"}, model.parameters(), streams=model)
