"""Small task folders in the published layouts, and tiny models saved with a tokenizer of their text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_models import sentences

from tenfold.llm import families

WORDS = [" terrible", " great", "Yes", "No"]


def write_sst2(folder: Path, train: int = 120, test: int = 60) -> Path:
    rows = sentences(train + test)
    home = folder / "SST-2"
    home.mkdir(parents=True)
    for name, part in (("train", rows[:train]), ("dev", rows[train:])):
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in part)]
        (home / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_copa(folder: Path, train: int = 24, test: int = 12) -> Path:
    home = folder / "COPA"
    home.mkdir(parents=True)
    rows = sentences(train + test)
    for name, part in (("train", rows[:train]), ("val", rows[train:])):
        records = [
            {
                "premise": f"The film was {text}.", "choice1": "It was terrible and grim.",
                "choice2": "It was great.", "question": ("cause", "effect")[i % 2], "label": label, "idx": i,
            }
            for i, (text, label) in enumerate(part)
        ]  # fmt: skip
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder


def write_squad(folder: Path, train: int = 16, test: int = 6) -> Path:
    home = folder / "squad"
    home.mkdir(parents=True)
    rows = sentences(train + test)

    def entry(text: str, label: int, i: int) -> dict[str, Any]:
        answer = ("terrible", "great")[label]
        qa = {"id": str(i), "question": "What was it?", "answers": [{"text": answer, "answer_start": 0}]}
        return {"title": "Film", "paragraphs": [{"context": text, "qas": [qa]}]}

    for name, part in (("train", rows[:train]), ("dev", rows[train:])):
        data = [entry(text, label, i) for i, (text, label) in enumerate(part)]
        (home / f"{name}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": data}))
    return home


def save_model(family: str, folder: Path, seed: int = 0, **sizes: Any) -> str:
    texts = [f"The film was {text}. It was {w}" for text, _ in sentences(200) for w in ("great", "terrible")]
    tokenizer = families.make_tokenizer(texts, 400, whole=WORDS)
    model = families.make_model(family, vocabulary=len(tokenizer), seed=seed, **({"width": 32} | sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
