"""Figures of the evaluation on numbers worked out by hand, and against the usual packages."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tenfold.llm.unlearn.evaluate import truth
from tenfold.llm.unlearn.evaluate.bleu import sentence_bleu, tokens_13a
from tenfold.llm.unlearn.evaluate.gibberish import repetition
from tenfold.llm.unlearn.evaluate.memorisation import exact_memorisation, extraction_strength
from tenfold.llm.unlearn.evaluate.mia import (
    membership,
    min_k,
    min_k_plus_plus,
    privleak,
    soul_membership,
    standardised,
)
from tenfold.llm.unlearn.evaluate.porter import stem
from tenfold.llm.unlearn.evaluate.rouge import lcs, rouge_l, words
from tenfold.llm.unlearn.evaluate.scores import TokenScores, perplexity
from tenfold.llm.unlearn.evaluate.statistics import _log_share_outside, auc, harmonic_mean, ks_2samp
from tenfold.ops import linear_logprob

NONE = torch.empty(0, dtype=torch.float64)


def scores(*logp: float, ends: bool = False) -> TokenScores:
    values = torch.tensor(logp, dtype=torch.float64)
    return TokenScores(values, values > -1, NONE, NONE, ends)


# -- truth ratio, forget quality, utility --------------------------------------------------------------------

PARA = [0.5, 1.0, 2.0]
WRONG = [[1.0, 1.5], [0.5, 1.0], [3.0, 2.0]]


def test_truth_ratio_of_tofu_and_of_soul() -> None:
    ratios = [truth.truth_ratio(a, w) for a, w in zip(PARA, WRONG, strict=True)]
    assert ratios == pytest.approx([0.47236655, 1.28402542, 0.60653066], abs=1e-8)
    assert truth.truth_ratio_forget(ratios) == pytest.approx(0.6192326650, abs=1e-9)
    assert truth.truth_ratio_retain(ratios) == pytest.approx(0.3070342627, abs=1e-9)
    soul = [truth.soul_truth_ratio(a, w) for a, w in zip(PARA, WRONG, strict=True)]
    assert soul == pytest.approx([0.48720505, 1.32436064, 0.68393972], abs=1e-8)
    margin = [1 / (1 + r) for r in ratios]
    assert truth.truth_ratio_margin(PARA, WRONG) == pytest.approx(sum(margin) / 3, abs=1e-8)


def test_probabilities() -> None:
    assert truth.probability(0.7) == math.exp(-0.7)
    p = [math.exp(-a) for a in (0.5, 1.0, 2.0)]
    assert truth.choice_probability(0.5, [1.0, 2.0]) == pytest.approx(p[0] / sum(p), abs=1e-9)
    assert truth.truth_ratio(800.0, [0.0]) == pytest.approx(1e10)  # the right answer's p underflows


def test_utility_is_a_harmonic_mean() -> None:
    group = {"prob": 0.5, "rougeL_recall": 1.0, "truth_ratio": 0.25}
    utility, parts = truth.model_utility({"retain": group, "world_facts": group})
    assert utility == pytest.approx(6 / (2 * (2 + 1 + 4)))
    assert parts == 6
    assert truth.model_utility({"retain": group | {"prob": 0.0}})[0] == 0.0
    with pytest.raises(ValueError, match="values: expected numbers >= 0"):
        harmonic_mean([])


# -- statistics ----------------------------------------------------------------------------------------------


def test_two_samples_whose_p_value_is_known() -> None:
    found = ks_2samp([i / 40 for i in range(40)], [i / 40 + 0.2 for i in range(40)])
    assert found.statistic == pytest.approx(0.225, abs=1e-12)
    assert found.pvalue == pytest.approx(0.2656871403, abs=1e-10)
    assert found.log10_pvalue == pytest.approx(math.log10(found.pvalue))


def test_p_values_of_samples_far_apart() -> None:
    """All 400 below all 400: two of C(800, 400) orders are as extreme. 2000 each underflow as a float."""
    found = ks_2samp(range(400), range(1000, 1400))
    assert found.pvalue == pytest.approx(2 / math.comb(800, 400), rel=1e-12)
    small = ks_2samp(range(2000), range(5000, 7000))
    assert small.pvalue == 0.0
    expected = (math.log(2) - math.log(math.comb(4000, 2000))) / math.log(10)
    assert small.log10_pvalue == pytest.approx(expected, rel=1e-10)
    assert math.exp(_log_share_outside(40, 40, 9)) == pytest.approx(0.2656871403, abs=1e-9)


def test_by_counting_every_order() -> None:
    """3 and 2 values: of the ten ways of merging them, six reach a distance of 2/3."""
    found = ks_2samp([1, 2, 4], [3, 5])
    assert found.statistic == pytest.approx(2 / 3)
    assert found.pvalue == pytest.approx(0.6)
    assert ks_2samp([1, 2], [1, 2]) == (0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="second: expected numbers, got an empty sample"):
        ks_2samp([1.0], [])
    with pytest.raises(ValueError, match="first: expected numbers, got a NaN"):
        ks_2samp([math.nan], [1.0])


def test_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for i in range(60):
        m, n = generator.integers(1, 70, 2)
        a, b = generator.normal(size=m), generator.normal((i % 3) * 0.7, 1, size=n)
        if i % 4 == 0:
            a, b = a.round(1), b.round(1)  # ties
        theirs, ours = stats.ks_2samp(a, b), ks_2samp(a, b)
        assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-14)
        assert ours.pvalue == pytest.approx(theirs.pvalue, rel=1e-9)


def test_large_samples_use_the_limit() -> None:
    """Kolmogorov's limit: at a distance of x / sqrt(n/2), x = 1.3581, the p-value is 0.05."""
    n = 40_000
    shift = round(1.3581 / math.sqrt(n / 2) * n)
    assert ks_2samp(range(n), range(shift, n + shift)).pvalue == pytest.approx(0.05, rel=0.01)


def test_auc_counts_ties_half() -> None:
    assert auc([3, 2], [1, 2]) == (2 + 1.5) / 4
    assert auc([1], [2]) == 0.0
    assert auc([5, 5], [5]) == 0.5


# -- ROUGE-L and BLEU ----------------------------------------------------------------------------------------

STEMS = {
    "caresses": "caress",
    "ponies": "poni", "dies": "die", "cats": "cat", "agreed": "agre", "plastered": "plaster",
    "motoring": "motor", "conflated": "conflat", "sized": "size", "hopping": "hop", "falling": "fall",
    "filing": "file", "happy": "happi", "enjoy": "enjoy", "relational": "relat", "rationally": "ration",
    "vietnamization": "vietnam", "triplicate": "triplic", "formalize": "formal", "hopefulness": "hope",
    "revival": "reviv", "adoption": "adopt", "controlling": "control", "probate": "probat", "skies": "sky",
    "news": "news", "tied": "tie", "geology": "geolog", "by": "by",
}  # fmt: skip


def test_stems() -> None:
    """Stems that NLTK's stemmer gives."""
    assert {word: stem(word) for word in STEMS} == STEMS


def test_rouge_l_by_hand() -> None:
    found = rouge_l("The cats were running home.", "a cat runs HOME")
    assert words("The cats were running, 12-3!") == ["the", "cat", "were", "run", "12", "3"]
    assert found.recall == 3 / 5
    assert found.precision == 3 / 4
    assert found.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert rouge_l("", "a") == rouge_l("a", "...") == rouge_l("a b", "c") == (0.0, 0.0, 0.0)
    assert rouge_l("runs", "running", stemmed=False).recall == 0.0


def slow_lcs(a: list[int], b: list[int]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_common_subsequences() -> None:
    generator = random.Random(0)
    for _ in range(200):
        a, b = ([generator.randrange(6) for _ in range(generator.randrange(90))] for _ in "ab")
        assert lcs(a, b) == slow_lcs(a, b)


def sentences() -> list[tuple[str, str]]:
    generator = random.Random(1)
    some = [*STEMS, "the", "The", ",", "U.S.", "3-4", "12,3", '"x"', "&amp;", "don't", "é", "end."]
    pairs = []
    for _ in range(60):
        a = [generator.choice(some) for _ in range(generator.randrange(1, 40))]
        b = [word if generator.random() < 0.7 else generator.choice(some) for word in a]
        pairs.append((" ".join(a), " ".join(b[: generator.randrange(1, len(b) + 1)])))
    return pairs


def test_against_rouge_score() -> None:
    package = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = package.RougeScorer(["rougeL"], use_stemmer=True)
    for target, prediction in sentences():
        theirs, ours = scorer.score(target, prediction)["rougeL"], rouge_l(target, prediction)
        assert (theirs.precision, theirs.recall, theirs.fmeasure) == pytest.approx(tuple(ours), abs=1e-15)


def test_bleu_by_hand() -> None:
    """Four words of six: precisions 1, brevity exp(1 - 6/4)."""
    assert sentence_bleu("the cat sat on a mat", "the cat sat on") == pytest.approx(100 * math.exp(-0.5))
    split = ["It's", "3.5", ",", "in", "the", "U", ".", "S", ".", "-style", "!"]
    assert tokens_13a("It's 3.5, in the U.S.-style!") == split
    # one of two trigrams, no four-gram of one: halved once
    expected = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert sentence_bleu("a b c x", "a b c d") == pytest.approx(expected)
    assert sentence_bleu("a b c d", "") == sentence_bleu("a b c d", "w x y z") == 0.0


def test_against_sacrebleu() -> None:
    package = pytest.importorskip("sacrebleu")
    for target, prediction in sentences():
        theirs = package.corpus_bleu([prediction], [[target]]).score
        assert sentence_bleu(target, prediction) == pytest.approx(theirs, abs=1e-9)


# -- memorisation --------------------------------------------------------------------------------------------


def test_extraction_strength_of_flags() -> None:
    assert extraction_strength([False, True, True, True]) == 0.75
    assert extraction_strength([True] * 4) == 1.0
    assert extraction_strength([True, True, True, False]) == 0.0
    assert extraction_strength([True, True, True, False], floor=True) == 0.25
    assert extraction_strength([True, False, True, True], floor=True) == 0.5
    assert extraction_strength([]) == exact_memorisation([]) == 0.0
    assert exact_memorisation([True, False, True, True]) == 0.75


def test_extraction_strength_of_a_bigram_model() -> None:
    """A model that knows which of five letters follows which: texts that it cannot finish score 0, and 1/n
    with the loop that ends one short."""
    follows = {"a": "b", "b": "c", "c": "d", "d": "e", "e": "a"}
    texts = ["xabcd", "abcdx", "acacacabcd", "edcba", "abab"]
    flags = [[follows.get(x) == y for x, y in pairwise(t)] for t in texts]
    exact = [extraction_strength(row) for row in flags]
    assert exact == pytest.approx([3 / 4, 0, 4 / 9 - 1 / 9, 0, 1 / 3])
    floored = [extraction_strength(row, floor=True) for row in flags]
    assert floored == pytest.approx([3 / 4, 1 / 4, 1 / 3, 1 / 4, 1 / 3])


def test_repetition() -> None:
    assert repetition([7] * 12) == pytest.approx(0.9)
    assert repetition(list(range(12))) == 0.0
    assert repetition([1, 2]) == 0.0


# -- membership ----------------------------------------------------------------------------------------------


def test_moments_of_a_row() -> None:
    """Logits 1, 2, 0, -1: standardised log-probability of token 1."""
    weight = torch.tensor([[1.0], [2.0], [0.0], [-1.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    out = linear_logprob(one, weight, torch.tensor([1]), want=("logp", "lse", "mean_logp", "mean_logp2"))
    mean, variance = out.mean_logp.double(), (out.mean_logp2 - out.mean_logp**2).double()
    assert float(out.lse) == pytest.approx(2.4401896986, abs=1e-6)
    assert float(mean) == pytest.approx(-0.9475369640, abs=1e-6)
    assert float(variance) == pytest.approx(0.6165862749, abs=1e-6)
    row = TokenScores(out.logp.double(), out.logp > 0, mean, variance, False)
    assert float(standardised(row)) == pytest.approx(0.6461128781, abs=1e-6)
    assert min_k_plus_plus(row) == pytest.approx(-0.6461128781, abs=1e-6)


def test_a_variance_of_zero_is_floored() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    row = TokenScores(torch.tensor([-0.5, 0.0], dtype=torch.float64), zero > 0, zero, zero, False)
    assert standardised(row).tolist() == pytest.approx([-500.0, 0.0])
    with pytest.raises(ValueError, match="scores: expected moments=True"):
        min_k_plus_plus(scores(-1.0))


def test_the_least_likely_tokens() -> None:
    row = scores(-1.0, -4.0, -2.0, -3.0, -0.5)
    assert min_k(row, 0.4) == 3.5
    assert min_k(row, 0.1) == 4.0  # at least one
    assert min_k(row, 1.0) == pytest.approx(2.1)


def test_membership() -> None:
    remembered = [scores(-0.1, -0.2, -9.0, ends=True) for _ in range(3)]
    unseen = [scores(-2.0, -3.0, -0.1, ends=True) for _ in range(4)]
    found = membership(remembered, unseen, texts=(["a" * 40] * 3, ["b" * 40] * 4))
    assert found == {"loss": 1.0, "min_k": 1.0, "zlib": 1.0}  # the end-of-text token would turn it round
    assert membership(unseen, remembered)["loss"] == 0.0
    assert membership(unseen, unseen)["loss"] == 0.5
    other = ([scores(-0.1, -0.2, 0.0, ends=True)] * 3, [scores(-9.0, -9.0, 0.0, ends=True)] * 4)
    assert membership(remembered, unseen, reference=other)["reference"] == 0.0
    assert membership(remembered, unseen, norms=([1.0] * 3, [2.0] * 4))["gradnorm"] == 1.0
    with pytest.raises(ValueError, match="holdout: expected at least one row with tokens, got none"):
        membership(remembered, [scores(-1.0, ends=True)])


def test_souls_figure_is_the_other_way_round() -> None:
    forget, others = [scores(-0.1, -0.2), scores(-0.3, -0.1)], [scores(-5.0, -0.1), scores(-0.15, -0.15)]
    ours = membership(forget, others, k=0.5)["min_k"]
    assert soul_membership(forget, others, shares=[0.5])["min_50"] == pytest.approx(1 - ours)
    assert 0 < ours < 1


def test_privleak() -> None:
    assert privleak(0.5) == pytest.approx(0.0, abs=1e-7)
    assert privleak(1.0) == pytest.approx(-100.0)
    assert privleak(0.0) == pytest.approx(100.0)
    assert privleak(0.7, 0.6) == pytest.approx(-25.0)


def test_perplexity() -> None:
    rows: list[Any] = [scores(math.log(0.5), math.log(0.125)), scores(math.log(0.25))]
    assert perplexity(rows) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="scores: expected at least one row"):
        perplexity([])
