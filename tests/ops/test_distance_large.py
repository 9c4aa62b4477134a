"""A million rows of 512 float16 numbers in a memory-mapped file: results, and memory that is no file's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.ops import kcenter_greedy, kmeans, nn_assign

ROWS, WIDTH, BLOCK = 1_000_000, 512, 20_000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mapped(tmp_path_factory) -> Iterator[np.memmap]:
    """50 clusters of 20,000 rows, 1 GB; the file goes with the module."""
    path = tmp_path_factory.mktemp("large") / "x.npy"
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(ROWS, WIDTH))
    random = np.random.default_rng(0)
    noise = random.standard_normal((BLOCK, WIDTH), dtype=np.float32)
    for first in range(0, ROWS, BLOCK):
        x[first : first + BLOCK] = noise + 2 * random.standard_normal(WIDTH, dtype=np.float32)
    x.flush()
    del x
    yield np.load(path, mmap_mode="r")
    path.unlink()


def anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@contextmanager
def anonymous_peak(request: pytest.FixtureRequest, most_mib: float) -> Iterator[None]:
    """Fails when more than `most_mib` of memory that is no file's is added at any time; looks every 2 ms."""
    try:
        before = anonymous_kib()
    except OSError:
        pytest.skip("this system does not tell a process its memory")
    ended, peak = threading.Event(), [before]

    def watch() -> None:
        while not ended.wait(0.002):
            peak[0] = max(peak[0], anonymous_kib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.process_time()
    try:
        yield
    finally:
        took = time.process_time() - begun
        ended.set()
        watcher.join()
    added = (peak[0] - before) / 1024
    print(f"{request.node.name}: {added:.1f} MiB, {took:.1f} s of processor time")
    assert added < most_mib


def exact(x: np.ndarray, rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Squared distances of some rows in float64."""
    some = x[rows].astype(np.float64)
    return np.stack([((some - c) ** 2).sum(1) for c in centers.astype(np.float64)], 1)


SOME = np.random.default_rng(1).choice(ROWS, 500, replace=False)


def test_kcenter(mapped, request, set_threads: Callable[[int], None]):
    set_threads(1)
    with anonymous_peak(request, 40 * ROWS / 2**20 + 32):
        found = kcenter_greedy(mapped, 100, init=3)
    far = exact(mapped, SOME, mapped[found.indices])
    np.testing.assert_allclose(found.min_distance[SOME] ** 2, far.min(1), rtol=1e-6)
    assert (found.owner[SOME] == found.indices[far.argmin(1)]).all()
    assert (np.diff(found.radius) <= 0).all()
    assert found.radius[-1] == found.min_distance.max()
    for t in (1, 7, 60):  # no row is farther than the one that was picked
        nearest = far[:, :t].min(1)
        own = exact(mapped, found.indices[t : t + 1], mapped[found.indices[:t]]).min()
        assert own >= nearest.max() * (1 - 1e-6)
        assert found.radius[t - 1] ** 2 == pytest.approx(own, rel=1e-6)
    assert len(set((found.indices[:50] // BLOCK).tolist())) == 50  # one of each cluster comes first
    set_threads(2)
    again = kcenter_greedy(mapped, 100, init=3)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


def test_nearest(mapped, request, set_threads: Callable[[int], None]):
    set_threads(1)
    centers = torch.from_numpy(mapped[:: ROWS // 200].astype(np.float32))
    with anonymous_peak(request, 48):
        found = nn_assign(mapped, centers, 3)
    far = exact(mapped, SOME, centers.numpy())
    assert (found.indices[SOME] == far.argsort(1, kind="stable")[:, :3]).all()
    np.testing.assert_allclose(found.distances_squared[SOME], np.sort(far, 1)[:, :3], rtol=1e-6)


def test_kmeans(mapped, request, set_threads: Callable[[int], None]):
    set_threads(1)
    with anonymous_peak(request, 200):
        found = kmeans(mapped, 50, iterations=2, seed=5)
    assert found.iterations in (1, 2)
    assert int(found.counts.sum()) == ROWS
    far = exact(mapped, SOME, found.centers)
    assert (found.labels[SOME] == far.argmin(1)).all()
    init = mapped[5 :: ROWS // 50].astype(np.float32)
    before = nn_assign(mapped, init).indices[:, 0]
    once = kmeans(mapped, 50, init=init, iterations=1)
    for cluster in (0, 31):
        own = mapped[before == cluster].mean(0, dtype=np.float64)
        np.testing.assert_allclose(once.centers[cluster], own, rtol=1e-5, atol=1e-6)


def test_a_row_that_is_not_finite_is_named(mapped):
    pieces = [mapped[:600_000], np.array(mapped[600_000:600_050]), mapped[600_050:]]
    pieces[1][17, 3] = np.nan
    for call in (
        lambda: kcenter_greedy(pieces, 10),
        lambda: nn_assign(pieces, mapped[:5]),
        lambda: kmeans(pieces, 5, init=mapped[:5].astype(np.float32)),
    ):
        with pytest.raises(ValueError, match="x: expected finite values, got nan in row 600017"):
            call()
