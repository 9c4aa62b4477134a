"""What a training run tells about each sample: correctness, forgetting, margins, EL2N, epoch by epoch.

Toneva et al., "An empirical study of example forgetting" (arXiv 1812.05159); Pleiss et al., "Identifying
mislabeled data using the area under the margin ranking" (arXiv 2001.10528); Paul et al., "Deep learning on a
data diet" (arXiv 2107.07075); Zheng et al., CCS (arXiv 2210.15809) for the margin on probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import _checks
from tenfold._npy import read_npz
from tenfold.ops import Dynamics, dynamics_update, new_dynamics
from tenfold.selection.files import reading

__all__ = ["Recorder"]

KINDS = ("aum", "forgetting", "correct", "el2n")


class Recorder:
    """Keeps the records of `n` samples; call `update` with each batch of a training loop::

        recorder = Recorder(len(dataset))
        for x, y, index in loader:
            logits = model(x)
            recorder.update(index, logits, y)
            ...
        scores = recorder.scores("forgetting")

    Under torch.distributed call `sync` after each epoch: forgetting compares a sample's answer with that of
    the epoch before, which another process may have seen.

    Args:
        n: number of samples in the data set.
        device: where the records live, that of the logits.

    Raises:
        ValueError: n is negative.
    """

    def __init__(self, n: int, device: torch.device | str | None = None) -> None:
        n = _checks.integer("n", n, 0, 2**40)
        self.state: Dynamics = new_dynamics(n, device=device)
        self._touched = torch.zeros(n, dtype=torch.bool, device=device)

    def __len__(self) -> int:
        return len(self._touched)

    @property
    def seen(self) -> torch.Tensor:
        """int32 [n]: how many updates each sample had."""
        return self.state.seen

    @torch.no_grad()
    def update(self, indices: Any, logits: Any, labels: Any) -> None:
        """Take one batch in.

        Args:
            indices: int64 [B], row numbers in the data set, no one twice.
            logits: [B, C], before the softmax; float32, bfloat16 or float16.
            labels: int64 [B].

        Raises:
            ValueError: a row number twice or not below n, a label that is no column, a row that is not
                finite; nothing is recorded then.
        """
        device = self.seen.device
        rows = torch.as_tensor(indices, device=device)
        outputs = torch.as_tensor(logits).detach().to(device)
        dynamics_update(self.state, rows, outputs, torch.as_tensor(labels).to(device))
        self._touched[rows.long()] = True

    def scores(self, kind: str, *, never_learned: str = "hardest") -> NDArray[np.float64]:
        """float64 [n], one score for each sample.

        Args:
            kind: "aum", the sum over updates of p_label - max p_other (small is hard); "forgetting", how
                often a right answer was followed by a wrong one (many is hard); "correct", how often it was
                right (few is hard); "el2n", the mean of ||p - onehot|| over updates (large is hard).
            never_learned: what forgetting says of a sample that was never right: "hardest" is infinity, as in
                the paper on it, "zero" counts no event.

        Raises:
            ValueError: another kind; a sample that no update has seen.
        """
        _checks.choice("kind", kind, KINDS)
        _checks.choice("never_learned", never_learned, ("hardest", "zero"))
        unseen = torch.nonzero(self.seen == 0)[:, 0]
        if len(unseen):
            _checks.fail(ValueError, "scores", "updates of every sample", f"none of row {int(unseen[0])}")
        if kind == "aum":
            found = self.state.aum.double()
        elif kind == "correct":
            found = self.state.correct.double()
        elif kind == "el2n":
            found = self.state.el2n.double() / self.seen
        else:
            found = self.state.forget.double()
            if never_learned == "hardest":
                found = found.masked_fill(self.state.ever == 0, float("inf"))
        return found.cpu().numpy()

    @property
    def never_learned(self) -> NDArray[np.bool_]:
        """bool [n]: samples that were seen and never right."""
        return ((self.state.ever == 0) & (self.seen > 0)).cpu().numpy()

    def take(self, rows: NDArray[np.int64]) -> Recorder:
        """The records of some samples."""
        at = torch.from_numpy(rows).to(self.seen.device)
        part = Recorder(0, self.seen.device)
        part.state = Dynamics(**{name: value[at] for name, value in _tensors(self.state).items()})
        part._touched = self._touched[at]
        return part

    # ---- several processes ------------------------------------------------------------------------------

    def sync(self, group: Any = None) -> None:
        """Join what all processes have seen since the last call; all have the same records then.

        A sample that several have seen meanwhile (a DistributedSampler repeats some to make shards equal) is
        counted once, as the process of the lowest rank saw it.
        """
        import torch.distributed as dist

        rank, world = dist.get_rank(group), dist.get_world_size(group)
        nobody = torch.full_like(self.seen, world)
        owner = torch.where(self._touched, torch.full_like(self.seen, rank), nobody)
        dist.all_reduce(owner, dist.ReduceOp.MIN, group=group)
        mine = (owner == rank) | ((owner == world) & (rank == 0))  # what nobody saw is the same everywhere
        for value in _tensors(self.state).values():
            wide = value.to(torch.float64 if value.is_floating_point() else torch.int32)
            part = torch.where(mine, wide, torch.zeros_like(wide))
            dist.all_reduce(part, group=group)
            value.copy_(part)
        self._touched.zero_()

    @staticmethod
    def merge(recorders: Sequence[Recorder]) -> Recorder:
        """One recorder of several that saw different samples of the same data set.

        Raises:
            ValueError: none, different sizes, or a sample that two of them have seen.
        """
        if not recorders:
            _checks.fail(ValueError, "recorders", "at least one", "none")
        whole = Recorder(len(recorders[0]), recorders[0].seen.device)
        for i, part in enumerate(recorders):
            if len(part) != len(whole):
                _checks.fail(ValueError, f"recorders[{i}]", f"{len(whole)} samples", len(part))
            rows = torch.nonzero(part.seen)[:, 0]
            again = rows[whole.seen[rows] > 0]
            if len(again):
                got = f"row {int(again[0])} in two of them"
                _checks.fail(ValueError, f"recorders[{i}]", "samples of its own", got)
            for name, value in _tensors(whole.state).items():
                value[rows] = getattr(part.state, name)[rows]
        return whole

    # ---- files ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All records as tensors, for a checkpoint."""
        return {**_tensors(self.state), "touched": self._touched}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a checkpoint. ValueError if it is of another number of samples."""
        own = self.state_dict()
        if state.keys() != own.keys():
            _checks.fail(ValueError, "state", f"the tensors {sorted(own)}", sorted(state))
        for name, value in own.items():
            if state[name].shape != value.shape:
                _checks.fail(ValueError, f"state[{name!r}]", list(value.shape), list(state[name].shape))  # type: ignore[arg-type]
        for name, value in own.items():
            value.copy_(state[name])

    def save(self, path: str | Path) -> None:
        """Write all records to a .npz file, aside, then renamed."""
        from tenfold.runs.files import replacing

        arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in self.state_dict().items()}
        with replacing(Path(path)) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: str | Path) -> Recorder:
        """What `save` wrote."""
        with reading(path, "the records of a Recorder"):
            state = {name: torch.from_numpy(found) for name, found in read_npz(path).items()}
        if "seen" not in state:
            _checks.fail(ValueError, str(path), "the records of a Recorder", sorted(state))
        recorder = Recorder(len(state["seen"]))
        recorder.load_state_dict(state)
        return recorder


def _tensors(state: Dynamics) -> dict[str, torch.Tensor]:
    return {f.name: getattr(state, f.name) for f in fields(state)}
