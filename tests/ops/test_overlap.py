"""Overlap counts: equal to NumPy's on every backend, dtype, layout and number of threads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tenfold.kernels.overlap import overlap_reference

from tenfold.ops import (
    label_lut,
    labels_of_owners,
    multihot_counts,
    overlap_counts,
    owner_counts,
    owner_words,
    pack_bits,
    unpack_bits,
)

_spec = importlib.util.spec_from_file_location("volumes", Path(__file__).parent / "volumes.py")
volumes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(volumes)


@pytest.fixture
def place(backend):
    """The backends that have these ops."""
    if backend.name == "triton":
        pytest.skip("no Triton kernel is written for these ops")
    return backend


def expected(target, pred, labels):
    joint = np.zeros((labels, labels), np.int64)
    np.add.at(joint, (target.ravel().astype(int), pred.ravel().astype(int)), 1)
    boxes = []
    for volume in (target, pred):
        rows = np.zeros((labels, 2 * volume.ndim), np.int64)
        for label in range(labels):
            at = np.argwhere(volume == label)
            if len(at):
                rows[label] = [*at.min(0), *(at.max(0) + 1)]
        boxes.append(rows)
    return joint, *boxes


def test_counts_and_boxes_are_those_of_numpy(place):
    rng = np.random.default_rng(0)
    for i in range(32):
        shape = tuple(rng.integers(0 if i % 8 == 0 else 1, (150, 40, 14, 7)[i % 4], i % 4 + 1))
        labels = int(rng.integers(2, 9))
        target, pred = (volumes.arrange(rng, volumes.draw(rng, shape, labels)) for _ in range(2))
        want = expected(target, pred, labels)
        target, pred = volumes.at(place.device, target), volumes.at(place.device, pred)
        for threads in (1, 2):
            got = overlap_counts(target, pred, labels, boxes=True, num_threads=threads)
            for g, w in zip(got, want, strict=True):
                assert isinstance(g, type(target))
                assert np.array_equal(volumes.host(g), w), (i, shape)
        assert np.array_equal(volumes.host(overlap_counts(target, pred, labels)), want[0])


def test_rows_of_every_length(place):
    rng = np.random.default_rng(1)
    for n in (1, 2, 63, 64, 65, 66, 127, 128, 129, 130, 200, 300):
        for dtype in (np.uint8, np.int16, np.int32, np.int64):
            x, y = (np.repeat(rng.integers(0, 5, n), rng.integers(1, 9, n))[:n].astype(dtype) for _ in "ab")
            pair = [volumes.at(place.device, v[None]) for v in (x, y)]
            joint, box, _ = overlap_counts(*pair, 5, boxes=True)
            want = expected(x[None], y[None], 5)
            assert np.array_equal(volumes.host(joint), want[0])
            assert np.array_equal(volumes.host(box), want[1])


def test_what_comes_back_is_of_the_kind_given(place):
    x = torch.tensor([[0, 1], [1, 1]], device=place.device)
    assert isinstance(overlap_counts(x, x, 2), torch.Tensor)
    assert overlap_counts(x, x, 2).device == x.device
    assert overlap_counts(x.bool(), x.bool(), 2).tolist() == [[1, 0], [0, 3]]
    assert overlap_counts(x.double(), x, 2).tolist() == [[1, 0], [0, 3]]
    if place.device.type == "cpu":
        counts = overlap_counts(x.double().numpy(), x.numpy(), 2)
        assert isinstance(counts, np.ndarray)
        assert counts.tolist() == [[1, 0], [0, 3]]


def test_a_joint_histogram_larger_than_a_byte(place):
    x = torch.arange(4096, device=place.device).reshape(16, 256)
    joint = overlap_counts(x, x.flip(1), 4096)
    assert joint.sum() == 4096
    assert joint[0, 255] == 1


@pytest.mark.parametrize("dtype", volumes.DTYPES)
def test_a_label_outside_is_named_with_its_place(place, dtype):
    x = np.zeros((3, 4, 70), dtype)
    bad = x.copy()
    bad[1, 2, 66] = 9
    bad[2, 0, 0] = 8
    clean = volumes.at(place.device, x)
    for volume in (bad, np.asfortranarray(bad)):
        with pytest.raises(ValueError, match=r"pred: expected labels in \[0, 5\), got 9 at \[1, 2, 66\]"):
            overlap_counts(clean, volumes.at(place.device, volume), 5)
    if np.issubdtype(dtype, np.signedinteger):
        bad[1, 2, 66] = -1
        with pytest.raises(ValueError, match=r"target: expected labels in \[0, 4096\), got -1 at"):
            overlap_counts(volumes.at(place.device, bad), clean, 4096)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (([1], np.zeros(3, int), 2), TypeError, "target: expected a torch.Tensor"),
        ((np.zeros((2, 3), int), np.zeros((3, 2), int), 2), ValueError, "pred: expected the shape of target"),
        ((np.zeros(3), np.array([0.0, 0.5, 1.0]), 2), ValueError, "pred: expected whole numbers .*, got 0.5"),
        ((np.array([0.0, np.nan]), np.zeros(2), 2), ValueError, "target: expected whole numbers .* nan"),
        ((np.zeros(3, int), np.zeros(3, int), 0), ValueError, "num_labels: expected an integer in"),
        ((np.zeros(3, int), np.zeros(3, int), 4097), ValueError, "num_labels: expected an integer in"),
        ((np.zeros(3, ">i4"), np.zeros(3, int), 2), TypeError, "target: expected labels of a native"),
        ((np.zeros(3, complex), np.zeros(3, int), 2), TypeError, "target: expected labels of a native"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, kind, words):
    with pytest.raises(kind, match=words):
        overlap_counts(*arguments)


def test_the_op_holds_its_schema():
    x = torch.randint(0, 4, (3, 5, 7))
    torch.library.opcheck(torch.ops.tenfold.overlap_counts.default, (x, x.flip(0), 4, [], [1], True, 1))
    compiled = torch.compile(lambda a, b: overlap_counts(a, b, 4) * 2, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, x), overlap_counts(x, x, 4) * 2)


def test_owner_words_and_back(place):
    rng = np.random.default_rng(2)
    lut = [0, 1, 2, 3, 1 << 62, (1 << 63) | 1, 7]
    volume = volumes.arrange(rng, rng.integers(0, 7, (5, 6, 71)))
    words = label_lut(volumes.at(place.device, volume), lut)
    assert np.array_equal(volumes.host(words).view(np.uint64), np.array(lut, np.uint64)[volume.astype(int)])
    assert np.array_equal(volumes.host(labels_of_owners(words, lut)), volume)
    masks = np.stack([(volumes.host(words) >> c) & 1 for c in range(64)]).astype(bool)
    merged = owner_words(volumes.at(place.device, masks))
    assert np.array_equal(volumes.host(merged), volumes.host(words))
    with pytest.raises(ValueError, match=r"volume: expected labels in \[0, 7\), got 9 at \[0, 0, 0\]"):
        label_lut(volumes.at(place.device, np.full((1, 1, 1), 9)), lut)
    wrong = volumes.host(words).copy()
    wrong[0, 0, :3] = 0b1100
    with pytest.raises(ValueError, match=r"owners \{2, 3\} \(3 voxels\)"):
        labels_of_owners(volumes.at(place.device, wrong), lut)


def test_random_maps_survive_merging_and_unmerging(place):
    """As many labels as a head has, each with owners of its own; A8 of the checks this library promises."""
    rng = np.random.default_rng(3)
    lut = [0, *(int(x) for x in rng.permutation(np.arange(1, 2**20))[:54])]
    volume = volumes.blocks(rng, (20, 30, 40), 55)
    words = volumes.host(label_lut(volumes.at(place.device, volume), lut))
    masks = volumes.at(place.device, np.stack([(words >> c) & 1 for c in range(20)]).astype(np.uint8))
    assert np.array_equal(volumes.host(labels_of_owners(owner_words(masks), lut)), volume)


def test_packed_masks(place):
    rng = np.random.default_rng(4)
    for shape in ((1, 1), (3, 63), (2, 64), (5, 7, 11, 13), (0, 5), (2, 0), (70, 130)):
        masks, other = rng.random(shape) < 0.4, rng.random(shape) < 0.4
        a, b = volumes.at(place.device, masks), volumes.at(place.device, other)
        words = pack_bits(a)
        assert words.shape == (shape[0], (int(np.prod(shape[1:])) + 63) // 64)
        assert np.array_equal(volumes.host(unpack_bits(words, shape[1:])), masks)
        axes = tuple(range(1, len(shape)))
        want = np.stack([(masks & other).sum(axes), masks.sum(axes), other.sum(axes)], 1)
        assert np.array_equal(volumes.host(multihot_counts(a, b)), want)
        assert np.array_equal(volumes.host(multihot_counts(words, pack_bits(b))), want)
        reference = overlap_reference.pack_bits(torch.from_numpy(masks), 1)
        assert np.array_equal(volumes.host(words), reference.numpy())
        if 0 < shape[0] <= 64:
            counts = owner_counts(owner_words(a), owner_words(b), shape[0])
            assert np.array_equal(volumes.host(counts), want)
    with pytest.raises(ValueError, match="b: expected the shape of a"):
        multihot_counts(*(volumes.at(place.device, np.zeros((2, n), bool)) for n in (3, 100)))
    with pytest.raises(ValueError, match="words: expected shape"):
        unpack_bits(volumes.at(place.device, np.zeros((2, 3), np.int64)), (5,))
