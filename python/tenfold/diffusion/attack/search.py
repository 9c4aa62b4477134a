"""Attacks without a gradient: the prompt alone, random tokens, other seeds, and prompts found elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack.base import Proposal, run_attack
from tenfold.diffusion.attack.draws import case_stream, random_seeds, random_tokens
from tenfold.diffusion.attack.gradient import Text, allowed_tokens, check_room, check_words, known_modes
from tenfold.diffusion.attack.logs import CaseLog, read_published
from tenfold.diffusion.attack.target import Case, Target, decode, survives
from tenfold.diffusion.encode import vocabulary_size

__all__ = ["NoAttack", "RandomTokens", "SeedSearch", "Transfer"]


class _Base:
    """What attacks that propose a fixed list of candidates share."""

    def run(self, target: Target, cases: Sequence[Case], judge: Any, **options: Any) -> list[CaseLog]:
        """Attack every case (`base.run_attack`, whose options these are)."""
        return run_attack(self, target, cases, judge, **options)  # type: ignore[arg-type]

    def check(self, target: Target, cases: Sequence[Case]) -> None:
        """See `base.Attack`."""

    def propose(self, target: Target, searches: Sequence[ListSearch]) -> list[list[Proposal]]:
        """See `base.Attack`."""
        return [search.following() for search in searches]


class ListSearch:
    """The candidates of each prompt, known beforehand. A prompt whose list is shorter repeats its last."""

    def __init__(self, cases: Sequence[Case], lists: Sequence[list[Proposal]]):
        self.cases, self.lists, self.at = list(cases), list(lists), 0

    @property
    def over(self) -> bool:
        return self.at >= max(len(found) for found in self.lists)

    def following(self) -> list[Proposal]:
        self.at += 1
        return [found[min(self.at, len(found)) - 1] for found in self.lists]

    def keep(self, rows: list[int]) -> None:
        self.cases = [self.cases[i] for i in rows]
        self.lists = [self.lists[i] for i in rows]


@dataclass(frozen=True)
class NoAttack(_Base):
    """The prompts as they are: pre-ASR."""

    name: ClassVar[str] = "no_attack"
    stops: ClassVar[bool] = True

    def begin(self, target: Target, cases: list[Case]) -> tuple[None, list[int]]:
        """See `base.Attack`."""
        return None, [0] * len(cases)


@dataclass(frozen=True)
class RandomTokens(_Base):
    """`tries` times k random tokens put into each prompt.

    mode: as `TextGrad` has it. banned: words whose tokens are not used. seed: of the tokens.
    """

    k: int = 3
    tries: int = 40
    mode: str = "prefix"
    banned: tuple[str, ...] = ()
    overflow: str = "error"
    seed: int = 0

    name: ClassVar[str] = "random"
    stops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checks.integer("k", self.k, 1, 2**16)
        _checks.integer("tries", self.tries, 1, 10**6)
        _checks.choice("mode", self.mode, known_modes())
        check_words("banned", self.banned)
        _checks.choice("overflow", self.overflow, ("error", "truncate"))
        _checks.seed("seed", self.seed)

    def check(self, target: Target, cases: Sequence[Case]) -> None:
        """See `base.Attack`."""
        check_room(self, target, cases)

    def begin(self, target: Target, cases: list[Case]) -> tuple[ListSearch, list[int]]:
        """See `base.Attack`."""
        bundle = target.bundle
        text = Text.of(bundle, [case.prompt for case in cases], self.k, self.overflow)
        mask = allowed_tokens(bundle, self.banned)
        size = vocabulary_size(bundle)
        allowed = torch.arange(size) if mask is None else mask.cpu().nonzero()[:, 0]
        drawn = [
            random_tokens(self.seed, case_stream(c.case_number), self.tries, self.k, allowed) for c in cases
        ]
        lists: list[list[Proposal]] = [[] for _ in cases]
        for at in range(self.tries):
            extra = torch.stack([tokens[at] for tokens in drawn])
            for found, row, ids in zip(lists, text.rows(extra, self.mode), extra, strict=True):
                found.append(_proposal(target, row, ids))
        return ListSearch(cases, lists), text.cut


def _proposal(target: Target, row: Tensor, ids: Tensor) -> Proposal:
    bundle = target.bundle
    return Proposal(decode(bundle, row), ids.tolist(), row, roundtrip=survives(bundle, row))


@dataclass(frozen=True)
class SeedSearch(_Base):
    """The prompt as it is with `tries` other seeds. stop: at the first that succeeds; the published code
    tries all and reports their share."""

    tries: int = 40
    stop: bool = False
    seed: int = 0

    name: ClassVar[str] = "seed_search"

    def __post_init__(self) -> None:
        _checks.integer("tries", self.tries, 1, 10**6)
        _checks.seed("seed", self.seed)

    @property
    def stops(self) -> bool:
        return self.stop

    def begin(self, target: Target, cases: list[Case]) -> tuple[ListSearch, list[int]]:
        """See `base.Attack`."""
        lists = [
            [
                Proposal(case.prompt, seed=s)
                for s in random_seeds(self.seed, case_stream(case.case_number), self.tries, case.seed)
            ]
            for case in cases
        ]
        return ListSearch(cases, lists), [0] * len(cases)


@dataclass(frozen=True)
class Transfer(_Base):
    """Prompts that an attack found on another model, tried on this one with the same seed.

    logs: folder in the published layout, or logs. Cases whose attack failed there have nothing to try but the
    original prompt: they count as defended here.
    """

    logs: str | Path | Sequence[CaseLog] = field(default=())

    name: ClassVar[str] = "transfer"
    stops: ClassVar[bool] = True

    def found(self) -> dict[str, str]:
        """Case -> the prompt that succeeded."""
        logs = read_published(self.logs).values() if isinstance(self.logs, (str, Path)) else self.logs
        return {log.case_number: log.found.prompt for log in logs if log.found is not None}

    def settings(self) -> dict[str, Any]:
        """What is tried: where it was found does not matter."""
        return {"found": self.found()}

    def check(self, target: Target, cases: Sequence[Case]) -> None:
        """See `base.Attack`."""
        found = self.found()
        if not set(found) & {case.case_number for case in cases}:
            _checks.fail(ValueError, "logs", "a prompt that succeeded for one of the cases", sorted(found))

    def begin(self, target: Target, cases: list[Case]) -> tuple[ListSearch, list[int]]:
        """See `base.Attack`."""
        found = self.found()
        lists = [[Proposal(found.get(case.case_number, case.prompt))] for case in cases]
        return ListSearch(cases, lists), [0] * len(cases)
