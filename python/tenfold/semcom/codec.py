"""Neural joint source-channel codecs: pictures to complex symbols, and the received sum back to pictures.

One encoder per user; one decoder takes the superposed symbols of all and gives every user's picture. Features
are complex maps [B, N, C, h, w], laid out row by row on OFDM symbols of K subcarriers, the last one filled
with zeros; h = H / 4 and w = W / 4.

  adjscc-lite   a small codec with SNR-conditioned channel attention (this library's)
  adjscc        Xu et al., arXiv 2012.00533: five stages with GDN and four attention modules each side
  deepjscc      Bourtsoulatze et al., arXiv 1809.01733: five convolutions each side, blind to the SNR
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tenfold import _checks

__all__ = ["CODECS", "Codec", "CodecSpec", "make_codec", "parameters"]

CODECS = ("adjscc-lite", "adjscc", "deepjscc")


@dataclass(frozen=True)
class CodecSpec:
    """What a codec is made from, kept with its weights.

    preset: a name in `CODECS`.
    users: N, pictures superposed.
    maps: C, complex feature maps per user; at 32x32 pictures and K = 64 the number of OFDM symbols.
    width: channels of the inner layers; 0 for the preset's own.
    csi: whether the decoder also sees the channels of all users (for codecs trained over fading).
    matched: whether such a decoder also sees what was received with each user's phases turned back.
    orthogonal: whether users keep to maps of their own (no superposition).
    """

    preset: Literal["adjscc-lite", "adjscc", "deepjscc"] = "adjscc-lite"
    users: int = 2
    maps: int = 4
    width: int = 0
    csi: bool = False
    orthogonal: bool = False
    matched: bool = False

    def __post_init__(self) -> None:
        _checks.choice("preset", self.preset, CODECS)
        _checks.integer("users", self.users, 1, 64)
        _checks.integer("maps", self.maps, 1, 1024)
        _checks.integer("width", self.width, 0, 4096)
        if self.orthogonal and self.maps % self.users:
            _checks.fail(ValueError, "maps", f"a multiple of {self.users} users (orthogonal)", self.maps)

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Attention(nn.Module):
    """Channels weighted by their means and the SNR (AF module of ADJSCC)."""

    def __init__(self, channels: int, hidden: int | None = None):
        super().__init__()
        hidden = hidden or max(8, channels // 4)
        self.first, self.second = nn.Linear(channels + 1, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor, snr_db: Tensor) -> Tensor:
        seen = torch.cat([x.mean((2, 3)), snr_db[:, None] / 20], 1)
        weight = torch.sigmoid(self.second(torch.relu(self.first(seen))))
        return x * weight[:, :, None, None]


class GDN(nn.Module):
    """Generalised divisive normalisation (Balle et al., arXiv 1511.06281); `inverse` multiplies instead."""

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + 1e-6).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gamma.square()[:, :, None, None]
        norm = torch.sqrt(nn.functional.conv2d(x.square(), weight, self.beta.square() + 1e-6))
        return x * norm if self.inverse else x / norm


def _bend() -> nn.Module:
    """The gradient of a PReLU's slope took a seventh of a training step."""
    return nn.LeakyReLU(0.2, inplace=True)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            _bend(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class Stages(nn.Module):
    """Modules one after the other; attention modules are given the SNR."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor, snr_db: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x, snr_db) if isinstance(part, Attention) else part(x)
        return x


def _lite(spec: CodecSpec, out: int, into: int) -> tuple[list[Stages], Stages]:
    c = spec.width or 48
    d = 4 * c // 3

    def encoder() -> Stages:
        return Stages(
            nn.Conv2d(3, c, 5, 2, 2), _bend(), Attention(c),
            nn.Conv2d(c, c, 3, 2, 1), _bend(), Attention(c),
            Residual(c), nn.Conv2d(c, out, 3, padding=1),
        )  # fmt: skip

    # No layer works at the pictures' full size: the last one makes four pixels at once.
    decoder = Stages(
        nn.Conv2d(into, d, 3, padding=1), _bend(), Attention(d), Residual(d),
        nn.Conv2d(d, 4 * c, 3, padding=1), nn.PixelShuffle(2), _bend(), Attention(c),
        Residual(c), nn.Conv2d(c, 12 * spec.users, 3, padding=1), nn.PixelShuffle(2), nn.Sigmoid(),
    )  # fmt: skip
    return [encoder() for _ in range(spec.users)], decoder


def _adjscc(spec: CodecSpec, out: int, into: int) -> tuple[list[Stages], Stages]:
    c = spec.width or 256

    def down(i: int, o: int, kernel: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, kernel, stride, kernel // 2), GDN(o), nn.PReLU()]

    def up(i: int, kernel: int, stride: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(i, c, kernel, stride, kernel // 2, stride - 1)
        return [conv, GDN(c, inverse=True), nn.PReLU()]

    def encoder() -> Stages:
        return Stages(
            *down(3, c, 9, 2), Attention(c), *down(c, c, 5, 2), Attention(c), *down(c, c, 5, 1), Attention(c),
            *down(c, c, 5, 1), Attention(c), nn.Conv2d(c, out, 5, padding=2),
        )  # fmt: skip

    decoder = Stages(
        *up(into, 5, 1), Attention(c), *up(c, 5, 1), Attention(c), *up(c, 5, 1), Attention(c), *up(c, 5, 2),
        Attention(c), nn.ConvTranspose2d(c, 3 * spec.users, 9, 2, 4, 1), nn.Sigmoid(),
    )  # fmt: skip
    return [encoder() for _ in range(spec.users)], decoder


def _deepjscc(spec: CodecSpec, out: int, into: int) -> tuple[list[Stages], Stages]:
    c = spec.width or 32

    def encoder() -> Stages:
        return Stages(
            nn.Conv2d(3, c // 2, 5, 2, 2), nn.PReLU(), nn.Conv2d(c // 2, c, 5, 2, 2), nn.PReLU(),
            nn.Conv2d(c, c, 5, 1, 2), nn.PReLU(), nn.Conv2d(c, c, 5, 1, 2), nn.PReLU(),
            nn.Conv2d(c, out, 5, 1, 2),
        )  # fmt: skip

    decoder = Stages(
        nn.ConvTranspose2d(into, c, 5, 1, 2), nn.PReLU(), nn.ConvTranspose2d(c, c, 5, 1, 2), nn.PReLU(),
        nn.ConvTranspose2d(c, c, 5, 1, 2), nn.PReLU(), nn.ConvTranspose2d(c, c // 2, 5, 2, 2, 1), nn.PReLU(),
        nn.ConvTranspose2d(c // 2, 3 * spec.users, 5, 2, 2, 1), nn.Sigmoid(),
    )  # fmt: skip
    return [encoder() for _ in range(spec.users)], decoder


_PRESETS = {"adjscc-lite": _lite, "adjscc": _adjscc, "deepjscc": _deepjscc}


class Codec(nn.Module):
    """Encoders of N users and their joint decoder."""

    def __init__(self, spec: CodecSpec):
        super().__init__()
        self.spec = spec
        own = spec.maps // spec.users if spec.orthogonal else spec.maps
        into = 2 * spec.maps * (1 + (1 + spec.matched) * spec.users if spec.csi else 1)
        encoders, self.decoder = _PRESETS[spec.preset](spec, 2 * own, into)
        self.encoders = nn.ModuleList(encoders)

    def encode(self, images: Tensor, snr_db: Tensor, carriers: int = 64) -> Tensor:
        """Complex symbols [B, L, N, K], not yet normalised, of pictures [B, N, 3, H, W] in [0, 1].

        `snr_db`: [B]. H and W are multiples of 4 (ValueError).
        """
        batch, users, colours, height, width = images.shape
        if users != self.spec.users or colours != 3 or height % 4 or width % 4:
            expected = f"[B, {self.spec.users}, 3, H, W], H and W multiples of 4"
            _checks.fail(ValueError, "images", expected, tuple(images.shape))
        features = []
        for n, encoder in enumerate(self.encoders):
            x = _complex(encoder(images[:, n], snr_db))
            if self.spec.orthogonal:
                full = x.new_zeros(batch, self.spec.maps, *x.shape[2:])
                full[:, n * x.shape[1] : (n + 1) * x.shape[1]] = x
                x = full
            features.append(_rows(x, carriers))
        return torch.stack(features, 2)

    def decode(
        self, received: Tensor, snr_db: Tensor, size: tuple[int, int], gains: Tensor | None = None
    ) -> Tensor:
        """Pictures [B, N, 3, H, W] of what was received, complex [B, L, K]; `size` is (H, W).

        A codec made with `csi` is also given the channels, complex [B, L, N, K]; it sees them, and, if
        it was made `matched`, the received signal times each user's conjugate channel.
        """
        if (gains is not None) != self.spec.csi:
            expected = "the channels" if self.spec.csi else "none (the codec was made without csi)"
            _checks.fail(ValueError, "gains", expected, "none" if gains is None else "some")
        planes = [_planes(received, self.spec.maps, size)]
        if gains is not None:
            each = [gains[:, :, n] for n in range(self.spec.users)]
            shown = [*each, *(g.conj() * received for g in each if self.spec.matched)]
            planes += [_planes(x, self.spec.maps, size) for x in shown]
        out: Tensor = self.decoder(torch.cat(planes, 1), snr_db)
        return out.view(len(out), self.spec.users, 3, *size)


def _complex(x: Tensor) -> Tensor:
    """Real channels (2c, 2c + 1) as complex map c."""
    batch, channels, height, width = x.shape
    pairs = x.view(batch, channels // 2, 2, height, width).permute(0, 1, 3, 4, 2)
    return torch.view_as_complex(pairs.float().contiguous())


def _rows(x: Tensor, carriers: int) -> Tensor:
    """[B, C, h, w] row by row as [B, L, K]."""
    flat = x.flatten(1)
    missing = -flat.shape[1] % carriers
    return nn.functional.pad(flat, (0, missing)).view(len(x), -1, carriers)


def _planes(x: Tensor, maps: int, size: tuple[int, int]) -> Tensor:
    """[B, L, K] back to real planes [B, 2 C, h, w]."""
    height, width = size[0] // 4, size[1] // 4
    flat = x.flatten(1)[:, : maps * height * width]
    real = torch.view_as_real(flat.resolve_conj().view(len(x), maps, height, width))
    return real.permute(0, 1, 4, 2, 3).reshape(len(x), 2 * maps, height, width)


def make_codec(preset: str | CodecSpec = "adjscc-lite", *, seed: int = 0, **options: object) -> Codec:
    """A codec with fresh weights of `seed`; options are the fields of `CodecSpec`.

    Raises:
        TypeError, ValueError: an option of the wrong kind or out of range.
    """
    spec = preset if isinstance(preset, CodecSpec) else CodecSpec(preset, **options)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_checks.seed("seed", seed) % 2**63)
        return Codec(spec)


def parameters(codec: Codec) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in codec.parameters())
