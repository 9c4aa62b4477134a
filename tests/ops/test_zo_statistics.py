"""What the method rests on: unbiased roundings, independent directions, the moments of the estimator."""

from __future__ import annotations

import math

import pytest
import torch

from tenfold.ops import random_words, stochastic_round, zo_moments, zo_perturb_, zo_sample

MILLION = 1_000_000


# -- stochastic rounding (zo.md 8.6) ------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-5), (torch.float16, 1e-5)])
def test_small_updates_arrive_in_the_mean(dtype, tolerance):
    """A hundred steps of 1e-4 from one, down where the sign is -1: a fraction of bfloat16's last bit each."""
    step = 1e-4
    signs = zo_sample(3, n=MILLION, dist="rademacher")
    w = torch.ones(MILLION, dtype=dtype)
    for k in range(100):
        zo_perturb_([w], [0], 3, 0, step, "rademacher", out_rounding="sr", rounding_seed=1000 + k)
    down, up = w[signs < 0].double(), w[signs > 0].double()
    assert down.mean().item() == pytest.approx(0.99, abs=1.5 * tolerance)
    assert up.mean().item() == pytest.approx(
        1.01, abs=3 * tolerance
    )  # the last bit is twice as wide above one


def test_small_updates_are_lost_to_rounding_to_nearest():
    w = torch.ones(10_000, dtype=torch.bfloat16)
    for _ in range(100):
        zo_perturb_([w], [0], 3, 0, 1e-4, "rademacher")
    assert (w == 1).all()


def test_a_million_updates_by_the_public_rounding():
    w = torch.ones(MILLION, dtype=torch.bfloat16)
    for k in range(100):
        w = stochastic_round(w.float() - 1e-4, torch.bfloat16, k)
    assert w.double().mean().item() == pytest.approx(0.99, abs=3e-5)


@pytest.mark.parametrize("value", [1.003, -1.003, 2.0**-14 * 1.3, 3e-8, -1e-6, 1e-20, 1e-40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_unbiased(value, dtype):
    n = 400_000
    x = torch.full((n,), value)
    out = stochastic_round(x, dtype, 5)
    levels = out.unique().double()
    exact = x[0].double().item()
    if levels.numel() == 1:  # the fraction is below the 16 random bits, or zero
        gap = (
            torch.nextafter(out[0].float(), torch.tensor(math.copysign(math.inf, value))).double() - levels[0]
        )
        assert abs(exact - levels.item()) <= max(abs(gap.item()), 2.0**-24 * 2.0**-14)
        return
    low, high = levels.tolist()
    assert low <= exact <= high
    p = (exact - low) / (high - low)
    sd = (high - low) * math.sqrt(p * (1 - p) / n)
    assert out.double().mean().item() == pytest.approx(exact, abs=5 * sd + (high - low) * 2.0**-16)


def test_rounding_bits_differ_between_streams_queries_and_seeds():
    x = torch.full((10_000,), 1 + 2.0**-9)  # halfway, so that every bit pattern of r16 matters
    bits = [
        stochastic_round(x, torch.bfloat16, seed, stream=stream, query=query) > 1
        for seed, stream, query in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1))
    ]
    for i, a in enumerate(bits):
        assert 0.2 < a.float().mean() < 0.3  # 1 + 2^-9 is a quarter of the way to 1 + 2^-7
        for b in bits[:i]:
            agree = (a == b).float().mean().item()
            assert agree == pytest.approx(0.25**2 + 0.75**2, abs=0.03)


# -- directions (zo.md 8.14) --------------------------------------------------------------------------------


def test_normal_moments_and_tails():
    n = 1 << 22
    z = zo_sample(2024, n=n).double()
    for power, expected, variance in (
        (1, 0.0, 1.0),
        (2, 1.0, 2.0),
        (3, 0.0, 15.0),
        (4, 3.0, 96.0),
        (6, 15.0, 10170.0),
    ):
        assert (z**power).mean().item() == pytest.approx(expected, abs=4.5 * math.sqrt(variance / n))
    for t in (0.1, 1.0, 2.0, 3.0, 4.0):
        p = math.erfc(t / math.sqrt(2))
        assert (z.abs() > t).double().mean().item() == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / n))
    assert z.abs().max() < 6.77


def test_normals_fill_their_quantiles_evenly():
    n, cells = 1 << 20, 256
    u = 0.5 * (1 + torch.erf(zo_sample(7, 1, 2, n=n).double() / math.sqrt(2)))
    counts = torch.histc(u, cells, 0.0, 1.0)
    chi2 = ((counts - n / cells) ** 2 / (n / cells)).sum().item()
    assert abs(chi2 - (cells - 1)) < 5 * math.sqrt(2 * (cells - 1))


@pytest.mark.parametrize("dist", ["gaussian", "rademacher"])
def test_elements_of_one_direction_are_uncorrelated(dist):
    n = 1 << 20
    z = zo_sample(11, n=n + 512, dist=dist).double()
    for lag in (1, 2, 3, 4, 5, 7, 31, 32, 33, 127, 128, 256, 512):
        assert abs((z[:n] * z[lag : lag + n]).mean().item()) < 4.5 / math.sqrt(n)
        squares = (z[:n] ** 2 - 1) * (z[lag : lag + n] ** 2 - 1)
        assert abs(squares.mean().item()) < 4.5 * 2 / math.sqrt(n)


def test_signs_are_balanced_in_every_place_of_a_word():
    n = 1 << 21
    bits = (zo_sample(12, n=n, dist="rademacher").view(-1, 32) > 0).double()
    assert (bits.mean(0) - 0.5).abs().max() < 4.5 * 0.5 / math.sqrt(n / 32)
    nibbles = bits.view(-1, 4) @ torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    counts = torch.bincount(nibbles.long(), minlength=16).double()
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    assert abs(chi2 - 15) < 5 * math.sqrt(30)


@pytest.mark.parametrize("dist", ["gaussian", "rademacher"])
def test_blocks_of_equal_shape_get_different_directions(dist):
    """The reference implementation draws the same z for equally shaped blocks (cosine 1)."""
    d = 1 << 16
    z = torch.stack([zo_sample(5, stream, n=d, dist=dist) for stream in range(12)]).double()
    cosines = torch.corrcoef(z) - torch.eye(12, dtype=torch.float64)
    assert cosines.abs().max() < 5 / math.sqrt(d)


@pytest.mark.parametrize("s", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_of_masked_words(s):
    n = 1 << 20
    words = random_words(1, purpose="mask", blocks=n // 4).reshape(-1)
    share = (words < round(s * 2**32)).double().mean().item()
    assert share == pytest.approx(s, abs=4 * math.sqrt(s * (1 - s) / n) + 1e-15)


def test_purposes_are_independent():
    names = ("gaussian", "rademacher", "uniform", "mask", "rounding", "lowrank_u", "lowrank_v")
    words = torch.stack([random_words(1, purpose=p, blocks=1 << 14).reshape(-1).double() for p in names])
    assert (torch.corrcoef(words) - torch.eye(len(names), dtype=torch.float64)).abs().max() < 5 / 2**8


# -- the estimator on a linear loss -------------------------------------------------------------------------


def directions(dist: str, probes: int, d: int) -> torch.Tensor:
    z = (
        zo_sample(99, n=probes * d, dist="rademacher" if dist == "rademacher" else "gaussian")
        .view(probes, d)
        .double()
    )
    if dist == "sphere":
        z = z * math.sqrt(d) / z.norm(dim=1, keepdim=True)
    return z


@pytest.mark.parametrize(("dist", "expected"), [("gaussian", 202), ("rademacher", 200), ("sphere", 200)])
def test_second_moment_of_the_estimator(dist, expected):
    d, probes = 200, 40_000
    a = torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    z = directions(dist, probes, d)
    c = z @ a
    ratio = ((c[:, None] * z).square().sum(1).mean() / a.square().sum()).item()
    assert ratio == pytest.approx(expected, rel=0.03)
    mean = (c[:, None] * z).mean(0)
    assert (mean - a).norm() / a.norm() < 1.2 * math.sqrt(expected / probes)


@pytest.mark.parametrize("dist", ["gaussian", "rademacher"])
def test_moments_scale_a_direction_onto_the_sphere(dist):
    sizes = (5000, 1, 3001)
    squares = sum(zo_moments(8, stream, n=n, dist=dist)[1] for stream, n in enumerate(sizes))
    scale = math.sqrt(sum(sizes) / squares)
    z = torch.cat([zo_sample(8, stream, n=n, dist=dist).double() for stream, n in enumerate(sizes)])
    assert (scale * z).norm().item() == pytest.approx(math.sqrt(sum(sizes)), abs=1e-6)


def test_central_difference_of_a_linear_loss_is_exact():
    a = torch.linspace(-1, 1, 500, dtype=torch.float64)
    theta = torch.linspace(0, 1, 500, dtype=torch.float64)
    eps, z = 1e-3, zo_sample(4, n=500, dtype=torch.float64)
    plus, minus = torch.empty_like(theta), torch.empty_like(theta)
    zo_perturb_([plus, minus], [0, 0], 4, 0, eps, sources=[theta, theta])
    zo_perturb_([minus], [0], 4, 0, -eps, sources=[theta])
    assert ((a @ plus - a @ minus) / (2 * eps)).item() == pytest.approx((a @ z).item(), rel=1e-10)
