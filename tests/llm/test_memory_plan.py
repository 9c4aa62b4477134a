"""The memory plan: parameters that are known, what divides by ranks, and peaks of real steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenfold.llm._plan_probe import measure
from tenfold.llm.memory_plan import LLAMA_2_7B, LLAMA_2_70B, METHODS, ZEROTH_ORDER, Shape, memory_plan

DOCS = Path(__file__).parents[2] / "docs"
MEDIUM = Shape(8192, 384, 12, 8, 4, 1024, True)
WITHIN = 0.15


def plan(shape: Any = MEDIUM, **own: Any) -> Any:
    return memory_plan(shape, **({"method": "adamw", "batch": 4, "length": 64} | own))


def config_of(kind: str, **own: Any) -> Any:
    from transformers import AutoConfig

    sizes = {name: value for name, value in MEDIUM._asdict().items() if name not in MEDIUM._field_defaults}
    return AutoConfig.for_model(kind, **(sizes | own))


def test_parameters_are_those_of_the_models() -> None:
    assert plan(LLAMA_2_7B).parameters == 6_738_415_616
    assert plan(LLAMA_2_70B).parameters == 68_976_648_192
    assert plan(config_of("llama", tie_word_embeddings=True)) == plan(MEDIUM)


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        ("llama", {"tie_word_embeddings": True}), ("llama", {"head_dim": 32}),
        ("llama", {"attention_bias": True}), ("llama", {"mlp_bias": True}),
        ("mistral", {"head_dim": 64}), ("qwen2", {"tie_word_embeddings": True}),
    ],
)  # fmt: skip
def test_parameters_are_read_from_configurations(kind: str, own: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    config = config_of(kind, **own)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert plan(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mixtral", "shape: expected one MLP per block, got num_local_experts=8"),
        ("opt", "shape: expected whole numbers .*, got OPTConfig without num_key_value_heads"),
        ("gpt2", "shape: expected whole numbers .*, got GPT2Config without num_key_value_heads"),
        ("gemma2", "shape: expected a model_type of llama, mistral, qwen2, got 'gemma2'"),
    ],
)
def test_other_kinds_of_models_are_refused(kind: str, message: str) -> None:
    from transformers import AutoConfig

    with pytest.raises(ValueError, match=message):
        plan(AutoConfig.for_model(kind))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("own", [{}, {"num_key_value_heads": 2}, {"head_dim": 64}])
def test_activations_are_the_storages_that_a_forward_pass_saves(dtype: str, own: dict[str, int]) -> None:
    """But for what the last norm leaves to the unembedding, which is not run here, and the rotations."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = Shape(512, 256, 4, 8, 8, 672)._replace(**own)
    model = LlamaForCausalLM(LlamaConfig(**shape._asdict())).to(getattr(torch, dtype)).model
    known = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.randint(0, 512, (2, 64)), use_cache=False)
    found = sum(storage.nbytes() for storage in saved.values())
    planned = plan(shape, batch=2, dtype=dtype).activations
    assert planned == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize(
    ("method", "dtype", "per"),
    [
        ("zo-sgd", "float32", 4), ("zo-sgd", "bfloat16", 2), ("zo-adam", "float32", 12),
        ("lozo", "float32", 4),
        ("adamw", "float32", 16), ("adamw", "bfloat16", 8), ("sophia", "float32", 16),
        ("sophia", "bfloat16", 12), ("sophia-8bit", "float32", 10.03125),
    ],
)  # fmt: skip
def test_bytes_per_parameter_beside_activations(method: str, dtype: str, per: float) -> None:
    found = plan(LLAMA_2_7B, method=method, dtype=dtype)
    assert (found.weights + found.gradients + found.states) / found.parameters == pytest.approx(per)


@pytest.mark.parametrize("method", ["zo-sgd", "zo-adam", "adamw", "sophia"])
def test_shards_divide_what_is_kept_and_gather_two_blocks(method: str) -> None:
    one, eight = (plan(LLAMA_2_70B, method=method, ranks=ranks) for ranks in (1, 8))
    for part in ("weights", "gradients", "states"):
        assert getattr(eight, part) == pytest.approx(getattr(one, part) / 8)
    assert eight.activations == one.activations
    assert one.gathered == 0
    assert eight.gathered == 4 * (2 * 855_654_400 + 2 * 32000 * 8192 + 8192)


def test_checkpointing_and_chunks_take_less() -> None:
    usual = plan(LLAMA_2_7B, length=512)
    again = plan(LLAMA_2_7B, length=512, checkpointing=True)
    assert again.activations < usual.activations / 8
    assert plan(LLAMA_2_7B, length=512, chunked=True).logits == 128 << 20 < usual.logits
    assert plan(LLAMA_2_7B, batch=8).activations == 2 * plan(LLAMA_2_7B).activations


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"method": "sgd"}, "method: expected one of"),
        ({"dtype": "float16"}, "dtype: expected one of"),
        ({"batch": 0}, "batch: expected"),
        ({"ranks": 2, "method": "lozo"}, "ranks: expected 1 with lozo"),
        ({"ranks": 2, "method": "sophia-8bit"}, "ranks: expected 1 with sophia-8bit"),
    ],
)
def test_what_cannot_be_planned_is_named(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**own)


def test_the_recorded_steps_are_near_their_plans() -> None:
    """Those that the page shows."""
    rows = json.loads((DOCS / "memory.json").read_text())
    ratios = []
    for row in rows:
        asked = {key: value for key, value in row.items() if key not in ("shape", "measured")}
        ratios.append(memory_plan(Shape(*row["shape"]), **asked).peak / row["measured"])
    assert len(ratios) == 4 * len(METHODS) + 6
    assert all(abs(ratio - 1) < WITHIN for ratio in ratios), ratios


@pytest.mark.slow
def test_steps_take_what_is_planned() -> None:
    small = {"shape": MEDIUM, "batch": 4, "length": 64}
    wide = {"shape": MEDIUM, "batch": 8, "length": 128, "method": "adamw"}
    asked = [small | {"method": method} for method in METHODS]
    asked += [wide, wide | {"checkpointing": True}, wide | {"chunked": True}]
    for request, peak in zip(asked, measure(asked), strict=True):
        assert memory_plan(**request).peak == pytest.approx(peak, rel=WITHIN), request
    assert {"zo-sgd", "zo-adam", "lozo"} == set(ZEROTH_ORDER)


def test_a_failed_step_is_told_with_its_words() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)memory probe: .*multiple of the number"):
        next(measure([{"shape": [64, 30, 1, 4, 4, 64, False], "batch": 1, "length": 4, "method": "adamw"}]))
