"""The whole way of a picture: encoder, power, channel, allocation, receiver, decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops.power import power_normalize
from tenfold.semcom.allocation import Allocation, allocate
from tenfold.semcom.channel import NOISE_STREAM, Fading, complex_normal, estimate_gains, superpose
from tenfold.semcom.codec import Codec

__all__ = ["Link", "Received"]


@dataclass
class Received:
    """What came through: the decoder's input, what it should have been, and the scale that was used."""

    signal: Tensor
    """complex [B, L, K]: the decoder's input"""
    wanted: Tensor
    """complex [B, L, K]: the sum without fading and noise"""
    allocation: Allocation
    gains: Tensor
    """complex [B, L, N, K]: the channel as it was"""
    known: Tensor
    """complex [B, L, N, K]: the channel as it was known"""


@dataclass(frozen=True)
class Link:
    """N users' uplink over K subcarriers.

    power_w: P_n in W: (1/K) sum_k |t|^2 = P_n ("mean") or sum_k |t|^2 = P_n ("sum"), for each OFDM symbol.
    carriers: K.
    fading: of the channel.
    method: a name in `tenfold.semcom.ALLOCATORS`.
    channels: gains complex64 [R, N, K] at variance 1 that are taken instead of drawn ones: row b L + l for
        OFDM symbol l of codeword b, from the start again where rows run out.
    """

    power_w: tuple[float, ...] = (0.6, 0.4)
    carriers: int = 64
    power_mode: str = "mean"
    fading: Fading = field(default_factory=Fading)
    method: str = "none"
    alpha_scope: str = "symbol"
    inversion_floor: float = 0.05
    csi_err_db: float | None = None
    csi_bits: int | None = None
    channels: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _checks.choice("power_mode", self.power_mode, ("mean", "sum"))
        for power in self.power_w:
            _checks.real("power_w", power, positive=True)

    @property
    def budget(self) -> list[float]:
        """P_n as the mean power per subcarrier."""
        return [p / (self.carriers if self.power_mode == "sum" else 1) for p in self.power_w]

    def noise_power_w(self, snr_db: Tensor) -> Tensor:
        """sigma^2 [B] for SNR = 10 log10(P_1 / sigma^2)."""
        return self.budget[0] / 10 ** (snr_db / 10)

    def symbols(self, codec: Codec, images: Tensor, snr_db: Tensor) -> Tensor:
        """Normalised symbols t, complex [B, L, N, K], of pictures [B, N, 3, H, W]."""
        raw = codec.encode(images, snr_db, self.carriers)
        scale = codec.spec.users if codec.spec.orthogonal else 1
        power = scale * torch.tensor(self.budget, device=raw.device)
        out: Tensor = power_normalize(raw, power)
        return out

    def gains(
        self, shape: Sequence[int], seed: int, offset: int = 0, *, first: int, device: object
    ) -> Tensor:
        """complex64 [B, L, N, K] of codewords `first`, `first` + 1, ...: drawn, or those of `channels`."""
        if self.channels is None:
            return self.fading.gains(shape, seed, offset, first=first, device=device)
        batch, symbols, *_ = shape
        row = torch.arange(first * symbols, (first + batch) * symbols) % len(self.channels)
        found = self.channels[row].view(tuple(shape)) * self.fading.variance**0.5
        return found.to(device)

    def send(
        self, codec: Codec, t: Tensor, snr_db: Tensor, seed: int, offset: int = 0, *, first: int = 0
    ) -> Received:
        """Over the channel: symbols [B, L, N, K] to the decoder's input.

        Codeword b takes the draws of number `first` + b, so that shards of a batch see the whole's channel.
        """
        sigma2 = self.noise_power_w(snr_db)
        gains = self.gains(t.shape, seed, offset, first=first, device=t.device)
        known = estimate_gains(
            gains, self.fading, seed, csi_err_db=self.csi_err_db, csi_bits=self.csi_bits, offset=offset,
            first=first,
        )  # fmt: skip
        scale = codec.spec.users if codec.spec.orthogonal else 1
        if codec.spec.orthogonal:
            silent = (t == 0).all(-1, keepdim=True)
            known = torch.where(silent, 0.0, known)
        budget = [scale * p for p in self.budget]
        found = allocate(
            self.method, t, known, budget, sigma2[:, None].expand(t.shape[:2]),
            inversion_floor=self.inversion_floor, alpha_scope=self.alpha_scope,
        )  # fmt: skip
        shape = (*t.shape[:2], t.shape[3])
        noise = complex_normal(
            shape, 1.0, seed, NOISE_STREAM, offset, first=first * shape[1] * shape[2], device=t.device
        )
        y = superpose(gains, found.transmit) + sigma2.sqrt()[:, None, None] * noise
        return Received(found.scale * y, t.sum(2), found, gains, known)

    def __call__(
        self, codec: Codec, images: Tensor, snr_db: Tensor, seed: int, offset: int = 0, *, first: int = 0
    ) -> tuple[Tensor, Received]:
        """Pictures [B, N, 3, H, W] as the base station gets them."""
        t = self.symbols(codec, images, snr_db)
        received = self.send(codec, t, snr_db, seed, offset, first=first)
        height, width = images.shape[-2:]
        csi = received.known if codec.spec.csi else None
        return codec.decode(received.signal, snr_db, (height, width), csi), received
