"""torch.compile as a side: of an expression (`side`), and of the reference's perturbation pass.

The pass is put into a form that torch.compile takes.
The reference emulates fused multiply-adds to the bit, which makes a graph that takes minutes to compile.
Here the Philox words are the same, while logarithm, root, sine and cosine are torch's own in float32; so z
differs from the library's by rounding only (a few 1e-7), and the comparison says by how much.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..harness import Agreement, Side

LIMIT_S = 180
LOW32 = 0xFFFFFFFF


def _box_muller(x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    radius = torch.sqrt(-2 * torch.log(x0.to(torch.float32) * 2.0**-32 + 2.0**-33))
    angle = x1.to(torch.float32) * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def gaussian_pass_(theta: Tensor, address: Tensor, c: Tensor) -> None:
    """theta += c z in place; theta [n], n a multiple of 4, c float32 [], address int64 [4] (see below)."""
    from tenfold.kernels.zo.zo_reference import philox4x32_10

    block = torch.arange(theta.numel() // 4, dtype=torch.int64, device=theta.device)
    none = torch.zeros_like(block)
    words = philox4x32_10(
        block & LOW32, block >> 32, none + address[0], none + address[1], address[2], address[3]
    )
    z0, z1 = _box_muller(words[0], words[1])
    z2, z3 = _box_muller(words[2], words[3])
    z = torch.stack((z0, z1, z2, z3), dim=1).reshape(-1)
    theta.copy_((theta.to(torch.float32) + c * z).to(theta.dtype))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the main thread when the time is up; does nothing in other threads."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"torch.compile took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def compiled_gaussian_pass(
    dtype: torch.dtype, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], None]:
    """The pass, compiled now; TimeoutError after LIMIT_S seconds, RuntimeError without a compiler."""
    import torch._inductor.config as inductor

    _needs_compiler(device)
    compiled: Callable[[Tensor, Tensor, Tensor], None] = torch.compile(
        gaussian_pass_, dynamic=True, fullgraph=True
    )
    # One compile thread: worker processes would go on using cores while others are timed.
    with inductor.patch(compile_threads=1), _time_limit(LIMIT_S):
        for n in (4096, 12288):
            compiled(
                torch.zeros(n, dtype=dtype, device=device),
                address(0, 0, 7, device),
                torch.zeros((), device=device),
            )
    return compiled


def _needs_compiler(device: torch.device) -> None:
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise RuntimeError("torch.compile needs a C++ compiler on the CPU, none found")


def side(
    function: Callable[..., Any],
    run: Callable[[Callable[..., Any]], Any],
    agree: Callable[[Any, Any], Agreement],
    device: torch.device,
) -> Side:
    """`run` of `function` compiled for the shapes of the case, before anything is timed."""
    held: list[Callable[..., Any]] = []

    def prepare() -> None:
        import torch._inductor.config as inductor

        _needs_compiler(device)
        held.append(torch.compile(function, dynamic=False))
        with inductor.patch(compile_threads=1), _time_limit(LIMIT_S):
            run(held[0])

    return Side(
        "torch.compile",
        lambda: run(held[0]),
        version=f"torch {torch.__version__}",
        agree=agree,
        prepare=prepare,
        kind="compiled",
        fewest=2,
        measure_memory=False,
    )


def address(stream: int, query: int, seed: int, device: torch.device) -> Tensor:
    """(stream, query, low and high word of the seed) as one tensor, so that no value is compiled in."""
    return torch.tensor([stream, query, seed & LOW32, seed >> 32], dtype=torch.int64, device=device)


def perturb(tensors: Sequence[Tensor], seed: int, query: int, c: float) -> None:
    """The whole pass over a list; streams are 0, 1, 2, ..."""
    run = compiled_gaussian_pass(tensors[0].dtype, tensors[0].device)
    addresses, scale = _arguments(len(tensors), seed, query, c, tensors[0].device)
    for tensor, at in zip(tensors, addresses, strict=True):
        run(tensor.view(-1), at, scale)


@cache
def _arguments(
    count: int, seed: int, query: int, c: float, device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Addresses and scale on the device; a copy from the host in each call would wait for the device."""
    addresses = [address(stream, query, seed, device) for stream in range(count)]
    return addresses, torch.tensor(c, dtype=torch.float32, device=device)
