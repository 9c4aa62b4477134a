"""The pictures of the mini canvas: crops of eight photographs, each also in eight styles.

Picture i of every style is the stylisation of photograph i, as in UnlearnCanvas; crops are made from (object,
i) alone. Pictures 1 to 48 of a cell are for training, 49 to 64 for tests.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.assets import packaged_file
from tenfold.diffusion.canvas.mini.styles import apply_style

__all__ = ["CREDITS", "HELD_OUT", "OBJECTS", "SIDE", "TRAINING", "cell_pictures", "photographs"]

SIDE = 32
TRAINING = range(1, 49)
HELD_OUT = range(49, 65)

OBJECTS: dict[str, tuple[str, str, tuple[int, int, int, int]]] = {
    "Architectures": ("sklearn", "datasets/images/china.jpg", (120, 60, 480, 420)),
    "Cats": ("skimage", "data/chelsea.png", (80, 10, 360, 290)),
    "Coffee": ("skimage", "data/coffee.png", (120, 20, 500, 400)),
    "Coins": ("skimage", "data/coins.png", (20, 20, 180, 180)),
    "Flowers": ("sklearn", "datasets/images/flower.jpg", (180, 20, 560, 400)),
    "Horses": ("skimage", "data/horse.png", (20, 0, 348, 328)),
    "Human": ("skimage", "data/astronaut.png", (120, 0, 330, 210)),
    "Rocket": ("skimage", "data/rocket.jpg", (180, 0, 500, 427)),
}
"""Name -> package, file in it, box (left, top, right, bottom) that crops are taken from."""

CREDITS = """\
Architectures: china.jpg in scikit-learn, by danielbuechele, CC BY 2.0
Flowers: flower.jpg in scikit-learn, by vultilion, CC BY 2.0
Cats: chelsea.png in scikit-image, by Stefan van der Walt, CC0
Coffee: coffee.png in scikit-image, by Rachel Michetti, CC0
Coins: coins.png in scikit-image, Brooklyn Museum, no known copyright restrictions
Horses: horse.png in scikit-image, a silhouette, public domain
Human: astronaut.png in scikit-image, NASA, public domain
Rocket: rocket.jpg in scikit-image, SpaceX, CC0
The style Bricks has the texture of brick.png in scikit-image, CC0.
"""
"""Where the photographs come from. They are read out of these packages; none is part of this one."""


@lru_cache(maxsize=8)
def _photograph(name: str) -> NDArray[np.uint8]:
    from PIL import Image

    package, inside, box = OBJECTS[name]
    with Image.open(packaged_file(package, inside)) as image:
        return np.asarray(image.convert("RGB").crop(box))


def photographs(name: str, numbers: range | list[int]) -> NDArray[np.uint8]:
    """Crops of an object's photograph, uint8 [B, 32, 32, 3], by their numbers in 1..64: a square of 88 to
    100 % of the shorter side, Lanczos, brightness 0.9 to 1.1."""
    from PIL import Image

    _checks.choice("name", name, OBJECTS)
    source = _photograph(name)
    height, width = source.shape[:2]
    found = np.empty((len(numbers), SIDE, SIDE, 3), np.uint8)
    for row, number in enumerate(numbers):
        _checks.integer("number", number, 1, 64)
        draw = np.random.Generator(np.random.Philox([list(OBJECTS).index(name), number]))
        size = int(min(height, width) * draw.uniform(0.88, 1.0))
        top, left = (int(draw.integers(0, extent - size + 1)) for extent in (height, width))
        crop = Image.fromarray(source[top : top + size, left : left + size])
        small = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
        found[row] = np.clip(np.rint(small * np.float32(draw.uniform(0.9, 1.1))), 0, 255)
    return found


@lru_cache(maxsize=32)
def _crops(name: str, numbers: tuple[int, ...]) -> NDArray[np.uint8]:
    return photographs(name, list(numbers))


def cell_pictures(style: str, name: str, numbers: range | list[int] = TRAINING) -> NDArray[np.uint8]:
    """Pictures of an object in a style, uint8 [B, 32, 32, 3], by their numbers in 1..64."""
    return apply_style(_crops(name, tuple(numbers)), style)
