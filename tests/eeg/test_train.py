"""Training: the same seed gives the same network, the target's labels cannot get in, labels by clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.eeg import Corpus, folds, normalise_fold
from tenfold.eeg.methods import METHODS, Batch, Method, RunState, Step, find, variant
from tenfold.eeg.network import Network
from tenfold.eeg.options import Options
from tenfold.eeg.protocols import Fold
from tenfold.eeg.train import Settings, Trained, _Rows, predict, spherical_kmeans, train

SHORT = Settings(steps=12, batch=8)


@pytest.fixture
def fold(toy: Callable[..., Corpus]) -> Fold:
    return normalise_fold(folds(toy())[0], "zscore")


def weights(trained: Trained) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trained.network.parameters()])


@pytest.mark.parametrize("name", list(METHODS))
def test_the_target_s_labels_change_nothing(fold: Fold, name: str) -> None:
    target = fold.target
    assert target.y is not None
    other = replace(fold, target=replace(target, y=target.y.flip(0)))
    without = replace(fold, target=target.without_labels())
    a, b, c = (weights(train(f, 3, find(name), SHORT)) for f in (fold, other, without))
    assert torch.equal(a, b)
    assert torch.equal(a, c)


def test_seeds(fold: Fold) -> None:
    dan = METHODS["dan"]
    a, b, c = (weights(train(fold, 3, dan, replace(SHORT, seed=s))) for s in (5, 5, 6))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_methods_begin_alike_and_see_the_same_rows(fold: Fold) -> None:
    """With no weight on what it adds, DAN takes source-only's steps."""
    plain = train(fold, 3, METHODS["source-only"], SHORT)
    same = METHODS["dan"].with_options(replace(METHODS["dan"].options, weight=0.0))
    other = train(fold, 3, same, SHORT)
    torch.testing.assert_close(weights(plain), weights(other))


@pytest.mark.parametrize("name", ["source-only", "dan", "ms-mda", "ms-dcda"])
def test_a_separable_problem_is_learned(fold: Fold, name: str) -> None:
    trained = train(fold, 3, find(name), Settings(steps=120, batch=16))
    assert not trained.network.training
    first, last = trained.history[0], trained.history[-1]
    assert last["step"] == 119
    assert last["ce"] < 0.3 * first["ce"]
    p, z = predict(trained, fold.target.x)
    assert p.shape == (36, 3)
    assert z.shape == (36, 32)
    torch.testing.assert_close(p.sum(1), torch.ones(36))


def test_every_row_is_seen_in_turn(fold: Fold) -> None:
    rows = _Rows(fold.sources, fold.target, 3, Settings(steps=9, batch=12))
    seen = torch.cat([rows.plan[step, 1] for step in range(3)]) - rows.starts[1]
    assert sorted(seen.tolist()) == list(range(36))
    batch = rows.take(0, None)
    assert batch.x.shape == (3, 12, 6)
    assert batch.target.shape == (12, 6)
    x, y = fold.sources[2].x, fold.sources[2].y
    assert y is not None
    where = (x[:, None] == batch.x[2][None]).all(2).nonzero()
    assert torch.equal(y[where[:, 0]], batch.y[2][where[:, 1]])


def test_one_optimiser_for_a_whole_training(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.optim.Optimizer] = []
    adam = torch.optim.Adam

    def counted(*args: object, **options: object) -> torch.optim.Optimizer:
        made.append(adam(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", counted)
    train(fold, 3, METHODS["source-only"], SHORT)
    assert len(made) == 1
    assert {int(state["step"]) for state in made[0].state.values()} == {SHORT.steps}


def test_shrinking_features_are_noted(fold: Fold) -> None:
    real = METHODS["dan"].loss

    def shrinking(net: Network, batch: Batch, options: Options, run: RunState) -> Step:
        with torch.no_grad():
            net.gain.mul_(0.5)
            net.shift.mul_(0.5)
        return real(net, batch, options, run)

    trained = train(fold, 3, replace(METHODS["dan"], loss=shrinking), SHORT)
    (note,) = trained.notes
    assert note.startswith("features shrank")
    assert train(fold, 3, METHODS["dan"], SHORT).notes == []


def test_class_aware_rows(fold: Fold) -> None:
    rows = _Rows(fold.sources, fold.target, 3, Settings(steps=3, batch=8, sampler="class-aware"))
    pseudo = torch.full((36,), -1)
    pseudo[:9], pseudo[9:12] = 0, 2
    batch = rows.take(0, pseudo)
    assert batch.pseudo is not None
    assert set(batch.y.flatten().tolist()) == set(batch.pseudo.tolist()) == {0, 2}
    assert all(torch.bincount(y, minlength=3).tolist() == [4, 0, 4] for y in batch.y)
    assert torch.bincount(batch.pseudo, minlength=3).tolist() == [4, 0, 4]  # three rows of class 2: one twice


@pytest.mark.parametrize("sampler", ["shuffle", "class-aware"])
def test_labels_by_clusters(fold: Fold, sampler: str) -> None:
    method = variant("clusters", "", labels="cluster")
    settings = Settings(steps=60, batch=12, sampler=sampler, relabel=5)
    history = train(fold, 3, method, settings).history
    assert history[-1]["intra"] > 0.0
    assert history[-1]["ce"] < history[0]["ce"]


def test_spherical_kmeans() -> None:
    torch.manual_seed(0)
    centres = F.normalize(torch.eye(3, 5) + 0.3, dim=1)
    truth = torch.arange(60) % 3
    points = F.normalize(centres[truth] + 0.1 * torch.randn(60, 5), dim=1)
    begun = F.normalize(centres + 0.25 * torch.randn(3, 5), dim=1)
    score, label = spherical_kmeans(points, begun)
    assert torch.equal(label, truth)
    mean = F.normalize(torch.stack([points[truth == c].mean(0) for c in range(3)]), dim=1)
    torch.testing.assert_close(score, (points * mean[truth]).sum(1))
    far = torch.cat((begun, -points.mean(0, keepdim=True)))  # nobody's nearest: it stays
    assert torch.equal(spherical_kmeans(points, F.normalize(far, dim=1))[1], truth)


def test_selection_takes_the_best_look(fold: Fold) -> None:
    asked: list[Tensor] = []
    merits = iter([0.1, 0.9, 0.3, 0.9])

    def merit(trained: Trained) -> float:
        assert not trained.network.training
        asked.append(weights(trained).clone())
        return next(merits)

    trained = train(fold, 3, METHODS["dan"], Settings(steps=31, batch=8), select=merit)
    assert len(asked) == 4  # steps 0, 10, 20, 30
    assert torch.equal(weights(trained), asked[1])
    assert len(trained.history) == 4


@pytest.mark.parametrize(
    ("predict_by", "expected"), [("mean", [0.25] * 4), ("ensemble", [0.0, 0.0, 0.0, 1.0])]
)
def test_how_branches_count(fold: Fold, predict_by: str, expected: list[float]) -> None:
    trained = train(fold, 3, variant("v", "", predict=predict_by), SHORT)
    assert trained.weights.tolist() == expected
    _, logits = trained.network(fold.target.x)
    mean = (torch.tensor(expected)[:, None, None] * logits.softmax(2)).sum(0)
    torch.testing.assert_close(predict(trained, fold.target.x)[0], mean)


def test_near_branches_count_more(fold: Fold) -> None:
    x = fold.sources[0].x
    far = replace(fold.sources[1], x=(x.abs() + 1) ** 2 * 5)
    moved = replace(fold, sources=(fold.sources[0], far, fold.sources[2]))
    options = replace(METHODS["ms-mda"].options, predict="weighted")
    trained = train(moved, 3, METHODS["ms-mda"].with_options(options), SHORT)
    assert float(trained.weights.sum()) == pytest.approx(1.0)
    assert len(set(trained.weights.tolist())) == 3


def test_what_a_training_refuses(fold: Fold) -> None:
    dan = METHODS["dan"]
    unlabelled = replace(fold, sources=(fold.sources[0].without_labels(), *fold.sources[1:]))
    with pytest.raises(ValueError, match=r"person 1: y: expected labels of every source"):
        train(unlabelled, 3, dan, SHORT)
    with pytest.raises(ValueError, match=r"batch: expected at least two rows"):
        train(fold, 3, dan, Settings(steps=2, batch=1))
    with pytest.raises(ValueError, match=r"lr: expected .*got 0"):
        Settings(lr=0.0)
    broken = Method("broken", lambda *a: _nan(METHODS["dan"].loss(*a)), "one", "")
    with pytest.raises(
        RuntimeError, match=r"loss: expected a finite number, got nan \(person-0, broken, step 0\)"
    ):
        train(fold, 3, broken, SHORT)


def _nan(step: object) -> object:
    step.total = step.total * float("nan")  # type: ignore[attr-defined]
    return step
