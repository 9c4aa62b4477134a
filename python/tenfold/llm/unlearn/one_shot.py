"""Influence unlearning as a method of the workflow: one step along (H_r + damp I)^-1 v from the taught
weights.

    job = Job(key="iu", method="iu", optimizer="woodfisher", lr=2.0, options={"damp": 0.1})
    history = step(subject, job, folder)

The learning rate of the job is the alpha of the step, its optimizer the solver. The direction does not
depend on alpha: it is found once for a solver and its numbers, and kept in the folder, so that a grid of
alphas costs one solution. Method: Koh and Liang (arXiv 1703.04730); for unlearning Jia et al. (arXiv
2304.04934) and SOUL (arXiv 2404.18239).

Options: ``damp``; ``rows``, retain rows that curvature is made of; ``iterations`` of conjugate gradients;
``scale`` and ``depth`` of LiSSA. Solvers: see :data:`SOLVERS`.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from tenfold.llm.unlearn import curvature, methods
from tenfold.llm.unlearn.subject import Subject
from tenfold.optim.influence import InfluenceDirection, influence_direction
from tenfold.runs import RunFolder

__all__ = ["SOLVERS", "check", "direction", "step"]

SOLVERS = ("diag", "cg", "lissa", "woodfisher", "woodfisher-legacy")
"""diag: mean of the Gauss-Newton-Bartlett estimates of batches of four rows. cg: conjugate gradients on
Hessian-vector products. lissa: the Neumann series. woodfisher: the empirical Fisher matrix of single rows,
exactly. woodfisher-legacy: the recursion in circulation, which is no inverse; for comparison with published
numbers."""

MOST_BYTES = 8 * 2**30
"""Largest memory that the gradients of WoodFisher may take."""

DIAGONAL_ROWS, PRODUCT_ROWS, LOSS_ROWS = 4, 8, 16
"""Rows of a batch: of a diagonal estimate, of a Hessian-vector product, of a gradient."""


def check(job: Any) -> dict[str, Any]:
    """The options of an ``iu`` job with the defaults filled in.

    Raises:
        ValueError: an unknown solver or option, or a number out of range; named.
    """
    if job.optimizer not in SOLVERS:
        raise ValueError(f"solver: expected one of {', '.join(SOLVERS)}, got {job.optimizer!r}")
    known = methods.find("iu").defaults
    unknown = sorted(set(job.options) - set(known))
    if unknown:
        raise ValueError(f"options: expected {sorted(known)} for iu, got {unknown}")
    options = {**known, **job.options}
    for name, value in options.items():
        whole = name in ("rows", "iterations", "depth")
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value <= 0 or (whole and value != int(value)):
            wanted = "a whole number >= 1" if whole else "a number > 0"
            raise ValueError(f"{name}: expected {wanted}, got {value!r}")
        options[name] = int(value) if whole else float(value)
    if job.optimizer == "woodfisher-legacy" and options["damp"] != 1:
        raise ValueError(f"damp: expected 1 with woodfisher-legacy, got {options['damp']:g}")
    return options


def direction(subject: Subject, job: Any, folder: RunFolder | None, label: str = "") -> InfluenceDirection:
    """x of the job's solver at the subject's weights; from the folder where it is there already.

    Raises:
        ValueError: no retain rows; more memory wanted than :data:`MOST_BYTES`.
    """
    options = check(job)
    key = f"{job.key}-direction" if folder is None else _direction_key(job)
    saved = None if folder is None else folder.load_state(key)
    names = list(subject.parameters)
    if saved is not None:
        state, tensors = saved
        return InfluenceDirection([tensors[name].to(subject.device) for name in names], **state["numbers"])
    if "retain" not in subject:
        raise ValueError("retain: expected at least one row for iu, got an empty set")
    chosen = _rows(subject, options["rows"], job.seed)
    solver, given = _solver(subject, job, options, chosen)
    if folder is not None:
        folder.log(f"{label or job.key}: solving ({job.optimizer}, damp {options['damp']:g})")
    second = solver in ("cg", "lissa")
    found = influence_direction(
        subject.model, _batches(subject, "forget"), _batches(subject, "retain"), solver=solver,
        damp=options["damp"], params=list(subject.parameters.values()),
        curvature=[("retain", part) for part in _parts(chosen, PRODUCT_ROWS if second else 1)],
        loss=lambda _, batch: curvature.mean_loss(subject, batch, second and torch.is_grad_enabled()),
        **given,
    )  # fmt: skip
    if solver == "lissa" and found.residual > 10:
        raise RuntimeError(
            f"scale: expected more than half the largest eigenvalue of H + damp I, got "
            f"{options['scale']:g}, with "
            f"which the series has gone away from the solution (residual {found.residual:.3g})"
        )
    if folder is not None:
        numbers = {name: value for name, value in found._asdict().items() if name != "x"}
        if not math.isfinite(numbers["residual"]):
            numbers["residual"] = -1.0  # of the legacy recursion: JSON has no NaN
        tensors = {
            n: t.to(p.dtype).contiguous()
            for (n, p), t in zip(subject.parameters.items(), found.x, strict=True)
        }
        folder.save_state(key, {"numbers": numbers}, tensors)
        # what is read back by a resumed run is what this one goes on with
        return found._replace(x=[tensors[name] for name in names], residual=numbers["residual"])
    return found


def step(subject: Subject, job: Any, folder: RunFolder | None = None, label: str = "") -> dict[str, float]:
    """Make the step from the weights that the subject holds; one flat row of numbers.

    ``forget`` and ``retain`` are mean losses per label after the step, ``*_before`` before it,
    ``*_predicted`` their first-order changes.

    Raises:
        ValueError: as :func:`direction`.
        RuntimeError: a loss after the step is not finite; then the weights are put back.
    """
    started = time.perf_counter()
    found = direction(subject, job, folder, label)
    before = subject.weights()
    with torch.no_grad():
        for parameter, x in zip(subject.parameters.values(), found.x, strict=True):
            parameter.add_(x.to(parameter.dtype), alpha=job.lr)
    after = {name: _mean_nll(subject, name) for name in ("forget", "retain")}
    if not all(map(math.isfinite, after.values())):
        subject.put(before)
        raise RuntimeError(
            f"loss: expected a finite number, got {after} after iu with {job.optimizer} and alpha "
            f"{job.lr:g}; a "
            "smaller alpha or a larger damp may help"
        )
    count = sum(p.numel() for p in subject.parameters.values())
    square = sum(float(x.double().square().sum()) for x in found.x)
    row = {
        "step": 1, "alpha": job.lr, "damp": check(job)["damp"], **after, "forget_before": found.forget_loss,
        "retain_before": found.retain_loss, "forget_predicted": job.lr * found.forget_slope,
        "retain_predicted": job.lr * found.retain_slope, "residual": found.residual,
        "iterations": found.iterations, "converged": int(found.converged), "slope": found.slope,
        "update_rms": job.lr * math.sqrt(square / count), "seconds": time.perf_counter() - started,
    }  # fmt: skip
    return {name: float(value) for name, value in row.items() if name != "residual" or value >= 0}


def _direction_key(job: Any) -> str:
    """Of all jobs that differ in alpha alone."""
    said = "-".join(f"{name}{value:g}" for name, value in sorted(check(job).items()))
    front = "tuning-" if job.key.startswith("tuning-") else ""
    return f"{front}iu-{job.optimizer}-seed{job.seed}-{said}-direction"


def _solver(
    subject: Subject, job: Any, options: dict[str, Any], chosen: list[int]
) -> tuple[str, dict[str, Any]]:
    """Name and options of the solver in :mod:`tenfold.optim.influence`."""
    if job.optimizer == "diag":
        return "diag", {"hessian": _diagonal(subject, chosen, job.seed)}
    if job.optimizer == "cg":
        return "cg", {"maxiter": options["iterations"], "rtol": 1e-3}
    if job.optimizer == "lissa":
        return "lissa", {"scale": options["scale"], "depth": options["depth"], "rtol": 1e-3}
    need = 4 * len(chosen) * sum(p.numel() for p in subject.parameters.values())
    if need > MOST_BYTES:
        raise ValueError(
            f"rows: expected gradients of at most {MOST_BYTES / 2**30:.0f} GiB with {job.optimizer}, got "
            f"{need / 2**30:.1f} GiB for {len(chosen)} rows; take fewer rows, fewer blocks (--trainable "
            f"last-N) or lora"
        )
    return "woodfisher", {"legacy": True} if job.optimizer == "woodfisher-legacy" else {}


def _diagonal(subject: Subject, chosen: list[int], seed: int) -> list[Tensor]:
    """Mean over batches of B times the square of the mean sampled gradient."""
    parameters = list(subject.parameters.values())
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    kept = [p.grad for p in parameters]
    parts = _parts(chosen, DIAGONAL_ROWS)
    for turn, part in enumerate(parts):
        for p in parameters:
            p.grad = None
        count = curvature.accumulate_sampled(subject, [("retain", part)], seed=(seed << 24) + turn)
        for p, into in zip(parameters, sums, strict=True):
            if p.grad is not None:
                into.add_(p.grad.float().square(), alpha=1.0 / (count * len(parts)))
    for p, grad in zip(parameters, kept, strict=True):
        p.grad = grad
    return sums


def _rows(subject: Subject, most: int, seed: int) -> list[int]:
    """Retain rows that curvature is made of."""
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = torch.randperm(subject.count("retain"), generator=generator)[:most].tolist()
    return drawn


def _parts(rows: list[int], size: int) -> list[list[int]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _batches(subject: Subject, name: str) -> list[tuple[str, list[int]]]:
    return [(name, chosen) for chosen in subject.by_length(name, LOSS_ROWS)]


def _mean_nll(subject: Subject, name: str) -> float:
    total, count = subject.nll(name)
    return float(total.sum() / count.sum())
