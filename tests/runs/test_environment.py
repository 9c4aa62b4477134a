from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tenfold.runs import environment


def test_capture_is_json_and_names_the_machine() -> None:
    found = environment.capture(seed=3)
    json.dumps(found, allow_nan=False)
    assert found["seed"] == 3
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert found["cpu"]["model"]
    assert 1 <= found["cpu"]["usable"] <= found["cpu"]["cores"]


def test_versions_lists_only_what_is_installed() -> None:
    assert environment.versions(("numpy", "no-such-package-here")).keys() == {"numpy"}


def test_thread_variables_show_only_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("TENFOLD_ISA", raising=False)
    found = environment.thread_variables()
    assert found["OMP_NUM_THREADS"] == "3"
    assert "TENFOLD_ISA" not in found


def test_peak_memory_grows_with_an_allocation() -> None:
    before = environment.peak_rss_mib()
    block = torch.ones(int((before + 64) * 2**20 / 4))  # larger than everything so far
    assert environment.peak_rss_mib() >= before + 60
    del block


def test_peak_memory_is_not_that_of_a_larger_parent() -> None:
    block = torch.ones(300 * 2**18)
    code = "from tenfold.runs.environment import peak_rss_mib; print(peak_rss_mib())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < block.nbytes / 2**20


def test_source_revision_is_that_of_this_tree_or_none() -> None:
    found = environment.source_revision()
    head = environment.output("git", "-C", str(Path(environment.__file__).parent), "rev-parse", "HEAD")
    if found is None:  # an installed package
        assert "site-packages" in environment.__file__ or head is None
    else:
        assert found["commit"] == head
        assert isinstance(found["modified"], bool)


def test_output_of_what_is_missing_or_fails() -> None:
    assert environment.output("no-such-program-here") is None
    assert environment.output(sys.executable, "-c", "raise SystemExit(3)") is None
    assert environment.output(sys.executable, "-c", "print(' hello ')") == "hello"
