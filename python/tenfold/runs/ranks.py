"""One run on several processes: rank 0 runs the workflow and writes its folder, the others share its steps.

    torchrun --nproc-per-node 2 -m tenfold run soul ...

torchrun starts the processes and ends them all when one fails; torch.distributed carries what they exchange.
Between training steps the others wait for what rank 0 tells them; a workflow brings the function that
listens.

What the processes exchange is trusted: values travel as pickles, and unpickling runs what a peer has put in.
Whoever reaches the port of the rendezvous or of a process can run code in all of them. For trusted ranks on a
closed network only.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ranks", "current", "digest", "joined", "started"]

JOIN = timedelta(minutes=5)
"""Longest wait at the start for all processes to come; whoever starts them starts them together."""

WAIT = timedelta(days=1)
"""Longest wait for another rank that is alive: the others wait while rank 0 evaluates a model. That one has
gone is noticed at once."""

_current: Ranks | None = None


def started() -> bool:
    """Whether torchrun (or what sets the same variables) started several processes, of which this is one."""
    known = all(name in os.environ for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))
    return known and int(os.environ.get("WORLD_SIZE", "1")) > 1


def current() -> Ranks | None:
    """The processes of this run inside of :func:`joined`, else None."""
    return _current


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started; at the end rank 0 sends the others home.

    Raises:
        RuntimeError: not all have come in :data:`JOIN`, another rank has gone, or this one was told to end by
            SIGTERM, which is how torchrun ends the others when one has failed.
        ValueError: more processes on this machine than GPUs.
    """
    global _current
    group = Ranks()
    before = signal.signal(signal.SIGTERM, _end) if group.rank == 0 else None
    _current = group
    try:
        yield group
    finally:
        _current = None
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        group.close()


def _end(number: int, frame: Any) -> None:
    raise RuntimeError(
        "ranks: expected all processes to go on, but this one was told to end (another has failed, or the "
        "job was stopped); --resume goes on from the last saved state"
    )


class Ranks:
    """The processes of a run. ``rank`` is this one's number, ``size`` how many there are."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist

        several = torch.cuda.is_available() and dist.is_nccl_available()
        if several:
            torch.cuda.set_device(_own_device(torch.cuda.device_count()))
        _join("cpu:gloo,cuda:nccl" if several else "gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._working = False

    def mine(self, number: int) -> bool:
        """Whether piece ``number`` of something that is dealt out in turn is this rank's."""
        return number % self.size == self.rank

    def tell(self, value: Any) -> None:
        """Rank 0 says something to the others, which :meth:`hear` it."""
        import torch
        import torch.distributed as dist

        with self._together():
            dist.broadcast_object_list([value], src=0, device=torch.device("cpu"))

    def hear(self) -> Any:
        """What rank 0 tells; waits for it."""
        import torch
        import torch.distributed as dist

        heard = [None]
        with self._together():
            dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
        return heard[0]

    def share(self, tensors: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Tensors of rank 0, on the CPU for the others (who pass nothing)."""
        import torch
        import torch.distributed as dist

        if self.rank == 0:
            assert tensors is not None
            self.tell([(name, tuple(t.shape), t.dtype) for name, t in tensors.items()])
            shared = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        else:
            shared = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in self.hear()}
        with self._together():
            for tensor in shared.values():
                if tensor.numel():
                    dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)
        return dict(tensors) if tensors is not None else shared

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in their order, on all of them."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(found, value)
        return found

    def gather_tensor(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of the ranks (all of one shape), in their order, on all of them."""
        import torch
        import torch.distributed as dist

        mine = tensor.contiguous().view(-1).view(torch.uint8)  # bytes: every backend carries them
        found = [torch.empty_like(mine) for _ in range(self.size)]
        with self._together():
            dist.all_gather(found, mine)
        return [each.view(tensor.dtype).view(tensor.shape) for each in found]

    def agree(self, what: str, found: str) -> None:
        """End the run on all ranks unless all have found the same.

        Raises:
            RuntimeError: they have not; it names the ranks that differ from rank 0.
        """
        every = self.gather(found)
        others = ", ".join(str(rank) for rank, each in enumerate(every) if each != every[0])
        if others:
            raise RuntimeError(
                f"ranks: expected the same {what} on all {self.size} processes, got others on rank {others} "
                "than on rank 0"
            )

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around what all ranks do in step; if it raises, rank 0 has nothing more to tell."""
        with self._together():
            yield

    def close(self) -> None:
        """Rank 0 tells the others that there is nothing more to do; then leave."""
        import torch.distributed as dist

        if self.rank == 0 and not self._working:
            with suppress(RuntimeError):  # who has gone needs no word
                self.tell(None)
        dist.destroy_process_group()

    @contextmanager
    def _together(self) -> Iterator[None]:
        working, self._working = self._working, True  # a rank that has gone is told nothing more
        try:
            yield
        except RuntimeError as error:
            if not _is_lost(error):
                raise
            said = " ".join(str(error).split())[:200]
            raise RuntimeError(
                f"ranks: expected {self.size} processes, but one has gone; --resume goes on from the last "
                f"saved state ({said})"
            ) from error
        self._working = working


def digest(tensors: Mapping[str, Tensor]) -> str:
    """What tells tensors apart of which one byte, name, shape or type differs: SHA-256."""
    import torch

    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        held: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        found.update(held)
    return found.hexdigest()


def _own_device(count: int) -> int:
    """Which of the machine's GPUs is this process's: NCCL takes one process on each."""
    own = int(os.environ.get("LOCAL_RANK", "0"))
    here = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), own + 1)
    if here > count:
        raise ValueError(
            f"LOCAL_WORLD_SIZE: expected at most as many processes on a machine as it has GPUs ({count}), "
            f"got {here}; with CUDA_VISIBLE_DEVICES set to nothing they run on the CPU"
        )
    return own


def _join(backend: str) -> None:
    """Meet the others within :data:`JOIN`, then make the group, whose exchanges wait up to :data:`WAIT`."""
    import torch.distributed as dist

    size, where = os.environ["WORLD_SIZE"], f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    long = f"{JOIN.total_seconds() / 60:g} minutes"
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"ranks: {size} processes meet at {where} (for {long} at most)", file=sys.stderr, flush=True)
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=JOIN))
        store.set(f"here/{rank}", "")
        store.wait([f"here/{each}" for each in range(count)], JOIN)
    except dist.DistError as error:
        said = " ".join(str(error).split())[:200]
        raise RuntimeError(
            f"ranks: expected {size} processes at {where} within {long}, but not all have come ({said})"
        ) from error
    store.set_timeout(WAIT)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=WAIT)


_LOST = re.compile(
    r"connection (was )?(likely )?(closed|reset|refused)|broken pipe|socket|timed out|timeout|"
    r"remote process|ncclRemoteError|communicator was aborted",
    re.IGNORECASE,
)


def _is_lost(error: RuntimeError) -> bool:
    """Whether the connection to another rank was lost. What else an exchange says stands as it is: that two
    ranks have one GPU, that a driver is too old. Gloo raises plain RuntimeErrors that name its file."""
    import torch.distributed as dist

    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return True
    of_torch = isinstance(error, dist.DistError) or "gloo/" in str(error)
    return of_torch and not str(error).startswith("ranks: ") and _LOST.search(str(error)) is not None
