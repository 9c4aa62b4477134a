"""The command for a machine with a GPU: its parts with stand-ins for what only such a machine has."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tenfold.benchmarks import gpu, gpu_report

ROOT = Path(__file__).parents[2]


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that come first: a driver, and a sanitizer that finds two errors in two calls."""
    tools = tmp_path / "tools"
    program(tools, "nvidia-smi", 'echo "Some GPU, 1024 MiB, 500.1, 9.0"')
    program(tools, "nvcc", 'echo "Cuda compilation tools, release 13.0, V13.0.88"')
    program(
        tools, "compute-sanitizer", "echo zo.sign.f32; echo mmd.mmd; echo ERROR SUMMARY: 2 errors; exit 9"
    )
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tools


def record(**changes: Any) -> dict[str, Any]:
    peer = {"name": "mezo", "kind": "peer", "version": "1", "ms": 0.3, "why_missing": None, "agrees": True}
    base = {"id": "f.o.v.w", "backend": "cuda", "ms": 0.1, "floor_ms": 0.08, "why_missing": None}
    return {**base, "peers": [peer], **changes}


def made_up(**parts: Any) -> dict[str, Any]:
    rates = {"memory_gbps": 4000.0, "fma_gflops": 5e4, "tf32_gflops": 4e5, "bf16_gflops": 8e5}
    whole = {
        "build": {"ok": True, "wheel": "tenfold-0.whl", "seconds": 80.0},
        "tests": {"ok": True, "passed": 7, "failed": 0, "skipped": 1, "failures": [], "timed_out": False},
        "sanitizer": {"ok": True, "errors": 0, "calls": 60},
        "bench": {"ok": True, "floors": {"rates": {"1": rates}}, "records": [record()]},
    } | parts
    return {
        "schema": gpu_report.SCHEMA,
        "date": "2026-01-02T03:04:05Z",
        "device": dict(zip(("name", "memory", "driver", "compute_capability"), "NMDC", strict=True)),
        "versions": {"torch": "2.9", "triton": ""},
        "parts": {name: {"seconds": 1.0, **part} for name, part in whole.items()},
    }


# ---- the report ------------------------------------------------------------------------------------------


def test_table_names_device_floors_and_ratios() -> None:
    text = gpu_report.table(made_up())
    assert "Measured on 2026-01-02 on one N (M, compute capability C, driver D) with torch 2.9." in text
    assert "7 passed, 0 failed, 1 skipped" in text
    assert "over 60 calls, one of every op: 0 errors" in text
    assert "4000 GB/s" in text
    assert "float32 50, TF32 400, bfloat16 800 TFLOP/s" in text
    assert "| `f.o.v.w` | cuda | 100.0 us | 1.25 | mezo 3.00 |" in text


def test_table_says_what_is_missing_and_what_disagrees() -> None:
    disagrees = record(ms=2.0, floor_ms=None, peers=[{"name": "p", "ms": 1.0, "agrees": False}])
    absent = record(ms=None, why_missing="no kernel")
    bench = {"ok": False, "interrupted": "after 2 of 9 cases", "floors": {"rates": {"1": FLOOR}}}
    text = gpu_report.table(made_up(bench={**bench, "records": [disagrees, absent]}))
    assert "| `f.o.v.w` | cuda | 2.00 ms |  | p 0.50 (**disagrees**) |" in text
    assert "did not run: no kernel" in text
    assert "interrupted after 2 of 9 cases" in text
    with pytest.raises(ValueError, match=r"gpu\.json: expected schema"):
        gpu_report.table({"schema": "x"})


FLOOR = {"memory_gbps": 1.0, "fma_gflops": 1.0}


def test_summary_lists_failures() -> None:
    failed = {
        "ok": False,
        "passed": 1,
        "failed": 1,
        "skipped": 0,
        "failures": [["a::b", "no"]],
        "timed_out": True,
    }
    text = gpu_report.summary(made_up(tests=failed))
    assert "tests      FAILED" in text
    assert "  a::b: no" in text


def test_page_is_made_from_the_record(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "docs" / "update_readme.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script._load = lambda _: gpu_report  # the installed one: beside a wheel's tests there is no benchmarks/
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(made_up()))
    page = script.replaced(script.GPU_PAGE.read_text(encoding="utf-8"), script.gpu_table(path))
    assert "mezo 3.00" in page
    assert page.startswith("# On a GPU")
    assert script.replaced(page, script.gpu_table(path)) == page
    drawn = ET.fromstring(script.gpu_picture(path))
    assert [e.text for e in drawn.iter() if e.tag.endswith("title") and ":" in str(e.text)] == ["mezo: 3.00"]
    assert "f.o.v.w" in [e.text for e in drawn.iter() if e.tag.endswith("text")]
    wrong = {"ok": False, "errors": 2, "calls": 60}
    for result, words in (
        (made_up(sanitizer=wrong), "sanitizer did not end well"),
        (made_up(bench={"ok": False, "floors": {}, "records": [record(peers=[
            {"name": "p", "ms": 1.0, "agrees": False}])]}), r"f\.o\.v\.w disagrees with p"),
    ):  # fmt: skip
        path.write_text(json.dumps(result))
        with pytest.raises(ValueError, match=words):
            script.gpu_table(path)
    if script.GPU_RECORD.exists():
        text = script.GPU_PAGE.read_text(encoding="utf-8")
        assert script.replaced(text, script.gpu_table(script.GPU_RECORD)) == text


# ---- the command -----------------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_and_wrong_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.main(["--out", str(tmp_path / "o")]) == 2
    assert "expected an NVIDIA GPU" in capsys.readouterr().err
    for wrong in ("tests", "tests=x", "nope=3", "tests=-1"):
        assert gpu.main(["--out", str(tmp_path / "o"), "--limit", wrong]) == 2
        assert "--limit: expected PART=SECONDS" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    assert gpu.limits(["tests=1.5"])["tests"] == 1.5


def test_what_the_sanitizer_finds_fails_the_part(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    assert gpu.main(["--out", str(out), "--part", "sanitizer"]) == 1
    result = json.loads((out / "gpu.json").read_text())
    part = result["parts"]["sanitizer"]
    assert (part["ok"], part["errors"], part["calls"]) == (False, 2, 2)
    assert result["device"]["compute_capability"] == "9.0"
    assert result["versions"]["nvcc"] == "13.0"
    assert "sanitizer  FAILED" in capsys.readouterr().out
    program(machine, "compute-sanitizer", "echo zo.sign.f32; echo ERROR SUMMARY: 0 errors")
    assert gpu.main(["--out", str(out), "--part", "sanitizer"]) == 0
    assert "0 errors" in (out / "gpu.md").read_text()


def test_tests_are_counted_and_named(machine: Path, tmp_path: Path) -> None:
    """On tests of this test, run as the command runs the real ones."""
    source = tmp_path / "source"
    source.mkdir()
    body = "def test_cuda_good(): pass\ndef test_cuda_bad(): assert 1 == 2\ndef test_other(): assert False\n"
    body += "import pytest\ndef test_cuda_absent(): pytest.skip('x')\n"
    (source / "test_made_up.py").write_text(body)
    (source / "conftest.py").write_text(
        "def pytest_addoption(parser): parser.addoption('--slow', action='store_true')\n"
    )
    out = tmp_path / "o"
    command = ["--out", str(out), "--part", "tests", "--source", str(source), "--workers", "1"]
    assert gpu.main([*command, "--tests", "test_made_up.py"]) == 1
    part = json.loads((out / "gpu.json").read_text())["parts"]["tests"]
    assert (part["passed"], part["failed"], part["skipped"], part["ok"]) == (1, 1, 1, False)
    assert part["failures"] == [["test_made_up::test_cuda_bad", "assert 1 == 2"]]


def test_a_wheel_that_is_given_is_installed(machine: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("made_up.py", "")
        file.writestr(
            "made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n"
        )
        file.writestr(
            "made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("made_up-1.0.dist-info/RECORD", "")
    out = tmp_path / "o"
    assert gpu.main(["--out", str(out), "--part", "build", "--wheel", str(wheel)]) == 0
    assert (out / "site" / "made_up.py").exists()
    assert json.loads((out / "gpu.json").read_text())["parts"]["build"]["wheel"] == wheel.name


def test_a_job_beyond_its_limit_is_interrupted_and_may_write(tmp_path: Path) -> None:
    code = (
        "import time, pathlib\n"
        "try:\n    pathlib.Path('ready').touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    pathlib.Path('kept').touch()\n"
    )
    job = gpu.Job([sys.executable, "-c", code], tmp_path, dict(os.environ), 3.0, tmp_path / "log")
    assert job.timed_out
    assert (tmp_path / "ready").exists()
    assert (tmp_path / "kept").exists()
    assert job.seconds < 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for minutes")
def test_benchmarks_are_asked_for_as_the_options_say(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU `tenfold bench --device cuda` ends with 2; a record that it wrote would be taken in."""
    out = tmp_path / "o"
    assert gpu.main(["--out", str(out), "--part", "bench", "--families", "mmd", "--no-compiled"]) == 1
    part = json.loads((out / "gpu.json").read_text())["parts"]["bench"]
    assert part["records"] == []
    assert part["code"] == 2
    assert "no CUDA device" in (out / "bench.log").read_text()
