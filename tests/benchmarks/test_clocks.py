"""How a GPU is timed, on a clock of the test's own and a stream that works through what it is given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tenfold.benchmarks import clocks
from tenfold.benchmarks.clocks import Samples, take_device_sample, take_sample
from tenfold.benchmarks.harness import Plan, Side, time_in_turns

DEVICE = torch.device("cuda")
CYCLES_A_SECOND = 1e9


class Stream:
    """`now` is the host's clock; what the host has queued ends at `free`."""

    def __init__(self) -> None:
        self.now = self.free = 0.0
        self.slept: list[float] = []

    def host(self, seconds: float) -> None:
        self.now += seconds

    def work(self, seconds: float) -> None:
        self.free = max(self.free, self.now) + seconds

    def sleep(self, cycles: int) -> None:
        self.slept.append(cycles / CYCLES_A_SECOND)
        self.work(self.slept[-1])

    def wait(self, *_: Any) -> None:
        self.now = max(self.free, self.now)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    made = Stream()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = max(made.free, made.now)

        def elapsed_time(self, other: Event) -> float:
            return (other.at - self.at) * 1e3

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", made.sleep, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", made.wait)
    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter=made.clock, process_time=made.clock))
    monkeypatch.setattr(clocks, "flush_l2", lambda device: None)
    monkeypatch.setattr(clocks, "_cycles_per_second", {})
    return made


def launch(stream: Stream, host: float, device: float) -> None:
    """A call that the host takes `host` seconds to issue and the device `device` seconds to do."""
    stream.host(host)
    stream.work(device)


def test_the_wait_hides_the_launches_of_the_host(stream: Stream) -> None:
    run = lambda: launch(stream, 4e-3, 1e-3)  # noqa: E731
    plain, behind = Samples(), Samples(issue=[4e-3])
    take_sample(run, DEVICE, 1, plain)
    assert plain.cuda == pytest.approx([5e-3])
    assert plain.issue == pytest.approx([4e-3])
    take_device_sample(run, DEVICE, behind)
    assert stream.slept[-1] == pytest.approx(1.5 * 4e-3 + clocks.HEAD_START_S)
    assert behind.cuda == pytest.approx([1e-3])


def test_work_of_the_host_is_timed_by_the_wall_clock(stream: Stream) -> None:
    samples = Samples(issue=[3e-3])
    take_device_sample(lambda: stream.host(3e-3), DEVICE, samples, host=True)
    assert stream.slept == []
    assert samples.cuda == pytest.approx([3e-3])


def test_sides_take_turns_and_keep_a_wall_clock_without_a_wait(stream: Stream) -> None:
    long = Side("long", lambda: launch(stream, 30e-3, 1e-3), fewest=1)
    short = Side("short", lambda: launch(stream, 1e-3, 2e-3))
    plan = Plan(device=DEVICE, seconds=0.05, most=4)
    found = time_in_turns([short, long], lambda: None, plan, {})
    assert found["short"].cuda == pytest.approx([2e-3] * 4)
    assert found["short"].wall == pytest.approx([3e-3] * clocks.UNAIDED)
    assert found["long"].cuda == pytest.approx([31e-3] * 2)  # it cannot be issued ahead of the device
    assert max(stream.slept) < clocks.LONGEST_ISSUE_S
