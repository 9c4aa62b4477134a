"""Two processes that train together come to the weights of one with batches twice as large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tenfold.selection.transfer.training import _shuffled

from .two_ranks import COUNT, EPOCHS, train

WORLD = 2


@pytest.mark.slow
def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    whole = train(tmp_path / "one", COUNT, lines := [])
    assert len(lines) == EPOCHS
    out = tmp_path / "two"
    out.mkdir()
    worker = Path(__file__).with_name("two_ranks.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(WORLD), str(tmp_path / "store"), str(out)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        for process in running:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    ranks = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        torch.testing.assert_close(ranks[0]["weights"][name], value)
        assert torch.equal(load_file(out / "network.safetensors")[name], ranks[0]["weights"][name])
    assert [r["steps"] for r in ranks] == [whole.steps] * 2
    assert [r["lines"] for r in ranks] == [EPOCHS, 0]  # the first alone speaks and writes
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["last"] == whole.last
    assert metrics["images"] == COUNT


@pytest.mark.parametrize("count", [10, 11, 1])
def test_ranks_share_an_epoch(count: int) -> None:
    parts = [_shuffled(count, 3, 1, rank, WORLD) for rank in range(WORLD)]
    assert len(parts[0]) == len(parts[1]) == -(-count // WORLD)
    assert set(torch.cat(parts).tolist()) == set(range(count))
    assert torch.equal(torch.stack(parts, 1).flatten()[:count], _shuffled(count, 3, 1, 0, 1))
