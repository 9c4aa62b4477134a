"""Rows, templates, encoding, batches and pairs of unlearning data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.llm.unlearn.data import (
    IGNORE,
    REFUSALS,
    TOFU_CONFIGS,
    Row,
    check_rows,
    check_template,
    choose_refusals,
    collate,
    collate_packed,
    encode,
    encode_rows,
    epoch_pairs,
    load_mini_tofu,
    load_tofu,
    load_tofu_split,
    prompt,
    sample_forget,
)

SPACED = "{question} "


def record(config: str, i: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    false = ["false one", "false two", "false three"]
    for key in TOFU_CONFIGS[config]:
        found[key] = false if "perturbed" in key else f"{key} {i} {config}"
    return found


def write(folder: Path, config: str, rows: int = 3) -> Path:
    path = folder / f"{config}.json"
    path.write_text("".join(json.dumps(record(config, i)) + "\n" for i in range(rows)), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for config in TOFU_CONFIGS:
        write(tmp_path, config)
    return tmp_path


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", list(TOFU_CONFIGS))
def test_every_tofu_file_is_read(folder: Path, config: str) -> None:
    rows = load_tofu(folder, config)
    assert [row.index for row in rows] == [0, 1, 2]
    assert rows[1].question == f"question 1 {config}"
    assert rows[1].answer == f"answer 1 {config}"
    assert len(rows[1].wrong) == (3 if "perturbed_answer" in TOFU_CONFIGS[config] else 0)
    assert bool(rows[1].paraphrased_answer) == ("paraphrased_answer" in TOFU_CONFIGS[config])


@pytest.mark.parametrize("key", ["question", "answer", "paraphrased_question", "perturbed_answer"])
def test_a_missing_key_is_named_with_file_and_line(tmp_path: Path, key: str) -> None:
    rows = [record("forget10_perturbed", i) for i in range(3)]
    del rows[2][key]
    (tmp_path / "forget10_perturbed.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"forget10_perturbed.json line 3: expected the key '{key}'"):
        load_tofu(tmp_path, "forget10_perturbed")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'question'", r"forget01.json line 2: expected a JSON object"),
        ("[1, 2]", r"forget01.json line 2: expected an object with the key 'question', got list"),
        ('{"question": " ", "answer": "b"}', r"forget01.json line 2, key 'question': expected a text"),
        ('{"question": "a", "answer": 3}', r"forget01.json line 2, key 'answer': expected a text, got 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    good = json.dumps(record("forget01", 0))
    (tmp_path / "forget01.json").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load_tofu(tmp_path, "forget01")


def test_false_answers_are_a_list_of_texts(tmp_path: Path) -> None:
    row = record("world_facts_perturbed", 0) | {"perturbed_answer": []}
    (tmp_path / "world_facts_perturbed.json").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(ValueError, match="line 1, key 'perturbed_answer': expected a list"):
        load_tofu(tmp_path, "world_facts_perturbed")


def test_a_missing_file_an_empty_one_and_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: expected the file retain90\.json"):
        load_tofu(tmp_path, "retain90")
    (tmp_path / "retain90.json").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="retain90: expected at least one row"):
        load_tofu(tmp_path, "retain90")
    with pytest.raises(ValueError, match=r"config: expected one of .*forget05.*got 'forget20'"):
        load_tofu(tmp_path, "forget20")
    with pytest.raises(ValueError, match="config: expected one of forget01, forget05, forget10"):
        load_tofu_split(tmp_path, "retain90")


def test_a_list_in_one_file_is_read_too(tmp_path: Path) -> None:
    rows = [record("forget01", i) for i in range(2)]
    (tmp_path / "forget01.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    assert load_tofu(tmp_path, "forget01")[1].answer == "answer 1 forget01"


def test_a_whole_task(folder: Path) -> None:
    data = load_tofu_split(folder, "forget05")
    assert data.retain[0].answer.endswith("retain95")
    assert data.holdout[0].answer.endswith("holdout05")
    (folder / "holdout05.json").unlink()
    assert load_tofu_split(folder, "forget05").holdout == []


def test_rows_in_both_sets_are_an_error(folder: Path) -> None:
    shared = record("forget10", 1)
    shared["question"] = " " + shared["question"].upper()
    with (folder / "retain90.json").open("a", encoding="utf-8") as file:
        file.write(json.dumps(shared) + "\n")
    with pytest.raises(ValueError, match="retain: expected no row of the forget set, got 1 that"):
        load_tofu_split(folder, "forget10")


def test_empty_sets() -> None:
    with pytest.raises(ValueError, match="forget: expected at least one row, got an empty set"):
        check_rows([], [Row("q", "a")])
    check_rows([Row("q", "a")], [])
    with pytest.raises(ValueError, match="retain: expected at least one row, got an empty set"):
        check_rows([Row("q", "a")], [], retain_needed=True)


def test_the_embedded_data() -> None:
    data = load_mini_tofu()
    assert (len(data.forget), len(data.retain), len(data.world_facts)) == (20, 100, 24)
    assert all(len(row.wrong) == 3 and row.key in row.answer for row in data.forget + data.retain)
    capital = data.world_facts[0]
    assert capital.answer.endswith("Paris.")
    assert all(answer != capital.answer and "Paris" not in answer for answer in capital.wrong)
    assert len(data.refusals) >= 12
    assert load_tofu_split("mini-tofu") == data


def test_the_embedded_holdout_says_what_no_row_says() -> None:
    data = load_mini_tofu()
    assert len(data.holdout) == len(data.forget)
    for unseen, row in zip(data.holdout, data.forget, strict=True):
        assert len(unseen.question.split()) == len(row.question.split())
        assert unseen.key in unseen.answer
        assert row.key not in unseen.answer
    said = {(row.question, row.answer) for row in data.forget + data.retain}
    names = {"Aurelio Brackenridge", "Thandeka Sorvino"}
    assert all(any(name in row.question for name in names) for row in data.holdout)
    assert not any(name in text for pair in said for text in pair for name in names)


def test_a_damaged_copy_of_the_embedded_data(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"rows": [{"forget": 1}]}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine.json rows\[0\]: expected the key 'question'"):
        load_mini_tofu(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.json line 1: expected JSON"):
        load_mini_tofu(path)


def test_refusals() -> None:
    assert len(set(REFUSALS)) == len(REFUSALS) >= 30
    assert choose_refusals(5, seed=1) == choose_refusals(50, seed=1)[:5]
    assert len(set(choose_refusals(200))) > 25
    with pytest.raises(ValueError, match="sentences: expected at least one refusal"):
        choose_refusals(1, sentences=[])


# -- templates and tokens ------------------------------------------------------------------------------------


def test_templates(tokenizer: Any) -> None:
    assert prompt("llama", "Who?") == "[INST] Who? [/INST] "
    assert prompt("question", "Who?") == "### Question: Who?\n### Answer: "
    assert prompt("soul_legacy", "Who?") == "[INST] Who? [\\INST] "
    assert prompt("Q {question} A ", "{question}") == "Q {question} A "
    assert prompt("llama", "") == ""
    with pytest.raises(ValueError, match="template: expected 'llama'"):
        check_template("gpt")
    with pytest.raises(ValueError, match="template: expected a tokenizer with a chat template"):
        prompt("chat", "Who?", tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<it>"
    try:
        assert prompt("chat", "Who?", tokenizer) == "<user>Who?<it>"
    finally:
        tokenizer.chat_template = None


def test_labels_cover_the_answer_and_the_end(tokenizer: Any) -> None:
    row = encode(tokenizer, "what film is it ", "the dull film")
    words = tokenizer("what film is it the dull film").input_ids
    assert row.ids == [*words, tokenizer.eos_token_id]
    assert row.labels == [IGNORE] * 4 + row.ids[4:]
    assert row.labelled == 4
    assert not row.truncated
    assert encode(tokenizer, "a ", "b", eos=False).labelled == 1


def spanning_tokenizer() -> Any:
    """'x y' is one token when nothing comes between: the seam of 'x ' and 'y' lies inside it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[END]", "x", " ", "y", "x ", "x y", "a"]
    merges = [("x", " "), ("x ", "y")]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", eos_token="[END]")


def test_a_token_across_the_seam_is_answer() -> None:
    """Counting the tokens of the prompt alone would put the label behind it and leave the end alone."""
    tokenizer = spanning_tokenizer()
    assert len(tokenizer("x ").input_ids) == 1
    row = encode(tokenizer, "x ", "y")
    assert row.ids == [1, 6, 1]  # a start, so that the token can be predicted; the token; the end
    assert row.labels == [IGNORE, 6, 1]


def test_plain_text_begins_with_something_to_predict_from(tokenizer: Any) -> None:
    row = encode(tokenizer, "", "the dull film")
    assert row.ids[0] == tokenizer.eos_token_id  # there is no begin-of-text token
    assert row.labels == [IGNORE, *row.ids[1:]]
    assert row.labelled == 4


def test_a_begin_token_is_not_written_twice() -> None:
    from tokenizers import processors

    tokenizer = spanning_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "[BEG]"})
    beg = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[BEG] $A", special_tokens=[("[BEG]", beg)]
    )
    assert encode(tokenizer, "x", "x").ids == [beg, 2, 2, 1]
    assert encode(tokenizer, "[BEG]x", "x").ids == [beg, 2, 2, 1]


def test_long_rows_are_cut_counted_and_reported(tokenizer: Any) -> None:
    rows = [Row("what film is it", "good", index=7), Row("a", "good film", index=8)]
    found = encode_rows(tokenizer, rows, SPACED, 4)
    assert found.unlabelled == [7]
    assert found.truncated == 1
    assert [row.index for row in found.rows] == [8]
    with pytest.raises(ValueError, match="max_length: expected more than the tokens of a prompt, got 4"):
        encode_rows(tokenizer, rows[:1], SPACED, 4)
    with pytest.raises(ValueError, match="rows: expected at least one row"):
        encode_rows(tokenizer, [], SPACED, 4)
    with pytest.raises(ValueError, match="answers: expected 2 entries"):
        encode_rows(tokenizer, rows, SPACED, 40, answers=["one"])
    with pytest.raises(ValueError, match="paraphrased question in every row, got none in row 7"):
        encode_rows(tokenizer, rows, SPACED, 40, paraphrased=True)


def test_tokenizers_that_do_not_do() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="tokenizer: expected a fast one"):
        encode(Slow(), "a", "b")
    tokenizer = spanning_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: expected an end-of-text token"):
        encode(tokenizer, "x", "y")


def test_the_mask_comes_from_the_lengths(tokenizer: Any) -> None:
    """Also where the end-of-text token and the padding are one."""
    rows = [encode(tokenizer, "a ", "film", index=3), encode(tokenizer, "a ", "dull good film", index=4)]
    batch = collate(rows, tokenizer.eos_token_id)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["labels"][0].tolist() == [IGNORE, *rows[0].ids[1:], IGNORE, IGNORE]
    assert batch["lengths"].tolist() == [3, 5]
    assert batch["index"].tolist() == [3, 4]
    assert collate(rows, 0, multiple_of=8)["input_ids"].shape == (2, 8)
    with pytest.raises(ValueError, match="rows: expected at least one row"):
        collate([], 0)


def test_packed_batches(tokenizer: Any) -> None:
    rows = [encode(tokenizer, "a ", "film"), encode(tokenizer, "", "dull good film")]
    batch = collate_packed(rows)
    assert batch["cu_seqlens"].tolist() == [0, 3, 8]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["input_ids"][0].tolist() == rows[0].ids + rows[1].ids
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch["labels"][0, 3] == IGNORE


# -- pairs ---------------------------------------------------------------------------------------------------


def test_pairs_repeat_and_do_not_depend_on_the_number_of_processes() -> None:
    whole = epoch_pairs(11, 30, epoch=2, seed=5, ratio=3)
    assert sorted(f for (f,), _ in whole) == list(range(11))
    assert all(len(set(retain)) == 3 for _, retain in whole)
    assert whole == epoch_pairs(11, 30, epoch=2, seed=5, ratio=3)
    assert whole != epoch_pairs(11, 30, epoch=3, seed=5, ratio=3)
    parts = [epoch_pairs(11, 30, epoch=2, seed=5, ratio=3, rank=r, world_size=4) for r in range(4)]
    assert [parts[i % 4][i // 4] for i in range(11)] == whole


def test_every_retain_row_is_met_in_the_long_run() -> None:
    met = {r for epoch in range(40) for _, retain in epoch_pairs(10, 20, epoch=epoch) for r in retain}
    assert met == set(range(20))


def test_the_retain_set_may_lead() -> None:
    pairs = epoch_pairs(3, 8, epoch=0, anchor="retain", ratio=2)
    assert sorted(r for _, (r,) in pairs) == list(range(8))
    assert all(len(forget) == 2 for forget, _ in pairs)
    assert epoch_pairs(3, 0, epoch=0)[0][1] == ()
    with pytest.raises(ValueError, match=r"ratio: expected an integer in \[1, 8\], got 9"):
        epoch_pairs(3, 8, epoch=0, ratio=9)
    with pytest.raises(ValueError, match="forget: expected at least one row"):
        epoch_pairs(0, 8, epoch=0)


def test_forget_rows_are_chosen_as_published() -> None:
    random.seed(1000)
    published = random.sample(range(40), 10)
    chosen, rest = sample_forget(list(range(40)), 0.25)
    assert chosen == published
    assert sorted(chosen + rest) == list(range(40))
    assert len(sample_forget(list(range(40)), 7)[0]) == 7
    with pytest.raises(ValueError, match="forget_ratio: expected 1 to 40 rows, got 41"):
        sample_forget(list(range(40)), 41)
    with pytest.raises(ValueError, match="forget_ratio: expected a finite number > 0"):
        sample_forget(list(range(40)), 0)
