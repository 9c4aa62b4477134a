"""How a reader may take a file: it reads it, or says by name what is wrong, where memory is short."""

from __future__ import annotations

import resource
import traceback
from pathlib import Path
from typing import Any

ROOM = 512 << 20
"""Bytes beyond what the process has when `limit_memory` is called."""

SECONDS = 20
ALLOWED = (ValueError, OSError)
OPTIONS = {"soul.json": "soul_config: ", "TOFU_EVAL.json": "reference: "}
"""Files of which the command names the option that they were given by."""


def limit_memory() -> None:
    """Turns "allocates what a header claims" into MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))


def judge(read: Any, path: Path) -> str | None:
    """What is wrong with how `read` took the file, or None."""
    try:
        read(path)
    except ALLOWED as error:
        told = str(error)
        named = path.name in told or str(path.parents[1]) in told  # or a folder of it, but not as a word
        if not named and not told.startswith(OPTIONS.get(path.name, path.name)):
            return f"does not name the file: {error!r:.200}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:160]} ({place.filename}:{place.lineno})"
    return None
