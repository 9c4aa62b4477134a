"""What a training needs to go on after an interruption, in one safetensors file, replaced at one stroke."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._reading import reading
from tenfold.runs.files import read_safetensors, replacing

__all__ = ["Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """A file for one training. Network tensors are named as in its state dict, the optimiser's
    "optimizer/INDEX/NAME"."""

    path: Path

    def save(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, scaler: Any, done: Any,
        epochs: int,
    ) -> None:  # fmt: skip
        """State after `epochs` epochs; `done` is a dataclass of numbers."""
        from safetensors.torch import save_file

        tensors = {f"network/{k}": v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        state = optimizer.state_dict()
        for index, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value.detach().cpu().contiguous()
        plain = {
            "epochs": epochs, "groups": state["param_groups"], "scheduler": _plain(scheduler.state_dict()),
            "scaler": scaler.state_dict(), "done": asdict(done),
        }  # fmt: skip
        with replacing(self.path) as aside:
            save_file(tensors, aside, metadata={"state": json.dumps(plain)})

    def load(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, scaler: Any, done: Any
    ) -> int:
        """Put everything back; the number of epochs done, 0 if there is no file."""
        if not self.path.exists():
            return 0
        with reading(self.path, "a checkpoint of this training"):
            return self._put_back(network, optimizer, scheduler, scaler, done)

    def _put_back(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, scaler: Any, done: Any
    ) -> int:
        tensors, told = read_safetensors(self.path)
        plain = json.loads(told["state"])
        network.load_state_dict({k.removeprefix("network/"): v for k, v in tensors.items() if k[0] == "n"})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state.setdefault(int(index), {})[key] = value
        groups = [{**group, **_tuples(group)} for group in plain["groups"]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _restore(scheduler, plain["scheduler"])
        if plain["scaler"]:
            scaler.load_state_dict(plain["scaler"])
        for name, value in plain["done"].items():
            setattr(done, name, value)
        return int(plain["epochs"])


def _tuples(group: dict[str, Any]) -> dict[str, Any]:
    return {"betas": tuple(group["betas"])} if "betas" in group else {}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's numbers; a chain's are a list of such. Functions are made again by the recipe."""
    if "_schedulers" in state:
        return {"_schedulers": [_plain(one) for one in state["_schedulers"]]}
    kinds = (int, float, bool, str, list, type(None))
    return {k: v for k, v in state.items() if isinstance(v, kinds) and not k.startswith("_scale")}


def _restore(scheduler: Any, state: dict[str, Any]) -> None:
    if "_schedulers" in state:
        for one, stored in zip(scheduler._schedulers, state["_schedulers"], strict=True):
            one.__dict__.update(stored)
        return
    scheduler.__dict__.update(state)
