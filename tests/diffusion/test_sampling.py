"""DDIM part of the way against the published sampler's arithmetic, and whole pictures."""

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion import SLD, SafeGuidance, generate, partial_ddim, start_noise
from tenfold.diffusion.encode import encode
from tenfold.diffusion.sampling import ddim_walk, partial_times, timestep_range
from tenfold.diffusion.schedule import Schedule
from tenfold.diffusion.sld import SafeState, safe_guidance

SCHEDULE = Schedule.scaled_linear()


def analytic(z, t, c):
    return torch.tanh(z * (0.3 + torch.as_tensor(t).double() / 2000) + c)


def compvis(z, t_enc, cond, uncond, scale, steps=50):
    """The published walk in float64: CompVis' DDIM without its noisiest timestep."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1 - betas, 0)
    taus = [i + 1 for i in range(0, 1000, 1000 // steps)]
    before = [abar[0], *(abar[tau] for tau in taus[:-1])]
    visited = []
    for number, index in enumerate(range(len(taus) - 2, -1, -1)):
        if number >= steps - t_enc:
            break
        a, previous = abar[taus[index]], before[index]
        visited.append(taus[index])
        eu, ec = analytic(z, taus[index], uncond), analytic(z, taus[index], cond)
        e = eu + scale * (ec - eu)
        clean = (z - (1 - a).sqrt() * e) / a.sqrt()
        z = previous.sqrt() * clean + (1 - previous).sqrt() * e
    return z, visited


@pytest.mark.parametrize("t_enc", [0, 1, 2, 10, 25, 48, 49])
def test_reference_walk_is_compvis(t_enc):
    z = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(t_enc))
    cond, uncond = torch.full((2, 1, 1, 1), 0.4).double(), torch.full((2, 1, 1, 1), -0.2).double()
    called = []

    def predict(x, t, c):
        assert x.shape[0] == 4  # guidance in one call
        called.append(int(t))
        return analytic(x, t, c)

    found = partial_ddim(predict, SCHEDULE, z, t_enc, cond, uncond, alignment="reference")
    expected, visited = compvis(z, t_enc, cond, uncond, 3.0)
    assert called == visited
    assert len(called) == (49 if t_enc == 0 else 50 - t_enc)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_mean_number_of_calls():
    counts = [len(partial_times(SCHEDULE, t, 50, "reference")) - 1 for t in range(50)]
    assert sum(counts) / 50 == pytest.approx(25.48)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_exact_alignment_pairs_levels_with_near_timesteps(steps):
    seen = set()
    for t_enc in range(steps):
        level = partial_times(SCHEDULE, t_enc, steps)[-1]
        low, high = timestep_range(SCHEDULE, t_enc, steps)
        assert low <= level < high
        assert max(level - low, high - 1 - level) <= 500 // steps
        assert not seen & set(range(low, high))
        seen |= set(range(low, high))
    assert len(seen) >= 0.94 * 1000
    assert min(seen) == 0


def test_reference_range():
    assert timestep_range(SCHEDULE, 0, 50, "reference") == (0, 20)
    assert timestep_range(SCHEDULE, 49, 50, "reference") == (980, 1000)
    with pytest.raises(ValueError, match="t_enc"):
        timestep_range(SCHEDULE, 50, 50)
    with pytest.raises(ValueError, match="alignment"):
        partial_times(SCHEDULE, 0, 50, "other")


def test_walk_yields_every_level(tiny):
    z, c = start_noise((4, 8, 8), [1]), encode(tiny, ["a cat"])
    levels = list(ddim_walk(tiny.predict, SCHEDULE, z, [501, 481, 461], c))
    assert [t for t, _ in levels] == [501, 481, 461]
    assert torch.equal(levels[0][1], z)
    assert not levels[-1][1].requires_grad


def test_a_picture_does_not_depend_on_its_batch(tiny):
    prompts, seeds, scales = ["a cat", "a dog", "church"], [4, 5, 6], [7.5, 1.0, 3.0]
    whole = generate(tiny, prompts, seeds, guidance=scales, steps=4)
    parts = generate(tiny, prompts, seeds, guidance=scales, steps=4, batch=1)
    torch.testing.assert_close(whole, parts, rtol=0, atol=2e-5)
    last = generate(tiny, prompts[2:], seeds[2:], guidance=3.0, steps=4)
    torch.testing.assert_close(whole[2:], last, rtol=0, atol=2e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)


def test_states_draw_what_their_prompt_draws(tiny):
    states = encode(tiny, ["a cat"])
    assert torch.equal(generate(tiny, states, [3], steps=3), generate(tiny, ["a cat"], [3], steps=3))


@pytest.mark.parametrize("noise", ["torch", "philox"])
def test_noise_of_a_seed(noise):
    both = start_noise((4, 8, 8), [3, 2**32 - 1], noise=noise)
    assert torch.equal(both[1:], start_noise((4, 8, 8), [2**32 - 1], noise=noise))
    assert abs(float(both.mean())) < 0.2
    assert abs(float(both.std()) - 1) < 0.2


def test_no_prompts_no_pictures(tiny):
    assert generate(tiny, [], [], steps=2).shape == (0, 3, 64, 64)
    assert generate(tiny, "", [1], steps=1).shape == (1, 3, 64, 64)
    with pytest.raises(ValueError, match="seeds: expected 0 entries"):
        generate(tiny, [], [1], steps=2)
    with pytest.raises(TypeError, match="prompts: expected a list of strings"):
        generate(tiny, None, [])


def test_published_seeds_give_published_noise():
    expected = torch.randn((1, 4, 8, 8), generator=torch.manual_seed(4290749014))
    assert torch.equal(start_noise((4, 8, 8), [4290749014]), expected)


def test_negative_prompts_and_safe_guidance_change_pictures(tiny):
    plain = generate(tiny, ["a cat"], [1], steps=4)
    assert not torch.equal(generate(tiny, ["a cat"], [1], steps=4, negative="dog"), plain)
    assert not torch.equal(generate(tiny, ["a cat"], [1], steps=4, safe="max"), plain)
    late = SafeGuidance(warmup_steps=4)
    torch.testing.assert_close(generate(tiny, ["a cat"], [1], steps=4, safe=late), plain, rtol=0, atol=1e-5)


def test_safe_guidance_by_hand():
    eu, ec, es = torch.tensor([0.0]), torch.tensor([1.0]), torch.tensor([1.5])
    safe, state = SafeGuidance(1, 1.0, 0.1, 0.3, 0.4), SafeState()
    # s = min(1, 0.5) = mu, for ec - es = -0.5 < 0.1; g = 0.5 * 1.5 = 0.75; v = 0.6 * 0.75 = 0.45
    first = safe_guidance(eu, ec, es, 2.0, safe, state, step=0, t=981)
    assert first.item() == pytest.approx(2.0)
    assert state.momentum.item() == pytest.approx(0.45)
    second = safe_guidance(eu, ec, es, 2.0, safe, state, step=1, t=961)
    assert second.item() == pytest.approx(2.0 * (1 - (0.75 + 0.3 * 0.45)))
    assert SLD["strong"].warmup_steps == 7
    assert SLD["max"].threshold == 1.0
    as_published = SafeGuidance(1, 1.0, 0.1, 0.3, 0.4, warmup_on="timestep")
    assert safe_guidance(eu, ec, es, 2.0, as_published, SafeState(), step=0, t=981).item() == pytest.approx(
        0.5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [2**32]}, "seeds"),
        ({"seeds": [1, 2]}, "seeds"),
        ({"guidance": [1.0, 2.0]}, "guidance"),
        ({"guidance": float("nan")}, "guidance"),
        ({"steps": 0}, "steps"),
        ({"sampler": "other"}, "sampler"),
        ({"safe": "very"}, "safe"),
        ({"noise": "white"}, "noise"),
        ({"safe": 5}, "safe: expected a strength or a SafeGuidance, got int 5"),
        ({"negative": 5}, "negative: expected a text, got int 5"),
    ],
)
def test_bad_input(tiny, change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        generate(tiny, ["a cat"], **{"seeds": [1], "steps": 2, **change})
