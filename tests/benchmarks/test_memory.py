"""Peak extra memory, in this process and in a child."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tenfold.benchmarks.harness import Plan
from tenfold.benchmarks.memory import measure_in_children, peak_extra

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@linux
def test_peak_counts_memory_that_is_freed_again() -> None:
    def run() -> None:
        torch.ones(48 << 18)  # 48 MiB, gone at once

    assert 46 < peak_extra(run)["peak_extra_mib"] < 56


@linux
def test_peak_of_nothing_is_nothing() -> None:
    assert peak_extra(lambda: None)["peak_extra_mib"] < 4


@linux
def test_children_measure_each_side() -> None:
    found = measure_in_children("zo.perturb.gaussian.f32.n1e6", ["mezo"], Plan())
    # z, its product with eps and the new weights: two to three times 3.8 MiB
    assert found["mezo"]["peak_extra_mib"] > 6


def test_a_child_that_fails_says_why() -> None:
    found: dict[str, dict[str, Any]] = measure_in_children("zo.perturb.gaussian.f32.n1e4", ["nobody"], Plan())
    assert found["nobody"]["peak_extra_mib"] is None
    assert "nobody" in found["nobody"]["peak_method"]
