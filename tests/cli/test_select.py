"""`tenfold select`: methods, files in and out, and errors in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold.cli import main
from tenfold.selection import METHODS, Recorder, Selection, select

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


@pytest.fixture
def files(tmp_path):
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(40, 4)).astype(np.float32), np.arange(40) % 3
    logits = draw.normal(size=(40, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "a.npy", X[:15])
    np.save(tmp_path / "b.npy", X[15:])
    np.save(tmp_path / "y.npy", y)
    torch.save(torch.from_numpy(logits), tmp_path / "z.pt")
    np.save(tmp_path / "s.npy", logits[:, 0])
    recorder = Recorder(40)
    recorder.update(np.arange(40), logits, y)
    recorder.save(tmp_path / "run.npz")
    return tmp_path, X, y, logits, recorder


def test_row_numbers_are_printed(files, capsys):
    folder, X, *_ = files
    assert main(["select", "kcenter", f"{folder}/x.npy", "--k", "6"]) == 0
    printed = [int(line) for line in capsys.readouterr().out.split()]
    assert printed == select("kcenter", X, k=6).indices.tolist()
    assert main(["select", "kcenter", f"{folder}/a.npy", f"{folder}/b.npy", "--k", "6"]) == 0
    assert [int(line) for line in capsys.readouterr().out.split()] == printed


def test_settings_and_files(files, capsys):
    folder, X, y, logits, recorder = files
    out = folder / "kept.npz"
    command = ["select", "kcenter", f"{folder}/x.npy", "--init", "3", "--labels", f"{folder}/y.npy"]
    assert main([*command, "--metric", "cosine", "--weighted", "--ratio", "0.25", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"10 of 40 rows by kcenter: {out}\n"
    chosen = Selection.load(out)
    own = select("kcenter", X, k=10, init=3, metric="cosine", weighted=True)
    assert chosen.indices.tolist() == own.indices.tolist()
    assert chosen.weights.tolist() == own.weights.tolist()
    assert chosen.info["settings"]["metric"] == "cosine"
    torch_file = folder / "kept.pt"
    common = [
        "--labels",
        f"{folder}/y.npy",
        "--logits",
        f"{folder}/z.pt",
        "--k",
        "9",
        "--out",
        str(torch_file),
    ]
    assert main(["select", "el2n", *common, "--balanced"]) == 0
    expected = select("el2n", None, logits, y, k=9, balanced=True)
    assert torch.load(torch_file).tolist() == expected.indices.tolist()
    held = f"{folder}/x.npy,{folder}/z.pt,{folder}/y.npy"
    assert (
        main(["select", "gradmatch", f"{folder}/x.npy", *common, "--validation", held, "--lam", "0.5"]) == 0
    )
    matched = select("gradmatch", X, logits, y, k=9, validation=(X, logits, y), lam=0.5)
    assert torch.load(torch_file).tolist() == matched.indices.tolist()
    assert (
        main(["select", "aum", "--dynamics", f"{folder}/run.npz", "--k", "4", "--out", str(torch_file)]) == 0
    )
    assert torch.load(torch_file).tolist() == select("aum", dynamics=recorder, k=4).indices.tolist()
    assert main(["select", "ccs", "--scores", f"{folder}/s.npy", "--k", "4", "--out", str(torch_file)]) == 0
    assert torch.load(torch_file).tolist() == select("ccs", scores=logits[:, 0], k=4).indices.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_explains_itself(method, capsys):
    assert main(["select", method, "--help"]) == 0
    text = capsys.readouterr().out
    for name in METHODS[method]().get_params():
        shown = name not in ("budget", "sharded", "costs", "sample_weight")
        assert (f"--{name}" in text) is shown, name


def test_the_list_of_methods(capsys):
    assert main(["select", "--help"]) == 0
    text = capsys.readouterr().out
    for method in METHODS:
        assert f"\n  {method} " in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kcentre", "x.npy", "--k", "3"], "got 'kcentre' (did you mean 'kcenter'?)"),
        (["kcenter", "x.npy"], "--k: expected either it or --ratio, got none"),
        (["kcenter", "x.npy", "--k", "3", "--ratio", "0.5"], "--k: expected either it or --ratio, got both"),
        (["kcenter", "--k", "3"], "X: expected some data (KCenterGreedy reads them), got None"),
        (["kcenter", "x.npy", "--k", "41"], "budget: expected at least 0 and at most the 40 rows, got 41"),
        (["kcenter", "x.npy", "--k", "3", "--out", "kept.xls"], "path: expected a name that ends in"),
        (["kcenter", "missing.npy", "--k", "3"], "missing.npy"),
        (["kcenter", "x.npy", "--k", "three"], "--k: expected int, got 'three'"),
        (["gradmatch", "x.npy", "--k", "3", "--validation", "x.npy"], "--validation: expected three files"),
    ],
)
def test_errors_are_one_line(files, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(files[0])
    assert main(["select", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tenfold select: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (files[0] / "kept.xls").exists()
