"""Forget and retain term in one call of :func:`tenfold.ops.linear_loss`.

The terms of :mod:`tenfold.llm.unlearn.losses` that are sums over tokens or over sequences: their gradient is
computed while the logits of a chunk are there, and both terms share one visit to the unembedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold import ops
from tenfold.llm.unlearn import losses
from tenfold.llm.unlearn.losses import Head, Rows, Tokens

__all__ = ["FUSED", "loss"]

_SIGN = {"ga": 1.0, "graddiff": 1.0, "teach": -1.0, "po": -1.0, "rl": -1.0}
_KIND = {"npo": "npo", "simnpo": "simnpo", "wga": "power", "satimp": "power"}
FUSED = (*_SIGN, *_KIND)
"""Methods whose forget term this module knows; NPO per sequence, as a batch mean ties sequences together."""


def loss(
    method: str,
    options: dict[str, Any],
    forget: Rows,
    retain: Rows | None,
    head: Head,
    *,
    ref_nll: Tensor | None = None,
    forget_weight: float = 1.0,
    gamma: float = 1.0,
) -> tuple[Tensor, dict[str, float]]:
    """``(forget_weight * forget + gamma * retain, {"forget": ..., "retain": ...})``.

    Args:
        method: of :data:`FUSED`.
        options: the method's numbers, as :mod:`tenfold.llm.unlearn.methods` names them.
        forget: its rows; of PO and random labels those of the set that takes their place.
        retain: rows of the retain term, the mean negative log-likelihood, or None for none.
        ref_nll: s_b [B] of the forget rows before unlearning, for NPO.

    Raises:
        ValueError: a method or option that has no such form.
    """
    if method not in FUSED or options.get("per", "sequence") != "sequence":
        raise ValueError(f"method: expected one of {', '.join(FUSED)}, got {method!r} with {options}")
    first = 0 if retain is None else len(retain.targets)
    parts = [rows for rows in (retain, forget) if rows is not None]
    hidden = torch.cat([rows.hidden for rows in parts])
    targets = torch.cat([rows.targets for rows in parts])
    weights = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    if first:
        weights[:first] = -gamma / first
    arguments: dict[str, Any] = {"weights": weights}
    if method in _SIGN:
        weights[first:] = _SIGN[method] * forget_weight / max(1, len(forget.targets))
    else:
        arguments |= _sequences(method, options, forget, first, forget_weight)
    if method == "npo":
        arguments["ref_nll"] = ref_nll
    found = ops.linear_loss(hidden, head.weight, targets, head.bias, softcap=head.softcap, **arguments)
    before = None if retain is None else Tokens(found.logp[:first], retain.sequence, retain.sequences)
    after = Tokens(found.logp[first:], forget.sequence, forget.sequences)
    shown = {"forget": float(_term(method, options, after, ref_nll))}
    if before is not None:
        shown["retain"] = float(losses.nll(before))
    return found.loss, shown


def _sequences(
    method: str, options: dict[str, Any], forget: Rows, first: int, weight: float
) -> dict[str, Any]:
    """Arguments of linear_loss for a forget term of sequences or of powers."""
    kind = _KIND[method]
    alone = forget.sequence.new_full((first,), -1)
    mean_over = forget.sequences if kind != "power" else max(1, len(forget.targets))
    numbers = {k: v for k, v in options.items() if k in ("beta", "delta")}
    if method == "satimp":
        numbers = {"beta": options["beta1"], "delta": options["beta2"]}
    return {
        "kind": kind, "segments": torch.cat((alone, forget.sequence)), "num_segments": forget.sequences,
        "factor": weight / mean_over, **numbers,
    }  # fmt: skip


def _term(method: str, options: dict[str, Any], tokens: Tokens, ref_nll: Tensor | None) -> Tensor:
    """The forget term of log-probabilities that are there, to be shown."""
    if method in _SIGN:
        return _SIGN[method] * losses.ga(tokens)
    if ref_nll is not None:
        return losses.npo(tokens, ref_nll, **options)
    if method == "simnpo":
        return losses.simnpo(tokens, **options)
    return losses.wga(tokens, **options) if method == "wga" else losses.satimp(tokens, **options)
