"""What every op promises on a GPU, on the calls of benchmarks/calls.py: the CPU's numbers, whatever stream it
runs on, whatever lies in fresh memory, and inside a CUDA graph where it does not wait for the device."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tenfold.benchmarks.calls import CALLS
from tenfold.benchmarks.calls_inputs import Call, Run
from torch import Tensor

import tenfold
from tenfold import ops
from tenfold._backend import why_not

CPU = torch.device("cpu")
ON_GPU = [
    pytest.param(call, backend, marks=pytest.mark.gpu, id=f"{backend}-{call.name}")
    for call in CALLS
    for backend in call.backends
]
IN_A_GRAPH = [
    pytest.param(call, call.backends[0], marks=pytest.mark.gpu, id=f"{call.backends[0]}-{call.name}")
    for call in CALLS
    if call.captures
]
NO_KERNEL = {
    "body_box", "connected_components", "fill_holes", "keep_largest",  # on the CPU only
    "gaussian_weights", "mirrored", "sliding_window", "sliding_window_slabs", "window_starts",
    "labels_of_owners", "owner_words", "surfels",  # plain PyTorch on any device
    "moderate_select", "new_dynamics", "stratified_budget", "topk_stable",
    "adain_style_loss", "answer_counts", "channel_stats", "frechet_distance", "gram", "inverse_norms",
    "lowrank_apply_", "mmd2_poly", "mmd2_rbf", "moments_merge", "moments_update", "resize_antialias",
    "uce_apply", "uce_apply_", "uce_edit",  # PyTorch's products and solves on any device
}  # fmt: skip
OF_OTHERS = {
    "craig", "fgrad_sqdist", "glister",
    "merge_vocab_shards", "mmd_permutation_test", "option_loss", "surface_dice", "token_logprobs",
    "verbalizer_loss",
}  # fmt: skip
"""Made of ops that are called here."""


@contextmanager
def at_work(backend: str) -> Iterator[torch.device]:
    """The GPU, with a backend forced."""
    reason = why_not(backend, "cuda")
    if reason:
        pytest.skip(reason)
    with tenfold.use_backend(backend):
        yield torch.device("cuda", 0)


@contextmanager
def poisoned() -> Iterator[None]:
    """torch fills fresh memory with NaN and the largest integers."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def near(call: Call, got: list[Tensor], want: list[Tensor]) -> None:
    assert len(got) == len(want)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        a, b = a.detach().cpu(), b.detach().cpu()
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if call.near == 0 or not a.is_floating_point():
            assert torch.equal(a, b), (call.name, i)
        else:
            same = torch.equal(a.isfinite(), b.isfinite()) and torch.equal(a.isnan(), b.isnan())
            assert same, (call.name, i)
            a, b = a.double().nan_to_num(0.0, 0.0, 0.0), b.double().nan_to_num(0.0, 0.0, 0.0)
            gap = (a - b).abs().max().item() if a.numel() else 0.0
            assert gap <= call.near * max(b.abs().max().item(), 1e-30), (call.name, i, gap)


def copies(results: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in results]


def on_the_cpu(call: Call, seed: int) -> list[Tensor]:
    with tenfold.use_backend("auto"):
        return copies(call.make(CPU, seed)())


# ---- the list itself -------------------------------------------------------------------------------------


def test_every_op_is_on_the_list() -> None:
    functions = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    called = {name for call in CALLS for name in call.covers}
    assert called <= functions
    assert functions - called == NO_KERNEL | OF_OTHERS
    assert len({call.name for call in CALLS}) == len(CALLS)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_calls_repeat_and_do_not_see_fresh_memory_on_the_cpu(call: Call) -> None:
    run = call.make(CPU, 7)
    first = copies(run())
    with poisoned():
        second = copies(run())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = call.make(CPU, 8)()
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, other, strict=True))


# ---- on a GPU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "backend"), ON_GPU)
def test_numbers_are_those_of_the_cpu(call: Call, backend: str) -> None:
    """To the bit for what the generator draws, and for all passes made of it."""
    for seed in (7, 2**40 + 1):
        want = on_the_cpu(call, seed)
        with at_work(backend) as device:
            near(call, call.make(device, seed)(), want)


@pytest.mark.parametrize(("call", "backend"), ON_GPU)
def test_fresh_memory_does_not_show(call: Call, backend: str) -> None:
    want = on_the_cpu(call, 9)
    with at_work(backend) as device:
        run = call.make(device, 9)
        with poisoned():
            near(call, run(), want)


@pytest.mark.parametrize(("call", "backend"), ON_GPU)
def test_two_streams_at_once(call: Call, backend: str) -> None:
    """Two calls on inputs of their own, each behind a wait, so that both are queued before either runs."""
    seeds = 11, 12
    wanted = [on_the_cpu(call, seed) for seed in seeds]
    with at_work(backend) as device:
        runs = [call.make(device, seed) for seed in seeds]
        for run in runs:  # compile, and fill tables
            run()
        torch.cuda.synchronize(device)
        streams = [torch.cuda.Stream(device) for _ in seeds]
        for _ in range(5):
            found = []
            for stream, run in zip(streams, runs, strict=True):
                with torch.cuda.stream(stream):
                    torch.cuda._sleep(200_000)
                    found.append(copies(run()))
            torch.cuda.synchronize(device)
            for got, want in zip(found, wanted, strict=True):
                near(call, got, want)


def captured(run: Run, device: torch.device) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """`run` in a graph with its results, after a warm-up on a side stream as PyTorch asks for."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


@pytest.mark.parametrize(("call", "backend"), IN_A_GRAPH)
def test_a_cuda_graph_holds_the_call(call: Call, backend: str) -> None:
    want = on_the_cpu(call, 13)
    with at_work(backend) as device:
        graph, results = captured(call.make(device, 13), device)
        for _ in range(2):
            for t in results:
                t.detach().zero_()
            graph.replay()
            torch.cuda.synchronize(device)
            near(call, results, want)
