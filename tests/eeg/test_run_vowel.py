"""The embedded vowels: what adaptation brings, under the training that the default uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.eeg.run import adapt
from tenfold.eeg.run_config import MsdcdaConfig


@pytest.mark.demo
@pytest.mark.slow
def test_aligning_domains_helps_on_people_never_seen(tmp_path: Path) -> None:
    """DAN is at least five points above source-only, with the same head, rows and steps; nobody collapses."""
    config = MsdcdaConfig(methods=["source-only", "dan"], targets=[1, 5, 9, 12], seeds=[0], embedding="none")
    found = adapt(config, tmp_path / "a").metrics
    assert found["dan.gain"] >= 0.05
    assert found["source-only.source_accuracy"] > 0.9
    assert found["source-only.collapsed"] == found["dan.collapsed"] == 0
