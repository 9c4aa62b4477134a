"""The twelve tasks of the zeroth-order benchmark (arXiv 2402.11592), with the prompts it shares with MeZO
(arXiv 2305.17333).

    splits = load("rte", "superglue/RTE")              published files (or rows in memory)
    rows = encode(splits.train, tokenizer, 512)        one row of token ids per (example, option)
    chosen = predict(sums, rows.option_len, rows.num_options)
    evaluate("rte", chosen, splits.test)               {"accuracy": ...} or {"f1": ..., "em": ...}

`docs/tasks.md` lists files, templates, answer words and metrics.
"""

from __future__ import annotations

from tenfold.llm.tasks.catalog import TASKS, Task, find
from tenfold.llm.tasks.encoding import (
    MaskedRows,
    PaddedRows,
    Rows,
    collate,
    collate_masked,
    demonstration_text,
    encode,
    encode_masked,
    encode_prompts,
)
from tenfold.llm.tasks.metrics import (
    evaluate,
    exact_match,
    first_line,
    normalize_answer,
    predict,
    token_f1,
)
from tenfold.llm.tasks.sampling import KSHOT_SEEDS, TaskSplits, load, load_kshot
from tenfold.llm.tasks.templates import Example

__all__ = [
    "KSHOT_SEEDS",
    "TASKS",
    "Example",
    "MaskedRows",
    "PaddedRows",
    "Rows",
    "Task",
    "TaskSplits",
    "collate",
    "collate_masked",
    "demonstration_text",
    "encode",
    "encode_masked",
    "encode_prompts",
    "evaluate",
    "exact_match",
    "find",
    "first_line",
    "load",
    "load_kshot",
    "normalize_answer",
    "predict",
    "token_f1",
]
