"""Python modules that count for atheris's coverage."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from types import CodeType
from unittest import mock

from atheris.instrument_bytecode import patch_code


@contextmanager
def instrumented(packages: Collection[str]) -> Iterator[None]:
    """Modules of `packages` that are imported in the block; atheris's own hook misses an editable install."""
    plain = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, name: str) -> CodeType | None:
        code = plain(self, name)
        return patch_code(code, True) if code and name.partition(".")[0] in packages else code

    with mock.patch.object(SourceFileLoader, "get_code", get_code):
        yield
