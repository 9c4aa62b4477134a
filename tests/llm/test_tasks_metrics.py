"""Predictions and figures."""

from __future__ import annotations

import pytest

from tenfold.llm.tasks import Example, evaluate, exact_match, first_line, normalize_answer, predict, token_f1


def test_the_option_with_the_best_mean_wins() -> None:
    # two options of 1 and 4 tokens: means -2 and -1; sums would choose the first
    assert predict([-2.0, -4.0], [1, 4], [2]) == [1]
    assert predict([-1.0, -4.1, -3.0, -2.0, -9.0], [1, 4, 1, 1, 9], [2, 3]) == [0, 2]
    assert predict([-1.0, -1.0], [1, 1], [2]) == [0]  # the first of equals
    assert predict([], [], []) == []


def test_calibration_takes_sums_and_subtracts_the_domain() -> None:
    # by means the first wins (-1 > -1.5); calibrated: -1 - (-0.5) = -0.5 < -3 - (-6) = 3
    assert predict([-1.0, -3.0], [1, 2], [2]) == [0]
    assert predict([-1.0, -3.0], [1, 2], [2], domain_sums=[-0.5, -6.0]) == [1]


def test_predict_errors() -> None:
    with pytest.raises(ValueError, match="sums: expected 2 entries"):
        predict([-1.0], [1, 1], [2])
    with pytest.raises(ValueError, match="domain_sums: expected 2 entries"):
        predict([-1.0, -1.0], [1, 1], [2], domain_sums=[1.0])
    with pytest.raises(ValueError, match="option_len: expected at least 1, got 0"):
        predict([-1.0, -1.0], [1, 0], [2])
    with pytest.raises(ValueError, match="sums: expected numbers, got NaN"):
        predict([float("nan"), -1.0], [1, 1], [2])
    with pytest.raises(ValueError, match="num_options: expected at least 1, got 0"):
        predict([-1.0], [1], [1, 0])


def choice(label: int, answers: list[str] | None = None) -> Example:
    return Example("prompt", [" a", " b", " c"], label, answers or [], "")


def test_accuracy() -> None:
    examples = [choice(0), choice(1), choice(2), choice(2)]
    assert evaluate("cb", [0, 1, 2, 0], examples) == {"accuracy": 0.75}
    assert evaluate("record", [2, 1], [choice(0, [" a", " c"]), choice(0, [" a", " c"])]) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="predictions: expected 0 to 2, got 3"):
        evaluate("cb", [3], examples[:1])
    with pytest.raises(ValueError, match="expected one for each of 4 > 0 examples, got 1"):
        evaluate("cb", [0], examples)
    with pytest.raises(ValueError, match="expected one for each of 0 > 0 examples, got 0"):
        evaluate("cb", [], [])


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The  Mill!", "mill"),
        ("a man, a plan", "man plan"),
        ("an-other", "another"),
        ("Theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("the", ""),
        ("don't", "dont"),
    ],
)
def test_normalised_answers(answer: str, normal: str) -> None:
    assert normalize_answer(answer) == normal


def test_exact_match_and_f1_take_the_best_gold_answer() -> None:
    assert exact_match("The mill.", ["a barn", "mill"]) == 1.0
    assert exact_match("old mill", ["mill"]) == 0.0
    assert token_f1("the old mill", ["mill"]) == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert token_f1("old mill", ["mill", "old mill town"]) == pytest.approx(0.8)
    assert token_f1("mill mill", ["mill"]) == pytest.approx(2 / 3)  # a word counts as often as both have it
    assert token_f1("barn", ["mill"]) == 0.0
    assert token_f1("", ["mill"]) == 0.0


def test_generated_texts_end_at_the_newline() -> None:
    assert first_line(" 1801 \nQuestion: when") == "1801"
    assert first_line("1801") == "1801"
    assert first_line("\n1801") == ""
    example = Example("Answer:", [" 1801\n"], 0, ["1801", "in 1801"], None)
    assert evaluate("squad", [" 1801\nmore words", "in the year 1801"], [example] * 2) == {
        "f1": pytest.approx((1 + 0.8) / 2),
        "em": 0.5,
    }
    with pytest.raises(TypeError, match="predictions: expected texts, got int"):
        evaluate("drop", [0], [example])
