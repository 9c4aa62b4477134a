"""Tests of the project as a thing to install and to read.

Most need the source tree and are skipped where only a wheel is installed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree() -> Path:
    """The root of the source tree."""
    if not (_ROOT / "README.md").exists():
        pytest.skip("no source tree here: the tests run from an installed wheel")
    return _ROOT


@pytest.fixture
def dist() -> Path:
    """The folder with the sdist and the wheel under test (nox -s wheel sets TENFOLD_DIST)."""
    folder = os.environ.get("TENFOLD_DIST")
    if not folder:
        pytest.skip("TENFOLD_DIST names no folder with an sdist and a wheel (nox -s wheel builds one)")
    return Path(folder)
