"""The memory and time table: one step of every kind of training, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch

from tenfold.llm import methods
from tenfold.llm.zo_config import ZOConfig
from tenfold.runs import RunFolder

__all__ = ["LABELS", "ROWS", "measure", "requests"]

TINY_MODEL = {"width": 384, "layers": 6, "heads": 6, "vocabulary": 4096}  # 12 million parameters
TINY_BATCH, TINY_LENGTH = 16, 64

ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("none", "inference, one forward", {}),
    ("zo-sgd", "ZO-SGD", {}),
    ("zo-sgd", "ZO-SGD, clean copy of the weights", {"restore": "exact"}),
    ("zo-mmt", "ZO-SGD-MMT", {}),
    ("zo-cons", "ZO-SGD-Cons", {}),
    ("zo-sign", "ZO-SGD-Sign", {}),
    ("zo-adam", "ZO-Adam", {}),
    ("fzoo", "FZOO", {}),
    ("lozo", "LOZO", {}),
    ("zo-muon", "ZO-Muon", {}),
    ("hizoo", "HiZOO", {}),
    ("forward-grad", "Forward-Grad", {}),
    ("sgd", "FO-SGD", {}),
    ("sgd", "FO-SGD, checkpointing", {"checkpointing": True}),
    ("adam", "FO-Adam", {}),
    ("adam", "FO-Adam, checkpointing", {"checkpointing": True}),
)
"""Method, label and settings of each row; those with LoRA are a few of them."""
LORA = ("none", "zo-sgd", "adam")
LABELS = [label for _, label, _ in ROWS]


def measure(config: ZOConfig, folder: RunFolder, made: dict[str, str], tiny: bool) -> list[dict[str, Any]]:
    """Rows of the table, in MiB and milliseconds; kept in the run folder as they are measured.

    Raises:
        RuntimeError: a measuring process failed; the message holds what it said.
    """
    wanted = requests(config, made, tiny)
    saved = folder.load_state("memory")
    answers: list[dict[str, Any]] = list(saved[0]["answers"]) if saved else []
    with folder.progress(len(wanted), "memory, in child processes", done=len(answers)) as progress:
        for answer in _ask([request for _, request in wanted[len(answers) :]]):
            label = wanted[len(answers)][0]["what"]
            if "error" in answer:
                raise RuntimeError(f"memory probe of {label}: {answer['error']}")
            answers.append(answer)
            folder.save_state("memory", {"answers": answers})
            progress.advance(1)
    return [{**row, **_numbers(answer)} for (row, _), answer in zip(wanted, answers, strict=True)]


def requests(
    config: ZOConfig, made: dict[str, str], tiny: bool
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(what the row says, what the probe is asked) for each measurement."""
    chosen = config.optimizers.split(",") if config.optimizers else None
    family = next(iter(made))
    common = _batch(config, family, made, tiny)
    found = []
    for scheme in ("ft", "lora"):
        for name, label, settings in ROWS:
            if (scheme == "lora" and name not in LORA) or (chosen and name not in chosen):
                continue
            row = {"what": label, "scheme": scheme, "optimizer": name}
            request: dict[str, Any] = {
                "scheme": scheme, "optimizer": name, "lr": 1e-6, "eps": 1e-3, "restore": None, "extra": {},
                "checkpointing": False, "num_queries": _queries(name), "rounds": 2,
            }  # fmt: skip
            found.append((row, common | request | settings))
    return found


def _queries(name: str) -> int | None:
    """Memory does not depend on the number of directions; one, or the least that the method takes."""
    return 2 if methods.find(name).queries > 1 else None


def _batch(config: ZOConfig, family: str, made: dict[str, str], tiny: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    common = {"dtype": config.dtype, "device": config.device}
    if tiny:
        model: Any = {"family": "opt" if family == "roberta" else family, **TINY_MODEL}
        rows = torch.randint(5, TINY_MODEL["vocabulary"], (TINY_BATCH, TINY_LENGTH), generator=generator)
        labels = [i % 2 for i in range(TINY_BATCH)]
        return common | {"model": model, "rows": rows.tolist(), "labels": labels, "options": [5, 6],
                         "pad_id": 1}  # fmt: skip
    from tenfold.llm import models, tasks

    tokenizer = models.load_tokenizer(made[family])
    splits = tasks.load(str(config.task), config.data, train=config.train_size, dev=config.dev_size, test=1)
    prompts = tokenizer([example.prompt for example in splits.train]).input_ids
    longest = sorted((ids[-config.max_length :] for ids in prompts), key=len)[-(config.batch_size or 16) :]
    return common | {
        "model": made[family], "rows": longest, "labels": [i % 2 for i in range(len(longest))],
        "options": [longest[-1][-1], longest[-1][0]], "pad_id": tokenizer.pad_token_id,
    }  # fmt: skip


def _ask(wanted: list[dict[str, Any]]) -> Any:
    """Answers one by one, from one process that forks for each request."""
    if not wanted:
        return
    environment = os.environ | {
        "TENFOLD_PROBE_THREADS": str(torch.get_num_threads()),
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20),  # glibc: what is freed above 1 MiB leaves the process at once
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed below)
    process = subprocess.Popen(
        [sys.executable, "-m", "tenfold.llm._run_probe"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(wanted))
        process.stdin.close()
        count = 0
        for line in process.stdout:
            if line.startswith("{"):
                count += 1
                yield json.loads(line)
        if process.wait() or count < len(wanted):
            errors.seek(0)
            said = errors.read()[-2000:]
            raise RuntimeError(f"memory probe ended after {count} of {len(wanted)} measurements:\n{said}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        errors.close()


def _numbers(answer: dict[str, Any]) -> dict[str, Any]:
    peak, ms = max(answer["peaks"]), answer["ms"]
    return {
        "model_mib": answer["loaded"] - answer["before_load"],
        "above_model_mib": peak - answer["loaded"],
        "above_start_mib": peak - answer["before_load"],
        "trainable": answer["trainable"],
        "parameters": answer["parameters"],
        "forwards": ms["forwards"],
        "ms": sum(ms[part] for part in ("forward", "backward", "passes", "rest")),
        **{f"{part}_ms": ms[part] for part in ("forward", "backward", "passes", "rest")},
        "method": answer["method"],
    }
