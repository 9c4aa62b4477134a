"""What is refused before it can spoil a run: foreign states, options changed in between, logs in use."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tenfold.optim import LOZO, ZOSGD, ZOMuon, ZOSGDMomentum, _log, _parallel, zolog

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(8, 3)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def _steps(model: nn.Module, opt: Any, n: int) -> None:
    for _ in range(n):
        opt.step(lambda: ((model(X) - Y) ** 2).mean())


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("kind", [LOZO, ZOMuon])
@pytest.mark.parametrize("other", [{"seed": 5}, {"rank": 1}])
def test_factors_follow_a_loaded_state(kind: Any, other: dict[str, int]) -> None:
    model = _model()
    opt = kind(model.parameters(), lr=1e-2, rank=2, seed=3)
    _steps(model, opt, 2)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    _steps(model, opt, 2)
    second = _model()
    resumed = kind(second.parameters(), lr=1e-2, **{"rank": 2, "seed": 3, **other})
    _steps(second, resumed, 1)
    second.load_state_dict(weights)
    resumed.load_state_dict(state)
    _steps(second, resumed, 2)
    assert _same(model, second)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
@pytest.mark.parametrize("options", [{}, {"msign": "svd"}])
def test_an_empty_matrix_is_left_alone(shape: tuple[int, int], options: dict[str, str]) -> None:
    empty, other = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.ones(3, 3))
    opt = ZOMuon([empty, other], **options)
    opt.step(lambda: empty.sum() + other.square().sum())
    assert not torch.equal(other, torch.ones(3, 3))


def _mid_run(path: Path) -> tuple[nn.Module, dict[str, Any], nn.Module, ZOSGDMomentum]:
    model = _model()
    opt = ZOSGDMomentum(model.parameters(), lr=1e-2)
    _steps(model, opt, 2)
    base, state = copy.deepcopy(model), copy.deepcopy(opt.state_dict())
    with zolog.ZOLog.create(path, opt, model):
        _steps(model, opt, 3)
    return base, state, model, opt


def test_undo_needs_the_state_before_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.zolog"
    base, state, model, _ = _mid_run(path)
    kept = copy.deepcopy(model)
    with pytest.raises(zolog.ZOLogError, match="optimizer="):
        zolog.undo(model, path, 1, base)
    assert _same(model, kept)
    opt = ZOSGDMomentum(model.parameters(), lr=1e-2)
    opt.load_state_dict(state)
    assert zolog.undo(model, path, 2, base, optimizer=opt) == 3 == opt.num_steps
    expected = copy.deepcopy(base)
    again = ZOSGDMomentum(expected.parameters(), lr=1e-2)
    again.load_state_dict(state)
    _steps(expected, again, 1)
    assert _same(model, expected)


@pytest.mark.parametrize("with_base", [False, True])
def test_merge_compares_states(tmp_path: Path, with_base: bool) -> None:
    model = _model()
    base = copy.deepcopy(model)
    opt = ZOSGDMomentum(model.parameters(), lr=1e-2)
    a, b, c = (tmp_path / f"{name}.zolog" for name in "abc")
    with zolog.ZOLog.create(a, opt, model):
        _steps(model, opt, 2)
    fresh = ZOSGDMomentum(model.parameters(), lr=1e-2)
    fresh.num_steps = 2
    if with_base:
        for p in model.parameters():
            fresh.state[p]["momentum_buffer"] = torch.ones_like(p)
    with zolog.ZOLog.create(b, fresh, model):
        _steps(model, fresh, 1)
    with pytest.raises(zolog.ZOLogError, match="state"):
        zolog.merge([a, b], c, base=base if with_base else None)
    assert not c.exists()


def test_one_log_for_one_optimizer(tmp_path: Path) -> None:
    model = _model()
    opt = ZOSGD(model.parameters())
    with zolog.ZOLog.create(tmp_path / "a.zolog", opt, model):
        with pytest.raises(ValueError, match="without a log"):
            zolog.ZOLog.create(tmp_path / "b.zolog", opt, model)
        assert not (tmp_path / "b.zolog").exists()


def test_a_log_in_use_is_not_replaced(tmp_path: Path) -> None:
    model, path = _model(), tmp_path / "a.zolog"
    pytest.importorskip("fcntl")
    opt = ZOSGD(model.parameters())
    with zolog.ZOLog.create(path, opt, model):
        _steps(model, opt, 2)
        with pytest.raises(zolog.ZOLogError, match="locked"):
            zolog.truncate(path, 1)
        with pytest.raises(zolog.ZOLogError, match="locked"):
            zolog.ZOLog.create(path, ZOSGD(model.parameters()), model, overwrite=True)
        _steps(model, opt, 1)
    assert zolog.info(path)["steps"] == 3


@pytest.mark.parametrize(
    ("field", "name", "value"),
    [
        ("optimizer", None, {}),
        ("optimizer", "groups", "x"),
        ("optimizer", "options", None),
        ("optimizer", "class", 3),
        ("manifest", "stream", -1),
        ("manifest", "stream", "a"),
        ("manifest", "shape", "x"),
        ("manifest", "group", 7),
        ("manifest", "dtype", "str"),
        ("eps", None, [0.0]),
    ],
)
def test_headers_with_odd_content(tmp_path: Path, field: str, name: str | None, value: Any) -> None:
    model, path = _model(), tmp_path / "a.zolog"
    zolog.ZOLog.create(path, ZOSGD(model.parameters()), model).close()
    header = json.loads(path.read_bytes())
    for own in ("format", "version", "crc32"):
        del header[own]
    if name is None:
        header[field] = value
    else:
        (header[field][0] if field == "manifest" else header[field])[name] = value
    path.write_bytes(_log.encode_header(header))
    with pytest.raises(zolog.ZOLogError):
        zolog.replay(model, path)


def test_probes_and_step_of_an_attached_optimizer_have_the_same_eps() -> None:
    model = _model()
    opt = ZOSGD(model.parameters(), eps=1e-3)
    kept = copy.deepcopy(model)
    with opt.attach(model, loss=lambda out: out.square().mean() if out.ndim else out):
        pass
    whole = nn.Module()
    whole.inner = model
    whole.forward = lambda x: model(x).square().mean()  # type: ignore[method-assign]
    with opt.attach(whole):
        whole(X).backward()
        opt.param_groups[0]["eps"] = 1e-2
        with pytest.raises(RuntimeError, match="eps"):
            opt.step()
        assert _same(model, kept)
        opt.zero_grad()
        whole(X).backward()
        opt.param_groups[0]["lr"] = 1e-2  # a schedule may move between the two
        opt.step()
    assert not _same(model, kept)


def test_the_digest_reads_all_elements() -> None:
    a, b = nn.Parameter(torch.zeros(100, 100)), nn.Parameter(torch.zeros(100, 100))
    with torch.no_grad():
        b[50, 50] = 1.0
    assert _parallel.digest(ZOSGD([a])) != _parallel.digest(ZOSGD([b]))
    opt = ZOSGD([a])
    before = _parallel._present(opt)
    opt.param_groups[0]["lr"] *= 2
    assert _parallel._present(opt) != before
