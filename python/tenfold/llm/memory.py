"""Peak memory of inference, a zeroth-order step and back-propagation, side by side on the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from tenfold.llm._memory_probe import MODES
from tenfold.llm.prompts import Encoded
from tenfold.runs import RunFolder

LABELS = {
    "forward": "Inference (one forward)",
    "zo": "Zeroth-order step",
    "adam": "Back-propagation, Adam",
    "adam-ckpt": "Back-propagation, Adam,\nactivation checkpointing",
}


class Measured(NamedTuple):
    """One mode, all in MiB except seconds: peak above the loaded model, and above the process before
    loading."""

    mode: str
    above_model: float
    above_start: float
    weights: float
    spread: float
    seconds: float
    method: str


def measure(folder: RunFolder, request: dict[str, Any], modes: Sequence[str] = MODES) -> list[Measured]:
    """Run every mode in a child process of its own, one after the other; answers are kept for ``--resume``.

    A mode's peak is the largest of its ``rounds`` steps: Adam holds its moments from the first step on, so
    its second step is the one that counts.

    Args:
        request: what :func:`tenfold.llm._memory_probe.probe` reads: ``model``, ``dtype``, ``device``,
            ``rows``, ``labels``, ``pad_id``, ``options``, ``optimizer``, ``eps``, ``restore``, ``rounds``.

    Raises:
        RuntimeError: a child failed; the message holds the end of its error output.
    """
    saved = folder.load_state("memory")
    answers: dict[str, Any] = saved[0] if saved else {}
    with folder.progress(len(modes), "memory, in child processes", done=len(answers)) as progress:
        for mode in modes:
            if mode not in answers:
                answers[mode] = _ask(mode, request)
                folder.save_state("memory", answers)
                progress.advance(1)
    return [_summary(answers[mode]) for mode in modes]


def longest(data: Encoded, count: int) -> tuple[list[list[int]], list[int]]:
    """The ``count`` longest prompts and their labels: the batch that needs the most memory."""
    chosen = sorted(range(len(data)), key=lambda i: -len(data.rows[i]))[:count]
    return [data.rows[i] for i in chosen], [int(data.labels[i]) for i in chosen]


def _ask(mode: str, request: dict[str, Any]) -> dict[str, Any]:
    environment = os.environ | {
        "TENFOLD_PROBE_THREADS": str(torch.get_num_threads()),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),  # glibc: what is freed above 1 MiB leaves the process at once
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tenfold.llm._memory_probe", mode],
        input=json.dumps(request), capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(
            f"memory probe {mode} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}"
        )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _summary(answer: dict[str, Any]) -> Measured:
    peak = max(answer["peaks"])
    return Measured(
        mode=answer["mode"],
        above_model=peak - answer["loaded"],
        above_start=peak - answer["before_load"],
        weights=answer["loaded"] - answer["before_load"],
        spread=abs(answer["peaks"][-1] - answer["peaks"][0]),
        seconds=min(answer["seconds"]),
        method=answer["method"],
    )
