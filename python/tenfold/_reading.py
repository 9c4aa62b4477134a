"""What a reader raises, whatever is in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["out_of_memory", "parse_json", "reading"]

_OF_PYTORCH = ("DefaultCPUAllocator", "CUDA out of memory")


@contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """A broken or hostile file can raise anything (zip and csv errors, EOFError, OverflowError, OSErrors that
    name nothing ...): one ValueError that names it. Errors that name the file, as what the system says of it
    does, a file or a package that is not there and memory that has run out stay what they are.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if out_of_memory(error) or isinstance(error, FileNotFoundError):
            raise
        told = str(error)
        system = isinstance(error, OSError) and type(error).__module__ == "builtins"  # no library's own kind
        if (system or isinstance(error, ValueError)) and Path(path).name in told:
            raise
        reason = told.strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path}: expected {expected}, got another file ({reason})") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether it is what Python, NumPy, kernels or PyTorch raise where memory has run out."""
    of_pytorch = isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_PYTORCH)
    return of_pytorch or isinstance(error, MemoryError)


def parse_json(text: str | bytes) -> Any:
    """As json.loads; text that is nested too deeply is a ValueError, as other text that is no JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", "", 0) from None
