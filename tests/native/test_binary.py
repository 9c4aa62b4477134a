"""What the compiled module brings into a process: one OpenMP runtime, nothing a weaker CPU could trip over.

Templates of the standard library compiled for AVX-512 are weak symbols: the linker may keep that copy for
everybody, also for a CPU without AVX-512.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tenfold import _native

MODULE = Path(_native.cpu.__file__)
SANITIZED = ("sanitize", "threads")  # as noxfile.py names their build folders
BUILDS = [b for b in Path(__file__).parents[2].glob("build/*") if not b.name.startswith(SANITIZED)]
OBJECTS = sorted(o for b in BUILDS for o in b.glob("CMakeFiles/kernels_*.dir/kernels/*/*.o"))


def tool(name: str, *arguments: str) -> list[str]:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([name, *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


def test_no_openmp_runtime_is_linked():
    needed = [line.split()[-1] for line in tool("objdump", "-p", str(MODULE)) if "NEEDED" in line]
    assert needed
    assert not [name for name in needed if "omp" in name]
    assert not [name for name in needed if "torch" in name or "c10" in name]


def test_only_the_door_is_exported():
    if any("libasan" in line for line in tool("objdump", "-p", str(MODULE))):
        pytest.skip("the sanitizers export functions of their own")
    lines = tool("nm", "-D", "--defined-only", str(MODULE))
    functions = [line.split()[-1] for line in lines if line.split()[1] in "TW"]
    assert functions == ["PyInit__cpu"]


@pytest.mark.skipif(not OBJECTS, reason="no build tree beside the tests")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: f"{p.parts[-4]}-{p.name}")
def test_objects_hold_no_weak_symbols(path):
    weak = [
        line.split(maxsplit=2)[-1] for line in tool("nm", "-C", str(path)) if " W " in line or " u " in line
    ]
    assert not [name for name in weak if "tf_" not in name]


@pytest.mark.skipif(not OBJECTS, reason="no build tree beside the tests")
def test_the_baseline_has_no_later_instructions():
    baseline = [p for p in OBJECTS if "kernels_baseline.dir" in p.parts]
    assert baseline
    for path in baseline:
        wide = [line for line in tool("objdump", "-d", str(path)) if "%ymm" in line or "%zmm" in line]
        assert not wide, path
