"""The Euclidean distance transform: SciPy's numbers, the reference's, and its own indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tenfold
from tenfold.ops import edt, signed_distance

SPACING = (3, 0.5, 0.7)


def test_known_numbers(isa):
    features = np.zeros((4, 5, 6), bool)
    features[0, 0, 0] = features[2, 3, 1] = True
    got = edt(features, SPACING, dtype=torch.float64)
    want = (322.5080283298, 4.3692104550, 4.1340053217, 4.0311288741)
    assert (got.sum(), got.max(), got[3, 4, 5], got[0, 4, 5]) == pytest.approx(want, abs=1e-10)


def draw(rng, i):
    ndim = i % 3 + 1
    most = (300, 90, 30)[ndim - 1]
    shape = tuple(int(n) for n in rng.integers(1, most, ndim))
    return rng.random(shape) < rng.choice([0.0003, 0.01, 0.3, 0.9]), [
        float(s) for s in rng.uniform(0.2, 4, ndim)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_distances_are_those_of_scipy(isa, dtype):
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for i in range(45):
        features, spacing = draw(rng, i)
        got = edt(features, spacing, dtype=dtype)
        if not features.any():
            assert np.isinf(got).all()
            continue
        want = ndimage.distance_transform_edt(~features, spacing)
        assert np.allclose(got, want, rtol=tolerance, atol=0)
        assert np.allclose(
            edt(features, spacing, dtype=dtype, squared=True), want**2, rtol=2 * tolerance, atol=0
        )
        assert np.array_equal(got, edt(features, spacing, dtype=dtype, num_threads=2))


def test_indices_point_to_features_at_the_distance(isa):
    rng = np.random.default_rng(2)
    for i in range(30):
        features, spacing = draw(rng, i)
        got, index = edt(features, spacing, dtype=torch.float64, return_indices=True)
        if not features.any():
            assert (index == -1).all()
            continue
        assert features[tuple(index)].all()
        steps = (index - np.indices(features.shape)) * np.reshape(spacing, [-1] + [1] * features.ndim)
        assert np.allclose(np.sqrt((steps**2).sum(0)), got, rtol=1e-12)
        assert np.array_equal(got, edt(features, spacing, dtype=torch.float64)) or np.allclose(
            got, edt(features, spacing, dtype=torch.float64), rtol=1e-14
        )


def test_far_features_take_the_other_way(isa):
    """Columns longer than a window looks along."""
    features = np.zeros((3, 700, 40), bool)
    features[0, 2, 3] = features[2, 690, 39] = True
    at = np.argwhere(features)
    places = np.indices(features.shape).reshape(3, -1).T
    gaps = ((places[:, None] - at) * SPACING) ** 2
    want = np.sqrt(gaps.sum(2).min(1)).reshape(features.shape)
    assert np.allclose(edt(features, SPACING, dtype=torch.float64), want, rtol=1e-12)
    assert np.allclose(edt(features, SPACING), want, rtol=1e-6)


def test_the_reference_agrees():
    rng = np.random.default_rng(3)
    for i in range(6):
        features = rng.random((5, 6, 7)[: i % 3 + 1]) < 0.1
        spacing = SPACING[: features.ndim]
        got = edt(features, spacing, dtype=torch.float64, return_indices=True)
        with tenfold.use_backend("reference"):
            want = edt(features, spacing, dtype=torch.float64, return_indices=True)
        assert np.allclose(got[0], want[0], rtol=1e-13)
        assert np.array_equal(got[1] < 0, want[1] < 0)


def test_batches(isa):
    rng = np.random.default_rng(4)
    features = rng.random((2, 3, 5, 6, 7)) < 0.05
    features[0, 0] = False
    got, index = edt(features, SPACING, return_indices=True)
    assert index.shape == (2, 3, 3, 5, 6, 7)
    for at in np.ndindex(2, 3):
        one, one_index = edt(features[at], SPACING, return_indices=True)
        assert np.array_equal(got[at], one)
        assert np.array_equal(index[at], one_index)
    assert edt(np.zeros((0, 3, 4), bool), (1, 1)).shape == (0, 3, 4)
    assert isinstance(edt(torch.ones(3, 4), 1.0), torch.Tensor)


def test_signed_distance():
    mask = np.zeros((7, 9), bool)
    mask[2:5, 3:7] = True
    got = signed_distance(mask)
    assert got[3, 4] == -1  # two steps from the outside: -(2 - 1)
    assert got[2, 3] == 0
    assert got[2, 1] == 2
    assert (signed_distance(np.zeros((3, 3), bool)) == 0).all()
    assert (signed_distance(np.ones((3, 3), bool)) == 0).all()


def test_the_op_holds_its_schema():
    x = torch.rand(2, 3, 4, 5) < 0.2
    torch.library.opcheck(torch.ops.tenfold.edt.default, (x, [1.0, 2.0, 3.0], False, True, True, 1))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="features: expected 1 to 3 axes"):
        edt(np.zeros((2, 2, 2, 2), bool))
    with pytest.raises(ValueError, match=r"spacing\[1\]: expected a finite number > 0"):
        edt(np.zeros((2, 2), bool), (1, -1))
    with pytest.raises(TypeError, match="dtype: expected one of"):
        edt(np.zeros((2, 2), bool), dtype=torch.int32)
