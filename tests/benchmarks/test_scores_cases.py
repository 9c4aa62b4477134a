"""The cases of scores: their ids, and that tiny builds of all of them run and agree."""

from __future__ import annotations

import pytest
from tenfold.benchmarks import scores
from tenfold.benchmarks.harness import Plan, run_case

CASES = {case.id: case for case in scores.cases()}


def test_ids() -> None:
    assert list(CASES) == [
        "selection.scores.f32.50kx1000",
        "selection.scores.bf16.50kx1000",
        "selection.gradmatch.f32.4000x256-k100",
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
