"""The evaluation of TOFU (arXiv 2401.06121) and of SOUL (arXiv 2404.18239), from one set of forwards.

    result = evaluate_tofu(model, tokenizer, data, reference="runs/retain")
    result.metrics["forget_quality"], result.metrics["model_utility"]
    result.save("runs/unlearned")              TOFU_EVAL.json and TOFU_SUMMARY.json

Where TOFU's and SOUL's code compute a figure in two ways, both are reported under names of their own; those
of SOUL begin with ``soul_``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from tenfold import _checks
from tenfold.llm.unlearn.evaluate import truth
from tenfold.llm.unlearn.evaluate.gibberish import base_logprobs, repetition
from tenfold.llm.unlearn.evaluate.logs import read_log, reference_auc, reference_ratios, write_logs
from tenfold.llm.unlearn.evaluate.memorisation import memorisation
from tenfold.llm.unlearn.evaluate.mia import privleak
from tenfold.llm.unlearn.evaluate.queries import (
    Answers,
    Asked,
    Stage,
    answer_all,
    ask,
    counted,
    select,
)
from tenfold.llm.unlearn.evaluate.rouge import rouge_l
from tenfold.llm.unlearn.evaluate.scores import token_scores
from tenfold.llm.unlearn.evaluate.tofu_membership import attack_tofu
from tenfold.llm.unlearn.rows import Row, check_rows
from tenfold.llm.unlearn.templates import check_template
from tenfold.llm.unlearn.tofu import TofuData

__all__ = ["Encoder", "TofuResult", "evaluate_tofu"]

Encoder: TypeAlias = "Callable[[Sequence[str]], Tensor]"
Log: TypeAlias = "dict[str, dict[str, Any]]"

SHORT = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
"""Names of the sets, and what open-unlearning calls them in its logs."""


@dataclass
class TofuResult:
    """What an evaluation found.

    Attributes:
        metrics: flat, numbers only; what could not be computed is missing, and ``notes`` says why.
        items: one dictionary per row of each set: texts, answer, figures.
        log: the same under open-unlearning's names, per index.
        notes: what a reader should know about these figures.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    log: Log = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def save(self, folder: str | Path) -> None:
        """Write ``TOFU_EVAL.json`` and ``TOFU_SUMMARY.json``."""
        write_logs(self.log, folder)


def evaluate_tofu(
    model: Any,
    tokenizer: Any,
    data: TofuData,
    *,
    reference: TofuResult | Mapping[str, Any] | str | Path | None = None,
    base: Any = None,
    encoder: Encoder | None = None,
    template: str | None = None,
    paraphrased: bool = False,
    max_length: int = 512,
    max_new_tokens: int = 200,
    generate: bool = True,
    membership: bool = True,
    grad_norm: bool = False,
    min_k: float = 0.4,
    limit: Mapping[str, int] | int | None = None,
    tokens: int = 4096,
    score: Any = token_scores,
    progress: Stage = None,
) -> TofuResult:
    """Every figure of the protocol that the data allows.

    Args:
        model, tokenizer: a causal model of ``transformers`` and its tokenizer.
        data: of :func:`tenfold.llm.unlearn.data.load_tofu_split` or ``load_mini_tofu``.
        reference: log of a model that was trained without the forget set (a result, its ``log``, the file
            ``TOFU_EVAL.json`` or its folder); without it there is no forget quality.
        base: the model before teaching and unlearning, for ``base_logprob`` of the answers.
        encoder: texts to vectors [N, D], for SOUL's accuracy by nearest sentence embedding. Without it the
            accuracy is that of choosing by log-probability, under another name.
        template: name or text; None for the data's own.
        paraphrased: ask paraphrased and false answers behind the paraphrased question, as SOUL does.
        max_length: largest number of tokens of prompt and answer.
        max_new_tokens: of a greedy answer.
        generate: False leaves out all that needs greedy answers, model utility with it.
        membership: run the membership attacks where the data has a holdout.
        grad_norm: also the attack by gradient norms (a backward pass per row).
        min_k: share of tokens of Min-K% and Min-K%++.
        limit: largest number of rows of each set, taken at even distances; a number, or by set.
        tokens: size of a batch.
        score: stands in for :func:`token_scores` and is called as it is; one that keeps what does not change
            between evaluations, for instance.
        progress: called as ``progress(stage, done, total)``.

    Raises:
        ValueError: no forget rows; no template; a reference without truth ratios.
    """
    check_rows(data.forget_eval, data.retain_eval)
    template = check_template(_template(template, data), tokenizer)
    log = _log_of(reference)
    sets = {name: select(rows, _limit(limit, name)) for name, rows in _sets(data).items() if rows}
    answers = ask(
        model, tokenizer, sets, template, max_length=max_length, paraphrased=paraphrased, tokens=tokens,
        score=score, progress=progress,
    )  # fmt: skip
    if generate:
        answer_all(
            model,
            tokenizer,
            answers,
            template,
            max_new_tokens=max_new_tokens,
            tokens=tokens,
            progress=progress,
        )
    result = TofuResult()
    for name, rows in answers.sets.items():
        _add_set(result, name, rows)
    _add_counts(result, answers)
    _add_quality(result, answers, log)
    if generate:
        _add_utility(result)
        _add_accuracy(result, answers, encoder)
        _add_gibberish(result, answers.sets["forget"], base, tokenizer, progress)
    else:
        result.notes.append("answers were not generated: no ROUGE-L, model utility, accuracy, repetition")
    if membership:
        found = attack_tofu(
            model, tokenizer, data, template, max_length=max_length, tokens=tokens, k=min_k,
            grad_norm=grad_norm, score=score, progress=progress,
        )  # fmt: skip
        _add_membership(result, found, log)
    return result


# -- arguments -----------------------------------------------------------------------------------------------


def _sets(data: TofuData) -> dict[str, list[Row]]:
    return {
        "forget": data.forget_eval,
        "retain": data.retain_eval,
        "real_authors": data.real_authors,
        "world_facts": data.world_facts,
    }


def _template(template: str | None, data: TofuData) -> str:
    found = template or data.template
    if not found:
        raise ValueError(f"template: expected one, since the data of {data.source!r} names none, got None")
    return found


def _limit(limit: Mapping[str, int] | int | None, name: str) -> int | None:
    if isinstance(limit, Mapping):
        for key in limit:
            _checks.choice("limit", key, tuple(SHORT))
        return limit.get(name)
    return limit


def _log_of(reference: Any) -> Mapping[str, Mapping[str, Any]] | None:
    if isinstance(reference, TofuResult):
        return reference.log
    if isinstance(reference, (str, Path)):
        return read_log(reference)
    found: Mapping[str, Mapping[str, Any]] | None = reference
    return found


# -- figures of one set --------------------------------------------------------------------------------------


def _add_set(result: TofuResult, name: str, rows: list[Asked]) -> None:
    """Probability, ROUGE-L, truth ratios, memorisation of each row; their means; their log."""
    items = [_item(name, asked) for asked in rows]
    result.items += items
    metrics, log, short = result.metrics, result.log, SHORT[name]
    _mean_of(metrics, f"{name}_prob", items, "prob")
    _entry(log, f"{short}_Q_A_Prob", items, {"prob": "prob", "avg_loss": "nll"}, "prob")
    if any(item.get("truth_ratio") is not None for item in items):
        _add_ratios(result, name, items)
    if any(item["generated"] is not None for item in items):
        _mean_of(metrics, f"{name}_rougeL_recall", items, "rougeL_recall")
        _mean_of(metrics, f"{name}_rougeL_f1", items, "rougeL_f1")
        fields = {"rougeL_recall": "rougeL_recall", "rougeL_f1": "rougeL_f1", "generation": "generated",
                  "ground_truth": "answer", "input": "question"}  # fmt: skip
        _entry(log, f"{short}_Q_A_ROUGE", items, fields, "rougeL_recall")
    known = (("extraction_strength", "extraction_strength"), ("exact_memorisation", "exact_memorization"))
    for ours, theirs in known:
        _mean_of(metrics, f"{name}_{ours}", items, ours)
        _entry(log, theirs if name == "forget" else f"{short}_{theirs}", items, {"score": ours}, ours)
    _mean_of(metrics, f"{name}_extraction_strength_floor", items, "extraction_strength_floor")


def _item(name: str, asked: Asked) -> dict[str, Any]:
    row, a, para, wrong = asked.row, asked.nll, asked.paraphrase_nll, asked.wrong_nll
    item: dict[str, Any] = {
        "set": name,
        "index": row.index,
        "question": row.question,
        "answer": row.answer,
        "generated": asked.generated,
        "nll": a,
        "prob": None if a is None else truth.probability(a),
        "paraphrase_nll": para,
        "wrong_nll": wrong,
    }
    if para is not None and wrong is not None:
        item["truth_ratio"] = truth.truth_ratio(para, wrong)
        item["soul_truth_ratio"] = truth.soul_truth_ratio(para, wrong)
        item["choice_prob"] = None if a is None else truth.choice_probability(a, wrong)
    if asked.answer is not None:
        item |= memorisation([asked.answer])[0]
    if asked.generated is not None:
        found = rouge_l(row.answer, asked.generated)
        item |= {"rougeL_recall": found.recall, "rougeL_f1": found.f1}
        item["repetition"] = repetition(asked.tokens)
        if row.key:
            item["key_found"] = row.key.casefold() in asked.generated.casefold()
    return item


def _add_ratios(result: TofuResult, name: str, items: list[dict[str, Any]]) -> None:
    metrics, log, short = result.metrics, result.log, SHORT[name]
    told = [item for item in items if item.get("truth_ratio") is not None]
    ratios = [item["truth_ratio"] for item in told]
    value = truth.truth_ratio_forget(ratios) if name == "forget" else truth.truth_ratio_retain(ratios)
    metrics[f"{name}_truth_ratio"] = value
    metrics[f"{name}_truth_ratio_margin"] = truth.truth_ratio_margin(
        [item["paraphrase_nll"] for item in told], [item["wrong_nll"] for item in told]
    )
    _mean_of(metrics, f"soul_{name}_truth_ratio", told, "soul_truth_ratio")
    called = "forget_truth_ratio" if name == "forget" else f"{short}_Truth_Ratio"
    log[called] = {
        "agg_value": value,
        "value_by_index": {str(item["index"]): {"score": item["truth_ratio"]} for item in told},
    }
    if name in ("real_authors", "world_facts"):
        _mean_of(metrics, f"{name}_choice_prob", told, "choice_prob")
        _entry(log, f"{short}_Q_A_Prob_normalised", told, {"prob": "choice_prob"}, "choice_prob")
    else:
        log[f"{short}_Q_A_PARA_Prob"] = _probabilities(told, "paraphrase_nll")
    log[f"{short}_Q_A_PERT_Prob"] = _probabilities(told, "wrong_nll")


def _probabilities(items: list[dict[str, Any]], key: str) -> dict[str, Any]:
    def pair(a: Any) -> dict[str, Any]:
        some = [truth.probability(x) for x in a] if isinstance(a, list) else truth.probability(a)
        return {"prob": some, "avg_loss": a}

    by_index = {str(item["index"]): pair(item[key]) for item in items}
    every = [p for entry in by_index.values() for p in _flat(entry["prob"])]
    return {"agg_value": math.fsum(every) / len(every), "value_by_index": by_index}


def _flat(value: Any) -> list[float]:
    return list(value) if isinstance(value, list) else [value]


def _mean_of(metrics: dict[str, float], name: str, items: list[dict[str, Any]], key: str) -> None:
    values = [float(item[key]) for item in items if item.get(key) is not None]
    if values:
        metrics[name] = math.fsum(values) / len(values)


def _entry(log: Log, name: str, items: list[dict[str, Any]], fields: Mapping[str, str], mean_of: str) -> None:
    """A metric of the log: its mean, and fields of each index."""
    told = [item for item in items if item.get(mean_of) is not None]
    if told:
        log[name] = {
            "agg_value": math.fsum(float(item[mean_of]) for item in told) / len(told),
            "value_by_index": {
                str(item["index"]): {theirs: item[ours] for theirs, ours in fields.items()} for item in told
            },
        }


# -- figures of all sets -------------------------------------------------------------------------------------


def _add_counts(result: TofuResult, answers: Answers) -> None:
    result.metrics |= {"unlabelled": float(answers.unlabelled), "truncated": float(answers.truncated)}
    if answers.unlabelled:
        result.notes.append(f"{answers.unlabelled} texts were left out: their prompt fills max_length")
    if answers.truncated:
        result.notes.append(f"{answers.truncated} texts were cut at max_length")


def _add_quality(result: TofuResult, answers: Answers, log: Mapping[str, Mapping[str, Any]] | None) -> None:
    ratios = _ratios(result, "forget", "truth_ratio")
    if not ratios:
        result.notes.append("no forget quality: the forget rows have no false answers")
    elif log is None:
        result.notes.append("no forget quality: it needs the log of a model trained without the forget set")
    else:
        test = truth.forget_quality(ratios, reference_ratios(log))
        result.metrics["forget_quality"] = test.pvalue
        result.metrics["forget_quality_log10"] = test.log10_pvalue
        result.metrics["forget_quality_distance"] = test.statistic
        result.log["forget_quality"] = {"agg_value": test.pvalue}
    ours = _ratios(result, "forget", "soul_truth_ratio")
    kept = _ratios(result, "retain", "soul_truth_ratio")
    if ours and kept:
        test = truth.forget_quality(ours, kept)
        result.metrics["soul_forget_quality"] = test.pvalue
        result.metrics["soul_forget_quality_log10"] = test.log10_pvalue


def _ratios(result: TofuResult, name: str, key: str) -> list[float]:
    return [item[key] for item in result.items if item["set"] == name and item.get(key) is not None]


def _add_utility(result: TofuResult) -> None:
    groups: dict[str, dict[str, float]] = {}
    for name in ("retain", "real_authors", "world_facts"):
        keys = ("prob" if name == "retain" else "choice_prob", "rougeL_recall", "truth_ratio")
        found = {key: result.metrics.get(f"{name}_{key}") for key in keys}
        groups[name] = {key: value for key, value in found.items() if value is not None}
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        result.notes.append("no model utility: there is neither a retain set nor authors nor facts")
        return
    utility, parts = truth.model_utility(groups)
    result.metrics["model_utility"], result.metrics["model_utility_parts"] = utility, float(parts)
    result.log["model_utility"] = {"agg_value": utility}
    if parts != 9:
        sets = ", ".join(groups)
        result.notes.append(f"model utility is the harmonic mean of {parts} numbers of {sets}, not of nine")


def _add_accuracy(result: TofuResult, answers: Answers, encoder: Encoder | None) -> None:
    """Accuracies. Forget and retain set: nearest answer by embedding where there is an encoder; choice by
    log-probability always. Authors and facts: the answer occurs in what was said. All: the key does."""
    for name, rows in answers.sets.items():
        told = [asked for asked in rows if asked.paraphrase_nll is not None and asked.wrong_nll is not None]
        if told:
            right = [asked.paraphrase_nll < min(asked.wrong_nll) for asked in told]  # type: ignore[operator, arg-type]
            result.metrics[f"{name}_accuracy_logprob"] = sum(right) / len(right)
        if told and encoder is not None and name in ("forget", "retain"):
            near = nearest_is_first(encoder, told)
            result.metrics[f"soul_{name}_accuracy_embedding"] = sum(near) / len(near)
        if name in ("real_authors", "world_facts"):
            said = [asked.row.answer.casefold() in (asked.generated or "").casefold() for asked in rows]
            result.metrics[f"soul_{name}_accuracy_substring"] = sum(said) / len(said)
        items = [item for item in result.items if item["set"] == name]
        _mean_of(result.metrics, f"{name}_key_accuracy", items, "key_found")
    if encoder is None:
        result.notes.append("no accuracy by sentence embedding: no encoder was given")


def nearest_is_first(encoder: Encoder, rows: Sequence[Asked]) -> list[bool]:
    """Whether the paraphrased answer is the nearest (cosine) of right and false answers to what was said."""
    import torch.nn.functional as F

    found = []
    for asked in rows:
        options = [asked.row.paraphrased_answer or asked.row.answer, *asked.row.wrong]
        vectors = F.normalize(encoder([asked.generated or "", *options]).float(), dim=-1)
        found.append(int((vectors[1:] @ vectors[0]).argmax()) == 0)
    return found


def _add_gibberish(result: TofuResult, rows: list[Asked], base: Any, tokenizer: Any, progress: Stage) -> None:
    items = [item for item in result.items if item["set"] == "forget"]
    _mean_of(result.metrics, "forget_repetition", items, "repetition")
    result.metrics["forget_empty"] = sum(not asked.generated for asked in rows) / len(rows)
    if base is None:
        result.notes.append("no base_logprob of the answers: no base model was given")
        return
    told = base_logprobs(
        base, [asked.prompt for asked in rows], [asked.tokens for asked in rows],
        pad_id=tokenizer.pad_token_id, progress=counted(progress, "base model", len(rows)),
    )  # fmt: skip
    for item, value in zip(items, told, strict=True):
        item["base_logprob"] = value
    _mean_of(result.metrics, "forget_base_logprob", items, "base_logprob")


def _add_membership(
    result: TofuResult, found: Mapping[str, float], log: Mapping[str, Mapping[str, Any]] | None
) -> None:
    result.metrics |= found
    if "mia_min_k" not in found:
        result.notes.append("no membership inference: the data has no holdout")
        return
    result.log |= {name: {"agg_value": found[name]} for name in found if name.startswith("mia_")}
    other = reference_auc(log, "min_k") if log is not None else None
    result.metrics["privleak"] = privleak(found["mia_min_k"], 0.5 if other is None else other)
    result.log["privleak"] = {"agg_value": result.metrics["privleak"]}
    if other is None:
        result.notes.append("privleak is against an AUC of .5: there is no retain model's")
