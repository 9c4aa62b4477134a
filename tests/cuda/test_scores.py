"""The kernels of sample scores on a GPU, or their CUDA source on the host, against the reference."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from tenfold.kernels.scores import fgrad_native, fgrad_reference, scores_native, scores_reference
from tenfold.kernels.scores.scores_reference import NAMES
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 7, 31, 130, 512, 1000, 1037, 3001)


def module_of(gpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    if gpu.name == "triton":
        from tenfold.kernels.scores import scores_triton

        return scores_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(scores_native, "_module", lambda tensor: (built, (0,)))
        monkeypatch.setattr(fgrad_native, "_module", lambda tensor: (built, (0,)))
    return scores_native


def drawn(rows: int, classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows right and wrong, with ties, -inf, NaN, inf, nothing but -inf, and labels that are no class."""
    generator = torch.Generator().manual_seed(classes)
    z = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(classes, (rows,), generator=generator)
    z[torch.arange(rows), labels] += 4 * (torch.arange(rows) % 3 == 0)
    z[1] = z[1].float().round().to(dtype)
    z[2, classes // 2 :] = -torch.inf
    z[4, classes - 1] = torch.nan
    z[5, 0] = torch.inf
    z[6] = -torch.inf
    z[7] = 0.0
    labels[8] = classes
    labels[9] = -1
    z[10] = -torch.inf
    labels[10] = classes + 3
    return z, labels, torch.rand(rows, generator=generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_are_the_reference_s(gpu, monkeypatch, request, dtype):
    kernels = module_of(gpu, monkeypatch, request)
    for classes in SIZES:
        whole, labels, norms = drawn(37, classes, dtype)
        for z in (whole, torch.cat([whole[:, :1], whole], 1)[:, 1:]):  # rows that begin anywhere
            moved = [t.to(gpu.device) for t in (z, labels, norms)]
            if z is not whole:
                moved[0] = torch.cat([whole[:, :1], whole], 1).to(gpu.device)[:, 1:]
            for want in (frozenset(NAMES), frozenset({"el2n"}), frozenset({"correct", "label_margin"})):
                given = None if "grand" not in want else norms
                expected, bad = scores_reference.score_rows(z, labels, given, want)
                got, found = kernels.score_rows(*moved[:2], None if given is None else moved[2], want)
                assert torch.equal(found.cpu(), bad), classes
                for name in NAMES:
                    a, b = getattr(got, name).cpu(), getattr(expected, name)
                    if name in ("correct", "histogram"):
                        assert torch.equal(a, b), (classes, name)
                    else:
                        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy_both_ways(gpu, monkeypatch, request, dtype):
    kernels = module_of(gpu, monkeypatch, request)
    for classes in SIZES:
        z, labels, _ = drawn(18, classes, dtype)
        grad = torch.linspace(-1, 1, 18)
        grad[3] = 0.0
        outs = []
        for module, device in ((kernels, gpu.device), (scores_reference, torch.device("cpu"))):
            x, y, g = (t.to(device) for t in (z, labels, grad))
            loss, top, log_total = module.cross_entropy_rows(x, y)
            back = module.cross_entropy_rows_backward(g, x, y, top, log_total)
            outs.append((loss.cpu(), back.cpu().float()))
        torch.testing.assert_close(outs[0][0], outs[1][0], rtol=2e-6, atol=2e-6, equal_nan=True)
        step = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
        fine = outs[1][0].isfinite()  # where the loss is not, neither gradient means anything
        torch.testing.assert_close(outs[0][1][fine], outs[1][1][fine], rtol=step, atol=step / 10)
        assert (outs[0][1][3] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_votes_are_the_reference_s(gpu, monkeypatch, request, dtype):
    kernels = module_of(gpu, monkeypatch, request)
    for classes in SIZES:
        z, labels, _ = drawn(30, classes, dtype)
        for rows, targets in ((z[7:], labels[10:30].remainder(5)), (z, labels.remainder(5))):
            rows = rows[: targets.numel()].round()
            found = []
            for module, device in ((kernels, gpu.device), (scores_reference, torch.device("cpu"))):
                histogram = torch.zeros(classes, dtype=torch.int64, device=device)
                matrix = torch.zeros(5, classes, dtype=torch.int64, device=device)
                first = module.class_vote(rows.to(device), targets.to(device), histogram, matrix)
                found.append((histogram.cpu(), matrix.cpu(), int(first)))
            assert found[0][2] == found[1][2], classes
            if found[1][2] == rows.shape[0]:  # a refused call has no result
                assert torch.equal(found[0][0], found[1][0])
                assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_of_nothing_has_no_vote(gpu, monkeypatch, request, dtype):
    """Nothing but -inf, in a row shorter than what a warp holds; and logits that are the lowest there are."""
    kernels = module_of(gpu, monkeypatch, request)
    for classes in (1, 4, 37, 600):
        z = torch.full((3, classes), torch.finfo(dtype).min, dtype=dtype)
        z[1] = -torch.inf
        for rows, want in ((z, 1), (z[::2].contiguous(), 2)):
            histogram = torch.zeros(classes + 64, dtype=torch.int64, device=gpu.device)
            first = kernels.class_vote(rows.to(gpu.device), None, histogram[:classes], None)
            assert int(first) == want
            assert histogram.tolist() == [2] + [0] * (classes + 63)


def test_a_row_of_the_lowest_logits_votes_for_a_class(gpu, monkeypatch, request):
    kernels = module_of(gpu, monkeypatch, request)
    for classes in (1, 4, 37, 600):
        z = torch.full((3, classes), torch.finfo(torch.float32).min, device=gpu.device)
        labels = torch.tensor([0, classes - 1, classes], device=gpu.device)
        found, _ = kernels.score_rows(z, labels, None, frozenset(NAMES) - {"grand"})
        assert found.histogram.sum() <= 3


def test_dynamics_are_the_reference_s(gpu, monkeypatch, request):
    from tenfold.ops import new_dynamics
    from tenfold.ops.scores import STATE

    kernels = module_of(gpu, monkeypatch, request)
    states = []
    for module, device in ((kernels, gpu.device), (scores_reference, torch.device("cpu"))):
        state = dict(zip(STATE, new_dynamics(700, device).tensors(), strict=True))
        for epoch in range(5):
            generator = torch.Generator().manual_seed(epoch)
            z = torch.randn(600, 5, generator=generator)
            labels = torch.arange(600) % 5
            at = torch.randperm(700, generator=generator)[:600].to(device)
            want = frozenset({"el2n", "label_margin", "correct"})
            scores, _ = scores_reference.score_rows(z, labels, None, want)
            module.dynamics_scatter_(state, at, type(scores)(*(t.to(device) for t in scores)))
        states.append({name: tensor.cpu() for name, tensor in state.items()})
    for name, tensor in states[1].items():
        assert torch.equal(states[0][name], tensor), name
    assert states[1]["forget"].sum() > 0


@pytest.mark.parametrize("bias", [True, False])
def test_columns_are_the_reference_s(gpu, monkeypatch, request, bias):
    module_of(gpu, monkeypatch, request)
    kernels: ModuleType = fgrad_native
    if gpu.name == "triton":
        from tenfold.kernels.scores import fgrad_triton as kernels
    generator = torch.Generator().manual_seed(2)
    for classes, width in ((1, 1), (10, 33), (50, 256), (130, 700)):
        e, h = torch.randn(61, classes, generator=generator), torch.randn(61, width, generator=generator)
        pick = torch.tensor(17)
        got = kernels.column(e.to(gpu.device), h.to(gpu.device), pick.to(gpu.device), bias)
        want = fgrad_reference.column(e, h, pick, bias)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-12, atol=1e-9)


@pytest.mark.gpu
def test_ops_on_the_device():
    """The public ops with tensors on a GPU, against those on the CPU."""
    from tenfold.ops import class_mask, class_median_distance, class_vote, craig, omp_factored, score_fused

    generator = torch.Generator().manual_seed(1)
    z, labels = torch.randn(500, 40, generator=generator), torch.arange(500) % 40
    x = torch.randn(500, 30, generator=generator)
    e, h = torch.softmax(z, 1) - torch.nn.functional.one_hot(labels, 40), x.relu()
    for op, arguments in (
        (score_fused, (z, labels)),
        (class_median_distance, (x, labels, 40)),
        (class_vote, (z, 40)),
        (omp_factored, (e, h, 30)),
        (craig, (e, h, 10)),
    ):
        want, got = op(*arguments), op(*(a.cuda() if isinstance(a, Tensor) else a for a in arguments))
        for a, b in zip(got, want, strict=True):
            if a is not None:
                torch.testing.assert_close(a.cpu(), b, rtol=2e-5, atol=2e-6)
    assert torch.equal(class_mask(labels.cuda(), [3, 7], 40).cpu(), class_mask(labels, [3, 7], 40))
    worse, on_device = z.cuda(), labels.cuda()
    worse[17, 3] = torch.nan
    with pytest.raises(ValueError, match="row 17"):
        score_fused(worse, on_device)


@pytest.mark.gpu
def test_a_captured_graph_scores_again():
    """Without the check nothing synchronises, so that a graph can hold the pass."""
    from tenfold.ops import score_fused

    z = torch.randn(64, 100, device="cuda")
    labels = torch.arange(64, device="cuda")
    score_fused(z, labels, check=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = score_fused(z, labels, check=False)
    z.copy_(torch.randn(64, 100, device="cuda"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.el2n, score_fused(z, labels, check=False).el2n)
