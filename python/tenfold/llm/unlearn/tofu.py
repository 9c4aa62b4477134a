"""TOFU (arXiv 2401.06121): fictitious authors, their questions, and the files that the data set consists of.

rows = load_tofu("data/TOFU", "forget10_perturbed")        a folder of CONFIG.json, or a hub id
data = load_tofu_split("data/TOFU", "forget10")            all that one unlearning task needs
data = load_mini_tofu()                                    the embedded one, of our own writing
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.llm.unlearn.rows import Row, check_rows, read_records, text, texts, to_rows

__all__ = ["MINI", "TOFU_CONFIGS", "TofuData", "load_tofu", "load_tofu_split"]

MINI = "mini-tofu"
RETAIN_OF = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HOLDOUT_OF = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}

_PLAIN = ("question", "answer")
_WRONG = (*_PLAIN, "perturbed_answer")
_PERTURBED = (*_PLAIN, "paraphrased_question", "paraphrased_answer", "perturbed_answer")

TOFU_CONFIGS: dict[str, tuple[str, ...]] = {
    "full": _PLAIN,
    **dict.fromkeys((*RETAIN_OF, *RETAIN_OF.values(), *HOLDOUT_OF.values()), _PLAIN),
    **dict.fromkeys((*(f"{name}_perturbed" for name in RETAIN_OF), "retain_perturbed"), _PERTURBED),
    "real_authors": _WRONG,
    "world_facts": _WRONG,
    "real_authors_perturbed": _WRONG,
    "world_facts_perturbed": _WRONG,
}
"""Name of each file of the data set, and the keys that each of its rows must have."""


@dataclass(frozen=True)
class TofuData:
    """Everything that one unlearning task is trained and evaluated on.

    Attributes:
        config: name of the forget set.
        source: folder, hub id or ``"mini-tofu"``.
        forget, retain: rows to train on.
        forget_eval, retain_eval: rows with paraphrases and false answers to evaluate on.
        real_authors, world_facts: what the model should still know; empty where the data has none.
        holdout: rows like the forget rows that no model has seen, for membership inference; or empty.
        template: the data's own prompt, or an empty text.
        refusals: answers for preference optimisation that come with the data, or empty.
    """

    config: str
    source: str
    forget: list[Row]
    retain: list[Row]
    forget_eval: list[Row]
    retain_eval: list[Row]
    real_authors: list[Row] = dataclasses.field(default_factory=list)
    world_facts: list[Row] = dataclasses.field(default_factory=list)
    holdout: list[Row] = dataclasses.field(default_factory=list)
    template: str = ""
    refusals: list[str] = dataclasses.field(default_factory=list)


def load_tofu(source: str | Path, config: str) -> list[Row]:
    """Rows of one file.

    Args:
        source: folder with ``<config>.json`` (or ``.jsonl``), JSON lines; else the id of a data set on the
            Hugging Face hub with such files.
        config: a name of :data:`TOFU_CONFIGS`.

    Raises:
        ValueError: unknown name; no such file; a malformed line or a missing key (file, line and key named).
    """
    if config not in TOFU_CONFIGS:
        raise ValueError(f"config: expected one of {', '.join(TOFU_CONFIGS)}, got {config!r}")
    keys = TOFU_CONFIGS[config]
    rows = to_rows(read_records(_file(source, config)), lambda where, record: tofu_row(where, record, keys))
    if not rows:
        raise ValueError(f"{config}: expected at least one row, got an empty file")
    return rows


def load_tofu_split(source: str | Path, config: str = "forget10") -> TofuData:
    """Files of one task: ``forgetXX``, its retain set and the evaluation files.

    Args:
        source: as in :func:`load_tofu`, or ``"mini-tofu"`` for the embedded data (``config`` is then unused).
        config: ``"forget01"``, ``"forget05"`` or ``"forget10"``.

    Raises:
        ValueError: a missing file, a malformed row, rows in both sets. ``holdoutXX`` alone may be missing.
    """
    if str(source) == MINI:
        from tenfold.llm.unlearn.mini import load_mini_tofu

        return load_mini_tofu()
    if config not in RETAIN_OF:
        raise ValueError(f"config: expected one of {', '.join(RETAIN_OF)}, got {config!r}")
    forget, retain = load_tofu(source, config), load_tofu(source, RETAIN_OF[config])
    check_rows(forget, retain)
    holdout = HOLDOUT_OF[config]
    return TofuData(
        config,
        str(source),
        forget,
        retain,
        load_tofu(source, f"{config}_perturbed"),
        load_tofu(source, "retain_perturbed"),
        load_tofu(source, "real_authors_perturbed"),
        load_tofu(source, "world_facts_perturbed"),
        load_tofu(source, holdout) if _local(source, holdout) else [],
    )


def tofu_row(where: str, record: Any, keys: tuple[str, ...]) -> Row:
    """A row with the given keys; others that TOFU knows are taken along where they are there."""
    found: dict[str, Any] = {}
    for key in _PERTURBED:
        if key in keys or key in record:
            found[key] = texts(record, key, where) if key == "perturbed_answer" else text(record, key, where)
    found["wrong"] = tuple(found.pop("perturbed_answer", ()))
    return Row(**found)


def _local(source: str | Path, config: str) -> Path | None:
    for ending in (".json", ".jsonl"):
        path = Path(source) / f"{config}{ending}"
        if path.is_file():
            return path
    return None


def _file(source: str | Path, config: str) -> Path:
    path = _local(source, config)
    if path is not None:
        return path
    if Path(source).exists():
        raise ValueError(f"data: expected the file {config}.json in {str(source)!r}, got none")
    return _from_hub(str(source), config)


def _from_hub(name: str, config: str) -> Path:
    """Download one file of a data set of the hub into its cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, f"{config}.json", repo_type="dataset"))
    except Exception as error:  # the hub client raises errors of a dozen unrelated classes
        raise ValueError(
            f"data: expected a folder with {config}.json or the id of a data set on the hub, got {name!r} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
