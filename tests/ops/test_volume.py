"""Labels by interpolation, components, holes, boxes, percentiles, sliding windows, against other code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tenfold.ops import (
    IntensityHistogram,
    body_box,
    connected_components,
    fill_holes,
    gaussian_weights,
    keep_largest,
    mirrored,
    resample_argmax,
    sliding_window,
    sliding_window_slabs,
    window_starts,
)

ndimage = pytest.importorskip("scipy.ndimage")


def blobs(shape, values, seed=0, share=0.5, smooth=1.0):
    """Integers 0 .. values in connected patches."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=shape), smooth)
    labels = rng.integers(1, values + 1, size=[-(-n // 3) for n in shape])
    for axis, n in enumerate(shape):
        labels = np.take(labels.repeat(3, axis), range(n), axis)
    return np.where(field > np.quantile(field, 1 - share), labels, 0)


# ---- resampling ------------------------------------------------------------------------------------------


@pytest.fixture
def place(backend):
    """The backends that interpolate."""
    if backend.name == "cuda":
        pytest.skip("resample_argmax has no CUDA C++ kernel: Triton serves it on a GPU")
    return backend


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((5, 4, 6, 7), (9, 13, 50)),
        ((3, 7, 9, 65), (3, 4, 11)),
        ((4, 1, 1, 1), (2, 3, 4)),
        ((2, 3, 5, 40), (1, 1, 1)),
        ((55, 3, 5, 17), (5, 7, 33)),
    ],
)
def test_resample_argmax(place, shape, size, dtype, align_corners):
    """Equal to interpolation and argmax, except where the two best differ by roundings."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(shape, generator=generator).to(dtype)
    got = resample_argmax(logits.to(place.device), size, align_corners=align_corners).cpu()
    exact = F.interpolate(logits.double()[None], size, mode="trilinear", align_corners=align_corners)[0]
    assert got.dtype == torch.uint8
    best = exact.max(0).values
    chosen = exact.gather(0, got.long()[None])[0]
    assert (best - chosen).max() <= 4e-5
    assert (got == exact.argmax(0)).double().mean() >= (0.999 if got.numel() > 2000 else 0.99)


def test_resample_ties_nan_and_planes(place):
    flat = torch.zeros(4, 3, 5, device=place.device)
    assert (resample_argmax(flat, (7, 9)) == 0).all()
    flat[0] = torch.nan
    assert (resample_argmax(flat, (7, 9)) == 1).all()
    plane = torch.randn(3, 8, 9, device=place.device)
    whole = F.interpolate(plane[None], (16, 20), mode="bilinear")[0].argmax(0)
    assert (resample_argmax(plane, (16, 20)) == whole).double().mean() > 0.99


def test_resample_opcheck_and_compile():
    logits = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(4))
    op = torch.ops.tenfold.resample_argmax.default
    torch.library.opcheck(op, (logits, [4, 7, 9], False, False))
    compiled = torch.compile(lambda x: resample_argmax(x, (4, 7, 9)), fullgraph=True)
    assert torch.equal(compiled(logits), resample_argmax(logits, (4, 7, 9)))


def test_resample_dtypes_and_layout():
    logits = torch.randn(300, 2, 3, 4)
    wide = resample_argmax(logits, (4, 6, 8))
    assert wide.dtype == torch.int16
    moved = logits.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    assert torch.equal(resample_argmax(moved, (4, 6, 8)), wide)
    assert isinstance(resample_argmax(logits[:4].numpy(), (4, 6, 8)), np.ndarray)
    torch.library.opcheck(torch.ops.tenfold.resample_argmax.default, (logits, [2, 3, 5], False, True))
    for arguments, kind in (
        ((logits, (4, 6, 8), torch.uint8), ValueError),
        ((logits, (4, 6), None), ValueError),
        ((logits, (4, 6, 0), None), ValueError),
        ((logits[0, 0], (4, 6, 8), None), ValueError),
        ((logits.long(), (4, 6, 8), None), TypeError),
        ((logits, (4, 6, 8), torch.int32), TypeError),
    ):
        with pytest.raises(kind, match="expected"):
            resample_argmax(arguments[0], arguments[1], dtype=arguments[2])


# ---- components ------------------------------------------------------------------------------------------

STRUCTURES = {
    6: ndimage.generate_binary_structure(3, 1),
    18: ndimage.generate_binary_structure(3, 2),
    26: ndimage.generate_binary_structure(3, 3),
    4: ndimage.generate_binary_structure(2, 1),
    8: ndimage.generate_binary_structure(2, 2),
}
SHAPES_3D = [(1, 1, 1), (1, 7, 9), (5, 1, 33), (9, 8, 1), (7, 9, 11), (12, 20, 70)]


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("shape", SHAPES_3D, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_components_are_scipys(isa, shape, connectivity, share):
    for smooth in (0.0, 1.0):
        mask = blobs(shape, 3, share=share, smooth=smooth)
        want, count = ndimage.label(mask, STRUCTURES[connectivity])
        got = connected_components(mask, connectivity=connectivity)
        assert len(got.sizes) == count
        assert (got.labels == want).all()
        assert (got.sizes == np.bincount(want.ravel(), minlength=count + 1)[1:]).all()
        for box, where in zip(got.boxes, ndimage.find_objects(want), strict=True):
            assert [*box] == [s.start for s in where] + [s.stop for s in where]


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_components_of_many_labels(isa, connectivity, dtype):
    """Two values that alternate along a row touch at corners: the hardest case for runs."""
    for seed, smooth in ((0, 0.0), (1, 1.0)):
        volume = blobs((6, 13, 37), 5, seed, share=0.8, smooth=smooth)
        volume = np.where(volume > 0, volume - 7, 0).astype(dtype)
        got = connected_components(volume, connectivity=connectivity, multilabel=True)
        expected = 0
        for value in np.unique(volume[volume != 0]):
            want, count = ndimage.label(volume == value, STRUCTURES[connectivity])
            expected += count
            pairs = np.unique(np.stack([want[want > 0], got.labels[want > 0]]), axis=1)
            assert pairs.shape[1] == count
            assert (got.values[pairs[1] - 1] == value).all()
        assert len(got.sizes) == expected
        firsts = [np.flatnonzero(got.labels.ravel() == i + 1)[0] for i in range(expected)]
        assert firsts == sorted(firsts)


@pytest.mark.parametrize("connectivity", [4, 8, 6, 26])
def test_components_of_images(connectivity):
    mask = blobs((31, 45), 1, smooth=0.7) > 0
    want, count = ndimage.label(mask, STRUCTURES[{6: 4, 26: 8}.get(connectivity, connectivity)])
    got = connected_components(mask, connectivity=connectivity)
    assert (got.labels == want).all()
    assert got.boxes.shape == (count, 4)


def test_components_of_strided_and_empty_volumes():
    volume = torch.from_numpy(blobs((8, 9, 20), 3))
    got = connected_components(volume.permute(2, 0, 1)[::2], connectivity=6)
    want = connected_components(volume.permute(2, 0, 1)[::2].contiguous(), connectivity=6)
    assert torch.equal(got.labels, want.labels)
    none = connected_components(torch.zeros(2, 0, 3, dtype=torch.uint8))
    assert none.sizes.numel() == 0
    assert connected_components(torch.zeros(2, 2, 3, dtype=torch.bool)).boxes.shape == (0, 6)


@pytest.mark.parametrize("connectivity", [6, 26])
def test_keep_largest(isa, connectivity):
    volume = blobs((9, 20, 31), 4, share=0.4)
    high = np.where(volume > 0, volume + 200, 0).astype(np.uint8)
    assert (
        keep_largest(high, connectivity=connectivity, classes=(201, 203)) % 200
        == keep_largest(volume, connectivity=connectivity, classes=(1, 3))
    ).all()
    got = keep_largest(volume, connectivity=connectivity, classes=(1, 3))
    want = volume.copy()
    for value in (1, 3):
        labels, count = ndimage.label(volume == value, STRUCTURES[connectivity])
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        sizes[0] = 0
        want[(volume == value) & (labels != sizes.argmax())] = 0
    assert (got == want).all()
    assert got is not volume
    only_small = keep_largest(volume, connectivity=connectivity, largest_only=False, min_size=20)
    for value in range(1, 5):
        labels, count = ndimage.label(volume == value, STRUCTURES[connectivity])
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        assert ((only_small == value) == ((volume == value) & (sizes[labels] >= 20))).all()
    whole = keep_largest(volume, connectivity=connectivity, multilabel=False)
    labels, count = ndimage.label(volume, STRUCTURES[connectivity])
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    assert (whole == np.where(labels == sizes.argmax(), volume, 0)).all()


def test_fill_holes(isa):
    mask = blobs((11, 21, 30), 1, share=0.75, smooth=0.8) > 0
    assert (fill_holes(mask) == ndimage.binary_fill_holes(mask)).all()
    image = mask[4]
    assert (fill_holes(image) == ndimage.binary_fill_holes(image)).all()


def test_holes_between_two_values_stay():
    volume = torch.ones(3, 5, 7, dtype=torch.uint8)
    volume[1, 2, 2] = 0
    volume[1, 2, 5] = 0
    volume[1, 2, 6] = 2
    filled = fill_holes(volume)
    assert filled[1, 2, 2] == 1
    assert filled[1, 2, 5] == 0
    assert torch.equal(fill_holes(volume, classes=[2]), volume)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int16, np.bool_])
def test_reversed_arrays_and_unsigned_ones(dtype):
    volume = blobs((7, 9, 11), 1 if dtype == np.bool_ else 3, seed=4).astype(dtype)
    for turned in (volume, volume[::-1, :, ::-1]):
        turned.flags.writeable = False
        plain = np.ascontiguousarray(turned).astype(np.int64)
        for function in (keep_largest, fill_holes):
            got = function(turned)
            assert got.dtype == dtype
            assert np.array_equal(got, function(plain))
        got, want = (connected_components(x, multilabel=True) for x in (turned, plain))
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_body_box():
    ct = np.full((6, 20, 30), -1000, np.int16)
    ct[1:5, 3:15, 4:20] = 40
    ct[:, 17:19, :] = 100  # the table: thinner
    ct[2, 8, 8] = -900
    assert body_box(ct) == (slice(1, 5), slice(3, 15), slice(4, 20))
    assert body_box(torch.from_numpy(ct).float()) == (slice(1, 5), slice(3, 15), slice(4, 20))
    assert body_box(ct[3]) == (slice(3, 15), slice(4, 20))
    assert body_box(np.full((2, 3, 4), -1000.0)) == (slice(0, 2), slice(0, 3), slice(0, 4))


@pytest.mark.parametrize(
    ("volume", "options", "kind"),
    [
        (torch.zeros(2, 2), {"connectivity": 18}, ValueError),
        (torch.zeros(2, 2, 2), {}, TypeError),
        (torch.zeros(2, dtype=torch.uint8), {}, ValueError),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), {"connectivity": 7}, ValueError),
        ([1, 2], {}, TypeError),
    ],
)
def test_bad_volumes(volume, options, kind):
    with pytest.raises(kind, match="expected"):
        connected_components(volume.long() if options == {"connectivity": 18} else volume, **options)


# ---- intensities -----------------------------------------------------------------------------------------


def test_histogram_is_exact():
    rng = np.random.default_rng(0)
    parts = [rng.normal(40, 300, size=n).astype(np.int16) for n in (1000, 37, 5000)]
    histogram = IntensityHistogram()
    for part in parts:
        histogram.update(part)
    everything = np.concatenate(parts)
    q = [0, 0.5, 12.34, 50, 99.5, 100]
    assert np.allclose(histogram.percentiles(q), np.percentile(everything, q), rtol=0, atol=1e-9)
    found = histogram.statistics()
    assert found["mean"] == pytest.approx(everything.mean(dtype=np.float64), abs=1e-9)
    assert found["std"] == pytest.approx(everything.std(dtype=np.float64), rel=1e-12)
    assert (found["min"], found["max"]) == (everything.min(), everything.max())
    masked = IntensityHistogram().update(parts[0], parts[0] > 0)
    assert len(masked) == (parts[0] > 0).sum()
    with pytest.raises(ValueError, match="expected at least one"):
        IntensityHistogram().percentiles([50])
    with pytest.raises(ValueError, match="values: expected"):
        histogram.update(np.array([70_000]))
    with pytest.raises(ValueError, match="mask: expected"):
        histogram.update(parts[0], np.ones(3))


# ---- sliding windows -------------------------------------------------------------------------------------


def test_window_starts():
    assert window_starts((126, 1024, 1024), (28, 224, 224)) == [
        [0, 14, 28, 42, 56, 70, 84, 98],
        [0, 100, 200, 300, 400, 500, 600, 700, 800],
        [0, 100, 200, 300, 400, 500, 600, 700, 800],
    ]
    assert window_starts((5, 10), (8, 10)) == [[0], [0]]
    assert window_starts((11,), (4,)) == [[0, 2, 4, 5, 7]]
    with pytest.raises(ValueError, match="step: expected"):
        window_starts((5,), (2,), step=1.5)


def test_gaussian_weights():
    weights = gaussian_weights((28, 32, 320))
    assert weights.dtype == torch.float32
    assert weights.max() == 1
    assert weights.min() > 0
    assert torch.allclose(weights, weights.flip((0, 1, 2)))
    line = gaussian_weights((5,), sigma_scale=0.4)
    assert torch.allclose(line, torch.exp(-0.5 * (torch.arange(-2.0, 3) / 2) ** 2))


def whole_volume(image, predict, patch, starts, weights):
    """All logits of the volume at once."""
    total = None
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                at = (slice(None), slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2]))
                logits = predict(image[at][None])[0]
                if total is None:
                    total = torch.zeros(logits.shape[0] + 1, *image.shape[1:], dtype=torch.float64)
                total[at][:-1] += logits.double() * weights
                total[at][-1] += weights
    return total[:-1] / total[-1]


@pytest.mark.parametrize("profile", ["nnunet", "pymic"])
def test_slabs_equal_the_whole(profile):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 13, 15, 18, generator=generator)
    net = torch.nn.Conv3d(2, 5, 3, padding=1)
    patch = (5, 6, 8)
    step = 0.5 if profile == "nnunet" else 0.7
    got = sliding_window(image, net, patch, step=step, profile=profile)
    if profile == "nnunet":
        starts = window_starts(image.shape[1:], patch, step=step)
    else:
        starts = [[0, 4, 8], [0, 4, 8, 9], [0, 6, 10]]
    with torch.no_grad():
        want = whole_volume(image, net, patch, starts, gaussian_weights(patch).double())
    assert got.shape == image.shape[1:]
    assert (got == want.argmax(0)).double().mean() > 0.999
    firsts = []
    for first, slab in sliding_window_slabs(image, net, patch, step=step, profile=profile):
        firsts.append(first)
        assert torch.allclose(slab.double(), want[:, first : first + slab.shape[1]], atol=1e-5)
        assert slab.shape[1] <= patch[0]
    assert firsts[0] == 0
    assert len(firsts) == len(starts[0])


def test_a_volume_smaller_than_the_window():
    image = torch.randn(1, 3, 9, 4)
    net = torch.nn.Conv3d(1, 2, 1)
    with torch.no_grad():
        want = net(image[None])[0].argmax(0)
    assert torch.equal(sliding_window(image, net, (5, 6, 8)).long(), want)


def test_mirroring_puts_sides_back():
    """A network that knows left from right by position: plain mirroring mixes them, the swap does not."""

    def predict(x):
        left = (torch.arange(x.shape[-1]) < x.shape[-1] // 2).expand(x[:, 0].shape)
        inside = x[:, 0] > 0
        return torch.stack([~inside, inside & left, inside & ~left], 1).float()

    image = torch.zeros(1, 1, 4, 6, 8)
    image[..., 2:5, 1:7] = 1
    plain = predict(image)
    swapped = mirrored(predict, (0, 1, 2), left_right_axis=2, swap=[(1, 2)])(image)
    assert torch.equal(swapped, plain)
    mixed = mirrored(predict, (2,))(image)
    assert (mixed[0, 1] == mixed[0, 2]).all()
    with pytest.raises(ValueError, match="left_right_axis: expected"):
        mirrored(predict, (2,), swap=[(1, 2)])
    with pytest.raises(ValueError, match="swap: expected"):
        mirrored(predict, (2,), left_right_axis=2, swap=[(1, 9)])(image)


def test_bad_windows():
    image = torch.zeros(1, 4, 4, 4)
    with pytest.raises(ValueError, match="predict: expected logits"):
        sliding_window(image, lambda x: x[0], (2, 2, 2))
    with pytest.raises(ValueError, match="image: expected"):
        sliding_window(image[0], lambda x: x, (2, 2, 2))
    with pytest.raises(ValueError, match="profile: expected"):
        sliding_window(image, lambda x: x, (2, 2, 2), profile="other")
    with pytest.raises(ValueError, match="patch: expected"):
        sliding_window(image, lambda x: x, (2, 2))


def test_arrays_and_sets_where_lists_are_meant():
    v = torch.from_numpy(blobs((12, 10, 8), 3))
    some = np.unique(v.numpy())[1:]
    for given in (some, torch.from_numpy(some), set(some.tolist()), range(1, len(some) + 1)):
        assert torch.equal(keep_largest(v, classes=given), keep_largest(v, classes=some.tolist()))
    assert window_starts(np.array([9, 9]), torch.tensor([4, 4])) == window_starts([9, 9], [4, 4])
    assert torch.equal(gaussian_weights(np.array([4, 6])), gaussian_weights([4, 6]))
    x = torch.randn(1, 3, 4, 5, 6)
    pairs = [(0, 1)]
    expected = mirrored(lambda t: t[:, :2], (1, 2), left_right_axis=2, swap=pairs)(x)
    for axes, swap in (({1, 2}, set(pairs)), (np.array([1, 2]), np.array(pairs)), ((1, 2), zip([0], [1]))):  # noqa: B905
        torch.testing.assert_close(
            mirrored(lambda t: t[:, :2], axes, left_right_axis=2, swap=swap)(x), expected
        )
    with pytest.raises(TypeError, match="patch: expected a list of integers"):
        gaussian_weights({4, 6})
    with pytest.raises(TypeError, match="classes: expected a list of integers"):
        keep_largest(v, classes="12")
