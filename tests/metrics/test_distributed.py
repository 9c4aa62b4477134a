"""Metrics over two processes that each see some cases: both compute what one with all of them does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tenfold import metrics

SCRIPT = """
import sys

rank, store, alone, out = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "alone", sys.argv[4]
if alone:
    sys.modules["torchmetrics"] = None
import torch

from tenfold import metrics

assert (metrics.DiceScore.__mro__[2].__module__.split(".")[0] == "tenfold") == alone
torch.distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
draw = torch.Generator().manual_seed(0)
preds, target = (torch.randint(0, 4, (3, 6, 7, 8), generator=draw) for _ in range(2))
mine = slice(0, 1) if rank == 0 else slice(1, 3)
found = {}
for kind in (metrics.DiceScore, metrics.SurfaceDice, metrics.SegmentationMetrics):
    metric = kind(4, input_format="index", reduction="mean_batch")
    metric.update(preds[mine], target[mine])
    value = metric.compute()
    named = value if isinstance(value, dict) else {"": value}
    metric = kind(4, input_format="index", reduction="mean_batch")
    if rank == 1:  # the other has no case at all
        metric.update(preds, target)
    value = metric.compute()
    idle = value if isinstance(value, dict) else {"": value}
    found[kind.__name__] = named | {"one " + key: v for key, v in idle.items()}
torch.save(found, out)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("base", ["torchmetrics", "alone"])
def test_two_processes_gather_their_cases(tmp_path, base):
    if base == "torchmetrics":
        pytest.importorskip("torchmetrics")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    places = [tmp_path / f"{rank}.pt" for rank in range(2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "store", base, places[rank]],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    draw = torch.Generator().manual_seed(0)
    preds, target = (torch.randint(0, 4, (3, 6, 7, 8), generator=draw) for _ in range(2))
    for place in places:
        for name, values in torch.load(place).items():
            metric = getattr(metrics, name)(4, input_format="index", reduction="mean_batch")
            metric.update(preds, target)
            whole = metric.compute()
            whole = whole if isinstance(whole, dict) else {"": whole}
            for key, value in values.items():
                want = whole[key.removeprefix("one ")]
                assert torch.equal(value.nan_to_num(-1), want.nan_to_num(-1)), (name, key)
