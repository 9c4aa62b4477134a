"""Benchmarks of Tenfold: what each operation costs, against the machine's floor and against named peers.

`main(argv)` is what `tenfold bench` and `python -m tenfold.benchmarks` run. Families are found in the plain
dict `FAMILIES`; a family is a module of this package with a function `cases() -> list[Case]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .harness import Case

# family name -> module of this package that defines cases()
FAMILIES: dict[str, str] = {
    "zo": "zo",
    "lowrank": "lowrank",
    "dual": "dual",
    "logprob": "logprob",
    "mmd": "mmd",
    "sophia": "sophia",
    "overlap": "overlap",
    "surface": "surface",
    "volume": "volume",
    "selection": "selection",
    "power": "power",
    "quality": "quality",
    "channel": "channel",
    "erase": "erase",
    "attack": "attack",
    "metrics": "metrics",
}


def cases_of(family: str) -> list[Case]:
    """All cases of one family, in the order in which they are run.

    Raises ValueError when the family is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(f"family: expected one of {sorted(FAMILIES)}, got {family!r}")
    found: list[Case] = import_module(f".{FAMILIES[family]}", __name__).cases()
    return found


def find_case(case_id: str) -> Case:
    """The case with this id (`family.op.variant.workload`); ValueError when there is none."""
    for case in cases_of(case_id.split(".", 1)[0]):
        if case.id == case_id:
            return case
    raise ValueError(f"id: expected a known benchmark id, got {case_id!r} (see `tenfold bench --list`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that argv names: 0 when ours ran everywhere and every peer that ran agrees."""
    from .cli import main as run_cli

    return run_cli(argv)


__all__ = ["FAMILIES", "cases_of", "find_case", "main"]
