"""The cases of families overlap and surface: their ids, and that tiny builds of all of them run and agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tenfold.benchmarks import overlap, surface, ts512
from tenfold.benchmarks.harness import Case

pytestmark = pytest.mark.filterwarnings("ignore")

CASES: dict[str, Case] = {case.id: case for case in [*overlap.cases(), *surface.cases()]}


@pytest.fixture(autouse=True)
def seeded(monkeypatch):
    monkeypatch.delenv(ts512.VARIABLE, raising=False)
    ts512.volumes.cache_clear()
    yield
    ts512.volumes.cache_clear()


def test_ids_that_others_read():
    assert {"overlap.counts.u8.ts512", "surface.all.u8.ts512"} <= set(CASES)


@pytest.mark.parametrize("case_id", CASES)
def test_tiny_builds_run_and_every_side_agrees(case_id):
    workload = CASES[case_id].build(torch.device("cpu"), True)
    ours = workload.keep(workload.ours.run())
    for side in workload.others:
        if side.prepare is not None and side.prepare() is not None:
            continue
        result = side.agree(ours, workload.keep(side.run()))
        assert result.agrees, (side.name, result)


def test_the_substitute_is_of_the_same_size_and_says_what_it_is():
    target, pred, note = ts512.volumes()
    assert target.shape == pred.shape == ts512.SHAPE
    assert len(np.unique(target)) == ts512.STRUCTURES + 1
    assert "no real volume given" in note
    assert np.array_equal(pred[5, 7, 100:110], target[5, 5, 103:113])


def test_label_files_are_read():
    header = bytearray(352)
    header[40:56] = np.array([3, 4, 3, 2, 1, 1, 1, 1], "<i2").tobytes()
    header[70:72] = np.array([4], "<i2").tobytes()
    header[108:112] = np.array([352], "<f4").tobytes()
    voxels = np.arange(24, dtype="<i2")
    assert np.array_equal(
        ts512.read_nifti_labels(bytes(header) + voxels.tobytes()), voxels.reshape(2, 3, 4).astype(np.uint8)
    )
