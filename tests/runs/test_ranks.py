"""Which processes are of one run, and what runs in one only. Real ones: tests/llm/test_soul_ranks.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta

import pytest

from tenfold.cli import main
from tenfold.runs import ranks

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("missing", [None, *TORCHRUN])
def test_torchrun_is_known_by_its_variables(missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.delenv(name, raising=False)
        if name != missing:
            monkeypatch.setenv(name, value)
    assert ranks.started() is (missing is None)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not ranks.started()
    assert ranks.current() is None


@pytest.mark.parametrize("name", ["segrap", "all"])
@pytest.mark.usefixtures("under_torchrun")
def test_what_runs_in_one_process_refuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", name]) == 2
    said = capsys.readouterr().err
    assert f"torchrun: expected one of zo, soul, got {name}, which runs in one process" in said


def test_a_process_that_stays_alone_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], under_torchrun: None
) -> None:
    port = free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr(ranks, "JOIN", timedelta(seconds=1))
    with pytest.raises(
        RuntimeError, match=rf"ranks: expected 2 processes at localhost:{port} within .* come"
    ):
        ranks.Ranks()
    assert f"ranks: 2 processes meet at localhost:{port}" in capsys.readouterr().err


@pytest.mark.usefixtures("under_torchrun")
@pytest.mark.parametrize("variables", [{"LOCAL_WORLD_SIZE": "2"}, {"LOCAL_RANK": "1"}])
def test_two_processes_on_one_gpu_are_refused(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import torch.distributed as dist

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    with pytest.raises(ValueError, match=r"LOCAL_WORLD_SIZE: expected at most .* GPUs \(1\), got 2"):
        ranks.Ranks()


def working(error: Exception) -> None:
    group = object.__new__(ranks.Ranks)
    group.size, group._working = 2, False
    with group.working(), group.working():
        raise error


def test_only_a_lost_connection_says_that_one_has_gone() -> None:
    import torch.distributed as dist

    gloo = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4218"
    for error in (
        RuntimeError(gloo),
        dist.DistNetworkError("x"),
        dist.DistBackendError("ncclRemoteError: x"),
    ):
        with pytest.raises(RuntimeError, match="ranks: expected 2 processes, but one has gone") as raised:
            working(error)
        assert str(raised.value).count("one has gone") == 1
    for text in ("NCCL error: ncclInvalidUsage, Duplicate GPU detected", "ncclUnhandledCudaError"):
        with pytest.raises(dist.DistBackendError, match=text):
            working(dist.DistBackendError(text))


SCRIPT = """
from tenfold.llm import zo_ranks
from tenfold.runs import ranks

zo_ranks._follow_job = lambda group, asked: zo_ranks._steps(group, lambda: print("a step"))
with ranks.joined() as group:
    group.agree("numbers", "1")
    try:
        group.agree("weights", str(group.rank))
    except RuntimeError as error:
        print(error)
    if group.rank:
        zo_ranks.follow(group)
        print("followed")
    else:
        group.tell({"what": "job"})
        zo_ranks.told(group, int)
        raise KeyError("between two steps")
"""


def test_two_processes_differ_and_one_fails_between_steps() -> None:
    """The others hear the word that nothing follows, and do not report a rank that has gone."""
    variables = os.environ | TORCHRUN | {"MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""}
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        (out, err), (other_out, other_err) = (process.communicate(timeout=60) for process in begun)
    finally:
        for process in begun:
            process.kill()
    differ = "ranks: expected the same weights on all 2 processes, got others on rank 1 than on rank 0\n"
    assert out == differ
    assert "KeyError: 'between two steps'" in err
    assert other_out == differ + "a step\nfollowed\n", other_err
    assert begun[1].returncode == 0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def test_a_digest_tells_tensors_apart() -> None:
    import torch

    one = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(1)}
    assert ranks.digest(one) == ranks.digest({name: tensor.clone() for name, tensor in one.items()})
    others = [{"w": one["w"].view(3, 2), "n": one["n"]}, {"w": one["w"] + 1, "n": one["n"]}, {"w": one["w"]}]
    assert len({ranks.digest(each) for each in [one, *others]}) == 4
