"""Where electrodes sit: the 10-10 system on a sphere, and on paper.

The positions are computed, not measured. Jasper's 10-20 system (1958) and its extension to 10 % steps
(Oostenveld, Praamstra 2001) divide arcs over the head; on a sphere whose lowest ring goes through nasion,
inion and both preauricular points these are angles: a tenth of the arc from nasion to inion is 18 degrees.

    ring      Fpz, T8, Oz, T7 lie 72 degrees from Cz; Fp2 and AF8 to O2 follow in steps of 18 degrees
    midline   AFz, Fz, FCz, Cz, CPz, Pz, POz lie 18 degrees apart
    rows      F7 to F8: the circle through F7, Fz and F8, either half cut into four equal arcs

A sphere is no head: use these for maps and neighbourhoods, not to localise sources.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks

__all__ = ["DEAP_CHANNELS", "FACED_CHANNELS", "LOBES", "SEED_CHANNELS", "lobe", "positions", "positions_2d"]

_SEED = """
FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8
T7 C5 C3 C1 CZ C2 C4 C6 T8 TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8
PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2
"""
_DEAP = """
FP1 AF3 F3 F7 FC5 FC1 C3 T7 CP5 CP1 P3 P7 PO3 O1 OZ PZ
FP2 AF4 FZ F4 F8 FC6 FC2 CZ C4 T8 CP6 CP2 P4 P8 PO4 O2
"""
_FACED = """
FP1 FP2 FZ F3 F4 F7 F8 FC1 FC2 FC5 FC6 CZ C3 C4 T7 T8 CP1 CP2 CP5 CP6 PZ P3 P4 P7 P8 PO3 PO4 OZ O1 O2
"""
SEED_CHANNELS = tuple(_SEED.split())
"""The 62 channels of SEED, SEED-IV and SEED-V in the order of their files."""
DEAP_CHANNELS = tuple(_DEAP.split())
"""The 32 EEG channels of DEAP's preprocessed files."""
FACED_CHANNELS = tuple(_FACED.split())
"""The 30 EEG channels of FACED; its files hold the mastoids A2 and A1 after them."""

LOBES = ("frontal", "central", "temporal", "parietal", "occipital")

_OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
# Cerebellar electrodes are no part of the 10-10 system; they are put where PO9 and PO10 are.
_BY_ANOTHER_NAME = {"CB1": "PO9", "CB2": "PO10"}
_NAME = re.compile(r"(FP|AF|FT|FC|F|TP|T|CP|C|PO|P|O)(Z|10|[1-9])")
# Row -> angle from Cz of its midline electrode (towards the nose), and angle of its end on the ring.
_ROWS: dict[str, tuple[float, float]] = {
    "AF": (54, 36),
    "F": (36, 54),
    "FC": (18, 72),
    "C": (0, 90),
    "CP": (-18, 108),
    "P": (-36, 126),
    "PO": (-54, 144),
}
_ROW_OF_PREFIX = {"FT": "FC", "T": "C", "TP": "CP"}
_ON_THE_RING = {"FP": 18.0, "O": 162.0}  # FP1, FP2, O1, O2 lie on the ring, FPZ and OZ between them


def positions(channels: Sequence[str]) -> NDArray[np.float64]:
    """Points on the unit sphere: x to the right ear, y to the nose, z up.

    Args:
        channels: names of the 10-10 system in any case, also T3 to T6 for T7, T8, P7, P8, and SEED's CB1 and
            CB2, which are put at PO9 and PO10.

    Returns:
        float64 [len(channels), 3].

    Raises:
        ValueError: a name outside the system.
    """
    return np.array([_point(name) for name in _checks.sequence("channels", channels, "names")]).reshape(-1, 3)


def positions_2d(channels: Sequence[str]) -> NDArray[np.float64]:
    """The same seen from above, unrolled: distance from the middle is the angle from Cz.

    Returns:
        float64 [len(channels), 2], x to the right, y to the nose; Cz is 0, the ring through Fpz and T7 has
        radius 0.8, and 1 is the level of nasion and ears (azimuthal equidistant projection).
    """
    x, y, z = positions(channels).T
    across = np.hypot(x, y)
    radius = np.arctan2(across, z) / (math.pi / 2)
    scale = np.divide(radius, across, out=np.zeros_like(across), where=across > 1e-12)
    return np.stack([x * scale, y * scale], axis=1)


def lobe(channel: str) -> str:
    """One of :data:`LOBES`, by the letters of the name.

    FP, AF and F are frontal; FC, C and CP central; FT, T and TP temporal; P parietal; PO, O and CB occipital.
    """
    letters, _ = _parse(channel)
    if letters in ("FP", "AF", "F"):
        return "frontal"
    if letters in ("FT", "T", "TP"):
        return "temporal"
    return {"P": "parietal", "PO": "occipital", "O": "occipital"}.get(letters, "central")


def _parse(channel: str) -> tuple[str, str]:
    """Letters and number (or Z) of a name."""
    name = channel.upper() if isinstance(channel, str) else ""
    name = _OLD_NAMES.get(name, name)
    found = _NAME.fullmatch(_BY_ANOTHER_NAME.get(name, name))
    if found:
        letters, number = found.groups()
        lateral = letters in ("FT", "T", "TP")
        outer = number in ("7", "8", "9", "10")
        # FP and O end where they begin; the T rows are the outer ends of FC, C and CP.
        if letters in _ON_THE_RING:
            fits = number in ("1", "2", "Z", "9", "10")
        else:
            fits = outer if lateral else not (outer and letters in ("FC", "C", "CP"))
        if fits:
            return letters, number
    _checks.fail(ValueError, "channel", "a name of the 10-10 system", repr(channel))


def _point(channel: str) -> tuple[float, float, float]:
    letters, number = _parse(channel)
    left = number != "Z" and int(number) % 2 == 1
    x, y, z = _right(letters, number)
    return (-x if left else x), y, z


def _right(letters: str, number: str) -> tuple[float, float, float]:
    """The point, or its mirror image on the right if it lies on the left."""
    step = 0 if number == "Z" else (int(number) + 1) // 2  # 1 for 1 and 2, 4 for 7 and 8, 5 for 9 and 10
    if letters in _ON_THE_RING:
        middle = 0.0 if letters == "FP" else 180.0
        return _ring(_ON_THE_RING[letters] if step else middle, 90 if step == 5 else 72)
    forward, end = _ROWS[_ROW_OF_PREFIX.get(letters, letters)]
    if step == 5:
        return _ring(end, 90)
    a = math.radians(forward)
    return _along((0.0, math.sin(a), math.cos(a)), _ring(end, 72), step / 4)


def _ring(azimuth: float, from_top: float) -> tuple[float, float, float]:
    """`azimuth` degrees to the right of the nose, `from_top` degrees from Cz."""
    a, t = math.radians(azimuth), math.radians(from_top)
    return math.sin(t) * math.sin(a), math.sin(t) * math.cos(a), math.cos(t)


def _along(
    middle: tuple[float, float, float], end: tuple[float, float, float], share: float
) -> tuple[float, float, float]:
    """A point on the circle through `middle`, `end` and the end's mirror image on the left.

    The circle is the cut of a plane that holds the x axis's direction: in it, coordinates are x and the
    distance from the line between the two ends.
    """
    height = math.dist(middle[1:], end[1:])
    if height < 1e-12 or end[0] < 1e-12:
        return middle
    radius = (height**2 + end[0] ** 2) / (2 * height)
    angle = share * math.atan2(end[0], radius - height)
    x, down = radius * math.sin(angle), radius * (1 - math.cos(angle))
    y, z = (m + (e - m) * down / height for m, e in zip(middle[1:], end[1:], strict=True))
    return x, y, z
