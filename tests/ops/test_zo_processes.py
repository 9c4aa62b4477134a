"""Several Python threads at once, the interpreter lock, children after a fork."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tenfold.ops import Term, zo_adam_, zo_chain_, zo_moments, zo_perturb_, zo_sample


def work(seed: int) -> list[Tensor]:
    """A few passes over tensors of this caller's own."""
    w = [
        torch.linspace(-1, 1, n).to(d)
        for n, d in ((30_001, torch.float32), (2049, torch.bfloat16), (5, torch.half))
    ]
    m, v = [torch.zeros(t.shape) for t in w], [torch.zeros(t.shape) for t in w]
    for step in range(1, 6):
        zo_perturb_(w, [0, 1, 2], seed, step, 1e-2)
        zo_chain_(
            w, [0, 1, 2], [Term(seed, step, -1e-2), Term(seed, 0, 1e-3, "rademacher")], out_rounding="sr"
        )
        zo_adam_(w, m, v, [0, 1, 2], [Term(seed, step, 0.1)], lr=1e-2, step=step)
    return [*w, zo_sample(seed, n=10_000)]


@pytest.mark.parametrize("threads", [1, 2])
def test_python_threads_at_once_get_what_each_gets_alone(set_threads, threads):
    set_threads(threads)
    alone = [work(seed) for seed in range(8)]
    gate = threading.Barrier(8)

    def run(seed: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        gate.wait()
        return work(seed)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, range(8)))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_kernels_release_the_interpreter_lock():
    """While one thread is in a kernel for a second or less, another must be able to count."""
    counted, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            counted[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        before = counted[0]
        zo_moments(1, n=1 << 26)
        during = counted[0] - before
    finally:
        stop.set()
        counter.join()
    assert during > 1000


def test_a_child_after_a_fork_computes_the_same(in_child, set_threads):
    """As a DataLoader worker does: fork, one thread. The parent has used its thread pool before."""
    set_threads(2)
    expected = zo_sample(1, n=50_000)
    zo_perturb_([expected], [0], 1, 0, 0.5)

    def child() -> None:
        z = zo_sample(1, n=50_000)
        zo_perturb_([z], [0], 1, 0, 0.5)
        assert torch.equal(z, expected)

    assert in_child(child) == 0


def _in_shared_memory(shared: Tensor) -> None:
    torch.set_num_threads(1)
    zo_perturb_([shared], [0], 1, 0, 0.5)


def test_a_tensor_in_shared_memory_is_written_for_all():
    shared = torch.zeros(10_000).share_memory_()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_in_shared_memory, args=(shared,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(shared, 0.5 * zo_sample(1, n=10_000))
