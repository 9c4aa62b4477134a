"""Run by test_full_disk.py: every writer where no file may grow beyond a few kilobytes.

    python disk_child.py FOLDER

The limit on the size of a file is the kernel's own, and ends a write as a full disk does, in the middle.
"""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIMIT = 4096
BIG = 40_000


def _tensors(n: int) -> dict[str, Any]:
    return {"w": torch.arange(n, dtype=torch.float32)}


def write_json(path: Path, n: int) -> None:
    from tenfold.runs.files import write_json

    write_json(path, list(range(n)))


def write_text(path: Path, n: int) -> None:
    from tenfold.runs.files import write_text

    write_text(path, "x" * n)


def safetensors(path: Path, n: int) -> None:
    from tenfold.runs.folder import _save_tensors

    _save_tensors(path, _tensors(n), {"state": "{}"})


def table(path: Path, n: int) -> None:
    from tenfold.runs.folder import RunFolder

    held = RunFolder.__new__(RunFolder)
    held.path = path.parent.parent
    held.write_table(path.stem, [{"i": i} for i in range(n)])


def selection(path: Path, n: int) -> None:
    from tenfold.selection.files import save
    from tenfold.selection.result import Selection

    save(Selection(np.random.default_rng(0).permutation(n)), path)


def channels(path: Path, n: int) -> None:
    from tenfold.semcom.channel_file import write_channels

    write_channels(path, torch.ones(n, 2, 4, dtype=torch.complex64))


def training_state(path: Path, n: int) -> None:
    from tenfold.diffusion.erase.keep import write_state

    write_state(path, _tensors(n))


def volume(path: Path, n: int) -> None:
    from tenfold.segmentation.files import Header, write_nifti

    values = np.random.default_rng(0).integers(0, 200, (n // 16 + 1, 4, 4)).astype(np.uint8)
    affine = tuple(map(tuple, np.eye(4).tolist()))
    write_nifti(path, values, Header(values.shape, (1.0, 1.0, 1.0), affine))  # type: ignore[arg-type]


def published(path: Path, n: int) -> None:
    from tenfold.selection.files import write_labels

    write_labels(np.arange(n), path)


def recorder(path: Path, n: int) -> None:
    from tenfold.selection.dynamics import Recorder

    made = Recorder(n)
    made.update(torch.arange(n), torch.randn(n, 3), torch.zeros(n, dtype=torch.int64))
    made.save(path)


def figure(path: Path, n: int) -> None:
    from matplotlib.figure import Figure

    from tenfold.runs import figures

    drawn = Figure()
    drawn.add_subplot().plot(np.random.default_rng(0).standard_normal(n))
    figures.save(drawn, path.with_suffix(""))


WRITERS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "write_json": ("a.json", write_json),
    "write_text": ("a.txt", write_text),
    "safetensors": ("a.safetensors", safetensors),
    "table": ("tables/a.csv", table),
    "selection.npz": ("a.npz", selection),
    "selection.csv": ("a.csv", selection),
    "selection.npy": ("a.npy", selection),
    "selection.txt": ("a.txt", selection),
    "selection.pt": ("a.pt", selection),
    "channels": ("c.npz", channels),
    "training_state": ("a.safetensors", training_state),
    "volume": ("a.nii.gz", volume),
    "labels": ("a.pt", published),
    "recorder": ("r.npz", recorder),
    "figure": ("figures/a.svg", figure),
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def main(folder: Path) -> None:
    before = {}
    for name, (file, write) in WRITERS.items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, 8)
        before[name] = files(folder / name)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then the write fails with EFBIG, as with ENOSPC
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
    for name, (file, write) in WRITERS.items():
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                write(folder / name / file, BIG)
        except Exception as error:
            kind = type(error).__name__
            if not isinstance(error, OSError) and kind != "SafetensorError":
                print(f"{name}: raises {kind}: {error}")
        else:
            print(f"{name}: says nothing")
        after = files(folder / name)
        if after != before[name]:
            changed = {key for key in {*after, *before[name]} if after.get(key) != before[name].get(key)}
            print(f"{name}: leaves {sorted(changed)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
