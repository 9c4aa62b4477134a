"""The losses of one training step, a function per method, and the variants of MS-DCDA.

Every function has the form ``loss(net, batch, options, run) -> Step``. ``batch`` holds B labelled rows of
each of S sources and rows of the target without labels. What a method adds to the cross-entropy is
multiplied by lambda(p) = 2 / (1 + exp(-10 p)) - 1, p the share of steps done (DANN, arXiv 1505.07818).

MS-DCDA here is a RECONSTRUCTION. Of its paper (arXiv 2408.10235) the abstract was at hand, not the method
section: branches come from MS-MDA, the class-wise term from CAN, the moving weight from DWL. Every such
choice is a field of :class:`tenfold.eeg.options.Options`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold.eeg.network import Discriminator, Network, reverse_gradient
from tenfold.eeg.options import Options
from tenfold.ops import cdd, coral, linear_mmd, lmmd, mmd
from tenfold.ops.mmd import mmd_with_base

__all__ = [
    "METHODS",
    "VARIANTS",
    "Batch",
    "Method",
    "Options",
    "RunState",
    "Step",
    "find",
    "schedule",
    "variant",
]


@dataclass
class Batch:
    """Rows of one step: x [S, B, d], y int64 [S, B], target [M, d], pseudo int64 [M] (-1: none) or None."""

    x: Tensor
    y: Tensor
    target: Tensor
    progress: float
    pseudo: Tensor | None = None


@dataclass
class Step:
    """A loss and what it is made of (detached, for the history)."""

    total: Tensor
    parts: dict[str, Tensor | float]


@dataclass
class RunState:
    """What a method keeps from step to step: its discriminator, and the extremes of DWL's two measures."""

    step: int = 0
    discriminator: Discriminator | None = None
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    discrepancy: Tensor | None = None

    def scaled(self, name: str, value: float) -> float | None:
        """`value` between the least (0) and the largest (1) so far; None while these are equal."""
        low, high = self.extremes.get(name, (value, value))
        low, high = min(low, value), max(high, value)
        self.extremes[name] = (low, high)
        return (value - low) / (high - low) if high > low else None


def schedule(progress: float) -> float:
    """lambda(p) = 2 / (1 + exp(-10 p)) - 1: from 0 to 1."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


# ---- one head --------------------------------------------------------------------------------------------


@dataclass
class _Pooled:
    """All sources through one head, and the target."""

    z: Tensor
    y: Tensor
    ce: Tensor
    target_z: Tensor
    target_logits: Tensor


def _pooled(net: Network, batch: Batch) -> _Pooled:
    rows = batch.x.flatten(0, 1)
    h = net.extractor(torch.cat((rows, batch.target)))
    z, logits = net.head(h[: len(rows)])
    target_z, target_logits = net.head(h[len(rows) :], target=True)
    y = batch.y.flatten()
    return _Pooled(z[0], y, F.cross_entropy(logits[0], y), target_z[0], target_logits[0])


def _with(ce: Tensor, term: Tensor, batch: Batch, options: Options, own: float = 1.0) -> Step:
    scale = schedule(batch.progress) * (own if options.weight is None else options.weight)
    return Step(ce + scale * term, {"ce": ce.detach(), "adapt": term.detach()})


def source_only(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """Cross-entropy on all sources together; the target is not looked at."""
    rows = batch.x.flatten(0, 1)
    ce = F.cross_entropy(net.head(net.extractor(rows))[1][0], batch.y.flatten())
    return Step(ce, {"ce": ce.detach()})


def ddc(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """DDC (arXiv 1412.3474): the distance of the means."""
    f = _pooled(net, batch)
    return _with(f.ce, linear_mmd(f.z, f.target_z), batch, options)


def dan(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """DAN (arXiv 1502.02791): MMD with several Gaussian kernels."""
    f = _pooled(net, batch)
    term, base = mmd_with_base(f.z, f.target_z, kernels=options.kernels, mul=options.mul)
    step = _with(f.ce, term, batch, options)
    step.parts["width"] = base
    return step


def deep_coral(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """Deep CORAL (arXiv 1607.01719): the distance of the covariances."""
    f = _pooled(net, batch)
    return _with(f.ce, coral(f.z, f.target_z), batch, options)


def dann(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """DANN (arXiv 1505.07818): a discriminator of domains behind a gradient reversal."""
    f = _pooled(net, batch)
    if run.discriminator is None:
        raise RuntimeError("run.discriminator: expected a Discriminator for DANN, got None")
    scale = schedule(batch.progress) * (1.0 if options.weight is None else options.weight)
    logit = run.discriminator(reverse_gradient(torch.cat((f.z, f.target_z)), scale)).squeeze(1)
    n, m = len(f.z), len(f.target_z)
    domain = torch.cat((logit.new_ones(n), logit.new_zeros(m)))
    balance = torch.cat((logit.new_full((n,), 0.5 / n), logit.new_full((m,), 0.5 / m)))
    term = F.binary_cross_entropy_with_logits(logit, domain, balance, reduction="sum")
    return Step(f.ce + term, {"ce": f.ce.detach(), "adapt": term.detach()})


def dsan(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """DSAN (Zhu et al. 2020): local MMD, source classes by label, target classes by probability."""
    f = _pooled(net, batch)
    q = f.target_logits.detach().softmax(1)
    term = lmmd(f.z, f.y, f.target_z, q, kernels=options.kernels, mul=options.mul)
    return _with(f.ce, term, batch, options, own=0.5)


# ---- a branch per source ---------------------------------------------------------------------------------


def meernet(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """MEERNet (Chen et al. 2021), which MS-MDA grew out of: the branches without their disagreement."""
    return ms_mda(net, batch, replace(options, agreement=0.0), run)


def ms_mda(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """MS-MDA (arXiv 2107.07740): linear MMD of each branch, and the branches' disagreement on the target."""
    sources, rows = batch.x.shape[:2]
    h = net.extractor(torch.cat((batch.x.flatten(0, 1), batch.target)))
    z, logits = net.head(h[: sources * rows].unflatten(0, (sources, rows)))
    target_z, target_logits = net.head(h[sources * rows :], target=True)
    ce = F.cross_entropy(logits.flatten(0, 1), batch.y.flatten())
    each = linear_mmd(z, target_z)
    _remember(run, each)
    term = each.mean()
    if options.agreement:
        term = term + options.agreement * _disagreement(target_logits.softmax(2))
    return _with(ce, term, batch, options)


def _disagreement(p: Tensor) -> Tensor:
    """mean over branches j of sum over i != j of the mean |p_i - p_j|."""
    return (p[:, None] - p[None]).abs().mean((2, 3)).sum() / len(p)


def _remember(run: RunState, each: Tensor) -> None:
    """A running mean of each branch's discrepancy, for predictions weighted by it."""
    now = each.detach()
    run.discrepancy = now if run.discrepancy is None else 0.9 * run.discrepancy + 0.1 * now


def ms_dcda(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
    """MS-DCDA, reconstructed:

    L = mean_j CE_j + lambda(p) (tau mean_j MMD^2_j + (1 - tau) mean_j (intra_j - beta inter_j))

    over the branches of single sources and the ensemble branch, with target classes from the predictions.
    """
    sources, rows = batch.x.shape[:2]
    h = net.extractor(torch.cat((batch.x.flatten(0, 1), batch.target)))
    pooled, target_h = h[: sources * rows], h[sources * rows :]
    target_z, target_logits = net.head(target_h, target=True)
    pseudo = _pseudo_labels(target_logits, batch, options)
    groups = []  # (rows of the branch, their labels, which branches)
    if options.individual:
        groups.append((pooled.unflatten(0, (sources, rows)), batch.y, slice(0, sources)))
    if options.ensemble:
        groups.append((pooled[None], batch.y.view(1, -1), slice(net.branches - 1, net.branches)))
    terms = [
        _branch_terms(net, own, labels, chosen, target_z[chosen], pseudo, batch, options)
        for own, labels, chosen in groups
    ]
    shares = _shares(options, sources, pooled.device)
    ce, coarse, intra, inter = (
        (torch.cat([t[i] for t in terms]) * shares).sum() for i in range(4)
    )  # fmt: skip
    if options.coarse != "none":
        _remember(run, torch.cat([t[1] for t in terms]))
    tau = _tau(options, run, coarse, pooled, batch.y.flatten(), net.classes)
    fine = options.intra * intra - options.inter * inter
    first, second = (1.0, 1.0) if options.tau == "none" else (tau, 1.0 - tau)
    step = _with(ce, first * coarse + second * fine, batch, options)
    step.parts |= {"mmd": coarse.detach(), "intra": intra.detach(), "inter": inter.detach(), "tau": tau}
    return step


def _pseudo_labels(logits: Tensor, batch: Batch, options: Options) -> Tensor | None:
    """Labels of the target's rows, -1 where they are not to be trusted; None without class-wise terms."""
    if batch.progress < options.warm or not (options.intra or options.inter):
        return None
    if options.labels == "cluster":
        return batch.pseudo
    p = logits.detach()[-1 if options.labels == "ensemble" else slice(None)].softmax(-1)
    p = p if p.ndim == 2 else p.mean(0)
    confidence, label = p.max(1)
    return torch.where(confidence >= options.confidence, label, -1)


def _branch_terms(
    net: Network, own: Tensor, labels: Tensor, chosen: slice, target_z: Tensor, pseudo: Tensor | None,
    batch: Batch, options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Cross-entropy, coarse, intra and inter of each of the J' chosen branches, [J'] each."""
    z, logits = net.head(own, chosen)
    ce = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(len(z), -1).mean(1)
    nothing = torch.zeros_like(ce)
    kernels: dict[str, Any] = {"kernels": options.kernels, "mul": options.mul}
    coarse = nothing
    if options.coarse != "none":
        coarse = linear_mmd(z, target_z) if options.coarse == "linear" else mmd(z, target_z, **kernels)
    if pseudo is None:
        return ce, coarse, nothing, nothing
    both = cdd(
        z.contiguous(), labels, target_z.contiguous(), pseudo.expand(len(z), -1).contiguous(), net.classes,
        min_count=options.min_count, **kernels,
    )  # fmt: skip
    return ce, coarse, both.intra, both.inter


def _shares(options: Options, sources: int, device: torch.device) -> Tensor:
    """The weight of each branch in a mean over branches."""
    if not (options.individual and options.ensemble):
        count = sources if options.individual else 1
        return torch.full((count,), 1.0 / count, device=device)
    if options.share == "halves":
        return torch.tensor([0.5 / sources] * sources + [0.5], device=device)
    return torch.full((sources + 1,), 1.0 / (sources + 1), device=device)


_SETTLING = 10  # steps before DWL's measures are believed


def _tau(options: Options, run: RunState, coarse: Tensor, h: Tensor, y: Tensor, classes: int) -> float:
    """DWL (arXiv 2103.13814): tau = m / (m + 1 - J), m and J scaled by their extremes so far.

    m is the coarse discrepancy (poor alignment raises tau), J = tr(S_b) / tr(S_w) of the common features of
    the sources (poor separation lowers it).
    """
    if options.tau != "dwl":
        return options.tau_value
    m = run.scaled("mmd", float(coarse.detach()))
    j = run.scaled("separation", separation(h.detach(), y, classes))
    if run.step < _SETTLING or m is None or j is None or m + 1.0 - j <= 0.0:
        return options.tau_value
    return m / (m + 1.0 - j)


def separation(h: Tensor, y: Tensor, classes: int) -> float:
    """tr(S_b) / tr(S_w): scatter of class means over scatter within classes; h [n, d], y [n]."""
    onehot = F.one_hot(y, classes).to(h.dtype)
    count = onehot.sum(0)
    centres = onehot.T @ h / count.clamp_min(1.0)[:, None]
    between = (count * (centres - h.mean(0)).square().sum(1)).sum()
    within = (h - centres[y]).square().sum()
    return float(between / within.clamp_min(1e-12))


# ---- the lists -------------------------------------------------------------------------------------------

LossFunction = Callable[[Network, Batch, Options, RunState], Step]


@dataclass(frozen=True)
class Method:
    """A method or a variant of one.

    Attributes:
        title: how tables call it.
        loss: the function of a step.
        heads: "one", "sources" (a branch per source) or "options" (as the options say).
        about: one line.
        options: its choices.
        changed: the options that a variant sets, by name; they win over a run's own.
        settings: what a variant changes of the training, by name.
    """

    title: str
    loss: LossFunction
    heads: str
    about: str
    options: Options = field(default_factory=Options)
    changed: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def with_options(self, options: Options) -> Method:
        """With a run's options, those that the variant sets excepted."""
        return replace(self, options=replace(options, **self.changed))

    def branches(self, sources: int) -> int:
        """Number of branches with that many sources."""
        if self.heads == "one":
            return 1
        if self.heads == "sources":
            return sources
        return sources * self.options.individual + self.options.ensemble


METHODS: dict[str, Method] = {
    "source-only": Method("source-only", source_only, "one", "no adaptation"),
    "ddc": Method("DDC", ddc, "one", "distance of means"),
    "dan": Method("DAN", dan, "one", "MMD, five Gaussian kernels"),
    "coral": Method("Deep CORAL", deep_coral, "one", "distance of covariances"),
    "dann": Method("DANN", dann, "one", "adversarial"),
    "dsan": Method("DSAN", dsan, "one", "local MMD, class by class"),
    "meernet": Method("MEERNet", meernet, "sources", "a branch per source, linear MMD"),
    "ms-mda": Method("MS-MDA", ms_mda, "sources", "MEERNet and agreement of the branches"),
    "ms-dcda": Method(
        "MS-DCDA, reconstructed", ms_dcda, "options", "domains and classes aligned, moving weight"
    ),
}
"""Name -> method."""


def variant(title: str, about: str, settings: dict[str, Any] | None = None, **changed: Any) -> Method:
    """MS-DCDA with other options and settings."""
    made = replace(METHODS["ms-dcda"], title=title, about=about, changed=changed, settings=settings or {})
    return made.with_options(Options())


REVISED: dict[str, Any] = {
    "predict": "ensemble", "labels": "ensemble", "share": "halves", "warm": 0.3, "confidence": 0.8,
}  # fmt: skip
"""Choices under which the class-wise term helps (see tenfold.eeg.study for how they were found)."""

METHODS["ms-dcda-revised"] = variant(
    "MS-DCDA, revised", "ensemble branch decides; class-wise terms late and for confident rows", **REVISED
)

VARIANTS: dict[str, Method] = {
    "no-mmd": variant("without MMD", "class-wise term alone", coarse="none", tau="none"),
    "no-cdd": variant("without CDD", "coarse term alone", intra=0.0, inter=0.0, tau="none"),
    "intra-only": variant("intra only", "no push between classes", inter=0.0),
    "no-ensemble": variant("without ensemble", "branches of single sources alone", ensemble=False),
    "fixed-tau": variant("fixed tau", "weight stays 0.5", tau="fixed"),
}
"""The ablations of MS-DCDA: name -> method."""


def find(name: str) -> Method:
    """The method or variant of that name.

    Raises:
        ValueError: an unknown name.
    """
    known = METHODS | VARIANTS
    return known[_checks.choice("method", name, known)]
