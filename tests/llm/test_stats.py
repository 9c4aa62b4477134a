from __future__ import annotations

import numpy as np
import pytest

from tenfold.llm import stats


def test_wilson_against_known_values() -> None:
    # R: prop.test(81, 263, correct = FALSE); Newcombe 1998, table I
    assert stats.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert stats.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert stats.wilson(20, 20)[1] == 1.0


def test_bootstrap_agrees_with_wilson_for_a_proportion() -> None:
    values = np.r_[np.ones(385), np.zeros(115)]
    assert stats.bootstrap_mean(values) == pytest.approx(stats.wilson(385, 500), abs=0.005)


def test_a_constant_has_no_interval() -> None:
    assert stats.bootstrap_mean(np.full(30, 0.25)) == (0.25, 0.25)


def test_bad_counts() -> None:
    with pytest.raises(ValueError, match="got 5 of 4"):
        stats.wilson(5, 4)
    with pytest.raises(ValueError, match="values"):
        stats.bootstrap_mean(np.array([]))
