"""Settings of the workflow ``ctsemcom``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tenfold import _checks
from tenfold.semcom.channel import FADINGS, Fading
from tenfold.semcom.channel_file import read_channels
from tenfold.semcom.codec import CODECS, CodecSpec
from tenfold.semcom.link import Link
from tenfold.semcom.train import TrainSettings

__all__ = ["DIGITAL", "METHODS", "OWN_CODEC", "CtsemcomConfig"]

METHODS: dict[str, tuple[str, str]] = {
    "awgn": ("AWGN, no fading", "the codec on the channel that it was trained on, gain 1"),
    "none": ("no adaptation", "equal power, the received signal as it is"),
    "rx-lmmse": ("receiver LMMSE", "equal power, the receiver equalises every subcarrier"),
    "phase": ("phase only", "equal power, users turn their phases to meet"),
    "water-filling": ("water-filling", "aligned phases, power for capacity"),
    "mse-water-filling": ("MSE water-filling", "aligned phases, power for each user's error, LMMSE receiver"),
    "invert": ("channel inversion", "truncated, one scale for all"),
    "ssdt-sep": ("SSDT, separable", "each user knows its own symbols and channel"),
    "ssdt-joint-csi": ("SSDT, joint, alpha by CSI", "users share symbols and channels, alpha by channels"),
    "ssdt-joint": ("SSDT, joint", "users share symbols and channels: the optimum"),
    "e2e": ("end to end", "a codec trained over fading; its decoder sees signal and channels side by side"),
    "e2e-matched": (
        "end to end, matched",
        "the same, but its decoder is also shown the signal matched to each user's channel",
    ),
    "oma": ("OMA", "each user on its own symbols, codec trained so, receiver LMMSE"),
    "digital": ("JPEG at NOMA capacity", "successive cancellation, no error: a bound, no code"),
    "digital-ldpc": ("JPEG, LDPC, NOMA", "4-QAM, code rate 1/2, successive cancellation; needs Sionna"),
}
"""Name -> what a reader sees, and what it is, in the order of every table."""

DIGITAL = ("digital", "digital-ldpc")
"""Those that send no features of a codec."""

_OVER_FADING = ("e2e", "e2e-matched")
OWN_CODEC = (*_OVER_FADING, "oma")

_DEFAULT = [
    "awgn", "none", "rx-lmmse", "phase", "water-filling", "mse-water-filling", "invert", "ssdt-sep",
    "ssdt-joint-csi", "ssdt-joint", "e2e", "e2e-matched", "digital",
]  # fmt: skip


@dataclass
class CtsemcomConfig:
    """Train a picture codec on one channel, freeze it, and use it on others, with and without SSDT.

    Two users send on the same OFDM subcarriers; one decoder takes the sum. dB where a name says _db, W where
    it says _w, otherwise linear. The embedded default sends patches of two photographs that the codec never
    saw, over Rayleigh fading, with a codec trained on the channel without fading.
    """

    dataset: Literal["photographs", "cifar10", "folder"] = "photographs"
    """photographs (embedded), CIFAR-10 in its published layout, or a folder of pictures."""

    data: str = ""
    """Folder of cifar10 or folder. Left empty: the embedded photographs."""

    codec: Literal["adjscc-lite", "adjscc", "deepjscc"] = "adjscc-lite"
    """Network of the codec."""

    width: int = 0
    """Channels of the codec's inner layers. 0: the network's own."""

    symbols: int = 4
    """Complex feature maps of a user: OFDM symbols per 32x32 picture at 64 subcarriers."""

    carriers: int = 64
    """Subcarriers K of an OFDM symbol."""

    power_w: list[float] = field(default_factory=lambda: [0.6, 0.4])
    """Transmit power of each user in W; as many users share the subcarriers as there are numbers."""

    users: list[int] = field(default_factory=list)
    """Numbers of users that are also tried, in groups of as many as there are powers, each group on OFDM
    symbols of its own; at snr_picture_db and variance 1."""

    power_mode: Literal["mean", "sum"] = "mean"
    """mean: (1/K) sum |t|^2 = P; sum: sum |t|^2 = P, both per OFDM symbol."""

    alpha_scope: Literal["symbol", "codeword"] = "symbol"
    """ssdt-joint: one receiver scalar per OFDM symbol, or one per codeword."""

    train_fading: Literal["awgn", "rayleigh", "rician"] = "awgn"
    """Channel that the codec is trained on."""

    fading: Literal["awgn", "rayleigh", "rician"] = "rayleigh"
    """Channel that it is used on (and that the end-to-end codec is trained on)."""

    k_factor_db: float = 10.0
    """Rician: constant over scattered power, dB."""

    block: bool = False
    """Whether all OFDM symbols of a codeword fade alike."""

    channels: str = ""
    """File channels.npz of a run (g, complex64 [R, N, K] at variance 1): these channels instead of drawn."""

    csi_err_db: float | None = None
    """Power of the channel estimate's error over the fading variance, dB. None: the channel is known."""

    csi_bits: int | None = None
    """Bits fed back per user and subcarrier (even). None: unquantised."""

    csi_errors_db: list[float] = field(default_factory=lambda: [-20.0, -10.0, -5.0])
    """Errors of the channel estimate that are also tried, at snr_picture_db and variance 1."""

    csi_bits_tried: list[int] = field(default_factory=lambda: [4])
    """Bits of feedback that are also tried (even numbers), at snr_picture_db and variance 1."""

    methods: list[str] = field(default_factory=lambda: list(_DEFAULT))
    """Ways to send: awgn, none, rx-lmmse, phase, water-filling, mse-water-filling, invert, ssdt-sep,
    ssdt-joint-csi, ssdt-joint, e2e, e2e-matched, oma, digital, digital-ldpc."""

    snr_db: list[float] = field(default_factory=lambda: [0.0, 5.0, 10.0, 15.0, 20.0])
    """SNRs of the sweep at variance 1: 10 log10(P_1 / sigma^2), dB."""

    variances: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0, 2.0, 4.0])
    """Fading variances of the sweep."""

    variance_snr_db: list[float] = field(default_factory=lambda: [5.0, 10.0])
    """SNRs at which the variance is swept, dB."""

    snr_picture_db: float = 10.0
    """SNR of the pictures side by side and of the errors of the channel estimate, dB."""

    pairs: int = 160
    """Test codewords, each of one patch per user."""

    steps: int = 840
    """Optimiser steps of each codec but e2e."""

    e2e_steps: int = 1680
    """Optimiser steps of e2e: shown signal and channels side by side, a decoder learns late."""

    batch: int = 16
    """Codewords in a step."""

    lr: float = 1.5e-3
    """Learning rate of Adam."""

    train_snr_db: list[float] = field(default_factory=lambda: [0.0, 20.0])
    """Range of the SNR in training, dB."""

    checkpoint: str = ""
    """Folder of a finished run: its codecs are taken instead of training (same codec settings)."""

    cache: str = ""
    """Folder for codecs trained on the embedded photographs; empty: $TENFOLD_CACHE or ~/.cache/tenfold."""

    seed: int = 0
    """Of weights, patches, channels and noise."""

    workers: int = 0
    """Processes; 0 for one on each usable core."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        _check(self)

    def resolved(self) -> CtsemcomConfig:
        """With methods in the order of the tables."""
        return dataclasses.replace(self, methods=[m for m in METHODS if m in self.methods])

    @property
    def group(self) -> int:
        """Users that share subcarriers: N of one group."""
        return len(self.power_w)

    @property
    def rows(self) -> int:
        """L: OFDM symbols of a codeword of 32x32 pictures."""
        return -(-self.symbols * 64 // self.carriers)

    def spec(self, role: str) -> CodecSpec:
        """Codec of a role: "codec", "e2e", "e2e-matched" or "oma"."""
        return CodecSpec(
            self.codec, self.group, self.symbols, self.width, csi=role in _OVER_FADING,
            orthogonal=role == "oma", matched=role == "e2e-matched",
        )  # fmt: skip

    def roles(self) -> list[str]:
        """The codecs that the methods need."""
        shared = [m for m in self.methods if m not in (*OWN_CODEC, *DIGITAL)]
        return (["codec"] if shared else []) + [r for r in OWN_CODEC if r in self.methods]

    def channel(self, kind: str, variance: float = 1.0) -> Fading:
        """A channel with this run's other settings."""
        return Fading(kind, variance, self.k_factor_db, self.block)  # type: ignore[arg-type]

    def link(
        self, method: str, variance: float = 1.0, csi_err_db: float | None = None, csi_bits: int | None = None
    ) -> Link:
        """The way of a method; end-to-end and digital ones send as "none", "oma" as "rx-lmmse"."""
        kind = "awgn" if method == "awgn" else self.fading
        sent = {
            "awgn": "none", "e2e": "none", "e2e-matched": "none", "digital": "none", "digital-ldpc": "none",
            "oma": "rx-lmmse",
        }.get(method, method)  # fmt: skip
        error = csi_err_db if csi_err_db is not None else self.csi_err_db
        bits = csi_bits if csi_bits is not None else self.csi_bits
        replayed = None
        if self.channels and kind != "awgn":
            replayed = read_channels(self.channels, self.group, self.carriers)
        return Link(
            tuple(self.power_w), self.carriers, self.power_mode, self.channel(kind, variance), sent,
            self.alpha_scope, csi_err_db=error, csi_bits=bits, channels=replayed,
        )  # fmt: skip

    def train_link(self, role: str) -> Link:
        """The channel in the training of a codec."""
        kind = self.fading if role in _OVER_FADING else self.train_fading
        return dataclasses.replace(
            self.link("none"), fading=self.channel(kind), csi_err_db=None, csi_bits=None, channels=None
        )

    def settings(self, role: str = "codec") -> TrainSettings:
        """Length, rate and range of a codec's training."""
        low, high = self.train_snr_db
        steps = self.e2e_steps if role == "e2e" else self.steps
        return TrainSettings(steps, self.batch, self.lr, (low, high), seed=self.seed)


def _check(config: CtsemcomConfig) -> None:
    for name, known in (
        ("dataset", ("photographs", "cifar10", "folder")), ("codec", CODECS), ("power_mode", ("mean", "sum")),
        ("alpha_scope", ("symbol", "codeword")), ("train_fading", FADINGS), ("fading", FADINGS),
    ):  # fmt: skip
        _checks.choice(name, getattr(config, name), known)
    if config.dataset != "photographs" and not config.data:
        _checks.fail(ValueError, "data", f"the folder of {config.dataset}", "nothing")
    if config.dataset == "photographs" and config.data:
        _checks.fail(
            ValueError, "data", "nothing for the embedded photographs (or another --dataset)", config.data
        )
    if not config.methods or len(set(config.methods)) < len(config.methods):
        _checks.fail(ValueError, "methods", "different names, at least one", config.methods)
    for name in config.methods:
        _checks.choice("methods", name, tuple(METHODS))
    if not config.power_w:
        _checks.fail(ValueError, "power_w", "at least one power", config.power_w)
    for power in config.power_w:
        _checks.real("power_w", power, positive=True)
    if len(config.train_snr_db) != 2:
        _checks.fail(ValueError, "train_snr_db", "two ends of a range", config.train_snr_db)
    for name in ("snr_db", "variances", "variance_snr_db"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values):
            _checks.fail(ValueError, name, "different numbers, at least one", values)
        for value in values:
            _checks.real(name, value, positive=True) if name == "variances" else _decibels(name, value)
    for value in config.train_snr_db:
        _decibels("train_snr_db", value)
    for value in config.csi_errors_db:
        _decibels("csi_errors_db", value)
    if config.csi_err_db is not None:
        _decibels("csi_err_db", config.csi_err_db)
    if config.csi_bits is not None and (_checks.integer("csi_bits", config.csi_bits, 2, 16) % 2):
        _checks.fail(ValueError, "csi_bits", "an even number", config.csi_bits)
    for bits in config.csi_bits_tried:
        if _checks.integer("csi_bits_tried", bits, 2, 16) % 2:
            _checks.fail(ValueError, "csi_bits_tried", "even numbers", bits)
    _check_users(config)
    _decibels("snr_picture_db", config.snr_picture_db)
    _checks.integer("carriers", config.carriers, 1, 1 << 16)
    _checks.integer("pairs", config.pairs, 2, 10**7)
    _checks.integer("workers", config.workers, 0, 4096)
    config.channel(config.fading), config.settings(), config.settings("e2e")
    for role in config.roles():
        config.spec(role)
    if config.checkpoint and not Path(config.checkpoint).is_dir():
        _checks.fail(ValueError, "checkpoint", "the folder of a finished run", config.checkpoint)
    if config.channels:
        _check_channels(config)
    if config.device != "cpu":
        import torch

        if not config.device.startswith("cuda") or not torch.cuda.is_available():
            found = "that" if torch.cuda.is_available() else "no CUDA device that torch finds"
            _checks.fail(ValueError, "device", "cpu or cuda", f"{config.device!r} ({found})")


def _decibels(name: str, value: float) -> None:
    _checks.real(name, value, at_least=-300.0, below=300.0)  # what float32 holds as a ratio


def _check_users(config: CtsemcomConfig) -> None:
    if len(set(config.users)) < len(config.users):
        _checks.fail(ValueError, "users", "different numbers", config.users)
    for users in config.users:
        _checks.integer("users", users, config.group, config.group * (config.pairs // 2))
        if users % config.group:
            _checks.fail(ValueError, "users", f"multiples of {config.group}, one power each", users)


def _check_channels(config: CtsemcomConfig) -> None:
    if config.fading == "awgn":
        _checks.fail(ValueError, "channels", "none with --fading awgn", config.channels)
    found = len(read_channels(config.channels, config.group, config.carriers))
    needed = config.pairs * config.rows * (1 + len(config.users))
    if found < needed:
        _checks.fail(ValueError, "channels", f"at least {needed} rows, one per OFDM symbol", found)
