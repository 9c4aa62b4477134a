"""Picture files as arrays; a file that is no picture is a ValueError that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_pixels"]


def read_pixels(path: Path, *, gray: bool = False) -> NDArray[np.uint8]:
    """uint8 [H, W, 3], or [H, W] of a gray picture where `gray` says that it may stay one.

    Raises:
        ValueError: a broken picture.
        FileNotFoundError: no file there.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image if gray and image.mode == "L" else image.convert("RGB"))
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError, or that it is a bomb
        raise ValueError(f"{path}: expected a picture, got a broken one ({error})") from error
