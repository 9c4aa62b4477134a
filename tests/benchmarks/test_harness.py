"""The measuring: turns, agreement, missing sides, floors."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from tenfold.benchmarks.clocks import Samples, quantile, repeats_for, summary
from tenfold.benchmarks.harness import (
    Agreement,
    Case,
    Moments,
    Plan,
    Side,
    Work,
    Workload,
    change_moments,
    compare_moments,
    compare_values,
    floor_of,
    run_case,
    time_in_turns,
)

FAST = Plan(seconds=0.01, most=3)


def doubling(x: torch.Tensor) -> Side:
    return Side("tenfold", lambda: x * 2, kind="ours", backend=lambda: "cpu")


def case_of(*others: Side, ours: Side | None = None, **kwargs: Any) -> Case:
    x = torch.arange(5.0)

    def build(device: torch.device, tiny: bool) -> Workload:
        return Workload(ours=ours or doubling(x), others=list(others), work=Work(bytes=40.0), **kwargs)

    return Case("fam.op.variant.load", build)


def same(tolerance: float) -> Any:
    return lambda ours, theirs: compare_values([ours], [theirs], tolerance)


def test_record_has_the_contract_keys() -> None:
    peer = Side("good", lambda: torch.arange(5.0) * 2, version="1", agree=same(0.0))
    record = run_case(case_of(peer), FAST)
    assert {"id", "backend", "ms", "peak_extra_mib", "floor_ms", "peers"} <= record.keys()
    assert record["id"] == "fam.op.variant.load"
    assert record["backend"] == "cpu"
    assert record["ms"] > 0
    (entry,) = record["peers"]
    assert {"name", "version", "ms", "why_missing", "peak_extra_mib", "agrees", "max_error"} <= entry.keys()
    assert entry["agrees"] is True
    assert entry["max_error"] == 0.0
    assert entry["why_missing"] is None
    assert entry["times_ours"] == pytest.approx(entry["ms"] / record["ms"])
    low, high = record["ms_quartiles"]
    assert low <= record["ms"] <= high


def test_a_wrong_peer_is_marked_and_still_timed() -> None:
    wrong = Side("wrong", lambda: torch.arange(5.0) * 2 + 0.25, agree=same(1e-3))
    (entry,) = run_case(case_of(wrong), FAST)["peers"]
    assert entry["agrees"] is False
    assert entry["max_error"] == 0.25
    assert entry["ms"] > 0


def test_a_peer_with_nan_disagrees_and_json_stays_strict() -> None:
    wrong = Side("nan", lambda: torch.full((5,), math.nan), agree=same(1e9))
    (entry,) = run_case(case_of(wrong), FAST)["peers"]
    assert entry["agrees"] is False
    assert entry["max_error"] is None


def test_missing_peers_are_named_with_the_reason() -> None:
    def fail() -> None:
        raise RuntimeError("no licence")

    absent = Side("absent", lambda: None, prepare=lambda: "absent is not installed")
    broken = Side("broken", fail)
    skipped = Side("slow", fail, kind="reference")
    plan = Plan(seconds=0.01, most=2, leave_out=frozenset({"reference"}))
    peers = {p["name"]: p for p in run_case(case_of(absent, broken, skipped), plan)["peers"]}
    assert peers["absent"]["why_missing"] == "absent is not installed"
    assert peers["broken"]["why_missing"] == "RuntimeError: no licence"
    assert peers["slow"]["why_missing"] == "left out by --no-reference"
    assert all(p["ms"] is None and p["agrees"] is False for p in peers.values())


def test_ours_missing_leaves_peers_timed_and_not_agreeing() -> None:
    ours = Side("tenfold", lambda: None, kind="ours", prepare=lambda: "not built")
    peer = Side("peer", lambda: torch.ones(1), agree=same(0.0))
    record = run_case(case_of(peer, ours=ours), FAST)
    assert record["ms"] is None
    assert record["why_missing"] == "not built"
    assert record["peers"][0]["ms"] > 0
    assert record["peers"][0]["agrees"] is False


def test_case_that_cannot_be_built_says_why() -> None:
    case = Case("fam.op.variant.load", lambda device, tiny: pytest.fail("built"), needs=lambda: "needs x")
    record = run_case(case, FAST)
    assert record["ms"] is None
    assert record["why_missing"] == "needs x"
    assert record["peers"] == []


def test_a_comparison_that_raises_is_a_disagreement() -> None:
    def agree(ours: Any, theirs: Any) -> Agreement:
        raise ValueError("shapes")

    (entry,) = run_case(case_of(Side("odd", lambda: torch.ones(1), agree=agree)), FAST)["peers"]
    assert entry["agrees"] is False
    assert entry["how_compared"] == "ValueError: shapes"


def test_sides_take_turns_from_a_fresh_input() -> None:
    calls: list[str] = []

    def side(name: str, fewest: int = 3) -> Side:
        def run() -> None:
            calls.append(name)
            time.sleep(0.003)

        return Side(name, run, fewest=fewest)

    sides = [side("a"), side("b"), side("c", fewest=1)]
    warm = Samples(wall=[0.2], cpu=[0.2])  # long enough to say how long a call is
    plan = Plan(seconds=1e-4, most=5)
    samples = time_in_turns(
        sides, lambda: calls.append("reset"), plan, {"a": warm, "b": warm, "c": Samples([0.01], [0.02])}
    )
    # c spent its budget in its first run, which counts; a and b go on in turns, each from a reset input
    assert samples["c"].cpu == [0.02]
    assert "c" not in calls
    assert [c for c in calls if c != "reset"] == ["b", "a", "a", "b", "b", "a"]
    assert calls[::2] == ["reset"] * 6
    assert len(samples["a"].wall) == len(samples["b"].wall) == 3


def test_short_runs_are_repeated_inside_a_sample() -> None:
    count = 0

    def run() -> None:
        nonlocal count
        count += 1

    plan = Plan(seconds=1e-6, most=1)
    loading = Samples(wall=[0.05], cpu=[0.05])  # a first run that loaded code
    samples = time_in_turns([Side("a", run)], lambda: None, plan, {"a": loading})
    assert count > 5
    assert len(samples["a"].wall) == 1
    assert repeats_for(1e-5, torch.device("cpu")) == 200
    assert repeats_for(1.0, torch.device("cpu")) == 1
    assert repeats_for(1e-5, torch.device("cuda")) == 1


def test_parts_are_timed_and_memory_is_attached_to_its_side() -> None:
    asked: list[Any] = []

    def memory(case_id: str, names: Any, plan: Plan) -> dict[str, Any]:
        asked.append((case_id, list(names)))
        return {name: {"peak_extra_mib": float(i)} for i, name in enumerate(names)}

    part = Side("half", lambda: None, kind="part")
    quiet = Side("quiet", lambda: torch.arange(5.0) * 2, agree=same(0.0), measure_memory=False)
    peer = Side("peer", lambda: torch.arange(5.0) * 2, agree=same(0.0))
    record = run_case(case_of(quiet, peer, parts=[part]), FAST, memory)
    assert asked == [("fam.op.variant.load", ["tenfold", "peer", "half"])]
    assert record["peak_extra_mib"] == 0.0
    assert record["parts"]["half"]["peak_extra_mib"] == 2.0
    assert [p["peak_extra_mib"] for p in record["peers"]] == [None, 1.0]


def test_clock_follows_threads_and_device() -> None:
    assert Plan().clock == "process_cpu"
    assert Plan(threads=2).clock == "wall"
    assert Plan(device=torch.device("cuda")).clock == "cuda_events"
    assert summary(Samples(wall=[3.0, 1.0], cpu=[0.5, 0.5]), "wall")["ms"] == 2000.0


def test_quantile() -> None:
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile([7], 0.25) == 7
    with pytest.raises(ValueError, match="values"):
        quantile([], 0.5)


def test_compare_values_finds_the_largest_gap_and_wrong_shapes() -> None:
    a = [torch.zeros(3), torch.zeros(2, 2)]
    b = [torch.zeros(3), torch.tensor([[0.0, 0.0], [0.0, -0.5]])]
    assert compare_values(a, b, 0.4).agrees is False
    assert compare_values(a, b, 0.5).max_error == 0.5
    assert compare_values(a, a[:1], 1.0).agrees is False


def test_moments_of_a_change() -> None:
    before = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    after = [torch.tensor([2.0, 2.0]), torch.tensor([[5.0]])]
    found = change_moments(after, before)
    assert found.count == 3
    assert found.mean == 1.0
    assert found.variance == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("theirs", "agrees"),
    [
        (Moments(10**6, 0.0, 1.0), True),
        (Moments(10**6, 0.001, 1.001), True),
        (Moments(10**6, 0.05, 1.0), False),
        (Moments(10**6, 0.0, 1.05), False),
        (Moments(10**5, 0.0, 1.0), False),
        (Moments(10**6, math.nan, 1.0), False),
    ],
)
def test_moments_agree_within_sampling_error_only(theirs: Moments, agrees: bool) -> None:
    assert compare_moments(Moments(10**6, 0.0, 1.0), theirs).agrees is agrees


def test_moments_accept_another_draw_and_refuse_another_size() -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 10**5, generator=generator)
    assert compare_moments(change_moments([x]), change_moments([y])).agrees
    assert not compare_moments(change_moments([x]), change_moments([1.1 * y])).agrees
    assert not compare_moments(change_moments([x]), change_moments([torch.zeros(10**5)])).agrees


def test_floor_is_the_longer_of_memory_and_generator_plus_products() -> None:
    rates = {"memory_gbps": 10.0, "hot_gbps": {"1000": 40.0}, "generator_gnormals": 1.0, "fma_gflops": 100.0}
    floors = {"rates": {"1": rates}}

    def ms(threads: int = 1, **work: float) -> float:
        return floor_of({"bytes": 0.0, "normals": 0.0, "flops": 0.0, **work}, floors, threads)["floor_ms"]

    assert ms(bytes=1e10) == pytest.approx(1000.0)
    assert ms(bytes=1e9, normals=5e8) == pytest.approx(500.0)
    assert ms(bytes=1e9, normals=5e8, flops=1e11) == pytest.approx(1500.0)
    assert ms(bytes=1e10, footprint=900) == pytest.approx(250.0)
    assert ms(bytes=1e10, footprint=2000) == pytest.approx(1000.0)
    assert ms(threads=4, bytes=1e10) == pytest.approx(1000.0)
