"""One version everywhere, and pins that satisfy what the project asks for."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tenfold

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

needs_tomllib = pytest.mark.skipif(tomllib is None, reason="reading pyproject.toml needs Python 3.11")


@needs_tomllib
def test_one_version(tree: Path) -> None:
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((tree / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (tree / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert project["version"] == citation["version"] == newest[1] == tenfold.__version__
    assert project["license"] == citation["license"] == "Apache-2.0"


def test_installed_version() -> None:
    assert metadata.version("tenfold") == tenfold.__version__


def pins(tree: Path) -> list[Requirement]:
    lines = (tree / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@needs_tomllib
def test_pins_cover_what_is_asked_for(tree: Path) -> None:
    """Every requirement of the build and of the extras that the commands use has a pin that satisfies it."""
    pyproject = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    project, extras = pyproject["project"], pyproject["project"]["optional-dependencies"]
    wanted = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    for name in ("run", "llm", "eeg", "demo", "unlearn", "bench", "test", "docs"):
        wanted += extras[name]
    known = {
        canonicalize_name(pin.name): pin for pin in pins(tree) if pin.marker is None or pin.marker.evaluate()
    }
    for requirement in map(Requirement, wanted):
        if requirement.name == "tenfold":
            continue
        pin = known[canonicalize_name(requirement.name)]
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{requirement} and {pin}"


def test_pins_are_exact_and_name_no_index(tree: Path) -> None:
    for name in ("constraints.txt", "assets.txt"):
        text = (tree / name).read_text(encoding="utf-8")
        assert not re.search(r"https?:|^--?(i|f|index|extra|find)", text, re.MULTILINE)
    for pin in pins(tree):
        assert [s.operator for s in pin.specifier] == ["=="], str(pin)
        assert pin.url is None


def test_assets_are_those_of_the_code(tree: Path) -> None:
    from tenfold.assets import ASSETS

    lines = (tree / "assets.txt").read_text(encoding="utf-8").splitlines()
    listed = {line.partition("#")[0].strip() for line in lines} - {""}
    assert listed == {f"{asset.distribution}=={asset.version}" for asset in ASSETS.values()}
