"""The processes that share an estimate of curvature."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks


class Ranks:
    """Who else has batches of the same estimate, and what sums over them.

    net: the model without DistributedDataParallel and torch.compile around it; calling it exchanges nothing.
    sharded: FSDP2, which averages gradients over the ranks at each backward pass; then `divided_by` is their
    number, else 1.
    """

    def __init__(self, model: nn.Module, group: Any = "auto") -> None:
        if not isinstance(model, nn.Module):
            _checks.fail(TypeError, "model", "a torch.nn.Module", type(model).__name__)
        self.net = getattr(model, "_orig_mod", model)
        self.group: Any = None
        self.size, self.rank = 1, 0
        parallel = isinstance(self.net, nn.parallel.DistributedDataParallel)
        own_group = self.net.process_group if parallel else None
        if parallel:
            self.net = getattr(self.net.module, "_orig_mod", self.net.module)
        self.sharded = _is_sharded(self.net)
        self._open = group is not None and _is_running()
        if self._open:
            import torch.distributed as dist

            self.group = own_group if isinstance(group, str) else group
            self.size, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        elif self.sharded:
            _checks.fail(ValueError, "group", "the group of the ranks of FSDP2", "None")

    @property
    def divided_by(self) -> int:
        return self.size if self.sharded else 1

    def sum(self, count: float | Tensor) -> float:
        if self.size == 1:
            return float(count)
        import torch.distributed as dist

        total = torch.tensor(float(count), dtype=torch.float64, device=self._device())
        dist.all_reduce(total, group=self.group)
        return float(total)

    def any(self, flag: Tensor) -> Tensor:
        import torch.distributed as dist

        where = flag.to(self._device())
        dist.all_reduce(where, op=dist.ReduceOp.MAX, group=self.group)
        return where.to(flag.device)

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        if self.size == 1:
            return
        import torch.distributed as dist

        for t in tensors:
            dist.all_reduce(t, group=self.group)

    def sum_gradients(self, params: Sequence[Tensor]) -> None:
        """Add up `.grad` over the ranks, in place; one that is missing on some ranks counts as zero there."""
        if self.size == 1 or self.sharded:
            return
        import torch.distributed as dist

        present = torch.tensor([float(p.grad is not None) for p in params], device=self._device())
        dist.all_reduce(present, op=dist.ReduceOp.MAX, group=self.group)
        for p, anywhere in zip(params, present.tolist(), strict=True):
            if anywhere and p.grad is None:
                p.grad = torch.zeros_like(p)
        self.sum_tensors([p.grad for p in params if p.grad is not None])

    def _device(self) -> torch.device:
        import torch.distributed as dist

        nccl = "nccl" in str(dist.get_backend(self.group))
        return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _is_running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _is_sharded(net: nn.Module) -> bool:
    """Whether FSDP2 is around any part.  RuntimeError for the first FSDP, whose gradients are flat shards."""
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    if any(isinstance(m, FullyShardedDataParallel) for m in net.modules()):
        got = "FullyShardedDataParallel"
        _checks.fail(RuntimeError, "model", "fully_shard (FSDP2) or DistributedDataParallel", got)
    return any(isinstance(m, FSDPModule) for m in net.modules())
