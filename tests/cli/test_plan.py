"""`tenfold plan`: numbers of `memory_plan`, and errors in one line."""

from __future__ import annotations

import json

import pytest

from tenfold.cli import main
from tenfold.llm.memory_plan import LLAMA_2_7B, LLAMA_2_70B, METHODS, Shape, memory_plan

PARTS = ("weights", "gradients", "states", "activations", "logits", "gathered", "peak")


def planned(capsys, *arguments):
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def bytes_of(plan):
    return {part: getattr(plan, part) for part in PARTS}


def test_one_method_of_a_size(capsys):
    found = planned(capsys, "--params", "7e9", "--method", "zo-sgd", "--dtype", "bf16", "--length", "2048")
    own = memory_plan(LLAMA_2_7B, method="zo-sgd", batch=1, length=2048, dtype="bfloat16")
    assert found["plans"] == [{"method": "zo-sgd"} | bytes_of(own)]
    assert (found["schema"], found["model"]) == ("tenfold.plan/1", "llama-2-7b")
    assert (found["parameters"], found["dtype"]) == (own.parameters, "bfloat16")


def test_every_method_on_one_rank_and_those_that_shard_on_two(capsys):
    assert [row["method"] for row in planned(capsys, "--params", "70e9")["plans"]] == list(METHODS)
    given = ("--model", "Llama-2-70B", "--ranks", "2", "--batch", "3", "--checkpointing", "--chunked")
    rows = planned(capsys, *given)["plans"]
    assert [row.pop("method") for row in rows] == ["zo-sgd", "zo-adam", "adamw", "sophia"]
    settings = {"batch": 3, "length": 512, "ranks": 2, "checkpointing": True, "chunked": True}
    own = memory_plan(LLAMA_2_70B, method="sophia", **settings)
    assert rows[-1] == bytes_of(own)
    assert main(["plan", *given]) == 0
    head, _, columns, *lines = capsys.readouterr().out.splitlines()
    assert head.endswith(
        "float32, 3 x 512 tokens, checkpointing, chunked, 2 ranks of FSDP2; GiB on each rank"
    )
    assert columns.split() == ["method", *PARTS]
    assert lines[3].split() == ["sophia", *(f"{number / 2**30:,.2f}" for number in bytes_of(own).values())]
    assert lines[-1] == "lozo and sophia-8bit do not take sharded parameters."


def test_a_configuration_of_transformers(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    shape = Shape(131, 32, 3, 4, 2, 48, True)
    config = transformers.LlamaConfig(**shape._asdict())
    config.save_pretrained(tmp_path)
    own = memory_plan(shape, method="adamw", batch=1, length=512)
    for place in (tmp_path, tmp_path / "config.json"):
        found = planned(capsys, "--model", str(place), "--method", "adamw")
        assert found["plans"] == [{"method": "adamw"} | bytes_of(own)]
        assert found["parameters"] == own.parameters
    for kind in ("gpt2", "nonsense"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert main(["plan", "--model", str(tmp_path)]) == 2
        assert f"plan: error: --model {tmp_path}: expected " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "--model: expected either it or --params, got none"),
        (("--model", "llama-2-7b", "--params", "7e9"), "--model: expected either it or --params, got both"),
        (("--model", "gone"), "--model: expected llama-2-7b, llama-2-70b, a config.json or its folder, got"),
        (("--params", "13e9"), "--params: expected about 6.7e9 (llama-2-7b) or 69.0e9 (llama-2-70b), got"),
        (("--params", "nan"), "--params: expected float, got 'nan'"),
        (("--params", "7e9", "--dtype", "fp16"), "dtype: expected one of 'float32', 'bfloat16', got 'fp16'"),
        (("--params", "7e9", "--method", "adam"), "method: expected one of 'zo-sgd', 'zo-adam'"),
        (("--params", "7e9", "--method", "lozo", "--ranks", "2"), "ranks: expected 1 with lozo"),
        (("--params", "7e9", "--batch", "0"), "batch: expected an integer in"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_said_in_one_line(given, message, capsys):
    assert main(["plan", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tenfold plan: error: {message}")
    assert error.count("\n") == 1
