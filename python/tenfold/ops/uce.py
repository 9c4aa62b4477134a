"""Low-rank edits of matrices: Unified Concept Editing in closed form, and merges of LoRA-like factors.

UCE (Gandikota et al., arXiv 2308.14761) maps rows C_o [m, d] of text states to C_n while C_p [p, d] stay:

    W' = (lam W + s_e V*^T C_o + s_p W C_p^T C_p) M^-1,   M = lam I + s_e C_o^T C_o + s_p C_p^T C_p

With V* = C_n W^T this is W' = W + (W D^T) R, D = C_n - C_o, R = s_e C_o M^-1: neither D nor R depends on W,
so that one Cholesky factor serves every matrix of a network, and D and R are all that need be stored.

These are dense products and a solve, which BLAS and LAPACK (on a GPU cuBLAS and cuSOLVER) do at the
hardware's peak: there is no kernel of our own, and the functions run wherever PyTorch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.kernels.erase import erase_uce

from .zo import _params, _written

TECHNIQUES = ("replace", "tensor")


class UceEdit(NamedTuple):
    """right: R [m, d]. left: D [m, d]. old: C_o [m, d] for technique "tensor", else None. blocks: where each
    prompt's rows begin, and m. pivot: the least pivot of the Cholesky factor, a measure of how well the
    system is posed beside lam."""

    right: Tensor
    left: Tensor
    old: Tensor | None
    blocks: tuple[int, ...]
    pivot: float

    def to(self, dtype: torch.dtype) -> UceEdit:
        """The same edit in another dtype: float32 for storage beside float32 or narrower weights."""
        old = None if self.old is None else self.old.to(dtype)
        return self._replace(right=self.right.to(dtype), left=self.left.to(dtype), old=old)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.nbytes for t in (self.right, self.left, self.old) if t is not None)


class UceChange(NamedTuple):
    """largest: the largest entry of W' - W over all matrices. norms: its Frobenius norm in each.
    Before rounding into W."""

    largest: float
    norms: list[float]


def uce_edit(
    old: Any,
    new: Any,
    keep: Any,
    *,
    lam: float = 1.0,
    erase_scale: float = 0.05,
    retain_scale: float = 0.1,
    keep_weights: Any = None,
    technique: str = "replace",
    block_ptr: Sequence[int] | None = None,
) -> UceEdit:
    """The edit that maps `old` to `new` and leaves `keep`, for any number of matrices; float64.

    Half of the Gram matrix of `keep` is made, in float64: embeddings of CLIP have entries of about 30 beside
    others below 1, and sums of their squares in half precision change weights by as much as they are.

    Args:
        old, new: [m, d] rows to erase and what stands in for them; m = 0 is an edit that changes nothing.
            Equal rows may stand in them more than once.
        keep: [p, d]; p may be 0.
        lam, erase_scale, retain_scale: lam, s_e, s_p, all >= 0.
        keep_weights: [p], >= 0: how often each row of `keep` counts, where equal rows were merged.
        technique: "replace" as above; "tensor" takes away only what is along the old values: V* = V_n - <U,
            V_n> U with V_n = C_n W^T, U = C_o W^T / norm(C_o W^T), for the rows of each prompt.
        block_ptr: where the rows of each prompt begin, from 0, and at its end m; default: one block. Needed
            for "tensor" only.

    Raises:
        TypeError: no floating tensors. ValueError: shapes, scales or blocks that do not fit; values that are
            not finite.
        RuntimeError: the system is singular, as with lam = 0 and too few rows.
    """
    rows = [_rows(name, value) for name, value in (("old", old), ("new", new), ("keep", keep))]
    before, after, kept = rows
    _same_width(before, after, kept)
    lam = _checks.real("lam", lam, at_least=0.0)
    erase_scale = _checks.real("erase_scale", erase_scale, at_least=0.0)
    retain_scale = _checks.real("retain_scale", retain_scale, at_least=0.0)
    _checks.choice("technique", technique, TECHNIQUES)
    blocks = _blocks(block_ptr, len(before))
    weights = None if keep_weights is None else _weights(keep_weights, kept)
    for name, value in (("old", before), ("new", after), ("keep_weights", weights)):
        if value is not None and not bool(value.isfinite().all()):
            _checks.fail(ValueError, name, "finite numbers", "NaN or infinity")
    before, after = before.double(), after.double()
    right, wrong, pivot = erase_uce.factors(before, kept, weights, lam, erase_scale, retain_scale)
    if wrong < 0:  # looked for in the sums: as a pass of its own it took a fifth of the time
        _checks.fail(ValueError, "keep", "finite numbers with finite squares", "NaN, infinity or an overflow")
    if wrong:
        got = f"a smallest pivot of {pivot:.3g}, lam = {lam}"
        _checks.fail(RuntimeError, "lam", "a positive definite system", got)
    return UceEdit(right, after - before, before if technique == "tensor" else None, blocks, pivot)


def uce_apply_(weights: Sequence[Any], edit: UceEdit, *, scale: float = 1.0) -> UceChange:
    """W += scale (W D^T) R for every matrix, in place: arithmetic in float32, float64 for float64 matrices,
    one rounding into W.

    Args:
        weights: matrices [o, d] of any strides and floating dtypes, on one device.
        edit: as `uce_edit` returns it, of any dtype and device.
        scale: how much of the edit.

    Raises:
        TypeError, ValueError: arguments that do not fit; RuntimeError: a leaf that requires grad while
            gradients are enabled. Nothing is written then. Memory that runs out ends the call with what was
            edited by then.
    """
    matrices = _matrices(weights, edit)
    scale = _checks.real("scale", scale)
    _checks.memory(weights=matrices)
    found = [_edit_(w, w, step, scale) for w, step in _steps(matrices, edit)]
    _written(matrices)
    return UceChange(max((most for most, _ in found), default=0.0), [norm for _, norm in found])


def uce_apply(weights: Sequence[Any], edit: UceEdit, *, scale: float = 1.0) -> list[Any]:
    """The edited matrices as new ones: keeping the old is the way back that is exact. As `uce_apply_`."""
    kinds = [_arrays.kind_of(w) for w in _checks.sequence("weights", weights, "matrices")]
    with torch.no_grad():
        matrices = _matrices([_arrays.as_tensor("weights", w, write=False) for w in weights], edit)
    scale = _checks.real("scale", scale)
    out = [torch.empty_like(w, requires_grad=False) for w in matrices]
    for to, (w, step) in zip(out, _steps(matrices, edit), strict=True):
        _edit_(to, w, step, scale)
    return [kind(to) for kind, to in zip(kinds, out, strict=True)]


def lowrank_apply_(
    weights: Sequence[Any], downs: Sequence[Any], ups: Sequence[Any], *, scale: float = 1.0
) -> None:
    """W += scale up @ down for every weight, in place: merges of LoRA and SPM, and with -scale their undoing.

    Arithmetic is float32 (float64 for float64 weights), with one rounding into W. The product is the same in
    both directions, so that a merge that is undone comes back to within an ulp of the larger of W and the
    merged W.

    Args:
        weights: [out, ...] each, of any strides and floating dtype, on one device: linear layers and
            convolutions without groups.
        downs: [r, ...] with the other sides of the weight. ups: [out, r], or [out, r, 1, 1].
        scale: multiplier times alpha / r.

    Raises:
        As `uce_apply_`.
    """
    targets = _params("weights", weights)
    scale = _checks.real("scale", scale)
    pairs = _factors(targets, downs, ups)
    _checks.memory(weights=targets)
    with torch.no_grad():
        for w, (down, up) in zip(targets, pairs, strict=True):
            _merge_(w, down, up, scale)
    _written(targets)


# ---- passes ----------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """An edit in the type of a matrix's math; `product` is D^T R where that takes fewer operations."""

    right: Tensor
    left: Tensor
    old: Tensor | None
    blocks: tuple[int, ...]
    product: Tensor | None


def _wide(w: Tensor) -> torch.dtype:
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _steps(matrices: Sequence[Tensor], edit: UceEdit) -> list[tuple[Tensor, _Step]]:
    made: dict[torch.dtype, _Step] = {}
    for w in matrices:
        wide = _wide(w)
        if wide not in made:
            product = None
            if edit.old is None and 2 * len(edit.right) > edit.right.shape[1]:
                product = (edit.left.double().T @ edit.right.double()).to(w.device, wide)
            old = None if edit.old is None else edit.old.to(w.device, wide)
            right, left = (t.to(w.device, wide) for t in (edit.right, edit.left))
            made[wide] = _Step(right, left, old, edit.blocks, product)
    return [(w, made[_wide(w)]) for w in matrices]


@torch.no_grad()
def _edit_(to: Tensor, w: Tensor, step: _Step, scale: float) -> tuple[float, float]:
    """Writes the edited matrix; (the largest |change|, its Frobenius norm)."""
    most, squares = w.new_zeros((), dtype=torch.float64), w.new_zeros((), dtype=torch.float64)
    chunks = [slice(None)]  # "tensor" needs norms over all rows
    if step.old is None:
        chunks = list(erase_uce.row_chunks(w, len(step.right), _wide(w)))
    for rows in chunks:
        part = w[rows].to(_wide(w))
        if step.product is not None:
            change = part @ step.product
        else:
            change = erase_uce.change_rows(part, step.right, step.left, step.old, step.blocks)
        if scale != 1.0:
            change.mul_(scale)
        if change.numel():
            most = torch.maximum(most, torch.linalg.vector_norm(change, torch.inf).double())
            squares += torch.linalg.vector_norm(change).double().square()
        to[rows] = change.add_(part).to(w.dtype)
    return float(most), float(squares.sqrt())


def _merge_(w: Tensor, down: Tensor, up: Tensor, scale: float) -> None:
    wide = _wide(w)
    right, left = down.flatten(1).to(wide), up.flatten(1).to(wide)
    for rows in erase_uce.row_chunks(w.flatten(1), len(right), wide):
        part = w[rows]
        # The product by itself: begun with W, a library's sums differ between a merge and its undoing.
        change = (left[rows] @ right).mul_(scale).view(part.shape)
        part.copy_(change.add_(part))


# ---- checks ----------------------------------------------------------------------------------------------


def _rows(name: str, value: Any) -> Tensor:
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False)).detach()
    if found.ndim != 2:
        _checks.fail(ValueError, name, "rows [n, d]", f"shape {tuple(found.shape)}")
    return found


def _same_width(old: Tensor, new: Tensor, keep: Tensor) -> None:
    if new.shape != old.shape:
        _checks.fail(ValueError, "new", f"shape {tuple(old.shape)} as old", tuple(new.shape))
    if keep.shape[1] != old.shape[1]:
        _checks.fail(ValueError, "keep", f"{old.shape[1]} columns as old", keep.shape[1])
    for name, value in (("new", new), ("keep", keep)):
        if value.device != old.device:
            _checks.fail(ValueError, name, f"device {old.device} as old", value.device)


def _weights(value: Any, keep: Tensor) -> Tensor:
    found = _checks.tensor("keep_weights", _arrays.as_tensor("keep_weights", value, write=False)).detach()
    if found.shape != keep.shape[:1] or found.device != keep.device:
        expected = f"shape {tuple(keep.shape[:1])} on {keep.device}"
        _checks.fail(ValueError, "keep_weights", expected, f"{tuple(found.shape)} on {found.device}")
    if bool((found < 0).any()):
        _checks.fail(ValueError, "keep_weights", "numbers >= 0", float(found.min()))
    return found


def _blocks(block_ptr: Sequence[int] | None, rows: int) -> tuple[int, ...]:
    if block_ptr is None:
        return (0, rows)
    given = _checks.sequence("block_ptr", block_ptr, "integers")
    found = tuple(_checks.integer(f"block_ptr[{i}]", at, 0, rows) for i, at in enumerate(given))
    if not found or found[0] != 0 or found[-1] != rows or list(found) != sorted(found):
        _checks.fail(ValueError, "block_ptr", f"integers that rise from 0 to {rows}", list(found))
    return found


def _matrices(weights: Sequence[Any], edit: UceEdit) -> list[Tensor]:
    if not isinstance(edit, UceEdit):
        _checks.fail(TypeError, "edit", "a UceEdit", _checks.describe(edit))
    for name in ("right", "left", *(["old"] if edit.old is not None else [])):
        part = _checks.tensor(f"edit.{name}", getattr(edit, name))
        if part.ndim != 2 or part.shape != edit.right.shape:
            _checks.fail(ValueError, f"edit.{name}", "rows [m, d] as edit.right", tuple(part.shape))
    _checks.sequence("edit.blocks", edit.blocks, "integers")
    found = _params("weights", weights)
    width = edit.right.shape[1]
    for i, w in enumerate(found):
        if w.ndim != 2 or w.shape[1] != width:
            _checks.fail(ValueError, f"weights[{i}]", f"shape [out, {width}]", tuple(w.shape))
    return found


def _factors(
    targets: Sequence[Tensor], downs: Sequence[Any], ups: Sequence[Any]
) -> list[tuple[Tensor, Tensor]]:
    _checks.length("downs", _checks.sequence("downs", downs, "tensors"), len(targets), "weights")
    _checks.length("ups", _checks.sequence("ups", ups, "tensors"), len(targets), "weights")
    pairs = []
    for i, (w, down, up) in enumerate(zip(targets, downs, ups, strict=True)):
        if w.ndim < 2:
            _checks.fail(ValueError, f"weights[{i}]", "shape [out, in, ...]", tuple(w.shape))
        right, left = (
            _checks.tensor(f"{name}[{i}]", _arrays.as_tensor(f"{name}[{i}]", t, write=False)).detach()
            for name, t in (("downs", down), ("ups", up))
        )
        rank = right.shape[0] if right.ndim else 0
        if right.shape[1:] != w.shape[1:] or not rank:
            _checks.fail(ValueError, f"downs[{i}]", f"shape [r, *{list(w.shape[1:])}]", tuple(right.shape))
        if left.shape[:2] != (len(w), rank) or left.numel() != len(w) * rank:
            _checks.fail(ValueError, f"ups[{i}]", f"shape [{len(w)}, {rank}]", tuple(left.shape))
        for name, t in (("downs", right), ("ups", left)):
            if t.device != w.device:
                _checks.fail(ValueError, f"{name}[{i}]", f"device {w.device} as weights[{i}]", t.device)
        pairs.append((right, left))
    return pairs


__all__ = ["UceChange", "UceEdit", "lowrank_apply_", "uce_apply", "uce_apply_", "uce_edit"]
