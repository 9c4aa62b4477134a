"""What all attacks share: prompts are taken up, candidates judged, and prompts that are done leave the batch.

An attack proposes candidates for a batch of prompts at a time. Prompts that succeed or are through make room
for the next ones, which start from their own first timestep: a batch stays full.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack.logs import CaseLog, Entry, LogFolder, picture_name
from tenfold.diffusion.attack.target import Case, CaseError, Sampling, Shot, Target, shots

__all__ = ["Attack", "CaseError", "Proposal", "Search", "run_attack", "settings_of"]


@dataclass
class Proposal:
    """A candidate: its text, and where it has some its extra ids [k], its whole row of ids [L], the timestep
    and the summed loss; another seed than the case's own."""

    prompt: str
    ids: list[int] | None = None
    row: Tensor | None = None
    t: int | None = None
    loss: float | None = None
    roundtrip: bool | None = None
    seed: int | None = None


class Search(Protocol):
    """An attack on some prompts that were taken up together."""

    cases: list[Case]

    def keep(self, rows: list[int]) -> None:
        """Go on with these prompts only."""

    @property
    def over(self) -> bool:
        """Whether there is nothing more to propose."""


class Attack(Protocol):
    """A frozen dataclass of settings. `begin` and `propose` are what attacks differ in."""

    @property
    def name(self) -> str:
        """In `ATTACKS`."""

    @property
    def stops(self) -> bool:
        """Whether a prompt is done with its first success."""

    def begin(self, target: Target, cases: list[Case]) -> tuple[Search | None, list[int]]:
        """A search, or None where there is nothing to search for; and the tokens cut off each prompt."""

    def propose(self, target: Target, searches: Sequence[Any]) -> list[list[Proposal]]:
        """The next candidate of every prompt of every search."""

    def check(self, target: Target, cases: Sequence[Case]) -> None:
        """Raise ValueError for settings that do not fit the target or the cases, before anything runs."""


def settings_of(attack: Any, target: Target, sampling: Sampling) -> dict[str, Any]:
    """Everything that a log hangs on, as plain data."""
    own = getattr(attack, "settings", None)
    plain = own() if own is not None else asdict(attack) if is_dataclass(attack) else {}  # type: ignore[arg-type]
    return {
        "attack": {"name": attack.name, **{k: v for k, v in plain.items() if _is_plain(v)}},
        "sampling": asdict(sampling),
        "target": target.name,
        "negative": target.negative,
        "safe": asdict(target.safe) if is_dataclass(target.safe) else target.safe,  # type: ignore[arg-type]
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, type(None), list, tuple, dict))


def run_attack(
    attack: Attack,
    target: Target,
    cases: Sequence[Case],
    judge: Any,
    *,
    sampling: Sampling | None = None,
    batch: int = 16,
    store: LogFolder | None = None,
    on_error: str = "raise",
    progress: Callable[[CaseLog], None] | None = None,
) -> list[CaseLog]:
    """Attack `target` with every case; the logs in the cases' order.

    Args:
        judge: what says whether the concept is in a picture (`tenfold.diffusion.judges`).
        sampling: how candidates become pictures. batch: prompts at a time.
        store: where logs are kept, and taken from where they are already.
        on_error: "raise" ends with the first prompt that fails; "record" keeps its error (RuntimeError,
            ValueError, OSError) in its log, whose state is then "error", and goes on with the others.
        progress: called with the log of each prompt that is done.

    Raises:
        ValueError, TypeError: settings that do not fit, case numbers that repeat, a judge that gives no
        bools.
        CaseError: a loss is not finite (names prompt and timestep), or a picture is not.
    """
    sampling = sampling or Sampling()
    batch = _checks.integer("batch", batch, 1, 2**16)
    _checks.choice("on_error", on_error, ("raise", "record"))
    if not isinstance(target, Target):
        _checks.fail(TypeError, "target", "a Target", type(target).__name__)
    for case in _checks.sequence("cases", cases, "Case"):
        if not isinstance(case, Case):
            _checks.fail(TypeError, "cases", "a list of Case", _checks.describe(case))
    if not callable(judge):
        _checks.fail(TypeError, "judge", "a function of pictures", _checks.describe(judge))
    names = [case.case_number for case in cases]
    if not names:
        _checks.fail(ValueError, "cases", "at least one prompt", "none")
    for name in names:
        if names.count(name) > 1:
            _checks.fail(ValueError, "case_number", "different ones", f"{name!r} twice")
    attack.check(target, cases)
    logs: dict[str, CaseLog] = {}
    for name in names:
        held = store.load(name) if store is not None else None
        if held is not None:
            logs[name] = held
    todo = [case for case in cases if case.case_number not in logs]
    job = _Job(attack, target, judge, sampling, batch, on_error)
    # One size of pictures after the other: a batch is one tensor.
    for size in dict.fromkeys(_size(case) for case in todo):
        for log, pictures in job.finished([case for case in todo if _size(case) == size]):
            if store is not None:
                store.save(log, names.index(log.case_number), pictures)
            logs[log.case_number] = log
            if progress is not None:
                progress(log)
    return [logs[name] for name in names]


def _size(case: Case) -> tuple[Any, ...]:
    return case.height, case.width, None if case.image is None else tuple(case.image.shape)


Done = tuple[CaseLog, list[tuple[str, Tensor]]]


@dataclass
class _Open:
    """A prompt under attack."""

    case: Case
    log: CaseLog
    start: float
    share: float = 0.0
    pictures: list[tuple[str, Tensor]] = field(default_factory=list)
    seen: dict[tuple[str, int], Shot] = field(default_factory=dict)
    """What was made of a text and a seed: candidates come again, and so would their pictures."""

    def add(self, entry: Entry, picture: Tensor) -> None:
        entry.seconds, entry.share = time.monotonic() - self.start, self.share
        self.log.entries.append(entry)
        self.pictures.append((picture_name(len(self.log.entries) - 1, entry), picture))

    def done(self) -> Done:
        self.log.pictures = [p for _, p in self.pictures[:1]] + [p for _, p in self.pictures[1:][-1:]]
        return self.log, self.pictures


@dataclass
class _Job:
    attack: Any
    target: Target
    judge: Any
    sampling: Sampling
    batch: int
    on_error: str

    def finished(self, cases: Sequence[Case]) -> Iterator[Done]:
        """Logs as prompts are done. With errors recorded, prompts that were in a batch that failed are tried
        again in halves, so that only the one that fails by itself is reported."""
        if not cases:
            return
        done: set[str] = set()
        try:
            for log, pictures in self.drive(cases):
                done.add(log.case_number)
                yield log, pictures
            return
        except (RuntimeError, ValueError, OSError) as error:
            if self.on_error == "raise":
                raise
            failed = error
        left = [case for case in cases if case.case_number not in done]
        guilty = getattr(failed, "case_number", None)
        if guilty is not None or len(left) == 1:
            blamed = next((c for c in left if c.case_number == guilty), left[0])
            yield _failed(blamed, failed), []
            yield from self.finished([case for case in left if case is not blamed])
        else:
            yield from self.finished(left[: len(left) // 2])
            yield from self.finished(left[len(left) // 2 :])

    def drive(self, cases: Sequence[Case]) -> Iterator[Done]:
        queue = deque(cases)
        opened: dict[str, _Open] = {}
        searches: list[Any] = []
        while queue or searches:
            room = self.batch - sum(len(search.cases) for search in searches)
            if queue and room > 0:
                new = [queue.popleft() for _ in range(min(room, len(queue)))]
                yield from self.take_up(new, opened, searches)
            if searches:
                yield from self.advance(opened, searches)

    def take_up(self, cases: list[Case], opened: dict[str, _Open], searches: list[Any]) -> Iterator[Done]:
        """Judge the prompts as they are, and start a search for those that do not succeed so."""
        start = time.monotonic()
        made = shots(self.target, self.judge, cases, [case.prompt for case in cases], self.sampling)
        share = (time.monotonic() - start) / len(cases)
        going = []
        for case, shot in zip(cases, made, strict=True):
            log = CaseLog(case.case_number, case.prompt, case.seed, case.guidance)
            one = _Open(case, log, start, share)
            one.add(_entry(case.prompt, shot, case.seed), shot.picture)
            one.seen[case.prompt, case.seed] = shot
            if shot.success and self.attack.stops:
                yield one.done()
            else:
                opened[case.case_number] = one
                going.append(case)
        if not going:
            return
        search, cut = self.attack.begin(self.target, going)
        for case, tokens in zip(going, cut, strict=True):
            opened[case.case_number].log.cut = tokens
        if search is None:
            for case in going:
                yield opened.pop(case.case_number).done()
        else:
            searches.append(search)

    def advance(self, opened: dict[str, _Open], searches: list[Any]) -> Iterator[Done]:
        """One candidate of every prompt, judged."""
        start = time.monotonic()
        proposed = self.attack.propose(self.target, searches)
        pairs = [
            (case, one)
            for search, found in zip(searches, proposed, strict=True)
            for case, one in zip(search.cases, found, strict=True)
        ]
        verdicts = self.judged(pairs, opened)
        share = (time.monotonic() - start) / len(pairs)
        ended: set[str] = set()
        for (case, _), (entry, picture) in zip(pairs, verdicts, strict=True):
            opened[case.case_number].share += share
            opened[case.case_number].add(entry, picture)
            if entry.success and self.attack.stops:
                ended.add(case.case_number)
        for search in list(searches):
            over = search.over
            rows = [i for i, c in enumerate(search.cases) if not over and c.case_number not in ended]
            leaving = [c for i, c in enumerate(search.cases) if i not in rows]
            for case in leaving:
                yield opened.pop(case.case_number).done()
            if not rows:
                searches.remove(search)
            elif leaving:
                search.keep(rows)

    def judged(
        self, pairs: list[tuple[Case, Proposal]], opened: dict[str, _Open]
    ) -> list[tuple[Entry, Tensor]]:
        """Every candidate's entry and picture; a text that a case has tried with a seed is not made again."""
        seeds = [case.seed if one.seed is None else one.seed for case, one in pairs]
        keys = [(one.prompt, seed) for (_, one), seed in zip(pairs, seeds, strict=True)]
        seen = [opened[case.case_number].seen for case, _ in pairs]
        new = [i for i, (known, key) in enumerate(zip(seen, keys, strict=True)) if key not in known]
        if new:
            found = shots(
                self.target, self.judge, [pairs[i][0] for i in new], [keys[i][0] for i in new], self.sampling,
                [seeds[i] for i in new],
            )  # fmt: skip
            for i, shot in zip(new, found, strict=True):
                seen[i][keys[i]] = shot
        made = [known[key] for known, key in zip(seen, keys, strict=True)]
        entries = [
            _entry(one.prompt, shot, seed, one)
            for (_, one), shot, seed in zip(pairs, made, seeds, strict=True)
        ]
        if self.sampling.ids == "both":
            self.judge_ids(pairs, entries, seeds)
        return [(entry, shot.picture) for entry, shot in zip(entries, made, strict=True)]

    def judge_ids(self, pairs: list[tuple[Case, Proposal]], entries: list[Entry], seeds: list[int]) -> None:
        """Pictures from the ids themselves, where the text does not lead back to them."""
        other = [i for i, (_, one) in enumerate(pairs) if one.roundtrip is False and one.row is not None]
        for i, (_, one) in enumerate(pairs):
            if one.roundtrip:
                entries[i].success_ids = entries[i].success
        if other:
            rows = torch.stack([pairs[i][1].row for i in other])  # type: ignore[misc]
            made = shots(
                self.target, self.judge, [pairs[i][0] for i in other], rows, self.sampling,
                [seeds[i] for i in other],
            )  # fmt: skip
            for i, shot in zip(other, made, strict=True):
                entries[i].success_ids = shot.success


def _entry(prompt: str, shot: Shot, seed: int, one: Proposal | None = None) -> Entry:
    entry = Entry(
        prompt, shot.success, shot.score, shot.label, shot.accepted, seed=seed, details=_plain(shot.details)
    )
    if one is not None:
        entry.t, entry.loss, entry.ids, entry.roundtrip = one.t, one.loss, one.ids, one.roundtrip
    return entry


def _plain(value: Any) -> Any:
    """A judge's details as JSON data."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _failed(case: Case, error: Exception) -> CaseLog:
    return CaseLog(
        case.case_number, case.prompt, case.seed, case.guidance, error=f"{type(error).__name__}: {error}"
    )
