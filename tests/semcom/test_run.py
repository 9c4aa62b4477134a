"""The whole run on small pictures: its folder, its page, going on after an interruption, wrong settings."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.semcom import run
from tenfold.semcom.channel_file import write_channels
from tenfold.semcom.config import METHODS, CtsemcomConfig
from tenfold.semcom.evaluate import Cell, cells
from tenfold.semcom.run import load_codec, transfer


@pytest.fixture
def config(pictures: Path) -> CtsemcomConfig:
    return CtsemcomConfig(
        dataset="folder", data=str(pictures), width=9, symbols=2, steps=4, e2e_steps=4, batch=4, pairs=4,
        snr_db=[0.0, 10.0], variances=[0.5, 1.0], variance_snr_db=[10.0], csi_errors_db=[-10.0],
        csi_bits_tried=[], workers=1,
        methods=["awgn", "none", "rx-lmmse", "ssdt-sep", "ssdt-joint", "e2e", "digital"],
    )  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_run_leaves(config: CtsemcomConfig, tmp_path: Path) -> None:
    result = transfer(config, tmp_path / "a")
    out = result.path
    document = json.loads((out / "metrics.json").read_text())
    table = rows(out / "tables" / "results.csv")
    assert len(table) == 3 * 7 + 4  # three channels, and one with a wrong estimate for those who use it
    for method in config.methods:
        mine = [
            r
            for r in table
            if (r["method"], r["snr_db"], r["var"], r["csi_err_db"]) == (method, "10.0", "1.0", "")
        ]
        assert len(mine) == 1
        key = f"{method}.snr10.var1"
        assert document["metrics"][f"{key}.psnr_db"] == pytest.approx(float(mine[0]["psnr_db"]), abs=1e-4)
        assert document["metrics"][f"{key}.psnr_db_low"] <= document["metrics"][f"{key}.psnr_db_high"]
    gained = document["metrics"]["gain.ssdt-sep.over.none.snr10.var1"]
    both = [document["metrics"][f"{m}.snr10.var1.psnr_db"] for m in ("ssdt-sep", "none")]
    assert gained == pytest.approx(both[0] - both[1], abs=1e-9)
    assert {p.stem for p in (out / "figures").glob("*.png")} == {
        "csi", "gains", "nmse", "pictures-user1", "pictures-user2", "psnr-snr", "psnr-variance", "training",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    for said in (
        "4.2 to 7.3 dB",
        "arXiv 2312.03299",
        "Joint is a bound",
        "abstract was at hand",
        "upper estimate",
    ):
        assert said in page
    assert {p.stem for p in (out / "checkpoints").iterdir()} == {"codec", "e2e"}
    again = transfer(replace(config, checkpoint=str(out)), tmp_path / "b").metrics
    assert again == result.metrics
    with pytest.raises(ValueError, match="expected a codec"):
        load_codec(out, "codec", replace(config, symbols=4))


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    config: CtsemcomConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, methods=["awgn", "ssdt-sep"], csi_errors_db=[])
    whole = transfer(config, tmp_path / "whole").metrics
    made: list[str] = []
    real = run._one_cell

    def counted(settings: CtsemcomConfig, folder: Path, cell: Cell) -> Any:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(cell.key)
        return real(settings, folder, cell)

    monkeypatch.setattr(run, "_one_cell", counted)
    with pytest.raises(KeyboardInterrupt):
        transfer(config, tmp_path / "part")
    monkeypatch.setattr(run, "_one_cell", lambda c, f, cell: (made.append(cell.key), real(c, f, cell))[1])
    monkeypatch.setattr(run, "_train", lambda *_: pytest.fail("trained again"))
    assert transfer(config, tmp_path / "part", resume=True).metrics == whole
    assert len(made) == len(set(made)) == len(cells(config)) == 3


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_numbers(pictures: Path, tmp_path: Path) -> None:
    """kill -9 in the midst of a training, then --resume; and a wrong flag is one line."""
    command = [
        sys.executable, "-m", "tenfold", "run", "ctsemcom", "--dataset", "folder", "--data", str(pictures),
        "--width", "9", "--symbols", "2", "--steps", "400", "--batch", "4", "--pairs", "4",
        "--snr_db", "[10.0]", "--variances", "[1.0]", "--variance_snr_db", "[10.0]",
        "--methods", '["awgn","ssdt-sep"]',
    ]  # fmt: skip

    def metrics(name: str) -> Any:
        return json.loads((tmp_path / name / "metrics.json").read_text())["metrics"]

    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "part")], start_new_session=True, stderr=subprocess.DEVNULL
    ) as running:
        while not list((tmp_path / "part" / "state").glob("train-*.safetensors")):
            assert running.poll() is None
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
    assert not (tmp_path / "part" / "metrics.json").exists()
    subprocess.run([*command, "--out", str(tmp_path / "part"), "--resume"], check=True, capture_output=True)
    assert metrics("part") == metrics("whole")
    wrong = subprocess.run([*command, "--users", "[3]"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "users: expected multiples of 2" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_every_method_and_the_other_channels_run(config: CtsemcomConfig, tmp_path: Path) -> None:
    methods = [m for m in METHODS if m != "digital-ldpc"]  # has tests of its own
    config = replace(
        config, methods=methods, fading="rician", block=True, csi_bits=4, csi_err_db=-20.0,
        power_mode="sum", alpha_scope="codeword", snr_db=[10.0], variances=[1.0], csi_errors_db=[], steps=2,
    )  # fmt: skip
    metrics = transfer(config, tmp_path / "all").metrics
    values = [metrics[f"{m}.snr10.var1.psnr_db"] for m in methods]
    assert np.isfinite(values).all()
    assert metrics["ssdt-joint.snr10.var1.nmse_db"] < metrics["none.snr10.var1.nmse_db"]


def test_channels_are_kept_and_used_again(config: CtsemcomConfig, tmp_path: Path) -> None:
    config = replace(config, methods=["rx-lmmse", "ssdt-sep"], csi_errors_db=[], users=[4], block=True)
    first = transfer(config, tmp_path / "first")
    with np.load(first.path / "channels.npz") as file:
        assert (file["g"].dtype, file["g"].shape) == (np.complex64, (4 * 2 * 2, 2, 64))
        gains = torch.from_numpy(file["g"])
    assert torch.equal(gains[0], gains[1])  # two OFDM symbols of one codeword that fade alike
    assert not torch.equal(gains[1], gains[2])
    path = str(first.path / "channels.npz")
    again = transfer(replace(config, channels=path, block=False), tmp_path / "again")
    assert again.metrics == pytest.approx(first.metrics, rel=1e-6, abs=1e-5)
    write_channels(tmp_path / "twice.npz", 2 * gains)
    twice = transfer(replace(config, channels=str(tmp_path / "twice.npz")), tmp_path / "twice")
    assert twice.metrics["ssdt-sep.snr10.var1.nmse_db"] < first.metrics["ssdt-sep.snr10.var1.nmse_db"] - 1
    assert (twice.path / "channels.npz").stat().st_size == (first.path / "channels.npz").stat().st_size
    write_channels(tmp_path / "few.npz", gains[:3])
    np.savez(tmp_path / "wide.npz", g=gains.numpy().astype(np.complex128))
    np.savez(tmp_path / "objects.npz", g=np.array([{}, {}]))
    for name, message in (
        ("few", "channels: expected at least 16 rows, one per OFDM symbol, got 3"),
        ("wide", r"channels: expected g in wide.npz, finite complex64 \[R, 2, 64\], got complex128"),
        ("objects", r"channels: expected g in objects.npz, .*, got ValueError"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(config, channels=str(tmp_path / f"{name}.npz"))
    with pytest.raises(FileNotFoundError, match="channels: expected a file"):
        replace(config, channels=str(tmp_path / "none.npz"))


def test_more_users_are_sent_in_groups(config: CtsemcomConfig, tmp_path: Path) -> None:
    config = replace(config, methods=["awgn", "ssdt-sep"], csi_errors_db=[], csi_bits_tried=[4], users=[2, 4])
    out = transfer(config, tmp_path / "users")
    every = rows(out.path / "tables" / "results.csv")
    at_ten = [r for r in every if (r["snr_db"], r["var"]) == ("10.0", "1.0")]
    table = {(r["method"], r["N"]): r for r in at_ten}
    assert {key: table[key]["n_images"] for key in table if key[0] == "ssdt-sep"} == {
        ("ssdt-sep", "2"): "8",
        ("ssdt-sep", "4"): "8",
    }
    where = [f"ssdt-sep.snr10.var1{more}.psnr_db" for more in ("", ".users2", ".users4", ".bits4")]
    found = [out.metrics[name] for name in where]
    assert len(set(found)) == 4  # each with fading of its own, and with a coarse channel
    assert out.metrics["awgn.snr10.var1.users4.psnr_db"] == pytest.approx(
        out.metrics["awgn.snr10.var1.psnr_db"], abs=0.5
    )
    assert (out.path / "tables" / "users.csv").exists()


def test_a_codec_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    config = CtsemcomConfig(
        width=9, symbols=2, steps=2, batch=2, pairs=2, snr_db=[10.0], variances=[1.0], variance_snr_db=[10.0],
        csi_errors_db=[], csi_bits_tried=[], workers=1, methods=["none", "ssdt-sep"],
        cache=str(tmp_path / "cache"),
    )  # fmt: skip
    whole = transfer(config, tmp_path / "a").metrics
    train = run._train
    monkeypatch.setattr(run, "_train", lambda *_: pytest.fail("trained again"))
    assert transfer(config, tmp_path / "b").metrics == whole
    monkeypatch.setattr(run, "_train", train)
    for change in ({"steps": 3}, {"seed": 1}, {"lr": 1e-3}, {"train_fading": "rayleigh"}):
        assert run.kept_at(replace(config, **change), "codec") != run.kept_at(config, "codec")
    assert run.kept_at(replace(config, fading="rician"), "codec") == run.kept_at(config, "codec")
    assert run.kept_at(replace(config, fading="rician"), "e2e") != run.kept_at(config, "e2e")
    assert len(list((tmp_path / "cache" / "semcom").iterdir())) == 1


def test_one_user_and_three(config: CtsemcomConfig, tmp_path: Path) -> None:
    for power in ([1.0], [0.5, 0.3, 0.2]):
        small = replace(
            config, power_w=power, methods=["awgn", "ssdt-sep", "ssdt-joint"], snr_db=[10.0], variances=[1.0],
            csi_errors_db=[], steps=2,
        )  # fmt: skip
        out = transfer(small, tmp_path / str(len(power)))
        assert out.metrics["users"] == len(power)
        assert (out.path / "figures" / f"pictures-user{len(power)}.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["ssdt"]}, "methods: expected one of"),
        ({"methods": []}, "methods: expected different names"),
        ({"power_w": [0.6, 0.0]}, "power_w: expected"),
        ({"variances": [0.0]}, "variances: expected"),
        ({"snr_db": [-400.0]}, "snr_db: expected a finite number >= -300 < 300"),
        ({"train_snr_db": [0.0, 400.0]}, "train_snr_db: expected"),
        ({"csi_errors_db": [4000.0]}, "csi_errors_db: expected"),
        ({"k_factor_db": 4000.0}, "k_factor_db: expected"),
        ({"seed": 2**32}, "seed: expected an integer"),
        ({"csi_bits": 3}, "csi_bits: expected an even number"),
        ({"csi_bits_tried": [3]}, "csi_bits_tried: expected even numbers"),
        ({"users": [3]}, "users: expected multiples of 2, one power each, got 3"),
        ({"users": [4, 4]}, "users: expected different numbers"),
        ({"channels": "x", "fading": "awgn"}, "channels: expected none"),
        ({"train_snr_db": [20.0, 0.0]}, "snr_db: expected the lower end first"),
        ({"dataset": "cifar10"}, "data: expected the folder of cifar10"),
        ({"data": "x"}, "data: expected nothing"),
        ({"checkpoint": "/nowhere"}, "checkpoint: expected the folder"),
        ({"device": "tpu"}, "device: expected cpu or cuda"),
        ({"methods": ["oma"], "symbols": 3}, "maps: expected a multiple of 2 users"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CtsemcomConfig(**change)
