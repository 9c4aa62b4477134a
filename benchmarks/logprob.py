"""Log-probabilities, label draws and the fused head: from logits, and from hidden states.

The peer "open_unlearning" is the expression that package publishes for the negative log-likelihood of each
sequence: shifted logits made contiguous, transposed, and torch's cross-entropy without reduction.
"torch_chunked" is what a careful user writes by hand, a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .harness import Agreement, Case, Side, Work, Workload, compare_values
from .installed import missing
from .peers import compiled
from .zo import DTYPES, SEED, _backend, _version

BATCH, LENGTH, VOCABULARY, WIDTH = 4, 512, 50_257, 768
HAND = f"written by hand on torch {torch.__version__}"


def _logits(dtype: torch.dtype, device: torch.device, tiny: bool) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and labels [B, T]."""
    length, size = (8, 300) if tiny else (LENGTH, VOCABULARY)
    generator = torch.Generator(device).manual_seed(11)
    logits = torch.randn(BATCH, length, size, device=device, generator=generator).mul_(2).to(dtype)
    return logits, torch.randint(size, (BATCH, length), device=device, generator=generator)


def _published_nll(logits: Tensor, labels: Tensor) -> Tensor:
    shifted = logits[..., :-1, :].contiguous()
    loss = F.cross_entropy(shifted.transpose(-1, -2), labels[..., 1:].contiguous(), reduction="none")
    return loss.sum(dim=-1)


def _chunked_nll(logits: Tensor, labels: Tensor, rows: int = 64) -> Tensor:
    out = []
    for z, y in zip(logits[:, :-1], labels[:, 1:], strict=True):
        pieces = zip(z.split(rows), y.split(rows), strict=True)
        parts = [(a.float().logsumexp(1) - a.gather(1, b[:, None])[:, 0].float()).sum() for a, b in pieces]
        out.append(torch.stack(parts).sum())
    return torch.stack(out)


def _sequence(dtype_name: str, device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import logits_logprob

    dtype = DTYPES[dtype_name]
    logits, labels = _logits(dtype, device, tiny)

    def ours() -> Tensor:
        return -logits_logprob(logits[:, :-1], labels[:, 1:]).logp.sum(dim=1)

    # A sum is about 6000: float32 holds it to 5e-4, in bfloat16 its neighbours lie 32 apart.
    near = 0.05 if dtype == torch.float32 else 64.0
    return Workload(
        ours=Side(
            "tenfold",
            ours,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "logits_logprob", device),
        ),
        others=[
            Side(
                "open_unlearning",
                partial(_published_nll, logits, labels),
                version=f"expression of locuslab/open-unlearning d3d7cf9 on torch {torch.__version__}",
                agree=lambda a, b: compare_values(a, b, near),
            ),
            Side(
                "torch_chunked",
                partial(_chunked_nll, logits, labels),
                version=HAND,
                agree=lambda a, b: compare_values(a, b, 0.05),
            ),
            compiled.side(
                _published_nll,
                lambda f: f(logits, labels),
                lambda a, b: compare_values(a, b, near),
                device,
            ),
        ],
        work=Work(bytes=float(logits.nbytes)),
        keep=lambda result: [result.clone()],
        note=f"NLL of {BATCH} sequences of {logits.shape[1]} tokens from logits in {dtype_name}",
    )


def _same_labels_on_average(ours: Tensor, theirs: Tensor) -> Agreement:
    """Other random numbers: the mean log-probability of the labels must agree within six standard errors."""
    n = ours.numel()
    error = abs(ours.mean().item() - theirs.mean().item())
    tolerance = 6 * ((ours.var().item() + theirs.var().item()) / n) ** 0.5
    return Agreement(error <= tolerance, error, tolerance, "mean log-probability of the labels drawn")


def _sample(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import gnb_sample, logits_logprob

    logits, _ = _logits(torch.float32, device, tiny)
    return Workload(
        ours=Side(
            "tenfold",
            lambda: gnb_sample(logits, seed=SEED).tokens,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "gnb_sample", device),
        ),
        others=[
            Side(
                "torch_categorical",
                lambda: torch.distributions.Categorical(logits=logits).sample(),
                version=f"torch {torch.__version__}",
                agree=_same_labels_on_average,
            )
        ],
        work=Work(bytes=float(logits.nbytes)),
        keep=lambda tokens: logits_logprob(logits, tokens).logp.double(),
        note=f"one label for each of {logits.shape[0] * logits.shape[1]} rows, with its log-probability",
    )


def _liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Side:
    def run() -> list[Tensor]:
        fused = import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
        return _gradients(lambda: fused(hidden, weight, labels, reduction="sum"), [hidden, weight])

    def prepare() -> str | None:
        return missing("liger_kernel") if hidden.is_cuda else "its kernels need a GPU"

    return Side("liger", run, version="liger-kernel", agree=_close, prepare=prepare)


def _gradients(loss: Callable[[], Tensor], operands: list[Tensor]) -> list[Tensor]:
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, operands)]


def _close(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
    """Each of loss, d hidden, d weight relative to its largest entry."""
    scales = [t.abs().max() for t in ours]
    mine, other = ([t / s for t, s in zip(side, scales, strict=True)] for side in (ours, theirs))
    return compare_values(mine, other, 1e-4, "relative")


def _chunked_head(hidden: Tensor, weight: Tensor, labels: Tensor, rows: int = 128) -> list[Tensor]:
    """Three products: the tokens' weights are known beforehand, so a chunk gives its gradient at once."""
    with torch.no_grad():
        loss = hidden.new_zeros(())
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            z = hidden[part] @ weight.T
            lse, y = z.logsumexp(1), labels[part, None]
            loss += (lse - z.gather(1, y)[:, 0]).sum()
            z.sub_(lse[:, None]).exp_()
            z.scatter_add_(1, y, -torch.ones_like(z[:, :1]))
            by_hidden[part] = z @ weight
            by_weight.addmm_(z.T, hidden[part])
    return [loss, by_hidden, by_weight]


def _linear(form: str, device: torch.device, tiny: bool) -> Workload:
    """Sum of log p and its gradient. `form`: "general", weights of tokens known in backward; "known",
    beforehand; "npo", a loss of sequences; "frozen", an unembedding without gradient."""
    from tenfold.ops import linear_logprob, linear_loss

    rows, width, size = (16, 8, 300) if tiny else (BATCH * LENGTH, WIDTH, VOCABULARY)
    generator = torch.Generator(device).manual_seed(12)
    hidden = torch.randn(rows, width, device=device, generator=generator).requires_grad_()
    weight = torch.randn(size, width, device=device, generator=generator).div_(width**0.5)
    weight.requires_grad_(form != "frozen")
    labels = torch.randint(size, (rows,), device=device, generator=generator)
    segments = torch.arange(BATCH, device=device).repeat_interleave(rows // BATCH)
    ones = torch.ones(rows, device=device)
    before = torch.full((BATCH,), rows / BATCH * math.log(size), device=device)
    operands = [hidden] if form == "frozen" else [hidden, weight]

    def whole(nll: Tensor) -> Tensor:
        return -20.0 * F.logsigmoid(0.1 * (nll - before)).mean() if form == "npo" else nll.sum()

    def ours() -> Tensor:
        loss: Tensor
        if form == "known":
            loss = linear_loss(hidden, weight, labels, weights=-ones).loss
        elif form == "npo":
            loss = linear_loss(
                hidden, weight, labels, kind="npo", beta=0.1, ref_nll=before, factor=1 / BATCH,
                segments=segments, num_segments=BATCH,
            ).loss  # fmt: skip
        else:
            loss = -linear_logprob(hidden, weight, labels).logp.sum()
        return loss

    def naive() -> Tensor:
        logits = (hidden @ weight.T).view(BATCH, -1, size)
        loss = F.cross_entropy(logits.transpose(-1, -2), labels.view(BATCH, -1), reduction="none")
        return whole(loss.sum(dim=-1))

    def flat() -> Tensor:
        loss = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
        return whole(loss.view(BATCH, -1).sum(1))

    def peer(name: str, run: Callable[[], Any]) -> Side:
        return Side(name, run, version=HAND, agree=_close)

    others = [
        peer("naive", lambda: _gradients(naive, operands)),
        peer("torch_cross_entropy", lambda: _gradients(flat, operands)),
    ]
    if form in ("general", "known"):
        others.append(peer("torch_chunked", lambda: _chunked_head(hidden, weight, labels)))
        others.append(_liger(hidden, weight, labels))
    products = 2 if form == "frozen" else 3
    return Workload(
        ours=Side(
            "tenfold",
            lambda: _gradients(ours, operands),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "linear_logprob", device),
        ),
        others=others,
        work=Work(
            bytes=float(products * weight.nbytes + 2 * hidden.nbytes),
            flops=2.0 * products * rows * width * size,
        ),
        keep=lambda result: [t.clone() for t in result],
        note=f"hidden [{rows}, {width}], weight [{size}, {width}]: {_FORMS[form]}, forward and backward",
    )


_FORMS = {
    "general": "sum of log p, weights of tokens known in backward",
    "known": "sum of log p, weights of tokens known beforehand",
    "npo": "NPO of the sequences",
    "frozen": "sum of log p, unembedding without gradient",
}


def cases() -> list[Case]:
    """All cases of the family."""
    shape = "b4t512v50257"
    return [
        Case(f"logprob.sequence.f32.{shape}", partial(_sequence, "f32")),
        Case(f"logprob.sequence.bf16.{shape}", partial(_sequence, "bf16")),
        Case(f"logprob.sample.f32.{shape}", _sample),
        Case("logprob.linear.f32.n2048d768v50257", partial(_linear, "general")),
        Case("logprob.linear_loss.f32.n2048d768v50257", partial(_linear, "known")),
        Case("logprob.linear_npo.f32.n2048d768v50257", partial(_linear, "npo")),
        Case("logprob.linear_frozen.f32.n2048d768v50257", partial(_linear, "frozen")),
    ]
