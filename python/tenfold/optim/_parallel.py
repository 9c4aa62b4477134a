"""Several processes, one model each or one sharded over them, whose optimizers exchange losses only.

A zeroth-order step is a function of its seed and a few losses, so processes that start from the same weights
and agree on the losses stay bit for bit the same without ever exchanging a weight or a gradient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._shards import is_sharded, local, whole

if TYPE_CHECKING:
    from ._base import ZerothOrder

_DIGEST = 32  # numbers that a comparison exchanges, always as many


class Parallel:
    """How one rank takes part in a step; see `parallel` in `tenfold.optim.Common`.

    mode "data": every rank evaluates every probe on its own data, and all go on with the mean of the losses.
    mode "query": rank r of W evaluates the queries i with i % W == r, on the same data, and all go on with
    the losses of all.

    A step exchanges float64 losses by all_gather and adds them in the order of the ranks, so that all ranks
    have the same bits on every backend (gloo, nccl).
    """

    def __init__(self, mode: str, group: Any = None) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError(
                "parallel: expected a running process group, got none; call torch.distributed"
                ".init_process_group first (torchrun and accelerate bring what it needs)"
            )
        self.mode = mode
        self._group = group
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: expected a process group that this rank belongs to, got another")
        self._device = _device(str(dist.get_backend(group)))
        self._agreed = False

    def mine(self, query: int) -> bool:
        """Whether this rank evaluates the probes of the query."""
        return self.mode == "data" or query % self.world_size == self.rank

    def mean(self, losses: Sequence[float]) -> list[float]:
        """The losses of a step averaged over the ranks, the same float64 bits everywhere."""
        ranks = self._all_gather(losses)
        return [sum(column) / self.world_size for column in zip(*ranks, strict=True)]

    def total(self, counts: Sequence[float]) -> list[float]:
        """Sums over the ranks."""
        return [sum(column) for column in zip(*self._all_gather(counts), strict=True)]

    def gather(self, losses: Sequence[float | None]) -> list[float]:
        """The losses of a step put together; None stands for those that another rank evaluated.

        Where several ranks have one, that of the lowest rank counts.
        """
        n = len(losses)
        mine = [0.0 if loss is None else float(loss) for loss in losses]
        ranks = self._all_gather([*mine, *(float(loss is not None) for loss in losses)])
        together = [next((r[k] for r in ranks if r[n + k]), None) for k in range(n)]
        if None in together:
            raise RuntimeError(
                f"parallel: expected a loss from some rank, got none for {together.index(None)}"
            )
        return [loss for loss in together if loss is not None]

    def agree(self, optimizer: ZerothOrder) -> None:
        """At every step: RuntimeError on every rank unless all are about to make the same step.

        At the first one the options, the number of the step, and shape, stream and all bytes of each tensor
        (but of shards) are compared, by a digest of 32 bytes; later the number of the step, what is
        trainable, and the options of the groups (lr, eps, ...), by one number.  ValueError for a hybrid
        optimizer: its first-order gradients are not exchanged, and weights would drift apart.
        """
        if self._agreed:
            self._compare(
                [_number(_present(optimizer))],
                "all ranks to make the same step with the same lr, eps and trainable parameters",
            )
            return
        if optimizer.hybrid is not None:
            raise ValueError(
                "parallel: expected None in a hybrid optimizer, got one of its gradients per rank"
            )
        mine = [float(byte) for byte in digest(optimizer)]
        self._compare(mine, "all ranks to start with the same weights and options")
        self._agreed = True

    def _compare(self, mine: Sequence[float], expected: str) -> None:
        rows = self._all_gather([*mine, *[0.0] * (_DIGEST - len(mine))])
        other = ", ".join(str(rank) for rank, row in enumerate(rows) if row != rows[0])
        if other:
            self._agreed = False
            raise RuntimeError(f"parallel: expected {expected}, got others on rank {other} than on rank 0")

    def check_again(self) -> None:
        """Compare the ranks once more at the next step: weights or options have been loaded."""
        self._agreed = False

    def _all_gather(self, values: Iterable[float]) -> list[list[float]]:
        import torch.distributed as dist

        mine = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(rows, mine, group=self._group)
        return [row.tolist() for row in rows]


def make(mode: str | None, group: Any = None) -> Parallel | None:
    """`Parallel` for the option `parallel`; None for None.

    Raises RuntimeError if no process group runs, ValueError if this rank is not in `group`.
    """
    return None if mode is None else Parallel(mode, group)


def _device(backend: str) -> torch.device:
    """Where tensors must be to be exchanged."""
    if "gloo" in backend or "mpi" in backend or "fake" in backend:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


@torch.no_grad()
def digest(optimizer: ZerothOrder) -> bytes:
    """32 bytes that tell optimizers apart that would not make the same step."""
    try:
        options = optimizer.hyperparameters()
    except ValueError:  # blocks of modules without names
        options = {"class": type(optimizer).__name__, "seed": optimizer.seed}
    found = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    found.update(str(optimizer.num_steps).encode())
    for p, slot in optimizer._slots.items():
        found.update(f"{slot.stream} {p.requires_grad} {p.dtype} {tuple(p.shape)}".encode())
        if is_sharded(p):
            found.update(str(p.placements).encode())  # type: ignore[attr-defined]
            if not whole(p):
                continue  # each rank has other rows
        found.update(_bytes(local(p)))
    return found.digest()


def _present(optimizer: ZerothOrder) -> str:
    """What of an optimizer may change between two steps."""
    groups = [
        {k: v for k, v in group.items() if isinstance(v, (bool, int, float, str, tuple))}
        for group in optimizer.param_groups
    ]
    trainable = "".join(str(int(p.requires_grad)) for p in optimizer._slots)
    return json.dumps([optimizer.num_steps, trainable, groups], sort_keys=True)


def _number(text: str) -> float:
    """52 bits of a digest, as a number that float64 holds exactly."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 12)


def _bytes(p: Tensor) -> Any:
    return p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
