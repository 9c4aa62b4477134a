"""Real label volumes: two models on one CT, and the volume of the benchmarks.

Known values were computed with surface-distance 0.1. The volumes come from TotalSegmentator's source archive,
which the environment variable TENFOLD_TOTALSEGMENTATOR names (benchmarks/ts512.py); without it, skipped.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from tenfold.benchmarks import ts512

from tenfold import metrics
from tenfold.ops import surface_metrics

PLACE = os.environ.get(ts512.VARIABLE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PLACE, reason=f"{ts512.VARIABLE} does not name TotalSegmentator's archive"),
]


@pytest.fixture(scope="module")
def pair():
    names = ("example_seg", "example_seg_fast")
    return [ts512.from_archive(PLACE, f"tests/reference_files/{name}.nii.gz") for name in names]


def test_two_models_on_one_ct(pair):
    target, pred = pair
    organs = [(int(x),) for x in np.union1d(np.unique(target), np.unique(pred)) if x]
    scores = metrics.segmentation_scores(
        pred[None], target[None], organs=organs, input_format="index", spacing=3.0, tolerances=(3.0,)
    )
    assert len(organs) == 41
    assert np.mean(scores["dsc"]) == pytest.approx(0.901996, abs=1e-6)
    assert np.mean(scores["nsd_dm@3.0"]) == pytest.approx(0.971384, abs=1e-6)
    got = surface_metrics(target, pred, [(1,), (2,), (3,)], 3.0, tolerances=(3.0,))
    assert got.voxels[0].tolist() == [9452, 9630, 9325]
    assert got.elements[0].tolist() == [4372, 4387]
    assert got.area[0] == pytest.approx([29534.0229, 29693.4024], abs=1e-4)
    assert got.dice() == pytest.approx([0.9773609, 0.9641194, 0.9730686], abs=1e-7)
    assert got.nsd()[:, 0] == pytest.approx([0.9999342, 0.9929431, 1], abs=1e-7)
    assert got.hausdorff()[:, 0][[0, 2]] == pytest.approx([3, 0])
    assert got.hausdorff()[:, 1][:2] == pytest.approx([4.2426407, 24.1867732], abs=1e-7)
    assert got.asd()[0] == pytest.approx([0.1596270, 0.1692207], abs=1e-7)
    assert got.asd()[2] == pytest.approx([0.1199525, 0.1087904], abs=1e-7)
    edge = surface_metrics(target, pred, [(3,)], 3.0, definition="edge")
    assert edge.hausdorff()[0, 0] == pytest.approx(3)


def test_volume_of_the_benchmarks():
    target, pred, _ = ts512.volumes()
    assert int(target.sum(dtype=np.int64)) == 346730195
    organs = [(int(x),) for x in np.unique(target) if x]
    got = surface_metrics(target, pred, organs, ts512.SPACING)
    assert len(organs) == 61
    assert np.mean(got.dice()) == pytest.approx(0.785729, abs=1e-6)
    assert np.mean(got.nsd()) == pytest.approx(0.497731, abs=1e-6)
    assert np.mean(got.hausdorff()[:, 0]) == pytest.approx(2.145050, abs=1e-6)
