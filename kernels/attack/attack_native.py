"""The compiled token kernels behind the signatures of attack_reference.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import attack_reference

_FEW = 8  # queries that read the table once by themselves; more go through a matrix product
_ROWS = 32  # of gradients likewise
_ROOM = 2**18  # products made at a time, 1 MiB
_QUERIES = 256  # on a GPU likewise: 50 MB of products with a vocabulary of 49,408


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def door(x: Tensor) -> tuple[Any, int]:
    """The module whose kernels serve x, and what its calls end with: the stream, or how many threads."""
    if _on_cuda(x):
        assert _native.cuda is not None
        return _native.cuda, _stream(x)
    return _native.cpu, torch.get_num_threads()


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def simplex_project(p: Tensor, radius: float) -> Tensor:
    """See attack_reference.simplex_project."""
    out = torch.empty_like(p)
    module, last = door(p)
    if len(p):
        module.simplex_project(p.data_ptr(), out.data_ptr(), (*p.shape, DTYPE_CODES[p.dtype]), radius, last)
    return out


def ste_adam_simplex_(
    p: Tensor,
    m: Tensor,
    v: Tensor,
    grad_embeds: Tensor,
    table: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    banned: Tensor | None,
) -> None:
    """See attack_reference.ste_adam_simplex_. Many rows, and a GPU, take torch's matrix product."""
    if not len(p):
        return
    ready = len(p) > _ROWS or _on_cuda(p)
    gradient = attack_reference.times_transposed(grad_embeds, table) if ready else grad_embeds.float()
    numbers = [lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, math.sqrt(1 - beta2**step)]
    shape = (*p.shape, table.shape[1], DTYPE_CODES[table.dtype])
    module, last = door(p)
    states, inputs = [[address(x) for x in part] for part in ((p, m, v), (gradient, table, banned))]
    module.ste_adam_simplex(states, inputs, shape, ready, numbers, last)


def sample_rows(p: Tensor, u: Tensor) -> Tensor:
    """See attack_reference.sample_rows."""
    out = torch.empty(len(p), dtype=torch.int64, device=p.device)
    module, last = door(p)
    if len(p):
        shape = (*p.shape, DTYPE_CODES[p.dtype])
        module.sample_rows(p.data_ptr(), u.data_ptr(), out.data_ptr(), shape, last)
    return out


def nearest_token(
    q: Tensor, table: Tensor, inv_norm: Tensor | None, metric: str, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See attack_reference.nearest_token."""
    q = q.float()
    ids = torch.empty(len(q), dtype=torch.int64, device=q.device)
    scores = torch.empty(len(q), device=q.device)
    if not len(q):
        return ids, scores
    inputs = [address(x) for x in (q, table, inv_norm, mask)]
    out = [ids.data_ptr(), scores.data_ptr()]
    head = (len(q), len(table), table.shape[1], DTYPE_CODES[table.dtype])
    module, last = door(q)
    if _on_cuda(q):
        room = torch.empty(min(len(q), _QUERIES), len(table), device=q.device)
        weights = torch.empty(len(table) if inv_norm is None else 0, device=q.device)
        for first in range(0, len(q), _QUERIES):  # one after the other on the stream, in the same room
            part = q[first : first + _QUERIES]
            module.nearest_token(
                [part.data_ptr(), *inputs[1:]], (len(part), *head[1:]), metric == "cos",
                [ids[first:].data_ptr(), scores[first:].data_ptr()],
                room.data_ptr(), weights.data_ptr(), last,
            )  # fmt: skip
        return ids, scores
    if len(q) <= _FEW:
        module.nearest_token(inputs, head, metric == "cos", out, last)
        return ids, scores
    state = torch.empty(len(q), module.nearest_token_state_bytes // 8, dtype=torch.int64)
    state.view(torch.float32)[:, :2] = -math.inf  # best, next
    state[:, 1] = -1  # where
    width = max(64, _ROOM // len(q) // 64 * 64)
    if table.dtype != torch.float32:
        width = max(64, min(width, _ROOM // table.shape[1] // 64 * 64))
    products = torch.empty(len(q) * min(width, len(table)))
    for first in range(0, len(table), width):
        words = table[first : first + width].float()
        part = products[: len(q) * len(words)].view(len(q), len(words))
        torch.mm(q, words.t(), out=part)
        if metric == "cos":
            weights = attack_reference.inverse_norms(words) if inv_norm is None else inv_norm[first:]
        else:
            weights = 0.5 * torch.linalg.vector_norm(words, dim=1).square()
        module.nearest_token_part(
            inputs, (*head[:1], len(words), *head[2:]), metric == "cos", out, part.data_ptr(),
            weights.data_ptr(), first, state.data_ptr(), last,
        )  # fmt: skip
    module.nearest_token_part(inputs, head, metric == "cos", out, 0, 0, 0, state.data_ptr(), last)
    return ids, scores


def sign_step_(
    delta: Tensor, grad: Tensor, lr: float, eps: float | None, norm: str, origin: Tensor | None
) -> None:
    """See attack_reference.sign_step_."""
    if not delta.numel():
        return
    module, last = door(delta)
    op = 4 if norm == "l2" and eps is not None else 3
    batch, size = (len(delta), delta[0].numel()) if op == 4 else (1, delta.numel())
    module.attack_rows(
        (op, batch, size, DTYPE_CODES[delta.dtype], 0, eps is not None),
        [grad.data_ptr(), address(origin)], [delta.data_ptr()], [], (0, 0, 0), [lr, eps or 0.0], last,
    )  # fmt: skip
