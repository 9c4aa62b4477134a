"""Data for unlearning, in one place: rows, templates, encoded rows and batches, pairs, refusals, files.

data = load_mini_tofu()
forget = encode_rows(tokenizer, data.forget, data.template, 256)
batch = collate(forget.rows[:4], tokenizer.pad_token_id)       input_ids, labels, attention_mask, ...
"""

from __future__ import annotations

from tenfold.llm.unlearn.encoding import (
    IGNORE,
    Encoded,
    EncodedRows,
    collate,
    collate_packed,
    encode,
    encode_rows,
    portions,
)
from tenfold.llm.unlearn.pairs import epoch_pairs, sample_forget
from tenfold.llm.unlearn.refusals import REFUSALS, choose_refusals
from tenfold.llm.unlearn.rows import Row, check_rows
from tenfold.llm.unlearn.templates import TEMPLATES, check_template, prompt
from tenfold.llm.unlearn.tofu import (
    MINI,
    TOFU_CONFIGS,
    TofuData,
    load_mini_tofu,
    load_tofu,
    load_tofu_split,
)

__all__ = [
    "IGNORE",
    "MINI",
    "REFUSALS",
    "TEMPLATES",
    "TOFU_CONFIGS",
    "Encoded",
    "EncodedRows",
    "Row",
    "TofuData",
    "check_rows",
    "check_template",
    "choose_refusals",
    "collate",
    "collate_packed",
    "encode",
    "encode_rows",
    "epoch_pairs",
    "load_mini_tofu",
    "load_tofu",
    "load_tofu_split",
    "portions",
    "prompt",
    "sample_forget",
]
