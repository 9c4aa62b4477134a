"""Pictures small enough for a training of seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ and test/: smooth coloured waves, for mechanics only."""
    image = pytest.importorskip("PIL.Image")
    top = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:80, :96] / 16
    for part, count in (("train", 3), ("test", 2)):
        (top / part).mkdir()
        for i in range(count):
            a, b, c = draw.uniform(0.3, 2, (3, 3))
            wave = np.sin(x[..., None] * a + y[..., None] * b + 3 * c)
            image.fromarray((127.5 * (1 + wave)).astype(np.uint8)).save(top / part / f"{i}.png")
    return top
