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
from tenfold.semcom.codec import Codec
from tenfold.semcom.config import OWN_CODEC, CtsemcomConfig
from tenfold.semcom.digital import Ladder, capacity_bits, capacity_bound_jpeg, jpeg_ladder

__all__ = ["Cell", "Score", "cells", "evaluate", "evaluate_one", "ladders_of"]

TEST_SEED = 2**40
"""Added to the run's seed: channels of the test are not those of the training."""

_BATCH = 32


@dataclass(frozen=True)
class Cell:
    """One channel: SNR in dB, fading variance, error of the channel estimate in dB (None: the run's own)."""

    snr_db: float
    variance: float = 1.0
    csi_err_db: float | None = None

    @property
    def key(self) -> str:
        """Name in the folder."""
        error = "" if self.csi_err_db is None else f"-csi{self.csi_err_db:g}"
        return f"snr{self.snr_db:g}-var{self.variance:g}{error}"


@dataclass
class Score:
    """One method on one channel. Lists have one entry per codeword; users are averaged in dB."""

    method: str
    snr_db: float
    variance: float
    csi_err_db: float | None
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
    def values(self) -> NDArray[np.float64]:
        """PSNR of every codeword, dB."""
        return np.array(self.psnr_db)


def cells(config: CtsemcomConfig) -> list[Cell]:
    """The channels of a run."""
    found = [Cell(snr) for snr in config.snr_db]
    found += [Cell(snr, variance) for snr in config.variance_snr_db for variance in config.variances]
    if config.fading != "awgn":
        found += [Cell(config.snr_picture_db)]
        found += [Cell(config.snr_picture_db, 1.0, error) for error in config.csi_errors_db]
    return list(dict.fromkeys(found))


def methods_of(config: CtsemcomConfig, cell: Cell) -> list[str]:
    """Those that know the channel, where its estimate is in error; otherwise all."""
    blind = ("awgn", "none", "digital") if cell.csi_err_db is not None else ()
    return [m for m in config.methods if m not in blind]


def evaluate(
    config: CtsemcomConfig,
    codecs: Mapping[str, Codec],
    images: Tensor,
    cell: Cell,
    ladders: list[Ladder] | None = None,
) -> list[Score]:
    """Every method of a run on pictures [B, N, 3, H, W]; `ladders` of all pictures, if they are at hand."""
    return [_score(config, codecs, images, cell, m, ladders) for m in methods_of(config, cell)]


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
) -> Score:
    score = Score(method, cell.snr_db, cell.variance, cell.csi_err_db, [], [], [], 0.0, 0.0)
    seconds, rows, alphas = 0.0, 0, 0.0
    users = images.shape[1]
    for first in range(0, len(images), _BATCH):
        batch = images[first : first + _BATCH]
        part = None if ladders is None else ladders[first * users : (first + len(batch)) * users]
        out, signal = evaluate_one(config, codecs, batch, cell, method, first=first, ladders=part)
        score.psnr_db += psnr(out.flatten(0, 1), batch.flatten(0, 1), reduction="none").view(-1, users).mean(
            1
        ).tolist()  # fmt: skip
        score.ssim += ssim(out.flatten(0, 1), batch.flatten(0, 1), reduction="none").view(-1, users).mean(
            1
        ).tolist()  # fmt: skip
        score.nmse_db += signal["nmse_db"]
        seconds, rows = seconds + signal["seconds"], rows + signal["rows"]
        alphas += signal["alpha"] * len(batch)
    score.alpha, score.ms_per_row = alphas / len(images), 1000 * seconds / max(rows, 1)
    return score


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
) -> tuple[Tensor, dict[str, Any]]:
    """Pictures as one method delivers them, and what happened on the way.

    `first` is the number of the first codeword: its channel is the same whatever batch it is in.
    """
    link = config.link(method, cell.variance, cell.csi_err_db)
    seed = config.seed + TEST_SEED
    snr = torch.full((len(images),), cell.snr_db, device=images.device)
    if method == "digital":
        maps, (height, width) = config.symbols, images.shape[-2:]
        length = -(-maps * (height // 4) * (width // 4) // config.carriers)
        shape = (len(images), length, config.users, config.carriers)
        gains = link.fading.gains(shape, seed, first=first, device=images.device)
        bits = capacity_bits(gains, link.budget, link.noise_power_w(snr))
        out = capacity_bound_jpeg(images, bits, ladders)
        return out, {"nmse_db": [], "seconds": 0.0, "rows": 0, "alpha": 0.0}
    codec = codecs[method if method in OWN_CODEC else "codec"]
    t = link.symbols(codec, images, snr)
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
