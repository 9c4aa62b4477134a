"""What this machine can do at best, measured in the same run as the benchmarks.

Every rate is the best of several tries, before and after the cases: a floor is what cannot be beaten, and a
busy machine only lowers a rate. The generator's rate is that of this library's own generator, so a floor
set by it says what the generator allows, not that no faster generator could exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .clocks import device_wait, flush_l2

BUFFER_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
"""Far beyond the last cache: an H200 has 50 MiB of it."""
HOT_BYTES = (40_000, 400_000, 4_000_000, 40_000_000)
TRIES = 7

HOW = {
    "copy_gbps": "dst.copy_(src), two buffers of 256 MiB (GPU: 1 GiB), bytes read plus bytes written",
    "inplace_gbps": "x.mul_(a) on such a buffer, bytes read plus bytes written",
    "memory_gbps": "the larger of copy_gbps and inplace_gbps; memory floors use it",
    "hot_gbps": "the same in-place pass, repeated over a buffer of so many bytes; for data in a cache",
    "fma_gflops": "peak f32 multiply-adds, two operations each",
    "tf32_gflops": "GPU: the same product with torch.backends.cuda.matmul.allow_tf32; its sums are float32",
    "bf16_gflops": "GPU: the same product of bfloat16 matrices",
    "generator_gnormals": "1e9 normals per second of this library's generator, into 4 MiB a thread (GPU: "
    "256 MiB)",
    "clock": "CPU time for one thread, wall time for several, CUDA events behind a wait on a GPU",
}


def _best_seconds(run: Callable[[], Any], device: torch.device, threads: int, tries: int = TRIES) -> float:
    run()
    best = float("inf")
    for _ in range(tries):
        if device.type == "cuda":
            flush_l2(device)
            device_wait(device, 5e-4)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize(device)
            best = min(best, start.elapsed_time(end) * 1e-3)
        else:
            clock = time.process_time if threads == 1 else time.perf_counter
            begin = clock()
            run()
            best = min(best, clock() - begin)
    return best


def memory_rates(device: torch.device, threads: int, buffer_bytes: int | None = None) -> dict[str, float]:
    """GB/s (1e9) of a copy and of an in-place pass over a buffer far larger than the caches."""
    buffer_bytes = buffer_bytes or BUFFER_BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.ones(buffer_bytes // 4, device=device)
    target = torch.zeros_like(source)
    moved = 2.0 * buffer_bytes
    copy = moved / _best_seconds(lambda: target.copy_(source), device, threads) / 1e9
    inplace = moved / _best_seconds(lambda: source.mul_(1.0), device, threads) / 1e9
    return {"copy_gbps": copy, "inplace_gbps": inplace, "memory_gbps": max(copy, inplace)}


def hot_rates(device: torch.device, threads: int) -> dict[str, float]:
    """{bytes as text: GB/s} of repeated in-place passes over buffers that caches may hold."""
    rates = {}
    for size in HOT_BYTES:
        buffer = torch.ones(size // 4, device=device)
        calls = max(1, (16 << 20) // size)

        def run(buffer: torch.Tensor = buffer, calls: int = calls) -> None:
            for _ in range(calls):
                buffer.mul_(1.0)

        rates[str(size)] = 2.0 * size * calls / _best_seconds(run, device, threads) / 1e9
    return rates


def _native_cpu() -> Any:
    try:
        from tenfold import _native
    except ImportError:
        return None
    return getattr(_native, "cpu", None)


def fma_rate(device: torch.device, threads: int, size: int = 1536, seconds: float = 0.3) -> dict[str, Any]:
    """Peak f32 GFLOP/s: a matrix product, or the native loop of multiply-adds if that is faster."""
    left, right = torch.ones(size, size, device=device), torch.ones(size, size, device=device)
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        product = 2.0 * size**3 / _best_seconds(lambda: torch.mm(left, right), device, threads, 5) / 1e9
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    native = 0.0
    if device.type == "cpu" and hasattr(_native_cpu(), "peak_fma"):
        native = float(_native_cpu().peak_fma(threads, seconds)) / 1e9
    by = "native loop of multiply-adds" if native > product else f"torch.mm of {size} x {size}"
    return {"fma_gflops": max(product, native), "fma_by": by}


def product_rates(device: torch.device, size: int = 8192) -> dict[str, Any]:
    """GFLOP/s of the matrix products of a GPU in float32, TF32 and bfloat16, sums in float32."""
    rates: dict[str, Any] = {}
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        for name, dtype, tf32 in (
            ("fma", torch.float32, False),
            ("tf32", torch.float32, True),
            ("bf16", torch.bfloat16, False),
        ):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            # Random: multiplying ones takes less power, and a GPU clocks by power.
            left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            seconds = _best_seconds(lambda a=left, b=right: torch.mm(a, b), device, 1, 5)  # type: ignore[misc]
            rates[f"{name}_gflops"] = 2.0 * size**3 / seconds / 1e9
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return {**rates, "fma_by": f"torch.mm of {size} x {size}"}


def generator_rate(device: torch.device, threads: int) -> dict[str, Any]:
    """1e9 standard normals per second of this library's generator; None, with the reason, without it."""
    try:
        import tenfold.ops  # noqa: F401  (registers the operator)
    except ImportError as error:
        return {"generator_gnormals": None, "generator_by": f"not measured: {error}"}
    count = (1 << 20) * threads if device.type == "cpu" else 1 << 26
    calls = 2  # long enough that the call itself is below two percent
    out = torch.empty(count, device=device)
    sequence = iter(range(1 << 30))

    def run() -> None:
        for _ in range(calls):
            torch.ops.tenfold.zo_sample_(out, 7, 0, next(sequence) % (1 << 24), 0, "gaussian")

    seconds = _best_seconds(run, device, threads, 4 * TRIES)
    return {
        "generator_gnormals": calls * count / seconds / 1e9,
        "generator_by": f"zo_sample_ into {count} elements",
    }


def measure_floors(device: torch.device, thread_counts: list[int]) -> dict[str, Any]:
    """{"rates": {threads as text: {rate name: value}}, "how": {...}}; the thread setting is put back."""
    before = torch.get_num_threads()
    rates: dict[str, dict[str, Any]] = {}
    try:
        for threads in thread_counts:
            torch.set_num_threads(threads)
            rates[str(threads)] = {
                **memory_rates(device, threads),
                "hot_gbps": hot_rates(device, threads) if device.type == "cpu" else {},
                **(product_rates(device) if device.type == "cuda" else fma_rate(device, threads)),
                **generator_rate(device, threads),
            }
    finally:
        torch.set_num_threads(before)
    return {"device": str(device), "rates": rates, "how": HOW}


def _higher(old: Any, new: Any) -> Any:
    if isinstance(old, dict):
        return {key: _higher(value, new[key]) for key, value in old.items()}
    return max(old, new) if isinstance(old, float) and isinstance(new, float) else old


def better_of(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two measurements of the same machine: of every rate the higher one."""
    rates = {}
    for threads, old in first["rates"].items():
        new = second["rates"][threads]
        best = {name: _higher(value, new[name]) for name, value in old.items()}
        best["fma_by"] = (new if best["fma_gflops"] == new["fma_gflops"] else old)["fma_by"]
        rates[threads] = best
    return {**first, "rates": rates}
