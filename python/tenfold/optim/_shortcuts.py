"""What the closure computes with a perturbed matrix that never exists as a whole.

A dual probe meets most weights in a few functions: a linear layer, a look-up, a matrix product, and the
log-probability losses of `tenfold.ops`.  Each is computed here from the clean matrix and its direction, a
block of rows at a time in one small buffer, or from the looked-up rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


def _math_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


class Matrix:
    """A matrix [N, K] at the place where it is probed; `weight` is the clean one, which is only read.

    Abstract: each kind of direction makes its own blocks and rows.  Blocks are float32 (float64 for float64),
    not rounded to the dtype of the weight.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def block(self, first: int, out: Tensor) -> None:
        """Write rows [first, first + len(out)) to `out`, in the dtype of the math."""
        raise NotImplementedError

    def rows(self, ids: Tensor) -> Tensor:
        """Rows by number, [..., K] in the dtype of the weight."""
        raise NotImplementedError

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, block) one after the other, all in the same buffer."""
        from tenfold.kernels.dual.linear import BLOCK_BYTES, _scratch

        (n, k), dtype = self.weight.shape, _math_dtype(self.weight)
        device = self.weight.device
        budget = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cuda"])
        height = min(n, max(16, budget // max(1, k * dtype.itemsize) // 16 * 16))
        buffer = _scratch(height * k, dtype, device)
        for first in range(0, n, max(1, height)):
            out = buffer[: min(height, n - first) * k].view(-1, k)
            self.block(first, out)
            yield first, out

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., K] W^T + bias, in the dtype of x."""
        n, k = self.weight.shape
        flat = x.reshape(-1, k).to(_math_dtype(self.weight))
        out = torch.empty(flat.shape[0], n, dtype=x.dtype, device=x.device)
        for first, block in self.blocks():
            part = slice(first, first + len(block))
            product = flat @ block.t()
            out[:, part] = product if bias is None else product.add_(bias[part])
        return out.view(*x.shape[:-1], n)

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., N] W + bias, in the dtype of x."""
        n, k = self.weight.shape
        flat = x.reshape(-1, n).to(_math_dtype(self.weight))
        out = torch.zeros(flat.shape[0], k, dtype=flat.dtype, device=x.device)
        if bias is not None:
            out += bias
        for first, block in self.blocks():
            out.addmm_(flat[:, first : first + len(block)], block)
        return out.to(x.dtype).view(*x.shape[:-1], k)

    def token_logprobs(
        self, core: Callable[..., tuple[Tensor, Tensor]], rows: Tensor, bias: Tensor | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p(targets) and log sum exp, float64, of logits rows W^T + bias; `core` serves each block."""
        parts = []
        target_logit = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
        for first, block in self.blocks():
            local, size = targets - first, len(block)
            shift = None if bias is None else bias[first : first + size]
            logp, lse = core(rows, block, shift, local.clamp(0, size - 1))
            inside = (local >= 0) & (local < size)
            target_logit = torch.where(inside, logp + lse, target_logit)
            parts.append(lse)
        total = torch.stack(parts).logsumexp(dim=0)
        return target_logit - total, total


class PlainMatrix(Matrix):
    """W + coef*z along one plain direction; with `threshold`, only elements of at most that size move."""

    def __init__(
        self,
        weight: Tensor,
        *,
        seed: int,
        stream: int,
        query: int,
        coef: float,
        dist: str,
        z_round: torch.dtype | None,
        threshold: float | None = None,
    ) -> None:
        super().__init__(weight)
        self.direction = (seed, stream, query, dist, z_round)
        self.coef = coef
        self.threshold = threshold
        self.options: Keywords = {
            "seed": seed,
            "stream": stream,
            "queries": [query],
            "coefs": [coef],
            "dist": dist,
            "z_round": z_round,
        }

    def block(self, first: int, out: Tensor) -> None:
        from tenfold.ops.dual import _kernels

        fill = _kernels("zo_linear_perturbed", self.weight.device).fill
        seed, stream, query, dist, z_round = self.direction
        fill(self.weight, first, [out], [self.coef], seed, stream, query, dist, z_round)
        if self.threshold is not None:
            clean = self.weight[first : first + len(out)].to(out.dtype)
            torch.where(clean.abs() <= self.threshold, out, clean, out=out)

    def rows(self, ids: Tensor) -> Tensor:
        from tenfold.ops import zo_embedding_perturbed

        found: Tensor = zo_embedding_perturbed(ids.unsqueeze(0), self.weight, **self.options).squeeze(0)
        if self.threshold is None:
            return found
        clean = self.weight[ids]
        return torch.where(clean.to(_math_dtype(clean)).abs() <= self.threshold, found, clean)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.threshold is not None:
            return super().linear(x, bias)
        from tenfold.ops import zo_linear_perturbed

        flat = x.reshape(1, -1, x.shape[-1])
        out: Tensor = zo_linear_perturbed(flat, self.weight, bias, **self.options)
        return out.view(*x.shape[:-1], self.weight.shape[0])


class LowRankMatrix(Matrix):
    """W + coef * left right^T with factors [N, r] and [K, r]."""

    def __init__(self, weight: Tensor, left: Tensor, right: Tensor, coef: float) -> None:
        super().__init__(weight)
        dtype = _math_dtype(weight)
        self.left, self.right = left.to(dtype), right.to(dtype) * coef

    def block(self, first: int, out: Tensor) -> None:
        part = slice(first, first + len(out))
        torch.mm(self.left[part], self.right.T, out=out)
        out += self.weight[part]

    def rows(self, ids: Tensor) -> Tensor:
        found = self.weight[ids]
        return (found + self.left[ids] @ self.right.T).to(found.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        out = F.linear(x, self.weight, bias)
        moved = (x.to(self.left.dtype) @ self.right) @ self.left.T
        return (out + moved).to(out.dtype)


class View:
    """What a tensor of the closure is: a matrix at its place, or its transpose.

    used: is told how many elements of the perturbed matrix a use has made.
    """

    def __init__(self, matrix: Matrix, flipped: bool, used: Callable[[int], None]) -> None:
        self.matrix = matrix
        self.flipped = flipped
        self.used = used

    def transposed(self) -> View:
        return View(self.matrix, not self.flipped, self.used)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of the matrix, which must not be flipped."""
        self.used(ids.numel() * self.matrix.weight.shape[1])
        return self.matrix.rows(ids)

    def after(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """x @ view + bias; None if that is not for a block-wise product."""
        if not self._takes(x, 0 if not self.flipped else 1):
            return None
        self.used(self.matrix.weight.numel())
        return self.matrix.linear(x, bias) if self.flipped else self.matrix.times(x, bias)

    def before(self, x: Tensor) -> Tensor | None:
        """view @ x for a vector or matrix x."""
        if x.ndim > 2:
            return None
        out = self.transposed().after(x.mT if x.ndim == 2 else x)
        return out.mT if out is not None and x.ndim == 2 else out

    def _takes(self, x: Tensor, dim: int) -> bool:
        weight = self.matrix.weight
        fits = x.ndim >= 1 and x.dtype == weight.dtype and x.shape[-1] == weight.shape[dim]
        return fits and not torch.is_autocast_enabled(x.device.type) and not _wants_grad(x)


def _wants_grad(*values: Any) -> bool:
    return torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in values)


# look(value): the View of a tensor, or None.  swap(value): the value with perturbed copies in it.
Look = Callable[[Any], "View | None"]
Swap = Callable[[Any], Any]


def compute(func: Any, args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Any:
    """The result of func(*args, **kwargs) without a perturbed copy of the matrix, or None: take copies."""
    handler = _handlers().get(func)
    return None if handler is None else handler(args, kwargs, look, swap)


def _linear(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Tensor | None:
    x, weight, bias = _bound(("input", "weight", "bias"), args, kwargs)
    view = look(weight)
    if view is None:
        return None
    return view.transposed().after(swap(x), swap(bias))


def _embedding(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Tensor | None:
    names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    ids, weight, _, max_norm, *_ = _bound(names, args, kwargs)
    return None if max_norm is not None else _rows(look(weight), ids)


def _rows(view: View | None, ids: Tensor) -> Tensor | None:
    if view is None or view.flipped or ids.dtype not in (torch.int64, torch.int32):
        return None
    return view.rows(ids)


def _getitem(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Tensor | None:
    tensor, index = args
    view = look(tensor)
    if view is None or view.flipped:
        return None
    n, device = view.matrix.weight.shape[0], view.matrix.weight.device
    if isinstance(index, slice):
        ids = torch.arange(n, device=device)[index]
    elif isinstance(index, int) and not isinstance(index, bool):
        ids = torch.tensor(index, device=device)
    elif isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32):
        ids = index.to(device)
    else:
        return None
    return _rows(view, torch.where(ids < 0, ids + n, ids))


def _index_select(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Tensor | None:
    tensor, dim, index = _bound(("input", "dim", "index"), args, kwargs)
    return _rows(look(tensor), index) if dim in (0, -2) else None


def _matmul(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Tensor | None:
    if len(args) != 2 or kwargs:
        return None
    return _product(args[0], args[1], look, swap)


def _reversed_matmul(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Tensor | None:
    return _product(args[1], args[0], look, swap)


def _product(a: Any, b: Any, look: Look, swap: Swap) -> Tensor | None:
    view = look(b)
    if view is not None:
        return view.after(swap(a))
    view = look(a)
    return None if view is None else view.before(swap(b))


def _addmm(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Tensor | None:
    if len(args) != 3 or kwargs:
        return None
    view = look(args[2])
    if view is None or args[0].ndim != 1:
        return None
    return view.after(swap(args[1]), swap(args[0]))


def _losses(op: str) -> Callable[[Arguments, Keywords, Look, Swap], Any]:
    """option_loss and token_logprobs: blocks of the vocabulary, joined."""

    def handler(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Any:
        view = look(args[1])
        if view is None or view.flipped or kwargs:
            return None
        from tenfold.kernels.logprob import losses, options
        from tenfold.ops import logprob

        hidden: Tensor = swap(args[0])
        bias: Tensor | None = swap(args[2])
        rest = [swap(value) for value in args[3:]]
        if _wants_grad(hidden, bias):
            return None
        device, weight = hidden.device, view.matrix.weight
        view.used(weight.numel())
        backend = logprob._core(op, device)

        def core(rows: Tensor, _: Tensor, shift: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
            return view.matrix.token_logprobs(backend, rows, shift, targets)

        with torch.autocast(device.type, enabled=False), torch.no_grad():
            if op == "option_loss":
                return losses.option_loss(core, hidden, weight, bias, *rest)
            options.check_tokens("targets", rest[0], weight.shape[0])
            logp, lse = core(hidden, weight, bias, rest[0])
            return logp.to(logprob._math_dtype(hidden, weight, bias)), lse

    return handler


def _verbalizer(args: Arguments, kwargs: Keywords, look: Look, swap: Swap) -> Any:
    """The same loss, from the rows of the label words."""
    hidden, weight, token_ids, labels, bias = args
    view = look(weight)
    if view is None or view.flipped or _wants_grad(hidden):
        return None
    from tenfold.kernels.logprob import options

    options.check_tokens("token_ids", token_ids, weight.shape[0])
    with torch.no_grad():
        bias = swap(bias)
        words = torch.arange(token_ids.shape[0], device=token_ids.device)
        shift = None if bias is None else bias[token_ids]
        rows = view.rows(token_ids)
        return torch.ops.tenfold.verbalizer_loss(swap(hidden), rows, words, labels, shift)


def _bound(names: tuple[str, ...], args: Arguments, kwargs: Keywords) -> tuple[Any, ...]:
    """Arguments in the order of `names`, None where there is none."""
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return tuple(given.get(name) for name in names)


_HANDLERS: dict[Any, Any] = {}


def _handlers() -> dict[Any, Any]:
    if not _HANDLERS:
        import tenfold.ops  # noqa: F401  (defines the ops of torch.ops.tenfold)

        ours = torch.ops.tenfold
        _HANDLERS.update(
            {
                F.linear: _linear,
                F.embedding: _embedding,
                Tensor.__getitem__: _getitem,
                torch.index_select: _index_select,
                Tensor.index_select: _index_select,
                torch.matmul: _matmul,
                Tensor.matmul: _matmul,
                Tensor.__matmul__: _matmul,
                Tensor.__rmatmul__: _reversed_matmul,
                torch.mm: _matmul,
                Tensor.mm: _matmul,
                torch.addmm: _addmm,
                ours.option_loss: _losses("option_loss"),
                ours.token_logprobs: _losses("token_logprobs"),
                ours.verbalizer_loss: _verbalizer,
            }
        )
    return _HANDLERS


# ---- views of a weight that name no new values -------------------------------------------------------------


def alias(func: Any, args: Arguments, kwargs: Keywords) -> tuple[Tensor, bool] | None:
    """The clean view that func(tensor, ...) stands for, and whether it is the transpose; or None.

    Nothing is computed: a later use of the view is what a probe has to perturb.
    """
    if not args or kwargs or not isinstance(args[0], Tensor):
        return None
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    tensor, rest = args[0].detach(), args[1:]
    if name in ("detach", "data") and not rest:
        return tensor, False
    same = {"contiguous": tensor.is_contiguous(), "float": tensor.dtype == torch.float32}
    if same.get(name) and not rest:
        return tensor, False
    if name == "to" and len(rest) == 1 and rest[0] in (tensor.dtype, tensor.device):
        return tensor, False
    if tensor.ndim != 2:
        return None
    swapped = len(rest) == 2 and all(isinstance(d, int) for d in rest) and {d % 2 for d in rest} == {0, 1}
    if (name in ("t", "T", "mT") and not rest) or (name in ("transpose", "swapaxes") and swapped):
        return tensor.t(), True
    return None
