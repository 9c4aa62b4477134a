"""The command as its own process: what is loaded, exit codes, killing and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent

TOY = """
import sys
from tenfold.workflows import WORKFLOWS, Workflow
workflow = Workflow("toy", "A paper", ("zo",), "a walk", "toy_workflow:ToyConfig", "toy_workflow:run", True)
WORKFLOWS["toy"] = workflow
from tenfold.cli import main
sys.exit(main())
"""


def process(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["--help"], ["run", "sool"], ["run", "--help"]]
)
def test_quick_commands_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tenfold.cli import main\n"
        f"main({arguments})\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'transformers', 'jinja2', 'tenfold.llm', 'tenfold.ops'}\n"
        "loaded = heavy & set(sys.modules)\nassert not loaded, loaded\n"
    )
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_module_and_exit_codes(tmp_path: Path) -> None:
    done = process("-m", "tenfold", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)) == 10
    done = process("-m", "tenfold", "run", "nonsense", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_killed_run_resumes_to_the_same_numbers(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    killed = process("-c", TOY, "run", "toy", "--die_at", "13", "--out", "one", cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "one" / "metrics.json").exists()
    assert call("run", "toy", "--out", "one", "--resume")[0] == 0
    assert call("run", "toy", "--out", "two")[0] == 0
    numbers = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")]
    assert numbers[0]["metrics"] == numbers[1]["metrics"]
    assert not list((tmp_path / "one").rglob("*.part"))


def test_a_reader_that_stops_early_gets_no_traceback(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'tenfold', 'list']\n"
        "p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "p.stdout.close()\n"
        "error = p.stderr.read().decode()\n"
        "assert 'Traceback' not in error and 'BrokenPipe' not in error, error\n"
    )
    done = process("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
