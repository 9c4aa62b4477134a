"""Peak memory of one way to use a model, measured in a process of its own.

    python -m tenfold.llm._memory_probe MODE < request.json > answer.json

MODE is one of ``forward`` (inference), ``zo`` (a zeroth-order step on every parameter), ``adam``
(back-propagation and Adam), ``adam-ckpt`` (the same with activation checkpointing). The request holds the
model's name, the token rows of one
batch with labels, and the answer tokens: every mode works on the same batch. The process exits afterwards, so
    nothing that one mode allocates can be reused by another.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import sys
import time
from typing import Any

import torch

MODES = ("forward", "zo", "adam", "adam-ckpt")
_MIB = 1024.0


def status_mib(field: str) -> float:
    """A field of ``/proc/self/status`` in MiB, for example ``VmRSS`` or ``VmHWM``."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return float(line.split()[1]) / _MIB
    raise KeyError(field)


class HostMemory:
    """Resident set of this process: now, and its peak since :meth:`reset`, in MiB."""

    def __init__(self) -> None:
        self.linux = os.path.exists("/proc/self/status")
        self.resets = self.linux and self._clear()
        self.method = "peak RSS (VmHWM, reset before each step)" if self.resets else "peak RSS of the process"
        if self.linux and "MALLOC_MMAP_THRESHOLD_" in os.environ:
            self.method += " with large blocks given back to the system as soon as they are freed"

    @staticmethod
    def _clear() -> bool:
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            return False
        return True

    def settle(self) -> None:
        """Give freed memory back to the system, so that later allocations show."""
        gc.collect()
        if self.linux:
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)

    def now(self) -> float:
        return status_mib("VmRSS") if self.linux else self.peak()

    def reset(self) -> None:
        if self.resets:
            self._clear()

    def peak(self) -> float:
        if self.linux:
            return status_mib("VmHWM")
        unit = 1.0 if sys.platform == "darwin" else _MIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (_MIB * _MIB)


class DeviceMemory:
    """Memory that PyTorch's allocator holds on the current CUDA device, in MiB."""

    method = "peak of torch.cuda.max_memory_allocated"

    def settle(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def now(self) -> float:
        return torch.cuda.memory_allocated() / _MIB / _MIB

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / _MIB / _MIB


def probe(mode: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run ``request["rounds"]`` steps of a mode and report memory in MiB and seconds per step.

    Returns:
        ``mode``, ``method``, ``before_load``, ``loaded`` (resident memory before and after loading the
        model), ``peaks`` (one per step) and ``seconds`` (one per step).

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    from transformers import LlamaForCausalLM  # noqa: F401  (the import is no part of what a model costs)

    from tenfold import optim  # noqa: F401
    from tenfold.llm import models
    from tenfold.llm.prompts import Encoded
    from tenfold.llm.scorer import Scorer

    memory = DeviceMemory() if request["device"] == "cuda" else HostMemory()
    memory.settle()
    before_load = memory.now()
    model = models.load_model(request["model"], dtype=getattr(torch, request["dtype"])).to(request["device"])
    memory.settle()
    loaded = memory.now()
    if mode == "adam-ckpt":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    scorer = Scorer(model, request["pad_id"], torch.tensor(request["options"]))
    rows = Encoded(request["rows"], torch.tensor(request["labels"]))
    batch = scorer.batch(rows, range(len(rows)))
    step = _make_step(mode, scorer, batch, request)
    peaks, seconds = [], []
    for _ in range(request["rounds"]):
        memory.reset()
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
        peaks.append(memory.peak())
    return {
        "mode": mode,
        "method": memory.method,
        "before_load": before_load,
        "loaded": loaded,
        "peaks": peaks,
        "seconds": seconds,
    }


def _make_step(mode: str, scorer: Any, batch: Any, request: dict[str, Any]) -> Any:
    from tenfold import optim

    model = scorer.model
    if mode == "forward":
        return torch.no_grad()(lambda: scorer.loss(batch))
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    if mode == "zo":
        kinds = {"fzoo": (optim.FZOO, 2), "zo-sgd": (optim.ZOSGD, 1), "zo-adam": (optim.ZOAdam, 1)}
        make, queries = kinds[request["optimizer"]]  # memory does not depend on the number of queries
        zo = make(parameters, lr=1e-6, eps=request["eps"], num_queries=queries, restore=request["restore"])
        return lambda: zo.step(lambda: scorer.loss(batch))
    if mode == "adam-ckpt":
        model.train()  # transformers checkpoints activations in training mode only
    adam = torch.optim.Adam(parameters, lr=1e-6)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        scorer.loss(batch).backward()
        adam.step()

    return step


def main() -> int:
    """Read the request from standard input, write the answer to standard output."""
    torch.set_num_threads(int(os.environ.get("TENFOLD_PROBE_THREADS", torch.get_num_threads())))
    request = json.load(sys.stdin)
    json.dump(probe(sys.argv[1], request), sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
