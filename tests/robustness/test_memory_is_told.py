"""A reader that finds no memory says so: the file is not called damaged."""

from __future__ import annotations

import gzip
import zipfile
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tenfold.diffusion.canvas.files import read_published_result
from tenfold.diffusion.canvas.vocabulary import UNLEARNCANVAS
from tenfold.segmentation.labels import TASKS
from tenfold.segmentation.layouts import find_submissions
from tenfold.segmentation.streams import Place, Stream
from tenfold.selection.files import load_torch


def no_memory(*_: Any, **__: Any) -> Any:
    raise MemoryError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.pth"
    torch.save({"loss": {}, "acc": {}, "pred_loss": {}, "misclassified": {}}, path)
    return path


def test_checkpoints(saved, monkeypatch):
    monkeypatch.setattr(torch, "load", no_memory)
    with pytest.raises(MemoryError):
        load_torch(saved)
    with pytest.raises(MemoryError):
        read_published_result(saved, UNLEARNCANVAS, "style")


def test_archives(tmp_path, monkeypatch):
    path = tmp_path / "team.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("case.nii.gz", b"")
    monkeypatch.setattr(zipfile, "ZipFile", no_memory)
    with pytest.raises(MemoryError):
        find_submissions(path, TASKS["1"])


def test_compressed_files(tmp_path, monkeypatch):
    path = tmp_path / "case.nii.gz"
    path.write_bytes(gzip.compress(bytes(1000)))
    with Stream(Place(path)) as stream:
        stream.inflate(31)
        monkeypatch.setattr(
            stream, "_inflate", SimpleNamespace(eof=False, unconsumed_tail=b"", decompress=no_memory)
        )
        with pytest.raises(MemoryError):
            stream.read(10)
