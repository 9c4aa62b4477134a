"""Token rows of the tasks, through byte-level tokenizers built here."""

from __future__ import annotations

from typing import Any

import pytest
import task_records
import torch

from tenfold.llm.tasks import (
    TASKS,
    Example,
    collate,
    collate_masked,
    demonstration_text,
    encode,
    encode_masked,
    encode_prompts,
)

CASES = [(name, version) for name, task in TASKS.items() for version in range(task.versions)]
TEXT = [
    "It was terrible . It was great . a film . Yes No Maybe Yes No Maybe so because the cup fell .",
    "terrible great Yes No Maybe terrible great Yes No Maybe",
]


def make(kind: str) -> Any:
    """A byte-level BPE tokenizer: 'bos' puts <s> in front as OPT's does, 'masked' also </s> behind."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    single = {"bos": "<s> $A", "masked": "<s> $A </s>"}.get(kind)
    if single:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    extra = {"mask_token": AddedToken("<mask>", lstrip=True, special=True)} if kind == "masked" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **extra
    )


@pytest.fixture(scope="module")
def bos() -> Any:
    return make("bos")


@pytest.fixture(scope="module")
def plain() -> Any:
    return make("plain")


@pytest.fixture(scope="module")
def masked() -> Any:
    return make("masked")


def of(task: str, version: int = 0) -> list[Example]:
    return [TASKS[task].example(row, version) for row in TASKS[task].read(task_records.COLUMNS[task])]


def spans(tokenizer: Any, rows: Any) -> list[tuple[str, str]]:
    """What stands before and in the span of each row's option."""
    return [
        (tokenizer.decode(ids[:-length]), tokenizer.decode(ids[-length:]))
        for ids, length in zip(rows.ids, rows.option_len, strict=True)
    ]


@pytest.mark.parametrize(("task", "version"), CASES)
def test_a_row_is_prompt_and_option_and_the_span_is_the_option(task: str, version: int, bos: Any) -> None:
    found = of(task, version)
    rows = encode(found, bos, 512)
    expected = [(f"<s>{e.prompt}", option) for e in found for option in e.options]
    assert spans(bos, rows) == expected
    assert rows.num_options == [len(e.options) for e in found]
    assert rows.labels == [e.label for e in found]
    assert rows.truncated == 0


def test_one_token_answers_have_length_one(bos: Any) -> None:
    rows = encode(of("sst2"), bos, 64)
    assert rows.option_len == [1, 1, 1, 1]
    assert rows.ids[0][0] == 1  # <s>, once
    assert rows.ids[0].count(1) == 1


def test_only_the_right_option_for_the_language_model_loss(bos: Any) -> None:
    rows = encode(of("winogrande"), bos, 64, only_correct=True)
    assert spans(bos, rows) == [
        ("<s>Ned paid Ole because", " Ole had sold a hat."),  # the tail belongs to the option
        ("<s>", "Ole sold Ned a hat."),
    ]
    assert (rows.num_options, rows.labels) == ([1, 1], [0, 0])
    assert spans(bos, encode(of("squad"), bos, 200, only_correct=True))[0][1] == " 1801\n"


def test_calibration_rows(bos: Any) -> None:
    assert spans(bos, encode(of("sst2"), bos, 64, calibrate=True))[:2] == [
        ("<s>It was", " terrible"),
        ("<s>It was", " great"),
    ]
    assert spans(bos, encode(of("sst2", 1), bos, 64, calibrate=True))[0] == ("<s>", "terrible")
    assert spans(bos, encode(of("copa"), bos, 64, calibrate=True)) == [
        ("<s>so", " it broke."),
        ("<s>so", " I laughed."),
        ("<s>because", " snow came."),
        ("<s>because", " the cat ran."),
    ]
    assert spans(bos, encode(of("boolq"), bos, 64, calibrate=True))[:2] == [("<s>", "Yes"), ("<s>", "No")]
    assert spans(bos, encode(of("record"), bos, 64, calibrate=True))[0] == ("<s>-", " Fans of Rome wept.")
    with pytest.raises(ValueError, match="calibrate: expected a task with a domain string"):
        encode(of("squad"), bos, 64, calibrate=True)


def test_a_row_without_a_prompt_starts_with_bos_whatever_the_tokenizer_does(plain: Any) -> None:
    rows = encode(of("boolq"), plain, 64, calibrate=True)
    assert [ids[0] for ids in rows.ids] == [1, 1, 1, 1]
    assert [len(ids) - 1 for ids in rows.ids] == rows.option_len
    ordinary = encode(of("boolq"), plain, 64)
    assert all(ids[0] != 1 for ids in ordinary.ids)
    plain = make("plain")
    plain.bos_token = plain.eos_token = None
    with pytest.raises(ValueError, match="tokenizer: expected a BOS or EOS token"):
        encode(of("boolq"), plain, 64, calibrate=True)


def test_demonstrations(bos: Any) -> None:
    found = of("sst2")
    text = demonstration_text(found)
    assert text == 'a dull " plot It was terrible\n\nwarm  and bright It was great'
    rows = encode(found[:1], bos, 256, demonstrations=found)
    assert spans(bos, rows)[1] == (f'<s>{text}\n\na dull " plot It was', " great")
    assert demonstration_text(of("squad")).endswith("\nAnswer: 1801")
    assert demonstration_text([]) == ""
    assert encode(found, bos, 256, demonstrations=[]) == encode(found, bos, 256)


def test_cut_on_the_left_behind_bos(bos: Any, plain: Any) -> None:
    long = Example("x " * 100 + "It was", [" terrible", " great"], 1, [], "")
    for tokenizer, front in ((bos, [1]), (plain, [])):
        whole = encode([long], tokenizer, 10_000)
        cut = encode([long], tokenizer, 16)
        assert cut.truncated == 2
        assert whole.truncated == 0
        for short, full in zip(cut.ids, whole.ids, strict=True):
            assert len(short) == 16
            assert short == front + full[-(16 - len(front)) :]
        assert cut.option_len == whole.option_len


def test_impossible_options(bos: Any) -> None:
    with pytest.raises(ValueError, match="options: expected at least one token, got 0 in 'text'"):
        encode([Example("text", ["", " great"], 1, [], "")], bos, 16)
    with pytest.raises(ValueError, match="options: expected at least one token, got 0"):
        encode([Example("text", ["  ", " great"], 1, [], "")], bos, 16)  # blanks at the end are no option
    with pytest.raises(ValueError, match="max_length: expected more than the 40 tokens of an option, got 40"):
        encode([Example("text", [" " + "q" * 39], 0, [], "")], bos, 40)
    assert encode([Example("text", [" " + "q" * 39], 0, [], "")], bos, 41).option_len == [40]


def test_prompts_for_generation(bos: Any) -> None:
    (example,) = of("squad")
    (row,) = encode_prompts([example], bos, 512)
    assert bos.decode(row) == "<s>" + example.prompt
    (short,) = encode_prompts([example], bos, 60, max_new_tokens=50)
    assert short == [1, *row[-9:]]
    (led,) = encode_prompts([example], bos, 512, demonstrations=[example])
    assert bos.decode(led) == f"<s>{example.prompt} 1801\n\n{example.prompt}"
    with pytest.raises(ValueError, match="max_length: expected more than max_new_tokens = 50, got 51"):
        encode_prompts([example], bos, 51)


def test_padding_on_the_left_to_a_multiple_of_eight(bos: Any) -> None:
    rows = encode(of("copa"), bos, 64)
    batch = collate(rows, [1, 0], pad_id=0)
    width = max(map(len, rows.ids))
    assert batch.ids.shape == batch.mask.shape == (4, -(-width // 8) * 8)
    assert batch.ids.dtype == batch.mask.dtype == torch.int64
    for i, row in enumerate([2, 3, 0, 1]):
        assert batch.ids[i][batch.mask[i].bool()].tolist() == rows.ids[row]
        assert batch.mask[i].tolist() == sorted(batch.mask[i].tolist())  # zeros first
        assert (batch.ids[i][batch.mask[i] == 0] == 0).all()
        assert batch.option_len[i] == rows.option_len[row]
    assert batch.num_options.tolist() == [2, 2]
    assert batch.labels.tolist() == [1, 0]
    assert collate(rows, [0], 0, multiple_of=1).ids.shape[1] == max(map(len, rows.ids[:2]))


def test_tasks_with_different_numbers_of_options(bos: Any) -> None:
    found = [*of("cb")[:1], *of("sst2")[1:]]
    rows = encode(found, bos, 128)
    assert rows.num_options == [3, 2]
    assert collate(rows, [1], 0).ids.shape[0] == 2


# -- masked models --------------------------------------------------------------------------------------


def test_masked_rows(masked: Any) -> None:
    found = [TASKS["sst2"].example(row, mask_token="<mask>") for row in task_records.COLUMNS["sst2"]]
    rows = encode_masked(found, masked, 64)
    words = [masked(w, add_special_tokens=False).input_ids for w in (" terrible", " great")]
    assert rows.options.tolist() == [word for (word,) in words]
    assert rows.labels == [0, 1]
    for example, ids, at in zip(found, rows.ids, rows.mask_at, strict=True):
        assert ids[at] == masked.mask_token_id
        assert ids == masked(example.prompt).input_ids  # with <s> and </s>
        assert masked.decode(ids[1:at]) == example.prompt.split(" <mask>")[0]
    ids, mask, at, labels = collate_masked(rows, [1, 0], masked.pad_token_id)
    assert ids.shape[1] % 8 == 0
    assert (ids[torch.arange(2), at] == masked.mask_token_id).all()
    assert mask.sum(1).tolist() == [len(rows.ids[1]), len(rows.ids[0])]
    assert mask[0].tolist() == sorted(mask[0].tolist(), reverse=True)
    assert labels.tolist() == [1, 0]


def test_masked_rows_are_cut_on_the_left(masked: Any) -> None:
    row = {"sentence": "long " * 50, "label": 1}
    example = TASKS["sst2"].example(row, mask_token="<mask>")
    rows = encode_masked([example], masked, 16)
    assert (len(rows.ids[0]), rows.truncated) == (16, 1)
    assert (rows.ids[0][0], rows.ids[0][-1]) == (1, 2)
    late = TASKS["rte"].example({"premise": "x.", "hypothesis": "y " * 50, "label": 0}, mask_token="<mask>")
    with pytest.raises(ValueError, match="expected one '<mask>' in 16 tokens, got 0"):
        encode_masked([late], masked, 16)


def test_masked_errors(masked: Any, bos: Any) -> None:
    example = TASKS["sst2"].example({"sentence": "a <mask> film", "label": 1}, mask_token="<mask>")
    with pytest.raises(ValueError, match="expected one '<mask>' in 64 tokens, got 2"):
        encode_masked([example], masked, 64)
    with pytest.raises(ValueError, match="tokenizer: expected one with a mask token"):
        encode_masked([example], bos, 64)
    with pytest.raises(ValueError, match="expected no tokens behind a text"):
        encode(of("sst2"), masked, 64)
    both = [TASKS[t].example(task_records.COLUMNS[t][0], mask_token="<mask>") for t in ("sst2", "cb")]
    with pytest.raises(ValueError, match="expected the same answer words in all, got 2 different lists"):
        encode_masked(both, masked, 64)
