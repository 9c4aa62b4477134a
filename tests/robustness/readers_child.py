"""Run by test_readers_fuzz.py: reads mutants of valid files where memory is short, prints what went wrong.

    python readers_child.py FOLDER MUTANTS SEED

A limit on the address space turns "allocates what a header claims" into MemoryError, an alarm turns a hang
into an error, and whatever kills the process is seen by its parent.
"""

from __future__ import annotations

import random
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import file_makers
from judging import SECONDS, judge, limit_memory

SLOW = ("pipeline", "model", "report", "run_metrics")
"""Readers of models and pages take some hundredths of a second each."""


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
    """As `judge`, and whether it takes longer than SECONDS."""
    signal.alarm(SECONDS)
    try:
        return judge(read, path)
    except Hung:
        return "hangs"
    except BaseException as error:
        return repr(error)
    finally:
        signal.alarm(0)


def main(folder: Path, count: int, seed: int) -> None:
    warnings.simplefilter("ignore")

    def hung(*_: object) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, hung)
    made = {}
    for name, make in file_makers.MAKERS.items():
        if "parquet" in name and find_spec("pyarrow") is None:
            continue
        home = folder / name
        home.mkdir()
        path, read = make(home)
        if name != "saved_corpus":  # whose header is one that is refused
            read(path)
        made[name] = path, read, path.read_bytes()
    limit_memory()
    for name, (path, read, data) in made.items():
        found = set()
        for i in range(1 + count // 8 if name.startswith(SLOW) else count):
            path.write_bytes(mutant(data, random.Random(f"{name} {seed} {i}")))
            fault = attempt(read, path)
            if fault and fault[:40] not in found:
                found.add(fault[:40])
                print(f"{name}: mutant {i}: {fault}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
