"""The noise schedule of a diffusion model, apart from any sampler.

Forward process: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) e, e ~ N(0, 1), t = 0 .. 999 (Ho et al., arXiv
2006.11239). Stable Diffusion's betas are "scaled_linear": squares of an even grid between the roots of
0.00085 and 0.012.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops import add_noise_rows

__all__ = ["PREDICTIONS", "SAMPLERS", "SD_CONFIG", "Schedule"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
}
"""Name here -> class of diffusers. Only samplers that draw nothing after the start noise: a picture is then a
function of its start noise and its text. "lms" is what the published attack logs were made with."""

SD_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}

# What the classes' defaults have otherwise than CompVis' sampler: without these a DDIM walk differs from the
# one that Stable Diffusion and ESD are published with.
_PARITY: dict[str, dict[str, Any]] = {
    "ddim": {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "pndm": {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1},
    # With "linspace" timesteps the offset is not used; pipelines warn where it is not 1.
    "lms": {"steps_offset": 1},
    "euler": {"steps_offset": 1},
    "dpm": {"steps_offset": 1},
}
_KEPT = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


@dataclass(frozen=True, eq=False)
class Schedule:
    """alphas_cumprod: float32 [T] on the CPU, abar_t. prediction_type: what the UNet's output is ("epsilon",
    "v_prediction", "sample"). config: the numbers that schedulers of diffusers are built from."""

    alphas_cumprod: Tensor
    prediction_type: str = "epsilon"
    config: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def scaled_linear(cls, prediction_type: str = "epsilon") -> Schedule:
        """Stable Diffusion's own."""
        return cls.from_config({**SD_CONFIG, "prediction_type": prediction_type})

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Schedule:
        """The schedule that a scheduler of diffusers was built with (its kind of sampler is not kept)."""
        return cls.from_config(dict(scheduler.config))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """From the entries of a `scheduler_config.json`."""
        from diffusers import DDIMScheduler

        if config.get("rescale_betas_zero_snr") or config.get("num_train_timesteps", 1000) < 2:
            _checks.fail(ValueError, "scheduler", "abar_T > 0 (no rescale_betas_zero_snr)", config)
        kept = {key: config[key] for key in _KEPT if config.get(key) is not None}
        prediction = _checks.choice("prediction_type", kept.get("prediction_type", "epsilon"), PREDICTIONS)
        made = DDIMScheduler(**kept, **_PARITY["ddim"])
        return cls(made.alphas_cumprod.float().clone(), prediction, kept)

    def __len__(self) -> int:
        return self.alphas_cumprod.numel()

    def abar(self, t: Any, like: Tensor) -> Tensor:
        """abar_t shaped to multiply `like` [B, ...]: t an int or an integer tensor, [] or [B].

        Raises:
            ValueError: a t outside [0, T).
        """
        times = self._times(t)
        alphas = self.alphas_cumprod.to(like.device)[times.to(like.device)]
        return alphas.to(torch.promote_types(like.dtype, torch.float32)).view(-1, *[1] * (like.ndim - 1))

    def _times(self, t: Any) -> Tensor:
        times = torch.as_tensor(t)
        if times.is_floating_point() or times.is_complex() or times.dtype == torch.bool or times.ndim > 1:
            _checks.fail(TypeError, "t", "an integer or an integer tensor [B]", f"{times.dtype} {t}"[:80])
        if times.device.type == "cpu" and times.numel():
            low, high = int(times.min()), int(times.max())
            if low < 0 or high >= len(self):
                _checks.fail(ValueError, "t", f"timesteps in [0, {len(self)})", low if low < 0 else high)
        return times

    def add_noise(self, z0: Tensor, noise: Tensor, t: Any) -> Tensor:
        """z_t from clean latents z0 [B, ...] and noise of the same shape (computed in float32 at least)."""
        times = self._times(t).to(z0.device, torch.int64).reshape(-1)
        noisy: Tensor = add_noise_rows(z0, noise.to(z0.dtype), times, self.alphas_cumprod.to(z0.device))
        return noisy

    def to_noise(self, output: Tensor, z: Tensor, t: Any) -> Tensor:
        """The noise prediction e that a UNet's output stands for, at z = z_t."""
        if self.prediction_type == "epsilon":
            return output
        a = self.abar(t, z)
        if self.prediction_type == "v_prediction":
            return (a.sqrt() * output + (1 - a).sqrt() * z).to(output.dtype)
        return ((z - a.sqrt() * output) / (1 - a).sqrt()).to(output.dtype)

    def from_noise(self, noise: Tensor, z: Tensor, t: Any) -> Tensor:
        """The output that stands for a noise prediction: the inverse of `to_noise`."""
        if self.prediction_type == "epsilon":
            return noise
        a = self.abar(t, z)
        if self.prediction_type == "v_prediction":
            return ((noise - (1 - a).sqrt() * z) / a.sqrt()).to(noise.dtype)
        return ((z - (1 - a).sqrt() * noise) / a.sqrt()).to(noise.dtype)

    def ddim_times(self, steps: int) -> list[int]:
        """Timesteps of a DDIM walk, largest first: 981, 961, ..., 1 for 50 steps ("leading", offset 1)."""
        steps = _checks.integer("steps", steps, 1, len(self) - 1)
        stride = len(self) // steps
        return [i * stride + 1 for i in reversed(range(steps))]

    def scheduler(self, sampler: str = "ddim") -> Any:
        """A new scheduler of diffusers with this schedule and Stable Diffusion's conventions.

        Samplers keep state: take a new one for every batch.
        """
        import diffusers

        _checks.choice("sampler", sampler, SAMPLERS)
        return getattr(diffusers, SAMPLERS[sampler])(**self.config, **_PARITY.get(sampler, {}))
