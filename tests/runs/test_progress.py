from __future__ import annotations

import io

import pytest
from rich.console import Console

from tenfold.runs import progress as module
from tenfold.runs.progress import Progress, duration


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_plain_lines_now_and_then_and_at_the_end(clock: Clock) -> None:
    console = plain_console()
    with Progress(100, "train", console=console, interval=10) as p:
        for _ in range(100):
            clock.now += 0.5
            p.advance(1, loss=0.25)
    lines = printed(console)
    assert len(lines) == 5  # after 10, 20, 30, 40 and 50 seconds, which is the end
    assert lines[0] == "train: 20/100 (20 %)  2/s  40 s left  loss 0.25"
    assert lines[-1] == "train: 100/100 (100 %)  2/s  took 50 s  loss 0.25"


def test_rate_of_a_resumed_count_is_that_of_this_session(clock: Clock) -> None:
    p = Progress(100, "train", done=60, console=plain_console())
    clock.now += 20
    p.advance(10)
    assert p.line() == "train: 70/100 (70 %)  2 s each  1 min 00 s left"


def interrupt(console: Console) -> None:
    with Progress(10, "train", console=console) as p:
        p.advance(3)
        raise KeyboardInterrupt


def test_interruption_still_prints_where_it_stood(clock: Clock) -> None:
    console = plain_console()
    with pytest.raises(KeyboardInterrupt):
        interrupt(console)
    assert printed(console) == ["train: 3/10 (30 %)"]


def test_bar_on_a_terminal_shows_the_count() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Progress(4, "train [fast]", console=console) as p:
        for _ in range(4):
            p.advance(loss=0.5)
    text = "".join(printed(console))
    assert "train [fast]" in text
    assert "4/4" in text
    assert "loss 0.5" in text


def test_empty_work_and_bad_counts() -> None:
    with Progress(0, "nothing", console=plain_console()) as p:
        assert p.line() == "nothing: 0/0 (100 %)"
    with pytest.raises(ValueError, match="expected 0 <= done <= total"):
        Progress(3, "train", done=4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (11400, "3 h 10 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
