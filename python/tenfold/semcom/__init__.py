"""Semantic communication over channels with several users: signal model, allocation, codecs, evaluation.

    tenfold.semcom.Fading("rayleigh", variance=2.0)      how subcarriers fade
    tenfold.semcom.allocate("ssdt-sep", t, g, P, sigma2) what users send and the receiver multiplies by
    tenfold.semcom.make_codec("adjscc-lite")             pictures to complex symbols and back
    tenfold.semcom.transfer(CtsemcomConfig())            the workflow ctsemcom

Uplink: N users, one decoder at the base station that takes the superposed signal as it is, without successive
cancellation. Submodules load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.semcom.allocation import ALLOCATORS, Allocation, allocate
    from tenfold.semcom.channel import Fading, complex_normal, noise_power_w, noma_channel, superpose
    from tenfold.semcom.channel_file import read_channels, write_channels
    from tenfold.semcom.codec import CODECS, Codec, make_codec
    from tenfold.semcom.config import CtsemcomConfig
    from tenfold.semcom.digital import capacity_bound_jpeg
    from tenfold.semcom.images import PictureSet, load_pictures, patches
    from tenfold.semcom.link import Link
    from tenfold.semcom.run import transfer
    from tenfold.semcom.train import TrainSettings, train_codec

_HOMES = {
    "ALLOCATORS": "allocation", "Allocation": "allocation", "allocate": "allocation",
    "Fading": "channel", "complex_normal": "channel", "noise_power_w": "channel", "noma_channel": "channel",
    "superpose": "channel",
    "read_channels": "channel_file", "write_channels": "channel_file",
    "CODECS": "codec", "Codec": "codec", "make_codec": "codec",
    "CtsemcomConfig": "config",
    "capacity_bound_jpeg": "digital",
    "PictureSet": "images", "load_pictures": "images", "patches": "images",
    "Link": "link",
    "transfer": "run",
    "TrainSettings": "train", "train_codec": "train",
}  # fmt: skip

__all__ = [
    "ALLOCATORS",
    "CODECS",
    "Allocation",
    "Codec",
    "CtsemcomConfig",
    "Fading",
    "Link",
    "PictureSet",
    "TrainSettings",
    "allocate",
    "capacity_bound_jpeg",
    "complex_normal",
    "load_pictures",
    "make_codec",
    "noise_power_w",
    "noma_channel",
    "patches",
    "read_channels",
    "superpose",
    "train_codec",
    "transfer",
    "write_channels",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tenfold.semcom.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
