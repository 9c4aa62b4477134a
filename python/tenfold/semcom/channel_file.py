"""Channels in a file, to be used again: ``channels.npz`` with g, complex64 [R, N, K], at variance 1.

Row b L + l is OFDM symbol l of codeword b. A sweep multiplies by the square root of its variance.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tenfold import _checks
from tenfold._npy import read_npz
from tenfold.runs.files import replacing

__all__ = ["read_channels", "write_channels"]


def write_channels(path: str | Path, gains: Tensor) -> None:
    """Keep gains, complex64 [R, N, K] (or [B, L, N, K], whose rows are B L)."""
    rows = gains.resolve_conj().reshape(-1, *gains.shape[-2:]).to(torch.complex64).cpu().numpy()
    with replacing(Path(path)) as aside, aside.open("wb") as file:
        np.savez(file, g=rows)


def read_channels(path: str | Path, users: int, carriers: int) -> Tensor:
    """complex64 [R, N, K] of a file that `write_channels` made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold finite complex64 gains of N users and K subcarriers under the name g.
    """
    found = Path(path)
    if not found.is_file():
        raise FileNotFoundError(f"channels: expected a file channels.npz, got {found}")
    return _read(found, found.stat().st_mtime_ns, users, carriers)


@lru_cache(maxsize=2)
def _read(path: Path, _changed: int, users: int, carriers: int) -> Tensor:
    expected = f"g in {path.name}, finite complex64 [R, {users}, {carriers}]"
    try:
        gains = read_npz(path, ["g"])["g"]
    except (ValueError, KeyError, OSError) as error:
        _checks.fail(ValueError, "channels", expected, f"{type(error).__name__}: {error}")
    if gains.dtype != np.complex64 or gains.ndim != 3 or gains.shape[1:] != (users, carriers):
        _checks.fail(ValueError, "channels", expected, f"{gains.dtype} {list(gains.shape)}")
    if not len(gains) or not np.isfinite(gains).all():
        _checks.fail(ValueError, "channels", expected, "none" if not len(gains) else "NaN or infinity")
    return torch.from_numpy(gains)
