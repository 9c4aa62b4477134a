"""Mappings against their definitions, element by element; ties, empty classes, budgets, health."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.selection.transfer import mapping
from tenfold.selection.transfer.baselines import (
    file_scores,
    grand_scores,
    prediction_scores,
    prototype_distances,
)
from tenfold.selection.transfer.health import mapping_health, rank_agreement
from tenfold.selection.transfer.images import Images
from tenfold.selection.transfer.methods import METHODS, Evidence, pca, rank
from tenfold.selection.transfer.networks import build
from tenfold.selection.transfer.rankings import (
    ClassRanking,
    ModerateRanking,
    SampleRanking,
    class_budgets,
    kept_count,
)


def cloud(
    classes: int = 6, each: int = 9, width: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    x = generator.normal(size=(classes, width))[y] * 3 + generator.normal(size=(len(y), width))
    order = generator.permutation(len(y))
    return torch.from_numpy(x[order].astype(np.float32)), torch.from_numpy(y[order])


def test_label_mapping_counts_and_breaks_ties_by_class() -> None:
    predictions = torch.tensor([0, 0, 0, 3, 3, 7])
    labels = torch.arange(16) % 8
    found = mapping.label_mapping(predictions, labels, 8, target_labels=torch.tensor([0, 0, 1, 1, 1, 0]))
    assert found.votes is not None
    assert found.votes.tolist() == [3, 0, 0, 2, 0, 0, 0, 1]
    assert found.order()[:5].tolist() == [
        0,
        3,
        7,
        1,
        2,
    ]  # no arbitrary choice among the classes without votes
    assert found.matrix is not None
    assert found.matrix.tolist() == [[2, 0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 2, 0, 0, 0, 0]]
    assert found.kept_classes(0.375).tolist() == [0, 3, 7, 1, 2]
    kept = found.keep(0.375)
    assert kept.tolist() == [i for i in range(16) if i % 8 in (0, 3, 7, 1, 2)]
    assert found.reversed().order()[:3].tolist() == [1, 2, 4]
    logits = torch.nn.functional.one_hot(predictions, 8).float()
    assert torch.equal(mapping.label_mapping(logits, labels, 8).votes, found.votes)  # type: ignore[arg-type]


def test_feature_mapping_is_nearest_mean() -> None:
    x, y = cloud()
    target = torch.randn(40, 5, generator=torch.Generator().manual_seed(1)) * 3
    means, counts = mapping.class_means([(x[:20], y[:20]), (x[20:], y[20:])], 7)
    assert counts.tolist() == [9] * 6 + [0]
    expected = [0] * 7
    for row in target.double().numpy():
        far = [np.linalg.norm(row - x[y == c].double().numpy().mean(0)) for c in range(6)]
        expected[int(np.argmin(far))] += 1
    found = mapping.feature_mapping(target, means, y)
    assert found.votes is not None
    assert found.votes.tolist() == expected
    assert found.scores[6] == -math.inf  # a class without samples is never kept before one with samples
    assert found.order()[-1] == 6
    assert found.reversed().order()[-1] == 6


def test_pseudo_classes_meet_a_budget_of_samples() -> None:
    x, _ = cloud(each=20)
    target = x[:15] + 0.1
    found = mapping.pseudo_class_mapping(x, target, 8, seed=3)
    assert int(found.votes.sum()) == 15  # type: ignore[union-attr]
    for ratio in (0.0, 0.37, 0.6, 0.99):
        kept = found.keep(ratio)
        assert len(kept) == kept_count(120, ratio) == max(1, math.floor(120 * (1 - ratio) + 0.5))
        classes = found.labels.numpy()
        inside = set(kept.tolist())
        wanted: list[int] = []
        for c in found.order():
            rows = np.flatnonzero(classes == c)
            assert found.distances is not None
            rows = rows[np.argsort(found.distances.numpy()[rows], kind="stable")]
            wanted += rows[: len(kept) - len(wanted)].tolist()
        assert inside == set(wanted)
    assert mapping.default_clusters(10) == 1
    assert mapping.default_clusters(5400) == 108
    assert mapping.default_clusters(1_281_167) == 2000


def _middle(rows: np.ndarray, ratio: float) -> np.ndarray:
    far = np.linalg.norm(rows - np.median(rows, 0), axis=1)
    q = max(1, math.floor((1 - ratio) * len(rows) + 0.5))
    low = (len(rows) - q) // 2
    return rows[np.argsort(far, kind="stable")[low : low + q]].mean(0)


def test_class_wise_variants() -> None:
    x, y = cloud(each=10)
    target, t = cloud(3, 8, seed=5)
    rows = [x[y == c].double().numpy() for c in range(6)]
    means = mapping.coreset_means(x, y, 6, 0.8)
    np.testing.assert_allclose(means.numpy(), [_middle(r, 0.8) for r in rows], rtol=1e-5)
    evidence = Evidence(y, 6, x, target, target_labels=t, target_classes=3)
    aims = {
        "cmt": [_middle(target[t == c].double().numpy(), 0.8) for c in range(3)],
        "cmt-median": [np.median(target[t == c].double().numpy(), 0) for c in range(3)],
    }
    for name, centres in aims.items():
        expected = [np.mean([np.linalg.norm(r.mean(0) - c) for c in centres]) for r in rows]
        found = rank(name, evidence)
        assert isinstance(found, ClassRanking)
        np.testing.assert_allclose(-found.scores, expected, rtol=1e-5)
        assert found.order().tolist() == np.argsort(expected).tolist()
    voted = rank("ffmm", evidence)
    assert isinstance(voted, ClassRanking)
    assert voted.votes is not None
    far = np.linalg.norm(target.numpy()[:, None] - means.numpy(), axis=2)
    assert voted.votes.tolist() == np.bincount(far.argmin(1), minlength=6).tolist()


def test_moderate_keeps_the_central_interval_of_each_class() -> None:
    y = torch.tensor([0] * 5 + [1] * 8 + [2] * 1)
    distances = torch.tensor([4.0, 1, 3, 2, 5, *range(8), 9.0])
    found = ModerateRanking("moderate", distances, y)
    for ratio, budgets in ((0.0, [5, 8, 1]), (0.4, [3, 5, 0]), (0.8, [1, 2, 0]), (0.95, [0, 1, 0])):
        assert class_budgets(np.array([5, 8, 1]), ratio).tolist() == budgets
        kept = found.keep(ratio)
        assert [int((y[kept] == c).sum()) for c in range(3)] == budgets
        assert len(kept) == kept_count(14, ratio)
    assert found.keep(0.4).tolist() == [0, 2, 3, 6, 7, 8, 9, 10]  # distances 2, 3, 4 and 1 to 5


def test_samples_by_score() -> None:
    found = SampleRanking("el2n", np.array([0.5, 2.0, 2.0, 1.0, 2.0]))
    assert found.keep(0.6).tolist() == [1, 2]
    assert found.keep(0.0).tolist() == [0, 1, 2, 3, 4]
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="ratio: expected"):
            found.keep(wrong)


def test_scores_of_samples() -> None:
    logits = torch.tensor([[2.0, 0, -1], [0, 0, 0], [-3, 5, 1]])
    features = torch.tensor([[1.0, 2], [0, 0], [3, 4]])
    labels = torch.tensor([0, 2, 0])
    blocks = [(features[:2], logits[:2], labels[:2]), (features[2:], logits[2:], labels[2:])]
    found = prediction_scores(blocks, 3, ("el2n", "margin", "grand"))
    np.testing.assert_allclose(found["el2n"], [0.1980037227, 0.8164965809, 1.4012069032], rtol=1e-6)
    np.testing.assert_allclose(found["grand"], [0.4850080877, 0.8164965809, 7.1447813421], rtol=1e-6)
    np.testing.assert_allclose(found["margin"], [0.7295995351, 0, 0.9637101061], rtol=1e-6)
    with pytest.raises(ValueError, match="blocks: expected 4 samples in all, got 3"):
        prediction_scores(blocks, 4)


def test_grand_is_the_norm_of_each_sample_s_whole_gradient() -> None:
    torch.manual_seed(0)
    networks = [build("small", 4, channels=1).eval() for _ in range(2)]
    images = Images(torch.arange(5) % 4, ("a", "b", "c", "d"), pixels=torch.rand(5, 1, 8, 8))
    expected = np.zeros(5)
    for network in networks:
        for i in range(5):
            network.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                network(images.pixels[i : i + 1]), images.labels[i : i + 1]
            )  # type: ignore[index]
            loss.backward()
            expected[i] += math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters())) / 2  # type: ignore[union-attr]
    np.testing.assert_allclose(grand_scores(networks, images, batch=2), expected, rtol=1e-5)


def test_prototypes_and_files() -> None:
    x, y = cloud()
    far = prototype_distances(x, 6, seed=1)
    evidence = Evidence(y, 6, unlabelled=x, clusters=6)
    hard, easy = rank("ssp-hard", evidence, 1).keep(0.5), rank("ssp-easy", evidence, 1).keep(0.5)
    assert sorted([*hard, *easy]) == list(range(54))
    assert far[hard].min() >= far[easy].max()
    images = Images(torch.zeros(3, dtype=torch.int64), ("a",), pixels=torch.zeros(3, 1, 4, 4),
                    identifiers=torch.tensor([30, 10, 20]))  # fmt: skip
    scores = file_scores(np.array([10, 20, 30, 40]), np.array([1.0, 2.0, 3.0, 4.0]), images)
    assert scores.tolist() == [3.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="expected a score of image 30, got none"):
        file_scores(np.array([10, 20]), np.array([1.0, 2.0]), images)


def test_random_and_hand_picked_classes() -> None:
    y = torch.arange(30) % 10
    a, b = (rank("random", Evidence(y, 10), seed) for seed in (0, 1))
    assert a.keep(0.5).tolist() != b.keep(0.5).tolist()
    assert a.keep(0.5).tolist() == rank("random", Evidence(y, 10), 0).keep(0.5).tolist()
    assert len(rank("random-samples", Evidence(y, 10), 0).keep(0.5)) == 15
    picked = rank("classes", Evidence(y, 10, picked=[7, 2]))
    assert isinstance(picked, ClassRanking)
    assert picked.kept_classes(0.7).tolist() == [7, 2, 0]
    for name, method in METHODS.items():
        if method.needs:
            with pytest.raises(ValueError, match=f"evidence for {name.removesuffix('-reverse')}.*expected"):
                rank(name, Evidence(y, 10))


def test_principal_components_keep_distances() -> None:
    x = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    a, b = pca(x, x[:5], 16)
    exact = "donot_use_mm_for_euclid_dist"
    far = torch.cdist(x.flatten(1), x[:5].flatten(1), compute_mode=exact)
    torch.testing.assert_close(torch.cdist(a, b, compute_mode=exact), far, atol=1e-5, rtol=1e-5)
    variance = pca(x, x, 3)[0].var(0)
    assert variance[0] >= variance[1] >= variance[2]


def test_health() -> None:
    labels = torch.arange(20) % 4
    sure, unsure = torch.eye(4).repeat(5, 1) * 8, torch.eye(4).repeat(5, 1) * 0.1
    truth = torch.arange(20) % 2
    lm = mapping.label_mapping(sure, labels, 4, target_labels=truth, target_classes=2)
    good = mapping_health(sure, sure, lm, lm)
    assert good.warnings == []
    assert good.confidence == pytest.approx(float(sure.softmax(1).max(1)[0].mean()))
    assert good.energy == pytest.approx(-float(sure.logsumexp(1).mean()))
    assert (good.classes_used, good.largest_share, good.consistency) == (4, 0.25, 0.5)
    bad = mapping_health(unsure, sure, mapping.label_mapping(unsure, labels, 4))
    assert "unsure of the target" in bad.warnings[0]
    assert bad.unfamiliar == 1.0
    piled = mapping.label_mapping(torch.tensor([0] * 9 + [1]), labels, 4)
    other = mapping.label_mapping(torch.tensor([2] * 9 + [3]), labels, 4)
    told = mapping_health(sure[:10], sure, piled, other).warnings
    assert any("90 % of the votes" in w for w in told)
    assert good.effective_classes == pytest.approx(4)
    one = mapping.label_mapping(
        torch.tensor([0] * 8 + [1] * 8), labels, 4, target_labels=torch.arange(16) % 5, target_classes=5
    )
    assert mapping_health(sure[:16], sure, one).warnings == [
        "the votes spread over 2.0 source classes, for 5 target classes"
    ]
    assert any("disagree" in w for w in told)


def test_rank_agreement_is_spearman_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for _ in range(5):
        a, b = (torch.from_numpy(generator.integers(0, 6, 30)) for _ in range(2))
        assert rank_agreement(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert math.isnan(rank_agreement(torch.ones(3), torch.arange(3)))


NOTHING = torch.full((2, 2), torch.nan)
ONE, NONE = torch.tensor([0]), torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mapping.label_mapping(torch.tensor([[1.0, torch.nan]]), ONE, 2), "logits"),
        (lambda: mapping.label_mapping(ONE, ONE + 2, 2), "source_labels: expected classes 0 to 1, got 2"),
        (lambda: mapping.class_means([], 3), "features: expected at least one row"),
        (lambda: mapping.class_means([(torch.ones(2, 3), NONE)], 3), "labels: expected 2"),
        (lambda: mapping.pseudo_class_mapping(torch.ones(3, 2), torch.ones(1, 2), 4), "clusters: expected"),
        (lambda: mapping.feature_mapping(torch.ones(1, 2), NOTHING, [0]), "means: expected"),
        (lambda: rank("lm2", Evidence(NONE, 1)), "method: expected one of"),
    ],
)
def test_bad_input(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
