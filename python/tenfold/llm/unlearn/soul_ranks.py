"""The workflow ``soul`` on several processes: micro-batches are dealt out, everything else is done by all.

    torchrun --nproc-per-node 2 -m tenfold run soul --accumulation 4 ...

Rank 0 runs the workflow. When it comes to an unlearning run it sends the others the job, the rows and the
weights to begin with, and all make the same steps: micro-batch i of a step belongs to rank i mod W, and the
gradients are gathered and added in the order of the micro-batches. A sum in another order would be another
number in floating point; in this one the weights are those of one process, bit for bit, however many
processes there are, and a run that was killed goes on with any number of them. Curvature is estimated by all
ranks, and that of rank 0 is taken. That the ranks have not drifted apart is checked: the whole model at the
start of a run, trained weights and the optimizer's states before each save, the weights every
:data:`COMPARE` steps. Evaluation, teaching and influence unlearning are done by rank 0 alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tenfold.llm.unlearn.subject import Subject
from tenfold.runs.ranks import Ranks, current, digest

if TYPE_CHECKING:
    from tenfold.llm.unlearn.soul_config import SoulConfig
    from tenfold.llm.unlearn.trainer import Job

__all__ = [
    "begin", "check", "compare", "follow", "in_turn", "introduce", "receive_state", "send", "share_curvature"
]  # fmt: skip

COMPARE = 50
"""Steps between two comparisons of the weights."""


def check(config: SoulConfig) -> None:
    """Whether the settings of a run are for as many processes as there are.

    Raises:
        ValueError: fewer micro-batches in a step than processes.
    """
    group = current()
    if group is not None and not config.evaluate and int(config.accumulation or 1) < group.size:
        raise ValueError(
            f"accumulation: expected at least {group.size} micro-batches in a step for {group.size} "
            f"processes, got {config.accumulation}"
        )


def introduce(config: SoulConfig, subject: Subject, seed: int = 0) -> None:
    """Rank 0 tells the others which model it has loaded; they load it too. Nothing in one process."""
    group = current()
    if group is None:
        return
    _SENT.clear()
    made = {"model": config.model, "dtype": config.dtype, "device": config.device}
    group.tell(made | {"pad_id": subject.pad_id, "trainable": subject.trainable, "seed": seed})


def follow(group: Ranks) -> None:
    """What every rank but the first does: load the model, then take part in runs until there is no more."""
    from tenfold.llm import models
    from tenfold.llm.unlearn.trainer import Job, train

    told = group.hear()
    if told is None:
        return
    model = models.load_model(told["model"], dtype=getattr(torch, told["dtype"])).to(told["device"])
    subject = Subject(model, told["pad_id"], told["trainable"], seed=told["seed"])
    while (asked := group.hear()) is not None:
        kept = group.share()
        for name, rows in asked["sets"].items():
            subject.take(name, rows, kept.get(name))
        subject.put(group.share())
        train(subject, Job(**asked["job"]))


def send(group: Ranks, subject: Subject, job: Job, saved: Any) -> None:
    """What rank 0 sends before a run: job, rows that the others lack, weights, the state to go on from."""
    sets = {name: known for name, known in subject.known().items() if _SENT.get(name) is not known[0]}
    rows = {name: known[0] for name, known in sets.items()}
    group.tell({"job": dataclasses.asdict(job), "sets": rows})
    group.share({name: kept for name, (_, kept) in sets.items() if kept is not None})
    group.share({name: parameter.detach() for name, parameter in subject.parameters.items()})
    _SENT.update(rows)
    group.tell(None if saved is None else saved[0])
    if saved is not None:
        group.share(saved[1])


_SENT: dict[str, Any] = {}
"""The rows that the others have, by the name of their set."""


def receive_state(group: Ranks) -> Any:
    """The state that rank 0 goes on from, or None."""
    state = group.hear()
    return None if state is None else (state, group.share())


def begin(group: Ranks, subject: Subject) -> None:
    """End the run unless all ranks have the same model, what is not trained (and not sent) included."""
    group.agree("model", digest(subject.model.state_dict()))


def compare(group: Ranks, subject: Subject, optimizer: Any, step: int, saving: bool) -> None:
    """After a step: end the run if the ranks have drifted apart, before such a state is saved.

    Args:
        step: how many are made.
        saving: whether a save follows; what rank 0 says counts.
    """
    if group.rank == 0:
        group.tell(saving)
    else:
        saving = group.hear()
    if not saving and step % COMPARE:
        return
    group.agree(f"weights after step {step}", digest(subject.parameters))
    if saving:
        group.agree(f"states of the optimizer after step {step}", digest(_states(subject, optimizer)))


def share_curvature(group: Ranks, subject: Subject, optimizer: Any) -> None:
    """Put rank 0's curvature in the place of each rank's own: kernels may round otherwise elsewhere."""
    held = {name: t for name, t in _states(subject, optimizer).items() if "/hessian" in name}
    shared = group.share(held if group.rank == 0 else None)
    if group.rank:
        for name, tensor in shared.items():
            held[name].copy_(tensor)


def _states(subject: Subject, optimizer: Any) -> dict[str, torch.Tensor]:
    """Tensors of the optimizer by the names of parameter and state."""
    return {
        f"{name}/{state}": tensor
        for name, parameter in subject.parameters.items()
        for state, tensor in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(tensor, torch.Tensor)
    }


def in_turn(
    group: Ranks, subject: Subject, count: int, micro_batch: Callable[[int], dict[str, float]]
) -> list[dict[str, float]]:
    """Gradients of ``count`` micro-batches in ``.grad``, added in their order; what each returned.

    Args:
        micro_batch: adds the gradient of one to ``.grad``, which is None before.
    """
    parameters = list(subject.parameters.values())
    sums: list[torch.Tensor | None] = [None] * len(parameters)
    told: list[dict[str, float]] = []
    for first in range(0, count, group.size):
        mine = first + group.rank
        parts = micro_batch(mine) if mine < count else {}
        having = group.gather((parts, [p.grad is not None for p in parameters]))
        told += [parts for parts, _ in having[: count - first]]
        for i, parameter in enumerate(parameters):
            holders = [rank for rank, (_, has) in enumerate(having) if has[i]]
            if holders:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parts_of = group.gather_tensor(own)
                parameter.grad = None
                for rank in holders:
                    total = sums[i]
                    sums[i] = parts_of[rank] if total is None else total.add_(parts_of[rank])
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total
    return told
