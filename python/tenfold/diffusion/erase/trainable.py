"""Which weights an eraser trains, by the names that ESD and AdvUnlearn gave to their choices.

UNet (names of diffusers): "xattn" cross attention (ESD-x), "xattn_kv" its keys and values only (concept
ablation), "selfattn", "noxattn" all but cross attention, output and time embedding (ESD-u), "notime", "full",
and "xlayer", "selflayer": the layers of two blocks only.
Text encoder: "text_encoder" (all layers and the final norm) or "text_encoder_layer0", "..._layer01",
"..._layer0_11": layers by number, written one behind the other. Embeddings never train.

SDXL's UNet reads both encoders' states before their last layer, and of the second also the pooled text. So
the first one's last layer and final norm have no say and do not train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tenfold import _checks
from tenfold.diffusion.encode import flat

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = ["COMPONENTS", "ENCODERS", "UNET_METHODS", "component_of", "layer_numbers", "parts_of", "trainable"]

ENCODERS = ("both", "text_encoder", "text_encoder_2")
"""Which of SDXL's text encoders train."""

COMPONENTS = ("all", "ffn", "attn")
"""Parts of the text encoder's layers: everything, the feed-forward part, the attention."""

_OUT = ("conv_norm_out.", "conv_out.")
_XLAYER = ("up_blocks.2.attentions.0.", "up_blocks.2.attentions.2.")  # CompVis' output blocks 6 and 8
_SELFLAYER = ("down_blocks.1.attentions.0.", "down_blocks.2.attentions.0.")  # input blocks 4 and 7

UNET_METHODS = {
    "xattn": lambda name: "attn2" in name,
    "selfattn": lambda name: "attn1" in name,
    "noxattn": lambda name: not name.startswith((*_OUT, "time_embedding.")) and "attn2" not in name,
    "notime": lambda name: not name.startswith((*_OUT, "time_embedding.")),
    "full": lambda name: True,
    "xattn_kv": lambda name: name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")),
    "xlayer": lambda name: "attn2" in name and name.startswith(_XLAYER),
    "selflayer": lambda name: "attn1" in name and name.startswith(_SELFLAYER),
}
"""Choice -> whether a parameter of the UNet belongs to it, by its name in diffusers."""

_TEXT = "text_encoder"


def component_of(method: str) -> str:
    """ "unet" or "text_encoder".

    Raises:
        ValueError: no known choice.
    """
    if isinstance(method, str) and method in UNET_METHODS:
        return "unet"
    if isinstance(method, str) and method in (_TEXT, f"{_TEXT}_full"):
        return _TEXT
    if isinstance(method, str) and method.startswith(f"{_TEXT}_layer"):
        layer_numbers(method)
        return _TEXT
    known = (*UNET_METHODS, _TEXT, f"{_TEXT}_layer0", f"{_TEXT}_layer0_11")
    return _checks.choice("train_method", method, known)


def parts_of(bundle: Bundle, method: str, encoders: str) -> tuple[str, ...]:
    """The components that train: the UNet, the text encoder, or of SDXL's `encoders`.

    Raises:
        ValueError: the second of a model with one text encoder.
    """
    _checks.choice("encoders", encoders, ENCODERS)
    if component_of(method) == "unet":
        return ("unet",)
    if not bundle.is_sdxl:
        if encoders == "text_encoder_2":
            _checks.fail(ValueError, "encoders", "'text_encoder' for a model with one", repr(encoders))
        return (_TEXT,)
    return (_TEXT, "text_encoder_2") if encoders == "both" else (encoders,)


def layer_numbers(method: str) -> list[int] | None:
    """Numbers in "text_encoder_layer01_1011": [0, 1, 10, 11]; None for all layers.

    Numbers between two `_` rise by one.
    """
    if method in (_TEXT, f"{_TEXT}_full"):
        return None
    found = []
    for run in method.removeprefix(f"{_TEXT}_layer").split("_"):
        numbers = _rising(run)
        if numbers is None:
            expected = f"{_TEXT}_layer with rising numbers, as {_TEXT}_layer012"
            _checks.fail(ValueError, "train_method", expected, repr(method))
        found += numbers
    return found


def _rising(digits: str) -> list[int] | None:
    """The only way to read "91011" as numbers that rise by one."""
    for width in range(1, len(digits) + 1):
        if not digits[:width].isdecimal():
            return None
        first, read = int(digits[:width]), ""
        numbers: list[int] = []
        while len(read) < len(digits):
            read += str(first + len(numbers))
            numbers.append(first + len(numbers))
        if read == digits:
            return numbers
    return None


def trainable(
    module: nn.Module,
    method: str,
    *,
    component: str = "all",
    norm_layer: bool = False,
    compat: str = "fixed",
    last: bool = True,
) -> dict[str, nn.Parameter]:
    """Name in `module` -> parameter, of those that `method` trains.

    Args:
        component: part of the text encoder's layers, one of `COMPONENTS`.
        norm_layer: train the final norm beside single layers too; with all layers it always trains.
        compat: "reference" picks layers by the beginning of a name, as AdvUnlearn's published code does:
            layer 1 then also takes 10 and 11.
        last: whether the last layer and the final norm of a text encoder are read (not of SDXL's first).

    Raises:
        ValueError: nothing in `module` belongs to the choice, or it has no such layer.
    """
    _checks.choice("component", component, COMPONENTS)
    _checks.choice("compat", compat, ("fixed", "reference"))
    if component_of(method) == "unet":
        chosen = {n: p for n, p in module.named_parameters() if UNET_METHODS[method](n)}
    else:
        chosen = _of_text_encoder(module, method, component, norm_layer, compat, last)
    if not chosen:
        _checks.fail(ValueError, "train_method", "a choice that this model has weights for", repr(method))
    return chosen


def _of_text_encoder(
    module: Any, method: str, component: str, norm_layer: bool, compat: str, last: bool
) -> dict[str, nn.Parameter]:
    inner = flat(module)
    numbers = layer_numbers(method)
    count = len(inner.encoder.layers) - (not last)
    for number in numbers or ():
        if number >= count:
            expected = f"layers below {count}" + (
                "" if last else ", which the UNet reads of the first encoder"
            )
            _checks.fail(ValueError, "train_method", expected, repr(method))
    wanted = range(count) if numbers is None else numbers
    end = "" if compat == "reference" else "."
    starts = tuple(f"encoder.layers.{number}{end}" for number in wanted)
    part = {"all": "", "ffn": ".mlp.", "attn": ".self_attn."}[component]
    prefix = "" if inner is module else "text_model."
    unread = () if last else (f"encoder.layers.{count}.", "final_layer_norm.")
    return {
        prefix + name: parameter
        for name, parameter in inner.named_parameters()
        if not name.startswith(unread)
        and (
            (name.startswith(starts) and part in name)
            or (name.startswith("final_layer_norm.") and (numbers is None or norm_layer))
        )
    }
