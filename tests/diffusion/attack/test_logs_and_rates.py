"""Logs in the published layout, and success rates against the formulas."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tenfold.diffusion.attack.asr import (
    Rate,
    attack_rates,
    average_minutes,
    published_rates,
    style_rates,
    wilson,
)
from tenfold.diffusion.attack.logs import CaseLog, Entry, LogFolder, read_published, write_jsonl


def log(name: str, *success: bool, error: str = "", seconds: float = 2.0) -> CaseLog:
    entries = [Entry("p", s, seconds=seconds * (i + 1), share=seconds) for i, s in enumerate(success)]
    return CaseLog(name, "p", 1, 7.5, entries, error)


LOGS = [
    log("0", True), log("1", False, False, True), log("2", False, True), log("3", False, False, False),
    log("4", False, error="crashed"), log("5", False, False),
]  # fmt: skip


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29
    for (x, n), (low, high) in {
        (81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():  # fmt: skip
        assert wilson(x, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="successes"):
        wilson(3, 2)


def test_rates_of_an_attack() -> None:
    rates = attack_rates(LOGS)
    assert (rates.pre, rates.post, rates.attack) == (Rate(1, 5), Rate(3, 5), Rate(2, 4))
    assert rates.errors == 1
    assert rates.seconds == pytest.approx(2.0)
    assert str(rates.post) == "0.60 (0.23 to 0.88)"
    assert math.isnan(attack_rates([log("0", error="x")]).post.value)
    assert str(Rate(0, 0)) == "none of 0"


def test_success_by_ids_is_counted_apart() -> None:
    one = log("0", False, False)
    one.entries[1].success_ids = True
    rates = attack_rates([one, log("1", True)])
    assert (rates.post, rates.ids) == (Rate(1, 2), Rate(2, 2))


def publish(root: Path, name: str, entries: list[dict[str, Any]] | None) -> None:
    """A folder as the reference code leaves it."""
    folder = root / f"attack_idx_{name}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"attacker": {"attack_idx": int(name)}}))
    if entries is not None:
        (folder / "log.json").write_text(json.dumps(entries))


def entry(success: bool, clock: str = "0:00:30.500000", **more: Any) -> dict[str, Any]:
    return {
        "start_time": "2024-01-01-00-00-00",
        "relative_time": clock,
        "prompt": "p",
        "success": success,
        **more,
    }


def test_published_logs_are_read_and_counted_both_ways(tmp_path: Path) -> None:
    attack, plain = tmp_path / "attack", tmp_path / "plain"
    for i, success in enumerate([True, False, False, False]):
        publish(plain, str(i), [entry(success)])
    publish(attack, "0", [entry(True)])
    publish(attack, "1", [entry(False), entry(True, "0:02:00.000000")])
    publish(attack, "2", [entry(False), entry(False)])
    publish(attack, "3", None)  # it crashed
    found = published_rates(attack, plain)
    assert (found.pre, found.post, found.errors) == (Rate(1, 3), Rate(2, 3), 1)
    reference = published_rates(attack, plain, compat="reference")
    assert (reference.pre, reference.post, reference.errors) == (Rate(1, 4), Rate(2, 4), 0)
    logs = read_published(attack)
    assert logs["1"].entries[1].seconds == 120
    assert average_minutes([logs["1"]]) == pytest.approx(2.0 / 2 * 50)
    with pytest.raises(ValueError, match="no_attack: expected"):
        published_rates(attack, compat="reference")
    with pytest.raises(FileNotFoundError, match="expected folders attack_idx"):
        read_published(tmp_path / "nothing")
    publish(attack, "9", [{**entry(True), "success": 1}])
    with pytest.raises(ValueError, match="success: expected true or false, got 1"):
        read_published(attack)


def test_style_is_counted_over_the_logs_that_there_are() -> None:
    def ranked(place: int) -> Entry:
        labels = [f"artist-{i}" for i in range(12)]
        labels.insert(place, "vincent-van-gogh")
        return Entry("p", False, details=[{"label": x, "score": 0.1} for x in labels])

    logs = [
        CaseLog("0", "p", 0, 7.5, [ranked(11), ranked(0)]),
        CaseLog("1", "p", 0, 7.5, [ranked(11), ranked(2)]),
        CaseLog("2", "p", 0, 7.5, [ranked(1)]), CaseLog("3", "p", 0, 7.5, [ranked(12), ranked(9)]),
    ]  # fmt: skip
    rates = style_rates(logs)
    assert {k: r.post for k, r in rates.items()} == {1: Rate(1, 4), 3: Rate(3, 4), 10: Rate(4, 4)}
    assert {k: r.pre for k, r in rates.items()} == {1: Rate(0, 4), 3: Rate(1, 4), 10: Rate(1, 4)}
    assert style_rates(logs, "Vincent van Gogh") == rates  # as the judge finds its target
    church = [CaseLog("0", "p", 0, 7.5, [Entry("p", True, details=["church, church building", "vault"])])]
    assert style_rates(church, "church", (1,))[1].pre == Rate(1, 1)
    assert style_rates(church, "building", (1,))[1].pre == Rate(0, 1)


def test_a_prompt_s_folder_is_the_published_layout_and_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    one = log("a7", False, False, True)
    one.entries[1].t, one.entries[2].t = 10, 30
    pictures = [(n, torch.full((1, 4, 4), i, dtype=torch.uint8)) for i, n in enumerate(["orig", "10", "30"])]
    one.pictures = [pictures[0][1], pictures[2][1]]
    settings = {"attack": {"name": "text_grad", "k": 3}}
    store = LogFolder(tmp_path / "all", settings, images="all")
    store.save(one, 5, pictures)
    folder = tmp_path / "all" / "attack_idx_a7"
    assert {p.name for p in (folder / "images").iterdir()} == {"orig.png", "10.png", "30.png"}
    entries = json.loads((folder / "log.json").read_text())
    assert [e["relative_time"] for e in entries] == ["0:00:02.000000", "0:00:04.000000", "0:00:06.000000"]
    assert json.loads((folder / "config.json").read_text())["attacker"] == {
        "attack_idx": 5, "name": "text_grad", "k": 3,
    }  # fmt: skip
    back = store.load("a7")
    assert back is not None
    assert back.plain() == one.plain()
    assert [p.unique().tolist() for p in back.pictures] == [[0], [2]]
    assert store.load("a8") is None
    last = LogFolder(tmp_path / "last", settings)
    last.save(one, 0, pictures)
    assert {p.stem for p in (last.path("a7") / "images").iterdir()} == {"orig", "30"}


def test_the_last_picture_is_the_last_entry_s_whatever_the_files_times(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    import os

    one = log("0", False, False, False)
    pictures = [
        (n, torch.full((1, 4, 4), i, dtype=torch.uint8)) for i, n in enumerate(["orig", "iter_0", "iter_1"])
    ]
    store = LogFolder(tmp_path, {}, images="all")
    store.save(one, 0, pictures)
    os.utime(store.path("0") / "images" / "iter_1.png", (1, 1))  # as after copying or unpacking
    back = store.load("0")
    assert back is not None
    assert [int(p[0, 0, 0]) for p in back.pictures] == [0, 2]


def test_times_beyond_a_day_are_written_and_read(tmp_path: Path) -> None:
    one = log("0", False, seconds=90061.5)
    store = LogFolder(tmp_path / "ours", {})
    store.save(one, 0)
    text = json.loads((store.path("0") / "log.json").read_text())[0]["relative_time"]
    assert text == "25:01:01.500000"
    assert read_published(tmp_path / "ours")["0"].entries[0].seconds == 90061.5
    publish(tmp_path / "theirs", "0", [entry(False, "1 day, 1:01:01.500000"), entry(True, "2 days, 0:00:00")])
    found = read_published(tmp_path / "theirs")["0"].entries
    assert [e.seconds for e in found] == [90061.5, 172800.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "a list of at least one entry, got 5"), ("[5]", "a list of at least one entry"),
        ("[]", "a list of at least one entry"), ("{", "expected JSON"),
        ('[{"success": true, "relative_time": "soon"}]', "relative_time: expected H:MM:SS.ffffff, got 's"),
    ],
)  # fmt: skip
def test_files_that_are_no_logs_are_named(tmp_path: Path, text: str, message: str) -> None:
    folder = tmp_path / "attack_idx_0"
    folder.mkdir()
    (folder / "log.json").write_text(text)
    with pytest.raises(ValueError, match=rf"log\.json.*{re.escape(message)}"):
        read_published(tmp_path)


def test_an_error_is_kept_apart_and_tried_again(tmp_path: Path) -> None:
    store = LogFolder(tmp_path, {})
    store.save(log("3", False, error="RuntimeError: out of memory"), 0)
    assert not (store.path("3") / "log.json").exists()
    assert store.load("3") is None
    assert read_published(tmp_path)["3"].state == "error"
    store.save(log("3", False, True), 0)
    assert not (store.path("3") / "error.json").exists()
    assert read_published(tmp_path)["3"].state == "success"


@pytest.mark.parametrize("name", ["/../../out", "../../../out", "a\\b", "a\0b", "x" * 201])
def test_a_case_number_does_not_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    store = LogFolder(tmp_path / "logs", {})
    for wrong in (lambda: store.load(name), lambda: store.save(log(name, False), 0)):
        with pytest.raises(ValueError, match="case_number: expected text that may stand in a file's name"):
            wrong()
    assert not list(tmp_path.iterdir())


def test_one_line_per_prompt(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "logs.jsonl", LOGS)
    lines = [json.loads(line) for line in (tmp_path / "logs.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["pre", "success", "success", "defended", "error", "defended"]
    assert [CaseLog.from_plain(line) for line in lines] == LOGS
