"""Sophia in transformers.Trainer, refreshed by its callback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from sophia_cases import causal_batch, causal_model, same_bits, weights

from tenfold.optim import Sophia, SophiaCallback

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def rows(count: int = 24) -> list[dict[str, Any]]:
    return [{k: v[0].tolist() for k, v in causal_batch(number, rows=1).items()} for number in range(count)]


def train(
    folder: Path,
    model: Any,
    optimizer: Sophia,
    callbacks: list[Any],
    *,
    resume: bool = False,
    data: Any = None,
    collator: Any = None,
    trainer: Any = None,
    **options: Any,
) -> Any:
    args = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=2, report_to=[],
        logging_steps=1, use_cpu=True, max_grad_norm=1.0, disable_tqdm=True, lr_scheduler_type="linear",
        remove_unused_columns=False, **{"max_steps": 6, "save_strategy": "no", **options},
    )  # fmt: skip
    made = (trainer or transformers.Trainer)(
        model=model, args=args, train_dataset=data or rows(), optimizers=(optimizer, None),
        callbacks=callbacks, data_collator=collator or transformers.default_data_collator,
    )  # fmt: skip
    made.train(resume_from_checkpoint=resume or None)
    return made


class Watch(transformers.TrainerCallback):
    """Notes at which steps there had been how many refreshes, and whether gradients were alive."""

    def __init__(self) -> None:
        self.refreshes: list[int] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.refreshes.append(kwargs["optimizer"].optimizer.num_refreshes)


@pytest.mark.parametrize(
    ("mode", "seen"), [("paper", [1, 1, 1, 2, 2, 2]), ("liuhong99", [0, 0, 0, 1, 1, 1]), ("sign", [0] * 6)]
)
def test_the_curvature_is_refreshed_before_step_0_or_after_step_k(
    mode: str, seen: list[int], tmp_path: Path
) -> None:
    model = causal_model()
    optimizer = Sophia(model.parameters(), lr=1e-3, mode=mode)
    watch = Watch()
    trainer = train(tmp_path, model, optimizer, [SophiaCallback(3), watch])
    assert watch.refreshes == seen
    assert optimizer.num_updates == 6
    logged = [entry for entry in trainer.state.log_history if "sophia_win_rate" in entry]
    assert len(logged) >= 6
    assert all(0 <= entry["sophia_win_rate"] <= 1 for entry in logged)
    assert (mode == "sign") == all(entry["sophia_win_rate"] == 0 for entry in logged)


def test_training_sees_the_batches_that_it_sees_without_refreshes(tmp_path: Path) -> None:
    """With rho = 0 the curvature counts for nothing, so refreshed or not the run is the same."""
    runs = []
    for callbacks in ([], [SophiaCallback(2, num_batches=2)]):
        model = causal_model()
        optimizer = Sophia(model.parameters(), lr=1e-3, rho=0.0, eps=0.05)
        train(tmp_path, model, optimizer, callbacks)
        runs.append(weights(model))
    assert same_bits(*runs)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4}
    results = []
    for resume in (False, True):
        model = causal_model()
        optimizer = Sophia(model.parameters(), lr=1e-3, update_interval=3)
        train(tmp_path, model, optimizer, [SophiaCallback(3)], resume=resume, **options)
        results.append((weights(model), optimizer.num_refreshes, optimizer.num_updates))
    assert same_bits(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:] == (2, 6)


def test_the_trainer_loop_is_the_loop_written_out(tmp_path: Path) -> None:
    data = rows(8)
    model = causal_model()
    optimizer = Sophia(model.parameters(), lr=1e-2, rho=0.05)
    own = [causal_batch(100 + k) for k in range(3)]
    args = {"max_steps": 2}
    seen: list[Any] = []

    def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = transformers.default_data_collator(features)
        seen.append({k: v.clone() for k, v in batch.items()})
        return batch

    train(
        tmp_path,
        model,
        optimizer,
        [SophiaCallback(1, own, num_batches=2)],
        data=data,
        collator=collate,
        **args,
    )
    alone = causal_model()
    reference = Sophia(alone.parameters(), lr=1e-2, rho=0.05)
    for step in range(2):
        reference.estimate_hessian(alone, [own[(2 * step + k) % 3] for k in range(2)])
        micro = seen[2 * step : 2 * step + 2]
        for batch in micro:
            (alone(**batch).loss / 2).backward()
        nn.utils.clip_grad_norm_(alone.parameters(), 1.0)
        reference.param_groups[0]["lr"] = 1e-2 * (1 - step / 2)
        reference.step()
        reference.zero_grad()
    for a, b in zip(weights(model), weights(alone), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


class Pairs(torch.utils.data.Dataset):
    """Forget and retain rows side by side, as unlearning loaders give them."""

    def __init__(self) -> None:
        self.rows = rows(12)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"forget": self.rows[index], "retain": self.rows[index + 6]}


def collate_pairs(features: list[Any]) -> dict[str, Any]:
    return {k: transformers.default_data_collator([f[k] for f in features]) for k in ("forget", "retain")}


class Difference(transformers.Trainer):
    """The loss of gradient difference: down on the retain rows, up on the forget rows."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        return model(**inputs["retain"]).loss - model(**inputs["forget"]).loss


@pytest.mark.parametrize(("source", "keys"), [("retain", {"retain"}), ("both", {"retain", "forget"})])
def test_curvature_of_a_part_of_unlearning_batches(source: str, keys: set[str], tmp_path: Path) -> None:
    model = causal_model()
    optimizer = Sophia(model.parameters(), lr=1e-3)
    callback = SophiaCallback(2, source, batch_size=3)
    train(
        tmp_path, model, optimizer, [callback], data=Pairs(), collator=collate_pairs, trainer=Difference,
        max_steps=3,
    )  # fmt: skip
    assert optimizer.num_refreshes == 2
    loader = torch.utils.data.DataLoader(Pairs(), batch_size=2, collate_fn=collate_pairs)
    drawn = list(callback.batches(0, loader))
    assert len(drawn) == len(keys)
    assert all(batch["input_ids"].shape == (3, 7) for batch in drawn)
    retained = {tuple(row["input_ids"]) for row in rows(12)[6:]}
    assert all(tuple(ids) in retained for ids in drawn[-1]["input_ids"].tolist())
    callback.source = "other"
    with pytest.raises(ValueError, match="source: expected a part 'other'"):
        list(callback.batches(0, loader))


def test_every_row_comes_once_before_any_comes_twice() -> None:
    loader = torch.utils.data.DataLoader(list(range(10)), batch_size=4)
    callback = SophiaCallback(None, "train", num_batches=5)
    first = torch.cat(list(callback.batches(0, loader))).tolist()
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10] != first[10:]
    assert torch.cat(list(callback.batches(0, loader))).tolist() == first
    assert torch.cat(list(callback.batches(1, loader))).tolist() != first


def test_iterables_and_callables() -> None:
    stream = torch.utils.data.DataLoader(list(range(3)), batch_size=1)
    taken = [int(x) for n in range(3) for x in SophiaCallback(None, stream, num_batches=2).batches(n)]
    assert taken == [0, 1, 2, 0, 1, 2]
    assert list(SophiaCallback(None, lambda n: [n, n + 1]).batches(7)) == [7, 8]
    with pytest.raises(ValueError, match="source: expected an iterable where there is no trainer"):
        list(SophiaCallback(None).batches(0))


def test_it_is_told_what_it_does_not_know(tmp_path: Path) -> None:
    callback = SophiaCallback(5)
    assert callback.on_epoch_end(1, 2, 3, model=None) is None
    with pytest.raises(AttributeError):
        _ = callback.something
