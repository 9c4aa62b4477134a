"""Peak memory of the steps that :mod:`tenfold.llm.memory_plan` plans, each in a process of its own.

    python -m tenfold.llm._plan_probe < requests.json      one JSON answer per line, in order

A request holds the arguments of ``memory_plan`` (``shape`` as a list). Its answer: ``peak`` in bytes above
what the process held before the model was made. The process imports everything once and forks for each
request.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from tenfold.llm._memory_probe import HostMemory
from tenfold.llm.memory_plan import Shape

__all__ = ["measure", "probe"]

ROUNDS = 2  # states are there from the first step on


def measure(requests: Sequence[dict[str, Any]]) -> Iterator[int]:
    """Bytes at the peak of a step, of each request one by one.

    Raises:
        RuntimeError: a step failed; the message holds what it said.
    """
    environment = os.environ | {
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 16),  # glibc: what is freed above 64 KiB leaves at once
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tenfold.llm._plan_probe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(requests))
        process.stdin.close()
        for _ in requests:
            answer = json.loads(process.stdout.readline() or '{"error": "the process has ended"}')
            if "error" in answer:
                raise RuntimeError(f"memory probe: {answer['error']}")
            yield answer["peak"]


def probe(request: dict[str, Any]) -> dict[str, int]:
    """Make the model, take two steps, tell the peak."""
    torch.set_num_threads(1)
    dtype = getattr(torch, request.get("dtype", "float32"))
    small = Shape(64, 64, 1, 2, 2, 64)
    _steps(small, dtype, request | {"batch": 1, "length": 8})  # libraries load code at their first use
    memory = HostMemory()
    memory.settle()
    before = memory.now()
    memory.reset()
    _steps(Shape(*request["shape"]), dtype, request)
    return {"peak": round((memory.peak() - before) * 2**20)}


def _steps(shape: Shape, dtype: torch.dtype, request: dict[str, Any]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape._asdict(), max_position_embeddings=request["length"])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # or the model would be made in float32 first
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    if request.get("checkpointing"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, shape.vocab_size, (request["batch"], request["length"]))
    step = _stepper(model, request["method"], ids, _loss(model, ids, bool(request.get("chunked"))))
    for _ in range(ROUNDS):
        step()


def _loss(model: Any, ids: torch.Tensor, chunked: bool) -> Callable[[], torch.Tensor]:
    if not chunked:
        return lambda: model(input_ids=ids, labels=ids, use_cache=False).loss
    from tenfold.llm.unlearn import losses

    def loss() -> torch.Tensor:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return losses.nll(losses.score(losses.labelled(hidden, ids), losses.Head(model.lm_head.weight)))

    return loss


def _stepper(
    model: Any, method: str, ids: torch.Tensor, loss: Callable[[], torch.Tensor]
) -> Callable[[], None]:
    from tenfold import optim

    kinds: dict[str, Any] = {"zo-sgd": optim.ZOSGD, "zo-adam": optim.ZOAdam, "lozo": optim.LOZO}
    parameters = list(model.parameters())
    if method in kinds:
        zo = kinds[method](parameters, lr=1e-6)
        return lambda: zo.step(loss)
    if method == "adamw":
        optimizer: Any = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    else:
        state = "8bit" if method == "sophia-8bit" else torch.float32
        optimizer = optim.Sophia(parameters, lr=1e-6, state_dtype=state)

    def step() -> None:
        if method.startswith("sophia"):  # at every step here, in training at every tenth
            optimizer.estimate_hessian(model, [{"input_ids": ids, "labels": ids}])
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> int:
    """Requests from standard input, answers to standard output."""
    from transformers import LlamaForCausalLM  # noqa: F401  (what an import costs is no part of a step)

    import tenfold.llm.unlearn.losses
    import tenfold.optim  # noqa: F401
    from tenfold.llm._run_probe import answer

    for request in json.load(sys.stdin):
        print(json.dumps(answer(request, probe)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
