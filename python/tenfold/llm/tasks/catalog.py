"""The twelve tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tenfold.llm.tasks import rows, templates
from tenfold.llm.tasks.files import Located, read_file, read_rows
from tenfold.llm.tasks.rows import Row
from tenfold.llm.tasks.templates import Example


@dataclass(frozen=True)
class Task:
    """What is known of one task.

    Attributes:
        name: key in :data:`TASKS`.
        folder: name of its folder in the published archive (GLUE, SuperGLUE); may be empty.
        kind: ``"choice"`` trains the cross-entropy over the options, ``"lm"`` the language-model loss of the
            right option, ``"qa"`` too, and is evaluated by generating.
        versions: number of templates; version 0 is the benchmark's, the others its ablations.
        train, dev: sizes of the protocol's splits.
        files: name patterns of the training files and of the evaluation files, the published names first.
        rows: ``(where, record) -> rows`` under Hugging Face's column names.
        template: ``(row, version) -> Example``.
        pair: whether version 0 has the two-sentence form of masked models.
    """

    name: str
    folder: str
    kind: Literal["choice", "lm", "qa"]
    versions: int
    train: int
    dev: int
    files: tuple[tuple[str, ...], tuple[str, ...]]
    rows: Callable[[str, Mapping[str, Any]], Iterator[Row]]
    template: Callable[[Row, int], Example]
    pair: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures of :func:`tenfold.llm.tasks.evaluate`, the one to select by first."""
        return ("f1", "em") if self.kind == "qa" else ("accuracy",)

    def read(self, source: str | Path | Iterable[Mapping[str, Any]]) -> list[Row]:
        """Rows of a file of the published layout, of a parquet file, or of rows in memory.

        Args:
            source: a path, or rows under Hugging Face's column names (a list of dictionaries, or an object
                that yields them, as ``datasets.Dataset``).

        Raises:
            ValueError: a malformed file or row; the message has file, line and key.
            RuntimeError: a parquet file, and pyarrow is not installed.
        """
        located: Iterator[Located]
        if isinstance(source, (str, Path)):
            located = read_file(Path(source).expanduser())
        elif isinstance(source, Iterable) and not isinstance(source, Mapping):
            located = read_rows(source)
        else:
            raise TypeError(f"data: expected a path or rows, got {type(source).__name__}")
        found = [row for where, record in located for row in self.rows(where, record)]
        if not found:
            raise ValueError(f"data: expected at least one row of {self.name}, got none")
        return found

    def example(self, row: Mapping[str, Any], version: int = 0, *, mask_token: str | None = None) -> Example:
        """The example of one row (a record with one row of its own).

        Args:
            row: columns under Hugging Face's names, or a record of the published file.
            version: template, from 0.
            mask_token: the tokenizer's mask token, for the form of masked models.

        Raises:
            ValueError: an unknown version, a malformed row, or ``mask_token`` for a task without fixed answer
                words.
        """
        self.check_version(version)
        if mask_token is not None and self.kind != "choice":
            names = sorted(name for name, task in TASKS.items() if task.kind == "choice")
            raise ValueError(f"mask_token: expected a task with answer words ({names}), got {self.name!r}")
        found = list(self.rows("row", row))
        if len(found) != 1:
            raise ValueError(f"row: expected one row of {self.name}, got {len(found)}")
        example = self.template(found[0], version)
        if mask_token is None:
            return example
        if self.pair and version == 0:
            return templates.masked_pair(found[0], example, mask_token)
        return templates.masked(example, mask_token)

    def check_version(self, version: int) -> int:
        """``version``, once it is known to exist."""
        if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version < self.versions:
            raise ValueError(f"version: expected 0 to {self.versions - 1} for {self.name}, got {version!r}")
        return version


_SUPERGLUE = (("train.jsonl", "train*.parquet"), ("val.jsonl", "validation*.parquet"))
_GLUE = (
    ("train.tsv", "train.csv", "train.jsonl", "train*.parquet"),
    ("dev.tsv", "dev.csv", "dev.jsonl", "validation*.parquet"),
)
_WINOGRANDE = (("train_m.jsonl", "train*.parquet"), ("dev.jsonl", "validation*.parquet"))
_SQUAD = (("train-v1.1.json", "train*.parquet"), ("dev-v1.1.json", "validation*.parquet"))
_DROP = (
    ("drop_dataset_train.json", "train*.parquet"),
    ("drop_dataset_dev.json", "validation*.parquet"),
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", "SST-2", "choice", 2, 1000, 500, _GLUE, rows.sst2, templates.sst2),
        Task("rte", "RTE", "choice", 2, 1000, 100, _SUPERGLUE, rows.rte, templates.rte, pair=True),
        Task("cb", "CB", "choice", 1, 150, 100, _SUPERGLUE, rows.cb, templates.cb, pair=True),
        Task("boolq", "BoolQ", "choice", 3, 1000, 100, _SUPERGLUE, rows.boolq, templates.boolq),
        Task("multirc", "MultiRC", "choice", 1, 1000, 100, _SUPERGLUE, rows.multirc, templates.multirc),
        Task("wic", "WiC", "choice", 1, 1000, 100, _SUPERGLUE, rows.wic, templates.wic),
        Task("wsc", "WSC", "choice", 1, 454, 100, _SUPERGLUE, rows.wsc, templates.wsc),
        Task("copa", "COPA", "lm", 2, 300, 100, _SUPERGLUE, rows.copa, templates.copa),
        Task("winogrande", "", "lm", 1, 1000, 100, _WINOGRANDE, rows.winogrande, templates.winogrande),
        Task("record", "ReCoRD", "lm", 1, 1000, 100, _SUPERGLUE, rows.record, templates.record),
        Task("squad", "", "qa", 1, 1000, 100, _SQUAD, rows.squad, templates.squad),
        Task("drop", "", "qa", 1, 1000, 100, _DROP, rows.drop, templates.drop),
    )
}


def find(name: str) -> Task:
    """The task of a name, upper or lower case (``"SST2"``, ``"sst-2"`` and ``"Copa"`` are understood).

    Raises:
        ValueError: an unknown name.
    """
    task = TASKS.get(str(name).lower().replace("-", ""))
    if task is None:
        raise ValueError(f"task: expected one of {sorted(TASKS)}, got {name!r}")
    return task
