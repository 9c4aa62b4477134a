"""Diffusion models on diffusers: components, text, sampling, judges, and a small trained model.

    bundle = tenfold.diffusion.load_bundle("digits")           a model that comes with the package
    bundle = tenfold.diffusion.load_bundle("path/to/sd-v1-4")  any Stable Diffusion folder or hub id
    images = tenfold.diffusion.generate(bundle, ["a photo of five"], [0], guidance=3.0)

Submodules load when they are first used. `encode` and `splice` are modules: their functions of the same name
stand in them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle, load_bundle
    from tenfold.diffusion.condition import Condition
    from tenfold.diffusion.encode import encode_embeds, encode_ids, inject, tokenize
    from tenfold.diffusion.judges import Judge, Verdict, verdict_of
    from tenfold.diffusion.judges.load import load_judge
    from tenfold.diffusion.keys import apply_text_encoder, apply_unet
    from tenfold.diffusion.plan import plan_memory, plan_unet, stable_diffusion_unet
    from tenfold.diffusion.prompts import read_prompts, read_retain, read_targets
    from tenfold.diffusion.sampling import generate, partial_ddim, start_noise
    from tenfold.diffusion.schedule import Schedule
    from tenfold.diffusion.sld import SLD, SafeGuidance
    from tenfold.diffusion.splice import splice_ids
    from tenfold.diffusion.tiny import tiny_bundle

_HOMES = {
    "Bundle": "bundle", "load_bundle": "bundle",
    "Condition": "condition",
    "encode_embeds": "encode", "encode_ids": "encode", "inject": "encode",
    "tokenize": "encode",
    "Judge": "judges", "Verdict": "judges", "verdict_of": "judges",
    "load_judge": "judges.load",
    "apply_text_encoder": "keys", "apply_unet": "keys",
    "plan_memory": "plan", "plan_unet": "plan", "stable_diffusion_unet": "plan",
    "read_prompts": "prompts", "read_retain": "prompts", "read_targets": "prompts",
    "generate": "sampling", "partial_ddim": "sampling", "start_noise": "sampling",
    "Schedule": "schedule",
    "SLD": "sld", "SafeGuidance": "sld",
    "splice_ids": "splice",
    "tiny_bundle": "tiny",
}  # fmt: skip

__all__ = [
    "SLD",
    "Bundle",
    "Condition",
    "Judge",
    "SafeGuidance",
    "Schedule",
    "Verdict",
    "apply_text_encoder",
    "apply_unet",
    "encode_embeds",
    "encode_ids",
    "generate",
    "inject",
    "load_bundle",
    "load_judge",
    "partial_ddim",
    "plan_memory",
    "plan_unet",
    "read_prompts",
    "read_retain",
    "read_targets",
    "splice_ids",
    "stable_diffusion_unet",
    "start_noise",
    "tiny_bundle",
    "tokenize",
    "verdict_of",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tenfold.diffusion.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
