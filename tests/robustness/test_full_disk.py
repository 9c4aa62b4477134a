"""A disk that is full: the old file stays, nothing lies half-written beside it, and somebody is told."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import data_makers
import disk_child
import pytest


def test_writers_leave_the_old_file_where_a_write_fails(tmp_path: Path) -> None:
    child = Path(disk_child.__file__)
    done = subprocess.run(
        [sys.executable, str(child), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert not done.stdout, done.stdout


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("name", disk_child.WRITERS)
def test_no_space_is_told_and_leaves_nothing(
    name: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last moments of a write: a disk may also be found full when the bytes are flushed."""
    file, write = disk_child.WRITERS[name]
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    write(path, 8)
    before = disk_child.files(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write(path, 100)
    monkeypatch.undo()
    assert disk_child.files(tmp_path) == before


def test_a_full_disk_is_not_told_as_a_broken_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = data_makers.ct_archive(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left"):
        read(path)
