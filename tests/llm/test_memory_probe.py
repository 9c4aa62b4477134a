"""The memory probe on a model of 8 million parameters (32 MiB): back-propagation cannot hide in noise."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import make_llama

from tenfold.llm import _memory_probe, memory
from tenfold.llm.prompts import Encoded


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("probe")
    make_llama(width=512, layers=2, vocabulary=8192).save_pretrained(folder)
    return {
        "model": str(folder), "dtype": "float32", "device": "cpu", "rows": [[5, 6, 7, 8], [9, 3]],
        "labels": [0, 1], "pad_id": 0, "options": [19, 20], "optimizer": "fzoo", "eps": 1e-3,
        "restore": "arithmetic", "rounds": 2,
    }  # fmt: skip


@pytest.mark.parametrize("mode", _memory_probe.MODES)
def test_every_mode_runs(request_: dict[str, Any], mode: str) -> None:
    answer = _memory_probe.probe(mode, request_ | {"rounds": 1})
    assert len(answer["peaks"]) == len(answer["seconds"]) == 1
    assert answer["peaks"][0] >= answer["loaded"] - 1 > 0


@pytest.mark.parametrize("optimizer", ["zo-sgd", "zo-adam"])
def test_every_optimizer_can_be_probed(request_: dict[str, Any], optimizer: str) -> None:
    assert _memory_probe.probe("zo", request_ | {"optimizer": optimizer, "rounds": 1})["mode"] == "zo"


def test_unknown_mode(request_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mode: expected one of forward, zo, adam, adam-ckpt, got 'sgd'"):
        _memory_probe.probe("sgd", request_)


class Folder:
    """Keeps the state of a run in memory."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def load_state(self, key: str) -> Any:
        return (self.state[key], {}) if key in self.state else None

    def save_state(self, key: str, state: Any) -> None:
        self.state[key] = dict(state)

    def progress(self, *arguments: Any, **named: Any) -> Any:
        from tenfold.runs.progress import Progress

        return Progress(*arguments, **named)


@pytest.mark.slow
def test_a_zeroth_order_step_needs_no_more_than_a_forward(request_: dict[str, Any]) -> None:
    folder: Any = Folder()
    rows = {row.mode: row for row in memory.measure(folder, request_)}
    weights = 32.0
    assert weights - 1 < rows["zo"].weights < weights + 24  # code that loading pulls in counts too
    assert rows["zo"].above_model < rows["forward"].above_model + 8
    assert rows["adam"].above_model > 3 * weights - 8  # gradient and two moments
    assert set(folder.state["memory"]) == set(_memory_probe.MODES)


def test_answers_are_not_asked_for_twice(request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(mode: str, request: dict[str, Any]) -> dict[str, Any]:
        asked.append(mode)
        return {
            "mode": mode, "method": "m", "before_load": 10.0, "loaded": 30.0, "peaks": [31.0, 35.0],
            "seconds": [2, 1],
        }  # fmt: skip

    monkeypatch.setattr(memory, "_ask", ask)
    folder: Any = Folder()
    first = memory.measure(folder, request_, modes=("forward", "zo"))
    assert memory.measure(folder, request_, modes=("forward", "zo")) == first
    assert asked == ["forward", "zo"]
    assert first[1] == memory.Measured("zo", 5.0, 25.0, 20.0, 4.0, 1, "m")


def test_a_failed_child_is_told_with_its_words(request_: dict[str, Any]) -> None:
    folder: Any = Folder()
    with pytest.raises(RuntimeError, match=r"probe sgd ended with exit code 1:(.|\n)*mode: expected one of"):
        memory.measure(folder, request_, modes=("sgd",))


def test_the_longest_prompts_are_chosen() -> None:
    import torch

    data = Encoded([[1], [1, 2, 3], [1, 2]], torch.tensor([0, 1, 0]))
    assert memory.longest(data, 2) == ([[1, 2, 3], [1, 2]], [1, 0])
