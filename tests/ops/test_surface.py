"""Surface metrics: known numbers, the reference, and what must not change them, on every backend."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tenfold.kernels.surface.area_table import REPRESENTATIVES, all_normals, area_table

import tenfold
from tenfold.ops import surface_dice, surface_metrics, surfels

_spec = importlib.util.spec_from_file_location("volumes", Path(__file__).parent / "volumes.py")
volumes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(volumes)
box, ball = volumes.box, volumes.ball


@pytest.fixture
def place(backend):
    """The backends that have these ops."""
    if backend.name == "triton":
        pytest.skip("no Triton kernel is written for these ops")
    return backend


# ---- the table of areas -----------------------------------------------------------------------------------


def test_sums_of_the_area_table():
    assert math.isclose(sum(area_table((1, 1, 1))), 241.34313970553745, rel_tol=1e-12)
    for spacing, total, moment in (
        ((2, 1, 0.5), 309.1632231939856, 39418.31095723316),
        ((3, 0.5419921875, 0.5419921875), 315.10305183438595, 40175.63910888421),
    ):
        table = area_table(spacing)
        assert math.isclose(sum(table), total, rel_tol=1e-12)
        assert math.isclose(sum(code * area for code, area in enumerate(table)), moment, rel_tol=1e-12)


def test_every_code_is_in_one_orbit():
    orbits = [2, 16, 24, 24, 48, 6, 16, 8, 8, 48, 24, 24, 6, 2]
    assert sum(orbits) == 256
    kinds = [tuple(sorted(tuple(sorted(n)) for n in normals)) for normals in all_normals()]
    by_normals: dict[tuple, int] = {}
    for normals, size in zip(REPRESENTATIVES.values(), orbits, strict=True):
        key = tuple(sorted(tuple(sorted(n)) for n in normals))
        by_normals[key] = by_normals.get(key, 0) + size  # two orbits look alike
    assert {key: kinds.count(key) for key in set(kinds)} == by_normals


def test_lengths_of_pictures():
    table = area_table((2, 0.5))
    got = {code: table[17 * code] for code in (0, 1, 3, 5, 6, 8, 12, 15)}
    corner = 0.5 * math.hypot(2, 0.5)
    assert got == {0: 0, 1: corner, 3: 0.5, 5: 2.0, 6: 2 * corner, 8: corner, 12: 0.5, 15: 0}


# ---- known numbers ----------------------------------------------------------------------------------------

CUBE = box((5, 5, 5), (6, 6, 6))
H = [ball((24, 24, 24), (12, 12, 12), r) for r in (6, 7)]
I = [ball((16, 32, 32), (8, 16, 16), r, (3, 1, 1)) for r in (9, 10.5)]  # noqa: E741
# target, pred, spacing, tolerance; Dice; NSD area, edge; HD95 area, edge, edge pooled; ASD area; ASSD edge
KNOWN = {
    "shifted": (
        CUBE,
        box((6, 5, 5), (6, 6, 6)),
        1.0,
        1,
        (0.833333, 1, 1, 1, 1, 1, 0.334820, 0.334820, 0.342105),
    ),
    "tolerance 0": (
        CUBE,
        box((6, 5, 5), (6, 6, 6)),
        1.0,
        0,
        (0.833333, 0.665180, 0.657895, 1, 1, 1, 0.334820, 0.334820, 0.342105),
    ),
    "two pixels": (
        CUBE,
        box((5, 5, 7), (6, 6, 6)),
        (3, 0.5, 0.5),
        1,
        (0.666667, 1, 1, 1, 1, 1, 0.448753, 0.448753, 0.381579),
    ),
    "three pixels": (
        CUBE,
        box((5, 5, 8), (6, 6, 6)),
        (3, 0.5, 0.5),
        1,
        (0.5, 0.702778, 0.763158, 1.5, 1.5, 1.5, 0.692347, 0.692347, 0.631579),
    ),
    "a slice": (
        CUBE,
        box((6, 5, 5), (6, 6, 6)),
        (3, 0.5, 0.5),
        1,
        (0.833333, 0.894689, 0.763158, 3, 3, 3, 0.332695, 0.332695, 0.776316),
    ),
    "a tie": (
        CUBE,
        box((6, 5, 5), (6, 6, 6)),
        (3, 0.5, 0.5),
        3,
        (0.833333, 1, 1, 3, 3, 3, 0.332695, 0.332695, 0.776316),
    ),
    "neighbours": (
        box((5, 5, 5), (1, 1, 1)),
        box((5, 6, 5), (1, 1, 1)),
        1.0,
        1,
        (0, 1, 1, 1, 1, 1, 0.5, 0.5, 1),
    ),
    "two apart": (
        box((5, 5, 5), (1, 1, 1)),
        box((5, 7, 5), (1, 1, 1)),
        1.0,
        1,
        (0, 0.5, 0, 2, 2, 2, 1.5, 1.5, 2),
    ),
    "balls": (*H, 1.0, 1, (0.789249, 0.980370, 0.87, 1, 1.414214, 1.414214, 0.699950, 0.692990, 1.053848)),
    "flat balls": (*I, (3, 1, 1), 2, (0.745318, 0.887622, 0.760797, 3, 3, 3, 0.952912, 1.208649, 1.526440)),
    "plates": (
        box((5, 5, 5), (1, 8, 8)),
        box((6, 5, 5), (1, 8, 8)),
        1.0,
        0,
        (0, 0.5, 0, 1, 1, 1, 0.5, 0.5, 1),
    ),
    "at the border": (
        box((0, 0, 0), (6, 6, 6)),
        box((1, 0, 0), (6, 6, 6)),
        1.0,
        0,
        (0.833333, 0.665180, 0.657895, 1, 1, 1, 0.334820, 0.334820, 0.342105),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_numbers(place, name):
    target, pred, spacing, tolerance, want = KNOWN[name]
    target, pred = volumes.at(place.device, target), volumes.at(place.device, pred)
    options = {"tolerances": (tolerance,), "percentiles": (95,)}
    area = surface_metrics(target, pred, [(1,)], spacing, **options)
    edge = surface_metrics(target, pred, [(1,)], spacing, definition="edge", **options)
    got = (
        area.dice()[0], area.nsd()[0, 0], edge.nsd()[0, 0], area.hausdorff()[0, 0], edge.hausdorff()[0, 0],
        edge.hd_pooled[0, 0], *area.asd()[0], edge.assd()[0],
    )  # fmt: skip
    assert [float(x) for x in got] == pytest.approx(want, abs=1e-6)


def test_tighter_tolerance_of_the_flat_balls(place):
    pair = [volumes.at(place.device, mask) for mask in I]
    got = [float(surface_dice(*pair, (3, 1, 1), 1.0, definition=d)[0, 0]) for d in ("area", "edge")]
    assert got == pytest.approx([0.629728, 0.415282], abs=1e-6)


# ---- against the reference --------------------------------------------------------------------------------

OPTIONS = {"tolerances": (0, 0.5, 1, 2.5), "percentiles": (0, 50, 95, 99.5, 100)}


def compare(target, pred, organs, spacing, definition, threads=1):
    got = surface_metrics(
        target, pred, organs, spacing, definition=definition, num_threads=threads, **OPTIONS
    )
    with tenfold.use_backend("reference"):
        want = surface_metrics(target, pred, organs, spacing, definition=definition, **OPTIONS)
    for name in got._fields[1:]:
        g, w = getattr(got, name), getattr(want, name)
        assert np.allclose(g, w, rtol=1e-12, atol=1e-12), (name, g, w)
    assert np.array_equal(got.voxels, want.voxels)
    assert np.array_equal(got.elements, want.elements)


def test_random_volumes_equal_the_reference(isa):
    rng = np.random.default_rng(5)
    for i in range(40):
        ndim = 2 + i % 2
        shape = tuple(int(n) for n in rng.integers(1, 41 if ndim == 2 else 18, ndim))
        if i % 8 == 7:
            shape = (int(rng.integers(1, 4)), int(rng.integers(1, 8)), int(rng.integers(60, 200)))[3 - ndim :]
        target, pred = (volumes.arrange(rng, volumes.draw(rng, shape, 4)) for _ in range(2))
        spacing = rng.uniform(0.3, 4, ndim) if i % 3 else rng.choice([0.5, 1, 2, 3], ndim)
        organs = [(1,), (2, 3), (1, 2, 3), (7,)]
        compare(target, pred, organs, spacing, ("area", "edge")[i // 2 % 2], 1 + i % 2)


def test_surfaces_far_apart(isa):
    """What near offsets do not reach, and what single searches leave to the separable one."""
    rng = np.random.default_rng(6)
    target = np.zeros((8, 30, 150), np.uint8)
    pred = np.zeros_like(target)
    target[2:6, 4:18, 2:10] = rng.random((4, 14, 8)) < 0.7
    pred[1:5, 12:25, 136:149] = rng.random((4, 13, 13)) < 0.7
    for spacing in ((3, 0.5, 0.5), (0.5, 3, 1), (1, 1, 4)):
        for definition in ("area", "edge"):
            compare(target, pred, [(1,)], spacing, definition)
            compare(target.T, pred.T, [(1,)], spacing, definition)
    compare(target[3], pred[3], [(1,)], (3, 0.5), "area")


def test_all_labels_that_are_present(place):
    target = np.zeros((4, 5, 6), np.int16)
    pred = target.copy()
    target[0, 0, 0], pred[3, 3, 3] = 7, 300
    target, pred = volumes.at(place.device, target), volumes.at(place.device, pred)
    got = surface_metrics(target, pred, None, 1.0)
    assert got.organs == [(7,), (300,)]
    assert got.voxels.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert surface_metrics(target * 0, pred * 0, None, 1.0).organs == []


def test_one_empty_and_both(place):
    mask, none = box((5, 5, 5), (6, 6, 6)), np.zeros((20, 20, 20), bool)
    mask, none = volumes.at(place.device, mask), volumes.at(place.device, none)
    got = surface_metrics(mask, none, [(1,)], 1.0)
    assert got.nsd().tolist() == [[0.0]]
    assert got.dice().tolist() == [0.0]
    assert got.hausdorff().tolist() == [[math.inf, math.inf]]
    assert got.asd()[0, 0] == math.inf
    assert math.isnan(got.asd()[0, 1])
    assert got.assd().tolist() == [math.inf]
    both = surface_metrics(none, none, [(1,)], 1.0)
    assert math.isnan(both.dice()[0])
    assert math.isnan(both.nsd()[0, 0])


def test_a_tolerance_for_each_organ(place):
    masks = CUBE, box((6, 5, 5), (6, 6, 6))
    target, pred = (volumes.at(place.device, np.where(m, 1, 0)) for m in masks)
    each = surface_metrics(target, pred, [(1,), (1, 2)], (3, 0.5, 0.5), tolerances=[[1], [3]]).nsd()
    both = surface_metrics(target, pred, [(1,)], (3, 0.5, 0.5), tolerances=(1, 3)).nsd()
    assert each[:, 0].tolist() == both[0].tolist()


# ---- what must not change them ----------------------------------------------------------------------------


@pytest.fixture(params=["area", "edge"])
def scored(request):
    rng = np.random.default_rng(7)
    target = np.pad(volumes.blocks(rng, (12, 15, 18), 3), 4)
    pred = np.roll(target, (1, 0, 2), (0, 1, 2)) * (rng.random(target.shape) < 0.98)

    def score(a, b, spacing=(2.5, 0.7, 0.6), factor=1.0, **options):
        return surface_metrics(
            a, b, [(1,), (2,), (1, 2)], [s * factor for s in spacing], definition=request.param,
            tolerances=[t * factor for t in (0.5, 1, 2, 1e6)], percentiles=(95, 100), **options
        )  # fmt: skip

    return target, pred, score


def same(x, y):
    assert np.array_equal(x.voxels, y.voxels)
    assert np.array_equal(x.elements, y.elements)
    for name in ("area", "within", "distance_sum", "hd", "hd_pooled"):
        assert np.allclose(getattr(x, name), getattr(y, name), rtol=1e-13, atol=0), name


def test_what_must_not_change_the_numbers(scored):
    target, pred, score = scored
    plain = score(target, pred)
    same(plain, score(np.roll(target, (2, -3, 1), (0, 1, 2)), np.roll(pred, (2, -3, 1), (0, 1, 2))))
    same(plain, score(np.pad(target, 5), np.pad(pred, 5)))
    same(plain, score(target[::-1, :, ::-1], pred[::-1, :, ::-1]))
    same(plain, score(np.asfortranarray(target), pred.astype(np.uint8)))
    same(plain, score(target.transpose(2, 0, 1), pred.transpose(2, 0, 1), (0.6, 2.5, 0.7)))
    for threads in (1, 2, 3):
        again = score(target, pred, num_threads=threads)
        for name in again._fields[1:]:
            assert np.array_equal(getattr(plain, name), getattr(again, name))


def test_both_directions_are_alike(scored):
    target, pred, score = scored
    one, other = score(target, pred), score(pred, target)
    assert np.array_equal(one.dice(), other.dice())
    assert np.array_equal(one.nsd(), other.nsd())
    assert np.array_equal(one.hausdorff(), other.hausdorff())
    assert np.array_equal(one.asd(), other.asd()[:, ::-1])


def test_tolerances_and_scale(scored):
    target, pred, score = scored
    plain = score(target, pred)
    assert all((a <= b).all() for a, b in pairwise(plain.nsd().T))
    assert (plain.nsd()[:, 0] < 1).all()
    assert plain.nsd()[:, 3].tolist() == [1, 1, 1]
    twice = score(target, pred, factor=2.0)
    assert np.array_equal(plain.nsd(), twice.nsd())
    assert np.array_equal(2 * plain.hausdorff(), twice.hausdorff())
    assert np.allclose(2 * plain.asd(), twice.asd(), rtol=1e-13)


# ---- surfels, arguments -----------------------------------------------------------------------------------


def test_surfels_are_those_of_the_reference(isa):
    rng = np.random.default_rng(8)
    for i in range(20):
        ndim = 2 + i % 2
        mask = volumes.arrange(rng, volumes.draw(rng, tuple(rng.integers(1, 20, ndim)), 2), bool)
        for definition in ("area", "edge"):
            got = surfels(mask, (2.0, 0.5, 0.7)[:ndim], definition=definition)
            with tenfold.use_backend("reference"):
                want = surfels(mask, (2.0, 0.5, 0.7)[:ndim], definition=definition)
            for g, w in zip(got, want, strict=True):
                assert np.array_equal(g, w)


def test_the_op_holds_its_schema():
    x = torch.randint(0, 3, (4, 6, 9), dtype=torch.uint8)
    arguments = (x, x.flip(2), [1, 1, 2], [0, 1, 3], [1.0, 2.0, 3.0], [1.0, 1.0], [95.0], False, [], [1], 1)
    torch.library.opcheck(torch.ops.tenfold.surface_metrics.default, arguments)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"spacing": 0}, ValueError, r"spacing\[0\]: expected a finite number > 0"),
        ({"spacing": (1, math.nan, 1)}, ValueError, r"spacing\[1\]: expected a finite number > 0, got nan"),
        ({"spacing": (1, 1)}, ValueError, "spacing: expected 3 entries"),
        ({"tolerances": (1, -1)}, ValueError, r"tolerances\[1\]: expected a finite number >= 0, got -1"),
        ({"tolerances": [[1], [2]]}, ValueError, "tolerances: expected 1 entries"),
        ({"percentiles": (101,)}, ValueError, r"percentiles\[0\]: expected a percentage"),
        ({"definition": "surface"}, ValueError, "definition: expected one of 'area', 'edge'"),
        ({"organs": [()]}, ValueError, r"organs\[0\]: expected at least one label"),
        ({"organs": [(-1,)]}, ValueError, r"organs\[0\]\[0\]: expected an integer"),
        ({"target": np.zeros((2, 2, 2, 2), int)}, ValueError, "target: expected 2-D or 3-D labels"),
        ({"pred": np.zeros((3, 4, 6), int)}, ValueError, "pred: expected the shape of target"),
        ({"pred": np.full((3, 4, 5), -2)}, ValueError, "pred: expected labels in .*, got -2 at"),
        ({"num_threads": 0}, ValueError, "num_threads: expected an integer"),
    ],
)
def test_wrong_arguments(change, kind, words):
    arguments = {"target": np.zeros((3, 4, 5), int), "organs": [(1,)], "spacing": 1.0, **change}
    arguments.setdefault("pred", np.zeros(arguments["target"].shape, int))
    with pytest.raises(kind, match=words):
        surface_metrics(**arguments)
