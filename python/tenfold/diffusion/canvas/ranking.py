"""Which eraser comes first: mean rank over the benchmark's metrics, and who is beaten in all of them.

Each metric ranks the methods, 1 is the best, equal values share the mean of their places; a method's score is
the mean of its ranks. UnlearnCanvas (arXiv 2402.11846) shows its seven metrics side by side and names no
total: this one is ours, and says nothing about which metric matters to whom. A method is `beaten` where
another is at least as good in every metric and better in one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.diffusion.canvas.files import COLUMNS, table_rows
from tenfold.diffusion.canvas.scores import Score, summarise

__all__ = ["BETTER_HIGH", "Ranked", "rank_methods", "ranks_of"]

BETTER_HIGH = tuple(name for name in COLUMNS if name.endswith(("_ua", "_ira", "_cra")))
"""Of the table's columns, those where more is better; of the others, less."""
DRAWS = 1000


@dataclass(frozen=True)
class Ranked:
    """mean_rank: over `ranks`, metric -> rank. interval: 95 %, targets resampled within each domain.
    beaten_by: methods that are at least as good in every metric and better in one."""

    method: str
    mean_rank: float
    interval: tuple[float, float]
    ranks: dict[str, float]
    beaten_by: tuple[str, ...]


def rank_methods(scores: Sequence[Score], *, seed: int = 0) -> list[Ranked]:
    """Methods in the order of their mean rank, over the metrics that all of them have and that tell any two
    apart.

    Raises:
        ValueError: no score, or methods with other targets.
    """
    by_method: dict[str, list[Score]] = {}
    for one in scores:
        by_method.setdefault(one.method, []).append(one)
    if not by_method:
        _checks.fail(ValueError, "scores", "at least one", "none")
    for own in by_method.values():
        own.sort(key=lambda one: (one.domain, one.target))  # the methods' rows stand beside each other
    targets = [(one.domain, one.target) for one in next(iter(by_method.values()))]
    for method, own in by_method.items():
        if [(one.domain, one.target) for one in own] != targets:
            _checks.fail(ValueError, "scores", "the same targets of every method", f"others of {method!r}")
    names, values = _table(scores)
    ranks = ranks_of(values, names)
    means = ranks.mean(axis=1)
    low, high = _intervals(by_method, names, seed)
    methods = list(by_method)
    beaten = [tuple(methods[j] for j in range(len(methods)) if _beats(ranks[j], ranks[i])) for i in
              range(len(methods))]  # fmt: skip
    found = [
        Ranked(method, float(means[i]), (float(low[i]), float(high[i])),
               dict(zip(names, map(float, ranks[i]), strict=True)), beaten[i])
        for i, method in enumerate(methods)
    ]  # fmt: skip
    return sorted(found, key=lambda one: one.mean_rank)


def _table(scores: Sequence[Score]) -> tuple[list[str], NDArray[np.float64]]:
    """(metrics that all methods have and that differ, float64 [methods, metrics])."""
    rows = list(table_rows(summarise(scores)).values())
    names = [c for c in COLUMNS if all(row[c] is not None for row in rows)]
    values = np.array([[float(row[c] or 0.0) for c in names] for row in rows], dtype=np.float64)
    told = [i for i in range(len(names)) if len(rows) == 1 or np.ptp(values[:, i]) > 0]
    return [names[i] for i in told], values[:, told]


def ranks_of(values: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
    """[methods, metrics] -> ranks from 1, equal values sharing the mean of their places."""
    out = np.empty_like(values)
    for column, name in enumerate(names):
        good = values[:, column] if name in BETTER_HIGH else -values[:, column]
        out[:, column] = [1 + (good > one).sum() + ((good == one).sum() - 1) / 2 for one in good]
    return out


def _beats(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool((a <= b).all() and (a < b).any())


def _intervals(
    by_method: dict[str, list[Score]], names: list[str], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """2.5 % and 97.5 % of the mean ranks when targets are drawn again; the metrics stay the same."""
    own = next(iter(by_method.values()))
    domains = [[i for i, one in enumerate(own) if one.domain == d] for d in ("style", "object")]
    rng = np.random.default_rng(seed)
    found = np.empty((DRAWS, len(by_method)))
    cells = np.array([[_cell(one) for one in scores] for scores in by_method.values()])  # [m, targets, 6]
    for draw in range(DRAWS):
        columns: dict[str, NDArray[np.float64]] = {}
        picked = [[int(i) for i in rng.choice(rows, len(rows))] if rows else [] for rows in domains]
        for domain, rows in zip(("style", "object"), picked, strict=True):
            if len(rows):
                means = cells[:, rows].mean(axis=1)
                columns |= {f"{domain}_{k}": means[:, i] for i, k in enumerate(("ua", "ira", "cra"))}
        every = [row for rows in picked for row in rows]
        rest = cells[:, every].mean(axis=1)
        columns |= {"fid": rest[:, 3], "seconds": rest[:, 4], "storage_gb": rest[:, 5]}
        columns["memory_gb"] = cells[:, every, 6].max(axis=1)
        values = np.stack([columns[name] for name in names], axis=1) if names else np.zeros((len(cells), 1))
        found[draw] = ranks_of(values, names or ["fid"]).mean(axis=1)
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return low, high


def _cell(one: Score) -> list[float]:
    fid = one.fid["value"] if one.fid is not None else 0.0
    costs = (one.costs.seconds, one.costs.storage_bytes, one.costs.peak_bytes) if one.costs else (0, 0, 0)
    return [one.ua.value, one.ira, one.cra, fid, *map(float, costs)]
