"""What dual probes compute without a perturbed copy: the losses of a perturbed weight, and no copy."""

from __future__ import annotations

import pytest
import torch
from tenfold.kernels.dual import linear as blocks
from torch import Tensor, nn
from torch.nn import functional as F

import tenfold
import tenfold.optim._dual as dual_module
import tenfold.optim._probing as probing
from tenfold import ops
from tenfold.optim import LOZO, ZOSGD, RandomSparsity, SparseMeZO

WORDS, WIDTH = 70, 12
IDS = torch.randint(0, WORDS, (4, 6), generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(1))
TALL = torch.randn(5, WORDS, generator=torch.Generator().manual_seed(2))
PICKED = torch.tensor([3, -1, 68, 3])


def _square(y: Tensor) -> Tensor:
    return y.double().square().mean()


def _option_loss(w: Tensor, b: Tensor) -> Tensor:
    options = {"num_options": 2, "labels": [0, 1]}
    return ops.option_loss(HIDDEN.to(w.dtype), w, b, IDS, [1, 2, 3, 1], **options).loss


USES = {
    "option_loss": _option_loss,
    "option_loss lm": lambda w, b: ops.option_loss(HIDDEN.to(w.dtype), w, None, IDS, [5] * 4, mode="lm").loss,
    "token_logprobs": lambda w, b: ops.token_logprobs(HIDDEN[0].to(w.dtype), w, b, IDS[0]).sum(),
    "verbalizer_loss": lambda w, b: ops.verbalizer_loss(
        HIDDEN[:, 0].to(w.dtype), w, [5, 69, 5], [0, 1, 2, 1], b
    )[0],
    "linear": lambda w, b: _square(F.linear(HIDDEN.to(w.dtype), w, b)),
    "linear of a transpose": lambda w, b: _square(F.linear(TALL.to(w.dtype), w.t())),
    "embedding": lambda w, b: _square(F.embedding(IDS, w)),
    "rows": lambda w, b: _square(w[IDS]) + _square(w[PICKED]) + _square(w[-2]) + _square(w[3:9].prod(0)),
    "index_select": lambda w, b: _square(w.index_select(0, IDS[0]) + torch.index_select(w, 0, IDS[1])),
    "matmul": lambda w, b: _square(HIDDEN.to(w.dtype) @ w.T + b),
    "matmul of a view": lambda w, b: _square(torch.matmul(HIDDEN.to(w.dtype), w.detach().transpose(0, 1))),
    "product from the right": lambda w, b: _square(TALL.to(w.dtype).mm(w.to(w.dtype))),
    "product from the left": lambda w, b: _square(w @ HIDDEN[0].to(w.dtype).T + (w @ w.new_ones(12))[0]),
    "transpose from the left": lambda w, b: _square(torch.mm(w.t(), TALL.to(w.dtype).T)),
    "addmm": lambda w, b: _square(torch.addmm(b, HIDDEN[0].to(w.dtype), w.t())),
    "addmm of Conv1D": lambda w, b: _square(torch.addmm(b[:WIDTH], TALL.to(w.dtype), w)),
}  # fmt: skip


@pytest.fixture
def copies(monkeypatch):
    """The shapes that perturbed copies were made of; none are kept, and blocks have 16 rows."""
    made: list[tuple[int, ...]] = []
    copy = dual_module.Spot.copy
    monkeypatch.setattr(
        dual_module.Spot, "copy", lambda spot: (made.append(tuple(spot.param.shape)), copy(spot))[1]
    )
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 1)
    return made


def weights(dtype: torch.dtype) -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    w, b = torch.randn(WORDS, WIDTH, generator=generator), torch.randn(WORDS, generator=generator)
    return nn.Parameter(w.to(dtype)), nn.Parameter(b.to(dtype))


def losses(optimizer, use, restore, dtype, **options):
    params = weights(dtype)
    opt = optimizer(params, lr=1e-3, eps=1e-2, restore=restore, **options)
    opt.step(lambda: use(*params))
    return opt.last_step.losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optimizer", [ZOSGD, LOZO, SparseMeZO])
@pytest.mark.parametrize("use", USES)
def test_a_use_needs_no_copy_and_sees_the_perturbed_matrix(copies, use, optimizer, dtype):
    exact = losses(optimizer, USES[use], "exact", dtype)
    found = losses(optimizer, USES[use], "dual", dtype)
    # in half precision exact rounds the perturbed matrix, dual does not
    assert found == pytest.approx(exact, rel=2e-2 if dtype == torch.bfloat16 else 2e-5)
    assert found[0] != found[1]
    assert (WORDS, WIDTH) not in copies


def test_difference_of_losses_in_float64_is_that_of_exact(copies):
    for use in ("option_loss", "token_logprobs", "addmm of Conv1D"):
        exact = losses(ZOSGD, USES[use], "exact", torch.float64)
        found = losses(ZOSGD, USES[use], "dual", torch.float64)
        assert found[0] - found[1] == pytest.approx(exact[0] - exact[1], rel=1e-9)


def test_gpt2_needs_no_copy_of_a_matrix(copies):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.arange(20).view(2, 10)
    found = []
    for restore in ("exact", "dual"):
        opt = ZOSGD(model.parameters(), lr=0.0, restore=restore)
        opt.step(lambda: model(input_ids=ids, labels=ids).loss)
        found.append(opt.last_step.losses)
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[1][0] != found[1][1]
    assert copies == []


def test_bad_tokens_are_refused_as_without_the_optimizer():
    w, b = weights(torch.float32)
    opt = ZOSGD([w, b], lr=0.1, restore="dual")
    with pytest.raises(ValueError, match="token_ids"):
        opt.step(lambda: ops.verbalizer_loss(HIDDEN[:, 0], w, [WORDS], [0] * 4)[0])
    with pytest.raises(ValueError, match="targets"):
        opt.step(lambda: ops.token_logprobs(HIDDEN[0], w, b, IDS[0] + WORDS).sum())
    with pytest.raises(IndexError):
        opt.step(lambda: w[torch.tensor([WORDS])].sum())


@pytest.fixture
def nothing_is_small(monkeypatch):
    monkeypatch.setattr(probing, "_COPY_BYTES", 0)
    monkeypatch.setattr(dual_module, "_KEPT_BYTES", 0)


def test_auto_tells_once_of_a_large_copy(nothing_is_small):
    w, _ = weights(torch.float32)
    opt = ZOSGD([("table", w)], lr=0.0)
    with pytest.warns(tenfold.PerformanceWarning, match=r"of table \(3360 bytes\) at each probe for einsum"):
        opt.step(lambda: torch.einsum("ij,ij->", w, w))
    opt.step(lambda: torch.einsum("ij,ij->", w, w))


def test_auto_tells_of_masks_that_need_copies(nothing_is_small):
    w, _ = weights(torch.float32)
    opt = ZOSGD([w], lr=0.0, mask=RandomSparsity(0.5))
    with pytest.warns(tenfold.PerformanceWarning, match=r"params\[0\] .*for linear.*with a random mask"):
        opt.step(lambda: F.linear(HIDDEN, w).sum())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("restore", ["auto", "dual", "arithmetic"])
def test_nothing_is_told_where_nothing_is_copied_or_the_user_chose(nothing_is_small, restore):
    w, _ = weights(torch.float32)
    for use in (USES["linear"], USES["option_loss"]) if restore == "auto" else (lambda w, b: w.norm(),):
        opt = ZOSGD([w], lr=0.0, restore=restore)
        opt.step(lambda use=use: use(w, torch.zeros(WORDS)))
