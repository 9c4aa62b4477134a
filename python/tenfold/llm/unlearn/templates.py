"""How a question is put to a model: the text in front of the answer.

    prompt("llama", "Who?")                   '[INST] Who? [/INST] '
    prompt("chat", "Who?", tokenizer)         by the tokenizer's own chat template
    prompt("Q: {question}\\nA: ", "Who?")      any other text with {question} once

Templates of TOFU (arXiv 2401.06121) and SOUL (arXiv 2404.18239). The published SOUL code closes the question
of LLaMA models with a backslash; that stays available as ``soul_legacy`` for its checkpoints.
"""

from __future__ import annotations

from typing import Any

from tenfold.llm.unlearn.rows import Row

__all__ = ["TEMPLATES", "check_template", "prompt", "prompts"]

TEMPLATES = {
    "llama": "[INST] {question} [/INST] ",
    "question": "### Question: {question}\n### Answer: ",
    "mini": "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    "soul_legacy": "[INST] {question} [\\INST] ",
    "none": "{question}",
}


def check_template(template: str, tokenizer: Any = None) -> str:
    """The template, once it is known to be usable.

    Raises:
        ValueError: neither a name, nor ``"chat"`` with a tokenizer that has a chat template, nor a text with
            ``{question}`` exactly once.
    """
    if template == "chat":
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise ValueError("template: expected a tokenizer with a chat template for 'chat', got none")
    elif template not in TEMPLATES and template.count("{question}") != 1:
        names = ", ".join(map(repr, [*TEMPLATES, "chat"]))
        raise ValueError(
            f"template: expected {names}, or a text with '{{question}}' exactly once, got {template!r}"
        )
    return template


def prompt(template: str, question: str, tokenizer: Any = None) -> str:
    """The text in front of the answer. An empty question (plain text) has an empty prompt.

    Args:
        template: a name of :data:`TEMPLATES`, ``"chat"``, or a text with ``{question}``.
        tokenizer: needed for ``"chat"`` only.
    """
    check_template(template, tokenizer)
    if not question:
        return ""
    if template == "chat":
        messages = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return TEMPLATES.get(template, template).replace("{question}", question)


def prompts(template: str, rows: list[Row], tokenizer: Any = None, *, paraphrased: bool = False) -> list[str]:
    """The prompt of each row, of its paraphrased question where that is asked for.

    Raises:
        ValueError: a row has no paraphrased question.
    """
    for row in rows:
        if paraphrased and not row.paraphrased_question:
            raise ValueError(
                f"rows: expected a paraphrased question in every row, got none in row {row.index}"
            )
    questions = [row.paraphrased_question if paraphrased else row.question for row in rows]
    return [prompt(template, question, tokenizer) for question in questions]
