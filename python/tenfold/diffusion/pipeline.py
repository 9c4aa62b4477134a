"""Stock pipelines of diffusers from a bundle, and the small one for models on pixels that diffusers lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    DiffusionPipeline,
    ImagePipelineOutput,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils.torch_utils import randn_tensor

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = ["PixelDiffusionPipeline", "as_pipeline"]


def as_pipeline(bundle: Bundle, sampler: str = "ddim") -> Any:
    """The pipeline of diffusers that fits a bundle's components; modules are shared."""
    common = {
        "unet": bundle.unet,
        "text_encoder": bundle.text_encoder,
        "tokenizer": bundle.tokenizer,
        "scheduler": bundle.schedule.scheduler(sampler),
    }
    if bundle.vae is None:
        return PixelDiffusionPipeline(**common)
    if bundle.is_sdxl:
        zeros = bundle.force_zeros_for_empty_prompt
        second = {"text_encoder_2": bundle.text_encoder_2, "tokenizer_2": bundle.tokenizer_2}
        return StableDiffusionXLPipeline(
            vae=bundle.vae, force_zeros_for_empty_prompt=zeros, **second, **common
        )
    return StableDiffusionPipeline(
        vae=bundle.vae, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **common
    )


class PixelDiffusionPipeline(DiffusionPipeline):
    """Text to pictures with a UNet on pixels: a `StableDiffusionPipeline` without a VAE.

    unet: `UNet2DConditionModel`. text_encoder: `CLIPTextModel`. tokenizer: its tokenizer. scheduler: any of
    diffusers'. Saves and loads as other pipelines do.
    """

    model_cpu_offload_seq = "text_encoder->unet"

    def __init__(self, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Pictures of `prompt`; arguments as `StableDiffusionPipeline` has them.

        output_type: "pil", "np" [B, H, W, C] in [0, 1], "pt" [B, C, H, W] in [0, 1], or "latent".
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        states = self._states(prompts)
        if guidance_scale > 1:
            states = torch.cat([self._states([negative_prompt or ""] * len(prompts)), states])
        config = self.unet.config
        size = (
            config.sample_size if isinstance(config.sample_size, (tuple, list)) else (config.sample_size,) * 2
        )
        if latents is None:
            shape = (len(prompts), config.in_channels, *size)
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps)
        z = latents * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(torch.cat([z, z]) if guidance_scale > 1 else z, t)
            out = self.unet(scaled, t, encoder_hidden_states=states, return_dict=False)[0]
            if guidance_scale > 1:
                eu, ec = out.chunk(2)
                out = eu + guidance_scale * (ec - eu)
            z = self.scheduler.step(out, t, z, return_dict=False)[0]
        images = z if output_type == "latent" else _shown(z, output_type, self)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _states(self, prompts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(input_ids=tokens.input_ids.to(self.device))[0]


def _shown(z: torch.Tensor, output_type: str, pipe: Any) -> Any:
    images = (z.float() / 2 + 0.5).clamp(0, 1).cpu()
    if output_type == "pt":
        return images
    rows = images.permute(0, 2, 3, 1).numpy()
    return pipe.numpy_to_pil(rows) if output_type == "pil" else rows
