"""Steps against values worked out by hand, against the ops, and against the theory of the estimator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import tenfold.optim._walk as walk_module
from tenfold.ops import zo_restore_update_, zo_sample
from tenfold.optim import FZOO, ZOSGD, ZOAdam, splitmix64

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def directions(seed: int, step: int, queries: int, n: int, dist: str = "gaussian", stream: int = 0):
    return [zo_sample(splitmix64(seed, step), stream, q, n=n, dist=dist).double() for q in range(queries)]


def test_splitmix64_known_answers():
    assert [splitmix64(0, t) for t in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert [splitmix64(42, t) for t in range(3)] == [
        0xBDD732262FEB6E95,
        0x28EFE333B266F103,
        0x47526757130F9F52,
    ]


ORACLE = [
    (ZOSGD, {"lr": 0.05}, [0.9933566, -1.9208985, 0.4729146]),
    (ZOSGD, {"lr": 0.05, "num_queries": 4}, [0.8084732, -1.9326989, 0.4115675]),
    (ZOSGD, {"lr": 0.05, "one_sided": True}, [0.9932304, -1.9208584, 0.4729768]),
    (ZOSGD, {"lr": 0.05, "dist": "rademacher"}, [0.9480938, -1.7655938, 0.2655938]),
    (ZOAdam, {"lr": 0.1}, [1.0016894, -1.7442787, 0.4637885]),
]


@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
@pytest.mark.parametrize(("optimizer", "options", "final"), ORACLE)
def test_three_steps_on_a_quadratic(quadratic, optimizer, options, final, restore):
    theta, closure = quadratic()
    opt = optimizer([theta], eps=1e-3, seed=0, restore=restore, **options)
    for _ in range(3):
        opt.step(closure)
    assert theta.tolist() == pytest.approx(final, abs=1e-6)


def test_first_step_of_the_oracle(quadratic):
    theta, closure = quadratic()
    opt = ZOSGD([theta], lr=0.05)
    loss = opt.step(closure)
    record = opt.last_step
    assert record.step == 0
    assert record.seed == 0xE220A8397B1DCDAF
    assert not record.skipped
    assert record.projected_grads == pytest.approx([-0.1779880], abs=1e-7)
    assert len(record.losses) == 2
    assert loss.item() == pytest.approx(sum(record.losses) / 2)
    assert set(record.seconds) == {"forward", "passes"}
    assert min(record.seconds.values()) >= 0
    z = zo_sample(record.seed, 0, 0, n=3)
    assert z.tolist() == pytest.approx([0.56070191, 0.71111012, -0.02757983], abs=1e-7)


def test_float32_follows_the_oracle_within_its_noise(quadratic):
    theta, closure = quadratic(torch.float32)
    opt = ZOSGD([theta], lr=0.05)
    for _ in range(3):
        opt.step(closure)
    assert theta.tolist() == pytest.approx([0.9933566, -1.9208985, 0.4729146], rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_single_query_lands_as_the_fused_op_does(quadratic, dtype, weight_decay):
    theta, closure = quadratic(dtype)
    opt = ZOSGD([theta], lr=0.01, weight_decay=weight_decay, restore="arithmetic")
    before_landing = []

    def watched():
        before_landing[:] = [theta.detach().clone()]
        return closure()

    opt.step(watched)
    expected = before_landing[0]
    (g,) = opt.last_step.projected_grads
    zo_restore_update_(
        [expected], [0], opt.last_step.seed, 0, eps=1e-3, lr=0.01, projected_grad=g, weight_decay=weight_decay
    )
    assert torch.equal(theta, expected)


@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
def test_more_queries_than_terms_in_a_call(quadratic, restore):
    theta, closure = quadratic()
    opt = ZOSGD([theta], lr=0.05, num_queries=70, restore=restore, weight_decay=0.1)
    clean = theta.detach().clone()
    opt.step(closure)
    z = torch.stack(directions(0, 0, 70, 3))
    c = torch.tensor(opt.last_step.projected_grads, dtype=torch.float64)
    assert torch.allclose(theta, (1 - 0.005) * clean - 0.05 * (c[:, None] * z).mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 3),
        ({"num_queries": 4}, 9),
        ({"num_queries": 4, "one_sided": True}, 5),
        ({"one_sided": True}, 2),
        ({"restore": "exact"}, 3),
    ],
)
def test_one_call_per_pass_for_all_groups(monkeypatch, options, passes):
    calls = []
    for name in ("zo_perturb_", "zo_chain_"):
        op = getattr(walk_module, name)
        monkeypatch.setattr(
            walk_module, name, lambda *a, op=op, **k: (calls.append(len(a[0])), op(*a, **k))[1]
        )
    params = [nn.Parameter(torch.ones(4)) for _ in range(3)]
    opt = ZOSGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.01, **options)
    opt.step(lambda: sum((p * p).sum() for p in params))
    assert calls == [3] * passes


@pytest.mark.parametrize(
    ("options", "count"), [({"num_queries": 3}, 6), ({"num_queries": 3, "one_sided": True}, 4)]
)
def test_number_of_closure_calls_and_losses(quadratic, options, count):
    theta, closure = quadratic()
    calls = []
    opt = ZOSGD([theta], **options)
    opt.step(lambda: (calls.append(torch.is_grad_enabled()), closure())[1])
    assert calls == [False] * count
    assert len(opt.last_step.losses) == count
    assert len(opt.last_step.projected_grads) == 3


def test_maximize_ascends_as_far_as_minimize_descends(quadratic):
    moves = []
    for maximize in (False, True):
        theta, closure = quadratic()
        before = theta.detach().clone()
        ZOSGD([theta], lr=0.05, maximize=maximize).step(closure)
        moves.append(theta.detach() - before)
    assert torch.allclose(moves[0], -moves[1], atol=1e-15)
    assert moves[0].abs().max() > 1e-4


def test_closure_may_return_numbers_and_metrics(quadratic):
    theta, closure = quadratic()
    expected, same = quadratic()
    ZOSGD([theta], lr=0.05).step(lambda: closure().item())
    ZOSGD([expected], lr=0.05).step(lambda: same().reshape(1, 1))
    assert torch.equal(theta, expected)
    opt = ZOSGD([theta], lr=0.05)
    assert opt.step(lambda: torch.tensor(3)).item() == 3.0
    assert opt.last_step.projected_grads == (0.0,)


def test_z_round_changes_the_direction_as_documented():
    theta = nn.Parameter(torch.zeros(500))
    opt = ZOSGD([theta], lr=1.0, z_round=torch.bfloat16, restore="exact")
    losses = iter((1e-3, -1e-3))  # projected gradient 1
    opt.step(lambda: next(losses))
    z = zo_sample(opt.last_step.seed, 0, 0, n=500)
    assert torch.equal(theta.detach(), -z.bfloat16().float())
    assert not torch.equal(theta.detach(), -z)


def test_it_trains(network):
    model, closure = network()
    opt = ZOSGD(model.parameters(), lr=0.02, num_queries=4)
    first = closure().item()
    for _ in range(60):
        last = opt.step(closure)
    assert last.item() < 0.7 * first


def test_stochastic_rounding_keeps_small_updates_that_nearest_loses():
    n, steps, lr = 40_000, 50, 1e-4
    moved = {}
    for rounding in ("rne", "sr"):
        theta = nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
        opt = ZOSGD([theta], lr=lr, dist="rademacher", rounding=rounding, restore="exact")
        wanted = torch.zeros(n, dtype=torch.float64)
        for step in range(steps):
            losses = iter((1e-3, -1e-3))
            opt.step(lambda losses=losses: next(losses))
            wanted -= lr * directions(0, step, 1, n, "rademacher")[0]
        moved[rounding] = theta.detach().double() - 1
    assert moved["rne"].abs().max() == 0
    slope = (moved["sr"] @ wanted) / (wanted @ wanted)
    assert slope.item() == pytest.approx(1.0, abs=0.15)
    assert moved["sr"].mean().abs() < 2e-4


# -- FZOO ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
def test_fzoo_is_its_formula(quadratic, restore):
    theta, closure = quadratic()
    opt = FZOO([theta], lr=0.02, restore=restore, weight_decay=0.1)
    expected = [1.0, -2.0, 0.5]

    def loss(point):
        return 0.5 * sum(a * x * x for a, x in zip((1.0, 0.5, 2.0), point, strict=True))

    for step in range(3):
        opt.step(closure)
        u = [z.tolist() for z in directions(0, step, 8, 3, "rademacher")]
        base = loss(expected)
        probes = [loss([x + 1e-4 * s for x, s in zip(expected, ui, strict=True)]) for ui in u]
        mean = sum(probes) / 8
        sigma = math.sqrt(sum((v - mean) ** 2 for v in probes) / 8)
        update = [
            sum((v - base) * ui[j] for v, ui in zip(probes, u, strict=True)) / (8 * sigma) for j in range(3)
        ]
        expected = [(1 - 0.02 * 0.1) * x - 0.02 * d for x, d in zip(expected, update, strict=True)]
        assert opt.last_step.losses == pytest.approx([base, *probes], abs=1e-12)
    assert theta.tolist() == pytest.approx(expected, abs=1e-9)


def test_fzoo_skips_a_step_without_spread(quadratic):
    theta, _ = quadratic()
    opt = FZOO([theta], lr=0.02, weight_decay=0.1, restore="exact", max_nonfinite=1)
    before = theta.detach().clone()
    opt.step(lambda: 1.0)
    assert torch.equal(theta, before)
    assert opt.last_step.skipped
    assert opt.num_skipped == 1
    assert opt.num_steps == 1


def test_fzoo_step_does_not_depend_on_the_scale_of_the_loss(quadratic):
    finals = []
    for scale in (1.0, 1024.0):
        theta, closure = quadratic()
        FZOO([theta], lr=0.02).step(lambda closure=closure, scale=scale: scale * closure())
        finals.append(theta.detach())
    assert torch.allclose(*finals, rtol=0, atol=1e-12)


# -- ZO-Adam ------------------------------------------------------------------------------------------


def test_adam_is_torch_adamw_on_the_estimated_gradient(network):
    model, closure = network(torch.float64)
    params = list(model.parameters())
    peers = [nn.Parameter(p.detach().clone()) for p in params]
    opt = ZOAdam(params, lr=0.01, num_queries=3, weight_decay=0.1, restore="exact")
    adamw = torch.optim.AdamW(peers, lr=0.01, weight_decay=0.1)
    for step in range(4):
        opt.step(closure)
        for stream, peer in enumerate(peers):
            z = directions(0, step, 3, peer.numel(), stream=stream)
            g = sum(c * zi for c, zi in zip(opt.last_step.projected_grads, z, strict=True)) / 3
            peer.grad = g.view(peer.shape)
        adamw.step()
        for p, peer in zip(params, peers, strict=True):
            assert torch.allclose(p, peer, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_states_are_eight_bytes_an_element(dtype):
    theta = nn.Parameter(torch.ones(64, dtype=dtype))
    opt = ZOAdam([theta], lr=0.01)
    opt.step(lambda: (theta.double() ** 2).sum())
    state = opt.state[theta]
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert state["step"] == 1
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == expected
    assert not torch.equal(theta, torch.ones(64, dtype=dtype))


def test_adam_counts_steps_per_parameter(quadratic):
    theta, closure = quadratic()
    late = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    opt = ZOAdam([theta, late], lr=0.1)
    opt.step(closure)
    late.requires_grad_()
    opt.step(lambda: closure() + (late * late).sum())
    assert opt.state[theta]["step"] == 2
    assert opt.state[late]["step"] == 1
    assert (1 - late).abs().tolist() == pytest.approx(
        [0.1, 0.1], abs=1e-6
    )  # a first Adam step has the size of lr


def test_adam_maximize(quadratic):
    theta, closure = quadratic()
    before = closure().item()
    opt = ZOAdam([theta], lr=0.01, maximize=True)
    for _ in range(5):
        opt.step(closure)
    assert closure().item() > before


# -- the estimator ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dist", "queries"), [("gaussian", 1), ("rademacher", 1), ("gaussian", 4)])
def test_mean_and_variance_of_the_estimate(dist, queries):
    d, steps = 5, 2500
    a = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
    theta = nn.Parameter(torch.zeros(d, dtype=torch.float64))
    opt = ZOSGD([theta], lr=1.0, eps=1.0, dist=dist, num_queries=queries)
    estimates = torch.empty(steps, d, dtype=torch.float64)
    for step in range(steps):
        before = theta.detach().clone()
        opt.step(lambda: a @ theta)
        estimates[step] = before - theta.detach()
    z = directions(0, steps - 1, queries, d, dist)
    assert opt.last_step.projected_grads == pytest.approx([(a @ zi).item() for zi in z], rel=1e-9)
    single = (d + 2 if dist == "gaussian" else d) - 1  # E|g|^2 / |a|^2 - 1
    size = a @ a
    assert (estimates.square().sum(1).mean() / size).item() == pytest.approx(1 + single / queries, rel=0.1)
    error = (estimates.mean(0) - a).norm() / size.sqrt()
    assert error < 4 * math.sqrt(single / queries / steps)
