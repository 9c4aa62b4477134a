"""Peak memory and time of one training step, each kind of run in a process of its own.

    python -m tenfold.llm._run_probe < requests.json        one JSON answer per line, in order

A request is plain data: ``model`` (a folder or a name, or the arguments of `families.make_model`),
``scheme``, ``optimizer`` (a name of `methods.METHODS`; ``none`` for one forward pass), ``checkpointing``,
``dtype``, ``device``, ``rows``, ``labels``, ``options`` (token ids), ``pad_id``, ``eps``, ``lr``,
``num_queries``, ``restore``, ``extra``, ``rounds``. The process imports everything once and forks for each
request, so that no run sees memory of another one, and a request costs no second import.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tenfold.llm import families, methods, schemes
from tenfold.llm._memory_probe import DeviceMemory, HostMemory

__all__ = ["probe"]


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """``before_load``, ``loaded``, ``peaks`` (MiB, one per step), ``method``, ``trainable``, ``parameters``,
    ``form`` of the step and the parts of its time in milliseconds, of the fastest step."""
    torch.set_num_threads(int(os.environ.get("TENFOLD_PROBE_THREADS", torch.get_num_threads())))
    memory = DeviceMemory() if request["device"] == "cuda" else HostMemory()
    memory.settle()
    before_load = memory.now()
    model = _load(request)
    memory.settle()
    loaded = memory.now()
    adapted = schemes.attach(model, request["scheme"])
    step = _stepper(request, adapted)
    peaks, parts = [], []
    for _ in range(request["rounds"]):
        memory.reset()
        parts.append(step())
        peaks.append(memory.peak())
    return {
        "before_load": before_load, "loaded": loaded, "peaks": peaks, "method": memory.method,
        "trainable": adapted.trainable, "parameters": sum(p.numel() for p in model.parameters()),
        "ms": min(parts, key=lambda row: sum(row[k] for k in ("forward", "backward", "passes", "rest"))),
    }  # fmt: skip


def _load(request: dict[str, Any]) -> Any:
    from tenfold.llm.engine import load_any_model

    dtype = getattr(torch, request["dtype"])
    if isinstance(request["model"], dict):
        model = families.make_model(**request["model"]).to(dtype)
    else:
        model = load_any_model(request["model"], dtype)
    return model.to(request["device"])


def _stepper(request: dict[str, Any], adapted: schemes.Adapted) -> Any:
    """A function that makes one step and tells the milliseconds of its parts."""
    from tenfold.ops import verbalizer_loss

    device, kind = adapted.device, methods.find(request["optimizer"]).kind
    width = max(map(len, request["rows"]))
    ids = torch.full((len(request["rows"]), width), request["pad_id"], dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(request["rows"]):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.tensor(row), 1
    ids, mask = ids.to(device), mask.to(device)
    labels, options = (torch.tensor(request[name], device=device) for name in ("labels", "options"))

    def loss() -> Tensor:
        at = adapted.hidden(ids, mask)[:, -1]
        weight, bias = adapted.head()
        if kind == "forward":
            logits = torch.nn.functional.linear(at.float(), weight[options].float())
            return torch.nn.functional.cross_entropy(logits, labels)
        return verbalizer_loss(at, weight, options, labels, bias)[0]

    if kind == "none":
        return lambda: _timed_forward(loss)
    optimizer = methods.make(
        request["optimizer"], adapted.parameters, adapted.model, lr=request["lr"], eps=request["eps"],
        num_queries=request["num_queries"], restore=request["restore"], extra=request["extra"],
    )  # fmt: skip
    if kind == "first-order":
        return lambda: _first_order(adapted, optimizer, loss, request["checkpointing"])
    if kind == "forward":
        adapted.model.set_attn_implementation("eager")
    return lambda: _zeroth_order(optimizer, loss)


@torch.no_grad()
def _timed_forward(loss: Any) -> dict[str, float]:
    started = time.perf_counter()
    float(loss())
    return {"forward": 1e3 * (time.perf_counter() - started), "backward": 0.0, "passes": 0.0, "rest": 0.0,
            "forwards": 1}  # fmt: skip


def _zeroth_order(optimizer: Any, loss: Any) -> dict[str, float]:
    started = time.perf_counter()
    optimizer.step(loss)
    whole = 1e3 * (time.perf_counter() - started)
    record = optimizer.last_step
    forward, passes = (1e3 * record.seconds[part] for part in ("forward", "passes"))
    rest = max(0.0, whole - forward - passes)
    return {"forward": forward, "backward": 0.0, "passes": passes, "rest": rest,
            "forwards": len(record.losses)}  # fmt: skip


def _first_order(
    adapted: schemes.Adapted, optimizer: Any, loss: Any, checkpointing: bool
) -> dict[str, float]:
    times = [time.perf_counter()]
    with schemes.checkpointed(adapted.model, checkpointing):
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        times.append(time.perf_counter())
        value.backward()
        times.append(time.perf_counter())
    optimizer.step()
    if adapted.device.type == "cuda":
        torch.cuda.synchronize()
    times.append(time.perf_counter())
    forward, backward, passes = (1e3 * (b - a) for a, b in pairwise(times))
    return {"forward": forward, "backward": backward, "passes": passes, "rest": 0.0, "forwards": 1}


def answer(
    request: dict[str, Any], probe: Callable[[dict[str, Any]], dict[str, Any]] = probe
) -> dict[str, Any]:
    """:func:`probe`, or another, in a child process (in this one where the system cannot fork)."""
    if not hasattr(os, "fork"):
        return probe(request)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe:
                json.dump(_explained(request, probe), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not text:
        return {"error": f"the process ended with status {status}"}
    found: dict[str, Any] = json.loads(text)
    return found


def _explained(request: dict[str, Any], probe: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    try:
        return probe(request)
    except Exception as error:  # told to the parent, which raises it
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Requests from standard input, answers to standard output."""
    import transformers  # noqa: F401  (what an import costs is no part of a run)
    from transformers import LlamaForCausalLM, OPTForCausalLM, RobertaForMaskedLM  # noqa: F401

    import tenfold.llm.engine
    import tenfold.optim  # noqa: F401

    for request in json.load(sys.stdin):
        print(json.dumps(answer(request)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
