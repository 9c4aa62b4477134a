"""MUSE (arXiv 2407.06460): does the model recite, know, and give away what it was trained on?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenfold.llm.unlearn.encoding import encode_texts
from tenfold.llm.unlearn.evaluate.generation import generate
from tenfold.llm.unlearn.evaluate.mia import membership, privleak
from tenfold.llm.unlearn.evaluate.queries import Stage, counted
from tenfold.llm.unlearn.evaluate.rouge import rouge_l
from tenfold.llm.unlearn.evaluate.scores import token_scores
from tenfold.llm.unlearn.evaluate.texts import TextResult
from tenfold.llm.unlearn.formats import MuseData
from tenfold.llm.unlearn.rows import Row

__all__ = ["evaluate_muse"]


def evaluate_muse(
    model: Any,
    tokenizer: Any,
    data: MuseData,
    *,
    reference_auc: float | None = None,
    min_k: float = 0.4,
    knowmem_tokens: int = 32,
    verbmem_tokens: int = 128,
    max_length: int = 2048,
    tokens: int = 4096,
    progress: Stage = None,
) -> TextResult:
    """KnowMem on both sets, VerbMem, and PrivLeak.

    KnowMem: mean ROUGE-L F1 of short answers, behind the corpus's examples where it has them. VerbMem: mean
    ROUGE-L F1 of the continuation of forget texts. PrivLeak: percent, from the AUC of Min-K% between forget
    and holdout texts.

    Args:
        reference_auc: AUC of the same attack on a model trained without the forget set; None for .5.
        min_k: share of tokens of the attack.
        knowmem_tokens, verbmem_tokens: longest answers.
        max_length: of prompt and answer, and of a text in the attack (longer ones are cut).
    """
    metrics: dict[str, float] = {}
    items: list[dict[str, Any]] = []

    def recall(name: str, rows: Sequence[Row], asked: Sequence[str], new: int, first_line: bool) -> None:
        said = generate(
            model, tokenizer, asked, max_new_tokens=new, max_length=max_length, tokens=tokens,
            progress=counted(progress, name, len(asked)),
        )  # fmt: skip
        told = [text.split("\n", 1)[0].strip() for text in said] if first_line else said
        found = [_recalled(name, row, text) for row, text in zip(rows, told, strict=True)]
        items.extend(found)
        metrics[name] = sum(item["rougeL_f1"] for item in found) / len(found)

    lead = {name: _examples(rows) for name, rows in data.examples.items()}
    for name, rows in (("forget", data.knowmem_forget), ("retain", data.knowmem_retain)):
        asked = [f"{lead.get(name, '')}Question: {row.question}\nAnswer: " for row in rows]
        recall(f"knowmem_{name}", rows, asked, knowmem_tokens, True)
    recall("verbmem_forget", data.verbmem, [row.question for row in data.verbmem], verbmem_tokens, False)
    scores = {
        name: token_scores(
            model, _first_pieces(tokenizer, rows, max_length), pad_id=tokenizer.pad_token_id, tokens=tokens,
            progress=counted(progress, f"privleak, {name}", len(rows)),
        )
        for name, rows in data.privleak.items()
    }  # fmt: skip
    metrics["privleak_auc"] = membership(scores["forget"], scores["holdout"], k=min_k)["min_k"]
    metrics["privleak_auc_retain"] = membership(scores["forget"], scores["retain"], k=min_k)["min_k"]
    metrics["privleak"] = privleak(metrics["privleak_auc"], 0.5 if reference_auc is None else reference_auc)
    return TextResult(metrics, items)


def _examples(rows: Sequence[Row]) -> str:
    return "".join(f"Question: {row.question}\nAnswer: {row.answer}\n\n" for row in rows)


def _first_pieces(tokenizer: Any, rows: Sequence[Row], max_length: int) -> list[Any]:
    """The beginning of each text."""
    seen: dict[int, Any] = {}
    for piece in encode_texts(tokenizer, rows, max_length).rows:
        seen.setdefault(piece.index, piece)
    return list(seen.values())


def _recalled(name: str, row: Row, said: str) -> dict[str, Any]:
    score = rouge_l(row.answer, said)
    return {
        "set": name,
        "index": row.index,
        "question": row.question,
        "answer": row.answer,
        "generated": said,
        "rougeL_f1": score.f1,
        "rougeL_recall": score.recall,
    }
