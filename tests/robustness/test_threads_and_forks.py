"""A hundred threads at once, worker processes by fork and by spawn, a fork after OpenMP has started."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ops_fuzz import leaves
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tenfold import ops

THREADS = 100


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _moved(seed: int) -> Tensor:
    w = _random(seed, 4099)
    ops.zo_chain_([w], [0], [ops.Term(seed, 1, 0.5), ops.Term(seed, 2, -0.1)])
    return w


def _labels(seed: int) -> Tensor:
    return (_random(seed, 9, 10, 11) > 0).to(torch.int64)


CALLS: dict[str, Callable[[int], Any]] = {
    "zo_chain_": _moved,
    "zo_sample": lambda s: ops.zo_sample(s, n=5000),
    "lowrank_factor": lambda s: ops.lowrank_factor(s, 0, 1, 300, 4),
    "quantile_abs": lambda s: ops.quantile_abs([_random(s, 5000)], 0.3),
    "topk_mask": lambda s: ops.topk_mask([_random(s, 5000)], 0.3),
    "linear_logprob": lambda s: ops.linear_logprob(_random(s, 9, 16), _random(1, 50, 16), torch.arange(9)),
    "gnb_sample": lambda s: ops.gnb_sample(_random(s, 9, 300), seed=s),
    "score_fused": lambda s: ops.score_fused(_random(s, 90, 10), torch.arange(90) % 10),
    "nn_assign": lambda s: ops.nn_assign(_random(s, 90, 10), _random(1, 9, 10)),
    "kmeans": lambda s: ops.kmeans(_random(s, 90, 5), 4, iterations=3),
    "fl_greedy": lambda s: ops.fl_greedy(_random(s, 60, 5), 6),
    "mmd": lambda s: ops.mmd(_random(s, 40, 5), _random(1, 30, 5)),
    "soft_overlap": lambda s: ops.soft_overlap(_random(s, 2, 3, 20, 20), _random(s, 2, 20, 20).gt(0).long()),
    "surface_metrics": lambda s: ops.surface_metrics(_labels(s), _labels(s + 1), None, (1.0, 1.0, 2.0)),
    "edt": lambda s: ops.edt(_labels(s).bool(), (1.0, 1.0, 2.0)),
    "connected_components": lambda s: ops.connected_components(_labels(s)),
    "ssim": lambda s: ops.ssim(_random(s, 1, 3, 40, 40), _random(1, 1, 3, 40, 40)),
    "water_filling": lambda s: ops.water_filling(_random(s, 30, 16).abs(), 1.0),
    "simplex_project": lambda s: ops.simplex_project(_random(s, 9, 300)),
}


def same(a: Any, b: Any) -> bool:
    pairs = zip(leaves(a), leaves(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("name", CALLS)
def test_a_hundred_threads_get_what_each_gets_alone(name: str) -> None:
    call = CALLS[name]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # PyTorch's products, which some take, round otherwise with two
    try:
        alone = [call(seed) for seed in range(THREADS)]
    finally:
        torch.set_num_threads(before)
    gate = threading.Barrier(THREADS)

    def run(seed: int) -> Any:
        torch.set_num_threads(1)
        gate.wait()
        return call(seed)

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, range(THREADS)))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))


class Samples(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Tensor:
        return torch.cat([_moved(i), ops.zo_sample(i, n=100), ops.edt(_labels(i).bool()).flatten()])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_dataloader_compute_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))  # a spawned worker imports this file
    data = Samples()
    expected = [data[i] for i in range(len(data))]
    loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120)
    assert all(torch.equal(a, b) for a, b in zip(loader, expected, strict=True))


def test_a_plain_fork_after_openmp_has_started_does_not_hang() -> None:
    """The child asks for nothing: importing tenfold alone has set it to one thread."""
    program = """
        import os, signal, torch
        import tenfold
        from tenfold import ops
        torch.set_num_threads(3)
        before = ops.zo_sample(1, n=300_000)
        ops.zo_perturb_([before], [0], 1, 0, 0.5)
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends the child if it waits for threads that it does not have
            again = ops.zo_sample(1, n=300_000)
            ops.zo_perturb_([again], [0], 1, 0, 0.5)
            torch.exp(torch.zeros(1_000_000))
            os._exit(0 if torch.equal(again, before) and torch.get_num_threads() == 1 else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], env=environment, timeout=180)
    assert done.returncode == 0
