"""Checkpoints of one component, whatever names their keys have, loaded strictly.

`load_state_dict(..., strict=False)` with keys of another naming loads nothing and says nothing: one then
attacks the original model. Here names are brought to the module's own first, and every key must find its
place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.compvis import unet_keys
from tenfold.runs.files import read_safetensors

__all__ = [
    "apply_text_encoder",
    "apply_unet",
    "checkpoint_kind",
    "load_component_state",
    "load_strict",
    "normalise_keys",
]

_ENCODERS = ("text_encoder", "text_encoder_2")
_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
_COMPVIS_TEXT = "cond_stage_model.transformer."
_WRAPPERS = ("module.", "_orig_mod.", "model.text_encoder.", "text_encoder.", "unet.", _COMPVIS_TEXT)
"""Prefixes that wrappers put before a component's own names (DDP, torch.compile, scripts, CompVis)."""


def load_component_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of the one in a component's folder (`model.safetensors`).

    Raises:
        ValueError: a pickle; its message has the line that converts it. FileNotFoundError: no such file.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in _NAMES if (file / name).is_file()] or sorted(
            file.glob("*.safetensors")
        )
        if len(found) != 1:
            got = ", ".join(sorted(p.name for p in file.iterdir())) or "an empty folder"
            raise FileNotFoundError(f"path: expected one safetensors file in {file}, got {got}")
        file = found[0]
    if not file.is_file():
        raise FileNotFoundError(f"path: expected a safetensors file or a folder with one, got {file}")
    if file.suffix in _PICKLES:
        _checks.fail(
            ValueError, "path", "safetensors", f"{file}, a pickle, which may run code; {_convert(file)}"
        )
    return read_safetensors(file)[0]


def _convert(file: Path) -> str:
    """The line that makes safetensors of a checkpoint, for where its maker is trusted.

    A name that a shell or Python would read otherwise is left to be filled in.
    """
    plain = re.fullmatch(r"[\w.+-]+", file.name, re.ASCII)
    name, out = (file.name, file.with_suffix(".safetensors").name) if plain else ("IN", "OUT.safetensors")
    code = (
        "import torch, safetensors.torch as s; "
        f"d = torch.load('{name}', map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
        f"s.save_file({{k: v.contiguous().clone() for k, v in d.items() if torch.is_tensor(v)}}, '{out}')"
    )
    return f'where it is trusted, convert it with: python -c "{code}"'


def checkpoint_kind(state: dict[str, Tensor]) -> str:
    """ "unet" or "text_encoder", by the keys and not by the file's name.

    Raises:
        ValueError: keys of neither, or of both.
    """
    keys = list(state)
    unet = any(re.search(r"(down_blocks|input_blocks)\.\d+\.", key) for key in keys)
    text = any(re.search(r"encoder\.layers\.\d+\.self_attn\.", key) for key in keys)
    if unet == text:
        got = "keys of both" if unet else f"keys such as {keys[:3]}"
        _checks.fail(ValueError, "checkpoint", "the keys of a UNet or of a CLIP text encoder", got)
    return "unet" if unet else "text_encoder"


def normalise_keys(state: dict[str, Tensor], module: torch.nn.Module) -> dict[str, Tensor]:
    """A checkpoint with its keys in `module`'s own naming; tensors are not copied.

    Understood: prefixes of wrappers (`module.`, `text_encoder.`, `unet.`, `model.diffusion_model.`, ...);
    `text_model.` there or not; `embedding.` for `embeddings.`; CompVis' names of a UNet. `position_ids`, no
    weight, is left out. Keys that are understood as nothing stay as they are (`load_strict` names them).

    Raises:
        ValueError: two keys of the checkpoint mean the same tensor.
    """
    own = set(module.state_dict())
    if any("input_blocks." in key for key in state):
        state = unet_keys(state, module.config)
    nested = any(key.startswith("text_model.") for key in own)
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            continue
        name = _own_name(key, own, nested)
        if name in renamed:
            _checks.fail(ValueError, "checkpoint", "one tensor for each name", f"two for {name!r} ({key!r})")
        renamed[name] = tensor
    return renamed


def _own_name(key: str, own: set[str], nested: bool) -> str:
    """The module's name for a key: wrappers' prefixes fall off one by one until a name of its own is left."""
    name, steps = key, (_aliased, lambda k: _text_model(k, nested))
    for _ in range(4):
        for candidate in _candidates(name, steps):
            if candidate in own:
                return candidate
        prefix = next((p for p in _WRAPPERS if name.startswith(p)), None)
        if prefix is None:
            break
        name = name[len(prefix) :]
    return key


def _candidates(name: str, steps: tuple[Callable[[str], str], ...]) -> list[str]:
    found = [name]
    for step in steps:
        found += [step(one) for one in list(found)]
    return found


def _aliased(name: str) -> str:
    """AdvUnlearn's wrapper calls CLIP's `embeddings` `embedding`."""
    return re.sub(r"(^|\.)embedding\.", r"\1embeddings.", name)


def _text_model(name: str, nested: bool) -> str:
    """transformers 5.6 took `text_model.` out of `CLIPTextModel`; `...WithProjection` still has it."""
    bare = name.removeprefix("text_model.")
    return f"text_model.{bare}" if nested else bare


def load_strict(module: torch.nn.Module, state: dict[str, Tensor], *, allow_identical: bool = False) -> None:
    """Load a checkpoint of any known naming into a module: nothing may be missing, nothing may be left over.

    Raises:
        ValueError: keys are missing, unexpected, or of another shape (they are named); a value is not finite;
            or the checkpoint equals what the module has already.
    """
    named = normalise_keys(state, module)
    own = {key: value for key, value in module.state_dict().items() if not key.endswith("position_ids")}
    missing, extra = sorted(own.keys() - named.keys()), sorted(named.keys() - own.keys())
    if missing or extra:
        got = "; ".join(
            f"{len(keys)} {what}: {', '.join(map(_shown, keys[:4]))}{', ...' if len(keys) > 4 else ''}"
            for what, keys in (("missing", missing), ("unexpected", extra))
            if keys
        )
        _checks.fail(ValueError, "checkpoint", f"the {len(own)} tensors of {type(module).__name__}", got)
    shaped = [key for key in own if named[key].shape != own[key].shape]
    if shaped:
        key = shaped[0]
        got = f"{tuple(named[key].shape)} (and {len(shaped) - 1} others differ)"
        _checks.fail(ValueError, f"checkpoint: {key}", f"shape {tuple(own[key].shape)}", got)
    broken = [key for key, value in named.items() if not bool(value.isfinite().all())]
    if broken:
        _checks.fail(ValueError, f"checkpoint: {broken[0]}", "finite values", "NaN or infinity")
    if not allow_identical and all(torch.equal(named[k].to(v.device, v.dtype), v) for k, v in own.items()):
        _checks.fail(ValueError, "checkpoint", "weights that change something", "weights identical to base")
    module.load_state_dict({**module.state_dict(), **named}, strict=True)


def _shown(key: str) -> str:
    """A name from a file, on one line."""
    return key if key.isprintable() and len(key) <= 120 else repr(key[:120])


def apply_text_encoder(
    target: Any, path: str | Path, *, part: str | None = None, allow_identical: bool = False
) -> Any:
    """Put an erased text encoder into a pipeline of diffusers (in place) or a bundle (a new one is returned).

        pipe = apply_text_encoder(StableDiffusionPipeline.from_pretrained(...), "erased/")

    Args:
        path: a safetensors file, or a folder as `save_pretrained` writes it.
        part: "text_encoder" or "text_encoder_2"; None, of two the one that is as wide as the checkpoint.

    Raises:
        ValueError, FileNotFoundError: as `load_strict`, `load_component_state`; shapes and words must fit;
            `part` is needed.
    """
    if part is not None:
        _checks.choice("part", part, _ENCODERS)
    return _apply(target, path, "text_encoder", allow_identical, part)


def apply_unet(target: Any, path: str | Path, *, allow_identical: bool = False) -> Any:
    """The same for a UNet, in diffusers' or in CompVis' naming."""
    return _apply(target, path, "unet", allow_identical)


def _apply(target: Any, path: str | Path, wanted: str, allow_identical: bool, part: str | None = None) -> Any:
    import copy

    state = load_component_state(path)
    kind = checkpoint_kind(state)
    if kind != wanted:
        _checks.fail(ValueError, "path", f"a checkpoint of a {wanted}", f"one of a {kind}: {path}")
    part = part or (_fitting(target, state) if kind == "text_encoder" else kind)
    module = getattr(target, part, None)
    if not isinstance(module, torch.nn.Module):
        _checks.fail(TypeError, "target", f"a pipeline or a Bundle with a {part}", type(target).__name__)
    if isinstance(target, Bundle):
        module = copy.deepcopy(module)
        load_strict(module, state, allow_identical=allow_identical)
        return target.replace(**{part: module})
    load_strict(module, state, allow_identical=allow_identical)
    return target


def _fitting(target: Any, state: dict[str, Tensor]) -> str:
    """The text encoder that is as wide as a checkpoint's, of those a model has; if none is, the first."""
    found = {name: getattr(target, name, None) for name in _ENCODERS}
    encoders: dict[str, Any] = {
        n: module for n, module in found.items() if isinstance(module, torch.nn.Module)
    }
    if len(encoders) < 2:  # SDXL's refiner has the second alone
        return next(iter(encoders), "text_encoder")
    width = next((t.shape[0] for key, t in state.items() if key.endswith("final_layer_norm.weight")), None)
    fitting = [name for name, encoder in encoders.items() if encoder.config.hidden_size == width]
    if len(fitting) == 2:
        _checks.fail(ValueError, "part", " or ".join(_ENCODERS), f"None, and both are {width} wide")
    return fitting[0] if fitting else "text_encoder"
