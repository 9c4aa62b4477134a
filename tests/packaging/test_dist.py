"""What is in the wheel and in the sdist. They run where these were built: nox -s wheel."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import pytest

IN_WHEEL = """
tenfold/__init__.py tenfold/cli/__init__.py tenfold/runs/template/report.html.j2
tenfold/runs/template/report.css tenfold/kernels/zo/zo_reference.py tenfold/kernels/zo/zo_triton.py
tenfold/benchmarks/zo.py
"""

IN_SDIST = """
pyproject.toml CMakeLists.txt CMakePresets.json README.md LICENSE CHANGELOG.md CITATION.cff
constraints.txt assets.txt noxfile.py csrc/cpu_module.cpp csrc/args.hpp kernels/core/philox.hpp
kernels/zo/zo_cpu.cpp kernels/zo/zo.hpp kernels/zo/zo_reference.py python/tenfold/__init__.py
python/tenfold/runs/__init__.py benchmarks/zo.py tests/conftest.py tests/runs/conftest.py
tests/packaging/test_dist.py docs/conf.py
"""


@pytest.fixture
def wheel(dist: Path) -> zipfile.ZipFile:
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


@pytest.fixture
def sdist(dist: Path) -> set[str]:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as opened:
        return {name.partition("/")[2] for name in opened.getnames()}


def test_wheel_holds_the_packages_and_no_sources(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert not [name for name in IN_WHEEL.split() if name not in names]
    assert sum(bool(re.fullmatch(r"tenfold/_cpu\.[\w.-]+\.so", name)) for name in names) == 1
    assert not [name for name in names if re.search(r"\.(cpp|cu|cuh|hpp|o|pyc)$|CMake|/tests?/", name)]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"tenfold"}


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    folder = next(name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()
    assert "tenfold = tenfold.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    for extra in ("run", "llm", "eeg", "demo", "unlearn", "bench", "test", "docs", "gpu", "all"):
        assert f"Provides-Extra: {extra}" in metadata


def test_wheel_links_no_libtorch_and_no_openmp(wheel: zipfile.ZipFile) -> None:
    """Names of needed libraries stand in the binary as text: OpenMP's symbols are there, no library is."""
    name = next(name for name in wheel.namelist() if name.startswith("tenfold/_cpu."))
    binary = wheel.read(name)
    for library in (b"libtorch", b"libc10", b"libgomp.so", b"libiomp5.so", b"libomp.so", b"libcudart"):
        assert library not in binary, library
    assert b"GOMP_parallel" in binary or b"__kmpc_fork_call" in binary


def test_sdist_can_build_and_be_tested(sdist: set[str]) -> None:
    assert not [name for name in IN_SDIST.split() if name not in sdist]
    built = re.compile(r"\.(so|pyc|o)$|^(build|runs|dist|\.venv)/")
    assert not [name for name in sdist if built.search(name)]
