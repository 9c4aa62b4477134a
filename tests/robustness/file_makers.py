"""A valid file for each reader of the library, and the call that reads it."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_makers
import numpy as np
import torch
import weight_makers

Reader = Callable[[Path], Any]
Maker = Callable[[Path], tuple[Path, Reader]]

LABELS = np.arange(3 * 4 * 5).reshape(3, 4, 5) % 3


def _nifti(folder: Path, name: str, dtype: Any) -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(LABELS.astype(dtype), np.diag([1.0, 2, 3, 1])), folder / name)
    return folder / name


def nifti(folder: Path) -> tuple[Path, Reader]:
    from tenfold.segmentation import files

    return _nifti(folder, "a.nii", np.int16), files.read_labels


def nifti_gz(folder: Path) -> tuple[Path, Reader]:
    from tenfold.segmentation import files

    return _nifti(folder, "a.nii.gz", np.uint8), files.read_mask


def nifti_volume(folder: Path) -> tuple[Path, Reader]:
    from tenfold.segmentation import files

    return _nifti(folder, "v.nii", np.float32), files.read_volume


def meta_image(folder: Path) -> tuple[Path, Reader]:
    from tenfold.segmentation import files

    text = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    text += "CompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
    text += "ElementSpacing = 1 1 2\nDimSize = 5 4 3\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    path = folder / "a.mha"
    path.write_bytes(text.encode() + LABELS.astype(np.uint8).tobytes())
    return path, files.read_labels


def zipped_masks(folder: Path) -> tuple[Path, Reader]:
    from tenfold.segmentation import files
    from tenfold.segmentation.streams import Place

    inner = _nifti(folder, "b.nii.gz", np.uint8)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(inner, "case/b.nii.gz")
    return folder / "a.zip", lambda path: files.read_labels(Place(path, "case/b.nii.gz"))


def mat(folder: Path) -> tuple[Path, Reader]:
    from scipy.io import savemat

    from tenfold.eeg.layouts.files import read_mat

    data = {f"djc_eeg{i}": np.arange(12.0).reshape(3, 4) for i in (1, 2)}
    savemat(folder / "a.mat", data, do_compression=True)
    return folder / "a.mat", lambda path: read_mat(path, r"\w+_eeg(\d+)")


def pickled(folder: Path) -> tuple[Path, Reader]:
    from tenfold.eeg.unpickle import load_pickle

    held = {"data": np.arange(24.0).reshape(2, 3, 4), "labels": [1, 2.5, "text", None]}
    (folder / "a.dat").write_bytes(pickle.dumps(held, 4))
    return folder / "a.dat", load_pickle


def saved_corpus(folder: Path) -> tuple[Path, Reader]:
    from tenfold.eeg.layouts.saved import load_saved

    header = {"schema": "no such", "domains": []}
    np.savez(folder / "c.npz", header=np.frombuffer(json.dumps(header).encode(), np.uint8), x0=np.eye(3))
    return folder / "c.npz", load_saved


def table(folder: Path, ending: str) -> tuple[Path, Reader]:
    from tenfold.llm.data import read_labelled

    path = folder / f"a.{ending}"
    rows = [("a fine film", 1), ('one "quoted", dull', 0)]
    if ending == "jsonl":
        path.write_text("".join(json.dumps({"sentence": s, "label": y}) + "\n" for s, y in rows))
    elif ending == "tsv":
        path.write_text("sentence\tlabel\n" + "".join(f"{s}\t{y}\n" for s, y in rows))
    else:
        path.write_text('sentence,label\na fine film,1\n"one ""quoted"", dull",0\n')
    return path, read_labelled


def csv_table(folder: Path) -> tuple[Path, Reader]:
    return table(folder, "csv")


def tsv_table(folder: Path) -> tuple[Path, Reader]:
    return table(folder, "tsv")


def json_lines(folder: Path) -> tuple[Path, Reader]:
    return table(folder, "jsonl")


def records(folder: Path) -> tuple[Path, Reader]:
    from tenfold.llm.unlearn.rows import question_row, read_records, to_rows

    (folder / "a.json").write_text(json.dumps([{"question": "Who?", "answer": "Nobody."}] * 2))
    return folder / "a.json", lambda path: to_rows(read_records(path), question_row)


def answers(folder: Path) -> tuple[Path, Reader]:
    from tenfold.diffusion.canvas.files import read_answers_json

    canvas = {"name": "c", "styles": ["a", "b"], "objects": ["c", "d"], "photo": "a"}
    answer = {"style": "a", "object": "c", "seed": 1, "style_log": [0.0, -1.0], "object_log": [0.0, -1.0]}
    held = {
        "schema": "tenfold.judged/1",
        "method": "m",
        "target": "a",
        "canvas": canvas,
        "judges": ["x", "y"],
    }
    held |= {"style_classes": ["a", "b"], "object_classes": ["c", "d"], "answers": [answer]}
    (folder / "a.json").write_text(json.dumps(held))
    return folder / "a.json", read_answers_json


def matrix(folder: Path) -> tuple[Path, Reader]:
    from tenfold.diffusion.canvas.files import read_matrix

    names = np.array(["a", "b"])
    np.savez_compressed(folder / "m.npz", shares=np.eye(2), targets=names, concepts=names, methods=names)
    return folder / "m.npz", read_matrix


def channels(folder: Path) -> tuple[Path, Reader]:
    from tenfold.semcom.channel_file import read_channels, write_channels

    write_channels(folder / "c.npz", torch.ones(3, 2, 4, dtype=torch.complex64))
    return folder / "c.npz", lambda path: read_channels(path, 2, 4)


def prompts(folder: Path) -> tuple[Path, Reader]:
    from tenfold.diffusion import prompts as module

    (folder / "p.csv").write_text('case_number,prompt\n0,"a cat, sitting"\n1,a dog\n')
    return folder / "p.csv", module._read


def picture(folder: Path) -> tuple[Path, Reader]:
    from PIL import Image

    from tenfold.diffusion.prompts import read_picture

    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(folder / "p.png")
    return folder / "p.png", read_picture


def zolog(folder: Path) -> tuple[Path, Reader]:
    from tenfold.optim import zolog as module
    from tenfold.optim._log import LoggedStep, encode_header, encode_step
    from tenfold.optim._record import FLAG_GRAD, Scalar
    from tenfold.optim._seeds import splitmix64

    head: dict[str, Any] = {"generator": "tfz-normal v1", "dist": "gaussian", "z_round": None, "seed": 7}
    head |= {"restore": "auto", "rounding": "rne", "first_step": 0, "eps": [1e-3], "manifest": []}
    head |= {"optimizer": {"class": "ZOSGD", "options": {}, "groups": [{}]}, "base_sha256": "0" * 64}
    head |= {"state_sha256": None}
    data = encode_header(head)
    crc = zlib.crc32(data)
    for number in range(3):
        scalars = (Scalar(0, FLAG_GRAD, 0.25),)
        step = LoggedStep(number, splitmix64(7, number), scalars, (1e-6,), (1e-3,))
        more, crc = encode_step(step, (1e-3,), crc)
        data += more
    (folder / "a.zolog").write_bytes(data)
    return folder / "a.zolog", module.info


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(folder: Path) -> tuple[Path, Reader]:
    from tenfold.llm.gguf import GGUFFile

    data = b"GGUF" + struct.pack("<IQQ", 3, 2, 3)
    data += _text("general.alignment") + struct.pack("<II", 4, 32)
    data += _text("names") + struct.pack("<IIQ", 9, 8, 2) + _text("one") + _text("two")
    data += _text("deep") + struct.pack("<IIQIQ", 9, 9, 1, 4, 1) + struct.pack("<I", 5)
    data += _text("a.weight") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0)
    data += _text("b.weight") + struct.pack("<IQIQ", 1, 64, 8, 256)
    data += bytes(-len(data) % 32) + np.arange(64, dtype="<f4").tobytes() + bytes(2 * 34)
    (folder / "a.gguf").write_bytes(data)

    def read(path: Path) -> Any:
        file = GGUFFile(path)
        return [file.read(name) for name in file.tensors]

    return folder / "a.gguf", read


def yaml_config(folder: Path) -> tuple[Path, Reader]:
    from tenfold.cli.parsing import make_parser, parse, with_config
    from tenfold.llm.zo_config import ZOConfig

    (folder / "c.yaml").write_text("version: 20\n")

    def read(path: Path) -> Any:
        return parse(with_config(make_parser("tenfold", ""), ZOConfig), ["--config", str(path)])

    return folder / "c.yaml", read


def run_state(folder: Path) -> tuple[Path, Reader]:
    from tenfold.runs.folder import RunFolder, _save_tensors

    _save_tensors(folder / "state" / "k.safetensors", {"w": torch.ones(3)}, {"state": '{"step": 3}'})
    held = RunFolder.__new__(RunFolder)
    held.path = folder
    return held._state_path("k"), lambda path: held.load_state("k")


def component(folder: Path) -> tuple[Path, Reader]:
    from safetensors.torch import save_file

    from tenfold.diffusion.keys import load_component_state

    save_file({"a.weight": torch.ones(3, 2), "b": torch.zeros(4)}, folder / "m.safetensors")
    return folder / "m.safetensors", load_component_state


def selection(folder: Path, ending: str) -> tuple[Path, Reader]:
    from tenfold.selection import files
    from tenfold.selection.result import Selection

    made = Selection(np.arange(5), weights=np.ones(5, np.float32) if ending in ("npz", "csv") else None)
    files.save(made, folder / f"s.{ending}")
    return folder / f"s.{ending}", files.load


def selection_npz(folder: Path) -> tuple[Path, Reader]:
    return selection(folder, "npz")


def selection_csv(folder: Path) -> tuple[Path, Reader]:
    return selection(folder, "csv")


def selection_npy(folder: Path) -> tuple[Path, Reader]:
    return selection(folder, "npy")


def selection_pt(folder: Path) -> tuple[Path, Reader]:
    return selection(folder, "pt")


def cifar(folder: Path) -> tuple[Path, Reader]:
    from tenfold.selection.reweight.data import load_cifar

    def batch(key: bytes) -> bytes:
        return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), key: [0, 1]}, 2)

    members = {f"data_batch_{i}": batch(b"labels") for i in range(1, 6)} | {"test_batch": batch(b"labels")}
    members["batches.meta"] = pickle.dumps({b"label_names": [b"x"] * 10}, 2)
    with tarfile.open(folder / "c.tar.gz", "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return folder / "c.tar.gz", lambda path: load_cifar(path, 10)


MAKERS: dict[str, Maker] = {
    f.__name__: f
    for f in (
        nifti, nifti_gz, nifti_volume, meta_image, zipped_masks, mat, pickled, saved_corpus, csv_table,
        tsv_table, json_lines, records, answers, matrix, channels, prompts, picture, zolog, gguf, yaml_config,
        run_state, component, selection_npz, selection_csv, selection_npy, selection_pt, cifar,
    )
}  # fmt: skip
MAKERS |= data_makers.MAKERS | weight_makers.MAKERS
