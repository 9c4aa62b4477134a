"""Prompt and options of each task: the strings of the benchmark's protocol, byte for byte.

The words are those of MeZO's ``large_models`` and of ZO-LLM, which took most of them from PromptSource
(arXiv 2202.01279) and from GPT-3 (arXiv 2005.14165). A function takes a row and a version and returns
``(prompt, options)``; prompt and option written one behind the other are the text that the model reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

Row: TypeAlias = "dict[str, Any]"
Parts: TypeAlias = "tuple[str, list[str]]"


class Example(NamedTuple):
    """One example as text.

    Attributes:
        prompt: what comes before the option, without blanks at its end; for a masked model the whole text.
        options: the answers to choose from, each with the blank that parts it from the prompt; question
            answering has one option, the first gold answer and a newline.
        label: index of the right option (ReCoRD: of the first right one).
        answers: gold answers (SQuAD, DROP); all right options (ReCoRD); else empty.
        sfc_prompt: domain string that replaces the prompt for calibration; None where the protocol has none.
    """

    prompt: str
    options: list[str]
    label: int
    answers: list[str]
    sfc_prompt: str | None


def make(parts: Parts, label: int, sfc_prompt: str | None, answers: Sequence[str] = ()) -> Example:
    """The example whose prompt has lost the blanks at its end; its options have got them."""
    prompt, options = parts
    bare = prompt.rstrip(" ")
    blanks = prompt[len(bare) :]
    return Example(
        bare,
        [blanks + option for option in options],
        label,
        [blanks + answer for answer in answers],
        sfc_prompt,
    )


def sst2(row: Row, version: int) -> Example:
    sentence = row["sentence"].strip()
    prompt, domain = ((f"{sentence} It was ", " It was"), (f"{sentence} ", " "))[version]
    return make((prompt, ["terrible", "great"]), row["label"], domain)


def rte(row: Row, version: int) -> Example:
    premise, hypothesis = row["premise"], row["hypothesis"]
    prompt = (
        f'{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n',
        f'{premise}\n"{hypothesis}"\n',
    )[version]
    return make((prompt, ["Yes", "No"]), row["label"], "")


def cb(row: Row, version: int) -> Example:
    prompt = (f'Suppose {row["premise"]} Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?\n',)[
        version
    ]
    return make((prompt, ["Yes", "No", "Maybe"]), row["label"], "")


def boolq(row: Row, version: int) -> Example:
    """Version 1 ends in two backslashes with an n each, as the reference code does."""
    question = row["question"] + ("" if row["question"].endswith("?") else "?")
    end = (" ", "\\n\\n", "\n")[version]
    prompt = f"{row['passage']} {question[0].upper()}{question[1:]}{end}"
    return make((prompt, ["Yes", "No"]), 1 - row["label"], "")


def multirc(row: Row, version: int) -> Example:
    prompt = (
        f'{row["paragraph"]}\nQuestion: {row["question"]}\nI found this answer "{row["answer"]}". '
        "Is that correct? Yes or No?\n",
    )[version]
    return make((prompt, ["No", "Yes"]), row["label"], "")


def wic(row: Row, version: int) -> Example:
    prompt = (
        f'Does the word "{row["word"]}" have the same meaning in these two sentences? Yes, No?\n'
        f"{row['sentence1']}\n{row['sentence2']}\n",
    )[version]
    return make((prompt, ["No", "Yes"]), row["label"], "")


def wsc(row: Row, version: int) -> Example:
    prompt = (
        f'{row["text"]}\nIn the previous sentence, does the pronoun "{row["span2_text"].lower()}" refer to '
        f"{row['span1_text']}? Yes or No?\n",
    )[version]
    return make((prompt, ["No", "Yes"]), row["label"], "")


def copa(row: Row, version: int) -> Example:
    premise = row["premise"].rstrip().removesuffix(".")
    word = ({"effect": " so ", "cause": " because "}[row["question"]], " ")[version]
    options = [_lower_first_word(row[key]) for key in ("choice1", "choice2")]
    return make((premise + word, options), row["label"], word.strip())


def _lower_first_word(choice: str) -> str:
    first, blank, rest = choice.partition(" ")
    return (first if first == "I" else first.lower()) + blank + rest


def winogrande(row: Row, version: int) -> Example:
    before, after = row["sentence"].split("_")
    prompt = (before,)[version]
    return make((prompt, [row["option1"] + after, row["option2"] + after]), int(row["answer"]) - 1, "")


def record(row: Row, version: int) -> Example:
    prompt = (row["passage"].replace("@highlight\n", "- ") + "\n-",)[version]
    options = [_filled(row, entity) for entity in row["entities"]]
    label = row["entities"].index(row["answers"][0])
    return make((prompt, options), label, "-", [_filled(row, answer) for answer in row["answers"]])


def _filled(row: Row, entity: str) -> str:
    return " " + row["query"].replace("@placeholder", entity)


def squad(row: Row, version: int) -> Example:
    prompt = (
        f"Title: {row['title']}\nContext: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:",
    )[version]
    return make((prompt, [f" {row['answers'][0]}\n"]), 0, None, row["answers"])


def drop(row: Row, version: int) -> Example:
    prompt = (f"Passage: {row['passage']}\nQuestion: {row['question'].strip()}\nAnswer:",)[version]
    return make((prompt, [f" {row['answers'][0]}\n"]), 0, None, row["answers"])


def masked(example: Example, mask_token: str) -> Example:
    """The example for a masked language model: the mask where the answer word goes, then a full stop."""
    gap = "" if example.prompt.endswith("\n") or not example.prompt else " "
    words = [" " + option.strip() for option in example.options]
    prompt = f"{example.prompt}{gap}{mask_token}."
    return Example(prompt, words, example.label, [], None)


def masked_pair(row: Row, example: Example, mask_token: str) -> Example:
    """Two sentences for a masked language model, as LM-BFF (arXiv 2012.15723) and MeZO write them.

    The first loses its last character (the full stop) and gets a question mark; the second starts small.
    """
    premise, hypothesis = row["premise"], row["hypothesis"]
    prompt = f"{premise[:-1]}? {mask_token}, {hypothesis[:1].lower()}{hypothesis[1:]}"
    words = [" " + option.strip() for option in example.options]
    return Example(prompt, words, example.label, [], None)
