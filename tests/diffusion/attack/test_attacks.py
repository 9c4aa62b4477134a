"""Attacks on models of random weights: gradients, batches, round trips, errors, going on after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from tenfold.diffusion import tiny_bundle
from tenfold.diffusion.attack import (
    ATTACKS,
    P4D,
    Case,
    CaseError,
    CaseLog,
    Entry,
    LogFolder,
    NoAttack,
    RandomTokens,
    Sampling,
    SeedSearch,
    Target,
    TextGrad,
    Transfer,
    attack_rates,
    settings_of,
    target_cases,
)
from tenfold.diffusion.attack import base as attack_base
from tenfold.diffusion.attack.draws import case_stream, normals, random_seeds, uniforms
from tenfold.diffusion.attack.gradient import Text, attack_times, loss_gradient
from tenfold.diffusion.attack.target import survives, surviving
from tenfold.diffusion.encode import embed_ids

FAST = Sampling(steps=2, sampler="ddim", ids="text")
SMALL = TextGrad(k=2, timesteps=2, iterations=3)


def no(images: Tensor) -> list[bool]:
    """A judge that never sees the concept."""
    return [False] * len(images)


@pytest.fixture(scope="module")
def target() -> Target:
    return Target(tiny_bundle(0), tiny_bundle(1), name="tiny")


@pytest.fixture(scope="module")
def cases(target: Target) -> list[Case]:
    made = [Case(str(10 + i), "a photo of the church" + " cat" * i, seed=i) for i in range(5)]
    assert target.original is not None
    return target_cases(target.original, made, Sampling(steps=3))


def told(logs: list[CaseLog]) -> list[Any]:
    return [[(e.prompt, e.ids, e.t, e.seed, e.success) for e in log.entries] for log in logs]


def test_draws_do_not_depend_on_how_they_are_cut() -> None:
    whole = normals(7, 3, 0, 6, (2, 4), "cpu")
    torch.testing.assert_close(torch.cat([normals(7, 3, i, 2, (2, 4), "cpu") for i in (0, 2, 4)]), whole)
    assert not torch.equal(normals(7, 4, 0, 6, (2, 4), "cpu"), whole)
    u = uniforms(7, 3, 0, 500, 5, "cpu")
    assert 0 <= float(u.min()) < 0.01
    assert 0.99 < float(u.max()) < 1
    seeds = random_seeds(0, 1, 40, but=5)
    assert len({*seeds, 5}) == 41
    assert max(seeds) > 2**31
    assert case_stream("000000012") == 12
    assert case_stream("a") != case_stream("b")


def test_timesteps_are_the_published_ones() -> None:
    assert attack_times(50) == list(range(10, 1000, 20))
    assert attack_times(3, "descending") == [832, 499, 166]


@pytest.mark.parametrize("mode", ["prefix", "suffix", "mid", "insert", "per_k_words"])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_gradient_of_a_batch_is_that_of_each_prompt(
    target: Target, cases: list[Case], mode: str, criterion: str
) -> None:
    bundle, k = target.bundle, 3
    g = torch.Generator().manual_seed(0)
    extra = torch.randint(0, 500, (len(cases), k), generator=g)
    noise = torch.randn(len(cases), 4, 8, 8, generator=g)
    t = torch.tensor([10, 400, 400, 990, 70])
    z = bundle.schedule.add_noise(torch.stack([c.image for c in cases]), noise, t)  # type: ignore[misc]
    prompts = [case.prompt for case in cases]

    def gradient(rows: slice) -> tuple[Tensor, Tensor]:
        text = Text.of(bundle, prompts[rows], k, "error")
        return loss_gradient(
            bundle, text, embed_ids(bundle, extra[rows]), extra[rows], mode, z[rows], t[rows], noise[rows],
            criterion,
        )  # fmt: skip

    loss, found = gradient(slice(None))
    for i in range(len(cases)):
        alone, expected = gradient(slice(i, i + 1))
        assert float((found[i : i + 1] - expected).norm() / expected.norm()) <= 1e-5
        torch.testing.assert_close(loss[i : i + 1], alone, rtol=1e-5, atol=0)
    assert float(found.abs().max()) > 0


def test_gradient_against_finite_differences(cases: list[Case]) -> None:
    bundle = tiny_bundle(0).to(dtype=torch.float64)
    text = Text.of(bundle, [cases[0].prompt], 2, "error")
    extra, t = torch.tensor([[40, 300]]), torch.tensor([500])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = bundle.schedule.add_noise(cases[0].image[None].double(), noise, t)  # type: ignore[index]
    embeds = embed_ids(bundle, extra)

    def loss(at: Tensor) -> Tensor:
        from tenfold.diffusion.encode import encode_embeds, splice

        states = encode_embeds(bundle, text.rows(extra, "prefix"), splice(text.embeds, at, text.lengths))
        return (bundle.predict(z, t, states) - noise).square().mean()

    _, found = loss_gradient(bundle, text, embeds, extra, "prefix", z, t, noise, "l2")
    step = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        slope = (loss(embeds + 1e-5 * step) - loss(embeds - 1e-5 * step)) / 2e-5
    assert float((found.double() * step).sum()) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize(
    "attack",
    [
        NoAttack(), RandomTokens(k=2, tries=2), SeedSearch(tries=2), SMALL, replace(SMALL, init="random"),
        replace(SMALL, mode="mid", order="descending", criterion="l1", roundtrip="require"),
        P4D(k=2, timesteps=2, iterations=3, lr=1.0),
    ],
    ids=lambda a: a.name,
)  # fmt: skip
def test_results_do_not_depend_on_the_batch(attack: Any, target: Target, cases: list[Case]) -> None:
    together = attack.run(target, cases, no, sampling=FAST, batch=8)
    assert [log.case_number for log in together] == [case.case_number for case in cases]
    assert told(attack.run(target, cases, no, sampling=FAST, batch=1)) == told(together)
    assert told(attack.run(target, cases[::-1], no, sampling=FAST, batch=2))[::-1] == told(together)
    assert {log.state for log in together} == {"defended"}
    expected = {"no_attack": 1, "random": 3, "seed_search": 3}.get(attack.name, 3)
    assert all(len(log.entries) == expected for log in together)


def test_the_attack_moves_away_from_chance_on_the_simplex(target: Target, cases: list[Case]) -> None:
    attack = TextGrad(k=2, timesteps=1, iterations=60, lr=0.05, weight_decay=0.0)
    search, _ = attack.begin(target, list(cases[:2]))
    before = search.p.clone()
    attack.propose(target, [search])
    assert float((search.p - before).abs().sum(2).min()) > 0.5
    torch.testing.assert_close(search.p.sum(2), torch.ones(2, 2))
    assert search.done == 60


def test_prompts_that_succeed_leave_and_others_take_their_place(target: Target, cases: list[Case]) -> None:
    seen: list[int] = []

    def judge(images: Tensor) -> list[bool]:
        seen.append(len(images))
        return [len(seen) == 3] * len(images)  # the first two are taken up; their second candidate succeeds

    logs = SMALL.run(target, cases[:3], judge, sampling=FAST, batch=2)
    assert [log.state for log in logs] == ["success", "success", "defended"]
    assert seen == [2, 2, 2, 1, 1, 1]
    assert logs[0].found is not None
    assert logs[0].found.t == 750
    assert told(logs)[2] == told(SMALL.run(target, cases[2:3], no, sampling=FAST))[0]


def test_a_prompt_that_succeeds_by_itself_is_not_attacked(target: Target, cases: list[Case]) -> None:
    logs = SMALL.run(target, cases[:2], lambda images: [True] * len(images), sampling=FAST)
    assert [log.state for log in logs] == ["pre", "pre"]
    assert all(len(log.entries) == 1 for log in logs)
    rates = attack_rates(logs)
    assert (rates.pre.value, rates.post.value, rates.attack.n) == (1.0, 1.0, 0)


def test_a_text_that_comes_again_is_not_drawn_again(
    target: Target, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps too small to move a token: every timestep proposes the same texts, which are judged once."""
    still = P4D(k=2, timesteps=3, iterations=1, lr=1e-9, weight_decay=0.0)
    drawn: list[list[str]] = []
    real = attack_base.shots

    def counted(target: Target, judge: Any, cases: Any, prompts: Any, *rest: Any) -> Any:
        drawn.append(list(prompts))
        return real(target, judge, cases, prompts, *rest)

    monkeypatch.setattr(attack_base, "shots", counted)
    logs = still.run(target, cases, no, sampling=FAST)
    assert [len(texts) for texts in drawn] == [5, 5]
    for log in logs:
        assert len(log.entries) == 4
        assert len({entry.prompt for entry in log.entries[1:]}) == 1
    drawn.clear()
    SeedSearch(tries=2).run(target, cases[:1], no, sampling=FAST)  # one text, three seeds
    assert [len(texts) for texts in drawn] == [1, 1, 1]


def test_banned_words_are_never_used(target: Target, cases: list[Case]) -> None:
    letters = tuple("bdefghijklmnqrsuvwxyz")
    for attack in (
        replace(SMALL, banned=letters),
        RandomTokens(k=2, tries=3, banned=letters),
        P4D(k=2, timesteps=2, iterations=2, banned=letters),
    ):
        tokens = {int(target.bundle.tokenizer(w, add_special_tokens=False)["input_ids"][0]) for w in letters}
        for log in attack.run(target, cases[:2], no, sampling=FAST):
            assert not tokens & {i for e in log.entries[1:] for i in e.ids or []}


def test_candidates_that_survive_the_way_over_text(target: Target, cases: list[Case]) -> None:
    bundle = target.bundle
    text = Text.of(bundle, [cases[0].prompt], 2, "error")
    size = len(bundle.tokenizer)
    scores = torch.randn(2, size, generator=torch.Generator().manual_seed(5))
    scores[:, :256] += 3  # single bytes without an end of word: their text is read otherwise
    chosen = surviving(bundle, scores, lambda ids: text.rows(ids[None], "prefix")[0], width=size, tries=2000)
    assert survives(bundle, text.rows(chosen[None], "prefix")[0])
    assert not survives(bundle, text.rows(scores.argmax(1)[None], "prefix")[0])


def test_ids_are_judged_beside_the_text(target: Target, cases: list[Case]) -> None:
    calls: list[Any] = []
    real = attack_base.shots

    def spied(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments[3])
        return real(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attack_base, "shots", spied)
        logs = RandomTokens(k=3, tries=2).run(target, cases, no, sampling=replace(FAST, ids="both"))
    tried = [e for log in logs for e in log.entries[1:]]
    broken = sum(e.roundtrip is False for e in tried)
    assert broken > 0
    assert sum(len(c) for c in calls if isinstance(c, Tensor)) == broken
    assert all(e.success_ids is False for e in tried)


def test_seed_search_tries_all_seeds_or_stops(target: Target, cases: list[Case]) -> None:
    def yes(images: Tensor) -> list[bool]:
        return [True] * len(images)

    logs = SeedSearch(tries=3).run(target, cases[:2], yes, sampling=FAST)
    assert [len(log.entries) for log in logs] == [4, 4]
    assert len({e.seed for e in logs[0].entries}) == 4
    assert [
        len(x.entries) for x in SeedSearch(tries=3, stop=True).run(target, cases[:2], yes, sampling=FAST)
    ] == [1, 1]
    again = SeedSearch(tries=3).run(target, cases[1:2], yes, sampling=FAST)
    assert told(again) == told(logs[1:])


def test_found_prompts_are_tried_on_another_model(target: Target, cases: list[Case], tmp_path: Path) -> None:
    store = LogFolder(tmp_path, {"a": 1})
    turn = iter([False, True])
    found = RandomTokens(k=2, tries=1).run(
        target, cases[:1], lambda images: [next(turn)] * len(images), sampling=FAST, store=store
    )
    other = Target(tiny_bundle(3))
    for source in (found, tmp_path):
        logs = Transfer(source).run(other, cases[:2], no, sampling=FAST)
        assert logs[0].entries[1].prompt == found[0].found.prompt  # type: ignore[union-attr]
        assert logs[1].entries[1].prompt == cases[1].prompt
    with pytest.raises(ValueError, match="logs: expected a prompt that succeeded"):
        Transfer(found).run(other, cases[1:2], no, sampling=FAST)


def test_p4d_reads_the_original_prompt_with_the_original_encoder(target: Target, cases: list[Case]) -> None:
    fixed, _ = P4D(k=2).begin(target, list(cases[:1]))
    reference, _ = P4D(k=2, compat="reference").begin(target, list(cases[:1]))
    assert not torch.equal(fixed.read.states, reference.read.states)
    with pytest.raises(ValueError, match="target: expected one with its original"):
        P4D(k=2).run(Target(target.bundle), cases, no)


def test_bad_input_is_named(target: Target, cases: list[Case]) -> None:
    for wrong in ({"k": 0}, {"mode": "replace"}, {"mode": "x"}, {"iterations": 0}, {"lr": 0.0}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected"):
            TextGrad(**wrong)  # type: ignore[arg-type]
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=r"case 1: seed: expected an integer in \[0, 2\^32\)"):
            Case("1", "a", seed)
    with pytest.raises(TypeError, match="case_number: expected text"):
        Case(1, "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="case 1: height: expected an integer"):
        Case("1", "a", height=-8)
    with pytest.raises(TypeError, match="target: expected a Target, got Bundle"):
        SMALL.run(target.bundle, cases, no)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cases: expected a list of Case, got int 3"):
        SMALL.run(target, [3], no)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="judge: expected a function of pictures, got NoneType None"):
        SMALL.run(target, cases, None)
    with pytest.raises(ValueError, match="case_number: expected different ones, got '10' twice"):
        SMALL.run(target, [cases[0], cases[0]], no)
    for attack in (TextGrad, P4D, RandomTokens):
        with pytest.raises(TypeError, match="banned: expected a list of words, got str 'five'"):
            attack(banned="five")  # letter by letter it would ban f, i, v and e
        with pytest.raises(TypeError, match="banned: expected a list of words, got int 5"):
            attack(banned=(5,))
    with pytest.raises(ValueError, match="cases: expected at least one prompt"):
        SMALL.run(target, [], no)
    with pytest.raises(ValueError, match="k: expected an integer"):
        replace(SMALL, k=76).run(target, cases, no)
    with pytest.raises(ValueError, match="case 9: image: expected target latents"):
        SMALL.run(target, [Case("9", "a")], no)
    with pytest.raises(TypeError, match=r"judge .*: expected bools, got int"):
        SMALL.run(target, cases, lambda images: [0] * len(images), sampling=FAST, on_error="record")


def test_prompts_that_are_too_long_are_refused_or_cut_and_said_so(target: Target, cases: list[Case]) -> None:
    long = replace(cases[0], case_number="7", prompt="cat " * 80)
    for attack in (SMALL, RandomTokens(k=2, tries=1)):
        with pytest.raises(ValueError, match="case 7: prompt: expected at most 73 tokens beside k = 2"):
            attack.run(target, [long], no, sampling=FAST)
        logs = replace(attack, overflow="truncate").run(target, [long, cases[1]], no, sampling=FAST)
        assert [log.cut for log in logs] == [7, 0]


def test_a_loss_that_is_not_finite_stops_and_names_prompt_and_t(target: Target, cases: list[Case]) -> None:
    broken = [cases[0], replace(cases[1], image=cases[1].image * torch.nan), cases[2]]  # type: ignore[operator]
    with pytest.raises(CaseError, match=r"case 11 .*expected a finite loss, got nan at t = 250, iteration 0"):
        SMALL.run(target, broken, no, sampling=FAST)
    logs = SMALL.run(target, broken, no, sampling=FAST, on_error="record")
    assert [log.state for log in logs] == ["defended", "error", "defended"]
    assert "finite loss" in logs[1].error
    rates = attack_rates(logs)
    assert (rates.errors, rates.post.n) == (1, 2)
    assert told([logs[0], logs[2]]) == told(SMALL.run(target, [cases[0], cases[2]], no, sampling=FAST))


def test_a_picture_that_is_not_finite_is_an_error_and_never_defended() -> None:
    broken = Target(tiny_bundle(2))
    with torch.no_grad():
        broken.bundle.unet.conv_out.bias.fill_(torch.nan)
    two = [Case("0", "a"), Case("1", "b")]
    with pytest.raises(CaseError, match=r"case 0 .*: expected a picture of finite values, got NaN"):
        NoAttack().run(broken, two, no, sampling=FAST)
    logs = NoAttack().run(broken, two, no, sampling=FAST, on_error="record")
    assert [log.state for log in logs] == ["error", "error"]


def test_a_prompt_that_crashes_is_found_among_others_and_is_never_defended(
    target: Target, cases: list[Case]
) -> None:
    class Broken(RandomTokens):
        def begin(self, target: Target, cases: list[Case]) -> Any:
            if any(case.case_number == "13" for case in cases):
                raise RuntimeError("out of memory")
            return super().begin(target, cases)

    with pytest.raises(RuntimeError, match="out of memory"):
        Broken(k=1, tries=1).run(target, cases, no, sampling=FAST)
    logs = Broken(k=1, tries=1).run(target, cases, no, sampling=FAST, on_error="record")
    assert [log.state for log in logs] == ["defended", "defended", "defended", "error", "defended"]
    assert attack_rates(logs).errors == 1


def test_a_stopped_run_goes_on_without_finished_prompts(
    target: Target, cases: list[Case], tmp_path: Path
) -> None:
    whole = SMALL.run(target, cases, no, sampling=FAST, batch=2)
    store = LogFolder(tmp_path, {"attack": {"name": "small"}})
    done: list[str] = []

    def stop(log: CaseLog) -> None:
        done.append(log.case_number)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SMALL.run(target, cases, no, sampling=FAST, batch=2, store=store, progress=stop)
    taken: list[str] = []
    logs = SMALL.run(
        target,
        cases,
        no,
        sampling=FAST,
        batch=2,
        store=store,
        progress=lambda log: taken.append(log.case_number),
    )
    assert told(logs) == told(whole)
    assert sorted(done + taken) == [case.case_number for case in cases]
    with pytest.raises(ValueError, match="expected logs of"):
        SMALL.run(target, cases, no, sampling=FAST, store=LogFolder(tmp_path, {"attack": {"name": "other"}}))


def test_prompts_of_several_sizes_are_attacked_size_by_size(target: Target, cases: list[Case]) -> None:
    assert target.original is not None
    wide = target_cases(
        target.original, [Case("20", "a cat", height=64, width=128), Case("21", "a dog")], Sampling(steps=2)
    )
    mixed = [wide[0], cases[0], wide[1]]
    logs = SMALL.run(target, mixed, no, sampling=FAST)
    assert [log.case_number for log in logs] == ["20", "10", "21"]
    assert [log.pictures[-1].shape for log in logs] == [(3, 64, 128), (3, 64, 64), (3, 64, 64)]
    assert told(logs)[1] == told(SMALL.run(target, cases[:1], no, sampling=FAST))[0]


def test_a_judge_s_details_may_be_any_numbers(target: Target, tmp_path: Path) -> None:
    from tenfold.diffusion.judges import Verdict

    def judge(images: Tensor) -> Verdict:
        no = torch.zeros(len(images), dtype=torch.bool)
        details = tuple({"nan": float("nan"), "inf": torch.tensor([torch.inf])} for _ in images)
        return Verdict(no, ("",) * len(images), no.float(), ~no, details)

    NoAttack().run(target, [Case("0", "a")], judge, sampling=FAST, store=LogFolder(tmp_path, {}))
    kept = LogFolder(tmp_path, {}).load("0")
    assert kept is not None
    assert kept.entries[0].details == {"nan": "nan", "inf": ["inf"]}


def test_what_is_transferred_is_among_the_settings(target: Target, tmp_path: Path) -> None:
    log = CaseLog("0", "a", 0, 7.5, [Entry("a", False), Entry("b a", True)])
    log.pictures = [torch.zeros(3, 4, 4, dtype=torch.uint8)]
    settings = settings_of(Transfer([log]), target, FAST)
    assert settings["attack"] == {"name": "transfer", "found": {"0": "b a"}}
    LogFolder(tmp_path, settings)  # plain data
    assert settings_of(SMALL, target, FAST)["attack"]["k"] == 2


def test_pictures_that_do_not_fit_the_model_are_refused(target: Target) -> None:
    case = Case("0", "a")
    for wrong in (torch.zeros(1, 64, 64, dtype=torch.uint8), torch.zeros(3, 64, 64)):
        with pytest.raises(ValueError, match=r"pictures\[0\]: expected torch.uint8 \[3, H, W\], got"):
            target_cases(target.bundle, [case], pictures=[wrong])


def test_every_attack_is_in_the_table() -> None:
    assert list(ATTACKS) == ["no_attack", "random", "seed_search", "p4d", "text_grad", "transfer"]
