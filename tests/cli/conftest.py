from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tenfold import cli
from tenfold.workflows import WORKFLOWS, Workflow


def toy(target: str = "run") -> Workflow:
    return Workflow(
        "toy",
        "A paper",
        ("zo",),
        "a walk",
        config="toy_workflow:ToyConfig",
        target=f"toy_workflow:{target}",
        ready=True,
    )


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in an empty folder: arguments -> (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(WORKFLOWS, "toy", toy())

    def called(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return called
