"""Rows of each task under Hugging Face's column names, checked, labels as integers.

A function ``NAME(where, record)`` takes one record of any published layout and yields its rows (MultiRC and
ReCoRD keep several in one record). A row that has passed comes through unchanged a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from tenfold.llm.tasks.files import Record, get

Row: TypeAlias = "dict[str, Any]"

TRUTH = {"false": 0, "true": 1, "0": 0, "1": 1}
NUMBERS = {"0": 0, "1": 1}
RTE_LABELS = {"entailment": 0, "not_entailment": 1, **NUMBERS}
CB_LABELS = {"entailment": 0, "contradiction": 1, "neutral": 2, **NUMBERS, "2": 2}


def sst2(where: str, record: Record) -> Iterator[Row]:
    yield {"sentence": text(record, "sentence", where), "label": label(record, "label", NUMBERS, where)}


def rte(where: str, record: Record) -> Iterator[Row]:
    yield _texts(record, ("premise", "hypothesis"), where) | {
        "label": label(record, "label", RTE_LABELS, where)
    }


def cb(where: str, record: Record) -> Iterator[Row]:
    yield _texts(record, ("premise", "hypothesis"), where) | {
        "label": label(record, "label", CB_LABELS, where)
    }


def boolq(where: str, record: Record) -> Iterator[Row]:
    """1 stands for true; the column is called ``answer`` in the data set's own release."""
    key = "label" if "label" in record or "answer" not in record else "answer"
    yield _texts(record, ("passage", "question"), where) | {"label": label(record, key, TRUTH, where)}


def multirc(where: str, record: Record) -> Iterator[Row]:
    passage = record.get("passage")
    if passage is None:
        yield _texts(record, ("paragraph", "question"), where) | {
            "answer": text(record, "answer", where, blank=True),
            "label": label(record, "label", TRUTH, where),
        }
        return
    paragraph = text(passage, "text", f"{where} passage")
    for i, question in enumerate(get(passage, "questions", f"{where} passage")):
        at = f"{where} questions[{i}]"
        words = text(question, "question", at)
        for j, answer in enumerate(get(question, "answers", at)):
            inner = f"{at} answers[{j}]"
            yield {
                "paragraph": paragraph,
                "question": words,
                "answer": text(answer, "text", inner, blank=True),
                "label": label(answer, "label", TRUTH, inner),
            }


def wic(where: str, record: Record) -> Iterator[Row]:
    yield _texts(record, ("word", "sentence1", "sentence2"), where) | {
        "label": label(record, "label", TRUTH, where)
    }


def wsc(where: str, record: Record) -> Iterator[Row]:
    spans = record.get("target", record)
    yield {
        "text": text(record, "text", where),
        **_texts(spans, ("span1_text", "span2_text"), where + (" target" if "target" in record else "")),
        "label": label(record, "label", TRUTH, where),
    }


def copa(where: str, record: Record) -> Iterator[Row]:
    row = _texts(record, ("premise", "choice1", "choice2", "question"), where)
    if row["question"] not in ("cause", "effect"):
        raise ValueError(f"{where}, key 'question': expected 'cause' or 'effect', got {row['question']!r}")
    yield row | {"label": label(record, "label", NUMBERS, where)}


def winogrande(where: str, record: Record) -> Iterator[Row]:
    row = _texts(record, ("sentence", "option1", "option2"), where)
    blanks = row["sentence"].count("_")
    if blanks != 1:
        raise ValueError(f"{where}, key 'sentence': expected exactly one '_', got {blanks}")
    yield row | {"answer": str(label(record, "answer", {"1": 1, "2": 2}, where))}


def record(where: str, record: Record) -> Iterator[Row]:
    """Entities, and the answers among them, as texts: each once, in order of appearance."""
    passage = get(record, "passage", where)
    if not isinstance(passage, Mapping):
        yield _record_row(
            where, record, text(record, "passage", where), texts(record, "entities", where), record
        )
        return
    words = text(passage, "text", f"{where} passage")
    spans = [_span(span, f"{where} entities[{i}]") for i, span in enumerate(passage.get("entities", []))]
    entities = [words[start : end + 1] for start, end in sorted(spans)]
    for i, question in enumerate(get(record, "qas", where)):
        at = f"{where} qas[{i}]"
        answers = [text(a, "text", f"{at} answers") for a in get(question, "answers", at)]
        yield _record_row(at, question, words, entities, {"answers": answers})


def _record_row(where: str, question: Record, passage: str, entities: list[str], gold: Record) -> Row:
    query = text(question, "query", where)
    named = texts(gold, "answers", where)
    entities = list(dict.fromkeys(entities))
    answers = [answer for answer in dict.fromkeys(named) if answer in entities]
    if "@placeholder" not in query:
        raise ValueError(f"{where}, key 'query': expected the word '@placeholder', got {query!r}"[:300])
    if not answers:
        raise ValueError(f"{where}, key 'answers': expected one of the entities, got {named}"[:300])
    return {"passage": passage, "query": query, "entities": entities, "answers": answers}


def _span(span: Any, where: str) -> tuple[int, int]:
    start, end = get(span, "start", where), get(span, "end", where)
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end):
        raise ValueError(f"{where}: expected start <= end, got {start!r}, {end!r}")
    return start, end


def squad(where: str, record: Record) -> Iterator[Row]:
    yield _texts(record, ("title", "context", "question"), where) | {
        "answers": texts(record, "answers", where)
    }


def drop(where: str, record: Record) -> Iterator[Row]:
    if "answers_spans" in record:
        answers = {"answers": get(record["answers_spans"], "spans", f"{where} answers_spans")}
    else:
        answers = {"answers": get(record, "answers", where)}
    yield _texts(record, ("passage", "question"), where) | {"answers": texts(answers, "answers", where)}


def text(record: Any, key: str, where: str, *, blank: bool = False) -> str:
    """A text under ``key``; without ``blank`` it must hold more than white space."""
    value = get(record, key, where)
    if not isinstance(value, str) or not (blank or value.strip()):
        raise ValueError(f"{where}, key {key!r}: expected a text, got {value!r}"[:300])
    return value


def texts(record: Any, key: str, where: str) -> list[str]:
    """At least one text under ``key``: a list, or SQuAD's column ``{"text": [...]}``."""
    value = get(record, key, where)
    if isinstance(value, Mapping):
        value = get(value, "text", f"{where}, key {key!r}")
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{where}, key {key!r}: expected a list of one text or more, got {value!r}"[:300])
    for item in value:
        if not isinstance(item, str) or not item.strip():
            raise ValueError(f"{where}, key {key!r}: expected a text, got {item!r}"[:300])
    return list(value)


def label(record: Any, key: str, names: Mapping[str, int], where: str) -> int:
    """The number of a label that is stored as a number, as true or false, or by its name."""
    value = get(record, key, where)
    number = names.get(str(value).strip().lower())
    if number is None:
        raise ValueError(f"{where}, key {key!r}: expected one of {list(names)}, got {value!r}"[:300])
    return number


def _texts(record: Any, keys: tuple[str, ...], where: str) -> Row:
    return {key: text(record, key, where) for key in keys}
