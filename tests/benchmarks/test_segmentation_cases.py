"""The cases of softdice and volume: their ids, and that tiny builds of all of them run and agree."""

from __future__ import annotations

import pytest
from tenfold.benchmarks import softdice, volume
from tenfold.benchmarks.harness import Plan, run_case

CASES = {case.id: case for case in (*softdice.cases(), *volume.cases())}


def test_ids() -> None:
    assert list(CASES) == [
        "overlap.dice_ce.f32.55x28x224x224",
        "overlap.dice_ce.bf16.55x28x224x224",
        "volume.resample_argmax.f32.55x32x96x96",
        "volume.keep_largest.u8.60x120x512x512",
    ]


@pytest.mark.parametrize("case_id", CASES)
def test_tiny_builds_run_and_every_side_agrees(case_id: str) -> None:
    case = CASES[case_id]
    plan = Plan(seconds=1e-3, most=1, leave_out=frozenset({"compiled"}))
    record = run_case(type(case)(case.id, lambda device, _: case.build(device, True)), plan)
    assert record["ms"] is not None, record["why_missing"]
    for peer in record["peers"]:
        if peer["ms"] is not None:
            assert peer["agrees"], peer
