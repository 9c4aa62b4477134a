"""What only a real GPU can show: streams, graphs, launches, memory, tensors beyond 2^32 elements."""

from __future__ import annotations

import pytest
import torch
from tenfold.kernels.zo import zo_native
from tenfold.kernels.zo import zo_reference as ref
from torch import Tensor

import tenfold
from tenfold import _native
from tenfold.ops import Term, zo_chain_, zo_perturb_, zo_sample

pytestmark = pytest.mark.gpu

ONE = ([7], [3], [0.5], ["gaussian"])


def weights(device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 768, 4096, 50_257, 300_000]
    return [torch.randn(n, generator=generator).to(device) for n in sizes]


def changed(params: list[Tensor], *terms: object, **options: object) -> list[Tensor]:
    """What the reference makes of copies of `params`, on the CPU."""
    out = [p.detach().cpu().clone() for p in params]
    ref.chain_(out, None, list(range(len(out))), *terms, **options)
    return out


def same(got: list[Tensor], want: list[Tensor]) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, want, strict=True))


# -- the same bits as the CPU, at size -------------------------------------------------------------


@pytest.mark.parametrize("dist", ["gaussian", "rademacher", "uniform"])
def test_sixteen_million_samples_equal_the_cpu(real_gpu, dist):
    n = 1 << 24
    got = torch.empty(n, device=real_gpu.device)
    want = torch.empty(n)
    real_gpu.module.sample_(got, 123456789, 5, 6, 2**33 - n // 2, dist)
    zo_native.sample_(want, 123456789, 5, 6, 2**33 - n // 2, dist)
    assert torch.equal(got.cpu().view(torch.int32), want.view(torch.int32))


def test_ops_give_the_bits_of_the_cpu_on_both_backends():
    want = torch.randn(100_003)
    start = want.clone()
    zo_perturb_([want], [1], 42, 0, 1e-3)
    samples = zo_sample(42, 1, 0, n=999)
    for name in ("cuda", "triton"):
        if name == "cuda" and _native.cuda is None:
            continue
        with tenfold.use_backend(name):
            got = start.cuda()
            zo_perturb_([got], [1], 42, 0, 1e-3)
            assert torch.equal(got.cpu(), want), name
            assert torch.equal(zo_sample(42, 1, 0, n=999, device="cuda").cpu(), samples), name


def test_tensor_of_more_than_2_to_the_32_elements(real_gpu):
    n = 2**32 + 12_345
    free, _ = torch.cuda.mem_get_info(real_gpu.device)
    if free < 3 * n:
        pytest.skip("needs 13 GB of GPU memory")
    big = torch.zeros(n, dtype=torch.bfloat16, device=real_gpu.device)
    real_gpu.module.chain_([big], None, [9], [1], [2], [1.0], ["gaussian"])
    for first in (0, 2**31 - 50, 2**32 - 50, n - 100):
        want = ref.sample(1, 9, 2, first, 100, dtype=torch.bfloat16)
        assert torch.equal(big[first : first + 100].cpu(), want), first


def test_poisoned_memory_does_not_show(real_gpu):
    """Fresh allocations hold NaN; every element of the output must have been written, and none read."""
    for n in (1, 1000, 4096, 100_001):
        poison = torch.full((n,), torch.nan, device=real_gpu.device)
        del poison
        out = torch.empty(n, device=real_gpu.device)
        real_gpu.module.sample_(out, 1, 2, 3, 4, "gaussian")
        assert torch.equal(out.cpu(), ref.sample(1, 2, 3, 4, n))


# -- streams ---------------------------------------------------------------------------------------


def test_runs_on_the_current_stream(real_gpu):
    """Work queued before on the same stream is seen; work on a busy other stream is not waited for."""
    params = weights(real_gpu.device)
    want = changed([2 * p for p in params], *ONE)
    stream = torch.cuda.Stream(real_gpu.device)
    stream.wait_stream(torch.cuda.current_stream(real_gpu.device))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for p in params:
            p.mul_(2)
        real_gpu.module.chain_(params, None, list(range(len(params))), *ONE)
    stream.synchronize()
    assert same(params, want)


def test_two_streams_at_once(real_gpu):
    first, second = weights(real_gpu.device), [3 * w for w in weights(real_gpu.device)]
    other = ([8], [4], [-0.25], ["rademacher"])
    wanted = changed(first, *ONE), changed(second, *other)
    real_gpu.module.chain_(
        [p.clone() for p in first], None, list(range(len(first))), *ONE
    )  # compile, fill tables
    torch.cuda.synchronize()
    streams = torch.cuda.Stream(real_gpu.device), torch.cuda.Stream(real_gpu.device)
    for _ in range(20):
        runs = [p.clone() for p in first], [p.clone() for p in second]
        torch.cuda.synchronize()
        for stream, run, terms in zip(streams, runs, (ONE, other), strict=True):
            with torch.cuda.stream(stream):
                real_gpu.module.chain_(run, None, list(range(len(run))), *terms)
        torch.cuda.synchronize()
        assert all(same(run, want) for run, want in zip(runs, wanted, strict=True))


def test_does_not_wait_for_the_device(real_gpu):
    """A call returns while a long kernel before it still runs."""
    params = weights(real_gpu.device)
    for _ in range(3):
        real_gpu.module.chain_(params, None, list(range(len(params))), *ONE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)  # about a second
        done = torch.cuda.Event()
        real_gpu.module.chain_(params, None, list(range(len(params))), *ONE)
        done.record()
        assert not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


# -- launches and memory ---------------------------------------------------------------------------


def test_one_launch_for_a_list(real_gpu):
    params = [torch.randn(1 + 37 * i, device=real_gpu.device) for i in range(300)]
    streams = list(range(len(params)))
    real_gpu.module.chain_(params, None, streams, *ONE)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        real_gpu.module.chain_(params, None, streams, *ONE)
        torch.cuda.synchronize()
    kernels = [e for e in profile.events() if e.device_type.name == "CUDA" and "chain" in e.name]
    assert len(kernels) == 1


def test_allocates_nothing_that_grows_with_the_tensors(real_gpu):
    params = [torch.randn(10_000_000, device=real_gpu.device) for _ in range(3)]
    real_gpu.module.chain_(params, None, [0, 1, 2], *ONE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats(real_gpu.device)
    before = torch.cuda.memory_allocated(real_gpu.device)
    real_gpu.module.chain_(params, None, [0, 1, 2], *ONE)
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated(real_gpu.device) - before <= (
        0 if real_gpu.name == "cuda" else 8192
    )


# -- CUDA graphs -----------------------------------------------------------------------------------


def captured(run) -> torch.cuda.CUDAGraph:
    """`run` in a graph, after a warm-up on a side stream as PyTorch asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def test_graph_replays_the_call(real_gpu):
    params = weights(real_gpu.device)
    if real_gpu.name == "triton":
        with pytest.raises(RuntimeError, match="chain_table_"):
            captured(lambda: real_gpu.module.chain_(params, None, list(range(len(params))), *ONE))
        return
    start = [p.clone() for p in params]
    graph = captured(lambda: real_gpu.module.chain_(params, None, list(range(len(params))), *ONE))
    for p, s in zip(params, start, strict=True):
        p.copy_(s)
    want = start
    for _ in range(3):
        graph.replay()
        want = changed(want, *ONE)
        assert same(params, want)


def test_graph_replays_with_other_seeds_and_coefficients(real_gpu):
    """Terms in device memory: one captured graph serves every step."""
    from tenfold.kernels.zo import zo_triton

    params = weights(real_gpu.device)
    if real_gpu.name == "cuda":  # Triton copies strided tensors, to other places at each call
        params.append(torch.randn(30, 40, device=real_gpu.device).t())
    start = [p.clone() for p in params]
    streams = list(range(len(params)))
    table = zo_triton.terms_table([1, 1], [0, 0], [0.0, 0.0], ["gaussian"] * 2, device=real_gpu.device)

    def run() -> None:
        if real_gpu.name == "triton":
            zo_triton.chain_table_(params, None, streams, table)
            return
        assert _native.cuda is not None
        views = [zo_native._view(p) for p in params]
        here = torch.cuda.current_stream(real_gpu.device).cuda_stream
        _native.cuda.zo_chain_from_memory(views, [], streams, table.data_ptr(), 2, 0, -1, False, here)

    graph = captured(run)
    for p, s in zip(params, start, strict=True):
        p.copy_(s)
    want = [s.cpu() for s in start]
    for step, decay in ((1, 1.0), (2, 0.5), (2**63, 0.9)):
        terms = ([step, step + 1], [0, step % 100], [0.1, -0.2], ["gaussian", "rademacher"])
        table.copy_(zo_triton.terms_table(*terms, decay=decay, device=real_gpu.device))
        graph.replay()
        ref.chain_(want, None, streams, *terms, decay)
        torch.cuda.synchronize()
        assert same(params, want), step


def test_ops_under_capture():
    if _native.cuda is None:
        pytest.skip(_native.cuda_why)
    param = torch.ones(10_000, device="cuda")
    graph = captured(lambda: zo_chain_([param], [0], [Term(5, 0, 1.0)]))
    param.fill_(1.0)
    graph.replay()
    want = torch.ones(10_000)
    zo_chain_([want], [0], [Term(5, 0, 1.0)])
    assert torch.equal(param.cpu(), want)
