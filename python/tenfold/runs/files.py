"""Files that are either the old one or the whole new one, whatever interrupts the writing."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenfold._reading import reading

__all__ = [
    "check_name",
    "clear_unfinished",
    "read_json",
    "read_safetensors",
    "replacing",
    "save_torch",
    "write_json",
    "write_text",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_UNFINISHED = re.compile(r".+\.([1-9]\d*)\.part")


def check_name(argument: str, name: str) -> str:
    """Refuse what is not a plain file name without its ending (letters, digits, `_`, `.`, `-`)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{argument}: expected letters, digits, '_', '.' or '-', got {name!r}")
    return name


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; what is written there takes the place of `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def clear_unfinished(folder: Path) -> None:
    """Remove what processes that were killed in the middle of a write have left under `folder`.

    Such files and folders are named NAME.PID.part; those of a process that still runs here stay.
    """
    for path in sorted(folder.rglob("*.part"), reverse=True):
        named = _UNFINISHED.fullmatch(path.name)
        if named is None or _runs(int(named[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_text(path: Path, text: str) -> None:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: NaN and infinities are refused, keys keep their order."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def save_torch(value: Any, path: Path) -> None:
    """As torch.save, but a disk that is full is an OSError and not PyTorch's RuntimeError about positions."""
    import io

    import torch

    held = io.BytesIO()
    torch.save(value, held)
    path.write_bytes(held.getbuffer())


def read_json(path: Path) -> Any:
    """The value in `path`; ValueError names the file if it holds no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got text that does not parse ({error})") from error


def read_safetensors(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors, on the CPU, and the metadata; ValueError names a file that is broken."""
    from safetensors import safe_open

    with reading(path, "a safetensors file"), safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
