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
    encode_texts,
    portions,
)
from tenfold.llm.unlearn.formats import (
    MuseData,
    load_copyright,
    load_muse,
    load_pku,
    load_prompts,
    load_realtoxicityprompts,
    load_texts,
    load_wmdp,
    make_copyright_set,
)
from tenfold.llm.unlearn.mini import load_mini_tofu
from tenfold.llm.unlearn.pairs import epoch_pairs, sample_forget
from tenfold.llm.unlearn.refusals import REFUSALS, choose_refusals
from tenfold.llm.unlearn.rows import Row, check_rows
from tenfold.llm.unlearn.templates import TEMPLATES, check_template, prompt
from tenfold.llm.unlearn.tofu import (
    MINI,
    TOFU_CONFIGS,
    TofuData,
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
    "MuseData",
    "Row",
    "TofuData",
    "check_rows",
    "check_template",
    "choose_refusals",
    "collate",
    "collate_packed",
    "encode",
    "encode_rows",
    "encode_texts",
    "epoch_pairs",
    "load_copyright",
    "load_mini_tofu",
    "load_muse",
    "load_pku",
    "load_prompts",
    "load_realtoxicityprompts",
    "load_texts",
    "load_tofu",
    "load_tofu_split",
    "load_wmdp",
    "make_copyright_set",
    "portions",
    "prompt",
    "sample_forget",
]
