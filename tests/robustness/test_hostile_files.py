"""Files that try to run code or to lead out of their archive: refused, and nothing has run."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tenfold._npy import read_npy, read_npz


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


def npy(bomb: Bomb, path: Path) -> None:
    np.save(path, np.array([bomb], dtype=object), allow_pickle=True)


def npz(bomb: Bomb, path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, indices=np.array([bomb], dtype=object), g=np.array([bomb], dtype=object))


def plain(bomb: Bomb, path: Path) -> None:
    path.write_bytes(pickle.dumps(bomb))


def torched(bomb: Bomb, path: Path) -> None:
    torch.save({"state_dict": bomb}, path)


def readers() -> dict[str, tuple[str, Callable[[Bomb, Path], None], Callable[[Path], Any]]]:
    from tenfold.diffusion.canvas.files import read_matrix, read_published_result
    from tenfold.diffusion.canvas.vocabulary import Canvas
    from tenfold.diffusion.keys import load_component_state
    from tenfold.eeg.layouts.files import read_mat
    from tenfold.eeg.unpickle import load_pickle
    from tenfold.selection import files
    from tenfold.selection.transfer.networks import load_weights
    from tenfold.semcom.channel_file import read_channels

    canvas = Canvas(name="c", styles=("a", "b"), objects=("c", "d"), photo="a")
    layer = torch.nn.Linear(1, 1)
    return {
        "npy": ("a.npy", npy, read_npy),
        "npz": ("a.npz", npz, read_npz),
        "unpickle": ("a.dat", plain, load_pickle),
        "mat": ("a.mat", plain, lambda path: read_mat(path, r"x(\d+)")),
        "selection.npy": ("a.npy", npy, files.load),
        "selection.npz": ("a.npz", npz, files.load),
        "selection.pt": ("a.pt", torched, files.load),
        "selection.pth": ("a.pth", plain, files.load),
        "dropped rows": ("a.pkl", plain, lambda path: files.read_dropped(path, 3)),
        "labels": ("a.label", torched, files.read_labels),
        "channels": ("a.npz", npz, lambda path: read_channels(path, 2, 4)),
        "matrix": ("a.npz", npz, read_matrix),
        "published result": ("a.pth", torched, lambda path: read_published_result(path, canvas, "style")),
        "component": ("a.bin", torched, load_component_state),
        "network": ("a.pth", torched, lambda path: load_weights(layer, path)),
    }


@pytest.mark.parametrize("name", readers())
def test_a_hostile_pickle_is_refused(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "it has run"
    file, write, read = readers()[name]
    write(Bomb(mark), tmp_path / file)
    assert not mark.exists()
    with pytest.raises(ValueError):
        read(tmp_path / file)
    assert not mark.exists()


@pytest.mark.parametrize(
    "member", ["../out/a.nii.gz", "/out/a.nii.gz", "x/../../out/a.nii.gz", "..\\a.nii.gz"]
)
def test_a_zip_that_leads_out_is_refused(member: str, tmp_path: Path) -> None:
    from tenfold.segmentation.labels import Task
    from tenfold.segmentation.layouts import find_submissions

    with zipfile.ZipFile(tmp_path / "team.zip", "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(ValueError, match=r"team\.zip: expected names inside the archive"):
        find_submissions(tmp_path / "team.zip", Task("t", "t", {"organ": (1,)}))
    assert [p.name for p in tmp_path.rglob("*")] == ["team.zip"]


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    if link:
        info.type, info.linkname = tarfile.SYMTYPE, link
    archive.addfile(info, io.BytesIO(data))


def test_a_tar_writes_nowhere_but_where_it_is_asked_to(tmp_path: Path) -> None:
    """Members are copied by their last name alone; one that is a link out of the archive is refused."""
    from tenfold.segmentation.ct_pair import MEMBERS, extract

    (tmp_path / "secret").write_text("not yours")
    members = [f"../../tests/reference_files/{name}.nii.gz" for name in MEMBERS]
    with tarfile.open(tmp_path / "out.tar.gz", "w:gz") as archive:
        for name in members:
            add(archive, name, b"volume")
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as archive:
        for member in MEMBERS:
            add(archive, f"x/tests/reference_files/{member}.nii.gz", link=str(tmp_path / "secret"))
    for name in ("out.tar.gz", "link.tar.gz"):
        with pytest.raises(ValueError, match=name):
            extract(tmp_path / name, tmp_path / "inside")
    assert not list((tmp_path / "inside").rglob("*.nii.gz"))


def test_cifar_reads_no_link(tmp_path: Path) -> None:
    from tenfold.selection.reweight.data import load_cifar

    (tmp_path / "secret").write_bytes(pickle.dumps({"label_names": ["x"] * 10}))
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
            add(archive, f"cifar-10-batches-py/{name}", link=str(tmp_path / "secret"))
    with pytest.raises((ValueError, FileNotFoundError), match=r"c\.tar\.gz"):
        load_cifar(tmp_path / "c.tar.gz", 10)
