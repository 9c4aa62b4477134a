"""Replaying, resuming, merging and taking back logged runs: to the bit."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from zolog_cases import (
    NUMERICS,
    OPTIMIZERS,
    closure,
    logged_run,
    network,
    optimizer,
    same_bits,
    same_state,
    train,
)

from tenfold.optim import (
    ZOSGD,
    Blocks,
    ForwardGrad,
    HiZOO,
    HybridFirstOrder,
    ZOMuon,
    ZOSGDSign,
    _passes,
    zolog,
)
from tenfold.optim import _log as log
from tenfold.optim.zolog import ZOLogError

HERE = Path(__file__).parent
LONG = ("sgd", "momentum", "adam", "lozo", "sparse", "sgd q=3")


# -- replay -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replay_is_the_run_to_the_bit(name: str, numerics: str, restore: str, tmp_path: Path) -> None:
    replay_is_the_run(name, numerics, restore, 200 if name in LONG else 40, tmp_path)


@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replay_of_a_few_steps(name: str, numerics: str, restore: str, tmp_path: Path) -> None:
    replay_is_the_run(name, numerics, restore, 8, tmp_path)


def replay_is_the_run(name: str, numerics: str, restore: str, steps: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model, opt, base = logged_run(path, steps, name, numerics, restore=restore, weight_decay=0.01)
    assert not same_bits(model, base)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            again = copy.deepcopy(base)
            replayed = zolog.replay(again, path)
            assert same_bits(model, again)
            assert same_state(opt, replayed)
    finally:
        torch.set_num_threads(threads)
    train(opt, model, steps + 3)
    train(replayed, again, steps + 3)
    assert same_bits(model, again)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ZOSGD, {"num_queries": 66, "dist": "rademacher"}),  # more directions than one chain holds
        (ZOSGD, {"dist": "sphere", "one_sided": True}),
        (ZOSGD, {"dist": "gauss16", "z_round": torch.bfloat16}),
        (ZOSGD, {"num_queries": 3, "aggregate": "least_squares"}),
        (ZOSGD, {"restore": "dual", "maximize": True}),
        (ZOSGD, {"compat": "mezo", "weight_decay": 0.1}),
        (ZOSGDSign, {}),
        (HiZOO, {"smoothing": 1e-3}),
        (ZOMuon, {"rank": 2, "nu": 5, "lr": 1e-3}),
        (ForwardGrad, {}),
    ],
)
def test_other_options_are_replayed_too(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    base = copy.deepcopy(model)
    opt = kind(model.named_parameters(), **{"lr": 1e-2, "streams": model, **options})
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        train(opt, model, 3 if opt.num_queries > 64 else 12)
    tensors = {name: p.detach().clone() for name, p in base.named_parameters()}
    replayed = zolog.replay(base, tmp_path / "a.zolog")
    assert same_bits(model, base)
    assert same_state(opt, replayed)
    zolog.replay(tensors, tmp_path / "a.zolog")  # from weights alone, without the module
    assert same_bits(dict(model.named_parameters()), tensors)


@pytest.mark.parametrize("order", ["coordinate", "simultaneous"])
def test_blocks_are_replayed_with_and_without_the_module(order: str, tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(4)], nn.Linear(5, 1))
    base = copy.deepcopy(model)
    blocks = Blocks(model, order=order)
    opt = ZOSGD(model.named_parameters(), lr=1e-2, streams=model, blocks=blocks, restore="arithmetic")
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        train(opt, model, 8)
    tensors = {name: p.detach().clone() for name, p in base.named_parameters()}
    zolog.replay(base, tmp_path / "a.zolog")
    zolog.replay(tensors, tmp_path / "a.zolog")
    assert same_bits(model, base)
    assert same_bits(dict(model.named_parameters()), tensors)


@pytest.mark.parametrize("numerics", NUMERICS)
@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
def test_one_pass_over_the_weights_is_as_good_as_all(
    restore: str, numerics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zolog"
    model, _, base = logged_run(path, 40, "sgd q=3", numerics, restore=restore, weight_decay=0.01)
    calls: list[int] = []
    from tenfold import ops

    fused = ops.zo_replay_

    def counted(params: list[Tensor], streams: Any, passes: Any, **options: Any) -> None:
        calls.append(len(passes))
        fused(params, streams, passes, **options)

    monkeypatch.setattr(ops, "zo_replay_", counted)
    one, other = copy.deepcopy(base), copy.deepcopy(base)
    zolog.replay(one, path)
    assert len(calls) == 2  # with and without weight decay
    assert sum(calls) == 2 * 40 * (7 if restore == "arithmetic" else 1)
    monkeypatch.setattr(_passes, "is_chain", lambda optimizer: False)
    zolog.replay(other, path)
    assert len(calls) == 2
    assert same_bits(one, other)
    assert same_bits(one, model)


def test_long_logs_go_by_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt, base = logged_run(tmp_path / "a.zolog", 20)
    monkeypatch.setattr(_passes, "_CHUNK", 6)
    replayed = zolog.replay(base, tmp_path / "a.zolog")
    assert same_bits(model, base)
    assert same_state(opt, replayed)


def test_until_stops_in_between(tmp_path: Path) -> None:
    _, _, base = logged_run(tmp_path / "a.zolog", 10, "adam")
    half, half_opt, _ = logged_run(tmp_path / "b.zolog", 6, "adam")
    again = copy.deepcopy(base)
    replayed = zolog.replay(again, tmp_path / "a.zolog", 6)
    assert same_bits(half, again)
    assert same_state(half_opt, replayed)
    with pytest.raises(ValueError, match=r"until: expected an integer in \[0, 10\], got 11"):
        zolog.replay(base, tmp_path / "a.zolog", 11)


def test_schedules_and_groups_are_in_the_log(tmp_path: Path) -> None:
    model = network()
    base = copy.deepcopy(model)
    groups = [
        {"params": list(model[0].parameters())},
        {"params": [*model[1].parameters(), *model[3].parameters()], "lr": 3e-3, "eps": 2e-3},
    ]
    opt = ZOSGD(groups, lr=1e-2, eps=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1 / (1 + k))
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        while opt.num_steps < 12:
            opt.step(closure(model, opt.num_steps))
            schedule.step()
            if opt.num_steps == 5:
                opt.param_groups[0]["eps"] = 0.05
                opt.param_groups[1]["eps"] = 1 / 3
    zolog.replay(base, tmp_path / "a.zolog")
    assert same_bits(model, base)


def test_parameters_that_are_frozen_or_tied(tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        model = network()
        model[0].weight.requires_grad_(False)
        model.append(model[3])
        model.extra = nn.Parameter(torch.ones(3))  # not the optimizer's
        return model

    model = make()
    inner = [p for name, p in model.named_parameters() if name != "extra"]
    opt = ZOSGD(inner, lr=1e-2)
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        for k in range(5):
            opt.step(lambda k=k: model[:4](torch.ones(2, 5) * k).square().sum())
    base = make()
    zolog.replay(base, tmp_path / "a.zolog")
    assert same_bits(model, base)
    thawed = make()
    thawed[0].weight.requires_grad_(True)
    with pytest.raises(ZOLogError, match=r"'0\.weight' with requires_grad=False"):
        zolog.replay(thawed, tmp_path / "a.zolog")


# -- what does not fit ----------------------------------------------------------------------------------


def change_name(base: dict[str, Tensor]) -> None:
    base["other"] = base.pop("0.weight")


def change_shape(base: dict[str, Tensor]) -> None:
    base["0.weight"] = base["0.weight"].t().contiguous()


def change_dtype(base: dict[str, Tensor]) -> None:
    base["0.bias"] = base["0.bias"].double()


def change_bit(base: dict[str, Tensor]) -> None:
    base["3.bias"].view(torch.int32)[0] ^= 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (change_name, r"weights with '0\.weight', got none"),
        (change_shape, r"'0\.weight' as float32 \[12, 5\], got float32 \[5, 12\]"),
        (change_dtype, r"'0\.bias' as float32 \[12\], got float64 \[12\]"),
        (change_bit, r"the weights that it starts from \(sha256 [0-9a-f]{16}\.\.\.\), got others"),
    ],
)
def test_other_weights_are_refused_untouched(change: Any, what: str, tmp_path: Path) -> None:
    _, _, base = logged_run(tmp_path / "a.zolog", 3)
    tensors = {name: p.detach().clone() for name, p in base.named_parameters()}
    change(tensors)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for attempt in (
        lambda: zolog.replay(tensors, tmp_path / "a.zolog"),
        lambda: zolog.undo(dict(base.named_parameters()), tmp_path / "a.zolog", 1, base=tensors),
    ):
        with pytest.raises(ZOLogError, match=what):
            attempt()
    assert same_bits(before, tensors)


def test_damaged_logs_leave_the_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    _, _, base = logged_run(path, 3)
    before = copy.deepcopy(base)
    data = path.read_bytes()
    for damaged in (data[:-1], data[:-41], data[:-45] + b"\x00" + data[-44:], data[:50]):
        path.write_bytes(damaged)
        with pytest.raises(ZOLogError):
            zolog.replay(base, path)
        with pytest.raises(ZOLogError):
            zolog.undo(base, path, 1)
    assert same_bits(before, base)


def test_other_optimizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model, opt, base = logged_run(path, 3)
    for options, what in (
        ({"eps": 2e-3}, "expected an optimizer at step 3"),  # eps may change; it has to be at the end
        ({"num_queries": 2}, r"options\.num_queries = 2 where it has 1"),
        ({"seed": 6}, r"options\.seed = 6 where it has 5"),
        ({"weight_decay": 0.5}, r"groups\[0\]\.weight_decay = 0\.5 where it has 0\.0"),
    ):
        with pytest.raises(ZOLogError, match=what):
            zolog.ZOLog.open(path, optimizer(base, **options), base)
    with pytest.raises(ZOLogError, match="class = 'ZOAdam' where it has 'ZOSGD'"):
        zolog.resume(path, optimizer(base, "adam"), base)
    base[0].bias.requires_grad_(False)
    with pytest.raises(ZOLogError, match=r"parameter '0\.bias' as in the log, got trainable = False"):
        zolog.resume(path, optimizer(base), base)
    zolog.ZOLog.open(path, opt, model).close()


def test_hybrid_steps_hold_more_than_scalars(tmp_path: Path) -> None:
    model = nn.Sequential(*[nn.Linear(5, 5) for _ in range(3)])
    hybrid = HybridFirstOrder(1, lambda params: torch.optim.SGD(params, lr=1e-2), model)
    opt = ZOSGD(model.named_parameters(), streams=model, hybrid=hybrid)
    with pytest.raises(ValueError, match="hybrid: expected None"):
        zolog.ZOLog.create(tmp_path / "a.zolog", opt, model)


# -- resuming -------------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from zolog_cases import *
from tenfold.optim import zolog
model = network(NUMERICS[{numerics!r}][0])
opt = optimizer(model, {name!r}, rounding=NUMERICS[{numerics!r}][1], restore={restore!r})
log = zolog.ZOLog.create("run.zolog", opt, model)
calls = 0

def dies(inner):
    def call():
        global calls
        calls += 1
        if opt.num_steps == 9 and calls % 2 == 0:  # the second probe: weights are away from where they were
            os.kill(os.getpid(), signal.SIGKILL)
        return inner()
    return call

while opt.num_steps < 20:
    calls = 0
    opt.step(dies(closure(model, opt.num_steps)))
"""


@pytest.mark.parametrize(
    ("name", "numerics", "restore"),
    [
        ("sgd", "f32", "arithmetic"),
        pytest.param("adam", "f32", "exact", marks=pytest.mark.slow),
        pytest.param("lozo-m", "bf16 sr", "exact", marks=pytest.mark.slow),
        pytest.param("momentum", "bf16 sr", "arithmetic", marks=pytest.mark.slow),
    ],
)
def test_killed_in_mid_step_and_resumed(name: str, numerics: str, restore: str, tmp_path: Path) -> None:
    code = KILLED.format(here=str(HERE), name=name, numerics=numerics, restore=restore)
    died = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    path = tmp_path / "run.zolog"
    assert zolog.info(path)["steps"] == 9
    dtype, rounding = NUMERICS[numerics]
    model = network(dtype)
    opt = optimizer(model, name, rounding=rounding, restore=restore)
    with zolog.resume(path, opt, model):
        assert opt.num_steps == 9
        train(opt, model, 20)
    whole, whole_opt, _ = logged_run(tmp_path / "whole.zolog", 20, name, numerics, restore=restore)
    assert same_bits(model, whole)
    assert same_state(opt, whole_opt)
    assert path.read_bytes() == (tmp_path / "whole.zolog").read_bytes()


@pytest.mark.parametrize("lost", [1, 39, 40, 41, 119])
def test_a_torn_step_is_made_again(lost: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model, _, base = logged_run(path, 6, "sgd q=3")
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    with pytest.raises(ZOLogError, match="recover=True drops it"):
        zolog.resume(path, optimizer(base, "sgd q=3"), base, recover=False)
    opt = optimizer(base, "sgd q=3")
    with zolog.resume(path, opt, base):
        assert opt.num_steps == 5
        train(opt, base, 6)
    assert same_bits(model, base)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_schedule_and_resume_give_the_log_of_an_uninterrupted_run(name: str, tmp_path: Path) -> None:
    def start(path: Path, *, resume: bool) -> tuple[nn.Module, Any, Any, Any]:
        model = network()
        opt = optimizer(model, name)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda k: 1.0 - k / 40)
        recording = (zolog.resume if resume else zolog.ZOLog.create)(path, opt, model)
        schedule.last_epoch = opt.num_steps - 1
        opt._opt_called = True  # silences a warning for schedules that go on
        schedule.step()
        return model, opt, schedule, recording

    def go(model: nn.Module, opt: Any, schedule: Any, until: int) -> None:
        while opt.num_steps < until:
            opt.step(closure(model, opt.num_steps))
            schedule.step()

    ends = {}
    for path, stops in ((tmp_path / "a", [20]), (tmp_path / "b", [4, 11, 20])):
        for k, stop in enumerate(stops):
            model, opt, schedule, recording = start(path, resume=k > 0)
            go(model, opt, schedule, stop)
            recording.close()
        ends[path] = model
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert same_bits(ends[tmp_path / "a"], ends[tmp_path / "b"])


def test_resume_from_a_checkpoint_makes_only_the_later_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model = network()
    opt = optimizer(model, "adam")
    with zolog.ZOLog.create(path, opt, model):
        train(opt, model, 4)
        weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
        train(opt, model, 9)
    again = network()
    again.load_state_dict(weights)
    its = optimizer(again, "adam")
    its.load_state_dict(state)
    with zolog.resume(path, its, again):
        assert its.num_steps == 9
    assert same_bits(model, again)
    assert same_state(opt, its)


def test_truncate_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model, _, base = logged_run(path, 9)
    whole = path.read_bytes()
    opt = zolog.replay(base, path, 4)
    with pytest.raises(ZOLogError, match="at step 9, got one at 4"):
        zolog.ZOLog.open(path, opt, base)
    zolog.truncate(path, 4)
    with zolog.ZOLog.open(path, opt, base):
        train(opt, base, 9)
    assert same_bits(model, base)
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match=r"steps: expected an integer in \[0, 9\], got 10"):
        zolog.truncate(path, 10)


# -- undoing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd q=3", "adam"])
def test_undo_from_the_base_is_exact(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model, _, base = logged_run(path, 10, name)
    before, _, _ = logged_run(tmp_path / "b.zolog", 7, name)
    assert zolog.undo(model, path, 3, base=base) == 7
    assert same_bits(model, before)


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p.detach() - q.detach()).abs().max()) for p, q in pairs)


@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
@pytest.mark.parametrize("name", ["sgd", "sgd q=3", "sparse", "fzoo", "conservative", "sign"])
def test_undo_without_the_base_is_right_up_to_rounding(name: str, restore: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model, _, base = logged_run(path, 30, name, restore=restore, weight_decay=0.02)
    assert distance(model, base) > 1e-3
    assert zolog.undo(model, path, 30) == 0
    assert distance(model, base) < 2e-6


@pytest.mark.parametrize("name", ["adam", "momentum", "lozo-m", "magnitude"])
def test_undo_without_the_base_is_refused_where_there_is_a_state(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    model, _, _ = logged_run(path, 3, name)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="base: expected the weights that the log starts from"):
        zolog.undo(model, path, 1)
    assert same_bits(model, before)
    with pytest.raises(ValueError, match=r"steps: expected an integer in \[0, 3\], got 4"):
        zolog.undo(model, path, 4)


# -- merging --------------------------------------------------------------------------------------------


def segments(tmp_path: Path, name: str) -> tuple[list[Path], nn.Module, nn.Module]:
    """One run in three logs."""
    model = network()
    base = copy.deepcopy(model)
    opt = optimizer(model, name)
    paths = []
    for k, stop in enumerate((3, 7, 8)):
        paths.append(tmp_path / f"part{k}.zolog")
        with zolog.ZOLog.create(paths[-1], opt, model):
            train(opt, model, stop)
    return paths, model, base


@pytest.mark.parametrize("name", ["sgd", "adam", "lozo-m", "magnitude"])
def test_segments_become_the_log_of_the_run(name: str, tmp_path: Path) -> None:
    paths, model, base = segments(tmp_path, name)
    zolog.merge(paths, tmp_path / "all.zolog", base=base)
    logged_run(tmp_path / "whole.zolog", 8, name)
    assert (tmp_path / "all.zolog").read_bytes() == (tmp_path / "whole.zolog").read_bytes()
    again = copy.deepcopy(base)
    zolog.replay(again, tmp_path / "all.zolog")
    assert same_bits(again, model)


def test_a_later_segment_with_a_state_needs_the_optimizer(tmp_path: Path) -> None:
    paths, model, base = segments(tmp_path, "adam")
    opt = zolog.replay(base, paths[0])
    with pytest.raises(ZOLogError, match="expected optimizer=, with the state that the run had at step 3"):
        zolog.replay(base, paths[1])
    stranger = optimizer(base, "adam")
    stranger.num_steps = 3
    with pytest.raises(ZOLogError, match="with the state that the log starts from"):
        zolog.replay(base, paths[1], optimizer=stranger)
    for path in paths[1:]:
        zolog.replay(base, path, optimizer=opt)
    assert same_bits(base, model)


def test_a_segment_after_a_return_to_a_checkpoint_replaces_what_followed(tmp_path: Path) -> None:
    model, _, base = logged_run(tmp_path / "a.zolog", 9)
    opt = zolog.replay(base, tmp_path / "a.zolog", 5)
    start = network()
    with zolog.ZOLog.create(tmp_path / "b.zolog", opt, base):
        opt.param_groups[0]["lr"] = 5e-3
        train(opt, base, 7)
    zolog.merge([tmp_path / "a.zolog", tmp_path / "b.zolog"], tmp_path / "c.zolog", base=start)
    zolog.replay(start, tmp_path / "c.zolog")
    assert same_bits(start, base)
    assert not same_bits(start, model)


def test_logs_that_are_not_of_one_run_are_not_joined(tmp_path: Path) -> None:
    paths, _, base = segments(tmp_path, "sgd")
    logged_run(tmp_path / "q.zolog", 3, "sgd", num_queries=2)
    out = tmp_path / "out.zolog"
    for wrong, what in (
        ([paths[0], paths[2]], r"begins at a step of \[0, 3\], got 7"),
        ([paths[1], paths[0]], r"begins at a step of \[3, 7\], got 0"),
        ([tmp_path / "q.zolog", paths[1]], "a segment of the same run"),
    ):
        with pytest.raises(ZOLogError, match=what):
            zolog.merge(wrong, out)
    other = network()
    stray = optimizer(other)
    stray.num_steps = 3  # other weights at that step
    with zolog.ZOLog.create(tmp_path / "stray.zolog", stray, other):
        train(stray, other, 4)
    zolog.merge([paths[0], tmp_path / "stray.zolog"], out)
    with pytest.raises(ZOLogError, match="the weights that it starts from"):
        zolog.merge([paths[0], tmp_path / "stray.zolog"], out, base=base)
    with pytest.raises(ValueError, match="paths: expected two logs or more, got 1"):
        zolog.merge(paths[:1], out)


@pytest.mark.parametrize("name", ["sgd", "sgd q=3", "fzoo", "sparse"])
def test_an_average_of_runs_leads_to_the_mean_of_their_weights(name: str, tmp_path: Path) -> None:
    paths, ends = [], []
    for seed, steps, restore in ((5, 12, "exact"), (6, 9, "arithmetic"), (7, 15, "exact")):
        paths.append(tmp_path / f"{seed}.zolog")
        model, _, base = logged_run(paths[-1], steps, name, seed=seed, restore=restore)
        ends.append(model)
    zolog.merge(paths, tmp_path / "mean.zolog", average=True)
    assert zolog.info(tmp_path / "mean.zolog")["runs"] == 3
    start = copy.deepcopy(base)
    assert zolog.replay(start, tmp_path / "mean.zolog") is None
    for p, q, *each in zip(
        start.parameters(), base.parameters(), *(end.parameters() for end in ends), strict=True
    ):
        mean = torch.stack([e.detach().double() for e in each]).mean(0)
        assert (p - mean).abs().max().item() < 1e-6
        assert (q - mean).abs().max().item() > 1e-4
    with pytest.raises(ZOLogError, match="the log of one run, got an average of 3"):
        zolog.undo(start, tmp_path / "mean.zolog", 1)
    with pytest.raises(ZOLogError, match="the log of one run"):
        zolog.replay(base, tmp_path / "mean.zolog", 3)


def test_what_cannot_be_averaged(tmp_path: Path) -> None:
    a, b = tmp_path / "a.zolog", tmp_path / "b.zolog"
    logged_run(a, 2)
    for name, options, what in (
        ("adam", {}, "a sum of directions, without weight decay, got ZOAdam with a state"),
        ("sgd", {"weight_decay": 0.1}, "got ZOSGD with weight decay"),
        ("magnitude", {}, "got SparseMeZO with a state"),
    ):
        logged_run(b, 2, name, **options)
        with pytest.raises(ValueError, match=what):
            zolog.merge([a, b], tmp_path / "c.zolog", average=True)
        b.unlink()
    logged_run(b, 2, numerics="bf16 sr")
    with pytest.raises(ZOLogError, match="expected a run from the same base_sha256"):
        zolog.merge([a, b], tmp_path / "c.zolog", average=True)
    assert not (tmp_path / "c.zolog").exists()


def test_info_tells_what_the_header_and_the_steps_hold(tmp_path: Path) -> None:
    _, _, base = logged_run(tmp_path / "a.zolog", 4, "sgd q=3", dist="rademacher")
    found = zolog.info(tmp_path / "a.zolog")
    named = list(base.named_parameters())
    assert found["base_sha256"] == zolog.weights_sha256(named)
    assert (found["steps"], found["scalars"], found["first_step"], found["seed"]) == (4, 12, 0, 5)
    assert (found["tensors"], found["elements"]) == (6, sum(p.numel() for _, p in named))
    assert (found["optimizer"], found["lr"], found["generator"]) == (
        "ZOSGD",
        [1e-2, 1e-2],
        "tfz-rademacher v1",
    )
    assert found["bytes"] == (tmp_path / "a.zolog").stat().st_size
    assert log.read(tmp_path / "a.zolog").single().header["manifest"][1]["name"] == "0.bias"
