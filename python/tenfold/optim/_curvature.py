"""Estimates of the diagonal of curvature for `Sophia`, over batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tenfold import _checks

from . import _sophia_state
from ._predictions import loss_of, sampled_loss
from ._ranks import Ranks
from ._seeds import splitmix64
from ._sophia_state import local
from ._sophia_step import Buckets

if TYPE_CHECKING:
    from .sophia import Sophia

UNIT = 1024.0  # losses are summed over tokens by the thousand: sums of single ones overflow float16


class Request(NamedTuple):
    """The arguments of `Sophia.estimate_hessian`."""

    model: nn.Module
    batches: Iterable[Any]
    predict: Callable[..., Any] | None
    loss: Callable[..., Any] | None
    probes: int
    max_norm: float | None
    group: Any


def gnb(optimizer: Sophia, request: Request) -> int:
    """h^ = B g^2 for the gradient g of the mean loss of sampled labels (Gauss-Newton-Bartlett)."""
    if request.max_norm is not None:
        _checks.real("max_norm", request.max_norm, positive=True)
    ranks = Ranks(request.model, request.group)
    with _gradients_aside(ranks.net, optimizer):
        count = 0.0
        for batch, seed in _numbered(optimizer, ranks, request.batches):
            loss, n = sampled_loss(ranks, batch, seed, request.predict)
            if loss.requires_grad:
                (loss / UNIT).backward()
            count += n
        predictions = _expect_predictions(ranks.sum(count))
        with torch.no_grad():
            ranks.sum_gradients(_params(optimizer))
            buckets = Buckets(optimizer, None, None)
            # the gradients are sums over tokens / UNIT; FSDP2 divided them by the number of ranks
            to_mean = UNIT * ranks.divided_by / predictions
            if request.max_norm is not None:
                norm = to_mean * _norm(optimizer)
                to_mean *= min(1.0, request.max_norm / (norm + 1e-6))
            of_b = 1.0 if optimizer.mode == "liuhong99" else float(predictions)
            bad = _nonfinite(ranks, [e.grad for bucket in buckets for e in bucket.entries])
            buckets.refresh(of_b * to_mean**2, bad)
            _note(optimizer, bad)
    return predictions


def hutchinson(optimizer: Sophia, request: Request) -> int:
    """h^ = E[u * (H u)] of the mean loss, u of independent signs."""
    from tenfold.ops import hutchinson_accumulate_, hutchinson_probe

    ranks = Ranks(request.model, request.group)
    if ranks.sharded:
        expected = "'gnb' or 'empirical_fisher' for a model under FSDP2"
        _checks.fail(RuntimeError, "estimator", expected, "'hutchinson': it has no double backward")
    params = _params(optimizer)
    sums = [torch.zeros_like(p, dtype=_wide(p), requires_grad=False) for p in params]
    count = 0.0
    with _gradients_aside(ranks.net, optimizer):
        for batch, seed in _numbered(optimizer, ranks, request.batches):
            with torch.enable_grad(), _plain_attention():
                loss, n = loss_of(ranks.net, batch, request.loss)
                grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
            live = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
            for k in range(request.probes if live else 0):
                us = hutchinson_probe([params[i].detach() for i in live], seed=seed, streams=live, index=k)
                with _plain_attention():
                    hvps = torch.autograd.grad(
                        [grads[i] for i in live],
                        [params[i] for i in live],
                        us,
                        retain_graph=k + 1 < request.probes,
                        allow_unused=True,
                    )
                used = [(i, u, hv) for i, u, hv in zip(live, us, hvps, strict=True) if hv is not None]
                if used:
                    hutchinson_accumulate_(
                        [sums[i] for i, _, _ in used], [u for _, u, _ in used], [h for _, _, h in used], n
                    )
            del grads, loss
            count += n
        ranks.sum_tensors(sums)
    predictions = _expect_predictions(ranks.sum(count))
    _take_in(optimizer, ranks, params, sums, 1.0 / (predictions * request.probes), predictions)
    return predictions


def empirical_fisher(optimizer: Sophia, request: Request) -> int:
    """h^ = mean over batches of B_i g_i^2, g_i the gradient of the mean loss of batch i."""
    from tenfold.ops import hutchinson_accumulate_

    ranks = Ranks(request.model, request.group)
    params = _params(optimizer)
    sums = [torch.zeros_like(local(p.detach()), dtype=_wide(p)) for p in params]
    count, batches = 0.0, 0
    with _gradients_aside(ranks.net, optimizer):
        for batch, _ in _numbered(optimizer, ranks, request.batches):
            loss, n = loss_of(ranks.net, batch, request.loss)
            (loss * (n / UNIT)).backward()
            together = ranks.sum(n) if ranks.sharded else n  # FSDP2 has added the gradients of all ranks
            factor = (UNIT * ranks.divided_by) ** 2 / together
            present = [i for i, p in enumerate(params) if p.grad is not None]
            squares = [local(params[i].grad.detach()) for i in present]  # type: ignore[union-attr]
            hutchinson_accumulate_([sums[i] for i in present], squares, squares, factor)
            for p in params:
                p.grad = None
            count += n
            batches += 1
    if not ranks.sharded:
        ranks.sum_tensors(sums)
        batches = int(ranks.sum(batches))
    predictions = _expect_predictions(ranks.sum(count))
    _take_in(optimizer, ranks, params, sums, 1.0 / batches, predictions)
    return predictions


ESTIMATE: dict[str, Callable[[Any, Request], int]] = {
    "gnb": gnb,
    "hutchinson": hutchinson,
    "empirical_fisher": empirical_fisher,
}


# -- parts ----------------------------------------------------------------------------------------------


def _params(optimizer: Sophia) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _wide(p: Tensor) -> torch.dtype:
    return torch.float64 if p.dtype == torch.float64 else torch.float32


@contextmanager
def _gradients_aside(net: nn.Module, optimizer: Sophia) -> Iterator[None]:
    """No parameter has a gradient inside; outside, each has the one it had."""
    every = dict.fromkeys([*net.parameters(), *_params(optimizer)])
    kept = [(p, p.grad) for p in every]
    for p in every:
        p.grad = None
    try:
        with torch.enable_grad():
            yield
    finally:
        for p, grad in kept:
            p.grad = grad


def _numbered(optimizer: Sophia, ranks: Ranks, batches: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """Batches on the device of the parameters, each with a seed that no other has."""
    device = optimizer.param_groups[0]["params"][0].device
    refresh = splitmix64(optimizer.seed, optimizer.num_refreshes)
    found = False
    for i, batch in enumerate(batches):
        found = True
        yield to_device(batch, device), splitmix64(refresh, i * ranks.size + ranks.rank)
    if not found:
        _checks.fail(ValueError, "batches", "at least one batch", "none")


def to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict) or hasattr(batch, "items"):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _expect_predictions(count: float) -> int:
    if count <= 0:
        _checks.fail(ValueError, "batches", "at least one position to predict", "none: all are masked")
    return int(count)


def _norm(optimizer: Sophia) -> float:
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in _params(optimizer) if p.grad is not None]
    whole = [n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]
    return float(torch.linalg.vector_norm(torch.stack([n.to(whole[0].device) for n in whole])))


def _nonfinite(ranks: Ranks, tensors: list[Tensor]) -> Tensor | None:
    """[1], 1.0 if some element on some rank is not finite; on the device, not read here."""
    if not tensors:
        return None
    sums = [t.sum(dtype=_wide(t)) * 0 for t in tensors]
    home = sums[0].device
    bad = (torch.stack([s.to(home, torch.float32) for s in sums]).sum() != 0).to(torch.float32).reshape(1)
    return ranks.any(bad) if ranks.sharded else bad


def _note(optimizer: Sophia, bad: Tensor | None) -> None:
    if bad is not None:
        optimizer._stats.skip_refresh(bad)


@torch.no_grad()
def _take_in(
    optimizer: Sophia, ranks: Ranks, params: list[Tensor], sums: list[Tensor], scale: float, predictions: int
) -> None:
    """h <- beta2 h + (1 - beta2) scale sums."""
    from tenfold.ops import sophia_hessian_

    bad = _nonfinite(ranks, sums)
    if optimizer.mode == "liuhong99":
        scale /= predictions  # its h is multiplied by the number of predictions at the step
    beta2_of = {p: group["betas"][1] for group in optimizer.param_groups for p in group["params"]}
    number_of = {p: i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    for p, total in zip(params, sums, strict=True):
        state = _sophia_state.ensure(optimizer, p)
        sophia_hessian_(
            [local(state["hessian"])],
            [total],
            beta2=beta2_of[p],
            scale=scale,
            found_inf=None if bad is None else bad.to(total.device),
            source="hvp",
            probes=[torch.ones_like(total)],
            hessian_scales=[state["hessian_scale"]] if "hessian_scale" in state else None,
            **_sophia_state.rounding_of(optimizer, [number_of[p]]),
        )
    _note(optimizer, bad)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by its formula: the fused kernels have no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
