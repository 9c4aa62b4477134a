"""Train the mini canvas again: `python -m tenfold.diffusion.canvas.mini.build [--out FOLDER]`.

About six minutes of one processor: the codec in closed form, the two judges, then text encoder and UNet
together, predicting clean latents. All seeds are fixed. The same quality comes out elsewhere; the same bits
need the same machine and the same PyTorch, because sums of floats round by library and processor.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.canvas.mini import FILE, MINI, WEIGHTS, mini_bundle, mini_judges, state_of
from tenfold.diffusion.canvas.mini.codec import fitted
from tenfold.diffusion.canvas.mini.images import CREDITS, HELD_OUT, TRAINING, cell_pictures
from tenfold.diffusion.canvas.mini.judge import Classifier, MiniJudge
from tenfold.diffusion.canvas.mini.model import new_bundle
from tenfold.diffusion.canvas.mini.store import write
from tenfold.diffusion.encode import encode_ids, tokenize
from tenfold.diffusion.sampling import generate

__all__ = ["Recipe", "build", "quality", "train_judge", "train_model", "world"]


@dataclass(frozen=True)
class Recipe:
    """How the shipped model was trained."""

    seed: int = 0
    judge_epochs: int = 4
    judge_batch: int = 64
    judge_lr: float = 2e-3
    steps: int = 1000
    batch: int = 32
    lr: float = 3e-3
    dropout: float = 0.1
    clip: float = 1.0
    ema: float = 0.995
    snr_low: float = 0.05
    snr_high: float = 5.0


def world(numbers: range) -> tuple[Tensor, Tensor, Tensor]:
    """All pictures of these numbers, float32 [B, 3, 32, 32] in [0, 1], with indices of style and object."""
    pictures, styles, objects = [], [], []
    for style, name in MINI.cells:
        cell = torch.from_numpy(cell_pictures(style, name, numbers))
        pictures.append(cell.permute(0, 3, 1, 2).float() / 255)
        styles += [MINI.styles.index(style)] * len(cell)
        objects += [MINI.objects.index(name)] * len(cell)
    return torch.cat(pictures), torch.tensor(styles), torch.tensor(objects)


def train_judge(classes: int, pictures: Tensor, labels: Tensor, recipe: Recipe) -> Classifier:
    """Cross-entropy; pictures of every brightness from 0.85 to 1.15, half of them blurred a little, since
    those that a model draws are softer than photographs."""
    order = torch.Generator().manual_seed(recipe.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = Classifier(classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.judge_lr)
    for _ in range(recipe.judge_epochs):
        for rows in torch.randperm(len(pictures), generator=order).split(recipe.judge_batch):
            batch = pictures[rows] * (0.85 + 0.3 * torch.rand(len(rows), 1, 1, 1, generator=order))
            soft = torch.rand(len(rows), 1, 1, 1, generator=order) < 0.5
            batch = torch.where(soft, nn.functional.avg_pool2d(batch, 3, 1, 1, False, False), batch).clamp(
                0, 1
            )
            loss = nn.functional.cross_entropy(network(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.requires_grad_(False).eval()


def train_model(
    bundle: Bundle,
    recipe: Recipe,
    data: tuple[Tensor, Tensor, Tensor],
    progress: Callable[[str], None] = print,
) -> float:
    """Text encoder and UNet, MSE of clean latents weighed by the signal-to-noise ratio between two limits;
    the weights' running mean is what stays. Returns the last tenth's mean loss."""
    draw = np.random.default_rng([recipe.seed, 1])
    noise = torch.Generator().manual_seed(recipe.seed)
    pictures, styles, objects = data
    with torch.no_grad():
        latents = bundle.encode_images(pictures)
    prompts = [MINI.prompt(style, name) for style, name in MINI.cells]
    ids = tokenize(bundle, [*prompts, ""]).ids
    trained = [bundle.unet, bundle.text_encoder]
    for module in trained:
        module.requires_grad_(True).train()
    parameters = [p for module in trained for p in module.parameters()]
    mean = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.steps)
    losses = []
    for step in range(recipe.steps):
        rows = torch.from_numpy(draw.integers(0, len(latents), recipe.batch))
        cells = styles[rows] * len(MINI.objects) + objects[rows]
        cells[torch.from_numpy(draw.random(recipe.batch) < recipe.dropout)] = len(prompts)
        z0 = latents[rows]
        e = torch.randn(z0.shape, generator=noise)
        t = torch.randint(0, len(bundle.schedule), (recipe.batch,), generator=noise)
        a = bundle.schedule.abar(t, z0)
        found = bundle.unet_output(bundle.schedule.add_noise(z0, e, t), t, encode_ids(bundle, ids[cells]))
        weight = (a / (1 - a)).clamp(recipe.snr_low, recipe.snr_high)
        loss = (weight * (found - z0).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        rate.step()
        keep = min(recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(mean, [p.detach() for p in parameters], 1 - keep)
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            progress(f"step {step + 1} of {recipe.steps}, loss {np.mean(losses[-50:]):.4f}")
    with torch.no_grad():
        for now, kept in zip(parameters, mean, strict=True):
            now.copy_(kept)
    bundle.freeze()
    return float(np.mean(losses[-max(len(losses) // 10, 1) :]))


def quality(
    bundle: Bundle, judges: Sequence[MiniJudge], seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, float]:
    """Shares of drawn pictures that the judges call what the prompt says, one of each cell and seed."""
    cells = [(style, name) for _ in seeds for style, name in MINI.cells]
    prompts = [MINI.prompt(style, name) for style, name in cells]
    keys = [1000 * seed + i for seed in seeds for i in range(len(MINI.cells))]
    drawn = generate(
        bundle, prompts, keys, steps=MINI.steps, guidance=MINI.guidance, batch=72, noise="philox"
    )
    found = {}
    for domain, judge, at in (("style", judges[0], 0), ("object", judges[1], 1)):
        said = judge.logits(drawn).argmax(1).tolist()
        right = [judge.classes[k] == cell[at] for k, cell in zip(said, cells, strict=True)]
        found[f"{domain}_accuracy"] = float(np.mean(right))
    return found


def _held_out(network: Classifier, pictures: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(pictures).argmax(1) == labels).float().mean())


def build(out: Path, recipe: Recipe | None = None, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, write the weights with their provenance into the folder `out`, and measure them as stored."""
    recipe = recipe or Recipe()
    started = time.process_time()
    data, test = world(TRAINING), world(HELD_OUT)
    bundle = new_bundle(recipe.seed)
    bundle = bundle.replace(vae=fitted(data[0] * 2 - 1))
    style = train_judge(len(MINI.styles), data[0], data[1], recipe)
    objects = train_judge(len(MINI.objects), data[0], data[2], recipe)
    measured = {
        "style_judge_held_out": _held_out(style, test[0], test[1]),
        "object_judge_held_out": _held_out(objects, test[0], test[2]),
    }
    measured["loss"] = train_model(bundle, recipe, data, progress)
    return store(out, bundle, style, objects, recipe, measured, time.process_time() - started)


def store(
    out: Path,
    bundle: Bundle,
    style: Classifier,
    objects: Classifier,
    recipe: Recipe,
    measured: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """Write, read back, measure, and write again with what was measured."""
    about: dict[str, Any] = {
        "recipe": asdict(recipe),
        "data": CREDITS.splitlines(),
        "quality": measured,
        "cpu_seconds": round(seconds, 1),
        "made_with": {"torch": torch.__version__, "python": platform.python_version(), **_versions()},
    }
    state = state_of(bundle, style, objects)
    write(out, state, about)
    about["quality"] = {**measured, **quality(mini_bundle(out), mini_judges(out))}
    about["quality"] = {name: round(value, 4) for name, value in about["quality"].items()}
    write(out, state, about)
    return about


def _versions() -> dict[str, str]:
    import diffusers
    import skimage
    import sklearn
    import transformers

    found = (diffusers, transformers, sklearn, skimage)
    return {module.__name__: module.__version__ for module in found}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tenfold.diffusion.canvas.mini.build", description=__doc__
    )
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help=f"folder for {FILE} (default: the package's)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about = build(arguments.out, Recipe(seed=arguments.seed))
    print(json.dumps(about["quality"], indent=1))


if __name__ == "__main__":
    main()
