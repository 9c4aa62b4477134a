"""Pipelines in diffusers' folder layout, read one component at a time: no safety checker, no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.schedule import Schedule

__all__ = ["read_folder"]

_TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")


def read_folder(name: str, dtype: torch.dtype, options: dict[str, Any]) -> Bundle:
    """The bundle of a local folder or of a hub id."""
    index = _index(name, options)
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        if not _present(index, part):
            _checks.fail(
                ValueError, "name_or_path", f"a pipeline with a {part}", f"{name} with {_parts(index)}"
            )
    second = _present(index, "text_encoder_2")
    return Bundle(
        unet=_diffusers_part(name, "unet", "UNet2DConditionModel", dtype, options),
        text_encoder=_text_encoder(name, "text_encoder", index, dtype, options),
        tokenizer=_tokenizer(name, "tokenizer", index, options),
        vae=_diffusers_part(name, "vae", "AutoencoderKL", dtype, options) if _present(index, "vae") else None,
        schedule=_schedule(name, options),
        name=name,
        text_encoder_2=_text_encoder(name, "text_encoder_2", index, dtype, options) if second else None,
        tokenizer_2=_tokenizer(name, "tokenizer_2", index, options) if second else None,
    )


def _index(name: str, options: dict[str, Any]) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    folder = Path(name)
    if folder.is_dir():
        file = folder / "model_index.json"
        if not file.is_file():
            raise FileNotFoundError(f"name_or_path: expected a folder with model_index.json, got {folder}")
        return dict(json.loads(file.read_text()))
    if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise FileNotFoundError(f"name_or_path: expected a folder of a pipeline or a hub id, got {name}")
    return dict(DiffusionPipeline.load_config(name, **_hub(options)))


def _hub(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("revision", "local_files_only")}


def _present(index: dict[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, (list, tuple)) and entry[-1] is not None


def _parts(index: dict[str, Any]) -> str:
    return ", ".join(sorted(part for part in index if _present(index, part))) or "no components"


def _diffusers_part(name: str, part: str, kind: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    import diffusers

    model = getattr(diffusers, kind)
    try:
        return model.from_pretrained(
            name, subfolder=part, torch_dtype=dtype, use_safetensors=True, low_cpu_mem_usage=False, **options
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{part}: expected safetensors weights in {name}, got: {_first_line(error)}"
        ) from error


def _text_encoder(
    name: str, part: str, index: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]
) -> Any:
    import transformers

    kind = _checks.choice(part, index[part][-1], _TEXT_ENCODERS)
    try:
        return getattr(transformers, kind).from_pretrained(
            name, subfolder=part, dtype=dtype, use_safetensors=True, **options
        )
    except OSError as error:
        raise FileNotFoundError(
            f"{part}: expected safetensors weights in {name}, got: {_first_line(error)}"
        ) from error


def _tokenizer(name: str, part: str, index: dict[str, Any], options: dict[str, Any]) -> Any:
    import transformers

    kind = getattr(transformers, index[part][-1], transformers.AutoTokenizer)
    return kind.from_pretrained(name, subfolder=part, **_hub(options))


def _schedule(name: str, options: dict[str, Any]) -> Schedule:
    from diffusers import DDIMScheduler

    return Schedule.from_config(dict(DDIMScheduler.load_config(name, subfolder="scheduler", **_hub(options))))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
