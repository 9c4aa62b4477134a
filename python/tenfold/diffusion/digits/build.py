"""Train the embedded model again: `python -m tenfold.diffusion.digits.build [--out FOLDER]`, a few minutes.

Stage A teaches the text encoder which digit a prompt is true of, the part that CLIP's training plays for
Stable Diffusion. Stage B freezes it and trains the UNet to predict noise. All seeds are fixed. The same
quality comes out elsewhere; the same bits need the same machine and the same PyTorch, because sums of floats
round by library and processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.digits import FILE, WEIGHTS, state_of
from tenfold.diffusion.digits.images import digit_pictures
from tenfold.diffusion.digits.model import new_bundle
from tenfold.diffusion.digits.utility import digit_agreement
from tenfold.diffusion.digits.vocabulary import random_prompt
from tenfold.diffusion.encode import encode_ids, tokenize

__all__ = ["Recipe", "build", "quality", "train_text", "train_unet"]


@dataclass(frozen=True)
class Recipe:
    """How the shipped model was trained."""

    seed: int = 0
    text_steps: int = 600
    text_batch: int = 128
    text_lr: float = 5e-3
    unet_steps: int = 1200
    unet_batch: int = 64
    unet_lr: float = 3e-3
    clip: float = 1.0
    ema: float = 0.995


def train_text(bundle: Bundle, recipe: Recipe, progress: Callable[[str], None] = print) -> float:
    """Stage A: cross-entropy from the end token's state to the digit. Returns the last tenth's mean loss."""
    draw = np.random.default_rng([recipe.seed, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        head = nn.Linear(bundle.text_encoder.config.hidden_size, 10)
    bundle.text_encoder.requires_grad_(True).train()
    parameters = [*bundle.text_encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.text_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.text_lr, total_steps=recipe.text_steps)
    losses = []
    for step in range(recipe.text_steps):
        digits = draw.integers(0, 10, recipe.text_batch)
        ids = tokenize(bundle, [random_prompt(int(d), draw) for d in digits]).ids
        _, ended = encode_ids(bundle, ids, pooled=True)
        loss = nn.functional.cross_entropy(head(ended), torch.from_numpy(digits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            progress(
                f"text encoder: step {step + 1} of {recipe.text_steps}, loss {np.mean(losses[-100:]):.3f}"
            )
    bundle.freeze()
    return float(np.mean(losses[-max(len(losses) // 10, 1) :]))


def train_unet(bundle: Bundle, recipe: Recipe, progress: Callable[[str], None] = print) -> float:
    """Stage B: noise prediction with the text encoder frozen; the weights' running mean is what stays."""
    draw = np.random.default_rng([recipe.seed, 2])
    noise = torch.Generator().manual_seed(recipe.seed)
    real = digit_pictures()
    unet = bundle.unet.requires_grad_(True).train()
    mean = [p.detach().clone() for p in unet.parameters()]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.unet_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.unet_lr, total_steps=recipe.unet_steps)
    losses = []
    for step in range(recipe.unet_steps):
        rows = torch.from_numpy(draw.integers(0, len(real.train), recipe.unet_batch))
        loss = _noise_loss(bundle, real.train[rows], real.train_digits[rows], draw, noise)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), recipe.clip)
        optimizer.step()
        schedule.step()
        keep = min(recipe.ema, (1 + step) / (10 + step))
        for kept, now in zip(mean, unet.parameters(), strict=True):
            kept.lerp_(now.detach(), 1 - keep)
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            progress(f"UNet: step {step + 1} of {recipe.unet_steps}, loss {np.mean(losses[-100:]):.4f}")
    with torch.no_grad():
        for kept, now in zip(mean, unet.parameters(), strict=True):
            now.copy_(kept)
    bundle.freeze()
    return float(np.mean(losses[-max(len(losses) // 10, 1) :]))


def _noise_loss(
    bundle: Bundle, images: Tensor, digits: Tensor, draw: np.random.Generator, noise: torch.Generator
) -> Tensor:
    """mean((e(z_t, t, c) - e)^2) with t uniform and a prompt that is true of the digit."""
    with torch.no_grad():
        ids = tokenize(bundle, [random_prompt(int(d), draw) for d in digits]).ids
        states = encode_ids(bundle, ids)
    z0 = bundle.encode_images(images)
    e = torch.randn(z0.shape, generator=noise)
    t = torch.randint(0, len(bundle.schedule), (z0.shape[0],), generator=noise)
    predicted = bundle.predict(bundle.schedule.add_noise(z0, e, t), t, states)
    return (predicted - e).square().mean()


def quality(bundle: Bundle, guidances: tuple[float, ...] = (1.0, 3.0, 7.5)) -> dict[str, float]:
    """Agreement with the judge, gated and not, at several guidance scales: 200 pictures, 20 DDIM steps."""
    found = {}
    for guidance in guidances:
        agreement = digit_agreement(bundle, guidance=guidance, seed=1000)
        found[f"agreement_g{guidance:g}"] = agreement.mean
        found[f"agreement_g{guidance:g}_ungated"] = agreement.ungated
    return found


def build(out: Path, recipe: Recipe | None = None, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, measure, and write the weights with their provenance into the folder `out`."""
    from tenfold.diffusion.digits.store import write

    recipe = recipe or Recipe()
    started = time.process_time()
    bundle = new_bundle(recipe.seed)
    losses = {"text_loss": train_text(bundle, recipe, progress)}
    text_seconds = time.process_time() - started
    losses["unet_loss"] = train_unet(bundle, recipe, progress)
    seconds = time.process_time() - started
    measured = quality(bundle)
    progress(", ".join(f"{name} {value:.3f}" for name, value in measured.items()))
    about = {
        "recipe": asdict(recipe),
        "data": "scikit-learn's digits: UCI Optical Recognition of Handwritten Digits, CC BY 4.0",
        "quality": {name: round(value, 4) for name, value in {**measured, **losses}.items()},
        "cpu_seconds": {"text": round(text_seconds, 1), "unet": round(seconds - text_seconds, 1)},
        "made_with": {"torch": torch.__version__, "python": platform.python_version(), **_versions()},
    }
    write(out, state_of(bundle), about)
    return about


def _versions() -> dict[str, str]:
    import diffusers
    import sklearn
    import transformers

    found = (diffusers, transformers, sklearn)
    return {module.__name__: module.__version__ for module in found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tenfold.diffusion.digits.build", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help=f"folder for {FILE} (default: the package's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="one is fastest at this size")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = build(arguments.out, Recipe(seed=arguments.seed))
    print(json.dumps(about["quality"], indent=1))


if __name__ == "__main__":
    main()
