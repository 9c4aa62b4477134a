from __future__ import annotations

import numpy as np
import pytest

from tenfold.eeg.montage import (
    DEAP_CHANNELS,
    FACED_CHANNELS,
    LOBES,
    SEED_CHANNELS,
    lobe,
    positions,
    positions_2d,
)


def test_channel_lists() -> None:
    assert [len(c) for c in (SEED_CHANNELS, DEAP_CHANNELS, FACED_CHANNELS)] == [62, 32, 30]
    assert (SEED_CHANNELS[0], SEED_CHANNELS[57], SEED_CHANNELS[-1]) == ("FP1", "CB1", "CB2")
    assert len(set(SEED_CHANNELS)) == 62
    assert set(FACED_CHANNELS) < set(DEAP_CHANNELS) < set(SEED_CHANNELS)


def test_points_lie_apart_on_the_sphere() -> None:
    points = positions(SEED_CHANNELS)
    assert np.allclose(np.linalg.norm(points, axis=1), 1)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(62)
    assert apart.min() > 0.15


def test_known_angles() -> None:
    """Cz on top; T8 72 degrees down towards the right ear; Fpz and Oz in front and behind; Fz halfway."""
    sin, cos = np.sin(np.radians(72)), np.cos(np.radians(72))
    expected = [[0, 0, 1], [sin, 0, cos], [0, sin, cos], [0, -sin, cos]]
    assert np.allclose(positions(["Cz", "T8", "Fpz", "Oz"]), expected)
    assert np.allclose(positions_2d(["Fz", "C4", "T7", "PO9"])[:3], [[0, 0.4], [0.4, 0], [-0.8, 0]])
    assert np.hypot(*positions_2d(["PO9"])[0]) == pytest.approx(1)
    assert np.allclose(positions(["T3", "T6", "CB2"]), positions(["T7", "P8", "PO10"]))


ROWS = """
AF7 AF5 AF3 AF1 AFz, F7 F5 F3 F1 Fz F2 F4 F6 F8, FT7 FC5 FC3 FC1 FCz, T7 C5 C3 C1 Cz C2 C4,
TP8 CP6 CP4 CP2 CPz, PO7 PO5 PO3 PO1 POz PO2
"""


@pytest.mark.parametrize("row", [row.strip() for row in ROWS.split(",")])
def test_rows_have_equal_steps(row: str) -> None:
    steps = np.linalg.norm(np.diff(positions(row.split()), axis=0), axis=1)
    assert np.allclose(steps, steps[0])
    assert steps[0] > 0.1


@pytest.mark.parametrize(
    "chain", ["FPz FP2 AF8 F8 FT8 T8 TP8 P8 PO8 O2 Oz", "FPz AFz Fz FCz Cz CPz Pz POz Oz"]
)
def test_ring_and_midline_go_in_even_steps(chain: str) -> None:
    points = positions(chain.split())
    between = np.degrees(np.arccos((points[1:] * points[:-1]).sum(axis=1)))
    ring = np.degrees(
        np.arccos(np.cos(np.radians(72)) ** 2 + np.sin(np.radians(72)) ** 2 * np.cos(np.pi / 10))
    )
    assert np.allclose(between, 18 if "Cz" in chain else ring)


def test_left_mirrors_right() -> None:
    number = {"1": "2", "3": "4", "5": "6", "7": "8"}
    left = [c for c in SEED_CHANNELS if c[-1] in number]
    right = [c[:-1] + number[c[-1]] for c in left]
    assert np.allclose(positions(left) * [-1, 1, 1], positions(right))
    assert (positions_2d(left)[:, 0] < 0).all()
    assert len(left) == 27


def test_lobes() -> None:
    assert {lobe(c) for c in SEED_CHANNELS} == set(LOBES)
    expected = {"AF3": "frontal", "FC1": "central", "Cz": "central", "FT7": "temporal", "T4": "temporal",
                "P8": "parietal", "POz": "occipital", "CB1": "occipital"}  # fmt: skip
    assert {c: lobe(c) for c in expected} == expected


@pytest.mark.parametrize("name", ["A1", "M2", "T1", "C7", "FP3", "O5", "FT5", "X3", "", "FZZ", 3])
def test_other_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"channel: expected a name of the 10-10 system, got "):
        positions([name])
