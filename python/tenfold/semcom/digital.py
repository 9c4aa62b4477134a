"""The digital way with successive cancellation, at its capacity: a bound on JPEG over NOMA, without a code.

Per subcarrier the user with the larger received power is decoded first, in the noise of the others, and taken
away. A picture gets sum_{l,k} log2(1 + SINR) bits in all and is sent, without error, as the best JPEG that
fits. A real code and 4-QAM stay below this; what no JPEG fits into counts as the picture's grey mean.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks

__all__ = ["QUALITIES", "capacity_bits", "capacity_bound_jpeg", "jpeg_ladder"]

QUALITIES = (1, 2, 3, 4, 5, 7, 9, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 95)

Ladder = list[tuple[int, NDArray[np.uint8]]]


def capacity_bits(gains: Tensor, power_w: Sequence[float], noise_power_w: Tensor) -> Tensor:
    """Bits [B, N] that fit in a codeword of gains complex [B, L, N, K], equal power on all subcarriers.

    noise_power_w: sigma^2, [B].
    """
    power = torch.tensor(power_w, dtype=gains.real.dtype, device=gains.device)
    if power.shape != (gains.shape[2],):
        _checks.fail(ValueError, "power_w", f"one power for each of {gains.shape[2]} users", len(power_w))
    received = power[:, None] * gains.abs().square()
    order = torch.argsort(received, dim=2, descending=True, stable=True)
    sorted_power = received.gather(2, order)
    later = sorted_power.flip(2).cumsum(2).flip(2) - sorted_power
    rate = torch.log2(1 + sorted_power / (later.clamp_min(0) + noise_power_w[:, None, None, None]))
    return torch.empty_like(rate).scatter_(2, order, rate).sum((1, 3))


def jpeg_ladder(picture: NDArray[np.uint8]) -> Ladder:
    """(bits, decoded picture) of a picture [H, W, 3] at every quality, from the lowest.

    Bits are those of the entropy-coded scan: quantisation and Huffman tables are standard and known to the
    receiver once the quality is, the size too.
    """
    from PIL import Image

    found: Ladder = []
    for quality in QUALITIES:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality, optimize=False)
        content = file.getvalue()
        scan = content.rindex(b"\xff\xda")
        length = int.from_bytes(content[scan + 2 : scan + 4], "big")
        bits = 8 * (len(content) - scan - 2 - length - 2)
        with Image.open(io.BytesIO(content)) as decoded:
            found.append((bits, np.asarray(decoded.convert("RGB"))))
    return found


def capacity_bound_jpeg(images: Tensor, bits: Tensor, ladders: Sequence[Ladder] | None = None) -> Tensor:
    """Pictures [B, N, 3, H, W] in [0, 1] as JPEG of at most bits [B, N]; the grey mean where none fits.

    `ladders`: of every picture in order, if they are at hand (`jpeg_ladder`).
    """
    flat = images.reshape(-1, *images.shape[2:])
    if ladders is None:
        pictures = (flat * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        ladders = [jpeg_ladder(picture) for picture in pictures]
    out = torch.empty_like(flat)
    for i, (ladder, room) in enumerate(zip(ladders, bits.flatten().tolist(), strict=True)):
        fitting = [picture for size, picture in ladder if size <= room]
        if fitting:
            out[i] = torch.from_numpy(fitting[-1].copy()).permute(2, 0, 1).float() / 255
        else:
            out[i] = flat[i].mean()
    return out.view(images.shape)
