"""Processes that each have a part of the rows find what one process with all rows finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from sharded_worker import SELECTORS, N, chosen, functions, history, splits

from tenfold.selection import Recorder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")]
WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("sharded_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = []
    for rank in range(WORLD):
        arguments = [str(rank), str(WORLD), str(folder / "store"), str(folder / f"{rank}.pt")]
        command = [sys.executable, str(worker), *arguments]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("split", ["two", "uneven", "empty"])
@pytest.mark.parametrize("name", SELECTORS)
def test_selectors(found, name, split):
    whole = chosen(name, np.arange(N), False)
    for rank in range(WORLD):
        own = found[rank][split, name]
        assert own.keys() == whole.keys()
        for part in ("indices", "gains", "weights"):
            if part in whole:
                assert own[part].tolist() == whole[part].tolist(), part
        rows = splits(WORLD)[split][rank]
        np.testing.assert_array_equal(own["scores"], whole["scores"][rows])


@pytest.mark.parametrize("split", ["two", "uneven", "empty"])
def test_functions(found, split):
    whole = functions(np.arange(N), None)
    for rank in range(WORLD):
        own = found[rank][split, "functions"]
        assert own.keys() == whole.keys()
        rows = splits(WORLD)[split][rank]
        for name, value in whole.items():
            expected = value[rows] if name.endswith("labels") else value
            np.testing.assert_array_equal(own[name], expected, err_msg=name)
    assert whole["kmeans empty facts"][2] == 2  # both empty clusters were moved


def test_recorders_agree_after_each_epoch(found):
    z, y, orders = history(WORLD)
    alone = Recorder(len(y))
    for logits, rows in zip(z, orders, strict=True):
        unique = torch.cat(rows).unique()
        alone.update(unique, logits[unique], y[unique])
    for rank in range(WORLD):
        for name, value in alone.state_dict().items():
            if name != "touched":
                assert torch.equal(torch.as_tensor(found[rank]["recorder"][f"run {name}"]), value), name


@pytest.mark.parametrize("split", ["two", "uneven", "empty"])
def test_all_processes_refuse_alike(found, split):
    for rank in range(WORLD):
        messages = found[rank][split, "refused"]
        assert "x: expected finite values, got others in row 70" in messages["nan"]
        assert messages["budget"] == f"budget: expected at least 0 and at most the {N} rows, got {N + 1}"
        assert (
            messages["method"] == "sharded: expected False (herding needs all rows in one process), got True"
        )
        assert messages["clusters"] == "num_clusters: expected a number (with sharded), got None"
