"""Run by test_readers_fuzz.py: reads mutants of valid files where memory is short, prints what went wrong.

    python readers_child.py FOLDER MUTANTS SEED

A limit on the address space turns "allocates what a header claims" into MemoryError, an alarm turns a hang
into an error, and whatever kills the process is seen by its parent.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import file_makers

ROOM = 512 << 20
"""Bytes beyond what the process has after reading the valid file."""

SECONDS = 20
ALLOWED = (ValueError, OSError)


class Hung(BaseException):
    """Reading took longer than SECONDS."""


def mutant(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: cut, flip, insert, repeat, or a number that claims much."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(out) + 1) if rng.random() < 0.6 else rng.randrange(min(len(out), 160) + 1)
        how = rng.choice(("cut", "flip", "insert", "repeat", "huge", "digits"))
        if how == "cut":
            del out[at:]
        elif how == "flip" and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == "insert":
            out[at:at] = rng.randbytes(rng.choice((1, 4, 40)))
        elif how == "repeat":
            out[at:at] = out[at : at + 50] * rng.choice((1, 20))
        elif how == "huge":
            width = rng.choice((2, 4, 8))
            out[at : at + width] = rng.choice((b"\xff" * width, b"\0" * (width - 1) + b"\x7f", bytes(width)))
        else:
            out[at : at + 1] = rng.choice((b"9" * 15, b"-1", b"1e400", b"NaN", b'"', b"{" * 3000, b"\n"))
    return bytes(out)


def attempt(read: Any, path: Path) -> str | None:
    """What is wrong with how `read` took the file, or None."""
    signal.alarm(SECONDS)
    try:
        read(path)
    except ALLOWED as error:
        if path.name not in str(error) and path.suffix != ".yaml":  # the command names the option
            return f"does not name the file: {error!r:.200}"
    except Hung:
        return "hangs"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:160]} ({place.filename}:{place.lineno})"
    finally:
        signal.alarm(0)
    return None


def main(folder: Path, count: int, seed: int) -> None:
    warnings.simplefilter("ignore")

    def hung(*_: object) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, hung)
    made = {}
    for name, make in file_makers.MAKERS.items():
        home = folder / name
        home.mkdir()
        path, read = make(home)
        if name != "saved_corpus":  # whose header is one that is refused
            read(path)
        made[name] = path, read, path.read_bytes()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    for name, (path, read, data) in made.items():
        found = set()
        for i in range(count):
            path.write_bytes(mutant(data, random.Random(f"{name} {seed} {i}")))
            fault = attempt(read, path)
            if fault and fault[:40] not in found:
                found.add(fault[:40])
                print(f"{name}: mutant {i}: {fault}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
