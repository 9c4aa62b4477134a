from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import MAKERS, sentences

from tenfold.llm import prompts
from tenfold.llm.data import Example
from tenfold.llm.prompts import Encoded
from tenfold.llm.scorer import Scorer, find_blocks, trainable_depth, trainable_parameters

OPTIONS = torch.tensor([19, 20])


@pytest.fixture(params=list(MAKERS))
def model(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


@pytest.fixture
def encoded(tokenizer: Any) -> Encoded:
    examples = [Example(text, label) for text, label in sentences(24)]
    rows = prompts.encode(examples, tokenizer, "{text} It was", 64)
    assert len({len(row) for row in rows.rows}) > 2  # padding is at work
    return rows


@torch.no_grad()
def one_by_one(model: Any, encoded: Encoded) -> torch.Tensor:
    """The oracle: the whole model on one unpadded prompt at a time."""
    return torch.cat([model(torch.tensor([row])).logits[:, -1, OPTIONS] for row in encoded.rows])


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_short_path_is_the_forward_of_the_whole_model(model: Any, encoded: Encoded, depth: int) -> None:
    scorer = Scorer(model, 0, OPTIONS, depth=depth)
    kept = scorer.remember(encoded, batch=7) if depth else None
    torch.testing.assert_close(
        scorer.all_logits(encoded, kept, size=5), one_by_one(model, encoded), rtol=1e-5, atol=2e-5
    )
    assert scorer.check(encoded) < 1e-4


def test_kept_states_follow_the_trained_blocks_only(model: Any, encoded: Encoded) -> None:
    """With other weights in the last block, the kept states still give what the whole model gives."""
    scorer = Scorer(model, 0, OPTIONS, depth=1)
    kept = scorer.remember(encoded)
    before = scorer.all_logits(encoded, kept)
    with torch.no_grad():
        for parameter in trainable_parameters(model, "last-block").values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    after = scorer.all_logits(encoded, kept)
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(after, one_by_one(model, encoded), rtol=1e-5, atol=2e-5)


def test_padding_does_not_matter(model: Any, encoded: Encoded) -> None:
    scorer = Scorer(model, 0, OPTIONS, depth=1)
    kept = scorer.remember(encoded)
    together = scorer.logits(scorer.batch(encoded, range(len(encoded)), kept))
    alone = torch.cat([scorer.logits(scorer.batch(encoded, [i], kept)) for i in range(len(encoded))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=2e-5)


def test_loss_is_cross_entropy_over_the_answer_words(model: Any, encoded: Encoded) -> None:
    scorer = Scorer(model, 0, OPTIONS)
    expected = F.cross_entropy(one_by_one(model, encoded), encoded.labels)
    torch.testing.assert_close(scorer.loss(scorer.batch(encoded, range(len(encoded)))), expected)


def test_the_loss_is_float32_for_half_precision_weights(encoded: Encoded) -> None:
    scorer = Scorer(MAKERS["llama"]().bfloat16(), 0, OPTIONS, depth=1)
    logits = scorer.all_logits(encoded, scorer.remember(encoded))
    assert logits.dtype == torch.float32
    assert (logits != logits.bfloat16().float()).any()  # not rounded to bfloat16 on the way


def test_gradients_flow_where_they_are_wanted(model: Any, encoded: Encoded) -> None:
    model.requires_grad_(True)
    scorer = Scorer(model, 0, OPTIONS)
    scorer.loss(scorer.batch(encoded, [0, 1, 2])).backward()
    short = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    ids, mask = prompts.pad_left(encoded.rows[:3], 0)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, -1, OPTIONS]
    F.cross_entropy(logits, encoded.labels[:3]).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(short[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_model_itself_is_left_as_it_was(model: Any, encoded: Encoded) -> None:
    before = [(name, type(module)) for name, module in model.named_modules()]
    expected = one_by_one(model, encoded)
    scorer = Scorer(model, 0, OPTIONS, depth=2)
    scorer.all_logits(encoded, scorer.remember(encoded))
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert torch.equal(one_by_one(model, encoded), expected)


def test_a_wrong_short_path_is_found_out(encoded: Encoded) -> None:
    model = MAKERS["llama"]()
    scorer = Scorer(model, 0, OPTIONS, depth=1)
    scorer.blocks[-1].self_attn.scaling *= 0.5  # read when called
    assert scorer.check(encoded) < 1e-4
    scorer._takes_positions = False
    scorer._short.layers[-1].forward = scorer._skipping(scorer._short.layers[-1])
    with pytest.raises(RuntimeError, match="short forward of LlamaForCausalLM differs"):
        scorer.check(encoded)


def test_trainable_parts() -> None:
    model = MAKERS["llama"]()
    assert len(find_blocks(model)[1]) == 3
    last = trainable_parameters(model, "last-block")
    assert list(last) == [n for n, _ in model.named_parameters() if n.startswith("model.layers.2.")]
    assert len(trainable_parameters(model, "last-2")) == 2 * len(last)
    assert list(trainable_parameters(model, "full")) == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("word", ["last-4", "last-0", "last-", "first-block", "all"])
def test_bad_trainable(word: str) -> None:
    with pytest.raises(ValueError, match=r"trainable: expected 'last-block', 'last-1' to 'last-3' or 'full'"):
        trainable_depth(word, 3)
