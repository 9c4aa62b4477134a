"""Layers with perturbed weights that are read and never written: the probes of a zeroth-order step for free.

`zo_linear_perturbed` and `zo_embedding_perturbed` give what a layer would give if its weights were W + c z,
with z (the direction of `zo_perturb_`, bit for bit) made on the way into the product. Restoring is exact
because nothing was changed, no pass over the weights is needed, and two probes, or many, run as one batch.

Methods: the two-point probes of MeZO, Malladi et al. (arXiv 2305.17333), evaluated together as in ZO2
(arXiv 2503.12668); many one-sided probes at once as in FZOO (arXiv 2506.09034).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend, forced_backend, why_not

from .zo import DISTRIBUTIONS, _register, _signed, _unsigned

MODES = ("split", "fold")
_HALVES = (torch.bfloat16, torch.float16)

_ALL = ("cpu", "cuda", "triton", "reference")
OPS |= dict.fromkeys(("zo_linear_perturbed", "zo_embedding_perturbed"), _ALL)

# ---- the dispatcher's side --------------------------------------------------------------------------------
# A stream of -1 means that the weight, or the bias, is used as it is.

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_PROBES = "SymInt[] queries, float[] coefs, str dist"
for _schema in (
    "zo_linear_perturbed(Tensor x, Tensor weight, Tensor? bias, SymInt seed, SymInt stream, "
    f"SymInt bias_stream, {_PROBES}, bool fold, ScalarType? z_round, ScalarType out_dtype) -> Tensor",
    "zo_embedding_perturbed(Tensor ids, Tensor weight, SymInt seed, SymInt stream, "
    f"{_PROBES}, ScalarType? z_round) -> Tensor",
):
    _LIBRARY.define(_schema)


def _kernels(op: str, device: torch.device, few: bool = False) -> Any:
    """The module that implements `op` for the chosen backend; all share their signatures.

    With `few` rows of input a GPU takes the fused Triton kernel where nothing else is forced: it reads W once
    and writes nothing but the result.
    """
    backend = chosen_backend(op, device.type)
    if few and backend == "cuda" and forced_backend() is None and why_not("triton", "cuda") is None:
        backend = "triton"
    if backend == "reference":
        from tenfold.kernels.dual import dual_reference as module
    elif backend == "triton":
        from tenfold.kernels.dual import dual_triton as module
    else:
        from tenfold.kernels.dual import dual_native as module
    return module


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: int,
    stream: int,
    bias_stream: int,
    queries: list[int],
    coefs: list[float],
    dist: str,
    fold: bool,
    z_round: torch.dtype | None,
    out_dtype: torch.dtype,
) -> Tensor:
    from tenfold.kernels.dual.linear import few_rows

    _linear_shapes(x, weight, bias)
    _copies("queries", queries, x)
    _copies("coefs", coefs, x)
    _checks.choice("dist", dist, DISTRIBUTIONS)
    kernels = _kernels("zo_linear_perturbed", x.device, few_rows(x, weight))
    with torch.autocast(x.device.type, enabled=False), torch.no_grad():
        out: Tensor = kernels.linear(
            x,
            weight,
            bias,
            _unsigned(seed),
            None if stream < 0 else stream,
            None if bias_stream < 0 else bias_stream,
            queries,
            coefs,
            dist,
            fold,
            z_round,
            out_dtype,
        )
    return out


def _linear_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, seed: int, stream: int, bias_stream: int, *rest: Any
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=rest[-1])


def _embedding(
    ids: Tensor,
    weight: Tensor,
    seed: int,
    stream: int,
    queries: list[int],
    coefs: list[float],
    dist: str,
    z_round: torch.dtype | None,
) -> Tensor:
    from tenfold.kernels.dual.embedding import embedding

    _embedding_shapes(ids, weight)
    _copies("queries", queries, ids)
    _copies("coefs", coefs, ids)
    _checks.choice("dist", dist, DISTRIBUTIONS)
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= weight.shape[0]:
            got = low if low < 0 else high
            raise IndexError(f"ids: expected integers in [0, {weight.shape[0]}), got {got}")
    kernels = _kernels("zo_embedding_perturbed", weight.device)
    with torch.no_grad():
        return embedding(kernels.embed, ids, weight, _unsigned(seed), stream, queries, coefs, dist, z_round)


def _embedding_fake(ids: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return weight.new_empty((*ids.shape, weight.shape[1]))


_register("zo_linear_perturbed", _linear, _linear_fake)
_register("zo_embedding_perturbed", _embedding, _embedding_fake)


# ---- the public side --------------------------------------------------------------------------------------


def zo_linear_perturbed(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    seed: int,
    queries: Sequence[int],
    coefs: Sequence[float],
    stream: int | None = 0,
    bias_stream: int | None = None,
    dist: str = "gaussian",
    mode: str | None = None,
    z_round: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """y[p] = x[p] (W + c_p Z_p)^T + (b + c_p z_p), a linear layer with P perturbed copies of its weights.

    Z_p is the direction (seed, stream, queries[p]) and z_p that of bias_stream: the same bits that
    `zo_perturb_` adds. W and b are read and never written. Copies that share a query share the work of making
    it, so that the pair +eps, -eps costs one direction.

    Args:
        x: [P, ..., K], one input per copy, in the dtype of the weight. Any number of dimensions between.
        weight: [N, K], float32, bfloat16, float16 or float64, any strides (tied weights may be passed to
            several calls). NumPy and CuPy arrays are taken as they are.
        bias: [N] in the dtype of the weight, or None.
        seed: in [0, 2^64).
        queries: P integers in [0, 2^24).
        coefs: P finite numbers; 0 gives the plain layer.
        stream, bias_stream: in [0, 2^32), or None for weights (a bias) that are used as they are.
        dist: the distribution of z, as for `zo_perturb_`.
        mode: "fold" rounds W + c Z to the dtype of the weight before the product: what perturbing in place
            would do. "split" keeps c Z apart from the rounding of W, in float32 on the CPU: in half precision
            folding loses most of a small c Z. Default: "split" for bfloat16 and float16, "fold" for the rest
            (on the CPU both are the same for float32 and float64).
        z_round: as for `zo_perturb_`.
        out_dtype: dtype of the result, default that of x; float32 keeps what "split" has preserved.

    Returns:
        [P, ..., N] in `out_dtype`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype or device, or out of range.
        RuntimeError: gradients are enabled and an input requires one (there is no backward), or a forced
            backend cannot run.

    Autocast does not apply: the product is done in the dtypes given.
    """
    kind = _arrays.kind_of(x)
    x = _checks.tensor("x", _arrays.as_tensor("x", x, write=False))
    weight = _checks.tensor("weight", _arrays.as_tensor("weight", weight, write=False))
    if bias is not None:
        bias = _checks.tensor("bias", _arrays.as_tensor("bias", bias, write=False))
    _linear_shapes(x, weight, bias)
    _inference_only(x=x, weight=weight, bias=bias)
    queries, coefs = _probes(queries, coefs, x, weight)
    chosen = "split" if weight.dtype in _HALVES else "fold"
    mode = chosen if mode is None else _checks.choice("mode", mode, MODES)
    return kind(
        torch.ops.tenfold.zo_linear_perturbed(
            x,
            weight,
            bias,
            _signed(_checks.seed("seed", seed)),
            -1 if stream is None else _checks.stream("stream", stream),
            -1 if bias_stream is None else _checks.stream("bias_stream", bias_stream),
            queries,
            coefs,
            _checks.choice("dist", dist, DISTRIBUTIONS),
            mode == "fold",
            _z_round(z_round),
            x.dtype if out_dtype is None else _checks.dtype("out_dtype", out_dtype),
        )
    )


def zo_linear_dual(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    seed: int,
    stream: int | None,
    eps: float,
    query: int | Sequence[int] = 0,
    bias_stream: int | None = None,
    dist: str = "gaussian",
    mode: str | None = None,
    z_round: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Any:
    """Both probes of a linear layer at once: y[0] with W + eps Z, y[1] with W - eps Z.

    Args:
        x: [2, ..., K]; with a list of q queries [2q, ..., K], copies 2i and 2i + 1 with +eps and -eps of
            queries[i].
        eps: perturbation scale, > 0.

    The rest of the arguments, the result and the errors are those of `zo_linear_perturbed`.
    """
    queries, coefs = _two_sided(query, eps, "x", x, weight)
    return zo_linear_perturbed(
        x,
        weight,
        bias,
        seed=seed,
        queries=queries,
        coefs=coefs,
        stream=stream,
        bias_stream=bias_stream,
        dist=dist,
        mode=mode,
        z_round=z_round,
        out_dtype=out_dtype,
    )


def zo_embedding_perturbed(
    ids: Any,
    weight: Any,
    *,
    seed: int,
    queries: Sequence[int],
    coefs: Sequence[float],
    stream: int = 0,
    dist: str = "gaussian",
    padding_idx: int | None = None,
    z_round: torch.dtype | None = None,
) -> Any:
    """y[p] = (W + c_p Z_p)[ids[p]], an embedding with P perturbed copies of its table.

    z is made for the rows that are looked up and no others: the cost is that of the tokens, not of the
    vocabulary. Rows are rounded to the dtype of the weight, as a perturbation in place would.

    Args:
        ids: [P, ...] integers (int64 or int32) in [0, V).
        weight: [V, K], float32, bfloat16, float16 or float64, any strides.
        seed, queries, coefs, stream, dist, z_round: as `zo_linear_perturbed`.
        padding_idx: taken for the signature of `torch.nn.functional.embedding`, where it concerns gradients
            only; a padding row is perturbed like any other, as `zo_perturb_` does.

    Returns:
        [P, ..., K] in the dtype of the weight.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape, dtype or device, or out of range.
        IndexError: an id outside the table (on CUDA: the device assertion of torch).
        RuntimeError: gradients are enabled and the weight requires one, or a forced backend cannot run.
    """
    kind = _arrays.kind_of(ids)
    ids = _checks.tensor("ids", _arrays.as_tensor("ids", ids, write=False), (torch.int64, torch.int32))
    weight = _checks.tensor("weight", _arrays.as_tensor("weight", weight, write=False))
    _embedding_shapes(ids, weight)
    _inference_only(weight=weight)
    if padding_idx is not None:
        _checks.integer("padding_idx", padding_idx, -weight.shape[0], weight.shape[0] - 1)
    queries, coefs = _probes(queries, coefs, ids, weight)
    return kind(
        torch.ops.tenfold.zo_embedding_perturbed(
            ids,
            weight,
            _signed(_checks.seed("seed", seed)),
            _checks.stream("stream", stream),
            queries,
            coefs,
            _checks.choice("dist", dist, DISTRIBUTIONS),
            _z_round(z_round),
        )
    )


def zo_embedding_dual(
    ids: Any,
    weight: Any,
    *,
    seed: int,
    stream: int,
    eps: float,
    query: int | Sequence[int] = 0,
    dist: str = "gaussian",
    padding_idx: int | None = None,
    z_round: torch.dtype | None = None,
) -> Any:
    """Both probes of an embedding at once: y[0] of W + eps Z, y[1] of W - eps Z.

    Args:
        ids: [2, ...]; with a list of q queries [2q, ...], as `zo_linear_dual`.
        eps: perturbation scale, > 0.

    The rest of the arguments, the result and the errors are those of `zo_embedding_perturbed`.
    """
    queries, coefs = _two_sided(query, eps, "ids", ids, weight)
    return zo_embedding_perturbed(
        ids,
        weight,
        seed=seed,
        queries=queries,
        coefs=coefs,
        stream=stream,
        dist=dist,
        padding_idx=padding_idx,
        z_round=z_round,
    )


# ---- checks -----------------------------------------------------------------------------------------------


def _same_device(name: str, t: Tensor, first: str, device: torch.device) -> None:
    if t.device != device:
        _checks.fail(ValueError, name, f"device {device} as {first}", t.device)


def _linear_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2:
        _checks.fail(ValueError, "weight", "a matrix [N, K]", f"shape {tuple(weight.shape)}")
    if x.ndim < 2 or x.shape[0] < 1 or x.shape[-1] != weight.shape[1]:
        _checks.fail(ValueError, "x", f"shape [P, ..., {weight.shape[1]}] with P >= 1", tuple(x.shape))
    _checks.dtype("x.dtype", x.dtype, (weight.dtype,))
    _same_device("x", x, "weight", weight.device)
    if bias is not None:
        if bias.shape != weight.shape[:1]:
            _checks.fail(ValueError, "bias", f"shape [{weight.shape[0]}]", tuple(bias.shape))
        _checks.dtype("bias.dtype", bias.dtype, (weight.dtype,))
        _same_device("bias", bias, "weight", weight.device)


def _embedding_shapes(ids: Tensor, weight: Tensor) -> None:
    if weight.ndim != 2:
        _checks.fail(ValueError, "weight", "a matrix [V, K]", f"shape {tuple(weight.shape)}")
    if ids.ndim < 1 or ids.shape[0] < 1:
        _checks.fail(ValueError, "ids", "shape [P, ...] with P >= 1", tuple(ids.shape))
    _same_device("ids", ids, "weight", weight.device)


def _inference_only(**tensors: Tensor | None) -> None:
    for name, t in tensors.items():
        if t is not None and t.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name}: expected a tensor without gradient, got one that requires grad while gradients are "
                "enabled; perturbed layers have no backward: call under torch.no_grad()"
            )


def _copies(name: str, values: Sequence[Any], x: Tensor) -> None:
    _checks.length(name, values, x.shape[0], "the copies")


def _probes(
    queries: Sequence[int], coefs: Sequence[float], x: Tensor, weight: Tensor
) -> tuple[list[int], list[float]]:
    queries = _checks.sequence("queries", queries, "integers")
    coefs = _checks.sequence("coefs", coefs, "numbers")
    _copies("queries", queries, x)
    _copies("coefs", coefs, x)
    single = weight.dtype != torch.float64
    checked = [_checks.real(f"coefs[{p}]", c) for p, c in enumerate(coefs)]
    return (
        [_checks.query(f"queries[{p}]", q) for p, q in enumerate(queries)],
        [_checks.fits(f"coefs[{p}]", c, single) for p, c in enumerate(checked)],
    )


def _two_sided(
    query: int | Sequence[int], eps: float, name: str, value: Any, weight: Any
) -> tuple[list[int], list[float]]:
    eps = _checks.real("eps", eps, positive=True)
    _checks.fits("eps", eps, getattr(weight, "dtype", None) != torch.float64)
    each: list[Any] = list(query) if isinstance(query, (list, tuple)) else [query]
    each = [_checks.query("query", q) for q in each]
    shape: tuple[int, ...] = getattr(value, "shape", ())
    if len(shape) and shape[0] != 2 * len(each):
        _checks.fail(ValueError, name, f"{2 * len(each)} copies, two for each query", shape[0])
    return [q for q in each for _ in range(2)], [eps, -eps] * len(each)


def _z_round(z_round: torch.dtype | None) -> torch.dtype | None:
    if z_round is not None:
        _checks.dtype("z_round", z_round, (torch.float32, *_HALVES))
    return z_round
