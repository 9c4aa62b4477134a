"""More of file_makers.py: tables, JSON, pictures, archives and data sets in published layouts."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Made = tuple[Path, Callable[[Path], Any]]


def npy_array(folder: Path) -> Made:
    from tenfold._npy import read_npy

    np.save(folder / "a.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    return folder / "a.npy", read_npy


def npy_mapped(folder: Path) -> Made:
    from tenfold.selection.inputs import mapped

    np.save(folder / "a.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    return folder / "a.npy", mapped


def npz_arrays(folder: Path) -> Made:
    from tenfold._npy import read_npz

    np.savez(folder / "a.npz", a=np.eye(3), b=np.array(["x", "yz"]))
    return folder / "a.npz", read_npz


def selection_parquet(folder: Path) -> Made:
    from tenfold.selection import Selection, files

    files.save(Selection(np.arange(5), np.ones(5, np.float32)), folder / "s.parquet")
    return folder / "s.parquet", files.load


def selection_txt(folder: Path) -> Made:
    from tenfold.selection import files

    (folder / "s.txt").write_text("3\n1\n4\n")
    return folder / "s.txt", files.load


def class_labels(folder: Path) -> Made:
    from tenfold.selection import files

    files.write_labels([0, 1, 1], folder / "a.label")
    return folder / "a.label", files.read_labels


def dropped_rows(folder: Path) -> Made:
    from tenfold.selection import files

    (folder / "d.pkl").write_bytes(pickle.dumps([1, 3]))
    return folder / "d.pkl", lambda path: files.read_dropped(path, 5)


def scores_csv(folder: Path) -> Made:
    from tenfold.selection import files

    (folder / "s.csv").write_text("id,name,score\n0,a,1.5\n1,b,-2\n")
    return folder / "s.csv", files.read_scores


def scores_npz(folder: Path) -> Made:
    from tenfold.selection import files

    np.savez(folder / "s.npz", scores=np.arange(4.0))
    return folder / "s.npz", files.read_scores


def votes(folder: Path) -> Made:
    from tenfold.selection.transfer import index_files

    index_files.write_frequency(folder / "a.frequency", torch.tensor([3, 1]))
    return folder / "a.frequency", index_files.read_frequency


def class_features(folder: Path) -> Made:
    from tenfold.selection.transfer import index_files

    made = index_files.ClassFeatures(torch.ones(3, 2), torch.tensor([0, 1, 1]), torch.arange(3))
    index_files.write_class_features(folder / "a", made, 2)
    return folder / "a_class_fx", lambda path: index_files.read_class_features(
        path, folder / "a_class_data_id"
    )


def beton(folder: Path) -> Made:
    """Written without its pages being padded to 2 MiB."""
    from tenfold.selection.transfer import beton as module

    fields = np.zeros(3, module.FIELD)
    fields["kind"], fields["name"] = [2, 1, 0], [b"image", b"label", b"weight"]
    samples = np.zeros(
        2, np.dtype([("image", module.IMAGE), ("label", "<i8"), ("weight", "<f8")], align=True)
    )
    jpeg = io.BytesIO()
    from PIL import Image

    Image.fromarray(np.full((3, 4, 3), 90, np.uint8)).save(jpeg, "JPEG")
    start = module.HEADER.itemsize + fields.nbytes + samples.nbytes
    samples["image"] = [(module.RAW, 4, 3, start), (module.JPEG, 4, 3, start + 36)]
    stored = bytes(36) + jpeg.getvalue()
    table = np.array([(0, start, 36), (1, start + 36, len(stored) - 36)], module.ALLOCATION)
    header = np.array([(2, 3, 2 << 20, 2, start + len(stored))], module.HEADER)
    data = header.tobytes() + fields.tobytes() + samples.tobytes() + stored + table.tobytes()
    (folder / "a.beton").write_bytes(data)

    def read(path: Path) -> Any:
        images = module.read_beton(path)
        return [images.read(i) for i in range(len(images.labels))]

    return folder / "a.beton", read


def idx(folder: Path) -> Made:
    from tenfold.selection.transfer.tasks import read_idx

    (folder / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\x02" + struct.pack(">2I", 2, 3) + bytes(6)))
    return folder / "a.gz", read_idx


def class_folder(folder: Path) -> Made:
    from PIL import Image

    from tenfold.selection.transfer.folders import read_folder

    (folder / "set" / "a").mkdir(parents=True)
    path = folder / "set" / "a" / "p.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path, lambda _: read_folder(folder / "set").read(0)


def set_labels(folder: Path) -> Made:
    from tenfold.cli.select import _labels

    (folder / "l.txt").write_text("a\nb\na\n")
    return folder / "l.txt", lambda path: _labels(str(path))


def _scores(folder: Path, text: str) -> Made:
    from tenfold.segmentation.scores import read_scores

    (folder / "a.csv").write_text(text)
    return folder / "a.csv", read_scores


def scores_long(folder: Path) -> Made:
    return _scores(folder, "team,case,organ,metric,value\na,1,x,dsc,0.5\na,1,x,nsd,0.25\n")


def scores_wide(folder: Path) -> Made:
    return _scores(folder, "Name,Brain_DSC,Brain_NSD\n1,0.5,0.25\n")


def cohorts(folder: Path) -> Made:
    from tenfold.segmentation.segrap import read_cohorts

    (folder / "c.csv").write_text("case,cohort\n1,a\n")
    return folder / "c.csv", lambda path: read_cohorts(str(path))


def ranked_cohorts(folder: Path) -> Made:
    from tenfold.segmentation.rank_task import _cohorts

    (folder / "c.csv").write_text("case,cohort\n1,a\n")
    return folder / "c.csv", _cohorts


def structures_json(folder: Path) -> Made:
    from tenfold.segmentation.labels import load_task

    (folder / "t.json").write_text('{"background": 0, "heart": 1, "lungs": [2, 3]}')
    return folder / "t.json", lambda path: load_task(str(path))


def structures_csv(folder: Path) -> Made:
    from tenfold.segmentation.labels import load_task

    (folder / "t.csv").write_text("id,label,hemisphere\n1,heart,\n2,lung,L\n3,lung,R\n")
    return folder / "t.csv", lambda path: load_task(str(path))


def way(folder: Path) -> Made:
    from tenfold.segmentation.preprocess import load_way

    raw = {"shape": [2, 3, 4], "spacing": [1.0, 1, 1], "affine": np.eye(4).tolist()}
    (folder / "w.json").write_text(
        json.dumps({"raw": raw, "resampled_shape": [2, 3, 4], "box": [[0, 1]] * 3})
    )
    return folder / "w.json", load_way


def submissions(folder: Path) -> Made:
    from tenfold.segmentation.labels import Task
    from tenfold.segmentation.layouts import find_submissions

    with zipfile.ZipFile(folder / "team.zip", "w") as archive:
        archive.writestr("1/organ.nii.gz", b"")
    return folder / "team.zip", lambda path: find_submissions(path, Task("t", "t", {"organ": (1,)}))


def ct_archive(folder: Path) -> Made:
    from tenfold.segmentation import ct_pair

    members = {f"x/tests/reference_files/{name}.nii.gz": b"volume" for name in ct_pair.MEMBERS}
    members["x/totalsegmentator/map_to_binary.py"] = b'class_map = {"total": {1: "spleen"}}\n'
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

    def read(path: Path) -> Any:
        return ct_pair.extract(path, folder), ct_pair.label_names(path)

    return folder / "a.tar.gz", read


def results(folder: Path) -> Made:
    from tenfold.diffusion.canvas.files import read_results

    score: dict[str, Any] = {"method": "m", "target": "a", "domain": "style", "ua": {"successes": 1, "n": 2}}
    score |= {"ira": 0.5, "cra": 0.5, "ira_interval": [0, 1], "cra_interval": [0, 1], "chance": 0.5}
    score |= {"style": {"a": 0.5}, "object": {"c": 0.5}, "fid": None, "costs": None}
    (folder / "r.jsonl").write_text(json.dumps(score) + "\n")
    return folder / "r.jsonl", read_results


def published_result(folder: Path) -> Made:
    from tenfold.diffusion.canvas.files import read_published_result
    from tenfold.diffusion.canvas.vocabulary import Canvas

    canvas = Canvas(name="c", styles=("a", "b"), objects=("c", "d"), photo="a")
    each = {"a": 0.5, "b": 0.5}
    held = {"loss": each, "acc": each, "pred_loss": each}
    held["misclassified"] = {"a": {"a": 1, "b": 1}, "b": {"a": 1, "b": 1}}  # type: ignore[dict-item]
    torch.save(held, folder / "A.pth")
    return folder / "A.pth", lambda path: read_published_result(path, canvas, "style")


def manifest(folder: Path) -> Made:
    from tenfold.diffusion.canvas import manifest as module

    canvas = {"name": "c", "styles": ["a", "b"], "objects": ["c", "d"], "photo": "a"}
    held = {"schema": module.SCHEMA, "complete": True, "method": "m", "target": "a", "canvas": canvas}
    held |= {"settings": {"settings_sha256": "0"}, "seconds": 1.0, "peak_bytes": 1, "keys": [["a", "c", 188]]}
    held |= {"sha1": {"a.png": "0"}}
    (folder / module.MANIFEST).write_text(json.dumps(held))
    return folder / module.MANIFEST, lambda path: module.read_manifest(path.parent)


def attack_log(folder: Path) -> Made:
    from tenfold.diffusion.attack.logs import read_published

    inside = folder / "logs" / "attack_idx_3"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text('{"tenfold": {"case": {"seed": 1, "guidance": 7.5}}}')
    (inside / "log.json").write_text(
        '[{"success": false, "prompt": "a"}, {"success": true, "relative_time": "0:00:02.5"}]'
    )
    return inside / "log.json", lambda path: read_published(path.parents[1])


def attack_config(folder: Path) -> Made:
    path, read = attack_log(folder)
    return path.with_name("config.json"), read


def ignored_cases(folder: Path) -> Made:
    from tenfold.diffusion.prompts import _ignored

    (folder / "ignore.json").write_text("[0, 2]")
    return folder / "ignore.json", lambda path: _ignored(path, 3)


def drawn_picture(folder: Path) -> Made:
    from PIL import Image

    from tenfold.diffusion.attack.logs import from_png

    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(folder / "p.png")
    return folder / "p.png", from_png


def sent_picture(folder: Path) -> Made:
    from PIL import Image

    from tenfold.semcom.images import _read

    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(folder / "p.png")
    return folder / "p.png", _read


def deap(folder: Path) -> Made:
    from tenfold.eeg.layouts.deap import load_deap

    data = np.random.default_rng(0).standard_normal((1, 32, 512)).astype(np.float32)
    held = {"data": data, "labels": np.full((1, 4), 5.0)}
    (folder / "s01.dat").write_bytes(pickle.dumps(held, 2))
    return folder / "s01.dat", lambda path: load_deap(path.parent)


def faced(folder: Path) -> Made:
    from tenfold.eeg.layouts.faced import load_faced

    (folder / "sub000.pkl.pkl").write_bytes(pickle.dumps(np.ones((28, 32, 1, 5), np.float32), 2))
    return folder / "sub000.pkl.pkl", lambda path: load_faced(path.parent)


def seed_v(folder: Path) -> Made:
    from tenfold.eeg.layouts.seed_v import load_seed_v
    from tenfold.eeg.simulate import SEED_V_LABELS

    data = {k: np.ones((1, 310), np.float32) for k in range(45)}
    label = {k: np.full(1, float(SEED_V_LABELS[k // 15][k % 15])) for k in range(45)}
    arrays = {"data": np.array(pickle.dumps(data)), "label": np.array(pickle.dumps(label))}
    np.savez_compressed(folder / "1_123.npz", **arrays)  # type: ignore[arg-type]
    return folder / "1_123.npz", lambda path: load_seed_v(path.parent)


def seed(folder: Path) -> Made:
    from scipy.io import savemat

    from tenfold.eeg.layouts.seed import load_seed

    for date in (1, 2, 3):
        arrays = {f"de_LDS{k}": np.ones((62, 1, 5), np.float32) for k in range(1, 16)}
        savemat(folder / f"1_2013100{date}.mat", arrays, do_compression=True)
    return folder / "1_20131002.mat", lambda path: load_seed(path.parent)


COMPLEXITY = "Channel,SFD,AttEn,SVDEn,Hjorth,Participant,Condition,Dataset\n" + "".join(
    f"Cz,1,2,3,4,{person},{condition},{site}\n"
    for person, site in (("a", "Lemon"), ("b", "Wang (2022)"))
    for condition in ("Eyes-Closed", "Eyes-Open")
)


def complexity_csv(folder: Path) -> Made:
    from tenfold.eeg.layouts.complexity import load_complexity

    (folder / "data_complexity.csv").write_text(COMPLEXITY)
    return folder / "data_complexity.csv", load_complexity


def complexity_archive(folder: Path) -> Made:
    from tenfold.eeg.layouts.complexity import load_complexity

    with tarfile.open(folder / "n.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("n/studies/complexity_eeg/data_complexity.csv")
        info.size = len(COMPLEXITY)
        archive.addfile(info, io.BytesIO(COMPLEXITY.encode()))
    return folder / "n.tar.gz", load_complexity


def _task_file(folder: Path, name: str, text: str) -> Made:
    from tenfold.llm.tasks.files import read_file

    (folder / name).write_text(text)
    return folder / name, lambda path: list(read_file(path))


def task_lines(folder: Path) -> Made:
    return _task_file(folder, "t.jsonl", '{"sentence": "a", "label": 1}\n{"sentence": "b", "label": 0}\n')


def task_squad(folder: Path) -> Made:
    question = {"question": "Who?", "answers": [{"text": "Nobody"}]}
    document = {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": [question]}]}]}
    return _task_file(folder, "squad.json", json.dumps(document))


def task_drop(folder: Path) -> Made:
    answer = {"number": "", "date": {"day": "1", "month": "", "year": ""}, "spans": ["a"]}
    pair = {"question": "When?", "answer": answer, "validated_answers": [{"number": "3"}]}
    return _task_file(folder, "drop.json", json.dumps({"p": {"passage": "text", "qa_pairs": [pair]}}))


def task_parquet(folder: Path) -> Made:
    import pyarrow
    from pyarrow import parquet

    from tenfold.llm.tasks.files import read_file

    table = pyarrow.table({"sentence": ["a", "b"], "label": [1, 0]})
    parquet.write_table(table, folder / "t.parquet")
    return folder / "t.parquet", lambda path: list(read_file(path))


def packed_records(folder: Path) -> Made:
    from tenfold.llm.unlearn.rows import question_row, read_records, to_rows

    row = json.dumps({"question": "Who?", "answer": "Nobody."})
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(f"{row}\n{row}\n".encode()))
    return folder / "a.jsonl.gz", lambda path: to_rows(read_records(path), question_row)


def evaluation_log(folder: Path) -> Made:
    from tenfold.llm.unlearn.evaluate import logs

    values = {"0": {"score": 0.5}, "1": {"score": 0.25}}
    held = {"forget_truth_ratio": {"agg_value": 0.5, "value_by_index": values}}
    held |= {"privleak": {"agg_value": 1.0}, "mia_min_k": {"agg_value": {"auc": 0.5}}}
    (folder / logs.EVAL).write_text(json.dumps(held))
    return folder / logs.EVAL, lambda path: logs.reference_ratios(logs.read_log(path))


def soul_settings(folder: Path) -> Made:
    from tenfold.llm.unlearn.soul_config import SoulConfig, _read_soul

    unlearn = {
        "unlearn_method": "GA",
        "lr": 1e-4,
        "num_epochs": 2,
        "sophia": True,
        "sophia_params": {"rho": 0.1},
    }
    held = {"overall": {"model_name": "m", "seed": 3}, "unlearn": unlearn, "dataset": {"batch_size": 2}}
    (folder / "soul.json").write_text(json.dumps(held))
    return folder / "soul.json", lambda path: _read_soul(SoulConfig(soul_config=str(path)))


def mini_tofu(folder: Path) -> Made:
    from tenfold.llm.unlearn.mini import _embedded, load_mini_tofu

    (folder / "mini.json").write_text(json.dumps(_embedded()))
    return folder / "mini.json", load_mini_tofu


def report(folder: Path) -> Made:
    from tenfold.runs.report import Headline, Report, render, to_json

    (folder / "report.json").write_text(json.dumps(to_json(Report("t", "l", [Headline("a", "1")], []))))
    held: dict[str, Any] = {"schema": "tenfold.metrics/1", "name": "zo", "config": {}, "metrics": {"a": 1.0}}
    environment = {"versions": {"tenfold": "0"}, "time": "2026-01-01", "cpu": {"model": "m"}}
    held |= {"environment": environment, "seconds": 1.0, "peak_rss_mib": 1.0}
    (folder / "metrics.json").write_text(json.dumps(held))
    return folder / "report.json", lambda path: render(path.parent)


def run_metrics(folder: Path) -> Made:
    path, read = report(folder)
    return path.with_name("metrics.json"), read


def run_settings(folder: Path) -> Made:
    from tenfold.runs.folder import _check_same_run

    (folder / "config.yaml").write_text("lr: 0.5\nseed: 3\n")
    return folder / "config.yaml", lambda path: _check_same_run(path.parent, "zo", {"lr": 0.5}, {"seed"})


def run_mark(folder: Path) -> Made:
    path, read = run_settings(folder)
    (folder / "state").mkdir()
    (folder / "state" / "run.json").write_text('{"name": "zo"}')
    return folder / "state" / "run.json", lambda _: read(path)


MAKERS = {
    name: made
    for name, made in dict(globals()).items()
    if callable(made) and getattr(made, "__module__", None) == __name__ and not name.startswith("_")
}
