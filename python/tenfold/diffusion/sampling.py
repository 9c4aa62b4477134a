"""Walking from noise to pictures: DDIM part of the way, as erasure training needs it, and whole pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.condition import Condition
from tenfold.diffusion.encode import encode
from tenfold.diffusion.schedule import SAMPLERS, Schedule
from tenfold.diffusion.sld import SLD, SafeGuidance, SafeState, safe_guidance
from tenfold.ops import cfg_ddim_step
from tenfold.ops.zo import zo_sample

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = [
    "ALIGNMENTS",
    "NOISES",
    "SAMPLERS",
    "SLD",
    "Batch",
    "SafeGuidance",
    "SamplingHook",
    "Schedule",
    "Step",
    "ddim_step",
    "ddim_walk",
    "generate",
    "guided",
    "partial_ddim",
    "partial_times",
    "start_noise",
    "timestep_range",
]

ALIGNMENTS = ("exact", "reference")
NOISES = ("torch", "philox")

Predict = Callable[[Tensor, Any, Any], Tensor]
"""(z [B, C, h, w], t, text) -> noise prediction [B, C, h, w]; `Bundle.predict` is one. The text: states
[B, L, D], or a `Condition`."""
Text = TypeVar("Text", Tensor, Condition)


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures that `generate` makes together.

    bundle: the model. texts: the prompts, or None where only states were given. states: text states [B, L,
    D]. empty: states [1, L, D] without text, or of the negative prompt. guidance: [B]. sampler, steps: of
    `generate`.
    """

    bundle: Bundle
    texts: tuple[str, ...] | None
    states: Tensor
    empty: Tensor
    guidance: Tensor
    sampler: str
    steps: int


class Step(NamedTuple):
    """number: of the step, from 0. t: its timestep. z: what the UNet reads, [B, C, h, w]. latents: those of
    the walk, which some samplers scale before the UNet reads them."""

    number: int
    t: Any
    z: Tensor
    latents: Tensor


class SamplingHook(Protocol):
    """What an edit does while pictures are made, in the UNet and to the text."""

    def begin(self, batch: Batch) -> AbstractContextManager[Callable[[Step, Tensor], Tensor]]:
        """A block around one batch. Before each prediction its function is given the step and the prompts'
        text states [B, L, D], and returns those that are read in this step. The UNet is then called on a
        multiple of B rows: all pictures without text, then all with it."""
        ...


def guided(predict: Predict, z: Tensor, t: Any, cond: Text, uncond: Text | None, guidance: Any) -> Tensor:
    """e = eu + guidance (ec - eu), both from one call on a batch of twice the size (Ho and Salimans, arXiv
    2207.12598). Without `uncond` it is ec, from one call."""
    if uncond is None:
        return predict(z, t, cond)
    times = torch.as_tensor(t)
    doubled = t if times.ndim == 0 else torch.cat([times, times])
    eu, ec = predict(torch.cat([z, z]), doubled, both(uncond, cond)).chunk(2)
    return eu + guidance * (ec - eu)


def both(one: Text, other: Text) -> Text:
    """One text's rows, then the other's."""
    if isinstance(one, Condition):
        return Condition.cat([one, other])
    return torch.cat([one, other])


def ddim_step(schedule: Schedule, z: Tensor, noise: Tensor, t: int, previous: int) -> Tensor:
    """z at level `previous` < t from z at level t, without noise (Song et al., arXiv 2010.02502, eta 0).

    A negative `previous` is the end of the walk, abar_0 (as CompVis' sampler and `set_alpha_to_one=False`).
    """
    a, b = (float(schedule.alphas_cumprod[max(level, 0)]) for level in (t, previous))
    stepped: Tensor = cfg_ddim_step(z, None, noise.to(z.dtype), 1.0, a, b)
    return stepped


def ddim_walk(
    predict: Predict,
    schedule: Schedule,
    z: Tensor,
    times: Sequence[int],
    cond: Text,
    uncond: Text | None = None,
    guidance: Any = 3.0,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (t, z at level t) before each step of a walk through `times`, which fall; and the end.

    `times` are the levels that are stepped from, and the last one is only reached: n + 1 levels for n steps.
    The model is called without gradients, n times (with guidance on twice the batch).
    """
    yield times[0], z
    for t, previous in pairwise(times):
        with torch.no_grad():
            z = ddim_step(schedule, z, guided(predict, z, t, cond, uncond, guidance), t, previous)
        yield previous, z


def partial_times(schedule: Schedule, t_enc: int, steps: int = 50, alignment: str = "exact") -> list[int]:
    """The levels of a walk that ends near segment `t_enc` of `steps` (0 the cleanest): n + 1 falling levels.

    "exact": from the top, 981 for 50 steps, down to level t_enc * stride + 1; no step for t_enc = steps - 1.
    "reference": as ESD's and AdvUnlearn's published code: CompVis' sampler leaves its largest timestep out,
    so the walk starts at 961 and takes steps - t_enc steps (steps - 1 for t_enc = 0), to a level 39 to 58
    timesteps cleaner than where the model is then evaluated.
    """
    _checks.choice("alignment", alignment, ALIGNMENTS)
    falling = schedule.ddim_times(steps)
    t_enc = _checks.integer("t_enc", t_enc, 0, steps - 1)
    if alignment == "exact":
        return falling[: steps - t_enc]
    walked = falling[1:]
    count = min(steps - t_enc, steps - 1)
    stride = len(schedule) // steps
    return [*walked, walked[-1] - stride][: count + 1] if walked else [falling[0]]


def timestep_range(
    schedule: Schedule, t_enc: int, steps: int = 50, alignment: str = "exact"
) -> tuple[int, int]:
    """(low, high): the timesteps low <= t < high at which the model is evaluated for segment `t_enc`.

    "reference": round(1000 t_enc / steps) up to round(1000 (t_enc + 1) / steps). "exact": within half a
    segment of the level that `partial_times` ends at.
    """
    _checks.choice("alignment", alignment, ALIGNMENTS)
    t_enc = _checks.integer("t_enc", t_enc, 0, steps - 1)
    total = len(schedule)
    if alignment == "reference":
        return round(t_enc / steps * total), round((t_enc + 1) / steps * total)
    stride = total // steps
    level = t_enc * stride + 1
    low = max(level - stride // 2, 0)
    return low, min(max(level + (stride + 1) // 2, low + 1), total)


def partial_ddim(
    predict: Predict,
    schedule: Schedule,
    z: Tensor,
    t_enc: int,
    cond: Text,
    uncond: Text | None = None,
    *,
    steps: int = 50,
    guidance: Any = 3.0,
    alignment: str = "exact",
) -> Tensor:
    """Latents that are noisy up to segment `t_enc` of `steps`, from start noise z [B, C, h, w].

    The model is called without gradients, `len(partial_times(...)) - 1` times. Draws of ESD and AdvUnlearn:
    t_enc uniform in 0 .. steps - 1, then t uniform in `timestep_range`.
    """
    times = partial_times(schedule, t_enc, steps, alignment)
    *_, (_, reached) = ddim_walk(predict, schedule, z, times, cond, uncond, guidance)
    return reached


def start_noise(
    shape: Sequence[int], seeds: Sequence[int], *, noise: str = "torch", device: Any = "cpu"
) -> Tensor:
    """Standard normals [B, *shape], float32, each picture's from its own seed, whatever the batch.

    Args:
        shape: of one picture's latents, (C, h, w).
        noise: "torch": `torch.randn` with a CPU generator of that seed, which published seeds (the prompt
            files' `evaluation_seed`) are meant for. "philox": counter-based, the same bits on every machine.

    Raises:
        TypeError, ValueError: a seed outside [0, 2^32), an unknown `noise`.
    """
    _checks.choice("noise", noise, NOISES)
    rows = []
    for seed in _seeds(seeds):
        if noise == "torch":
            rows.append(torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)))
        else:
            rows.append(zo_sample(seed, n=int(torch.Size(shape).numel())).view(tuple(shape)))
    return (torch.stack(rows) if rows else torch.empty((0, *shape))).to(device)


def _seeds(seeds: Any) -> list[int]:
    if isinstance(seeds, Tensor):
        seeds = seeds.tolist()
    found = _checks.sequence("seeds", seeds, "integers")
    return [_checks.integer("seeds", seed, 0, 2**32 - 1, "an integer in [0, 2^32)") for seed in found]


@torch.no_grad()
def generate(
    bundle: Bundle,
    prompts: Sequence[str] | Tensor,
    seeds: Sequence[int],
    *,
    steps: int = 50,
    guidance: float | Sequence[float] = 7.5,
    sampler: str = "ddim",
    negative: str | None = None,
    safe: str | SafeGuidance | None = None,
    hooks: Sequence[SamplingHook] = (),
    height: int | None = None,
    width: int | None = None,
    batch: int = 16,
    noise: str = "torch",
    latents: Tensor | None = None,
    overflow: str = "truncate",
    pooled: Tensor | None = None,
    texts: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Pictures [B, c, H, W] in [0, 1], float32 on the CPU.

    A picture depends on its text, its seed and its guidance, not on the others (up to rounding in the last
    place, as convolutions round by batch size).

    Args:
        prompts: strings, or text states [B, L, D] (`encode`).
        seeds: one per prompt, in [0, 2^32).
        steps: of the sampler. sampler: one of `SAMPLERS`; "lms" for the published attack logs.
        guidance: one scale for all, or one per prompt; 1 is no guidance.
        negative: a negative prompt in the place of the empty one.
        safe: Safe Latent Diffusion: "weak", "medium", "strong", "max", or a `SafeGuidance`.
        hooks: edits that act while pictures are made (`Edit.options`), each inside the one before.
        height, width: pixels; the model's own size if None.
        batch: pictures at a time.
        noise: see `start_noise`. overflow: see `tokenize`; pipelines of diffusers cut long prompts.
        latents: start noise [B, C, h, w] in the place of what the seeds give; then they are only counted.
        pooled: pooled text [B, P], for SDXL where `prompts` are states.
        texts: what the prompts say where `prompts` are states, for hooks that read it.
        progress: called with the number of pictures done.

    Raises:
        TypeError, ValueError: lengths differ, or an argument is out of range.
    """
    seeds = _seeds(seeds)
    scales = _scales(guidance, len(seeds))
    steps = _checks.integer("steps", steps, 1, len(bundle.schedule) - 1)
    batch = _checks.integer("batch", batch, 1, 2**16)
    hooks = _checks.sequence("hooks", hooks, "hooks of edits")
    if isinstance(safe, str):
        safe = SLD[_checks.choice("safe", safe, SLD)]
    if safe is not None and not isinstance(safe, SafeGuidance):
        _checks.fail(TypeError, "safe", "a strength or a SafeGuidance", _checks.describe(safe))
    if negative is not None and not isinstance(negative, str):
        _checks.fail(TypeError, "negative", "a text", _checks.describe(negative))
    if not isinstance(prompts, (str, Tensor)) and not _checks.sequence("prompts", prompts, "strings"):
        _checks.length("seeds", seeds, 0, "the prompts")
        return torch.empty((0, *bundle.picture_shape(height, width)))
    states, pooled = _states(bundle, prompts, pooled, overflow)
    _checks.length("seeds", seeds, states.shape[0], "the prompts")
    said = _texts(prompts, texts, len(seeds))
    empty = _uncond(bundle, negative, states, pooled)
    safety = encode(bundle, [safe.concept], pooled=bundle.is_sdxl, overflow="truncate") if safe else None
    shape = bundle.latent_shape(height, width)
    if latents is not None and (not isinstance(latents, Tensor) or latents.shape != (len(seeds), *shape)):
        got = list(latents.shape) if isinstance(latents, Tensor) else _checks.describe(latents)
        _checks.fail(ValueError, "latents", f"a tensor {[len(seeds), *shape]}", got)
    done = []
    for start in range(0, len(seeds), batch):
        rows = slice(start, start + batch)
        z = latents[rows] if latents is not None else start_noise(shape, seeds[rows], noise=noise)
        z = z.to(bundle.device, bundle.dtype)
        text = (states[rows], None if pooled is None else pooled[rows])
        scale = scales[rows].to(bundle.device, bundle.dtype).view(-1, 1, 1, 1)
        with ExitStack() as stack:
            about = Batch(
                bundle, None if said is None else said[rows], text[0], _wide(empty, 0, 1), scale.flatten(),
                sampler, steps,
            )  # fmt: skip
            acting = [stack.enter_context(hook.begin(about)) for hook in hooks]
            z = _walk(bundle, z, text, empty, safety, scale, steps, sampler, safe, acting)
        done.append(bundle.decode(z).cpu())
        if progress is not None:
            progress(min(start + batch, len(seeds)))
    return torch.cat(done)


def _walk(
    bundle: Bundle,
    z: Tensor,
    text: tuple[Tensor, Tensor | None],
    empty: Any,
    safety: Any,
    scale: Tensor,
    steps: int,
    sampler: str,
    safe: SafeGuidance | None,
    acting: Sequence[Callable[[Step, Tensor], Tensor]],
) -> Tensor:
    scheduler = bundle.schedule.scheduler(sampler)
    scheduler.set_timesteps(steps)
    z = z * scheduler.init_noise_sigma
    plain = bool((scale == 1).all()) and safe is None
    groups = [text] if plain else [empty, text] if safe is None else [empty, text, safety]
    count = z.shape[0]
    states = torch.cat([_wide(group, 0, count) for group in groups])
    pooled = torch.cat([_wide(group, 1, count) for group in groups]) if bundle.is_sdxl else None
    memory = SafeState()
    for step, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(z, t)
        if acting:
            said = text[0]
            for act in acting:
                said = act(Step(step, t, scaled, z), said)
            states = torch.cat([_wide(said if g is text else g, 0, count) for g in groups])
        # The UNet's own output: schedulers of diffusers convert v and sample predictions themselves.
        found = bundle.unet_output(torch.cat([scaled] * len(groups)), t, states, pooled).chunk(len(groups))
        if plain:
            out = found[0]
        elif safe is None:
            out = found[0] + scale * (found[1] - found[0])
        else:
            eu, ec, es = found
            out = safe_guidance(eu, ec, es, scale, safe, memory, step=step, t=int(t))
        z = scheduler.step(out, t, z, return_dict=False)[0]
    return z


def _wide(group: Any, part: int, count: int) -> Tensor:
    value = group[part] if isinstance(group, tuple) else group
    return value.expand(count, *value.shape[1:])


def _states(
    bundle: Bundle, prompts: Any, pooled: Tensor | None, overflow: str
) -> tuple[Tensor, Tensor | None]:
    if not isinstance(prompts, Tensor):
        if bundle.is_sdxl:
            return encode(bundle, prompts, pooled=True, overflow=overflow)
        return encode(bundle, prompts, overflow=overflow), None
    if prompts.ndim != 3:
        _checks.fail(TypeError, "prompts", "strings or states [B, L, D]", list(prompts.shape))
    if bundle.is_sdxl and pooled is None:
        _checks.fail(TypeError, "pooled", "pooled text [B, P] beside states of SDXL", "None")
    return prompts, pooled


def _texts(prompts: Any, texts: Any, count: int) -> tuple[str, ...] | None:
    """What each picture's prompt says, if that is known."""
    if not isinstance(prompts, Tensor):
        return (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if texts is None:
        return None
    found = tuple(_checks.sequence("texts", texts, "strings"))
    _checks.length("texts", found, count, "the prompts")
    return found


def _uncond(bundle: Bundle, negative: str | None, states: Tensor, pooled: Tensor | None) -> Any:
    """States of the negative prompt; without one those of no text, as the pipeline has them (`no_text`)."""
    if bundle.has_zeros_for_no_text and negative is None and pooled is not None:
        return torch.zeros_like(states[:1]), torch.zeros_like(pooled[:1])
    return encode(bundle, [negative or ""], pooled=bundle.is_sdxl, overflow="truncate")


def _scales(guidance: Any, count: int) -> Tensor:
    if isinstance(guidance, (Tensor, Sequence)):
        values = guidance.tolist() if isinstance(guidance, Tensor) else list(guidance)
        _checks.length("guidance", values, count, "the prompts")
    else:
        values = [guidance] * count
    return torch.tensor(
        [_checks.real("guidance", value, at_least=0.0) for value in values], dtype=torch.float32
    )
