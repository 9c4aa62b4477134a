"""Build csrc/cuda_module.cpp with the CUDA kernels for the host, over tests/cuda/emulator/cuda_runtime.h."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = re.compile(r"(\w+(?:<(?:[^<>]|<[^<>]*>)*>)?)<<<(\w+), (\w+), 0, .*?>>>\((\w+)\)")


FAMILIES = (
    "zo",
    "logprob",
    "lowrank",
    "dual",
    "sophia",
    "softdice",
    "overlap",
    "surface",
    "mmd",
    "coverage",
    "scores",
    "distance",
    "quality",
    "channel",
    "power",
    "erase",
    "attack",
)


def launches_as_calls(source: str) -> str:
    """`kernel<<<grid, threads, 0, stream>>>(p)` as a call of the emulator."""
    text, count = LAUNCH.subn(r"emulated_launch(\2, \3, \1, \4)", source)
    if count == 0 or "<<<" in text:
        raise ValueError("a kernel launch has a form that tests/cuda/emulate.py does not know")
    return text


def build(
    folder: Path,
    families: tuple[str, ...] = FAMILIES,
) -> ModuleType:
    """Compile into `folder` and import; RuntimeError with the compiler's words if that fails."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "c++"
    include = folder / "kernels"
    shutil.copytree(ROOT / "kernels", include, ignore=shutil.ignore_patterns("__pycache__"))
    sources = [ROOT / "csrc" / "cuda_module.cpp"]
    for family in families:
        for kernel in sorted((include / family).glob("*_cuda.cu")):
            source = kernel.with_suffix(".cpp")
            source.write_text(launches_as_calls(kernel.read_text()))
            sources.append(source)
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-w",
        "-DTF_NS=tf_cuda",
    ]
    paths = [
        Path(__file__).parent / "emulator",
        include,
        ROOT / "csrc",
        pybind11.get_include(),
        sysconfig.get_path("include"),
    ]
    command = [compiler, *flags, *(f"-I{path}" for path in paths), *map(str, sources), "-o", str(module)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    spec = importlib.util.spec_from_file_location("_cuda", module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
