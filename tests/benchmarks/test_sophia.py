"""The cases of family sophia: their ids, sizes, and that tiny builds of all of them run and agree."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from tenfold.benchmarks import cases_of, find_case, sophia
from tenfold.benchmarks.harness import Plan, run_case
from tenfold.benchmarks.shapes import GPT2_124M, gpt2_parameters

IDS = [f"sophia.{name}.124m" for name in ("step.f32", "step.bf16", "step.8bit", "hessian.f32", "legacy.f32")]
PEERS = {
    "sophia.step.f32.124m": {"adamw_fused", "adamw_foreach", "liuhong99", "pytorch_optimizer"},
    "sophia.legacy.f32.124m": {"soul"},
}


def test_ids() -> None:
    assert [case.id for case in cases_of("sophia")] == IDS


def test_gpt2_list_is_transformers_own() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    theirs = [(n.removeprefix("transformer."), tuple(p.shape)) for n, p in model.named_parameters()]
    listed = gpt2_parameters(**GPT2_124M)
    assert listed == theirs
    assert len(listed) == 148
    assert sum(torch.Size(shape).numel() for _, shape in listed) == 124_439_808


@pytest.mark.parametrize("case_id", IDS)
def test_tiny_builds_run_and_every_side_agrees(case_id: str) -> None:
    case = find_case(case_id)
    record = run_case(
        type(case)(case.id, lambda device, _: case.build(device, True)), Plan(seconds=1e-3, most=1)
    )
    assert record["why_missing"] is None
    assert record["ms"] > 0
    assert record["backend"] != "none"
    peers = {p["name"]: p for p in record["peers"]}
    assert PEERS.get(case_id, {"liuhong99"}) <= peers.keys()
    for name, peer in peers.items():
        if name == "pytorch_optimizer" and find_spec("pytorch_optimizer") is None:
            assert "not installed" in peer["why_missing"]
            continue
        assert peer["why_missing"] is None, name
        assert peer["agrees"], peer


def test_comparisons_notice_another_update() -> None:
    case = find_case("sophia.step.f32.124m")
    workload = case.build(torch.device("cpu"), True)
    kept = {}
    for side in (workload.ours, *workload.others[:1]):
        assert side.prepare is None or side.prepare() is None
        workload.reset()
        kept[side.name] = workload.keep(side.run())
    adamw = workload.others[0]
    assert adamw.agree is not None
    assert adamw.agree(kept["tenfold"], kept["adamw_fused"]).agrees
    assert not adamw.agree(kept["tenfold"], kept["tenfold"]).agrees
    assert not sophia._same_weights(kept["tenfold"], kept["adamw_fused"]).agrees
