"""The cases of the channel: their ids, that every side agrees, and that one with other noise does not."""

from __future__ import annotations

import math

import pytest
import torch
from tenfold.benchmarks import channel
from tenfold.benchmarks.harness import Plan, run_case

CASES = {case.id: case for case in channel.cases()}


def test_ids() -> None:
    assert list(CASES) == [
        "channel.noma.rayleigh.c64.4096x8x64-n2",
        "channel.joint.rayleigh.c64.4096x8x64-n2",
    ]


@pytest.mark.parametrize("case_id", CASES)
def test_tiny_builds_run_and_every_side_agrees(case_id: str) -> None:
    case = CASES[case_id]
    record = run_case(
        type(case)(case.id, lambda device, _: case.build(device, True)), Plan(seconds=1e-3, most=1)
    )
    assert record["ms"] is not None, record["why_missing"]
    assert record["peers"]
    for peer in record["peers"]:
        assert peer["ms"] is not None, peer
        assert peer["agrees"], peer


def test_a_side_with_other_noise_or_other_gains_does_not_agree() -> None:
    workload = CASES["channel.noma.rayleigh.c64.4096x8x64-n2"].build(torch.device("cpu"), True)
    ours = workload.keep(workload.ours.run())
    side = next(side for side in workload.others if side.name == "torch")
    assert side.agree is not None
    assert side.agree(ours, workload.keep(side.run())).agrees
    t, noise_power = channel._symbols(torch.device("cpu"), True)
    louder = channel._join(4 * noise_power, t, *channel._draw(t))
    assert not side.agree(ours, workload.keep(louder)).agrees
    g, w = channel._draw(t)
    weaker = channel._join(noise_power, t, g * math.sqrt(0.5), w)
    assert not side.agree(ours, workload.keep(weaker)).agrees
    twice = channel.Expression(channel._draw, lambda t, g, w: channel._join(2 * noise_power, t, g, w))
    assert not channel._agree(twice, t, 1e-5, ours, ours).agrees
