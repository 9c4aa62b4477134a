"""Overlap counts, the distance transform and surface metrics on a GPU, or their CUDA source on the host."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tenfold.kernels.overlap import overlap_cuda, overlap_reference
from tenfold.kernels.surface import surface_cuda, surface_reference

_spec = importlib.util.spec_from_file_location("volumes", Path(__file__).parents[1] / "ops" / "volumes.py")
volumes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(volumes)


@pytest.fixture
def device(gpu, request, monkeypatch):
    """Where tensors live; the emulated module in place of the compiled one where there is no GPU."""
    if gpu.name == "triton":
        pytest.skip("no Triton kernel is written for these ops")
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(overlap_cuda, "module", lambda device: (built, 0))
    return gpu.device


DTYPES = {torch.uint8: np.uint8, torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64}


def draw(rng, shape, labels, dtype):
    values = volumes.arrange(rng, volumes.draw(rng, shape, labels), DTYPES[dtype])
    return torch.from_numpy(
        np.ascontiguousarray(values) if min(values.strides, default=0) < 0 else values.copy("K")
    )


def same(got, want):
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.cpu(), w), (g, w)


def test_counts_and_boxes(device):
    rng = np.random.default_rng(0)
    kinds = list(DTYPES)
    for i in range(24):
        shape = tuple(int(n) for n in rng.integers(1, (900, 40, 14)[i % 3], i % 3 + 1))
        labels = (5, 130)[i % 2]  # a histogram in shared memory, and one that is too large for it
        a, b = (draw(rng, shape, 5, kinds[int(rng.integers(0, 4))]) for _ in range(2))
        flips = [[], [0]][i // 2 % 2]
        for boxes in (False, True):
            got = overlap_cuda.counts(a.to(device), b.to(device), labels, flips, [], boxes, 1)
            same(got, overlap_reference.counts(a, b, labels, flips, [], boxes, 1))


def test_wrong_labels_are_named(device):
    x = torch.zeros(3, 4, 5, dtype=torch.int16)
    bad = x.clone()
    bad[1, 2, 3] = -4
    with pytest.raises(ValueError, match=r"pred: expected labels in \[0, 5\), got -4 at \[1, 2, 3\]"):
        overlap_cuda.counts(x.to(device), bad.to(device), 5, [], [], False, 1)
    bad[1, 2, 3] = 40
    joint = overlap_cuda.counts(x.to(device), bad.to(device), 5, [], [], False, 1, clamp=True)[0]
    assert joint[0, 4] == 1


def test_packed_masks_and_owner_words(device):
    rng = np.random.default_rng(1)
    for shape in ((3, 63), (2, 64), (5, 7, 11, 13), (1, 300)):
        a, b = (torch.from_numpy(rng.random(shape) < 0.4) for _ in range(2))
        packed = [overlap_cuda.pack_bits(x.to(device), 1) for x in (a, b)]
        same([packed[0]], [overlap_reference.pack_bits(a, 1)])
        count = a[0].numel()
        same([overlap_cuda.unpack_bits(packed[0], count, 1)], [a.flatten(1)])
        want = overlap_reference.multihot_counts(*(overlap_reference.pack_bits(x, 1) for x in (a, b)), 1)
        same([overlap_cuda.multihot_counts(*packed, 1)], [want])
        words = [overlap_reference.pack_bits(x.flatten(1).T.contiguous(), 1)[:, 0] for x in (a, b)]
        same([overlap_cuda.lut_counts(*(w.to(device) for w in words), shape[0], 1)], [want])
    lut = torch.tensor([0, 5, -(2**63)])
    volume = torch.from_numpy(rng.integers(0, 3, (4, 5, 6)))
    same([overlap_cuda.label_lut(volume.to(device), lut.to(device), [1], 1)], [lut[volume.flip(1)]])


@pytest.mark.parametrize("wide", [False, True])
def test_distances(device, wide):
    rng = np.random.default_rng(2)
    for i in range(8):
        shape = (int(rng.integers(1, 3)), *(int(n) for n in rng.integers(1, 9, 2)), int(rng.integers(1, 70)))
        features = torch.from_numpy(rng.random(shape) < (0.003, 0.05, 0.5)[i % 3])
        options = ([3.0, 0.5, 0.7], i % 2 == 0, wide, True, 1)
        got, index = surface_cuda.edt(features.to(device), *options)
        want, _ = surface_reference.edt(features, *options)
        assert torch.allclose(got.cpu(), want, rtol=1e-12 if wide else 1e-5)
        plain, _ = surface_cuda.edt(features.to(device), *options[:3], False, 1)
        assert torch.equal(plain, got)
        index = index.cpu()
        for volume in range(shape[0]):
            at = index[volume].long()
            assert bool((at < 0).all()) == (not features[volume].any())
            if features[volume].any():
                assert features[volume][tuple(at)].all()
                steps = (at - torch.from_numpy(np.indices(shape[1:]))).double()
                square = sum((step * s) ** 2 for step, s in zip(steps, options[0], strict=True))
                found = square if options[1] else square.sqrt()
                assert torch.allclose(found, want[volume].double(), rtol=1e-12 if wide else 1e-5)


@pytest.mark.parametrize("edge", [False, True])
def test_metrics(device, edge):
    rng = np.random.default_rng(3)
    for i in range(6):
        ndim = 2 + i % 2
        shape = tuple(int(n) for n in rng.integers(1, 12, ndim))
        a, b = (draw(rng, shape, 4, torch.uint8) for _ in range(2))
        options = (
            [1, 2, 3, 9], [0, 1, 3, 4], [2.0, 0.5, 0.7][:ndim], [0.5, 1.0] * 3, [50.0, 95.0, 100.0], edge,
            [0], [], 1,
        )  # fmt: skip
        got = surface_cuda.metrics(a.to(device), b.to(device), *options)
        for g, w in zip(got, surface_reference.metrics(a, b, *options), strict=True):
            assert g.dtype == w.dtype
            assert torch.allclose(g.cpu(), w, rtol=1e-12)
