"""Parts of a vocabulary merged: by hand, without a process group, and over two ranks with gloo."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import tenfold
from tenfold.ops import VocabShard, linear_logprob, merge_vocab_shards, vocab_parallel_logprob

SIZE, WIDTH = 23, 6
CUTS = {0: slice(0, 9), 1: slice(9, SIZE)}
TARGETS = torch.tensor([3, -100, 0, 22, 8, 9, 15])


def head(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = ((len(TARGETS), WIDTH), (SIZE, WIDTH), (SIZE,))
    return [torch.randn(*shape, generator=g).to(dtype).requires_grad_() for shape in shapes]


WORKER = """
import os, sys, torch
import torch.distributed as dist
import torch.nn.functional as F
from tenfold.ops import segment_nll, vocab_parallel_logprob

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}/meet", rank=rank, world_size=2)
given = torch.load(f"{sys.argv[2]}/given.pt")
found = {}
for name, (hidden, weight, bias, softcap) in given["cases"].items():
    cut = slice(*given["cuts"][rank])
    h = hidden.clone().requires_grad_()
    w = weight[cut].clone().requires_grad_()
    b = None if bias is None else bias[cut].clone().requires_grad_()
    options = dict(start=cut.start, vocabulary=len(weight), softcap=softcap)
    logp = vocab_parallel_logprob(h, w, given["targets"], b, **options)
    nll, _ = segment_nll(logp, given["segments"], 2)
    loss = -20 * F.logsigmoid(0.1 * (nll - 4.0)).mean() + logp.square().sum()
    loss.backward()
    found[name] = [logp.detach(), h.grad, w.grad, None if b is None else b.grad]
messages = []
for targets, start in ((given["targets"] + 1, cut.start), (given["targets"], 0)):
    try:
        vocab_parallel_logprob(h, w, targets, b, start=start, vocabulary=len(weight))
        messages.append("none")
    except (IndexError, RuntimeError) as error:
        messages.append(f"{type(error).__name__} {error}")
found["messages"] = messages
torch.save(found, f"{sys.argv[2]}/found.{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What two ranks were given, and what each of them found."""
    folder = tmp_path_factory.mktemp("ranks")
    segments = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    h, w, b = (t.detach() for t in head())
    padded = b.clone()
    padded[9:] = -torch.inf  # a part of nothing but padding
    padded[[9, 15, 22]] = 0.0
    plain, wide, half = [h, w, b], [t.double() for t in (h, w, b)], [h.bfloat16(), w.bfloat16(), None]
    cases = {
        "plain": (*plain, None), "capped": (*plain, 2.0), "no bias": (h, w, None, None),
        "float64": (*wide, None), "bfloat16": (*half, None), "padded": (h, w, padded, None),
    }  # fmt: skip
    cuts = [(cut.start, cut.stop) for cut in CUTS.values()]
    given = {"cases": cases, "targets": TARGETS, "segments": segments, "cuts": cuts}
    torch.save(given, folder / "given.pt")
    started = [
        subprocess.Popen([*(sys.executable, "-c", WORKER), str(rank), str(folder)], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for one in started:
        _, errors = one.communicate(timeout=120)
        assert one.returncode == 0, errors.decode()
    return given, [torch.load(folder / f"found.{rank}.pt") for rank in range(2)]


def npo(logp: Tensor, segments: Tensor) -> Tensor:
    nll = torch.stack([-logp[segments == i].sum() for i in range(2)])
    return -20 * torch.nn.functional.logsigmoid(0.1 * (nll - 4.0)).mean() + logp.square().sum()


@pytest.mark.parametrize("name", ["plain", "capped", "no bias", "float64", "bfloat16", "padded"])
def test_two_ranks_find_what_one_does(name: str, ranks: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    given, found = ranks
    *operands, softcap = given["cases"][name]
    leaves = [None if t is None else t.double().requires_grad_() for t in operands]
    h, w, b = leaves
    expected = linear_logprob(h, w, TARGETS, b, softcap=softcap).logp
    asked = [t for t in leaves if t is not None]
    wanted = list(torch.autograd.grad(npo(expected, given["segments"]), asked))
    tolerance = {"float64": 1e-9, "bfloat16": 2e-2}.get(name, 2e-5)
    near = {"rtol": min(tolerance, 2e-5), "atol": min(tolerance, 2e-5)}
    for rank, one in enumerate(found):
        logp, by_hidden, by_weight, by_bias = one[name]
        torch.testing.assert_close(logp.double(), expected.detach(), **near)
        # parts of a bfloat16 gradient are rounded before they are added
        size = float(wanted[0].abs().max()) if name == "bfloat16" else 1.0
        near_grad = {"rtol": tolerance, "atol": tolerance * size}
        torch.testing.assert_close(by_hidden.double(), wanted[0], **near_grad)
        torch.testing.assert_close(by_weight.double(), wanted[1][CUTS[rank]], **near_grad)
        if by_bias is not None:
            torch.testing.assert_close(by_bias.double(), wanted[2][CUTS[rank]], **near_grad)
        assert by_hidden.dtype == operands[0].dtype
    assert torch.equal(found[0][name][0], found[1][name][0])
    assert torch.equal(found[0][name][1], found[1][name][1])


def test_both_ranks_refuse_what_does_not_fit(ranks: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    for one in ranks[1]:
        assert one["messages"][0] == "IndexError targets: expected tokens in [0, 23), got -99"
        assert one["messages"][1].startswith("RuntimeError shard: expected one part with the target of row")


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_one_rank_with_everything(backend: Any, softcap: float | None) -> None:
    ours, theirs = head(), head()
    moved = [t.detach().to(backend.device).requires_grad_() for t in ours]
    options = {"start": 0, "vocabulary": SIZE, "softcap": softcap}
    logp = vocab_parallel_logprob(moved[0], moved[1], TARGETS.to(backend.device), moved[2], **options)
    with tenfold.use_backend("auto"):
        expected = linear_logprob(theirs[0], theirs[1], TARGETS, theirs[2], softcap=softcap).logp
    torch.testing.assert_close(logp.cpu(), expected, rtol=1e-5, atol=1e-5)
    logp.square().sum().backward()
    with tenfold.use_backend("auto"):
        expected.square().sum().backward()
    for a, e in zip(moved, theirs, strict=True):
        torch.testing.assert_close(a.grad.cpu(), e.grad, rtol=2e-5, atol=2e-5)  # type: ignore[union-attr]


def test_gradcheck_and_no_rows() -> None:
    operands = head(torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w, b: vocab_parallel_logprob(h, w, TARGETS, b, start=0, vocabulary=SIZE), operands
    )
    h, w, _ = head()
    logp = vocab_parallel_logprob(h, w, TARGETS, start=0, vocabulary=SIZE)
    (first,) = torch.autograd.grad(logp.sum(), [h], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once, not twice"):
        torch.autograd.grad(first.sum(), [h])
    for rows, targets in ((0, TARGETS[:0]), (7, torch.full((7,), -100))):
        logp = vocab_parallel_logprob(h[:rows], w, targets, start=0, vocabulary=SIZE)
        (slope,) = torch.autograd.grad(logp.sum(), [w])
        assert logp.shape == (rows,)
        assert (slope == 0).all()


def test_a_target_that_nobody_holds() -> None:
    h, w, _ = head()
    with pytest.raises(RuntimeError, match=r"^shard: expected one part with the target of row 0, got 0"):
        vocab_parallel_logprob(h, w[9:], TARGETS, start=9, vocabulary=SIZE)
    ones = torch.ones(2, dtype=torch.float64)
    logp, lse = merge_vocab_shards(VocabShard(ones * 3, ones * 2, ones * 1, ones))
    torch.testing.assert_close(lse, ones * (3 + torch.tensor(2.0).double().log()))
    torch.testing.assert_close(logp, 1 - lse)
    with pytest.raises(RuntimeError, match=r"of row 1, got 2"):
        merge_vocab_shards(VocabShard(ones, ones, ones, torch.tensor([1, 2])))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"start": 1}, ValueError, r"^start: expected an integer"),
        ({"vocabulary": 5}, ValueError, r"^vocabulary: expected an integer"),
        ({"softcap": 0.0}, ValueError, r"^softcap: expected a finite number > 0"),
        ({"targets": TARGETS + 1}, IndexError, r"^targets: expected tokens in \[0, 23\), got -99"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    h, w, _ = head()
    arguments: dict[str, Any] = {"targets": TARGETS, "start": 0, "vocabulary": SIZE} | change
    with pytest.raises(error, match=message):
        vocab_parallel_logprob(h, w, arguments.pop("targets"), **arguments)
