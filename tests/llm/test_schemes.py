"""The five schemes on the model families: sizes, forwards against explicit computations, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.llm import families, schemes
from tenfold.llm.schemes import LoRALinear, attach, checkpointed, load_adapter, save_adapter

FAMILIES = ("roberta", "opt", "llama", "mistral")
CAUSAL = FAMILIES[1:]


def rows(lengths: tuple[int, ...] = (7, 4), seed: int = 0, right: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids, mask = torch.ones(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width).long()
    for i, length in enumerate(lengths):
        at = slice(0, length) if right else slice(width - length, width)
        ids[i, at] = torch.randint(5, 500, (length,), generator=generator)
        mask[i, at] = 1
    return ids, mask


def fill(adapted: schemes.Adapted, scale: float = 0.3) -> None:
    """Move the trained tensors away from their initial values."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapted.parameters.values():
            parameter += scale * torch.randn(parameter.shape, generator=generator)


# Sizes as published for the models themselves (hidden, layers, heads, key/value heads, vocabulary).
PUBLISHED = {
    "opt-1.3b": ("opt", 2048, 24, 32, 32, 50272),
    "opt-13b": ("opt", 5120, 40, 40, 40, 50272),
    "llama2-7b": ("llama", 4096, 32, 32, 32, 32000),
    "llama2-13b": ("llama", 5120, 40, 40, 40, 32000),
    "vicuna-7b": ("llama", 4096, 32, 32, 32, 32000),
    "mistral-7b": ("mistral", 4096, 32, 32, 8, 32000),
    "roberta-large": ("roberta", 1024, 24, 16, 16, 50265),
}
COUNTS = {
    "opt-1.3b": (1_572_864, 491_520, 20_480),
    "opt-13b": (6_553_600, 2_048_000, 51_200),
    "llama2-7b": (4_194_304, 1_310_720, 40_960),
    "llama2-13b": (6_553_600, 2_048_000, 51_200),
    "vicuna-7b": (4_194_304, 1_310_720, 40_960),
    "mistral-7b": (3_407_872, 327_680, 40_960),
    "roberta-large": (786_432, 245_760, 10_240),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_published_trainable_counts(name: str) -> None:
    family, width, layers, heads, kv_heads, vocabulary = PUBLISHED[name]
    model = families.make_model(
        family, width=width, layers=layers, heads=heads, vocabulary=vocabulary, device="meta"
    )
    assert model.config.num_attention_heads // getattr(model.config, "num_key_value_heads", heads) == (
        heads // kv_heads
    )
    got = []
    for scheme, options in (("lora", {}), ("prefix", {"init": "normal"}), ("prompt", {"init": "normal"})):
        adapted = attach(model, scheme, **options)
        got.append(adapted.trainable)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == adapted.trainable
        adapted.detach()
    assert tuple(got) == COUNTS[name]


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_what_attach_does_detach_undoes(family: str, scheme: str) -> None:
    model = families.make_model(family)
    ids, mask = rows(right=family == "roberta")
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = attach(model, "ft")
    expected = plain.hidden(ids, mask)
    plain.detach()
    adapted = attach(model, scheme)
    assert adapted.hidden(ids, mask).shape == expected.shape
    assert all(p.requires_grad == (n in adapted.parameters) for n, p in model.named_parameters())
    adapted.detach()
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert not any(p.requires_grad for p in after.values())
    assert all(torch.equal(after[n], before[n]) for n in before)
    again = attach(model, "ft")
    torch.testing.assert_close(again.hidden(ids, mask), expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", ["ft", "lora", "head"])
def test_hidden_states_give_the_models_own_logits(family: str, scheme: str) -> None:
    model = families.make_model(family)
    ids, mask = rows(right=family == "roberta")
    adapted = attach(model, scheme)
    fill(adapted, 0.05)
    with torch.no_grad():
        weight, bias = adapted.head()
        ours = F.linear(adapted.hidden(ids, mask), weight, bias)
        given = {"input_ids": ids, "attention_mask": mask, **schemes.positions(model, mask)}
        theirs = model(**given).logits
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scheme", ["ft", "lora", "prefix", "prompt"])
def test_padding_changes_nothing(family: str, scheme: str) -> None:
    model = families.make_model(family)
    adapted = attach(model, scheme)
    fill(adapted, 0.05)
    right = family == "roberta"
    ids, mask = rows((9, 4), right=right)
    real = mask[1] == 1
    with torch.no_grad():
        together = adapted.hidden(ids, mask)[1][real]
        alone = adapted.hidden(ids[1:, real], mask[1:, real])[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# -- LoRA --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_is_the_dense_model_with_its_product_added(family: str) -> None:
    model = families.make_model(family)
    ids, mask = rows(right=family == "roberta")
    adapted = attach(model, "lora", rank=4, alpha=12.0)
    names = {name.rsplit(".", 2)[1] for name in adapted.parameters}
    assert names == ({"query", "value"} if family == "roberta" else {"q_proj", "v_proj"})
    assert all(not p.any() for n, p in adapted.parameters.items() if n.endswith("lora_B"))
    fill(adapted)
    with torch.no_grad():
        low_rank = adapted.hidden(ids, mask)
        layers = [m for m in model.modules() if isinstance(m, LoRALinear)]
        assert {layer.scale for layer in layers} == {3.0}
        adapted.merge()
        assert not any(isinstance(m, LoRALinear) for m in model.modules())
        merged = attach(model, "ft").hidden(ids, mask)
    torch.testing.assert_close(low_rank, merged, rtol=1e-4, atol=1e-4)


def test_lora_starts_as_a_uniform_a_and_leaves_a_layer_without_bias_without() -> None:
    mistral = families.make_model("mistral")
    adapted = attach(mistral, "lora")
    assert all(m.bias is None for m in mistral.modules() if isinstance(m, LoRALinear))
    assert not any("bias" in name for name in adapted.parameters)
    a = torch.cat([p.flatten() for n, p in adapted.parameters.items() if n.endswith("lora_A")])
    bound = 64**-0.5
    assert a.abs().max() <= bound
    assert float(a.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    opt = families.make_model("opt")
    base = opt.model.decoder.layers[0].self_attn.q_proj.bias
    attach(opt, "lora")
    assert opt.model.decoder.layers[0].self_attn.q_proj.bias is base


def test_lora_takes_the_dtype_of_the_weights() -> None:
    model = families.make_model("llama").to(torch.bfloat16)
    assert {p.dtype for p in attach(model, "lora").parameters.values()} == {torch.bfloat16}


# -- prefix ------------------------------------------------------------------------------------------------


def explicit_attention(module: Any, hidden: Tensor, keys: Tensor, values: Tensor, rotary: Any) -> Tensor:
    """The mixture of one row, position by position, heads repeated by hand: prefix keys are not rotated."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    size = module.head_dim
    q, k, v = (p(hidden).view(-1, p.out_features // size, size).transpose(0, 1) for p in
               (module.q_proj, module.k_proj, module.v_proj))  # fmt: skip
    q, k = (x[0] for x in apply_rotary_pos_emb(q[None], k[None], *rotary))
    k, v = torch.cat((keys, k), 1), torch.cat((values, v), 1)
    groups, p = q.shape[0] // k.shape[0], keys.shape[1]
    out = torch.zeros(q.shape[1], q.shape[0], size)
    for head in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = slice(0, p + t + 1)
            weights = (k[head // groups, seen] @ q[head, t] * module.scaling).softmax(0)
            out[t, head] = weights @ v[head // groups, seen]
    return module.o_proj(out.flatten(1))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_prefix_attention_by_hand_with_grouped_queries(family: str) -> None:
    model = families.make_model(family, layers=1)
    adapted = attach(model, "prefix", length=3, init="normal")
    fill(adapted)
    kv_heads = model.config.num_key_value_heads
    assert model.prefix.keys[0].shape == (kv_heads, 3, 16)
    ids, mask = rows((6,))
    seen: dict[str, Tensor] = {}
    block = model.model.layers[0]
    block.self_attn.register_forward_hook(
        lambda m, a, kw, out: seen.update(
            hidden=kw["hidden_states"][0], out=out[0][0], rotary=kw["position_embeddings"]
        ),
        with_kwargs=True,
    )  # fmt: skip
    with torch.no_grad():
        adapted.hidden(ids, mask)
        ours = explicit_attention(
            block.self_attn, seen["hidden"], model.prefix.keys[0], model.prefix.values[0], seen["rotary"]
        )
    torch.testing.assert_close(ours, seen["out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_prefix_of_activations_acts_as_the_tokens_it_came_from(family: str) -> None:
    """With the tokens in front, at positions of their own, the last hidden state is the same."""
    model = families.make_model(family)
    adapted = attach(model, "prefix", length=4, seed=3)
    tokens = schemes._random_tokens(model, 4, torch.Generator().manual_seed(3))
    ids, mask = rows((5,))
    with torch.no_grad():
        ours = adapted.hidden(ids, mask)[0]
        adapted.detach()
        joined = torch.cat((tokens[None], ids), 1)
        counted = torch.cat((torch.arange(4), torch.arange(5)))[None]  # the real tokens still begin at 0
        theirs = model.base_model(input_ids=joined, position_ids=counted).last_hidden_state[0, 4:]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_prefix_of_a_masked_model_is_seen_by_every_position() -> None:
    model = families.make_model("roberta")
    adapted = attach(model, "prefix")
    ids, mask = rows((6, 3), right=True)
    with torch.no_grad():
        before = adapted.hidden(ids, mask)
        model.prefix.values[0] += 1.0
        after = adapted.hidden(ids, mask)
    assert ((before - after).abs().amax(-1)[mask == 1] > 1e-4).all()


def test_every_prefix_and_prompt_tensor_gets_a_gradient_as_finite_differences_say() -> None:
    for family in FAMILIES:
        for scheme in ("lora", "prefix", "prompt"):
            model = families.make_model(family).double()
            adapted = attach(model, scheme)
            fill(adapted, 0.1)
            ids, mask = rows((5, 3), right=family == "roberta")
            direction = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

            def loss() -> Tensor:
                return (adapted.hidden(ids, mask)[mask == 1] @ direction).square().mean()  # noqa: B023

            loss().backward()
            for parameter in adapted.parameters.values():
                at = parameter.grad.abs().flatten().argmax()
                numbers = []
                for step in (1e-3, -1e-3):  # LLaMA's norm computes in float32
                    with torch.no_grad():
                        parameter.view(-1)[at] += step
                        numbers.append(float(loss()))
                        parameter.view(-1)[at] -= step
                slope = (numbers[0] - numbers[1]) / 2e-3
                assert float(parameter.grad.view(-1)[at]) == pytest.approx(slope, rel=0.02, abs=1e-3)


# -- prompt and head ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CAUSAL)
def test_virtual_tokens_from_the_vocabulary_act_as_the_tokens_themselves(family: str) -> None:
    model = families.make_model(family)
    adapted = attach(model, "prompt", length=3, seed=5)
    tokens = schemes._random_tokens(model, 3, torch.Generator().manual_seed(5))
    ids, mask = rows((5,))
    with torch.no_grad():
        ours = adapted.hidden(ids, mask)
        adapted.detach()
        theirs = model.base_model(input_ids=torch.cat((tokens[None], ids), 1)).last_hidden_state[:, 3:]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_trained_apart_from_the_embeddings(family: str) -> None:
    model = families.make_model(family)
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    before = table.clone()
    adapted = attach(model, "head")
    fill(adapted)
    assert torch.equal(table, before)
    assert model.get_output_embeddings().weight is not table
    adapted.detach()
    assert model.get_output_embeddings().weight is table


# -- checkpointing, generation, files ----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ft", "lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_gradients(family: str, scheme: str) -> None:
    ids, mask = rows((6, 4), right=family == "roberta")
    gradients = []
    for on in (False, True):
        adapted = attach(families.make_model(family), scheme)
        fill(adapted, 0.05)
        with checkpointed(adapted.model, on):
            adapted.hidden(ids, mask)[mask == 1].square().mean().backward()
        gradients.append({n: p.grad for n, p in adapted.parameters.items()})
        assert "forward" not in vars(schemes.find_blocks(adapted.model)[1][0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scheme", ["ft", "lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_generation_without_and_with_a_cache_agree(family: str, scheme: str) -> None:
    adapted = attach(families.make_model(family, seed=4), scheme)
    fill(adapted, 0.2)
    ids, mask = rows((6, 3))
    made = adapted.greedy(ids, mask, max_new=6, stop={2})
    weight, bias = adapted.head()
    for row in range(2):
        text = ids[row][mask[row] == 1]
        for token in made[row]:
            with torch.no_grad():
                hidden = adapted.hidden(text[None], torch.ones_like(text)[None])
            assert int(F.linear(hidden[0, -1], weight, bias).argmax()) == token
            text = torch.cat((text, torch.tensor([token])))
        assert len(made[row]) == 6 or 2 not in made[row]


def test_greedy_generation_stops_at_the_stop_token() -> None:
    adapted = attach(families.make_model("opt", seed=4), "ft")
    ids, mask = rows((6, 3))
    whole = adapted.greedy(ids, mask, max_new=6, stop=set())
    assert [len(made) for made in whole] == [6, 6]
    cut = adapted.greedy(ids, mask, max_new=6, stop={whole[0][2]})
    assert cut[0] == whole[0][: whole[0].index(whole[0][2])]
    with pytest.raises(ValueError, match=r"model: expected a causal model"):
        attach(families.make_model("roberta"), "ft").greedy(ids, mask, stop=set())


@pytest.mark.parametrize("scheme", ["lora", "prefix", "prompt", "head"])
def test_an_adapter_comes_back_from_its_file(scheme: str, tmp_path: Path) -> None:
    ids, mask = rows()
    adapted = attach(families.make_model("mistral"), scheme)
    fill(adapted, 0.1)
    path = save_adapter(adapted, tmp_path / "a.safetensors")
    again = load_adapter(families.make_model("mistral"), path)
    assert (again.scheme, again.options) == (adapted.scheme, adapted.options)
    with torch.no_grad():
        assert torch.equal(again.hidden(ids, mask), adapted.hidden(ids, mask))
        assert torch.equal(again.head()[0], adapted.head()[0])


def test_an_adapter_of_another_model_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = save_adapter(attach(families.make_model("opt"), "lora"), tmp_path / "a.safetensors")
    other = families.make_model("opt", width=32)
    names = [name for name, _ in other.named_parameters()]
    with pytest.raises(ValueError, match=r"path: expected .* of shape"):
        load_adapter(other, path)
    with pytest.raises(ValueError, match=r"path: expected the tensors of lora"):
        load_adapter(families.make_model("opt", layers=1), path)
    assert [name for name, _ in other.named_parameters()] == names
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match=r"path: expected an adapter"):
        load_adapter(other, tmp_path / "text.safetensors")


def test_bad_requests_are_refused() -> None:
    model = families.make_model("opt")
    for scheme, options, message in (
        ("full", {}, "scheme: expected one of"),
        ("ft", {"rank": 3}, "options: expected none for ft"),
        ("lora", {"rank": 0}, "rank: expected a whole number"),
        ("lora", {"alpha": 0.0}, "alpha: expected a number > 0"),
        ("prefix", {"init": "zeros"}, "init: expected one of activations, normal"),
    ):
        with pytest.raises(ValueError, match=message):
            attach(model, scheme, **options)
    attach(model, "lora")
    with pytest.raises(ValueError, match="model: expected one without a scheme"):
        attach(model, "prompt")


def test_a_model_with_fused_projections_is_named() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)).eval()
    with pytest.raises(ValueError, match=r"model: expected one attention with linear q_proj"):
        attach(model, "lora")
    assert not any("lora" in name for name, _ in model.named_parameters())
