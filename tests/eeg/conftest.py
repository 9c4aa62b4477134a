"""Simulated files of every layout, written once, and copies of them that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tenfold.eeg import Corpus, Domain
from tenfold.eeg.simulate import simulate

SUBJECTS = {"seed": 2, "seed-iv": 1, "seed-v": 11, "deap": 2, "faced": 2}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """Folders of a simulated set, written once."""
    done: dict[str, dict[str, Path]] = {}

    def write(name: str) -> dict[str, Path]:
        if name not in done:
            seconds = 8.0 if name in ("seed-iv", "seed-v") else 4.0
            top = tmp_path_factory.mktemp(name) / "data"
            done[name] = simulate(name, top, subjects=SUBJECTS[name], seconds=seconds)
        return done[name]

    return write


@pytest.fixture
def copy(written: Callable[[str], dict[str, Path]], tmp_path: Path) -> Callable[[str, str], Path]:
    """A folder of a simulated set that a test may spoil."""

    def make(name: str, kind: str) -> Path:
        return Path(shutil.copytree(written(name)[kind], tmp_path / "copy"))

    return make


@pytest.fixture(scope="session")
def labels() -> Callable[[Corpus, str], list[int]]:
    """Classes of a domain's trials, which must be numbered from 1, in order, with one class each."""

    def read(corpus: Corpus, domain: str) -> list[int]:
        found = corpus[domain]
        assert found.y is not None
        pairs = dict.fromkeys(zip(found.trial.tolist(), found.y.tolist(), strict=True))
        assert [trial for trial, _ in pairs] == list(range(1, len(pairs) + 1))
        return [label for _, label in pairs]

    return read


@pytest.fixture(scope="session")
def toy() -> Callable[..., Corpus]:
    """A small transfer problem: Gaussian classes, a shift and a scale per domain. For mechanics only."""

    def make(
        domains: int = 4, rows: int = 36, width: int = 6, seed: int = 0, channels: tuple[str, ...] = ()
    ) -> Corpus:
        draw = torch.Generator().manual_seed(seed)
        centres = 2.5 * torch.randn(3, width, generator=draw)
        made = []
        for k in range(domains):
            y = torch.arange(rows) % 3
            x = centres[y] + torch.randn(rows, width, generator=draw)
            x = x * (0.5 + torch.rand(width, generator=draw)) + torch.randn(width, generator=draw)
            made.append(Domain(f"person {k}", x, y, y.clone()))
        bands = tuple(f"band {b}" for b in range(width // len(channels))) if channels else ()
        return Corpus("toy", tuple(made), ("a", "b", "c"), channels, bands)

    return make
