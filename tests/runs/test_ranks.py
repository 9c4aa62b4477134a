"""Which processes are of one run, and what runs in one only. Real ones: tests/llm/test_soul_ranks.py."""

from __future__ import annotations

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
