"""Pipelines in diffusers' folder layout, read one component at a time: no safety checker, no pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tenfold import _checks
from tenfold._reading import out_of_memory, reading
from tenfold.diffusion.bundle import Bundle, zeros_for_empty
from tenfold.diffusion.schedule import Schedule
from tenfold.runs.files import read_json

__all__ = ["read_folder", "whole"]

_LAYERS = ("layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block")
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
        force_zeros_for_empty_prompt=zeros_for_empty(index),
    )


def _index(name: str, options: dict[str, Any]) -> dict[str, Any]:
    from diffusers import DiffusionPipeline

    folder = Path(name)
    if folder.is_dir():
        file = folder / "model_index.json"
        if not file.is_file():
            raise FileNotFoundError(f"name_or_path: expected a folder with model_index.json, got {folder}")
        index = read_json(file)
        if not isinstance(index, dict):
            _checks.fail(ValueError, str(file), "an object with the pipeline's components", str(index)[:80])
        return index
    if folder.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise FileNotFoundError(f"name_or_path: expected a folder of a pipeline or a hub id, got {name}")
    return dict(DiffusionPipeline.load_config(name, **_hub(options)))


def _hub(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("revision", "local_files_only")}


def _present(index: dict[str, Any], part: str) -> bool:
    entry = index.get(part)
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], str)


def _parts(index: dict[str, Any]) -> str:
    return ", ".join(sorted(part for part in index if _present(index, part))) or "no components"


def _diffusers_part(name: str, part: str, kind: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    import diffusers

    arguments = {"subfolder": part, "torch_dtype": dtype, "low_cpu_mem_usage": False, **options}
    return whole(part, getattr(diffusers, kind), name, **arguments)


def _text_encoder(
    name: str, part: str, index: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]
) -> Any:
    import transformers

    with reading(Path(name), "a pipeline of CLIP text encoders"):
        kind = _checks.choice(part, index[part][-1], _TEXT_ENCODERS)
    return whole(part, getattr(transformers, kind), name, subfolder=part, dtype=dtype, **options)


def whole(part: str, kind: Any, name: Any, **arguments: Any) -> Any:
    """`kind.from_pretrained(name, ...)` from safetensors, with no weight made up.

    transformers and diffusers draw weights that a file lacks at random, and only warn.

    Raises:
        FileNotFoundError: no safetensors weights. ValueError: weights are missing or of another shape.
    """
    try:
        _check_claim(kind, Path(name) / str(arguments.get("subfolder", "")))
        model, info = kind.from_pretrained(name, use_safetensors=True, output_loading_info=True, **arguments)
    except ImportError:
        raise
    except OSError as error:
        raise FileNotFoundError(
            f"{part}: expected safetensors weights in {name}, got: {_first_line(error)}"
        ) from error
    except Exception as error:  # a shape that differs, or what a damaged configuration leads to
        if out_of_memory(error):
            raise
        raise ValueError(
            f"{part}: expected weights in {name} as its config.json says, got: {_told(error)}"
        ) from error
    missing = sorted(key for key in info["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        got = f"{len(missing)} missing: {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}"
        _checks.fail(ValueError, part, f"all weights of {kind.__name__} in {name}", got)
    return model


def _check_claim(kind: Any, folder: Path) -> None:
    """diffusers makes room for what config.json claims before it looks at the weights: not for more layers
    than these have tensors, or more numbers than they have bytes. And it takes a config.json that is no
    object for the name of a model on the hub."""
    from safetensors import safe_open

    files = list(folder.glob("*.safetensors"))
    if not files or not hasattr(kind, "load_config") or not (folder / "config.json").is_file():
        return
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"a config.json that is no object: {config!r:.40}")
    if "quantization_config" in config:  # a byte holds more than one number
        return
    tensors = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors += len(opened.keys())
    layers = max(_whole_numbers([config.get(key) for key in _LAYERS]), default=0)
    if layers > tensors:
        raise ValueError(f"{tensors} tensors for blocks of {layers} layers")
    with torch.device("meta"):
        claimed = sum(t.numel() for t in kind.from_config(config).state_dict().values())
    held = sum(file.stat().st_size for file in files)
    if claimed > held:
        raise ValueError(f"{held} bytes for {claimed} numbers")


def _whole_numbers(value: Any) -> list[int]:
    """Those in lists of lists."""
    if isinstance(value, list):
        return [n for each in value for n in _whole_numbers(each)]
    return [value] if isinstance(value, int) else []


def _tokenizer(name: str, part: str, index: dict[str, Any], options: dict[str, Any]) -> Any:
    import transformers

    kind = getattr(transformers, index[part][-1], None)
    more = _hub(options)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)):
        kind, more = transformers.AutoTokenizer, more | {"trust_remote_code": False}
    with reading(Path(name), f"a {part}"):
        return kind.from_pretrained(name, subfolder=part, **more)


def _schedule(name: str, options: dict[str, Any]) -> Schedule:
    from diffusers import DDIMScheduler

    with reading(Path(name), "a scheduler"):
        config = DDIMScheduler.load_config(name, subfolder="scheduler", **_hub(options))
        return Schedule.from_config(dict(config))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _told(error: BaseException) -> str:
    """The first line that names a tensor, where there is one."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "size mismatch" in line), _first_line(error))
