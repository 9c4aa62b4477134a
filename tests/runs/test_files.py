from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenfold.runs import files


def write_half(path: Path) -> None:
    with files.replacing(path) as aside:
        aside.write_text("half of the n")
        raise KeyboardInterrupt


def test_interrupted_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    files.write_text(path, "one")
    files.write_text(path, "zwei ä")
    assert path.read_text(encoding="utf-8") == "zwei ä"
    assert list(path.parent.iterdir()) == [path]


def test_json_refuses_nan_before_writing(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"loss": float("nan")})
    assert not path.exists()


def test_json_round_trip_keeps_order_and_bits(tmp_path: Path) -> None:
    value = {"z": 0.1 + 0.2, "a": [1, None, "ä"], "big": 2**63}
    files.write_json(tmp_path / "v.json", value)
    read = files.read_json(tmp_path / "v.json")
    assert read == value
    assert list(read) == ["z", "a", "big"]


def test_read_json_names_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(ValueError, match=r"v\.json: expected JSON"):
        files.read_json(tmp_path / "v.json")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", 3])
def test_names_that_are_no_plain_file_names(name: object) -> None:
    with pytest.raises(ValueError, match="key: expected letters"):
        files.check_name("key", name)  # type: ignore[arg-type]
