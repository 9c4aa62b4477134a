"""One fine-tuning run: a model, a task, a scheme, an optimizer and a budget; selection on dev, test once.

    job = Job(key="demo", model="facebook/opt-125m", task="sst2", data="glue/SST-2", optimizer="zo-sgd",
              scheme="ft", lr=1e-6, steps=20_000)
    outcome = run_job(job, folder)            a dictionary, also in folder/results/demo.json

Everything that decides which weights are kept looks at the dev split; the test split is scored once, at the
end, with the weights kept. State goes to the run folder, so that a killed run goes on to the same numbers; a
zeroth-order run writes its log of seeds and scalars (`.zolog`) beside, where the job asks for it.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.llm import linear_probe, methods, models, schemes, tasks, zo_ranks
from tenfold.llm._memory_probe import DeviceMemory, HostMemory
from tenfold.llm.objective import Batch, Objective
from tenfold.llm.training import batch_of_step, pack, unpack
from tenfold.runs import RunFolder
from tenfold.runs.ranks import current

__all__ = ["History", "Job", "check", "run_job", "save_weights"]


@dataclass(frozen=True)
class Job:
    """What one run does. Plain data: it is stored beside the results.

    Attributes:
        key: names files of this run (letters, digits, ``_.-``).
        model: ``"smollm2"``, a folder or a hub id; causal or masked.
        task, data, version: as in :func:`tenfold.llm.tasks.load`.
        scheme, scheme_options: as in :func:`tenfold.llm.schemes.attach`.
        optimizer, lr, eps, num_queries, weight_decay, restore, extra: as in
            :func:`tenfold.llm.methods.make`.
        steps, forwards: the budget: so many steps, or as many as fit into so many loss evaluations (then
            ``steps`` is None).
        looks: how often the dev split is scored during training, besides before it.
        checkpointing: back-propagate with activations computed again.
        train_size, dev_size, test_size: of the splits; None for the protocol's.
        kshot: k examples per class instead (masked models' few-shot sets); None for none.
        calibrate: see :class:`tenfold.llm.objective.Objective`.
        keep: write the trained tensors to checkpoints/KEY.safetensors.
        log: write logs/KEY.zolog (zeroth-order methods).
        score_test: False leaves the test split alone: runs of a sweep choose on dev.
        offload: folder for a working copy of the weights, of which one block at a time is in memory (see
            :mod:`tenfold.llm.offload_task`); empty for a model in memory.
    """

    key: str
    model: str
    task: str
    data: Any = "reviews"
    version: int = 0
    scheme: str = "ft"
    scheme_options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "zo-sgd"
    lr: float = 1e-6
    eps: float = 1e-3
    num_queries: int | None = None
    weight_decay: float = 0.0
    restore: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    forwards: int | None = None
    batch_size: int = 16
    looks: int = 5
    checkpointing: bool = False
    seed: int = 0
    data_seed: int = 0
    train_size: int | None = None
    dev_size: int | None = None
    test_size: int = 1000
    kshot: int | None = None
    max_length: int = 256
    dtype: str = "float32"
    device: str = "cpu"
    calibrate: bool = False
    keep: bool = False
    log: bool = False
    score_test: bool = True
    offload: str = ""


@dataclass
class History:
    """What a run did so far: flat rows per step and per look at dev, and sums."""

    steps: list[dict[str, float]] = field(default_factory=list)
    dev: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    skipped: int = 0
    best_step: int = 0
    best_loss: float = float("inf")
    stopped_early: bool = False


@dataclass
class Running:
    """What the loop below works on: a model in memory."""

    job: Job
    adapted: schemes.Adapted
    objective: Objective
    optimizer: Any
    history: History
    best: dict[str, Tensor] = field(default_factory=dict)
    log: Any = None

    def zo_step(self, batch: Batch) -> tuple[float, Any]:
        """A step without back-propagation: its loss and its record."""
        loss = float(self.optimizer.step(lambda: self.objective.loss(batch)))
        return loss, self.optimizer.last_step

    def remember(self) -> None:
        """Keep the weights as they are: their dev loss is the lowest so far."""
        if self.optimizer is not None:
            self.best = {n: p.detach().clone() for n, p in self.adapted.parameters.items()}

    def choose(self) -> None:
        """Go back to the weights that were kept; no step follows."""
        _put(self.adapted, self.best)
        if self.log is not None:
            self.log.close()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a killed run goes on from, beside the history: plain data and tensors."""
        tensors = {f"theta/{n}": p.detach().clone() for n, p in self.adapted.parameters.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        data = {"optimizer": pack(self.optimizer.state_dict(), tensors)}
        return data, {name: tensor.contiguous() for name, tensor in tensors.items()}

    def save(self, folder: RunFolder) -> None:
        """Write the trained tensors."""
        save_weights(self.adapted, folder.path / "checkpoints" / f"{self.job.key}.safetensors")

    def close(self) -> None:
        """Let go of the model."""
        self.adapted.detach()


def run_job(
    job: Job,
    folder: RunFolder,
    *,
    save_seconds: float = 20.0,
    deadline: float | None = None,
    label: str = "",
) -> dict[str, Any]:
    """Run one job, or give back what an earlier call in the same folder found.

    Args:
        deadline: value of ``time.monotonic()`` past which no further step begins, or None.

    Returns:
        ``job``, ``test`` (loss and figures), ``before`` (the same of the untrained model on dev), ``dev``
        (at the step kept), ``evals`` (one per look), ``best_step``, ``steps``, ``queries`` (loss
        evaluations), ``backwards``, ``skipped``, ``trainable``, ``parameters``, ``seconds``, ``step_ms``
        (forwards, backwards, passes, rest), ``peak_bytes`` (of the whole run, above what the process held
        before the model was loaded), ``peak_method``, ``form``, ``source``, ``sizes`` (examples of each
        split), ``stopped_early`` and ``curve``.

    Raises:
        ValueError: a setting that does not fit model or task; named.
        RuntimeError: losses that are not finite, several steps in a row.
    """
    saved = folder.load_state(job.key)
    if saved is not None and saved[0].get("done"):
        _check_same(job, saved[0]["result"])
        return dict(saved[0]["result"])
    if saved is not None:
        _check_same(job, saved[0])
    check(job)
    _import_all(job)
    memory = DeviceMemory() if job.device == "cuda" else HostMemory()
    memory.settle()
    before = memory.now()
    running: Running
    if job.offload:
        from tenfold.llm import offload_task

        running, source = offload_task.start(job, folder, saved)
    else:
        adapted, objective, source = prepare(job)
        running = Running(job, adapted, objective, None, History())
    objective = running.objective
    memory.reset()
    result = _run(running, folder, saved, save_seconds, deadline, label or job.key)
    method = memory.method.replace("reset before each step", "reset when the model is loaded")
    method += "; of the whole run, evaluations included, above what was held before the model was loaded"
    result |= {"peak_bytes": round((memory.peak() - before) * 2**20), "peak_method": method}
    result |= {"source": source, "sizes": {name: len(rows) for name, rows in objective.examples.items()}}
    running.close()
    folder.save_state(job.key, {"done": True, "result": result})
    _write_result(folder, job, result)
    del running, objective
    gc.collect()
    return result


def _import_all(job: Job) -> None:
    """Import what a run needs, so that the first run's memory does not hold modules that later ones find."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    import tenfold.optim  # noqa: F401

    _warm_up(job.device, getattr(torch, job.dtype))
    models.load_tokenizer(job.model)
    if job.model == models.EMBEDDED:
        return
    try:
        kind = type(AutoConfig.from_pretrained(job.model, trust_remote_code=False))
    except (OSError, ValueError):
        return  # load_model says what is wrong
    for auto in (AutoModelForCausalLM, AutoModelForMaskedLM):
        if kind in auto._model_mapping:
            auto._model_mapping[kind]  # imports the module of the class


@lru_cache(maxsize=1)
def _warm_up(device: str, dtype: torch.dtype) -> None:
    """A step of back-propagation of a model of a few kilobytes: libraries load code at their first use."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "vocab_size": 32,
    }
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        model: Any = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes))
        model = model.to(device=device, dtype=dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.ones(2, 8, dtype=torch.long, device=device)
    model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    optimizer.step()


def prepare(job: Job) -> tuple[schemes.Adapted, Objective, str]:
    """Model with its scheme, objective, and where the examples come from."""
    check(job)
    tokenizer = models.load_tokenizer(job.model)
    model = load_any_model(job.model, getattr(torch, job.dtype)).to(job.device)
    masked = schemes.is_masked(model)
    splits = _splits(job, tokenizer.mask_token if masked else None)
    check_batch_size(job, splits)
    adapted = schemes.attach(model, job.scheme, seed=job.seed, **job.scheme_options)
    objective = Objective(
        adapted, splits, task=job.task, tokenizer=tokenizer, max_length=job.max_length,
        calibrate=job.calibrate,
    )  # fmt: skip
    return adapted, objective, splits.source


def check_batch_size(job: Job, splits: tasks.TaskSplits) -> None:
    """Raise ValueError for a batch larger than the training split."""
    if job.batch_size > len(splits.train):
        raise ValueError(
            f"batch_size: expected at most the {len(splits.train)} training examples, got {job.batch_size}"
        )


def _splits(job: Job, mask_token: str | None) -> tasks.TaskSplits:
    """The job's examples; those of the last few askings are kept, as a table asks for the same many times."""
    sizes: dict[str, Any] = {"test": job.test_size, "version": job.version, "seed": job.data_seed}
    if job.kshot is not None:
        sizes |= {"k": job.kshot}
    else:
        sizes |= {"train": job.train_size, "dev": job.dev_size}
    key = (job.task, str(job.data), mask_token, *sorted(sizes.items()))
    if not isinstance(job.data, str) or key not in _SPLITS:
        load = tasks.load if job.kshot is None else tasks.load_kshot
        found: tasks.TaskSplits = load(job.task, job.data, mask_token=mask_token, **sizes)
        if not isinstance(job.data, str):
            return found
        while len(_SPLITS) >= 4:
            _SPLITS.pop(next(iter(_SPLITS)))
        _SPLITS[key] = found
    return _SPLITS[key]


_SPLITS: dict[Any, tasks.TaskSplits] = {}


def load_any_model(name: str, dtype: torch.dtype) -> Any:
    """A causal or masked language model by name or folder: the configuration tells which."""
    if name != models.EMBEDDED and _is_masked_folder(name):
        from transformers import AutoModelForMaskedLM

        model = models._find(
            name,
            lambda: AutoModelForMaskedLM.from_pretrained(
                name, dtype=dtype, use_safetensors=True, trust_remote_code=False
            ),
        )
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
        model.tie_weights()
        return model.requires_grad_(False).eval()
    return models.load_model(name, dtype=dtype)


def _is_masked_folder(name: str) -> bool:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except ImportError:
        raise
    except Exception:
        return False  # load_model says what is wrong
    named = getattr(config, "architectures", None) or []
    return any(architecture.endswith("ForMaskedLM") for architecture in named)


# -- the loop ------------------------------------------------------------------------------------------------


def _run(
    running: Running, folder: RunFolder, saved: Any, save_seconds: float, deadline: float | None, label: str
) -> dict[str, Any]:
    job = running.job
    kind = methods.find(job.optimizer).kind
    if kind == "probe":
        return _probe(running)
    if not job.offload:
        if (group := current()) is not None:
            zo_ranks.send_job(group, job, running, saved)
        _start(running, folder, saved)
    if not running.history.dev:
        _look(running)
    if kind != "none":
        with _way(kind, job, running.adapted, running.objective):
            _train(running, folder, save_seconds, deadline, label)
    running.choose()
    test = running.objective.score("test") if job.score_test else {}
    if job.keep and kind != "none":
        running.save(folder)
    return _result(running, test)


@contextmanager
def _way(kind: str, job: Job, adapted: schemes.Adapted, objective: Objective) -> Iterator[None]:
    """What forward-mode derivatives and checkpointing need of the model while it is trained."""
    if kind == "forward":
        chosen = adapted.model.config._attn_implementation
        adapted.model.set_attn_implementation("eager")  # fused attention has no forward derivative
        objective.plain = True
        try:
            yield
        finally:
            adapted.model.set_attn_implementation(chosen)
            objective.plain = False
        return
    with schemes.checkpointed(adapted.model, job.checkpointing):
        yield


def _start(running: Running, folder: RunFolder | None, saved: Any) -> None:
    """Give it an optimizer, and the state of an interrupted run if there is one."""
    job, adapted, group = running.job, running.adapted, current()
    extra = dict(job.extra)
    if group is not None:
        queries = job.num_queries or methods.find(job.optimizer).queries
        extra["parallel"] = zo_ranks.way(group, job.restore, queries)
    if methods.find(job.optimizer).kind != "none":
        running.optimizer = methods.make(
            job.optimizer, adapted.parameters, adapted.model, lr=job.lr, eps=job.eps,
            num_queries=job.num_queries, weight_decay=job.weight_decay, seed=job.seed, restore=job.restore,
            extra=extra,
        )  # fmt: skip
    if saved is not None:
        state, tensors = saved
        _put(adapted, _part(tensors, "theta"))
        running.best = _part(tensors, "best")
        running.history = History(**state["history"])
        running.optimizer.load_state_dict(unpack(state["optimizer"], tensors))
    logged = job.log and running.optimizer is not None and methods.find(job.optimizer).kind != "first-order"
    if folder is not None and logged:
        running.log = _open_log(folder.path / "logs" / f"{job.key}.zolog", running)


def _train(
    running: Running, folder: RunFolder, save_seconds: float, deadline: float | None, label: str
) -> None:
    job, history, group = running.job, running.history, current()
    total = job.steps if job.steps is not None else int(job.forwards or 0)
    last_save = time.monotonic()
    with folder.progress(total, label, done=min(total, _done(running))) as progress:
        while _done(running) < total:
            if deadline is not None and time.monotonic() > deadline:
                history.stopped_early = True
                break
            was = _done(running)
            shown = zo_ranks.told(group, lambda: _step(running))
            now = min(total, _done(running))
            if now * job.looks // total > was * job.looks // total:
                _look(running)
                shown["dev loss"] = history.dev[-1]["loss"]
            progress.advance(now - min(total, was), **shown)
            if time.monotonic() - last_save > save_seconds:
                _save(running, folder)
                last_save = time.monotonic()
    zo_ranks.done(group)
    if history.dev[-1]["step"] != len(history.steps):
        _look(running)


def _done(running: Running) -> int:
    history = running.history
    return len(history.steps) if running.job.steps is not None else history.forwards


def _step(running: Running) -> dict[str, float]:
    job, objective, history = running.job, running.objective, running.history
    number = len(history.steps)
    chosen = batch_of_step(len(objective), job.batch_size, job.seed, number)
    chosen = zo_ranks.part(running.optimizer, chosen)
    started = time.perf_counter()
    batch = objective.batch("train", chosen)
    zo = methods.find(job.optimizer).kind != "first-order"
    row = _zo_step(running, batch) if zo else _first_order_step(running, batch)
    seconds = time.perf_counter() - started
    parts = ("forward_seconds", "backward_seconds", "pass_seconds")
    row["rest_seconds"] = max(0.0, seconds - sum(row[part] for part in parts))
    history.seconds += seconds
    history.steps.append(
        {"step": number + 1, "forwards": history.forwards, "train_seconds": history.seconds, **row}
    )
    return {"loss": row["loss"]}


def _zo_step(running: Running, batch: Any) -> dict[str, float]:
    history = running.history
    loss, record = running.zo_step(batch)
    hybrid = int("hybrid" in running.job.extra)  # one more evaluation, with gradients, which is not recorded
    history.forwards += max(1, len(record.losses)) + hybrid
    history.backwards += hybrid
    history.skipped += int(record.skipped)
    return {
        "loss": loss,
        "passes": record.passes,
        "forward_seconds": record.seconds["forward"],
        "backward_seconds": 0.0,
        "pass_seconds": record.seconds["passes"],
    }


def _first_order_step(running: Running, batch: Any) -> dict[str, float]:
    optimizer, history = running.optimizer, running.history
    times = [time.perf_counter()]
    optimizer.zero_grad(set_to_none=True)
    loss = running.objective.loss(batch)
    value = float(loss.detach())
    times.append(time.perf_counter())
    _finite("loss", value, running.job, len(history.steps))
    loss.backward()
    times.append(time.perf_counter())
    optimizer.step()
    times.append(time.perf_counter())
    history.forwards += 1
    history.backwards += 1
    spent = [b - a for a, b in pairwise(times)]
    return {
        "loss": value,
        "passes": 1,
        "forward_seconds": spent[0],
        "backward_seconds": spent[1],
        "pass_seconds": spent[2],
    }


def _finite(name: str, value: float, job: Job, step: int) -> None:
    if not math.isfinite(value):
        raise RuntimeError(
            f"{name}: expected a finite number, got {value} in step {step} of {job.optimizer} with lr "
            f"{job.lr:g}; a smaller learning rate may help"
        )


def _look(running: Running) -> None:
    """Score the dev split and keep the weights of the lowest loss so far."""
    history = running.history
    found = running.objective.score("dev")
    _finite("dev loss", found["loss"], running.job, len(history.steps))
    history.dev.append(
        {
            "step": len(history.steps),
            "forwards": history.forwards,
            "train_seconds": history.seconds,
            **found,
        }
    )
    if found["loss"] < history.best_loss:  # the first one always, as it is finite
        history.best_loss, history.best_step = found["loss"], len(history.steps)
        running.remember()


def _probe(running: Running) -> dict[str, Any]:
    """Linear probing: the regression takes the place of training, dev chooses nothing but is scored too."""
    job, objective = running.job, running.objective
    started = time.perf_counter()
    before = objective.score("dev")
    train, labels = objective.features("train")
    assert objective.word_ids is not None
    probe = linear_probe.fit_cv(train, labels, len(objective.word_ids), seed=job.seed)
    found = {}
    for split in ("dev", "test"):
        features, truth = objective.features(split)
        scores = probe.scores(features)
        found[split] = {
            "loss": float(F.cross_entropy(scores, truth)),
            "accuracy": float((scores.argmax(1) == truth).double().mean()),
        }
    running.history.dev = [{"step": 0, "forwards": 0, "train_seconds": 0.0, **before}]
    running.history.dev.append({"step": 1, "forwards": 0, "train_seconds": 0.0, **found["dev"]})
    running.history.best_step, running.history.best_loss = 1, found["dev"]["loss"]
    running.history.seconds = time.perf_counter() - started
    return _result(running, found["test"]) | {"trainable": probe.size, "penalty": probe.penalty}


def _result(running: Running, test: dict[str, float]) -> dict[str, Any]:
    history, steps = running.history, max(1, len(running.history.steps))

    def each(part: str) -> float:
        return 1e3 * sum(row[part] for row in history.steps) / steps

    kept = next((row for row in history.dev if row["step"] == history.best_step), history.dev[-1])
    return {
        "job": dataclasses.asdict(running.job),
        "test": test,
        "before": _figures(history.dev[0]),
        "dev": _figures(kept),
        "evals": history.dev,
        "best_step": history.best_step,
        "steps": len(history.steps),
        "queries": history.forwards,
        "backwards": history.backwards,
        "skipped": history.skipped,
        "trainable": running.adapted.trainable if running.optimizer is not None else 0,
        "parameters": sum(p.numel() for p in running.adapted.model.parameters()),
        "seconds": history.seconds,
        "step_ms": {
            "forwards": each("forward_seconds"),
            "backwards": each("backward_seconds"),
            "passes": each("pass_seconds"),
            "rest": each("rest_seconds"),
        },
        "form": running.objective.form,
        "stopped_early": history.stopped_early,
        "curve": [{k: row[k] for k in ("step", "forwards", "loss")} for row in history.steps],
    }


def _figures(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if key not in ("step", "forwards", "train_seconds")}


# -- state and files -----------------------------------------------------------------------------------------


def save_weights(adapted: schemes.Adapted, path: Path) -> Path:
    """The trained tensors: an adapter file, for every scheme (see :func:`schemes.load_adapter`)."""
    return schemes.save_adapter(adapted, path)


def _save(running: Running, folder: RunFolder) -> None:
    data, tensors = running.state()
    common = {"done": False, "job": dataclasses.asdict(running.job), "history": vars(running.history)}
    folder.save_state(running.job.key, common | data, tensors)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix + "/"): t for n, t in tensors.items() if n.startswith(prefix + "/")}


@torch.no_grad()
def _put(adapted: schemes.Adapted, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        adapted.parameters[name].copy_(tensor)


def _write_result(folder: RunFolder, job: Job, result: dict[str, Any]) -> None:
    """results/KEY.json: what `run_job` returns, without the loss of every step, and versions and revision."""
    from tenfold.runs.environment import source_revision, versions
    from tenfold.runs.files import write_json

    kept = {key: value for key, value in result.items() if key != "curve"}
    document = {"schema": "tenfold.zo-run/1", "versions": versions(), "git": source_revision(), **kept}
    write_json(folder.path / "results" / f"{job.key}.json", json.loads(json.dumps(document, default=str)))


def _check_same(job: Job, saved: dict[str, Any]) -> None:
    now = json.loads(json.dumps(dataclasses.asdict(job), default=str))
    then = saved["job"]
    differing = [key for key in now if now[key] != then.get(key)]
    if differing:
        got = ", ".join(f"{key}={now[key]!r} (was {then.get(key)!r})" for key in differing)
        raise ValueError(f"job: expected the settings that {job.key} was begun with, got {got}")


def _open_log(path: Path, running: Running) -> Any:
    """A `.zolog` beside the run; of a resumed run it is cut to the steps of the saved state."""
    from tenfold.optim import zolog

    job, adapted = running.job, running.adapted
    if "hybrid" in job.extra:
        return None  # gradients are no scalars
    path.parent.mkdir(parents=True, exist_ok=True)
    done = len(running.history.steps)
    if not path.exists() or not done:
        return zolog.ZOLog.create(path, running.optimizer, adapted.model, overwrite=True)
    cut_log(path, done)
    return zolog.ZOLog.open(path, running.optimizer, adapted.model)


def cut_log(path: Path, steps: int) -> None:
    """Keep the first steps of a log that a killed run left."""
    from tenfold.optim import zolog

    torn = int(zolog.info(path)["torn_bytes"])
    if torn:
        os.truncate(path, path.stat().st_size - torn)
    zolog.truncate(path, steps)


def check(job: Job) -> None:
    """Whether the settings of a job fit each other, before anything is loaded.

    Raises:
        ValueError: they do not; named.
    """
    method = methods.find(job.optimizer)
    if job.scheme not in schemes.SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(schemes.SCHEMES)}, got {job.scheme!r}")
    if method.kind == "probe" and job.scheme != "head":
        raise ValueError(f"scheme: expected head with {job.optimizer}, got {job.scheme!r}")
    if method.kind in ("zo", "first-order", "forward"):
        if (job.steps is None) == (job.forwards is None):
            raise ValueError(f"steps: expected steps or forwards, got {job.steps!r} and {job.forwards!r}")
        for name in ("steps", "forwards", "batch_size", "looks"):
            value = getattr(job, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
    if job.checkpointing and method.kind != "first-order":
        raise ValueError(f"checkpointing: expected back-propagation, got {job.optimizer!r}")
    tasks.find(job.task).check_version(job.version)
    if job.offload:
        from tenfold.llm.offload_task import check as check_offload

        check_offload(job)
