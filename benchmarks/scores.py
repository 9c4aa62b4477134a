"""Scores of samples and matching of factored gradients, against what data-selection code runs today.

Peers that are no packages are written from the expressions their authors publish: "torch", the scores one
after the other from one softmax, as PyTorch users write them; "deepcore", GradMatch as DeepCore runs it, on
the dense matrix of all last-layer gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing
from .zo import DTYPES, _backend, _version

ROWS, CLASSES = 50_000, 1000
SAMPLES, OUTPUTS, WIDTH, PICKS = 4000, 50, 256, 100


# ---- scores ----------------------------------------------------------------------------------------------


def _logits(dtype: torch.dtype, device: torch.device, tiny: bool) -> tuple[Tensor, Tensor]:
    """A network that is right about two samples in three."""
    rows, classes = (200, 30) if tiny else (ROWS, CLASSES)
    generator = torch.Generator(device).manual_seed(5)
    logits = torch.randn(rows, classes, device=device, generator=generator).mul_(2)
    labels = torch.randint(classes, (rows,), device=device, generator=generator)
    logits[torch.arange(rows, device=device), labels] += 8
    return logits.to(dtype), labels


def _eager(logits: Tensor, labels: Tensor) -> list[Tensor]:
    p = torch.softmax(logits.float(), 1)
    el2n = (p - F.one_hot(labels, p.shape[1])).norm(dim=1)
    loss = F.cross_entropy(logits.float(), labels, reduction="none")
    entropy = -(p * torch.log(p + 1e-30)).sum(1)
    top = p.topk(2, 1).values
    choice = logits.argmax(1)
    correct = (choice == labels).float()
    votes = torch.bincount(choice, minlength=p.shape[1]).float()
    return [el2n, loss, entropy, top[:, 0] - top[:, 1], 1 - top[:, 0], correct, votes]


def _ours(logits: Tensor, labels: Tensor) -> Any:
    from tenfold.ops import score_fused

    return score_fused(logits, labels)


def _kept(found: Any) -> list[Tensor]:
    if isinstance(found, list):
        return found
    values = (found.el2n, found.loss, found.entropy, found.margin, found.least_confidence)
    return [*(v.clone() for v in values), found.correct.float(), found.histogram.float()]


def _scores(dtype_name: str, device: torch.device, tiny: bool) -> Workload:
    logits, labels = _logits(DTYPES[dtype_name], device, tiny)
    compiled: list[Any] = []

    def fused() -> list[Tensor]:
        if not compiled:
            compiled.append(torch.compile(_eager))
        found: list[Tensor] = compiled[0](logits, labels)
        return found

    def near(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values(ours, theirs, 2e-5)

    return Workload(
        ours=Side(
            "tenfold",
            partial(_ours, logits, labels),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "score_fused", device),
        ),
        others=[
            Side("torch", partial(_eager, logits, labels), version=f"torch {torch.__version__}", agree=near),
            Side("torch.compile", fused, version=f"torch {torch.__version__}", agree=near, kind="compiled"),
        ],
        work=Work(bytes=float(logits.nbytes)),
        keep=_kept,
        note=f"EL2N, loss, entropy, margin, least confidence, correctness and votes of {len(labels)} samples",
    )


# ---- gradient matching -----------------------------------------------------------------------------------


def _factors(device: torch.device, tiny: bool) -> tuple[Tensor, Tensor]:
    """Output errors and inputs of the last layer."""
    rows, classes, width = (60, 6, 8) if tiny else (SAMPLES, OUTPUTS, WIDTH)
    generator = torch.Generator(device).manual_seed(6)
    logits = torch.randn(rows, classes, device=device, generator=generator).mul_(2)
    labels = torch.randint(classes, (rows,), device=device, generator=generator)
    errors = torch.softmax(logits, 1) - F.one_hot(labels, classes)
    return errors, torch.randn(rows, width, device=device, generator=generator).relu_()


def _deepcore(errors: Tensor, hidden: Tensor, picks: int, lam: float = 1.0) -> Any:
    """OMP over dense gradients: all projections from all gradients, the system solved anew, for each pick."""
    numpy = import_module("numpy")
    nnls = import_module("scipy.optimize").nnls
    rows, classes, width = *errors.shape, hidden.shape[1]
    repeated = hidden.view(rows, 1, width).repeat(1, classes, 1)
    weights = errors.view(rows, classes, 1).repeat(1, 1, width) * repeated
    gradients = torch.cat([errors, weights.view(rows, -1)], 1).numpy()
    target = gradients.mean(0)
    free = numpy.ones(rows, dtype=bool)
    everyone = numpy.arange(rows)
    chosen: list[int] = []
    residual = target.copy()
    system, right = numpy.zeros((0, 0)), numpy.zeros(0)
    for t in range(picks):
        projections = gradients.dot(residual)
        index = int(everyone[free][numpy.argmax(projections[free])])
        chosen.append(index)
        free[index] = False
        mine = gradients[chosen]
        if t == 0:
            x = projections[index] / mine.dot(mine.T).reshape(1)
            system, right = mine.dot(mine.T) + lam, mine.dot(target)
        else:
            system = mine.dot(mine.T) + lam * numpy.identity(t + 1)
            right = mine.dot(target)
            x = numpy.linalg.lstsq(system, right, rcond=None)[0]
        residual = target - mine.T.dot(x)
    found = torch.zeros(rows, dtype=torch.float64)
    found[chosen] = torch.from_numpy(nnls(system, right)[0]).double()
    return found


def _weights_of(rows: int, found: Any) -> Tensor:
    """One weight per sample, 0 where it was not chosen."""
    if isinstance(found, Tensor):
        return found
    out = torch.zeros(rows, dtype=torch.float64)
    out[found.indices.cpu()] = found.weights.cpu().double()
    return out


def _gradmatch(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import omp_factored

    errors, hidden = _factors(device, tiny)
    picks = 10 if tiny else PICKS
    rows, factor_bytes = errors.shape[0], float(errors.nbytes + hidden.nbytes)

    def near(ours: Tensor, theirs: Tensor) -> Agreement:
        same = bool(((ours > 0) == (theirs > 0)).all())
        found = compare_values([ours], [theirs], 1e-5)
        how = "weights of the same samples" if same else "the samples chosen differ"
        return Agreement(found.agrees and same, found.max_error, 1e-5, how)

    def prepare() -> str | None:
        return missing("scipy") if device.type == "cpu" else "it runs on the CPU"

    def run(ours: Callable[..., Any]) -> Any:
        return ours(errors, hidden, picks)

    return Workload(
        ours=Side(
            "tenfold",
            partial(run, omp_factored),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "omp_factored", device),
        ),
        others=[
            Side(
                "deepcore",
                partial(run, _deepcore),
                version=f"expression of PatrickZH/DeepCore, NumPy {import_module('numpy').__version__}",
                agree=near,
                prepare=prepare,
                fewest=1,
            )
        ],
        work=Work(
            bytes=picks * factor_bytes,
            footprint=factor_bytes,
            flops=2.0 * rows * (errors.shape[1] + hidden.shape[1] + picks / 2) * picks,
        ),
        keep=partial(_weights_of, rows),
        note=f"{picks} of {rows} gradients [{errors.shape[1]}, {hidden.shape[1] + 1}] that match their mean",
    )


def cases() -> list[Case]:
    """The cases of scores; they belong to the family `selection`."""
    return [
        Case("selection.scores.f32.50kx1000", partial(_scores, "f32")),
        Case("selection.scores.bf16.50kx1000", partial(_scores, "bf16")),
        Case("selection.gradmatch.f32.4000x256-k100", _gradmatch),
    ]
