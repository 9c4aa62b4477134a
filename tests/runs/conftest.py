from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tenfold import runs


@dataclass
class Settings:
    seed: int = 7
    rate: float = 1e-6
    names: tuple[str, ...] = ("a", "b")
    where: Path = field(default_factory=lambda: Path("data"))


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
def folder(tmp_path: Path, settings: Settings) -> runs.RunFolder:
    return runs.RunFolder.create("toy", settings, tmp_path / "run")


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures folder of a run with one figure, drawn once."""
    folder = runs.RunFolder.create("toy", Settings(), tmp_path_factory.mktemp("drawn"))
    with runs.style():
        fig, ax = runs.figure(3, 2)
        ax.plot([0, 1, 2], [3, 1, 2])
    folder.write_figure("curve", fig, caption="It `falls` & rises.", alt="A line that falls, then rises.")
    return folder.path / "figures"


@pytest.fixture
def drawn(folder: runs.RunFolder, figures: Path) -> runs.RunFolder:
    """A folder with one figure and one table."""
    shutil.copytree(figures, folder.path / "figures")
    folder.write_table("rows", [{"text": "<b>bold</b>", "value": 0.123456}, {"text": "two", "value": 2}])
    return folder


@pytest.fixture
def report() -> runs.Report:
    return runs.Report(
        title="A toy run",
        lead="Nothing was <learned>.",
        headlines=[runs.Headline("Accuracy", "77.0 %", "50 % before"), runs.Headline("Steps", 1234567)],
        sections=[runs.Section("What happened", "First.\n\n- one\n- two", ["curve"], ["rows"])],
        claims=[runs.Claim("It works.", "It did.", "Table 1")],
        measured="By a clock.",
    )
