"""Probing without writing: the same losses as with perturbed weights, and weights that nobody touched."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tenfold.optim._probing as probing
from tenfold.optim import FZOO, LOZO, ZOSGD, HiZOO, SparseMeZO, ZOAdam, ZOMuon, ZOSGDConservative

FAMILIES = ["opt", "llama", "mistral", "roberta"]
CLASSES = [
    (ZOSGD, {"lr": 1e-3}),
    (ZOSGD, {"lr": 1e-3, "num_queries": 2, "dist": "rademacher", "weight_decay": 0.1}),
    (FZOO, {"lr": 1e-3}),
    (LOZO, {"lr": 1e-3}),
    (ZOMuon, {"lr": 1e-3, "rank": 4}),
    (ZOAdam, {"lr": 1e-3}),
    (HiZOO, {"lr": 1e-3}),
    (SparseMeZO, {"lr": 1e-3}),
    (ZOSGDConservative, {"lr": 1e-3}),
]
pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def digest(model: nn.Module) -> str:
    found = hashlib.sha256()
    for p in model.parameters():
        found.update(p.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize(("optimizer", "options"), CLASSES)
def test_weights_are_not_written_in_probes_and_losses_are_those_of_exact(tagger, optimizer, options):
    model, closure = tagger()
    other, same = tagger()
    opt = optimizer(model.parameters(), restore="dual", streams=model, **options)
    reference = optimizer(other.parameters(), restore="exact", streams=other, **options)
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
    for _ in range(3):
        hashes = []

        def watched(hashes=hashes):
            with torch._C.DisableTorchFunction():  # look at the memory, past the mode
                hashes.append(digest(model))
            return closure()

        before = digest(model)
        opt.step(watched)
        reference.step(same)
        assert set(hashes) == {before}
        assert digest(model) != before or optimizer is ZOSGDConservative
        assert opt.last_step.losses == pytest.approx(reference.last_step.losses, rel=1e-5)
        assert opt.last_step.passes <= 1 + (opt.last_step.passes > 1)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("optimizer", "options"), [CLASSES[0], CLASSES[2], CLASSES[3]])
def test_language_models_probe_alike(language_model, family, optimizer, options):
    steps = []
    for restore in ("exact", "dual"):
        model, closure = language_model(family)
        opt = optimizer(model.parameters(), restore=restore, streams=model, **options)
        for _ in range(2):
            opt.step(closure)
        steps.append(opt.last_step.losses)
    assert steps[1] == pytest.approx(steps[0], rel=1e-5)
    assert len(set(steps[0])) > 1


class Odd(nn.Module):
    """Uses weights in every way but the usual one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4))
        self.b = nn.Parameter(torch.linspace(1, 2, 12).view(3, 4))
        self.conv = nn.Conv1d(3, 2, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([self.a, self.b])
        y = x @ self.a.T + torch.addmm(self.b[0, :3], x, self.b.t())
        z = torch.einsum("ij,kj->ik", x, self.a) * self.b.norm() + both.sum() + self.a.data.mean()
        y = (y + z + F.linear(input=x, weight=self.a)).unsqueeze(0)
        y = self.conv(y.transpose(1, 2)).flatten()
        t = self.rnn(self.attention(x[None], x[None], x[None])[0])[0]
        return y.sum() + t.square().sum() + self.a.numel() * self.b.shape[0]


def test_uses_other_than_linear_and_embedding_see_the_perturbed_weights():
    torch.manual_seed(0)
    first = Odd().eval()
    x = torch.randn(5, 4)
    losses = []
    for restore in ("exact", "dual"):
        model = copy.deepcopy(first)
        opt = ZOSGD(model.parameters(), lr=1e-4, eps=1e-2, restore=restore, num_queries=2)
        opt.step(lambda model=model: model(x))
        losses.append(opt.last_step.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(set(losses[0])) == 4


def test_numpy_objectives_see_the_perturbed_weights(quadratic):
    theta, _ = quadratic()
    other, same = quadratic()
    opt = ZOSGD([theta], lr=0.05, restore="dual")
    opt.step(lambda: float((theta.detach().numpy() ** 2 * [1.0, 0.5, 2.0]).sum() / 2))
    ZOSGD([other], lr=0.05, restore="exact").step(same)
    assert torch.allclose(theta, other, rtol=0, atol=1e-12)


def test_another_tensor_over_the_same_memory_counts_as_the_parameter():
    theta = nn.Parameter(torch.ones(3, 4))
    twin = nn.Parameter(theta.detach())
    x = torch.ones(2, 4)
    opt = ZOSGD([theta, twin], lr=0.0, restore="dual")
    opt.step(lambda: F.linear(x, twin).sum())
    assert opt.last_step.losses[0] != opt.last_step.losses[1]


def test_dual_refuses_a_closure_that_does_not_reach_the_parameters():
    theta = nn.Parameter(torch.ones(4))
    view = theta.detach().numpy()
    opt = ZOSGD([theta], lr=0.1, restore="dual")
    with pytest.raises(RuntimeError, match=r"^closure: expected one that uses the parameters through torch"):
        opt.step(lambda: float((view * view).sum()))
    assert opt.num_steps == 0
    assert (theta == 1).all()


def test_auto_takes_copies_where_dual_would_not_do(monkeypatch):
    monkeypatch.setattr(probing, "_COPY_BYTES", 0)
    theta = nn.Parameter(torch.ones(4))
    other = nn.Parameter(torch.ones(4))
    view = theta.detach().numpy()
    opt = ZOSGD([theta], lr=0.1)
    with pytest.warns(RuntimeWarning, match=r"does not reach params\[0\] through torch functions"):
        opt.step(lambda: float((view * view).sum()))
    ZOSGD([other], lr=0.1, restore="exact").step(lambda: (other * other).sum())
    assert torch.allclose(theta, other, rtol=0, atol=1e-4)
    assert len(opt._copies) == 1
    opt.step(lambda: float((view * view).sum()))  # no second warning

    weight = nn.Parameter(torch.ones(3, 3))
    many = ZOSGD([weight], lr=0.1)
    with pytest.warns(RuntimeWarning, match="uses each weight many times"):
        many.step(lambda: sum(F.linear(torch.ones(1, 3), weight).sum() for _ in range(9)))


def test_auto_is_exact_for_small_and_dual_for_large(monkeypatch, tagger):
    for limit, copies in ((1 << 30, True), (0, False)):
        monkeypatch.setattr(probing, "_COPY_BYTES", limit)
        model, closure = tagger()
        opt = ZOSGD(model.parameters(), lr=0.1)
        opt.step(closure)
        assert bool(opt._copies) is copies
        assert opt.last_step.passes == (3 if copies else 1)


@pytest.mark.parametrize("rounding", ["rne", "sr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("optimizer", "options"), [CLASSES[0], CLASSES[1], CLASSES[4], CLASSES[5]])
def test_given_the_losses_exact_and_dual_land_on_the_same_bits(tagger, optimizer, options, dtype, rounding):
    finals = []
    for restore in ("exact", "dual"):
        model, _ = tagger(dtype)
        losses = torch.rand(100, generator=torch.Generator().manual_seed(0)).tolist()
        opt = optimizer(model.parameters(), restore=restore, rounding=rounding, streams=model, **options)
        opt._reached = True
        for _ in range(3):
            opt.step(lambda losses=losses: losses.pop())
        finals.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))
