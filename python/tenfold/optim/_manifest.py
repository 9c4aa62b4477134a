"""What a module tells about its parameters: stream numbers, and which ones weight decay leaves alone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

_NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,  # batch and instance norm, lazy and synchronised ones too
)
_MEZO_EXEMPT = ("bias", "layer_norm", "layernorm")  # what MeZO's trainer looks for in names


class Slot(NamedTuple):
    """One parameter: its stream in the counter, and whether weight decay applies to it."""

    stream: int
    decays: bool


def _is_norm(module: nn.Module) -> bool:
    """By type; models bring classes of their own, which all carry "norm" in the name of the class."""
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()


def manifest(module: nn.Module, *, by_name: bool = False) -> dict[Tensor, Slot]:
    """Slots of all parameters of `module`, trainable or not, tied ones once, numbered by first appearance.

    `by_name` exempts from decay as MeZO's code does: by the name, which misses norms called otherwise.
    """
    if by_name:
        exempt = {p for name, p in module.named_parameters() if any(word in name for word in _MEZO_EXEMPT)}
    else:
        exempt = {
            parameter
            for owner in module.modules()
            for name, parameter in owner.named_parameters(recurse=False)
            if _is_norm(owner) or name.endswith("bias")
        }
    return {p: Slot(stream, p not in exempt) for stream, p in enumerate(module.parameters())}
