"""Progress of long work with rate and time left: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

__all__ = ["Progress", "duration", "make_console"]


def make_console(terminal: bool | None = None) -> Console:
    """Progress and log lines go to standard error, so that standard output stays for results.

    In a notebook too: left to itself, rich would make every line an output of the cell. Whether it is a
    terminal is found out unless `terminal` says so.
    """
    from rich.console import Console

    return Console(
        stderr=True, highlight=False, markup=False, emoji=False, force_jupyter=False, force_terminal=terminal
    )


class Progress:
    """Counts to `total`; use as a context manager and call `advance`.

    A resumed count starts at `done`; the rate, and with it the time left, counts this session only.
    Where output is no terminal, one line is printed every `interval` seconds and one at the end.
    """

    def __init__(
        self, total: int, label: str, *, done: int = 0, console: Console | None = None, interval: float = 10.0
    ):
        if total < 0 or not 0 <= done <= total:
            raise ValueError(f"done: expected 0 <= done <= total, got done={done}, total={total}")
        self.total, self.label, self.done = total, label, done
        self._console = console or make_console()
        self._interval = interval
        self._first = done
        self._shown: dict[str, Any] = {}
        self._bar: Bar | None = None
        self._told = -1  # the count of the last printed line
        self._start = self._printed = time.monotonic()

    def __enter__(self) -> Progress:
        self._start = self._printed = time.monotonic()
        if self._console.is_terminal:
            self._bar = _bar(self._console)
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, facts="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._told != self.done:
            self._print()

    def advance(self, n: int = 1, **shown: Any) -> None:
        """`n` more are done; `shown` values (loss=0.53) stand beside the count."""
        self.done += n
        self._shown.update(shown)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, facts=self._facts())
        elif time.monotonic() - self._printed >= self._interval:
            self._print()

    def line(self) -> str:
        """The state in one line, as it is printed where there is no terminal."""
        percent = 100 * self.done // self.total if self.total else 100
        return f"{self.label}: {self.done}/{self.total} ({percent} %)  {self._facts()}".rstrip()

    def _print(self) -> None:
        self._printed, self._told = time.monotonic(), self.done
        self._console.print(self.line(), soft_wrap=True)

    def _facts(self) -> str:
        elapsed = time.monotonic() - self._start
        counted = self.done - self._first
        facts = [f"{name} {_short(value)}" for name, value in self._shown.items()]
        if counted and elapsed > 0:
            rate = counted / elapsed
            left = (self.total - self.done) / rate
            facts.insert(0, f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each")
            facts.insert(
                1, f"took {duration(elapsed)}" if self.done >= self.total else f"{duration(left)} left"
            )
        return "  ".join(facts)


def duration(seconds: float) -> str:
    """A length of time for people: '8 s', '2 min 05 s', '3 h 10 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _bar(console: Console) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
    )
    return Bar(*columns, console=console, refresh_per_second=4, transient=False)
