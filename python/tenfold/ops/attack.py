"""The token steps of attacks on diffusion models: simplex projection, sampling, nearest tokens, sign steps.

They are the inner loop of UnlearnDiffAtk (arXiv 2310.11868), P4D (arXiv 2309.06135) and AdvUnlearn (arXiv
2405.15234) beside the model's own passes. Rows are independent: R = prompts x extra tokens, V = vocabulary,
D = width of a word embedding.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

_BACKENDS = ("cpu", "cuda", "triton", "reference")
_OPS = ("simplex_project", "ste_adam_simplex_", "sample_rows", "nearest_token", "sign_step_")
OPS |= dict.fromkeys(_OPS, _BACKENDS)
OPS["nearest_token"] = ("cpu", "cuda", "reference")

METRICS = ("cos", "l2")
NORMS = ("linf", "l2")
_REAL = (torch.float32, torch.float64)
_TABLES = (torch.float32, torch.bfloat16, torch.float16)

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define("simplex_project(Tensor p, float radius) -> Tensor")
_LIBRARY.define(
    "ste_adam_simplex_(Tensor(a!) p, Tensor(b!) m, Tensor(c!) v, Tensor grad_embeds, Tensor table, float lr, "
    "float beta1, float beta2, float eps, float weight_decay, int step, Tensor? banned) -> ()"
)
_LIBRARY.define("sample_rows(Tensor p, Tensor u) -> Tensor")
_LIBRARY.define(
    "nearest_token(Tensor q, Tensor table, Tensor? inv_norm, str metric, Tensor? mask) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "sign_step_(Tensor(a!) delta, Tensor grad, float lr, float? eps, str norm, Tensor? origin) -> ()"
)


def simplex_project(p: Any, radius: float = 1.0) -> Any:
    """Each row's Euclidean projection on the simplex {y >= 0, sum y = radius}, exact and without sorting.

    The threshold rises by Newton's method, an active set that shrinks (Michelot 1986). -inf becomes 0.
    Differentiable once. `project_simplex` is the same along the last axis of many short rows.

    Args:
        p: float32 or float64 [R, V], V > 0.
        radius: > 0, finite in the dtype of the arithmetic.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or range; on the CPU a row with NaN or +inf, or of
            nothing but -inf. On a GPU, where looking would wait for it, such a row becomes NaN.
    """
    kind = _arrays.kind_of(p)
    rows = _matrix("p", p, _REAL)
    radius = _checks.real("radius", radius, positive=True)
    _checks.fits("radius", radius, rows.dtype != torch.float64)
    found: Tensor = torch.ops.tenfold.simplex_project(rows, radius)
    _refuse_rows("p", found, "numbers below infinity", "NaN, infinity, or nothing but -infinity")
    return kind(found)


@torch.no_grad()
def ste_adam_simplex_(
    p: Any,
    m: Any,
    v: Any,
    grad_embeds: Any,
    table: Any,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
    banned: Any = None,
) -> None:
    """One step of Adam on rows of probabilities, from the gradient at the sampled embeddings; in place.

    g = clamp(grad_embeds table^T, -1, 1) + weight_decay p, the straight-through gradient of the one-hot rows;
    Adam (the decay is part of the gradient, not decoupled); projection on the simplex. The table is read once
    and nothing of the size of p is made for up to 32 rows.

    Args:
        p, m, v: float32 [R, V] contiguous, probabilities and Adam's two moments.
        grad_embeds: [R, D], float32, bfloat16 or float16.
        table: word embeddings [V, D], float32, bfloat16 or float16.
        lr, betas, eps, weight_decay: as torch.optim.Adam's.
        step: 1 for the first.
        banned: bool [V], tokens whose probability becomes 0.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range, before anything is written; on the
            CPU a gradient that is not finite. Afterwards, on the CPU, a row of p without a projection,
            or no memory for that check.
    """
    rows = [_matrix(n, x, (torch.float32,), write=True) for n, x in (("p", p), ("m", m), ("v", v))]
    for name, x in zip("pmv", rows, strict=True):
        _like(name, x, rows[0], shape=True)
        if not x.is_contiguous():
            _checks.fail(ValueError, name, "a contiguous matrix", f"strides {tuple(x.stride())}")
    _checks.memory(p=rows[:1], m=rows[1:2], v=rows[2:])
    gradient, words = _matrix("grad_embeds", grad_embeds, _TABLES), _matrix("table", table, _TABLES)
    for name, x, shape in (
        ("table", words, (rows[0].shape[1], words.shape[1])),
        ("grad_embeds", gradient, (rows[0].shape[0], words.shape[1])),
    ):
        _like(name, x, rows[0])
        if x.shape != shape:
            _checks.fail(ValueError, name, f"shape {list(shape)}", list(x.shape))
    mask = _tokens("banned", banned, rows[0])
    _checks.sequence("betas", betas, "two numbers")
    _checks.length("betas", betas, 2, "Adam's moments")
    beta1, beta2 = (_checks.real("betas", b, at_least=0.0, below=1.0) for b in betas)
    _finite("grad_embeds", gradient)
    rate, least, decay = (
        _checks.fits(name, _checks.real(name, value, at_least=0.0), True)
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay))
    )
    step = _checks.integer("step", step, 1, 2**62)
    torch.ops.tenfold.ste_adam_simplex_(*rows, gradient, words, rate, beta1, beta2, least, decay, step, mask)
    _refuse_rows("p", rows[0], "finite probabilities and moments", "NaN or infinity")


@torch.no_grad()
def sample_rows(p: Any, u: Any) -> Any:
    """int64 [R]: in each row the smallest j whose running sum exceeds u times the row's sum, in float64.

    The inverse of the distribution function: the same u gives the same token. An index with p = 0 is never
    returned.

    Args:
        p: >= 0, float32 or float64 [R, V]. u: float32 or float64 [R], in [0, 1).

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape; on the CPU, a u outside [0, 1), or a row
            whose sum is not > 0. On a GPU such a row gives -1.
    """
    kind = _arrays.kind_of(p)
    rows = _matrix("p", p, _REAL)
    points = _checks.tensor("u", _arrays.as_tensor("u", u, write=False), _REAL)
    _like("u", points, rows)
    looks = points.device.type == "cpu" and not torch.compiler.is_compiling()
    if points.shape != rows.shape[:1] or (looks and not bool(((points >= 0) & (points < 1)).all())):
        _checks.fail(ValueError, "u", f"{rows.shape[0]} numbers in [0, 1)", _checks.describe(u))
    found: Tensor = torch.ops.tenfold.sample_rows(rows, points)
    if looks and bool((found < 0).any()):
        row = int((found < 0).nonzero()[0, 0])
        _checks.fail(ValueError, f"p[{row}]", "a row with a positive, finite sum", float(rows[row].sum()))
    return kind(found)


@torch.no_grad()
def nearest_token(
    q: Any, table: Any, inv_norm: Any = None, *, metric: str = "cos", mask: Any = None
) -> tuple[Any, Any]:
    """The word embedding nearest to each query: (ids int64 [R], scores float32 [R]).

    The lowest id wins among equals. Scores are made in float32; those so near the best that rounding may have
    put them there are compared again in float64, so that the answer depends neither on the order of a sum nor
    on the backend; the score returned is that one, rounded. On the CPU the table is read once for up to eight
    queries and no [R, V] matrix is made; on a GPU one for up to 256 queries.

    Args:
        q: float32, bfloat16 or float16 [R, D]. table: [V, D], likewise.
        inv_norm: float32 [V], `inverse_norms(table)` where it is kept; only for "cos".
        metric: "cos", the cosine (0 where a norm is 0); "l2", minus half the squared distance.
        mask: bool [V], True where a token may be chosen.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range; on the CPU, NaN or infinity in a
            query, or no token that may be chosen. On a GPU such a query gives (-1, NaN).
    """
    kind = _arrays.kind_of(q)
    queries, words = _matrix("q", q, _TABLES), _matrix("table", table, _TABLES)
    _like("table", words, queries)
    if words.shape[1] != queries.shape[1]:
        _checks.fail(ValueError, "table", f"rows of {queries.shape[1]} numbers", words.shape[1])
    _checks.choice("metric", metric, METRICS)
    norms = None
    if inv_norm is not None:
        norms = _checks.tensor("inv_norm", _arrays.as_tensor("inv_norm", inv_norm, write=False), _REAL[:1])
        _like("inv_norm", norms, queries)
        if norms.shape != words.shape[:1] or metric != "cos":
            expected = f"{words.shape[0]} numbers and metric 'cos'"
            _checks.fail(ValueError, "inv_norm", expected, f"{list(norms.shape)} and {metric!r}")
    allowed = _tokens("mask", mask, queries, words.shape[0])
    if allowed is not None and _may_look(allowed) and not bool(allowed.any()):
        _checks.fail(ValueError, "mask", "at least one token that may be chosen", "none")
    _finite("q", queries)
    ids, scores = torch.ops.tenfold.nearest_token(queries, words, norms, metric, allowed)
    return kind(ids), kind(scores)


def inverse_norms(table: Tensor) -> Tensor:
    """1 / norm(row) of word embeddings [V, D], float32 [V]; 0 for a row of zeros. The table never trains:
    keep it."""
    from tenfold.kernels.attack.attack_reference import inverse_norms as found

    return found(_matrix("table", table, _TABLES))


@torch.no_grad()
def sign_step_(
    delta: Any,
    grad: Any,
    *,
    lr: float,
    eps: float | None = None,
    norm: str = "linf",
    origin: Any = None,
) -> None:
    """delta -= lr sign(grad), in place, then back into the ball of radius `eps` about `origin`.

    The step of FGSM and PGD (arXiv 1706.06083), downhill. sign(0) = 0. Without `eps` there is no ball, as in
    AdvUnlearn.

    Args:
        delta: floating [B, ...]. grad: of its shape and dtype.
        lr: >= 0. eps: > 0, or None.
        norm: "linf", each number within eps; "l2", each entry of the first axis within Euclidean length eps.
        origin: of delta's shape and dtype; zeros if None.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range; on the CPU, NaN in grad.
    """
    x = _checks.tensor("delta", _arrays.as_tensor("delta", delta))
    _checks.writable("delta", x)
    if x.ndim < 1 or not x.is_contiguous():
        _checks.fail(ValueError, "delta", "a contiguous tensor [B, ...]", f"{list(x.shape)}, {x.stride()}")
    g = _checks.tensor("grad", _arrays.as_tensor("grad", grad, write=False), (x.dtype,))
    _like("grad", g, x, shape=True)
    single = x.dtype != torch.float64
    _checks.fits("lr", _checks.real("lr", lr, at_least=0.0), single)
    _checks.choice("norm", norm, NORMS)
    centre = None
    if eps is not None:
        _checks.fits("eps", _checks.real("eps", eps, positive=True), single)
    if origin is not None:
        centre = _checks.tensor("origin", _arrays.as_tensor("origin", origin, write=False), (x.dtype,))
        _like("origin", centre, x, shape=True)
        if eps is None:
            _checks.fail(ValueError, "eps", "a radius about origin", "None")
    if _may_look(g) and bool(g.isnan().any()):
        _checks.fail(ValueError, "grad", "numbers", "NaN")
    torch.ops.tenfold.sign_step_(x, g, float(lr), None if eps is None else float(eps), norm, centre)


# ---- checks ----------------------------------------------------------------------------------------------


def _matrix(name: str, value: Any, dtypes: tuple[torch.dtype, ...], write: bool = False) -> Tensor:
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=write), dtypes)
    if found.ndim != 2 or not found.shape[1]:
        _checks.fail(ValueError, name, "a matrix with columns", list(found.shape))
    return found


def _like(name: str, x: Tensor, of: Tensor, shape: bool = False) -> None:
    if x.device != of.device:
        _checks.fail(ValueError, name, f"a tensor on {of.device}", x.device)
    if shape and x.shape != of.shape:
        _checks.fail(ValueError, name, f"shape {list(of.shape)}", list(x.shape))


def _tokens(name: str, value: Any, like: Tensor, size: int | None = None) -> Tensor | None:
    if value is None:
        return None
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), (torch.bool,))
    _like(name, found, like)
    size = like.shape[1] if size is None else size
    if found.shape != (size,):
        _checks.fail(ValueError, name, f"shape [{size}]", list(found.shape))
    return found


def _may_look(x: Tensor) -> bool:
    """Whether asking for a value waits for nothing."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _finite(name: str, x: Tensor) -> None:
    if _may_look(x) and not bool(x.isfinite().all()):
        row = int((~x.isfinite()).any(1).nonzero()[0, 0])
        _checks.fail(ValueError, f"{name}[{row}]", "finite numbers", "NaN or infinity")


def _refuse_rows(name: str, found: Tensor, expected: str, got: str) -> None:
    """A row without an answer is NaN throughout: its first number tells."""
    if _may_look(found) and bool(found[:, 0].isnan().any()):
        _checks.fail(ValueError, f"{name}[{int(found[:, 0].isnan().nonzero()[0, 0])}]", expected, got)


# ---- kernels ---------------------------------------------------------------------------------------------


def _kernels(op: str, device: torch.device) -> ModuleType:
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.attack import attack_reference as module
    elif backend == "triton":
        from tenfold.kernels.attack import attack_triton as module
    else:
        from tenfold.kernels.attack import attack_native as module
    return module


def _simplex_project(p: Tensor, radius: float) -> Tensor:
    found: Tensor = _kernels("simplex_project", p.device).simplex_project(p.contiguous(), radius)
    return found


def _simplex_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _simplex_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    """g minus its mean, on the support."""
    inside = ctx.saved_tensors[0] > 0
    mean = torch.where(inside, grad, 0.0).sum(1, keepdim=True) / inside.sum(1, keepdim=True)
    return torch.where(inside, grad - mean, 0.0), None


def _ste_adam_simplex(p: Tensor, m: Tensor, v: Tensor, gradient: Tensor, table: Tensor, *rest: Any) -> None:
    *numbers, banned = rest
    _kernels("ste_adam_simplex_", p.device).ste_adam_simplex_(
        p, m, v, gradient.contiguous(), table.contiguous(), *numbers,
        None if banned is None else banned.contiguous(),
    )  # fmt: skip


def _sample_rows(p: Tensor, u: Tensor) -> Tensor:
    found: Tensor = _kernels("sample_rows", p.device).sample_rows(p.contiguous(), u.double().contiguous())
    return found


def _nearest_token(
    q: Tensor, table: Tensor, inv_norm: Tensor | None, metric: str, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    more = [None if x is None else x.contiguous() for x in (inv_norm, mask)]
    ids, scores = _kernels("nearest_token", q.device).nearest_token(
        q.contiguous(), table.contiguous(), more[0], metric, more[1]
    )
    return ids, scores


def _sign_step(
    delta: Tensor, grad: Tensor, lr: float, eps: float | None, norm: str, origin: Tensor | None
) -> None:
    centre = None if origin is None else origin.contiguous()
    _kernels("sign_step_", delta.device).sign_step_(delta, grad.contiguous(), lr, eps, norm, centre)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("simplex_project", _simplex_project, _device)
    _LIBRARY.impl("ste_adam_simplex_", _ste_adam_simplex, _device)
    _LIBRARY.impl("sample_rows", _sample_rows, _device)
    _LIBRARY.impl("nearest_token", _nearest_token, _device)
    _LIBRARY.impl("sign_step_", _sign_step, _device)
torch.library.register_autograd(
    "tenfold::simplex_project", _simplex_gradient, setup_context=_simplex_setup, lib=_LIBRARY
)
torch.library.register_fake(
    "tenfold::simplex_project",
    lambda p, radius: torch.empty_like(p, memory_format=torch.contiguous_format),
    lib=_LIBRARY,
)
torch.library.register_fake("tenfold::ste_adam_simplex_", lambda *args: None, lib=_LIBRARY)
torch.library.register_fake("tenfold::sign_step_", lambda *args: None, lib=_LIBRARY)
torch.library.register_fake(
    "tenfold::sample_rows", lambda p, u: p.new_empty(p.shape[:1], dtype=torch.int64), lib=_LIBRARY
)
torch.library.register_fake(
    "tenfold::nearest_token",
    lambda q, *rest: (
        q.new_empty(q.shape[:1], dtype=torch.int64),
        q.new_empty(q.shape[:1], dtype=torch.float32),
    ),
    lib=_LIBRARY,
)
