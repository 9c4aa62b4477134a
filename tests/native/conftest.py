"""The instruction sets this machine runs, one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenfold import _native


@pytest.fixture(params=_native.cpu.isa_available())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in use during the test."""
    before = _native.cpu.isa_used()
    _native.cpu.use_isa(request.param)
    yield request.param
    _native.cpu.use_isa(before)
