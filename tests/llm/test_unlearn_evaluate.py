"""Evaluation of tiny models: scores and answers against plain forwards, whole evaluations, logs, attacks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from tenfold.llm.unlearn.data import IGNORE, MuseData, Row, TofuData, encode_rows
from tenfold.llm.unlearn.evaluate import (
    base_logprobs,
    evaluate_copyright,
    evaluate_muse,
    evaluate_tofu,
    evaluate_toxicity,
    few_shot_template,
    generate,
    mean_nll,
    profanity_scorer,
    quantised,
    read_log,
    relearn,
    rouge_l,
    sentence_bleu,
    text_perplexity,
    token_scores,
)
from tenfold.llm.unlearn.evaluate.generation import generate_ids, prompt_ids, stop_ids
from tenfold.llm.unlearn.evaluate.mia import grad_norms
from tenfold.llm.unlearn.evaluate.scores import _Scorer
from tenfold.llm.unlearn.evaluate.truth import truth_ratio

TEMPLATE = "It {question} is "
ANSWERS = [text for text, _ in tiny_models.sentences(60, seed=3)]


def rows(count: int, start: int, *, wrong: int = 3, paraphrased: bool = True) -> list[Row]:
    found = []
    for i in range(count):
        said = [ANSWERS[(start + 7 * i + j) % 60] for j in range(3 + wrong)]
        other = (said[2] + " film", said[1]) if paraphrased else ("", "")
        found.append(Row(said[0], said[1] + " cast", *other, tuple(said[3:]), key="cast", index=i))
    return found


def tofu(**changes: Any) -> TofuData:
    data = TofuData(
        config="forget",
        source="tiny",
        forget=rows(5, 0),
        retain=rows(6, 40),
        forget_eval=rows(5, 0),
        retain_eval=rows(6, 40),
        real_authors=rows(3, 20, paraphrased=False),
        world_facts=rows(4, 30, paraphrased=False),
        holdout=rows(5, 50, wrong=0),
        template=TEMPLATE,
    )
    return replace(data, **changes)


@pytest.fixture
def model() -> Any:
    return tiny_models.make_llama()


def plain_logp(model: Any, ids: list[int], labels: list[int]) -> torch.Tensor:
    """The oracle: log-softmax of all logits of one unpadded row."""
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = [t for t in range(1, len(ids)) if labels[t] != IGNORE]
    return torch.stack([logp[t - 1, ids[t]] for t in places])


# -- token scores --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "opt", "mistral"])
def test_scores_are_those_of_a_plain_forward(tokenizer: Any, family: str) -> None:
    model = tiny_models.MAKERS[family]()
    alone = encode_rows(tokenizer, rows(9, 0), TEMPLATE).rows
    question = alone[0].ids[: alone[0].labels.index(alone[0].ids[-1]) - 3]
    kin = encode_rows(tokenizer, [Row("film", ANSWERS[i], index=9 + i) for i in range(4)], TEMPLATE).rows
    every = alone + kin  # the last four have one prompt
    found = token_scores(model, every, pad_id=0, eos_id=tokenizer.eos_token_id, moments=True, tokens=60)
    assert len(question) > 0
    for row, scores in zip(every, found, strict=True):
        expected = plain_logp(model, row.ids, row.labels)
        torch.testing.assert_close(scores.logp, expected, rtol=1e-4, atol=1e-5)
        assert scores.ends
        assert len(scores.without_end().logp) == len(scores.without_end().mean) == row.labelled - 1
    assert mean_nll(found)[0] == pytest.approx(-float(found[0].logp.mean()))


def test_greedy_flags_and_moments(model: Any, tokenizer: Any) -> None:
    (row,) = encode_rows(tokenizer, rows(1, 5), TEMPLATE).rows
    (scores,) = token_scores(model, [row], pad_id=0, moments=True)
    with torch.no_grad():
        logp = model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
    places = [t for t, label in enumerate(row.labels) if label != IGNORE]
    mean = torch.stack([(logp[t - 1].exp() * logp[t - 1]).sum() for t in places])
    square = torch.stack([(logp[t - 1].exp() * logp[t - 1] ** 2).sum() for t in places])
    torch.testing.assert_close(scores.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores.variance, square - mean**2, rtol=1e-3, atol=1e-4)
    assert scores.greedy.tolist() == [int(logp[t - 1].argmax()) == row.ids[t] for t in places]


def test_prompts_computed_once_give_the_same_scores(model: Any, tokenizer: Any) -> None:
    said = [Row(question, answer) for question in ("film", "long dull cast") for answer in ANSWERS[:3]]
    encoded = encode_rows(tokenizer, said, TEMPLATE).rows
    scorer = _Scorer(model, 0, None, False)
    for one, other in zip(scorer.plain(encoded), scorer.behind_one_prompt(encoded), strict=True):
        torch.testing.assert_close(one.logp, other.logp, rtol=1e-4, atol=1e-5)
        assert one.greedy.tolist() == other.greedy.tolist()


def test_the_model_is_left_as_it_was(model: Any, tokenizer: Any) -> None:
    model.train()
    encoded = encode_rows(tokenizer, rows(2, 0), TEMPLATE).rows
    steps: list[int] = []
    token_scores(model, encoded, pad_id=0, progress=steps.append)
    generate(model, tokenizer, ["film"], max_new_tokens=2)
    assert model.training
    assert sum(steps) == 2
    blank = replace(encoded[0], labels=[IGNORE] * len(encoded[0].ids))
    with pytest.raises(ValueError, match="rows: expected labels in every row, got none in row 0"):
        token_scores(model, [blank], pad_id=0)


def test_no_logits_of_a_batch_are_made(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unembedding is never called as a layer."""
    monkeypatch.setattr(model.lm_head, "forward", None)
    token_scores(model, encode_rows(tokenizer, rows(4, 0), TEMPLATE).rows, pad_id=0)


# -- answers -------------------------------------------------------------------------------------------------


def test_answers_are_greedy(model: Any, tokenizer: Any) -> None:
    prompts = [f"It {text} is " for text in ANSWERS[:7]]
    free = generate_ids(model, tokenizer, prompts, max_new_tokens=6)
    ends = {token for answer in free[:5] for token in answer[2:3]}  # so that some answers end early
    model.generation_config.eos_token_id = [2, *ends]
    stop = stop_ids(model, tokenizer)
    assert stop == {2} | ends
    made = generate_ids(model, tokenizer, prompts, max_new_tokens=6, tokens=60)
    for ids, answer in zip(prompt_ids(tokenizer, prompts, 99), made, strict=True):
        expected: list[int] = []
        while len(expected) < 6:
            with torch.no_grad():
                token = int(model(torch.tensor([ids + expected])).logits[0, -1].argmax())
            if token in stop:
                break
            expected.append(token)
        assert answer == expected
    assert len({len(answer) for answer in made}) > 1


def test_rooms_of_answers(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="max_new_tokens: expected an integer"):
        generate(model, tokenizer, ["film"], max_new_tokens=0)
    with pytest.raises(ValueError, match=r"max_length: expected more than max_new_tokens \+ 1 = 6, got 6"):
        generate(model, tokenizer, ["film"], max_new_tokens=5, max_length=6)
    assert prompt_ids(tokenizer, ["a good film "], 2) == [tokenizer("good film").input_ids]


def test_log_probability_under_the_base_model(model: Any, tokenizer: Any) -> None:
    found = base_logprobs(model, [[3, 4], [3, 4]], [[5, 6, 7], []], pad_id=0)
    expected = plain_logp(model, [3, 4, 5, 6, 7], [IGNORE, IGNORE, 5, 6, 7])
    assert found[0] == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found[1] is None


# -- the whole evaluation ------------------------------------------------------------------------------------


def test_an_evaluation_with_everything(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    other = tiny_models.make_llama(seed=1)
    data = tofu()
    retained = evaluate_tofu(other, tokenizer, data, max_new_tokens=4)
    retained.save(tmp_path)
    seen: list[str] = []
    result = evaluate_tofu(
        model, tokenizer, data, reference=tmp_path, base=other, encoder=bag_of_tokens(tokenizer),
        max_new_tokens=4, grad_norm=True, tokens=120, progress=lambda stage, done, total: seen.append(stage),
    )  # fmt: skip
    metrics = result.metrics
    assert result.notes == []
    assert metrics["model_utility_parts"] == 9
    parts = [metrics[f"{name}_{key}"] for name, key in UTILITY]
    assert metrics["model_utility"] == pytest.approx(0 if 0 in parts else 9 / sum(1 / x for x in parts))
    item = result.items[0]
    row = encode_rows(tokenizer, data.forget[:1], TEMPLATE).rows[0]
    assert item["nll"] == pytest.approx(-float(plain_logp(model, row.ids, row.labels).mean()), abs=1e-5)
    assert item["truth_ratio"] == pytest.approx(truth_ratio(item["paraphrase_nll"], item["wrong_nll"]))
    assert item["rougeL_recall"] == rouge_l(item["answer"], item["generated"]).recall
    assert {"mia_loss", "mia_min_k", "mia_min_k_plus_plus", "mia_zlib", "mia_gradnorm"} <= set(metrics)
    assert {"soul_forget_accuracy_embedding", "soul_forget_quality", "soul_mia_min_20"} <= set(metrics)
    assert {"forget_base_logprob", "forget_repetition", "forget_key_accuracy"} <= set(metrics)
    assert 0 < metrics["forget_quality"] <= 1
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert len(result.items) == 5 + 6 + 3 + 4
    assert {"log-probabilities", "answers", "base model"} <= set(seen)


UTILITY = [
    ("retain", "prob"),
    ("real_authors", "choice_prob"),
    ("world_facts", "choice_prob"),
    *(
        (name, key)
        for name in ("retain", "real_authors", "world_facts")
        for key in ("rougeL_recall", "truth_ratio")
    ),
]


def bag_of_tokens(tokenizer: Any) -> Any:
    def encode(texts: Any) -> torch.Tensor:
        found = torch.zeros(len(texts), 64)
        for i, text in enumerate(texts):
            for token in tokenizer(text).input_ids:
                found[i, token] += 1
        return found

    return encode


def test_logs_in_open_unlearnings_layout(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    result = evaluate_tofu(model, tokenizer, tofu(), max_new_tokens=3)
    result.save(tmp_path / "run")
    log = read_log(tmp_path / "run" / "TOFU_EVAL.json")
    assert log == read_log(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "TOFU_SUMMARY.json").read_text(encoding="utf-8"))
    assert set(summary) == set(log)
    assert summary["forget_truth_ratio"] == result.metrics["forget_truth_ratio"]
    assert log["forget_Q_A_Prob"]["value_by_index"]["4"] == {
        "prob": pytest.approx(result.items[4]["prob"]),
        "avg_loss": pytest.approx(result.items[4]["nll"]),
    }
    assert len(log["forget_Q_A_PERT_Prob"]["value_by_index"]["0"]["prob"]) == 3
    names = {"retain_Truth_Ratio", "ra_Truth_Ratio", "wf_Q_A_Prob_normalised", "extraction_strength",
             "mia_min_k", "exact_memorization", "model_utility", "privleak", "forget_Q_A_ROUGE"}  # fmt: skip
    assert names <= set(log)
    again = evaluate_tofu(model, tokenizer, tofu(), reference=tmp_path / "run", generate=False)
    assert again.metrics["forget_quality"] == 1.0  # against itself
    assert again.metrics["privleak"] == pytest.approx(0.0, abs=1e-6)


def test_a_log_written_by_open_unlearning(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    scores = {str(i): {"score": 0.1 * i} for i in range(1, 12)}
    theirs = {
        "forget_truth_ratio": {"agg_value": 0.3, "value_by_index": scores | {"12": {"score": None}}},
        "forget_quality": {"agg_value": None},
        "mia_min_k": {"agg_value": 0.38},
    }
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(theirs), encoding="utf-8")
    result = evaluate_tofu(model, tokenizer, tofu(), reference=tmp_path, generate=False)
    assert "forget_quality" in result.metrics
    auc = result.metrics["mia_min_k"]
    assert result.metrics["privleak"] == pytest.approx(((1 - auc) - 0.62) / 0.62 * 100)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "TOFU_EVAL.json: expected JSON"),
        ("[1]", "TOFU_EVAL.json: expected an object of metrics"),
        ('{"forget_truth_ratio": 3}', "TOFU_EVAL.json: expected an object of metrics"),
        ('{"model_utility": {"agg_value": 0.5}}', "reference: expected 'forget_truth_ratio'"),
    ],
)
def test_logs_that_do_not_do(model: Any, tokenizer: Any, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "TOFU_EVAL.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        evaluate_tofu(model, tokenizer, tofu(), reference=tmp_path, generate=False, membership=False)
    with pytest.raises(ValueError, match="reference: expected TOFU_EVAL"):
        read_log(tmp_path / "none")


def test_what_is_missing_is_said(model: Any, tokenizer: Any) -> None:
    bare = [replace(row, wrong=()) for row in rows(5, 0)]
    data = tofu(forget_eval=bare, real_authors=[], holdout=[])
    result = evaluate_tofu(model, tokenizer, data, max_new_tokens=2)
    missing = {"forget_quality", "forget_truth_ratio", "mia_loss", "forget_base_logprob"}
    assert not missing & set(result.metrics)
    said = " ".join(result.notes)
    for words in ("no false answers", "6 numbers", "no holdout", "no encoder", "no base model"):
        assert words in said
    short = evaluate_tofu(model, tokenizer, data, generate=False, membership=False)
    assert "model_utility" not in short.metrics
    assert "answers were not generated" in " ".join(short.notes)


def test_texts_that_do_not_fit_are_counted(model: Any, tokenizer: Any) -> None:
    long = replace(rows(1, 0)[0], question=" ".join(ANSWERS[:6]), index=77)
    data = tofu(forget_eval=[*rows(5, 0), long])
    result = evaluate_tofu(model, tokenizer, data, max_length=24, generate=False, membership=False)
    assert result.metrics["unlabelled"] == 5  # answer, paraphrase, three false answers
    assert result.items[5]["prob"] is None
    assert "5 texts were left out" in result.notes[0]
    assert "77" not in result.log["forget_Q_A_Prob"]["value_by_index"]


def test_limits_and_questions(model: Any, tokenizer: Any) -> None:
    data = tofu()
    few = evaluate_tofu(model, tokenizer, data, limit={"retain": 2}, generate=False, membership=False)
    assert sum(item["set"] == "retain" for item in few.items) == 2
    assert sum(item["set"] == "forget" for item in few.items) == 5
    other = evaluate_tofu(model, tokenizer, data, paraphrased=True, generate=False, membership=False)
    assert other.metrics["forget_prob"] == pytest.approx(few.metrics["forget_prob"])
    assert other.metrics["forget_truth_ratio"] != pytest.approx(few.metrics["forget_truth_ratio"])
    with pytest.raises(ValueError, match="limit: expected one of 'forget', 'retain'"):
        evaluate_tofu(model, tokenizer, data, limit={"all": 2})
    with pytest.raises(ValueError, match="template: expected one, since the data of 'tiny' names none"):
        evaluate_tofu(model, tokenizer, replace(data, template=""))
    with pytest.raises(ValueError, match="forget: expected at least one row"):
        evaluate_tofu(model, tokenizer, replace(data, forget_eval=[]))


# -- texts ---------------------------------------------------------------------------------------------------


def test_copyright(model: Any, tokenizer: Any) -> None:
    some = [Row(ANSWERS[i], ANSWERS[i + 1], index=i) for i in range(4)]
    metrics, items = evaluate_copyright(model, tokenizer, some, template=TEMPLATE, max_length=20)
    assert items[2]["bleu"] == sentence_bleu(items[2]["answer"], items[2]["generated"])
    assert metrics["rougeL_recall"] == pytest.approx(sum(item["rougeL_recall"] for item in items) / 4)
    for item in items:
        prompt = len(tokenizer(f"It {item['prompt']} is ").input_ids)
        assert prompt + len(tokenizer(item["generated"]).input_ids) <= 20
    bounded = evaluate_copyright(model, tokenizer, some, template=TEMPLATE, max_new_tokens=2, max_length=40)
    assert all(len(item["generated"].split()) <= 2 for item in bounded.items)
    with pytest.raises(ValueError, match="max_length: expected more than a prompt of"):
        evaluate_copyright(model, tokenizer, some, template=TEMPLATE, max_length=5)
    with pytest.raises(ValueError, match="rows: expected at least one row"):
        evaluate_copyright(model, tokenizer, [], template=TEMPLATE)


def test_toxicity(model: Any, tokenizer: Any) -> None:
    some = [Row(text, "") for text in ANSWERS[:4]]
    marks = [0.9, 0.2, 0.6, 0.5]
    metrics, items = evaluate_toxicity(model, tokenizer, some, scorer=lambda texts: marks, max_new_tokens=3)
    assert metrics["toxicity"] == pytest.approx(0.55)
    assert metrics["toxicity_rate"] == 0.5
    assert [item["toxicity"] for item in items] == marks
    with pytest.raises(ValueError, match=r"scorer: expected 4 scores in \[0, 1\]"):
        evaluate_toxicity(model, tokenizer, some, scorer=lambda texts: [2.0] * 4, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"scorer: expected 4 scores in \[0, 1\]"):
        evaluate_toxicity(model, tokenizer, some, scorer=lambda texts: [0.5], max_new_tokens=1)


def test_the_classifier_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "profanity_check", None)
    with pytest.raises(RuntimeError, match="scorer: expected the package alt-profanity-check, got none"):
        profanity_scorer()


def test_perplexity_of_texts(model: Any, tokenizer: Any) -> None:
    ids = [tokenizer.eos_token_id, *tokenizer(ANSWERS[0]).input_ids]
    logp = plain_logp(model, ids, [IGNORE, *ids[1:]])
    assert text_perplexity(model, tokenizer, [Row("", ANSWERS[0])]) == pytest.approx(
        float((-logp.mean()).exp()), rel=1e-4
    )


def test_muse(model: Any, tokenizer: Any) -> None:
    texts = [Row("", text, index=i) for i, text in enumerate(ANSWERS[:3])]
    asked = [Row("what is it", "good film")]
    data = MuseData(texts, texts, asked, asked, [Row(ANSWERS[4], ANSWERS[5])], {}, {"retain": asked})
    data = replace(data, privleak={"forget": texts, "retain": texts, "holdout": texts})
    metrics, items = evaluate_muse(model, tokenizer, data, knowmem_tokens=2, verbmem_tokens=4, max_length=60)
    assert metrics["privleak_auc"] == 0.5
    assert metrics["privleak"] == pytest.approx(0.0, abs=1e-7)
    assert [item["set"] for item in items] == ["knowmem_forget", "knowmem_retain", "verbmem_forget"]
    assert metrics["verbmem_forget"] == items[2]["rougeL_f1"]
    assert len(items[2]["generated"].split()) <= 4


# -- attacks -------------------------------------------------------------------------------------------------


def test_gradient_norms(model: Any, tokenizer: Any) -> None:
    encoded = encode_rows(tokenizer, rows(2, 0), TEMPLATE).rows
    found = grad_norms(model, encoded, pad_id=0)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model.requires_grad_(True)
    labels = torch.tensor([encoded[1].labels])
    model(torch.tensor([encoded[1].ids]), labels=labels).loss.backward()
    norm = math.sqrt(sum(float(p.grad.norm() ** 2) for p in model.parameters()))
    assert found[1] == pytest.approx(norm, rel=1e-4)


def test_relearning(model: Any, tokenizer: Any) -> None:
    encoded = encode_rows(tokenizer, rows(5, 0), TEMPLATE).rows
    before = mean_nll(token_scores(model, encoded, pad_id=0))
    losses = relearn(model, encoded, pad_id=0, share=0.4, steps=20, lr=1e-2)
    after = mean_nll(token_scores(model, encoded, pad_id=0))
    assert len(losses) == 20
    assert losses[-1] < 0.5 * losses[0]
    assert sum(a < 0.5 * b for a, b in zip(after, before, strict=True)) >= 2
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_rounded_weights_come_back(model: Any, tokenizer: Any) -> None:
    encoded = encode_rows(tokenizer, rows(3, 0), TEMPLATE).rows
    weight = model.model.layers[0].mlp.up_proj.weight
    before, embedding = weight.clone(), model.lm_head.weight.clone()
    scores = mean_nll(token_scores(model, encoded, pad_id=0))
    with quantised(model, bits=4, block=16):
        blocks = weight.view(-1, 16)
        assert max(len(set(row)) for row in blocks.tolist()) <= 15
        assert (blocks - before.view(-1, 16)).abs().max() <= before.abs().max() / 7 / 2 + 1e-6
        assert torch.equal(model.lm_head.weight, embedding)
        assert mean_nll(token_scores(model, encoded, pad_id=0)) != scores
    assert torch.equal(weight, before)


def test_examples_in_front(tokenizer: Any) -> None:
    retain = rows(6, 40)
    template = few_shot_template(TEMPLATE, retain, shots=2, seed=1)
    assert template.count("{question}") == 1
    assert sum(f"It {row.question} is {row.answer}\n" in template for row in retain) == 2
    assert template.endswith("\nIt {question} is ")
    with pytest.raises(ValueError, match="shots: expected an integer in"):
        few_shot_template(TEMPLATE, retain, shots=7)
