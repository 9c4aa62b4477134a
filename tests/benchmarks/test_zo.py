"""The cases of family zo: their ids, sizes, and that tiny builds of all of them run and agree."""

from __future__ import annotations

import time

import pytest
import torch
from tenfold.benchmarks import FAMILIES, cases_of, find_case
from tenfold.benchmarks.harness import Plan, Workload, change_moments, run_case
from tenfold.benchmarks.peers import compiled, fzoo, mezo
from tenfold.benchmarks.shapes import OPT_125M, fill, opt_parameters

CPU = torch.device("cpu")
REQUIRED = [
    "zo.perturb.gaussian.f32.opt125m",
    "zo.perturb.gaussian.bf16.opt125m",
    "zo.perturb.gaussian.f16.opt125m",
    "zo.perturb.rademacher.f32.opt125m",
    "zo.step_passes.f32.opt125m",
    "zo.step.f32.opt125m-b16x32",
    "zo.step.f32.opt125m-b16x32-sameforward",
    "zo.step.f32.opt125m-b16x32-optionhead",
]


def peers_of(workload: Workload) -> set[str]:
    return {side.name for side in workload.others if side.kind == "peer"}


def test_required_ids_exist_once() -> None:
    ids = [case.id for case in cases_of("zo")]
    assert set(REQUIRED) <= set(ids)
    assert len(ids) == len(set(ids))
    assert all(i.split(".")[0] in FAMILIES and len(i.split(".")) >= 4 for i in ids)
    with pytest.raises(ValueError, match="family"):
        cases_of("none")
    with pytest.raises(ValueError, match="id"):
        find_case("zo.none")


def test_opt_125m_list_is_transformers_own() -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.OPTForCausalLM(transformers.OPTConfig())
    theirs = [(name.removeprefix("model."), tuple(p.shape)) for name, p in model.named_parameters()]
    listed = opt_parameters(**OPT_125M)
    assert listed == theirs
    assert sum(torch.Size(shape).numel() for _, shape in listed) == 125_239_296


@pytest.mark.parametrize("case_id", [case.id for case in cases_of("zo") if ".step." not in case.id])
def test_tiny_builds_run_and_every_side_agrees(case_id: str) -> None:
    case = find_case(case_id)
    tiny = case.build(CPU, True)
    for side in tiny.others:
        assert side.agree is not None
        assert side.version
    plan = Plan(seconds=1e-3, most=1, leave_out=frozenset({"compiled"}))
    record = run_case(type(case)(case.id, lambda device, _: case.build(device, True)), plan)
    assert record["why_missing"] is None
    assert record["ms"] > 0
    assert record["backend"] != "none"
    ran = {p["name"]: p for p in record["peers"] if p["ms"] is not None}
    assert peers_of(tiny) <= ran.keys()
    assert all(p["agrees"] for p in ran.values()), ran
    if "reference" in ran:
        assert ran["reference"]["max_error"] == 0.0


@pytest.mark.parametrize("case_id", [i for i in REQUIRED if ".step." in i])
def test_tiny_whole_step_agrees_with_mezo(case_id: str) -> None:
    pytest.importorskip("transformers")
    case = find_case(case_id)
    record = run_case(
        type(case)(case.id, lambda device, _: case.build(device, True)), Plan(seconds=1e-3, most=1)
    )
    assert record["why_missing"] is None
    entry = {p["name"]: p for p in record["peers"]}["mezo"]
    assert entry["agrees"], entry
    assert record["parts"]["forwards"]["ms"] > 0


def test_named_peers() -> None:
    peers = {i: peers_of(find_case(i).build(CPU, True)) for i in REQUIRED if ".step." not in i}
    assert peers["zo.perturb.rademacher.f32.opt125m"] == {"fzoo", "mezo"}
    assert all("mezo" in names for names in peers.values())


def test_mezo_walks_back_to_where_it_started_and_then_steps() -> None:
    start = fill([("a.weight", (40, 30)), ("a.bias", (30,))], torch.float64, CPU)
    named = [("a.weight", start[0].clone()), ("a.bias", start[1].clone())]
    for scale in (1, -2, 1):
        mezo.perturb(named, 5, scale, 1e-3)
    assert all(torch.allclose(t, s, rtol=0, atol=1e-15) for (_, t), s in zip(named, start, strict=True))
    mezo.update(named, 5, 0.1, 2.0, weight_decay=0.5)
    torch.manual_seed(5)
    z = [torch.normal(mean=0, std=1, size=s.shape, dtype=s.dtype) for s in start]
    assert torch.allclose(named[0][1], start[0] - 0.1 * (2.0 * z[0] + 0.5 * start[0]))
    assert torch.allclose(named[1][1], start[1] - 0.1 * 2.0 * z[1])


def test_mezo_leaves_norms_and_biases_undecayed_by_name() -> None:
    assert mezo.decays("decoder.layers.0.fc1.weight")
    assert not any(map(mezo.decays, ("x.fc1.bias", "x.self_attn_layer_norm.weight", "layernorm.weight")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fzoo_draws_signs(dtype: torch.dtype) -> None:
    z = fzoo.draw(torch.zeros(10_000, dtype=dtype))
    assert z.dtype == dtype
    assert set(z.tolist()) == {-1.0, 1.0}
    assert abs(change_moments([z]).mean) < 0.06


def test_compilable_pass_is_the_reference_up_to_rounding() -> None:
    from tenfold.kernels.zo.zo_reference import sample

    theta = torch.zeros(4096)
    compiled.gaussian_pass_(theta, compiled.address(3, 1, 2**40 + 5, CPU), torch.tensor(1.0))
    assert (theta - sample(2**40 + 5, 3, 1, 0, 4096)).abs().max() < 2e-6


def test_compile_limit_is_kept() -> None:
    with pytest.raises(TimeoutError, match="took more than"), compiled._time_limit(0.01):
        time.sleep(5)
