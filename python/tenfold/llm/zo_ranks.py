"""The workflow ``zo`` on several processes: they share the evaluations of the loss and exchange losses alone.

    torchrun --nproc-per-node 2 -m tenfold run zo ...

Rank 0 runs the workflow; before a training run it sends the others the settings, the training rows and the
weights to begin with, then all make the same steps (``parallel=`` of the optimizers):

* ``"query"``, where a step has as many directions as there are processes and its probes are undone exactly:
  each evaluates its share of them on the whole batch. The run is that of one process, bit for bit.
* ``"data"``, else: each evaluates all probes on its share of the batch, and all go on with the means. A mean
  of means rounds otherwise than the mean of the whole batch, so losses differ in their last bits from those
  of one process, and weights by what comes of it.

Evaluation is done by rank 0 alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from tenfold.runs.ranks import Ranks, current

if TYPE_CHECKING:
    from tenfold.llm.engine import Job, Running
    from tenfold.llm.training import Phase, Task
    from tenfold.llm.zo_config import ZOConfig

__all__ = ["check", "done", "follow", "introduce", "part", "send", "send_job", "told", "way"]

T = TypeVar("T")


def way(group: Ranks, restore: str | None, queries: int) -> str:
    """What the processes share out: ``"query"`` or ``"data"``."""
    return "query" if restore != "arithmetic" and queries >= group.size else "data"


def part(optimizer: Any, chosen: list[int]) -> list[int]:
    """Rows of a batch that this process evaluates."""
    group = current()
    if group is None or getattr(optimizer, "parallel", None) != "data":
        return chosen
    return chosen[group.rank :: group.size]


def check(config: ZOConfig) -> None:
    """Whether the settings of a run can be shared by as many processes as there are.

    Raises:
        ValueError: they cannot; named.
    """
    group = current()
    if group is None:
        return
    from tenfold.llm import methods

    method = methods.find(config.optimizer)
    if config.mode == "tables":
        raise ValueError(f"tables: expected none on {group.size} processes, got {config.tables!r}")
    if config.offload:
        raise ValueError(f"offload: expected none on {group.size} processes, got {config.offload!r}")
    if method.kind != "zo":
        raise ValueError(
            f"optimizer: expected a zeroth-order one on {group.size} processes, got {config.optimizer!r}"
        )
    if way(group, config.restore, config.num_queries or method.queries) == "query":
        return
    for name in ("batch_size", *(["full_batch_size"] if config.full_steps else [])):
        size = getattr(config, name)
        if size % group.size:
            raise ValueError(f"{name}: expected a multiple of the {group.size} processes, got {size}")


def introduce(config: ZOConfig, pad_id: int, options: torch.Tensor) -> None:
    """Rank 0 tells the others which model it has loaded; they load it too. Nothing in one process."""
    group = current()
    if group is not None:
        made = {"model": config.model, "dtype": config.dtype, "device": config.device}
        group.tell({"what": "model", **made, "pad_id": pad_id, "options": options})


def send(group: Ranks, task: Task, phase: Phase, saved: Any) -> None:
    """What rank 0 sends before a training run of the embedded default."""
    told: dict[str, Any] = {"phase": dataclasses.asdict(phase), "depth": task.scorer.depth}
    told |= {"names": list(task.parameters), "rows": task.data["train"]}
    with group.working():
        group.tell({"what": "phase", **told})
        group.share({"train": task.kept["train"]} if "train" in task.kept else {})
        group.share({name: parameter.detach() for name, parameter in task.parameters.items()})
        _send_state(group, saved)


def send_job(group: Ranks, job: Job, running: Running, saved: Any) -> None:
    """What rank 0 sends before a run with ``--task``."""
    with group.working():
        group.tell({"what": "job", "job": dataclasses.asdict(job)})
        group.share({name: parameter.detach() for name, parameter in running.adapted.parameters.items()})
        _send_state(group, saved)


def told(group: Ranks | None, step: Callable[[], T]) -> T:
    """Make a step, all processes together."""
    if group is None:
        return step()
    group.tell(True)
    with group.working():
        return step()


def done(group: Ranks | None) -> None:
    """No step follows."""
    if group is not None:
        group.tell(False)


def follow(group: Ranks) -> None:
    """What every rank but the first does, until there is no more to do."""
    made: dict[str, Any] = {}
    while (asked := group.hear()) is not None:
        if asked["what"] == "model":
            made = _load(asked)
        elif not (
            _follow_phase(group, made, asked) if asked["what"] == "phase" else _follow_job(group, asked)
        ):
            return


def _steps(group: Ranks, step: Callable[[], Any]) -> bool:
    """Make steps until rank 0 says that none follows; False if it says that nothing more does, as at the end
    of a run that fails between steps."""
    while more := group.hear():
        step()
    return more is not None


def _load(asked: dict[str, Any]) -> dict[str, Any]:
    from tenfold.llm import models

    model = models.load_model(asked["model"], dtype=getattr(torch, asked["dtype"])).to(asked["device"])
    return {"model": model, **{name: asked[name] for name in ("pad_id", "options")}}


def _follow_phase(group: Ranks, made: dict[str, Any], asked: dict[str, Any]) -> bool:
    from tenfold.llm import training
    from tenfold.llm.scorer import Scorer

    model = made["model"].requires_grad_(False)
    every = dict(model.named_parameters())
    scorer = Scorer(model, made["pad_id"], made["options"], depth=asked["depth"])
    kept = {name: states.to(scorer.device) for name, states in group.share().items()}
    names = asked["names"]
    task = training.Task(scorer, {name: every[name] for name in names}, {"train": asked["rows"]}, kept)
    task.put(group.share())
    phase = training.Phase(**asked["phase"])
    history, _, optimizer = training._start(
        task, dataclasses.replace(phase, select=False), _receive_state(group), group
    )
    return _steps(group, lambda: training._step(task, phase, optimizer, history, len(history.steps)))


def _follow_job(group: Ranks, asked: dict[str, Any]) -> bool:
    from tenfold.llm import engine

    job = dataclasses.replace(engine.Job(**asked["job"]), log=False)
    adapted, objective, _ = engine.prepare(job)
    engine._put(adapted, group.share())
    running = engine.Running(job, adapted, objective, None, engine.History())
    engine._start(running, None, _receive_state(group))
    more = _steps(group, lambda: engine._step(running))
    running.close()
    return more


def _send_state(group: Ranks, saved: Any) -> None:
    group.tell(None if saved is None else saved[0])
    if saved is not None:
        group.share({name: tensor for name, tensor in saved[1].items() if not name.startswith("best/")})


def _receive_state(group: Ranks) -> Any:
    state = group.hear()
    return None if state is None else (state, group.share())
