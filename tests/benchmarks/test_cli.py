"""The command: options, files, exit codes, and what is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tenfold.benchmarks import cli, report
from tenfold.benchmarks.floors import better_of, measure_floors
from tenfold.benchmarks.harness import Case, Plan, Workload, floor_of

from tenfold import benchmarks

FLOORS = {
    "device": "cpu",
    "rates": {
        "1": {
            "copy_gbps": 10.0,
            "inplace_gbps": 12.0,
            "memory_gbps": 12.0,
            "hot_gbps": {"40000": 30.0},
            "fma_gflops": 50.0,
            "fma_by": "test",
            "generator_gnormals": 1.0,
            "generator_by": "test",
        }
    },
    "how": {},
}
FAST = ["--no-memory", "--no-compiled", "--seconds", "0.001", "--runs", "2"]


@pytest.fixture
def quick_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "measure_floors", lambda device, threads: FLOORS)


def test_list_prints_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks.main(["zo", "--list"]) == 0
    assert "zo.perturb.gaussian.f32.opt125m" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nope"], "FAMILY"),
        (["--only", "zo.nope"], "--only"),
        (["--only", " , "], "--only"),
        (["--threads", "0"], "--threads"),
        (["--runs", "0"], "--runs"),
        (["--seconds", "nan"], "--seconds"),
        (["--seconds", "0"], "--seconds"),
        (["--threads", "x"], "--threads"),
    ],
)
def test_wrong_command_lines_end_with_2_and_name_the_option(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmarks.main(argv) == 2
    assert words in capsys.readouterr().err


def test_cuda_without_a_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmarks.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_only_keeps_the_order_given_and_drops_doubles() -> None:
    ids = ["zo.sample.uniform.f32.n1e7", "zo.perturb.gaussian.f32.n1e4"]
    assert [c.id for c in cli.chosen_cases([], ",".join([*ids, ids[0]]))] == ids


def test_a_run_writes_json_markdown_and_plots(
    tmp_path: Path, quick_floors: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    ids = "zo.perturb.rademacher.f32.n1e4,zo.perturb.rademacher.f32.n1e5"
    threads = torch.get_num_threads()
    code = benchmarks.main(
        ["--only", ids, "--json", str(tmp_path / "r.json"), "--out", str(tmp_path / "o"), *FAST]
    )
    assert code == 0
    assert torch.get_num_threads() == threads
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["schema"] == report.SCHEMA
    assert {"environment", "floors", "records"} <= result.keys()
    assert [r["id"] for r in result["records"]] == ids.split(",")
    assert all(r["floor_ms"] > 0 and r["ms"] > 0 for r in result["records"])
    peers = {p["name"]: p for p in result["records"][0]["peers"]}
    assert peers["fzoo"]["agrees"]
    assert peers["reference"]["max_error"] == 0.0
    assert json.loads((tmp_path / "o/bench.json").read_text()) == result
    table = (tmp_path / "o/bench.md").read_text()
    assert capsys.readouterr().out == table
    assert "`zo.perturb.rademacher.f32.n1e4`" in table
    assert "fzoo" in table
    names = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert names == [
        "bench.json",
        "bench.md",
        "zo.perturb.rademacher.f32.png",
        "zo.perturb.rademacher.f32.svg",
    ]


def test_an_interrupt_writes_what_there_is(
    tmp_path: Path, quick_floors: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = ["zo.perturb.rademacher.f32.n1e4", "zo.perturb.rademacher.f32.n1e5", "zo.sample.uniform.f32.n1e7"]
    run = cli.run_case

    def second_is_interrupted(case: Case, *rest: Any) -> dict[str, Any]:
        if case.id == ids[1]:
            assert [r["id"] for r in json.loads(file.read_text())["records"]] == ids[:1]
            raise KeyboardInterrupt
        return run(case, *rest)

    file = tmp_path / "r.json"
    monkeypatch.setattr(cli, "run_case", second_is_interrupted)
    assert benchmarks.main(["--only", ",".join(ids), "--json", str(file), *FAST]) == 130
    result = json.loads(file.read_text())
    assert result["interrupted"] == "after 1 of 3 cases"
    assert [r["id"] for r in result["records"]] == ids[:1]
    assert result["records"][0]["floor_ms"] > 0
    assert ids[0] in capsys.readouterr().out


def test_a_case_that_fails_is_named_and_the_others_run(
    tmp_path: Path, quick_floors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(device: torch.device, tiny: bool) -> Workload:
        raise RuntimeError("no room")

    good = cli.chosen_cases([], "zo.perturb.rademacher.f32.n1e4")
    monkeypatch.setattr(cli, "chosen_cases", lambda families, only: [Case("f.o.v.w", build), *good])
    assert benchmarks.main(["--json", str(tmp_path / "r.json"), *FAST]) == 1
    bad, other = json.loads((tmp_path / "r.json").read_text())["records"]
    assert bad["ms"] is None
    assert bad["why_missing"] == "RuntimeError: no room"
    assert other["ms"] > 0


def test_a_case_without_a_kernel_for_the_device_is_left_out(
    quick_floors: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = cli.chosen_cases([], "zo.perturb.rademacher.f32.n1e4")
    other = dataclasses.replace(good[0], id="f.o.v.w", devices=("cuda",))
    monkeypatch.setattr(cli, "chosen_cases", lambda families, only: [other, *good])
    assert benchmarks.main(FAST) == 0
    written = capsys.readouterr()
    assert "f.o.v.w is left out: the operation has no kernel on cpu" in written.err
    assert "f.o.v.w" not in written.out


def result_with(peer: dict[str, Any], **env: Any) -> dict[str, Any]:
    record = {
        "id": "f.o.v.w",
        "backend": "cpu",
        "ms": 2.0,
        "why_missing": None,
        "peak_extra_mib": 0.5,
        "floor_ms": 1.0,
    }
    base = {"name": "p", "version": "1", "why_missing": None, "peak_extra_mib": None, "times_ours": 3.0}
    return {
        "schema": report.SCHEMA,
        "environment": {
            "tenfold": "0",
            "torch": "0",
            "cpu": "C",
            "threads": 1,
            "ms_is": "m",
            "clock": "wall",
            **env,
        },
        "floors": FLOORS,
        "records": [{**record, "peers": [{**base, "ms": 6.0, "agrees": True, "max_error": 0.0, **peer}]}],
    }


def test_markdown_marks_disagreement_and_absence() -> None:
    assert "| **no** |" in report.markdown(result_with({"agrees": False}))
    assert "missing: no `x`" in report.markdown(result_with({"ms": None, "why_missing": "no `x`"}))


def test_markdown_prints_absolute_times_only_on_a_named_gpu() -> None:
    assert "| ms |" not in report.markdown(result_with({}))
    table = report.markdown(result_with({}, gpu="G"))
    assert "| ms |" in table
    assert "G" in table.splitlines()[0]


def test_exit_code_tells_disagreement_and_absence_of_ours() -> None:
    good = result_with({})["records"]
    assert not cli.failed(good)
    assert not cli.failed(result_with({"ms": None, "agrees": False})["records"])
    assert cli.failed(result_with({"agrees": False})["records"])
    assert cli.failed([{**good[0], "ms": None}])


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="JSON"):
        report.to_json({"x": float("nan")})


def test_write_text_leaves_no_aside_file(tmp_path: Path) -> None:
    report.write_text(tmp_path / "a" / "b.txt", "x")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_environment_names_the_clock_and_no_path() -> None:
    env = report.environment(Plan())
    assert env["clock"] == "process_cpu"
    assert "CPU time" in env["ms_is"]
    assert not any("/" in str(v) for k, v in env.items())


def test_floors_are_positive_and_merged_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from tenfold.benchmarks import floors

    monkeypatch.setattr(floors, "TRIES", 1)
    monkeypatch.setattr(floors, "BUFFER_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(floors, "fma_rate", lambda device, threads: {"fma_gflops": 9.0, "fma_by": "new"})
    before = torch.get_num_threads()
    found = measure_floors(torch.device("cpu"), [1])
    assert torch.get_num_threads() == before
    rates = found["rates"]["1"]
    assert rates["memory_gbps"] > 0
    assert rates["generator_gnormals"] > 0
    assert rates["hot_gbps"]["40000"] > 0
    best = better_of(
        FLOORS, {**FLOORS, "rates": {"1": {**FLOORS["rates"]["1"], "copy_gbps": 99.0, "fma_gflops": 60.0}}}
    )
    assert best["rates"]["1"]["copy_gbps"] == 99.0
    assert best["rates"]["1"]["fma_gflops"] == 60.0
    assert best["rates"]["1"]["inplace_gbps"] == 12.0


def test_products_of_every_precision() -> None:
    """On the CPU here; on a GPU they are the floors of what is done in those precisions."""
    from tenfold.benchmarks.floors import product_rates

    rates = product_rates(torch.device("cpu"), size=64)
    assert {"fma_gflops", "tf32_gflops", "bf16_gflops", "fma_by"} == rates.keys()
    assert all(rates[f"{name}_gflops"] > 0 for name in ("fma", "tf32", "bf16"))
    floors = {**FLOORS, "rates": {"1": {**FLOORS["rates"]["1"], **rates}}}
    assert f"bfloat16 {rates['bf16_gflops']:.0f} GFLOP/s" in report.markdown(
        {**result_with({}), "floors": floors}
    )
    work = {"bytes": 0.0, "normals": 0.0, "flops": 1e9, "precision": "bf16"}
    assert floor_of(work, floors, 1)["floor_ms"] == pytest.approx(1e3 / rates["bf16_gflops"])
    assert floor_of({**work, "precision": "f32"}, floors, 1)["floor_ms"] == pytest.approx(
        1e3 / rates["fma_gflops"]
    )
