"""A text-to-image pipeline seen as its components.

    bundle = load_bundle("digits")                       the embedded model
    bundle = load_bundle("path/or/hub-id-of/sd-v1-4")    any Stable Diffusion in diffusers' folder layout
    bundle = Bundle.from_pipeline(pipe)                  a pipeline that is loaded already
    hardened = bundle.replace(text_encoder=erased)       shares everything else
    pipe = hardened.to_pipeline()                        a stock pipeline of diffusers

Weights are read as safetensors only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.diffusion.condition import Condition
from tenfold.diffusion.schedule import Schedule

__all__ = ["EMBEDDED", "Bundle", "load_bundle"]

EMBEDDED = ("digits", "canvas", "tiny")
"""Names of what comes with the package: two trained models, and one of random weights for tests."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """The components of a text-to-image diffusion model.

    unet: `UNet2DConditionModel`, (z [B, C, h, w], t, states [B, L, D]) -> prediction [B, C, h, w].
    text_encoder: `CLIPTextModel` or `CLIPTextModelWithProjection`. tokenizer: its tokenizer.
    vae: `AutoencoderKL`, or None for a model on pixels.
    schedule: noise levels and what the UNet predicts.
    name: what the bundle was loaded from.
    text_encoder_2, tokenizer_2: the second pair of an SDXL model, else None.
    force_zeros_for_empty_prompt: SDXL's setting of this name: without a negative prompt its UNet reads zeros,
    or else the states of the empty prompt.
    """

    unet: Any
    text_encoder: Any
    tokenizer: Any
    vae: Any
    schedule: Schedule
    name: str = ""
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    force_zeros_for_empty_prompt: bool = True

    @classmethod
    def from_pipeline(cls, pipe: Any, name: str = "") -> Bundle:
        """View a pipeline of diffusers. Modules are shared, not copied.

        Raises:
            TypeError: it has no `unet`, `text_encoder`, `tokenizer` or `scheduler`.
        """
        parts = {}
        for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
            parts[part] = getattr(pipe, part, None)
            if parts[part] is None:
                _checks.fail(TypeError, "pipe", f"a pipeline with a {part}", type(pipe).__name__)
        return cls(
            unet=parts["unet"],
            text_encoder=parts["text_encoder"],
            tokenizer=parts["tokenizer"],
            vae=getattr(pipe, "vae", None),
            schedule=Schedule.from_scheduler(parts["scheduler"]),
            name=name or str(getattr(pipe, "name_or_path", "") or ""),
            text_encoder_2=getattr(pipe, "text_encoder_2", None),
            tokenizer_2=getattr(pipe, "tokenizer_2", None),
            force_zeros_for_empty_prompt=zeros_for_empty(getattr(pipe, "config", {})),
        )

    def to_pipeline(self, sampler: str = "ddim") -> Any:
        """A pipeline of diffusers with these modules: `StableDiffusionPipeline`, `StableDiffusionXLPipeline`,
        or, without a VAE, `tenfold.diffusion.pipeline.PixelDiffusionPipeline`."""
        from tenfold.diffusion.pipeline import as_pipeline

        return as_pipeline(self, sampler)

    def replace(self, **parts: Any) -> Bundle:
        """Another bundle with some components exchanged and the others shared."""
        return replace(self, **parts)

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name, those that are there."""
        found = {name: getattr(self, name) for name in ("unet", "text_encoder", "text_encoder_2", "vae")}
        return {name: module for name, module in found.items() if module is not None}

    def freeze(self) -> Bundle:
        """No parameter asks for a gradient any more, and all modules are in eval mode. Returns the bundle."""
        for module in self.modules().values():
            module.requires_grad_(False).eval()
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Bundle:
        """Move all modules in place. Returns the bundle."""
        for module in self.modules().values():
            if all(p.dtype == dtype for p in module.parameters()):
                module.to(device=device)  # diffusers warns at any dtype, that which is there too
            else:
                module.to(device=device, dtype=dtype)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    @property
    def prediction_type(self) -> str:
        return self.schedule.prediction_type

    @property
    def is_sdxl(self) -> bool:
        return self.text_encoder_2 is not None

    @property
    def has_zeros_for_no_text(self) -> bool:
        """Whether the UNet reads zeros for no text, not the states of the empty prompt."""
        return self.is_sdxl and self.force_zeros_for_empty_prompt

    @property
    def context(self) -> int:
        """Tokens of a prompt, with the first and the end tokens: 77 for CLIP."""
        from tenfold.diffusion.encode import flat

        limit = int(flat(self.text_encoder).embeddings.position_embedding.num_embeddings)
        return min(limit, int(self.tokenizer.model_max_length))

    @property
    def scale_factor(self) -> int:
        """Pixels per latent along a side: 8 for Stable Diffusion, 1 on pixels."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(channels, rows, columns) of the latents of a picture of `height` x `width` pixels.

        Raises:
            ValueError: a side is no multiple of `scale_factor`.
        """
        size = self.unet.config.sample_size
        rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
        sides = []
        for what, pixels, default in (("height", height, rows), ("width", width, columns)):
            if pixels is None:
                sides.append(int(default))
                continue
            pixels = _checks.integer(what, pixels, 1, 2**16)
            if pixels % self.scale_factor:
                _checks.fail(ValueError, what, f"a multiple of {self.scale_factor}", pixels)
            sides.append(pixels // self.scale_factor)
        return int(self.unet.config.in_channels), sides[0], sides[1]

    def picture_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(channels, height, width) of a picture."""
        channels, rows, columns = self.latent_shape(height, width)
        if self.vae is not None:
            channels = int(self.vae.config.out_channels)
        return channels, rows * self.scale_factor, columns * self.scale_factor

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents [B, C, h, w] of pictures [B, c, H, W] in [0, 1]: the VAE's scaled mean, or 2x - 1."""
        scaled = images.to(self.device, self.dtype) * 2 - 1
        if self.vae is None:
            return scaled
        config = self.vae.config
        mean = self.vae.encode(scaled.to(self.vae.dtype)).latent_dist.mean
        return ((mean - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor).to(
            self.dtype
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, c, H, W] in [0, 1], float32, of latents [B, C, h, w]."""
        if self.vae is None:
            return (latents.float() / 2 + 0.5).clamp(0, 1)
        config = self.vae.config
        z = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        return (self.vae.decode(z.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def predict(self, z: Tensor, t: Any, states: Tensor | Condition, pooled: Tensor | None = None) -> Tensor:
        """The noise prediction e(z, t, c), [B, C, h, w], whatever the UNet's output means.

        Args:
            z: latents [B, C, h, w]. t: timestep, an int or [B]. states: text states [B, L, D], or a
                `Condition`, which has the pooled text too.
            pooled: pooled text [B, P], for SDXL only (`encode(..., pooled=True)`).
        """
        return self.schedule.to_noise(self.unet_output(z, t, states, pooled), z, t)

    def unet_output(
        self, z: Tensor, t: Any, states: Tensor | Condition, pooled: Tensor | None = None
    ) -> Tensor:
        """What the UNet itself returns: noise, v or a clean sample (`prediction_type`)."""
        if isinstance(states, Condition):
            pooled, states = states.pooled, states.states
        extra = {}
        if getattr(self.unet.config, "addition_embed_type", None) == "text_time":
            extra["added_cond_kwargs"] = self._sizes(z, pooled)
        times = torch.as_tensor(t, device=z.device)
        return self.unet(z, times, encoder_hidden_states=states, return_dict=False, **extra)[0]

    def _sizes(self, z: Tensor, pooled: Tensor | None) -> dict[str, Tensor]:
        """SDXL also reads the pooled text and six numbers: original size, crop, target size."""
        if pooled is None:
            _checks.fail(TypeError, "pooled", "the pooled text that an SDXL UNet reads", "None")
        height, width = (side * self.scale_factor for side in z.shape[2:])
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=z.dtype, device=z.device)
        return {"text_embeds": pooled, "time_ids": ids.expand(z.shape[0], 6)}


def zeros_for_empty(config: Any) -> bool:
    """SDXL's setting in a pipeline's config or `model_index.json`; True where it is not there.

    Raises:
        TypeError: it is neither true nor false.
    """
    name = "force_zeros_for_empty_prompt"
    found = config.get(name, True)
    if not isinstance(found, bool):
        _checks.fail(TypeError, name, "true or false", _checks.describe(found))
    return found


def load_bundle(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: Any = "cpu",
    variant: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Bundle:
    """Load a pipeline of the Stable Diffusion family, component by component, frozen.

    Args:
        name_or_path: "digits" and "canvas", the embedded models; "tiny", random weights; a folder in
            diffusers' layout (`model_index.json`, `unet/`, `text_encoder/`, ...); else the id of one on the
            Hugging Face hub.
        dtype, device: of the weights.
        variant, revision, local_files_only: as `DiffusionPipeline.from_pretrained` has them.

    Raises:
        FileNotFoundError: the folder has no `model_index.json`, or a component has no safetensors weights.
        ValueError: the pipeline is not one with a UNet and CLIP text encoders; weights of a component are
            missing, or of another shape.
    """
    if not isinstance(name_or_path, (str, Path)) or not str(name_or_path).strip():
        _checks.fail(
            TypeError, "name_or_path", "a name, a folder or a hub id", _checks.describe(name_or_path)
        )
    name = str(name_or_path)
    _checks.dtype("dtype", dtype)
    if name == "digits":
        from tenfold.diffusion.digits import load_digits

        return load_digits().to(device, dtype)
    if name == "canvas":
        from tenfold.diffusion.canvas.mini import mini_bundle

        return mini_bundle().to(device, dtype)
    if name == "tiny":
        from tenfold.diffusion.tiny import tiny_bundle

        return tiny_bundle().to(device, dtype)
    from tenfold.diffusion.folders import read_folder

    options = {"variant": variant, "revision": revision, "local_files_only": local_files_only}
    return read_folder(name, dtype, options).to(device).freeze()
