"""One of the processes of test_distributed.py: RANK WORLD STORE OUT trains on its share of toy images."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from tenfold.selection.transfer.images import Images
from tenfold.selection.transfer.published import Settings
from tenfold.selection.transfer.published_runs import Trained, _trained
from tenfold.selection.transfer.recipe import Recipe

COUNT, EPOCHS = 24, 3
RECIPE = Recipe(
    epochs=EPOCHS, batch=12, optimizer="sgd", lr=0.5, weight_decay=0.0, scheduler="cosine", augment=False
)


def toys(seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(COUNT) % 3
    x = torch.rand(COUNT, 1, 4, 4, generator=generator)
    x[torch.arange(COUNT), 0, y, 0] += 1
    return Images(y, ("a", "b", "c"), pixels=x)


def train(out: Path, batch: int, said: list[str]) -> Trained:
    """A linear network: its gradient over all images is the mean of the shares' gradients."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    settings = Settings("pretrain", "linear", replace(RECIPE, batch=batch), 5, "", "")
    return _trained(network, toys(0), toys(1), settings, out, "cpu", 0, said.append)


def main(rank: int, world: int, store: str, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    said: list[str] = []
    done = train(out, COUNT // world, said)
    torch.save(
        {"weights": done.network.state_dict(), "steps": done.steps, "lines": len(said)}, out / f"{rank}.pt"
    )
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
