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


def limit_memory() -> None:
    """Turns "allocates what a header claims" into MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))


def judge(read: Any, path: Path) -> str | None:
    """What is wrong with how `read` took the file, or None."""
    try:
        read(path)
    except ALLOWED as error:
        named = path.name in str(error) or path.parent.name in str(error)  # a folder is read as a whole
        if not named and path.suffix != ".yaml":  # the command names the option
            return f"does not name the file: {error!r:.200}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:160]} ({place.filename}:{place.lineno})"
    return None
