"""Run by test_killed_runs.py: `tenfold run ...` that kills itself right before the Nth file takes its place.

    python killed_child.py N run NAME [--field value ...]

With N = 0 it goes on to its end and writes how many files took their places to renames.txt in the working
folder. Workers that the run starts count for themselves and are not killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

made = 0


def count(last: int) -> None:
    replace = os.replace

    def counted(*arguments: Any, **more: Any) -> None:
        global made
        made += 1
        if made == last:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments, **more)

    os.replace = counted


if __name__ == "__main__":
    count(int(sys.argv[1]))
    from tenfold.cli import main

    code = main(sys.argv[2:])
    Path("renames.txt").write_text(str(made))
    sys.exit(code)
