"""Why the loss is float32 from the hidden states on: a zeroth-order step sees a difference of losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tenfold.kernels.logprob import logprob_chunks, logprob_native, logprob_reference
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold.ops.logprob import option_loss

EXAMPLES, OPTIONS, LENGTH, WIDTH, VOCABULARY = 8, 2, 4, 32, 64
LABELS = [0, 1, 1, 0, 1, 0, 0, 1]
EPS = 1e-3


def perturbed(dtype: torch.dtype, steps: int = 41) -> tuple[Tensor, list[Tensor], Tensor]:
    """Hidden states, `steps` weights on the line from W - eps z to W + eps z, and token ids."""
    g = torch.Generator().manual_seed(0)
    rows = EXAMPLES * OPTIONS
    hidden = torch.randn(rows, LENGTH, WIDTH, generator=g).to(dtype)
    weight = torch.randn(VOCABULARY, WIDTH, generator=g) * 0.1
    z = torch.randn(VOCABULARY, WIDTH, generator=g)
    ids = torch.randint(VOCABULARY, (rows, LENGTH), generator=g)
    line = [(weight + c * z).to(dtype) for c in torch.linspace(-EPS, EPS, steps).tolist()]
    return hidden, line, ids


def loss_of_rounded_logits(hidden: Tensor, weight: Tensor, ids: Tensor, loss_dtype: torch.dtype) -> float:
    """What a half-precision model gives: logits rounded to its dtype, then the loss in `loss_dtype`."""
    logits = (hidden[:, -2].float() @ weight.float().T).to(hidden.dtype).to(loss_dtype)
    scores = logits.log_softmax(1).gather(1, ids[:, -1:]).view(EXAMPLES, OPTIONS)
    return F.cross_entropy(scores, torch.tensor(LABELS)).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forty_one_weights_have_forty_one_losses(backend: Any, dtype: torch.dtype) -> None:
    hidden, line, ids = perturbed(dtype)
    lengths = [1] * len(ids)

    def ours(weight: Tensor) -> float:
        moved = (t.to(backend.device) for t in (hidden, weight, ids))
        h, w, i = moved
        return option_loss(h, w, None, i, lengths, num_options=OPTIONS, labels=LABELS).loss.item()

    def exactly(weight: Tensor) -> float:
        counts = [OPTIONS] * EXAMPLES
        return logprob_reference.option_loss(
            hidden.double(), weight.double(), None, ids, lengths, counts, LABELS
        )[0].item()

    def slope(f: Callable[[Tensor], float]) -> float:
        return (f(line[-1]) - f(line[0])) / (2 * EPS)

    assert len({ours(w) for w in line}) == len(line)
    assert slope(ours) == pytest.approx(slope(exactly), abs=2e-3)
    # The same weights through logits of the model's dtype: few values for the 41 copies, and a wrong slope.
    assert len({loss_of_rounded_logits(hidden, w, ids, dtype) for w in line}) <= 8
    wrong = slope(lambda w: loss_of_rounded_logits(hidden, w, ids, torch.float32))
    assert abs(wrong - slope(exactly)) > 10 * abs(slope(ours) - slope(exactly))


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


ROWS, LONG = 512, 20_000  # 41 MB of logits: more than malloc keeps for later, so a peak is seen


def wide_head() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(ROWS, 16, generator=g), torch.randn(LONG, 16, generator=g)
    return hidden.bfloat16(), weight.bfloat16(), torch.randint(LONG, (ROWS,), generator=g)


def test_the_workspace_of_chunks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 18
    monkeypatch.setattr(logprob_chunks, "CHUNK_BYTES", {"cpu": limit})
    hidden, weight, targets = wide_head()
    with LargestTensor() as seen:
        _, lse = logprob_chunks.token_logprobs(hidden, weight, None, targets)
    assert limit // 2 < seen.bytes <= limit
    grad = torch.ones(ROWS, dtype=torch.float64)
    with LargestTensor() as seen:
        logprob_chunks.token_logprobs_backward(grad, lse, hidden, weight, None, targets, (True, False, False))
    assert seen.bytes <= limit
    with LargestTensor() as seen:
        logprob_reference.token_logprobs(hidden, weight, None, targets)
    assert seen.bytes >= 4 * ROWS * LONG


def test_the_fused_kernel_keeps_no_logits(
    isa: str, peak_bytes: Callable[[Callable[[], object]], int]
) -> None:
    hidden, weight, targets = wide_head()
    logprob_native.token_logprobs(hidden, weight, None, targets)  # first call: code pages, thread stacks
    logits = 4 * ROWS * LONG
    assert peak_bytes(lambda: logprob_native.token_logprobs(hidden, weight, None, targets)) < logits // 4
    assert peak_bytes(lambda: logprob_reference.token_logprobs(hidden, weight, None, targets)) > logits // 2
