"""The recorder of a training run: its scores, its files, and several processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold.selection import Recorder

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def run(n=20, classes=3, epochs=6, seed=0):
    """Logits of each epoch, and labels."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=draw)
    return torch.randn(epochs, n, classes, generator=draw), y


def recorded(logits, y, batch=7):
    recorder = Recorder(len(y))
    for epoch, z in enumerate(logits):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(batch):
            recorder.update(rows, z[rows], y[rows])
    return recorder


def test_scores_are_their_definitions():
    logits, y = run()
    recorder = recorded(logits, y)
    p = torch.softmax(logits.double(), 2)
    rows = torch.arange(len(y))
    right = p.argmax(2) == y
    own = p[:, rows, y]
    others = p.clone()
    others[:, rows, y] = -1
    np.testing.assert_allclose(recorder.scores("aum"), (own - others.amax(2)).sum(0), rtol=1e-5, atol=1e-6)
    assert recorder.scores("correct").tolist() == right.sum(0).tolist()
    forgotten = (right[:-1] & ~right[1:]).sum(0).double()
    assert recorder.scores("forgetting", never_learned="zero").tolist() == forgotten.tolist()
    never = ~right.any(0)
    assert recorder.never_learned.tolist() == never.tolist()
    assert never.any()
    forgotten[never] = torch.inf
    assert recorder.scores("forgetting").tolist() == forgotten.tolist()
    e = p.clone()
    e[:, rows, y] -= 1
    np.testing.assert_allclose(recorder.scores("el2n"), e.norm(dim=2).mean(0), rtol=1e-5)


def test_a_first_wrong_answer_is_no_forgetting():
    recorder = Recorder(1)
    for z in ([0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]):
        recorder.update([0], torch.tensor([z]), [0])
    assert recorder.scores("forgetting").tolist() == [1]


@pytest.mark.parametrize(
    ("rows", "logits", "labels", "message"),
    [
        ([0, 0], torch.zeros(2, 3), [0, 1], "indices: expected .*0 twice"),
        ([0, 20], torch.zeros(2, 3), [0, 1], r"indices: expected .*got 20"),
        ([0, 1], torch.zeros(2, 3), [0, 3], "labels: expected .*3 in row 1"),
        ([0, 1], torch.full((2, 3), torch.nan), [0, 1], "logits: expected .*nan in row 0"),
    ],
)
def test_what_is_refused_leaves_no_trace(rows, logits, labels, message):
    recorder = recorded(*run())
    before = {name: value.clone() for name, value in recorder.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        recorder.update(rows, logits, labels)
    for name, value in recorder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_samples_that_no_update_saw_have_no_score():
    recorder = Recorder(3)
    recorder.update([0, 2], torch.zeros(2, 2), [0, 1])
    with pytest.raises(ValueError, match="scores: expected updates of every sample, got none of row 1"):
        recorder.scores("aum")
    with pytest.raises(ValueError, match="kind: expected one of"):
        recorder.scores("speed")


def test_files_and_checkpoints(tmp_path):
    logits, y = run()
    whole = recorded(logits, y)
    part = recorded(logits[:3], y)
    part.save(tmp_path / "run.npz")
    again = Recorder.load(tmp_path / "run.npz")
    resumed = Recorder(len(y))
    resumed.load_state_dict(part.state_dict())
    for recorder in (again, resumed):
        for epoch, z in enumerate(logits[3:], 3):
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch))
            for rows in order.split(7):
                recorder.update(rows, z[rows], y[rows])
        for name, value in recorder.state_dict().items():
            assert torch.equal(value, whole.state_dict()[name]), name
    with pytest.raises(ValueError, match="expected"):
        Recorder(3).load_state_dict(part.state_dict())
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match="expected the records of a Recorder"):
        Recorder.load(tmp_path / "other.npz")


def test_recorders_of_different_samples_are_merged():
    logits, y = run()
    whole = recorded(logits, y)
    halves = [Recorder(len(y)), Recorder(len(y))]
    for z in logits:
        for part, rows in zip(halves, (torch.arange(12), torch.arange(12, 20)), strict=True):
            part.update(rows, z[rows], y[rows])
    merged = Recorder.merge(halves)
    for kind in ("aum", "forgetting", "correct", "el2n"):
        np.testing.assert_allclose(merged.scores(kind), whole.scores(kind), rtol=1e-6)
    with pytest.raises(ValueError, match=r"recorders\[1\]: expected samples of its own, got row 0"):
        Recorder.merge([halves[0], whole])
    with pytest.raises(ValueError, match="recorders: expected at least one"):
        Recorder.merge([])


def test_taking_rows_keeps_the_order_asked_for():
    recorder = recorded(*run())
    rows = np.array([5, 2, 19])
    assert recorder.take(rows).scores("aum").tolist() == recorder.scores("aum")[rows].tolist()
