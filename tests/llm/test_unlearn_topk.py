"""The model before unlearning as top-k tokens: against its hidden states, and the file it is kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from soul_tiny import make_subject

from tenfold import ops
from tenfold.llm.unlearn import losses, soul, soul_config, topk, trainer
from tenfold.llm.unlearn.losses import Head
from tenfold.llm.unlearn.objective import Objective
from tenfold.llm.unlearn.subject import Subject
from tenfold.llm.unlearn.trainer import Job, train
from tenfold.runs import RunFolder

FORGET, RETAIN = [1, 4, 2], [0, 3, 5]
METHODS = {"kl": "kl", "undial": "nll", "npo": "kl", "graddiff": "kl"}


def move(subject: Subject) -> None:
    with torch.no_grad():
        for parameter in subject.parameters.values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trainable", ["full", "last-2"])
@pytest.mark.parametrize("method", METHODS)
def test_all_tokens_are_the_whole_distribution(method: str, trainable: str) -> None:
    subject = make_subject(trainable)
    full = Objective(subject, method, retain_loss=METHODS[method])
    kept = Objective(subject, method, retain_loss=METHODS[method], topk=64)
    assert not kept._hidden
    assert not hasattr(kept, "_head")
    move(subject)
    parameters = list(subject.parameters.values())
    found = []
    for objective in (full, kept):
        loss, parts = objective.loss(FORGET, RETAIN)
        found.append((parts, torch.autograd.grad(loss, parameters, allow_unused=True)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4, abs=2e-6)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-6)


def test_fewer_tokens_come_closer_one_by_one() -> None:
    subject = make_subject()
    exact = Objective(subject, "kl")
    few = {k: Objective(subject, "kl", topk=k) for k in (1, 4, 16, 48)}
    move(subject)
    full = exact.loss(FORGET, RETAIN)[1]["retain"]
    values = [objective.loss(FORGET, RETAIN)[1]["retain"] for objective in few.values()]
    assert all(value <= full + 1e-6 for value in values)
    assert values == sorted(values)
    assert values[0] < 0.9 * full
    assert values[-1] > 0.9 * full


def test_undial_lacks_the_cross_entropy_of_the_rests() -> None:
    """Against the dense target, where the error is r' CE(rest, rest)."""
    generator = torch.Generator().manual_seed(0)
    hidden, ref = (torch.randn(6, 5, generator=generator).double() for _ in range(2))
    weight = torch.randn(23, 5, generator=generator).double()
    targets = torch.arange(6)
    rows = losses.Rows(hidden, targets, torch.zeros(6, dtype=torch.int64), 1)
    kept = ops.linear_topk(ref, weight, 5, targets=targets)
    coarse = losses.topk_undial(rows, Head(weight), kept, beta=3.0)
    target = (ref @ weight.T).scatter_add(1, targets[:, None], torch.full((6, 1), -3.0).double()).softmax(1)
    log_p = (hidden @ weight.T).log_softmax(1)
    outside = torch.ones_like(log_p, dtype=torch.bool).scatter(1, kept.tokens, False)
    log_rest = log_p.masked_fill(~outside, -torch.inf).logsumexp(1, keepdim=True)
    missing = -torch.where(outside, target * (log_p - log_rest), 0.0).sum(1)
    full = losses.undial(rows, Head(weight), ref, Head(weight), beta=3.0)
    assert float(missing.mean()) > 0.01
    assert float(full - coarse) == pytest.approx(float(missing.mean()), rel=1e-5)
    with pytest.raises(ValueError, match=r"^reference: expected the label of each row among its tokens"):
        losses.topk_undial(rows, Head(weight), ops.linear_topk(ref, weight, 1, targets=targets.roll(1)))


def test_the_file_is_read_instead_of_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, path = make_subject(), tmp_path / "reference.safetensors"
    first = Objective(subject, "kl", topk=5, topk_file=path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == {f"{s}.{f}" for s in ("forget", "retain") for f in topk.Kept._fields}
        assert file.metadata()["format"] == topk.FORMAT
        assert file.get_tensor("forget.tokens").dtype == torch.int32
        starts = file.get_tensor("forget.starts")
    labels = [sum(label != -100 for label in row.labels) for row in subject.rows("forget")]
    assert starts.diff().tolist() == labels
    monkeypatch.setattr(topk, "_make", lambda *_: pytest.fail("made again"))
    again = Objective(subject, "kl", topk=5, topk_file=path)
    assert float(first.loss(FORGET, RETAIN)[0].detach()) == float(again.loss(FORGET, RETAIN)[0].detach())
    with pytest.raises(ValueError, match=r"^reference.safetensors: expected k 6, got 5"):
        Objective(subject, "kl", topk=6, topk_file=path)
    move(subject)
    with pytest.raises(ValueError, match=r"^reference.safetensors: expected mark"):
        Objective(subject, "kl", topk=5, topk_file=path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class _Killed(BaseException):
    pass


def test_a_killed_run_reads_its_reference_and_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(key="kl", method="kl", optimizer="adamw", lr=1e-3, steps=5, batch_size=2, topk=6)
    train(whole := make_subject(), job)
    step = trainer._step

    def dies(running: Any, steps: int) -> dict[str, float]:
        if len(running.history.steps) == 3:
            raise _Killed
        return step(running, steps)

    monkeypatch.setattr(trainer, "_step", dies)
    with pytest.raises(_Killed):
        train(make_subject(), job, RunFolder.create("soul", job, tmp_path / "run"), save_seconds=0)
    monkeypatch.setattr(trainer, "_step", step)
    assert (tmp_path / "run" / "state" / "kl.topk.safetensors").exists()
    monkeypatch.setattr(topk, "_make", lambda *_: pytest.fail("made again"))
    train(resumed := make_subject(), job, RunFolder.create("soul", job, tmp_path / "run", resume=True))
    assert all(torch.equal(t, resumed.weights()[name]) for name, t in whole.weights().items())


def test_settings() -> None:
    subject = make_subject()
    for k, message in ((-1, "a whole number"), (2.5, "a whole number"), (65, "at most 64, the vocabulary")):
        with pytest.raises(ValueError, match=f"^topk: expected {message}"):
            Objective(subject, "kl", topk=k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^topk: expected 0 for graddiff with retain_loss='nll'"):
        Objective(subject, "graddiff", topk=4)
    with pytest.raises(ValueError, match=r"^topk: expected 0 for kl with retain_loss='soul_kl'"):
        Objective(subject, "kl", retain_loss="soul_kl", topk=4)
    config = soul_config.SoulConfig(topk=8, method="kl,graddiff", optimizer="adamw", lr=[1e-4])
    assert [job.topk for job in soul.jobs(config)] == [8, 0]
    with pytest.raises(ValueError, match=r"^topk: expected a whole number >= 0, got -1"):
        soul_config.SoulConfig(topk=-1)
