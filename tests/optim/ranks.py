"""Processes under torchrun for the tests of optimizers."""

from __future__ import annotations

from pathlib import Path

import child

START = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(child.__file__).parent)]!r}
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
"""
END = """
dist.barrier()
dist.destroy_process_group()
import os
os._exit(0)  # all is written; threads that torch leaves behind have aborted the interpreter's own end
"""


def torchrun(body: str, folder: Path, ranks: int = 2) -> Path:
    """`folder`, in which this many processes have run `body`; it knows torch, dist, rank and world."""
    (folder / "worker.py").write_text(START + body + END)
    child.output(*child.under_torchrun(ranks), "worker.py", folder=folder)
    return folder
