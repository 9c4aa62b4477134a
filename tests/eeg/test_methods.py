"""The losses against their formulas written out, branch by branch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tenfold.eeg.methods import (
    METHODS,
    VARIANTS,
    Batch,
    RunState,
    find,
    schedule,
    separation,
)
from tenfold.eeg.network import Discriminator, Network
from tenfold.eeg.options import Options
from tenfold.ops import cdd, coral, linear_mmd, lmmd, mmd

S, B, M, D, C = 3, 12, 10, 5, 3


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    y = (torch.arange(B) % C).expand(S, B).contiguous()
    return Batch(torch.randn(S, B, D) + y[..., None], y, torch.randn(M, D) + 1, progress=0.5)


def net_for(name: str, **options: object) -> Network:
    torch.manual_seed(2)
    return Network(D, C, replace(find(name), options=Options(**options)).branches(S))


def loss(
    name: str, net: Network, batch: Batch, run: RunState | None = None, **options: object
) -> torch.Tensor:
    return find(name).loss(net, batch, Options(**options), run or RunState()).total


def parts(net: Network, batch: Batch) -> tuple[torch.Tensor, ...]:
    """Features and logits of the pooled sources and of the target through one head."""
    z, logits = net.head(net.extractor(batch.x.flatten(0, 1)))
    tz, tl = net.head(net.extractor(batch.target), target=True)
    return z[0], logits[0], tz[0], tl[0]


def test_schedule() -> None:
    assert schedule(0.0) == 0.0
    assert schedule(0.5) == pytest.approx(0.98661, abs=1e-5)
    assert schedule(1.0) == pytest.approx(0.99991, abs=1e-5)


def test_methods_with_one_head(batch: Batch) -> None:
    net, y, lam = net_for("dan"), batch.y.flatten(), schedule(0.5)
    z, logits, tz, tl = parts(net, batch)
    ce = F.cross_entropy(logits, y)
    expected = {
        "source-only": ce,
        "ddc": ce + lam * linear_mmd(z, tz),
        "dan": ce + lam * mmd(z, tz),
        "coral": ce + lam * coral(z, tz),
        "dsan": ce + lam * 0.5 * lmmd(z, y, tz, tl.softmax(1)),
    }
    for name, value in expected.items():
        torch.testing.assert_close(loss(name, net, batch), value, msg=name)
    torch.testing.assert_close(loss("dan", net, batch, weight=3.0), ce + 3 * lam * mmd(z, tz))


def test_dann_pushes_the_features_against_its_discriminator(batch: Batch) -> None:
    net = net_for("dann")
    run = RunState(discriminator=Discriminator())
    total = loss("dann", net, batch, run)
    total.backward()
    pushed = net.w1.grad.clone()
    net.zero_grad()
    z, logits, tz, _ = parts(net, batch)
    ce = F.cross_entropy(logits, batch.y.flatten())
    logit = run.discriminator(torch.cat((z, tz))).squeeze(1)
    both = F.binary_cross_entropy_with_logits(logit[: S * B], torch.ones(S * B))
    both = (both + F.binary_cross_entropy_with_logits(logit[S * B :], torch.zeros(M))) / 2
    torch.testing.assert_close(total, ce + both)
    (ce - schedule(0.5) * both).backward()
    torch.testing.assert_close(pushed, net.w1.grad)
    with pytest.raises(RuntimeError, match=r"run.discriminator: expected"):
        loss("dann", net, batch)


def branch_by_branch(net: Network, batch: Batch) -> list[tuple[torch.Tensor, ...]]:
    made = []
    for j in range(net.branches):
        rows, y = (batch.x[j], batch.y[j]) if j < S else (batch.x.flatten(0, 1), batch.y.flatten())
        z, logits = net.head(net.extractor(rows)[None], slice(j, j + 1))
        tz, tl = net.head(net.extractor(batch.target), slice(j, j + 1), target=True)
        made.append((z[0], logits[0], y, tz[0], tl[0]))
    return made


def test_ms_mda_and_meernet(batch: Batch) -> None:
    net = net_for("ms-mda")
    apart = branch_by_branch(net, batch)
    ce = sum(F.cross_entropy(b[1], b[2]) for b in apart) / S
    near = sum((b[0].mean(0) - b[3].mean(0)).square().sum() for b in apart) / S
    p = [b[4].softmax(1) for b in apart]
    disagree = sum((p[i] - p[j]).abs().mean() for i in range(S) for j in range(S) if i != j) / S
    lam = schedule(0.5)
    torch.testing.assert_close(loss("meernet", net, batch), ce + lam * near)
    torch.testing.assert_close(loss("ms-mda", net, batch), ce + lam * (near + 0.01 * disagree))


@pytest.mark.parametrize("share", ["branches", "halves"])
@pytest.mark.parametrize("tau", ["fixed", "none"])
def test_ms_dcda(batch: Batch, share: str, tau: str) -> None:
    options = {"share": share, "tau": tau, "tau_value": 0.3, "inter": 0.7}
    net = net_for("ms-dcda")
    apart = branch_by_branch(net, batch)
    assert len(apart) == S + 1
    pseudo = torch.stack([b[4].softmax(1) for b in apart]).mean(0).argmax(1)
    w = [1 / 4] * 4 if share == "branches" else [1 / 6] * 3 + [1 / 2]
    ce = coarse = fine = torch.zeros(())
    for (z, logits, y, tz, _), weight in zip(apart, w, strict=True):
        found = cdd(z, y, tz, pseudo, C)
        ce = ce + weight * F.cross_entropy(logits, y)
        coarse = coarse + weight * mmd(z, tz)
        fine = fine + weight * (found.intra - 0.7 * found.inter)
    first, second = (0.3, 0.7) if tau == "fixed" else (1.0, 1.0)
    expected = ce + schedule(0.5) * (first * coarse + second * fine)
    torch.testing.assert_close(loss("ms-dcda", net, batch, **options), expected)


def test_class_wise_terms_begin_after_the_warm_up(batch: Batch) -> None:
    net = net_for("ms-dcda")
    step = METHODS["ms-dcda"].loss(net, batch, Options(warm=0.6, tau="none"), RunState())
    assert float(step.parts["intra"]) == float(step.parts["inter"]) == 0.0
    step = METHODS["ms-dcda"].loss(net, batch, Options(warm=0.5, tau="none"), RunState())
    assert float(step.parts["inter"]) > 0.0


def test_rows_without_confidence_have_no_class(batch: Batch) -> None:
    net = net_for("ms-dcda")
    step = METHODS["ms-dcda"].loss(net, batch, Options(confidence=1.0), RunState())
    assert float(step.parts["intra"]) == float(step.parts["inter"]) == 0.0


def test_given_labels_of_clusters_are_used(batch: Batch) -> None:
    net = net_for("ms-dcda")
    one = replace(batch, pseudo=torch.zeros(M, dtype=torch.int64))
    none = replace(batch, pseudo=torch.full((M,), -1))
    options = Options(labels="cluster")
    assert float(METHODS["ms-dcda"].loss(net, none, options, RunState()).parts["intra"]) == 0.0
    assert float(METHODS["ms-dcda"].loss(net, one, options, RunState()).parts["intra"]) > 0.0


def test_the_moving_weight(batch: Batch) -> None:
    """tau is m / (m + 1 - J) of measures scaled by their extremes so far; one half until these differ."""
    net, run = net_for("ms-dcda"), RunState()
    seen: list[tuple[float, float]] = []
    for step in range(14):
        run.step = step
        moved = replace(batch, target=batch.target + 0.3 * step)
        with torch.no_grad():
            net.extractor[0].weight.mul_(1.02)
            tau = METHODS["ms-dcda"].loss(net, moved, Options(), run).parts
        h = net.extractor(batch.x.flatten(0, 1)).detach()
        seen.append((float(tau["mmd"]), separation(h, batch.y.flatten(), C)))
        if step < 10:
            assert tau["tau"] == 0.5
            continue
        m, j = (
            (values[-1] - min(values)) / (max(values) - min(values)) for values in zip(*seen, strict=True)
        )
        assert tau["tau"] == pytest.approx(m / (m + 1 - j), rel=1e-5)


def test_a_constant_measure_leaves_tau_where_it_was() -> None:
    run = RunState(step=50)
    assert run.scaled("mmd", 0.2) is None
    assert run.scaled("mmd", 0.2) is None
    assert run.scaled("mmd", 0.4) == 1.0
    assert run.scaled("mmd", 0.3) == pytest.approx(0.5)


def test_separation() -> None:
    h = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    y = torch.tensor([0, 0, 1, 1])
    assert separation(h, y, 3) == pytest.approx(100.0 / 4.0)  # between: 4 * 25, within: 4 * 1


def test_variants_are_ms_dcda_with_other_options(batch: Batch) -> None:
    assert VARIANTS["no-ensemble"].branches(14) == 14
    assert METHODS["ms-dcda"].branches(14) == 15
    assert METHODS["dan"].branches(14) == 1
    mine = VARIANTS["intra-only"].with_options(Options(labels="cluster", inter=5.0)).options
    assert (mine.labels, mine.inter) == ("cluster", 0.0)  # what makes the variant wins
    net = net_for("ms-dcda")
    step = VARIANTS["no-cdd"].loss(net, batch, VARIANTS["no-cdd"].options, RunState())
    torch.testing.assert_close(step.total, step.parts["ce"] + schedule(0.5) * step.parts["mmd"])


def test_what_options_refuse() -> None:
    for name, value in (
        ("tau", "moving"), ("confidence", 1.5), ("inter", -1.0), ("mul", 0.0), ("min_count", 0),
        ("warm", -0.1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name}: expected .*got"):
            Options(**{name: value})
    with pytest.raises(ValueError, match="at least one"):
        Options(individual=False, ensemble=False)
    with pytest.raises(ValueError, match="labels and predict: expected another"):
        Options(ensemble=False, predict="ensemble")
    with pytest.raises(ValueError, match=r"method: expected one of .*got 'ms-dcdb'"):
        find("ms-dcdb")
