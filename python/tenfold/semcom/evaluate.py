"""Scores of every method on one channel, with the same pictures, fading and noise for all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.metrics.image import psnr, ssim
from tenfold.semcom.allocation import nmse_db
from tenfold.semcom.channel import NOISE_STREAM, complex_normal
from tenfold.semcom.codec import Codec
from tenfold.semcom.config import DIGITAL, OWN_CODEC, CtsemcomConfig
from tenfold.semcom.digital import Ladder, capacity_bits, capacity_bound_jpeg, jpeg_ladder
from tenfold.semcom.ldpc import RATE, cancelled
from tenfold.semcom.link import Link

__all__ = ["Cell", "Score", "cells", "evaluate", "evaluate_one", "ladders_of"]

TEST_SEED = 2**40
"""Added to the run's seed: channels of the test are not those of the training."""

_BATCH = 32


@dataclass(frozen=True)
class Cell:
    """One channel: SNR in dB, fading variance; error of the channel estimate in dB and bits of feedback
    (None: the run's own); users in all (0: one group)."""

    snr_db: float
    variance: float = 1.0
    csi_err_db: float | None = None
    csi_bits: int | None = None
    users: int = 0

    @property
    def key(self) -> str:
        """Name in the folder."""
        return "-".join(self.parts)

    @property
    def parts(self) -> list[str]:
        """What tells channels apart, as names of files and numbers say it."""
        found = [f"snr{self.snr_db:g}", f"var{self.variance:g}"]
        found += [] if self.csi_err_db is None else [f"csi{self.csi_err_db:g}"]
        found += [] if self.csi_bits is None else [f"bits{self.csi_bits}"]
        return found + ([f"users{self.users}"] if self.users else [])


@dataclass
class Score:
    """One method on one channel. Lists have one entry per codeword (of all groups); users are averaged in
    dB."""

    method: str
    snr_db: float
    variance: float
    csi_err_db: float | None
    csi_bits: int | None
    users: int
    psnr_db: list[float]
    ssim: list[float]
    nmse_db: list[float]
    """of the decoder's input; empty where nothing is superposed for a decoder"""
    alpha: float
    ms_per_row: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def cell(self) -> Cell:
        """The channel."""
        return Cell(self.snr_db, self.variance, self.csi_err_db, self.csi_bits, self.users)

    @property
    def values(self) -> NDArray[np.float64]:
        """PSNR of every codeword, dB."""
        return np.array(self.psnr_db)


def cells(config: CtsemcomConfig) -> list[Cell]:
    """The channels of a run."""
    at = config.snr_picture_db
    found = [Cell(snr) for snr in config.snr_db]
    found += [Cell(snr, variance) for snr in config.variance_snr_db for variance in config.variances]
    found += [Cell(at, users=users) for users in config.users]
    if config.fading != "awgn":
        found += [Cell(at)]
        found += [Cell(at, csi_err_db=error) for error in config.csi_errors_db]
        found += [Cell(at, csi_bits=bits) for bits in config.csi_bits_tried]
    return list(dict.fromkeys(found))


def methods_of(config: CtsemcomConfig, cell: Cell) -> list[str]:
    """Those that know the channel, where its estimate is varied; otherwise all."""
    varied = cell.csi_err_db is not None or cell.csi_bits is not None
    blind = ("awgn", "none", *DIGITAL) if varied else ()
    return [m for m in config.methods if m not in blind]


def evaluate(
    config: CtsemcomConfig,
    codecs: Mapping[str, Codec],
    images: Tensor,
    cell: Cell,
    ladders: list[Ladder] | None = None,
) -> list[Score]:
    """Every method of a run on pictures [B, N, 3, H, W]; `ladders` of all pictures, if they are at hand."""
    sent: dict[tuple[str, int], Tensor] = {}
    return [_score(config, codecs, images, cell, m, ladders, sent) for m in methods_of(config, cell)]


def ladders_of(images: Tensor) -> list[Ladder]:
    """JPEG at every quality of every picture of [B, N, 3, H, W]."""
    flat = (images.flatten(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [jpeg_ladder(picture) for picture in flat]


def _score(
    config: CtsemcomConfig,
    codecs: Mapping[str, Codec],
    images: Tensor,
    cell: Cell,
    method: str,
    ladders: list[Ladder] | None,
    sent: dict[tuple[str, int], Tensor],
) -> Score:
    score = Score(method, **asdict(cell), psnr_db=[], ssim=[], nmse_db=[], alpha=0.0, ms_per_row=0.0)
    seconds, rows, alphas = 0.0, 0, 0.0
    users = images.shape[1]
    # Channels of a number of users are not those of another: codewords are counted on.
    begin = (1 + config.users.index(cell.users)) * len(images) if cell.users else 0
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH]
        part = None if ladders is None else ladders[first * users : (first + len(batch)) * users]
        out, signal = evaluate_one(
            config, codecs, batch, cell, method, first=begin + first, ladders=part, sent=sent
        )
        pair = out.flatten(0, 1), batch.flatten(0, 1)
        score.psnr_db += psnr(*pair, reduction="none").view(-1, users).mean(1).tolist()
        score.ssim += ssim(*pair, reduction="none").view(-1, users).mean(1).tolist()
        score.nmse_db += signal["nmse_db"]
        seconds, rows = seconds + signal["seconds"], rows + signal["rows"]
        alphas += signal["alpha"] * len(batch)
    score.alpha, score.ms_per_row = alphas / len(images), 1000 * seconds / max(rows, 1)
    if cell.users:
        groups = cell.users // users
        score.psnr_db, score.ssim = _frames(score.psnr_db, groups), _frames(score.ssim, groups)
        score.nmse_db = _frames(score.nmse_db, groups)
    return score


def _frames(values: list[float], groups: int) -> list[float]:
    """Means of the groups that share a frame."""
    whole = np.array(values[: len(values) // groups * groups])
    found: list[float] = whole.reshape(-1, groups).mean(1).tolist()
    return found


@torch.no_grad()
def evaluate_one(
    config: CtsemcomConfig,
    codecs: Mapping[str, Codec],
    images: Tensor,
    cell: Cell,
    method: str,
    *,
    first: int = 0,
    ladders: list[Ladder] | None = None,
    sent: dict[tuple[str, int], Tensor] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Pictures as one method delivers them, and what happened on the way.

    `first` is the number of the first codeword: its channel is the same whatever batch it is in. `sent`
    keeps what codecs send of these pictures at this SNR, for the next method.
    """
    link = config.link(method, cell.variance, cell.csi_err_db, cell.csi_bits)
    seed = config.seed + TEST_SEED
    snr = torch.full((len(images),), cell.snr_db, device=images.device)
    if method in DIGITAL:
        out = _digital(config, link, images, snr, seed, first, ladders, coded=method == "digital-ldpc")
        return out, {"nmse_db": [], "seconds": 0.0, "rows": 0, "alpha": 0.0}
    role = method if method in OWN_CODEC else "codec"
    codec, sent = codecs[role], {} if sent is None else sent
    t = sent.get((role, first))
    if t is None:
        t = sent[role, first] = link.symbols(codec, images, snr)
    start = time.process_time()
    received = link.send(codec, t, snr, seed, first=first)
    seconds = time.process_time() - start
    height, width = images.shape[-2:]
    csi = received.known if codec.spec.csi else None
    out = codec.decode(received.signal, snr, (height, width), csi)
    compared = not codec.spec.csi  # its decoder does not expect the sum
    return out, {
        "nmse_db": nmse_db(received.signal, received.wanted).tolist() if compared else [],
        "seconds": seconds, "rows": t.shape[0] * t.shape[1],
        "alpha": float(received.allocation.scale.abs().mean()),
    }  # fmt: skip


def _digital(
    config: CtsemcomConfig, link: Link, images: Tensor, snr_db: Tensor, seed: int, first: int,
    ladders: list[Ladder] | None, *, coded: bool,
) -> Tensor:  # fmt: skip
    """Pictures as JPEG at capacity, or in an LDPC code."""
    height, width = images.shape[-2:]
    length = -(-config.symbols * (height // 4) * (width // 4) // config.carriers)
    shape = (len(images), length, config.group, config.carriers)
    gains = link.gains(shape, seed, first=first, device=images.device)
    sigma2 = link.noise_power_w(snr_db)
    if not coded:
        return capacity_bound_jpeg(images, capacity_bits(gains, link.budget, sigma2), ladders)
    rows = (shape[0], shape[1], shape[3])
    start = first * shape[1] * shape[3]
    noise = complex_normal(rows, 1.0, seed, NOISE_STREAM, first=start, device=images.device)
    right = cancelled(gains, noise, link.budget, sigma2, seed, first=first)
    bits = int(2 * shape[1] * shape[3] * RATE)
    return capacity_bound_jpeg(images, right * float(bits), ladders)
