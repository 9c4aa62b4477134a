"""PSNR, SSIM and MS-SSIM: every backend against float64, gradients, dtypes, layouts, sizes and threads.

Values of other libraries are in tests/metrics/test_image.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tenfold.kernels.quality.quality_reference import Options
from torch import Tensor

import tenfold
from tenfold.ops import ms_ssim, psnr, ssim

# Windows in one row or column; more than a block of rows, a strip of columns, or both, and odd.
SHAPES = [(1, 1, 11, 11), (2, 3, 11, 40), (1, 2, 73, 12), (2, 1, 37, 261), (1, 1, 150, 145)]
VARIANTS = ("gaussian", "uniform", "torchmetrics", "piq")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A picture of smooth waves with some noise, and the same with more of it; values in [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(shape[-2]).double(), torch.arange(shape[-1]).double()
    waves = 0.5 + 0.3 * torch.sin(0.3 * rows)[:, None] * torch.cos(0.2 * columns)
    x = (waves + 0.1 * torch.randn(shape, generator=draw, dtype=torch.float64)).clamp(0, 1)
    y = (x + 0.1 * torch.randn(shape, generator=draw, dtype=torch.float64)).clamp(0, 1)
    return x.to(dtype), y.to(dtype)


def with_gradients(score: Callable[..., Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Scores per picture and both gradients of a weighted sum of them, on the CPU."""
    x, y = (v.detach().clone(memory_format=torch.preserve_format).requires_grad_() for v in (x, y))
    found = score(x, y)
    weights = 1 + torch.arange(len(found), device=found.device)
    (found * weights).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    return [t.detach().cpu() for t in (found, x.grad, y.grad)]


def exact(score: Callable[..., Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    with tenfold.use_backend("reference"):
        return with_gradients(score, x.cpu().double(), y.cpu().double())


def near(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert (a.double() - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ssim_is_the_reference_in_float64(backend, variant, shape, dtype):
    if backend.interpreted and (variant in ("torchmetrics", "piq") or shape[0] * shape[1] > 2):
        pytest.skip("the same kernels, slow in the interpreter")
    score = partial(ssim, variant=variant, reduction="none")
    x, y = draw(*shape)
    want = exact(score, x, y)
    got = with_gradients(score, x.to(backend.device, dtype), y.to(backend.device, dtype))
    assert got[0].dtype == dtype
    near(got, want, 1e-12 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("shape", [(2, 1, 161, 170), (1, 2, 163, 182)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ms_ssim_is_the_reference_in_float64(backend, shape, dtype):
    if backend.interpreted and shape[0] == 2:
        pytest.skip("slow in the interpreter")
    score = partial(ms_ssim, reduction="none")
    x, y = draw(*shape)
    want = exact(score, x, y)
    got = with_gradients(score, x.to(backend.device, dtype), y.to(backend.device, dtype))
    near(got, want, 1e-12 if dtype == torch.float64 else 5e-5)


@pytest.mark.parametrize("shape", [(3, 2, 1, 1), (2, 3, 7, 33), (1, 1, 130, 129)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_psnr_is_the_reference_in_float64(backend, shape, dtype):
    score = partial(psnr, reduction="none", data_range=2.0)
    x, y = draw(*shape)
    want = exact(score, x, y)
    got = with_gradients(score, x.to(backend.device, dtype), y.to(backend.device, dtype))
    near(got, want, 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("name", ["ssim", "psnr"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(backend, name, dtype):
    """Arithmetic on the stored values is float32; the gradient is rounded once."""
    score = partial({"ssim": ssim, "psnr": psnr}[name], reduction="none")
    x, y = (v.to(backend.device) for v in draw(2, 2, 30, 41, dtype=dtype))
    want = exact(score, x, y)
    got = with_gradients(score, x, y)
    assert got[0].dtype == torch.float32
    near(got[:1], want[:1], 1e-5)
    cut = backend.interpreted and dtype == torch.bfloat16  # Triton's interpreter cuts bfloat16 off
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a.dtype == dtype
        step = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype] * (2 if cut else 1)
        spacing = 6e-8 if dtype == torch.float16 else 0.0  # of half-precision subnormals
        room = 1.01 * step * b.abs() + 2e-5 * b.abs().max() + spacing
        assert bool(((a.double() - b).abs() <= room).all())


def test_bytes_are_read_as_they_are(backend):
    x, y = ((255 * v).round() for v in draw(2, 3, 40, 37))
    for score in (ssim, psnr):
        got = score(x.byte().to(backend.device), y.byte().to(backend.device), 255, "none")
        with tenfold.use_backend("reference"):
            want = score(x, y, 255, "none")
        assert got.dtype == torch.float32
        near([got.cpu()], [want], 1e-5)
        mixed = score(x.byte().to(backend.device), y.to(backend.device), 255, "none")
        near([mixed.cpu()], [want], 1e-12)


def test_strides(backend):
    """Channels last, every other row and column, transposed, expanded: the same values as of copies."""
    x, y = (v.to(backend.device) for v in draw(2, 3, 64, 70))
    for change in (
        lambda v: v.contiguous(memory_format=torch.channels_last),
        lambda v: v[:, :, ::2, ::3],
        lambda v: v.transpose(2, 3),
        lambda v: v[:, :1].expand(2, 3, 64, 70),
        lambda v: v[:, :, 5:40, 9:60],
    ):
        for score in (partial(ssim, reduction="none"), partial(psnr, reduction="none")):
            want = exact(score, change(x), change(y))
            near(with_gradients(score, change(x), change(y)), want, 1e-12)
            near(with_gradients(score, change(x), change(y).contiguous()), want, 1e-12)


@pytest.mark.parametrize("only", ["preds", "target"])
def test_one_gradient_alone(backend, only):
    x, y = (v.to(backend.device) for v in draw(1, 2, 165, 161))
    for score in (ssim, ms_ssim, psnr):
        wanted = with_gradients(partial(score, reduction="none"), x, y)
        watched, other = (x, y) if only == "preds" else (y, x)
        leaf = watched.clone().requires_grad_()
        score(*((leaf, other) if only == "preds" else (other, leaf))).backward()
        near([leaf.grad.cpu()], [wanted[1 if only == "preds" else 2]], 1e-12)


def test_gradcheck(backend):
    if backend.interpreted:
        pytest.skip("slow in the interpreter")
    x, y = (v.to(backend.device).requires_grad_() for v in draw(1, 1, 13, 14))
    assert torch.autograd.gradcheck(lambda a, b: psnr(a, b, reduction="none"), (x, y))
    for variant in VARIANTS:
        score = partial(ssim, variant=variant, reduction="none")
        assert torch.autograd.gradcheck(score, (x, y))


def test_gradcheck_of_ms_ssim(backend):
    """In random directions: its smallest pictures have 25,921 pixels."""
    if backend.interpreted:
        pytest.skip("slow in the interpreter")
    x, y = (v.to(backend.device).requires_grad_() for v in draw(1, 1, 161, 161))
    score = partial(ms_ssim, reduction="none")
    assert torch.autograd.gradcheck(score, (x, y), fast_mode=True, eps=1e-4, atol=1e-7)


def test_equal_pictures(backend):
    side = 40 if backend.interpreted else 161
    x = draw(2, 3, side, side + 1)[0].to(backend.device, torch.float32)
    assert bool((psnr(x, x, reduction="none") == torch.inf).all())
    assert ssim(x, x, reduction="none").tolist() == [1.0, 1.0]
    if not backend.interpreted:
        assert ms_ssim(x, x, reduction="none").tolist() == [1.0, 1.0]
    leaf = x.clone().requires_grad_()
    psnr(leaf, x).backward()
    assert bool((leaf.grad == 0).all())


def test_pictures_that_run_against_each_other(backend):
    x = draw(1, 1, 170, 165)[0].to(backend.device, torch.float32)
    for score in (ssim,) if backend.interpreted else (ssim, ms_ssim):
        opposite = (1 - x).requires_grad_()
        value = score(opposite, x)
        value.backward()
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(opposite.grad).all())


def test_bright_even_pictures_keep_their_variance(backend):
    """A deviation of 0.001 about 0.9: in float32, squares of means hide it, moments about a pixel do not."""
    if backend.name == "reference":
        pytest.skip("it is the plain formula")
    x, y = (0.9 + 0.002 * (v - 0.5) for v in draw(1, 2, 60, 50))
    x, y = x.float(), y.float()
    score = partial(ssim, reduction="none", k2=1e-3)
    want = exact(score, x, y)
    near(with_gradients(score, x.to(backend.device), y.to(backend.device)), want, 2e-4)
    with tenfold.use_backend("reference"):
        plain = with_gradients(score, x, y)
    assert (plain[1] - want[1]).abs().max() > 1e-3 * want[1].abs().max()


def test_any_range(backend):
    """Multiplying pictures and range by one number changes nothing, however far from one it is."""
    x, y = (v.to(backend.device, torch.float32) for v in draw(1, 1, 40, 40))
    want = ssim(x, y)
    for exponent in (-60, 40, 60):
        factor = 2.0**exponent
        assert torch.equal(ssim(x * factor, y * factor, factor), want)
    flat = torch.zeros(1, 1, 20, 20, device=backend.device)
    assert float(ssim(flat, flat)) == 1


def test_nan_stays_in_its_picture(backend):
    x, y = (v.to(backend.device, torch.float32) for v in draw(2, 1, 40, 40))
    x[0, 0, 20, 20] = torch.nan
    for score in (ssim, psnr):
        found = score(x, y, reduction="none").isnan().tolist()
        assert found == [True, False]


def test_no_pictures(backend):
    x = torch.empty(0, 3, 20, 20, device=backend.device, requires_grad=True)
    for score in (ssim, psnr):
        found = score(x, x.detach(), reduction="none")
        assert found.shape == (0,)
        found.sum().backward()
        assert x.grad.shape == x.shape


def test_reductions(backend):
    x, y = (v.to(backend.device) for v in draw(3, 1, 20, 20))
    for score in (ssim, psnr):
        each = score(x, y, reduction="none")
        assert each.shape == (3,)
        assert float(score(x, y)) == pytest.approx(float(each.mean()), rel=1e-12)
        assert float(score(x, y, reduction="sum")) == pytest.approx(float(each.sum()), rel=1e-12)


@pytest.mark.parametrize("name", ["ssim", "ms_ssim", "psnr"])
def test_threads_change_nothing(set_threads, name):
    score = partial({"ssim": ssim, "ms_ssim": ms_ssim, "psnr": psnr}[name], reduction="none")
    x, y = draw(2, 1, 261, 290, dtype=torch.float32)
    found = []
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        found.append(with_gradients(score, x, y))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_memory_is_that_of_the_gradient(peak_bytes):
    """Ten temporaries of the size of the pictures would be 200 MiB."""
    x, y = (v.requires_grad_() for v in draw(1, 5, 1024, 1024, dtype=torch.float32))
    y = y.detach()
    ssim(x[..., :64, :64], y[..., :64, :64]).backward()
    x.grad = None
    assert peak_bytes(lambda: ssim(x, y)) < x.nbytes // 4
    value = ssim(x, y)
    assert peak_bytes(value.backward) < 1.5 * x.nbytes


def test_small_pictures_and_wrong_arguments_are_refused(backend):
    x = torch.rand(1, 3, 32, 32, device=backend.device)
    with pytest.raises(
        ValueError, match=r"preds: expected pictures of at least 161 x 161 .*\(1, 3, 32, 32\)"
    ):
        ms_ssim(x, x)
    with pytest.raises(ValueError, match=r"at least 11 x 11 pixels, got \(1, 3, 32, 10\)"):
        ssim(x[..., :10], x[..., :10])
    with pytest.raises(ValueError, match="at least 7 x 7"):
        ssim(x[..., :6, :], x[..., :6, :], variant="uniform")
    for k1 in (-1, 1e300):
        with pytest.raises(ValueError, match="k1: expected"):
            ssim(x, x, k1=k1)
    for score, span in itertools.product((psnr, ssim), (1e-200, 1e200)):
        with pytest.raises(ValueError, match="data_range: expected"):
            score(x, x, span)
    with pytest.raises(TypeError, match="preds: expected dtype"):
        ssim(x.bool(), x)
    with pytest.raises(ValueError, match="shape"):
        psnr(x[0, 0], x[0, 0])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ssim(leaf, 1 - x), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


def test_opcheck():
    x, y = (v.requires_grad_() for v in draw(2, 2, 23, 21))
    options = Options("gaussian", 1e-4, 9e-4, 1.0)
    constants = (options.window, options.c1, options.c2, options.scale)
    for contrast, pool in ((False, False), (True, True)):
        torch.library.opcheck(torch.ops.tenfold.image_similarity, (x, y, *constants, contrast, pool))
    torch.library.opcheck(torch.ops.tenfold.image_squared_error, (x, y))


def test_compiles_as_one_graph():
    x, y = (v.requires_grad_() for v in draw(1, 2, 161, 165))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return ssim(a, b) + ms_ssim(a, b, 2.0) + psnr(a, b) + ssim(a, b, variant="torchmetrics")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(loss(x, y), (x, y))
    got = torch.autograd.grad(compiled(x, y), (x, y))
    assert compiled(x, y).item() == pytest.approx(loss(x, y).item(), rel=1e-12)
    near(list(got), list(want), 1e-12)
