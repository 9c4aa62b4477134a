"""Fine-tuning with the weights elsewhere gives the bits of fine-tuning in memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tenfold.llm._read_ahead import ReadAhead
from tenfold.llm.offload import OffloadedZO, WeightStore
from tenfold.optim import ZOSGD, zolog

ROWS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18], [3, 4, 5, 40, 41, 42, 43]])


def batches(count: int) -> list[dict[str, Tensor]]:
    ids = [(ROWS + 3 * i) % 64 for i in range(count)]
    return [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x} for x in ids]


def in_memory(model: Any, steps: int, **options: Any) -> tuple[dict[str, Tensor], list[float]]:
    model.requires_grad_(True)
    optimizer = ZOSGD(model.parameters(), restore="exact", streams=model, **options)
    losses = []
    for batch in batches(steps):

        def closure(batch: dict[str, Tensor] = batch) -> Tensor:
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())

        losses.append(float(optimizer.step(closure)))
    return {name: p.detach().clone() for name, p in model.named_parameters()}, losses


OPTIONS = [
    {"lr": 1e-3, "eps": 1e-2, "seed": 3},
    {"lr": 1e-3, "eps": 1e-2, "num_queries": 3, "weight_decay": 0.1, "dist": "rademacher"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "queries-decay-signs"])
@pytest.mark.parametrize("make", [tiny_models.make_llama, tiny_models.make_opt], ids=["llama", "opt"])
@pytest.mark.parametrize("stored", ["disk", "host"])
def test_equals_zosgd_in_memory(make: Any, stored: str, options: dict[str, Any], tmp_path: Path) -> None:
    expected, losses = in_memory(make(), 4, **options)
    store = WeightStore(tmp_path / "weights" if stored == "disk" else None)
    trainer = OffloadedZO(make(), store, **options)
    assert all(p.device.type == "meta" for p in trainer.model.parameters())
    ours = [float(trainer.step(batch)) for batch in batches(4)]
    assert ours == pytest.approx(losses, rel=1e-5)
    for name, tensor in trainer.tensors():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_bits_follow_from_the_projected_gradients(tmp_path: Path) -> None:
    """Given the same losses, all bits are those of the optimizer in memory, stochastic rounding too."""
    model = tiny_models.make_llama().requires_grad_(True)
    trainer = OffloadedZO(
        tiny_models.make_llama().to(torch.bfloat16), WeightStore(tmp_path / "w"), lr=1e-2, rounding="sr"
    )
    twin = tiny_models.make_llama().to(torch.bfloat16).requires_grad_(True)
    optimizer = ZOSGD(twin.parameters(), lr=1e-2, restore="exact", rounding="sr", streams=twin)
    for batch in batches(3):
        trainer.step(batch)
        g = trainer.projected_grads[0]
        probes = iter((2e-3 * g, 0.0))  # (L+ - L-) / (2 eps) = g at eps = 1e-3
        optimizer.step(lambda probes=probes: next(probes))
    for name, tensor in trainer.tensors():
        assert torch.equal(tensor, twin.get_parameter(name)), name
    assert not torch.equal(twin.get_parameter("model.norm.weight").float(), model.model.norm.weight)


def make_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0)
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def make_bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, bos_token_id=0)
    return BloomForCausalLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("make", [make_gpt2, make_bloom])
def test_positions_and_biases_without_a_batch(make: Any) -> None:
    expected, losses = in_memory(make(), 2, lr=1e-3, eps=1e-2)
    trainer = OffloadedZO(make(), WeightStore(), lr=1e-3, eps=1e-2)
    assert [float(trainer.step(batch)) for batch in batches(2)] == pytest.approx(losses, rel=1e-5)
    for name, tensor in trainer.tensors():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(model_folder: Path, tmp_path: Path, torn: bool) -> None:
    options: dict[str, Any] = {"lr": 1e-3, "eps": 1e-2, "num_queries": 2, "weight_decay": 0.1}
    data = batches(5)
    whole = OffloadedZO.from_pretrained(model_folder, tmp_path / "a", **options)
    for batch in data:
        whole.step(batch)

    journal = tmp_path / "run.zolog"
    killed = OffloadedZO.from_pretrained(model_folder, tmp_path / "b", journal=journal, **options)
    for batch in data[:3]:
        killed.step(batch)
    for path in (tmp_path / "b").iterdir():  # whatever a kill leaves behind
        path.write_bytes(path.read_bytes()[::-1])
    killed.close()
    if torn:
        with journal.open("ab") as file:
            file.write(b"\3\0\0\0 half a record")

    again = OffloadedZO.from_pretrained(model_folder, tmp_path / "b", journal=journal, resume=True, **options)
    assert again.num_steps == 3
    for batch in data[3:]:
        again.step(batch)
    expected = dict(whole.tensors())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.tensors())
    assert zolog.info(journal)["steps"] == 5
    assert zolog.info(journal)["torn_bytes"] == 0


def test_journals_of_others_are_refused(model_folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "run.zolog"
    OffloadedZO.from_pretrained(model_folder, None, journal=journal, eps=1e-2).close()
    with pytest.raises(FileExistsError, match="journal: expected a new file"):
        OffloadedZO.from_pretrained(model_folder, None, journal=journal, eps=1e-2)
    for other, message in (({"eps": 1e-3}, "eps"), ({"eps": 1e-2, "seed": 4}, "seed = 4 where it has 0")):
        with pytest.raises(zolog.ZOLogError, match=message):
            OffloadedZO.from_pretrained(model_folder, None, journal=journal, resume=True, **other)
    with pytest.raises(ValueError, match="journal: expected the file"):
        OffloadedZO.from_pretrained(model_folder, None, resume=True)
    tiny_models.make_llama(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(zolog.ZOLogError, match="expected the weights that it starts from"):
        OffloadedZO.from_pretrained(tmp_path / "other", None, journal=journal, resume=True, eps=1e-2)
    journal.write_text("not a log\n")
    with pytest.raises(zolog.ZOLogError, match=r"expected a .zolog file"):
        OffloadedZO.from_pretrained(model_folder, None, journal=journal, resume=True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_queries": 3, "weight_decay": 0.1, "dist": "rademacher"},
        {"dtype": torch.bfloat16, "rounding": "sr"},
    ],
    ids=["queries-decay-signs", "bfloat16-sr"],
)
def test_the_journal_is_a_zolog_of_the_same_bits(
    model_folder: Path, tmp_path: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`tenfold zolog info|replay|undo` know an offloaded run, a skipped step and changing rates included."""
    journal, data = tmp_path / "run.zolog", batches(6)
    options = {"lr": 1e-2, "eps": 1e-2, "seed": 5} | options
    trainer = OffloadedZO.from_pretrained(model_folder, tmp_path / "w", journal=journal, **options)
    usual = trainer.loss
    for i, batch in enumerate(data):
        trainer.lr = 1e-2 / (i + 1)
        trainer.loss = (lambda *_: torch.tensor(float("nan"))) if i == 2 else usual
        trainer.step(batch)
    trainer.close()
    expected = {name: tensor.clone() for name, tensor in trainer.tensors()}

    base = tiny_models.make_llama().to(options.get("dtype", torch.float32)).requires_grad_(True)
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    zolog.replay(base, journal)
    assert all(torch.equal(base.get_parameter(name), tensor) for name, tensor in expected.items())
    assert not torch.equal(start["model.norm.weight"], expected["model.norm.weight"])
    again = {name: tensor.clone() for name, tensor in start.items()}
    zolog.replay(again, journal)
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())

    assert zolog.info(journal)["skipped_steps"] == 1
    if "dtype" not in options:
        from tenfold.cli import main

        out = tmp_path / "out.safetensors"
        assert main(["zolog", "info", str(journal)]) == 0
        assert "ZOSGD" in capsys.readouterr().out
        assert main(["zolog", "replay", str(journal), "--base", str(model_folder), "--out", str(out)]) == 0
        written = load_file(out)
        assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_the_journal_is_the_log_that_the_optimizer_in_memory_writes(
    model_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "eps": 1e-2, "num_queries": 2, "weight_decay": 0.1}
    ours = OffloadedZO.from_pretrained(model_folder, None, journal=tmp_path / "a.zolog", **options)
    model = tiny_models.make_llama().requires_grad_(True)
    optimizer = ZOSGD(model.named_parameters(), restore="exact", streams=model, **options)
    with zolog.ZOLog.create(tmp_path / "b.zolog", optimizer, model):
        for batch in batches(3):
            ours.step(batch)
            probes = iter([x for g in ours.projected_grads for x in (2e-2 * g, 0.0)])
            optimizer.step(lambda probes=probes: next(probes))
    ours.close()
    a, b = ((tmp_path / f"{name}.zolog").read_bytes() for name in "ab")
    assert a.splitlines()[0] == b.splitlines()[0]
    assert len(a) == len(b)


def test_rewinding_gives_the_bits_of_that_step(model_folder: Path, tmp_path: Path) -> None:
    trainer = OffloadedZO.from_pretrained(
        model_folder, tmp_path / "w", journal=tmp_path / "run.zolog", lr=1e-2
    )
    seen = []
    for batch in batches(4):
        seen.append({name: tensor.clone() for name, tensor in trainer.tensors()})
        trainer.step(batch)
    for steps in (2, 0, 3):
        trainer.rewind(steps)
        assert all(torch.equal(tensor, seen[steps][name]) for name, tensor in trainer.tensors())
    with pytest.raises(ValueError, match="steps: expected"):
        trainer.rewind(5)


@pytest.mark.parametrize("stored", ["disk", "host"])
def test_reading_ahead_changes_no_bit(stored: str, tmp_path: Path) -> None:
    """Steps, looks in between, and a second trainer whose forward goes another way round."""
    found = []
    for ahead in (True, False):
        store = WeightStore(tmp_path / f"w{ahead}" if stored == "disk" else None)
        trainer = OffloadedZO(
            tiny_models.make_opt(), store, lr=1e-2, eps=1e-2, num_queries=2, read_ahead=ahead
        )
        losses = []
        for batch in batches(3):
            losses.append(float(trainer.step(batch)))
            losses.append(float(trainer.forward(batch).sum()))
            losses.append(float(trainer.hidden(batch).sum()) + float(trainer.head()[0].sum()))
        trainer.close()
        found.append((losses, {name: tensor.clone() for name, tensor in trainer.tensors()}))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


def test_the_next_block_is_read_by_one_thread_while_one_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[str, tuple[int, ...]]] = []
    plain = ReadAhead._read

    def watched(self: ReadAhead, numbers: Any) -> Any:
        reads.append((threading.current_thread().name, tuple(numbers)))
        return plain(self, numbers)

    monkeypatch.setattr(ReadAhead, "_read", watched)
    trainer = OffloadedZO(tiny_models.make_llama(), WeightStore(tmp_path / "w"), lr=1e-2)
    trainer.step(batches(1)[0])
    order = [tuple(dict.fromkeys(unit.numbers)) for unit in trainer._units]
    reads.clear()
    trainer.step(batches(1)[0])
    trainer.close()
    *blocks, embeddings, norm, head = order
    assert [numbers for _, numbers in reads] == [*blocks, norm, head, embeddings]
    assert {name for name, _ in reads} == {"tenfold-read-ahead_0"}


def test_losses_from_hidden_states_are_those_from_logits(tmp_path: Path) -> None:
    found = []
    for way in ("logits", "hidden"):
        trainer = OffloadedZO(tiny_models.make_llama(), WeightStore(tmp_path / way), lr=1e-2, eps=1e-2)
        for batch in batches(3):
            labels = batch["labels"][:, 1:].flatten()

            def head_loss(hidden: Tensor, weight: Tensor, bias: Any, labels: Tensor = labels) -> Tensor:
                return F.cross_entropy(F.linear(hidden[:, :-1], weight, bias).flatten(0, 1), labels)

            inputs = {k: v for k, v in batch.items() if k != "labels"}
            given = (batch,) if way == "logits" else (inputs, head_loss)
            found.append(float(trainer.step(*given)))
        assert set(trainer.seconds) == {"forward", "passes"}
        assert min(trainer.seconds.values()) > 0
    assert found[:3] == pytest.approx(found[3:], rel=1e-6)


def test_tensors_that_the_forward_does_not_visit_are_updated_too() -> None:
    model = tiny_models.make_llama()
    model.spare = torch.nn.Linear(3, 3)
    before = model.spare.weight.detach().clone()
    trainer = OffloadedZO(model, WeightStore(), lr=1e-2)
    trainer.step(batches(1)[0])
    trainer.step(batches(1)[0])
    after = dict(trainer.tensors())["spare.weight"]
    assert not torch.equal(after, before)


def test_a_gradient_beyond_float32_is_skipped() -> None:
    def loss(logits: Tensor, batch: Any) -> Tensor:
        return logits.double().sum() * 1e300

    trainer = OffloadedZO(tiny_models.make_llama(), WeightStore(), lr=1.0, loss=loss)
    trainer.step(batches(1)[0])
    trainer.step(batches(1)[0])
    assert trainer.num_skipped == 2


def test_from_pretrained_and_save(model_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trainer = OffloadedZO.from_pretrained(model_folder, tmp_path / "w", lr=1e-3)
    whole = AutoModelForCausalLM.from_pretrained(model_folder)
    batch = batches(1)[0]
    with torch.no_grad():
        expected = whole(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(trainer.forward(batch), expected)
    trainer.step(batch)
    trainer.save(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    stored = dict(trainer.tensors())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, stored[name]), name
        assert not torch.equal(parameter, whole.get_parameter(name)), name


def test_a_lost_loss_skips_and_an_interrupt_loses_nothing(tmp_path: Path) -> None:
    lost = {"now": True}

    def loss(logits: Tensor, batch: Any) -> Tensor:
        if lost["now"] == "interrupt":
            raise KeyboardInterrupt
        return torch.tensor(float("nan")) if lost["now"] else logits.float().square().mean()

    trainer = OffloadedZO(tiny_models.make_llama(), WeightStore(tmp_path / "w"), lr=1e-2, loss=loss)
    start = {name: tensor.clone() for name, tensor in trainer.tensors()}
    trainer.step(batches(1)[0])
    assert trainer.num_skipped == 1
    assert all(torch.equal(tensor, start[name]) for name, tensor in trainer.tensors())
    lost["now"] = "interrupt"
    with pytest.raises(KeyboardInterrupt):
        trainer.step(batches(1)[0])
    assert all(torch.equal(tensor, start[name]) for name, tensor in trainer.tensors())
    lost["now"] = True
    trainer.step(batches(1)[0])
    with pytest.raises(RuntimeError, match="expected finite"):
        trainer.step(batches(1)[0])


def test_bad_arguments(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path: expected a folder with safetensors"):
        OffloadedZO.from_pretrained(tmp_path, None)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    with pytest.raises(ValueError, match="folder: expected an empty"):
        WeightStore(tmp_path / "used")
    with pytest.raises(ValueError, match="eps: expected"):
        OffloadedZO(tiny_models.make_llama(), WeightStore(), eps=0.0)
    trainer = OffloadedZO(tiny_models.make_llama(), WeightStore())
    with pytest.raises(ValueError, match="'labels'"):
        trainer.step({"input_ids": ROWS})


MEMORY = """
import resource, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from tenfold.llm.offload import OffloadedZO
torch.set_num_threads(1)
folder, work = sys.argv[1:]
def peak(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
trainer = OffloadedZO.from_pretrained(folder, work)
with open("/proc/self/clear_refs", "w") as f: f.write("5")
before = peak()
ids = torch.arange(16).reshape(2, 8)
for _ in range(2): trainer.step({"input_ids": ids, "labels": ids})
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak-memory reset")
def test_memory_is_one_block_and_not_the_model(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=8
    )
    model = LlamaForCausalLM(config)
    megabytes = sum(p.nbytes for p in model.parameters()) / 2**20
    model.save_pretrained(tmp_path / "model")
    out = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "model"), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak = map(float, out.stdout.split())
    assert megabytes > 500
    assert peak - before < 0.45 * megabytes, (before, peak, megabytes)
