"""Scores from logits: published values, float64, dtypes and layouts, errors, and PyTorch's own machinery."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tenfold.kernels.scores import scores_native, scores_reference

from tenfold.ops import Scores, dynamics_update, new_dynamics, score_fused
from tenfold.ops.scores import STATE, WANT

# Three rows of logits with the scores worked out by hand from softmax.
Z = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-3.0, 5.0, 1.0]])
Y = torch.tensor([0, 2, 0])
H = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
KNOWN = {
    "el2n": [0.1980037227, 0.8164965809, 1.4012069032],
    "grand": [0.4850080877, 0.8164965809, 7.1447813421],
    "entropy": [0.5242666167, 1.0986122887, 0.0930350130],
    "margin": [0.7295995351, 0.0, 0.9637101061],
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def plainly(logits: torch.Tensor, labels: torch.Tensor, norms: torch.Tensor) -> dict[str, torch.Tensor]:
    """The definitions, as they are written, in float64."""
    z = logits.double()
    p = torch.softmax(z, 1)
    one_hot = torch.nn.functional.one_hot(labels, z.shape[1])
    top = torch.cat([p, torch.zeros_like(p[:, :1])], 1).topk(2).values
    own = p.gather(1, labels[:, None])[:, 0]
    el2n = (p - one_hot).norm(dim=1)
    return {
        "el2n": el2n,
        "grand": el2n * (1 + norms.double()).sqrt(),
        "loss": torch.nn.functional.cross_entropy(z, labels, reduction="none"),
        "entropy": torch.special.entr(p).sum(1),
        "margin": top[:, 0] - top[:, 1],
        "least_confidence": 1 - top[:, 0],
        "label_margin": own - (p - 2.0 * one_hot).amax(1).clamp_min(0),
        "correct": z.argmax(1) == labels,
        "histogram": torch.bincount(z.argmax(1), minlength=z.shape[1]),
    }


def drawn(rows: int, classes: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed + 31 * classes)
    z = 4 * torch.randn(rows, classes, generator=generator)
    z[::3] += 20 * torch.nn.functional.one_hot(torch.arange(len(z[::3])) % classes, classes)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[::3] = torch.arange(len(z[::3])) % classes
    return z.to(dtype), labels, 5 * torch.rand(rows, generator=generator)


def near(got: Scores, want: dict[str, torch.Tensor], tolerance: float) -> None:
    for name in WANT:
        value = getattr(got, name).cpu()
        if name in ("correct", "histogram"):
            assert torch.equal(value, want[name]), name
        else:
            torch.testing.assert_close(
                value.double(), want[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_known_values(backend):
    z, y, h = (t.to(backend.device) for t in (Z, Y, H))
    for dtype in (torch.float32, torch.float64):
        found = score_fused(z.to(dtype), y, feature_norms_squared=h.square().sum(1))
        for name, values in KNOWN.items():
            want = torch.tensor(values, dtype=torch.float64)
            tolerance = 1e-6 if dtype == torch.float32 else 1e-10
            torch.testing.assert_close(
                getattr(found, name).cpu().double(), want, rtol=tolerance, atol=tolerance
            )
        assert found.correct.tolist() == [True, False, False]
        assert found.histogram.tolist() == [2, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 7, 33, 1000, 2049, 5000])
def test_float64_is_met(backend, dtype, classes):
    z, labels, norms = drawn(13, classes, dtype)
    want = plainly(z, labels, norms)
    z, labels, norms = (t.to(backend.device) for t in (z, labels, norms))
    got = score_fused(z, labels, feature_norms_squared=norms, want=WANT)
    near(got, want, 1e-12 if dtype == torch.float64 else 2e-6)
    assert got.el2n.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_small_scores_keep_their_digits(backend):
    """Where p_y = 1 - 1e-13, EL2N and loss are about that size and not zero."""
    z = torch.zeros(4, 10, device=backend.device)
    z[:, 3] = torch.tensor([10.0, 20.0, 30.0, 40.0], device=backend.device)
    labels = torch.full((4,), 3, device=backend.device)
    want = scores_reference.score_rows(z.cpu().double(), labels.cpu(), None, frozenset(WANT) - {"grand"})[0]
    got = score_fused(z, labels, want=("el2n", "loss"))
    torch.testing.assert_close(got.el2n.cpu().double(), want.el2n, rtol=1e-5, atol=0)
    torch.testing.assert_close(got.loss.cpu().double(), want.loss, rtol=1e-5, atol=0)
    assert want.loss[3] > 0


def test_large_logits(backend):
    z, labels, norms = drawn(9, 50, torch.float32)
    z = 1000 * z.round() + 3
    got = score_fused(
        z.to(backend.device),
        labels.to(backend.device),
        feature_norms_squared=norms.to(backend.device),
        want=WANT,
    )
    near(got, plainly(z, labels, norms), 2e-6)


def test_ties_go_to_the_smaller_class(backend):
    z = torch.tensor([[1.0, 3.0, 3.0], [3.0, 3.0, 3.0], [3.0, 1.0, 3.0]], device=backend.device)
    for labels, correct in ((1, [True, False, False]), (2, [False] * 3), (0, [False, True, True])):
        got = score_fused(z, torch.full((3,), labels, device=backend.device))
        assert got.correct.tolist() == correct
        assert got.histogram.tolist() == [2, 1, 0]
        assert got.margin.tolist() == [0.0] * 3


def test_strides_and_emptiness(backend):
    whole, labels, norms = (t.to(backend.device) for t in drawn(20, 40, torch.float32))
    for z in (whole[::2, :37], whole[:10].T.contiguous().T, whole[:10, ::3], whole[:1].expand(10, 40)):
        y = labels[:10] % z.shape[1]
        got = score_fused(z, y, feature_norms_squared=norms[:10], want=WANT)
        near(got, plainly(z.cpu(), y.cpu(), norms[:10].cpu()), 2e-6)
    empty = score_fused(whole[:0], labels[:0])
    assert empty.el2n.shape == (0,)
    assert empty.histogram.tolist() == [0] * 40
    assert score_fused(whole[:0, :0], labels[:0]).histogram.shape == (0,)


def test_only_what_is_wanted(backend):
    z, labels, _ = (t.to(backend.device) for t in drawn(6, 9, torch.float32))
    full = score_fused(z, labels)
    assert full.grand is None
    for name in ("el2n", "loss", "entropy", "margin", "least_confidence", "correct", "histogram"):
        alone = score_fused(z, labels, want=(name,))
        assert torch.equal(getattr(alone, name), getattr(full, name)), name
        assert [n for n in WANT if getattr(alone, n) is not None] == [name]


def test_shards_are_rows_one_behind_the_other(tmp_path):
    z, labels, _ = drawn(30, 11, torch.float32)
    whole = score_fused(z, labels)
    parts = score_fused([z[:7], z[7:7], z[7:]], labels)
    for a, b in zip(whole, parts, strict=True):
        assert a is b is None or torch.equal(a, b)
    np.save(tmp_path / "z.npy", z.numpy())
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    found = score_fused(mapped, labels.numpy())
    assert isinstance(found.el2n, np.ndarray)
    assert np.array_equal(found.el2n, whole.el2n.numpy())


def test_threads_change_nothing(set_threads):
    z, labels, norms = drawn(501, 130, torch.float32)
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append(score_fused(z, labels, feature_norms_squared=norms, want=WANT))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_rows_that_are_not_finite(backend):
    z, labels, _ = (t.to(backend.device) for t in drawn(40, 21, torch.float32))
    for bad in (torch.nan, torch.inf, -torch.inf):
        for column in (0, 20):
            worse = z.clone()
            worse[[17, 30], column] = bad
            with pytest.raises(ValueError, match=rf"logits: expected finite entries, got {bad} in row 17"):
                score_fused(worse, labels)
            if bad == -torch.inf:
                continue
            got = score_fused(worse, labels, check=False)
            assert got.el2n.isnan().nonzero().flatten().tolist() == [17, 30]
            assert got.histogram.sum() == 38
            assert not got.correct[17]
    with pytest.raises(ValueError, match="row 45"):
        score_fused([z[:28], worse], torch.cat([labels[:28], labels]))
    masked = z.clone()
    masked[:, 4] = -torch.inf
    labels = labels.where(labels != 4, 5)
    got = score_fused(masked, labels, want=("loss", "entropy"), check=False)
    keep = torch.arange(21, device=z.device) != 4
    want = plainly(z.cpu()[:, keep.cpu()], (labels - (labels > 4).long()).cpu(), torch.zeros(40))
    torch.testing.assert_close(got.loss.cpu().double(), want["loss"], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(got.entropy.cpu().double(), want["entropy"], rtol=2e-6, atol=2e-6)
    hopeless = score_fused(torch.full((2, 3), -torch.inf, device=z.device), labels[:2] % 3, check=False)
    assert hopeless.loss.isnan().all()
    assert hopeless.histogram.sum() == 0


def test_a_nan_among_two_classes(backend):
    z = torch.tensor([[5.0, torch.nan], [torch.nan, 5.0], [5.0, 4.0]], device=backend.device)
    found = score_fused(z, torch.tensor([0, 1, 0], device=z.device), want=WANT[2:], check=False)
    for name in ("loss", "entropy", "margin", "least_confidence", "label_margin"):
        assert getattr(found, name).isnan().tolist() == [True, True, False], name
    assert found.correct.tolist() == [False, False, True]
    assert found.histogram.tolist() == [1, 0]


def test_a_row_of_nothing_whose_label_is_no_class(isa, monkeypatch):
    """It has no vote, within the histogram or behind it."""
    room = torch.zeros(64, dtype=torch.int64)

    def few(rows, classes, *rest):
        return scores_reference.empty_scores(rows, classes, *rest)._replace(histogram=room[:classes])

    monkeypatch.setattr(scores_native, "empty_scores", few)
    for classes in (1, 3, 17, 33):
        z = torch.full((2, classes), -torch.inf)
        found = score_fused(z, torch.tensor([classes, -1]), check=False)
        assert found.el2n.isnan().all()
        assert room.count_nonzero() == 0
        with pytest.raises(ValueError, match="logits: expected finite entries"):
            score_fused(z, torch.tensor([classes, -1]))
        assert room.count_nonzero() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [[1.0]]}, TypeError, r"logits\[0\]: expected"),
        ({"logits": []}, ValueError, "logits: expected at least one shard"),
        ({"logits": torch.zeros(3)}, ValueError, r"logits: expected shape \[N, C\]"),
        ({"logits": torch.zeros(3, 3, dtype=torch.int64)}, TypeError, "logits: expected dtype"),
        ({"logits": torch.zeros(3, 0)}, ValueError, "logits: expected at least one class"),
        ({"logits": [Z, Z[:, :2]]}, ValueError, r"logits\[1\]: expected 3 columns"),
        ({"labels": torch.tensor([0, 1])}, ValueError, r"labels: expected shape \[3\]"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, TypeError, "labels: expected dtype"),
        ({"labels": torch.tensor([0, 3, 2])}, ValueError, r"labels in \[0, 3\), got 3 in row 1"),
        ({"labels": torch.tensor([0, 1, -1])}, ValueError, r"labels in \[0, 3\), got -1 in row 2"),
        ({"want": ("el3n",)}, ValueError, r"want\[0\]: expected one of"),
        ({"want": "el2n"}, TypeError, "want: expected a list"),
        ({"want": ("grand",)}, ValueError, "feature_norms_squared: expected"),
        (
            {"feature_norms_squared": torch.zeros(2)},
            ValueError,
            r"feature_norms_squared: expected shape \[3\]",
        ),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        score_fused(**{"logits": Z, "labels": Y, **change})


def test_torch_machinery(inductor):
    z, labels, norms = drawn(6, 9, torch.float32)
    arguments = (z, labels, norms, list(WANT), True, 0)
    torch.library.opcheck(torch.ops.tenfold.score_fused.default, arguments)
    state = new_dynamics(9)
    torch.library.opcheck(
        torch.ops.tenfold.dynamics_update.default, (*state.tensors(), torch.arange(6), z, labels, True)
    )
    compiled = torch.compile(lambda a, b: score_fused(a, b).entropy * 2, fullgraph=True, backend=inductor)
    torch.testing.assert_close(compiled(z, labels), score_fused(z, labels).entropy * 2)


# ---- dynamics --------------------------------------------------------------------------------------------


def test_dynamics_over_epochs(backend):
    """Ten epochs against a plain loop over samples."""
    n, classes = 23, 5
    state = new_dynamics(n, backend.device)
    labels = torch.randint(classes, (n,), generator=torch.Generator().manual_seed(1))
    history: list[list[int]] = [[] for _ in range(n)]
    aum, el2n = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for epoch in range(10):
        generator = torch.Generator().manual_seed(epoch)
        z = torch.randn(n, classes, generator=generator) + torch.nn.functional.one_hot(labels, classes)
        order = torch.randperm(n, generator=generator)[: n - epoch]
        plain = plainly(z, labels, torch.zeros(n))
        for batch in order.split(8):
            rows = (t[batch].to(backend.device) for t in (torch.arange(n), z, labels))
            dynamics_update(state, *rows)
        for i in order.tolist():
            history[i].append(int(plain["correct"][i]))
            aum[i] += plain["label_margin"][i]
            el2n[i] += plain["el2n"][i]
    forgets = [sum(a > b for a, b in itertools.pairwise(h)) for h in history]
    assert sum(forgets) > 0
    assert state.forget.tolist() == forgets
    assert state.correct.tolist() == [sum(h) for h in history]
    assert state.seen.tolist() == [len(h) for h in history]
    assert state.last.tolist() == [h[-1] for h in history]
    assert state.ever.tolist() == [max(h) for h in history]
    torch.testing.assert_close(state.aum.cpu().double(), aum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.el2n.cpu().double(), el2n, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": torch.tensor([0, 4, 0])}, "indices: expected different indices, got 0 twice"),
        ({"indices": torch.tensor([0, 4, 5])}, r"indices: expected integers in \[0, 5\), got 5"),
        ({"indices": torch.tensor([-1, 4, 3])}, "got -1"),
        ({"indices": torch.tensor([1])}, r"indices: expected shape \[3\]"),
        ({"labels": torch.tensor([0, 3, 1])}, r"labels in \[0, 3\)"),
        ({"logits": Z / 0}, "logits: expected finite entries"),
    ],
)
def test_dynamics_writes_nothing_when_it_refuses(backend, change, message):
    state = new_dynamics(5, backend.device)
    arguments = {"indices": torch.tensor([0, 4, 2]), "logits": Z, "labels": Y, **change}
    with pytest.raises(ValueError, match=message):
        dynamics_update(state, **{k: v.to(backend.device) for k, v in arguments.items()})
    assert all(int(getattr(state, name).abs().sum()) == 0 for name in STATE)


def test_dynamics_of_the_wrong_kind():
    with pytest.raises(TypeError, match=r"state: expected a tenfold\.ops\.Dynamics"):
        dynamics_update({}, torch.arange(3), Z, Y)
    with pytest.raises(ValueError, match="n: expected an integer"):
        new_dynamics(-1)
    state = new_dynamics(0)
    dynamics_update(state, torch.zeros(0, dtype=torch.int64), Z[:0], Y[:0])
    state.aum = state.aum.double()
    with pytest.raises(TypeError, match=r"state\.aum"):
        dynamics_update(state, torch.zeros(0, dtype=torch.int64), Z[:0], Y[:0])
