"""Tokens, word embeddings put in by hand, and splicing."""

import threading

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion import (
    encode_embeds,
    encode_ids,
    inject,
    splice_ids,
    tiny_bundle,
    tokenize,
)
from tenfold.diffusion.encode import count_tokens, embed_ids, encode, end_positions, splice
from tenfold.diffusion.splice import MODES, splice_plan

S, E = 100, 101
A, B, C = 31, 32, 33


def row(length, columns=16):
    return torch.tensor([[S, *range(1, length + 1), *[E] * (columns - 1 - length)]])


def cut(ids):
    whole = ids[0].tolist()
    return whole[: whole.index(E) + 1]


@pytest.mark.parametrize(
    ("length", "adv", "mode", "expected"),
    [
        (3, [A, B], "prefix", [S, A, B, 1, 2, 3, E]),
        (3, [A, B], "suffix", [S, 1, 2, 3, A, B, E]),
        (3, [A, B], "mid", [S, 1, A, B, 2, 3, E]),
        (7, [A, B], "insert", [S, 1, 2, A, 3, 4, B, 5, 6, 7, E]),
        (7, [A, B, C], "per_k_words", [S, A, 1, 2, 3, B, 4, 5, 6, C, 7, E]),
        (3, [A, B], "replace", [S, A, B, E]),
        (3, [A, B, C], "add", [S, 1, 2, 3, E]),
        (2, [A, B, C], "insert_k", [S, A, B, C, 1, 2, E]),
        (0, [A], "prefix_k", [S, A, E]),
    ],
)
def test_splicing_of_ids(length, adv, mode, expected):
    found = splice_ids(row(length), torch.tensor([adv]), torch.tensor([length]), mode)
    assert cut(found) == expected
    assert found.shape == (1, 16)
    assert int(end_positions(torch.tensor([length]), len(adv), mode)) == len(expected) - 1


@pytest.mark.parametrize("mode", [m for m in MODES if m != "add"])
def test_embeddings_go_where_ids_go(mode):
    lengths = torch.tensor([3, 5, 0])
    ids = torch.cat([row(int(n)) for n in lengths])
    adv = torch.tensor([[A, B]]).expand(3, -1)
    table = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
    found = splice(table[ids], table[adv], lengths, mode)
    assert torch.equal(found, table[splice_ids(ids, adv, lengths, mode)])


def test_add_adds_to_the_prompts_tokens_only():
    lengths = torch.tensor([3, 1])
    embeds = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0))
    adv = torch.ones(2, 3, 4, requires_grad=True)
    found = splice(embeds, adv, lengths, "add")
    apart = (found - embeds).abs().sum(-1).detach() > 0
    assert apart.nonzero().tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]
    found.sum().backward()
    assert adv.grad.sum((0, 2)).tolist() == [8.0, 4.0, 4.0]
    with pytest.raises(ValueError, match="k: expected 3"):
        splice(embeds, adv[:, :2], lengths, "add")


def test_no_prompt_token_is_dropped_silently():
    with pytest.raises(ValueError, match="prompt 1: expected at most 14 tokens"):
        splice_ids(torch.cat([row(3), row(13)]), torch.tensor([[A, B]]), torch.tensor([3, 13]))
    assert len(splice_plan(12, 2, "prefix", 16)) == 16
    for wrong, message in (("front", "mode"), (3, "mode")):
        with pytest.raises(ValueError, match=message):
            splice_ids(row(3), torch.tensor([[A]]), torch.tensor([3]), wrong)
    with pytest.raises(ValueError, match="k: expected at least one"):
        splice_ids(row(3), torch.empty(1, 0, dtype=torch.int64), torch.tensor([3]))
    with pytest.raises(TypeError, match="lengths: expected an integer"):
        splice_ids(row(3), torch.tensor([[A]]), [3.0])
    for length, k, message in (
        (-1, 1, "lengths: expected"),
        (3, 0, "k: expected"),
        (12, 3, "prompt 0: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            splice_plan(length, k, "per_k_words", 16)


def test_a_word_of_two_tokens_stays_whole_but_in_reference_mode(tiny):
    ids, lengths = tokenize(tiny, ["nudity"])
    adv = torch.tensor([[320]])
    nu, dity = ids[0, 1].item(), ids[0, 2].item()
    assert lengths.tolist() == [2]
    assert splice_ids(ids, adv, lengths)[0, 1:5].tolist() == [320, nu, dity, tiny.tokenizer.eos_token_id]
    _, words = tokenize(tiny, ["nudity"], compat="reference")
    found = splice_ids(ids, adv, words, compat="reference")
    assert words.tolist() == [1]
    assert found[0, 1:4].tolist() == [320, nu, tiny.tokenizer.eos_token_id]


def test_tokens_are_the_tokenizers_own(tiny):
    prompts = ["a photo of a cat", "", "nudity", "zebra, and 7 others!"]
    own = tiny.tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids, lengths = tokenize(tiny, prompts)
    assert torch.equal(ids, own.input_ids)
    assert lengths.tolist() == count_tokens(tiny, prompts)
    assert lengths.tolist() == ((ids == tiny.tokenizer.eos_token_id).int().argmax(1) - 1).tolist()


def test_long_prompts(tiny):
    long = "cat " * 90
    with pytest.raises(ValueError, match="prompts: expected at most 75 tokens, got 90"):
        tokenize(tiny, [long])
    with pytest.raises(ValueError, match="at most 72 tokens beside 3 spliced ones, got 74"):
        tokenize(tiny, ["cat " * 74], room=3)
    _, lengths = tokenize(tiny, [long], room=3, overflow="truncate")
    assert lengths.tolist() == [72]
    with pytest.raises(TypeError, match="prompts: expected strings"):
        tokenize(tiny, [3])
    for wrong in ("\udcff", ["a", "b \ud800"]):
        with pytest.raises(ValueError, match="prompts: expected text, got str"):
            tokenize(tiny, wrong)


@pytest.mark.parametrize("projection", [False, True])
def test_injected_embeddings_equal_the_plain_forward(projection):
    bundle = tiny_bundle(3, projection=projection)
    ids = tokenize(bundle, ["a cat", "nudity"]).ids
    plain = encode_ids(bundle, ids)
    embeds = embed_ids(bundle, ids).clone().requires_grad_()
    injected = encode_embeds(bundle, ids, embeds)
    assert torch.equal(plain, injected)
    injected.sum().backward()
    assert embeds.grad is not None
    assert float(embeds.grad.abs().sum()) > 0
    changed = encode_embeds(bundle, ids, embeds.detach() + 1)
    assert not torch.equal(changed, plain)
    assert torch.equal(encode_ids(bundle, ids), plain)


def test_injection_ends_after_an_exception_and_does_not_nest(tiny):
    encoder, ids = tiny.text_encoder, tokenize(tiny, ["a cat"]).ids
    plain = encode_ids(tiny, ids)
    with pytest.raises(KeyError), inject(encoder) as put:
        [put(torch.zeros(1, 77, 32)), {}["missing"]]
    assert torch.equal(encode_ids(tiny, ids), plain)
    with inject(encoder), pytest.raises(RuntimeError, match="inject: expected"), inject(encoder):
        pass
    with pytest.raises(RuntimeError, match="embeds: expected one word embedding"):
        encode_embeds(tiny, ids, torch.zeros(1, 5, 32))
    assert torch.equal(encode_ids(tiny, ids), plain)


def test_another_thread_may_not_call_meanwhile(tiny):
    ids, caught = tokenize(tiny, ["a cat"]).ids, []

    def call():
        try:
            tiny.text_encoder(input_ids=ids)
        except RuntimeError as error:
            caught.append(str(error))

    with inject(tiny.text_encoder):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert caught
    assert "from another" in caught[0]


def test_pooled_text_is_the_end_tokens_state():
    bundle = tiny_bundle(2, projection=True)
    ids = tokenize(bundle, ["a cat", ""]).ids
    states, pooled = encode(bundle, ["a cat", ""], pooled=True)
    own = bundle.text_encoder(input_ids=ids)
    torch.testing.assert_close(pooled, own.text_embeds)
    assert torch.equal(states, own.last_hidden_state)
