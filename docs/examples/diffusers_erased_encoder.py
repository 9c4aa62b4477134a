"""diffusers: a pipeline with an erased text encoder, which from_pretrained loads as any other.

The model that comes with the package draws handwritten digits; AdvUnlearn takes "five" out of its text
encoder.
"""

import tempfile
from pathlib import Path

import torch
from transformers import CLIPTextModel

from tenfold.diffusion import load_bundle, load_judge
from tenfold.diffusion.digits.vocabulary import retain_prompts
from tenfold.diffusion.erase import AdvUnlearn, Concept

bundle = load_bundle("digits")
pipe = bundle.to_pipeline()  # a DiffusionPipeline; Bundle.from_pipeline(pipe) is the way in


def drawn(word, count=20):
    """How many of the pictures of a digit show it, and what the first ones show."""
    pipe.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in range(count)]
    prompts = [f"a photo of {word}"] * count
    pictures = pipe(prompts, 20, guidance_scale=3.0, generator=noise, output_type="pt").images
    verdict = load_judge("digits", word)(pictures)
    return int(verdict.success.sum()), verdict.label[:6]


before = {word: drawn(word) for word in ("five", "six")}

fast = AdvUnlearn(  # its fast variant: the attack within is one signed step
    lr=1e-3, iterations=40, warmup=10, steps=20, batch=8, bank_size=16, retain_weight=1.0, retain_batch=8,
    attack="fast_at", attack_steps=1, attack_lr=0.5, k=3,
)  # fmt: skip
edit = fast.fit(bundle, Concept("five", retain=tuple(retain_prompts("five", 24))), seed=0)

with tempfile.TemporaryDirectory() as folder:
    edit.save(Path(folder) / "five_unlearned")
    pipe.text_encoder = CLIPTextModel.from_pretrained(Path(folder) / "five_unlearned")  # transformers alone

for word, (right, _) in before.items():
    now, shown = drawn(word)
    print(f"{word}: {right} of 20 before, {now} after; now it draws {', '.join(shown)}")
