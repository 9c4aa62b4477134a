"""What the steps of `Sophia` count, kept on the device until somebody reads it."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .sophia import Sophia

# places in the vector that the op adds to
WON, MOVING, SQUARES, NONFINITE, CHANGED, ELEMENTS = range(6)


class Stats:
    """One vector per device and kind of parameter, of the last step."""

    def __init__(self) -> None:
        self._sums: dict[tuple[torch.device, bool], Tensor] = {}
        self._skipped: dict[torch.device, Tensor] = {}
        self._warned = False
        self._copies: list[tuple[Tensor, Any]] = []  # on the way from a GPU

    def begin(self) -> None:
        for sums in self._sums.values():
            sums.zero_()

    def of(self, device: torch.device, rounds: bool) -> Tensor:
        """The vector to add to; `rounds` where a parameter keeps only the nearest half-precision number."""
        key = device, rounds
        if key not in self._sums:
            self._sums[key] = torch.zeros(6, dtype=torch.float64, device=device)
        return self._sums[key]

    def skip_refresh(self, found_inf: Tensor) -> None:
        before = self._skipped.get(found_inf.device)
        self._skipped[found_inf.device] = found_inf.clone() if before is None else before + found_inf

    def read(self, reduce: bool, group: Any) -> dict[str, float]:
        vectors = list(self._sums.values())
        home = vectors[0].device if vectors else torch.device("cpu")
        total = sum((v.to(home) for v in vectors), torch.zeros(6, dtype=torch.float64, device=home))
        if reduce:
            import torch.distributed as dist

            dist.all_reduce(total, group=group)
        sums = total.tolist()
        n = sums[ELEMENTS]
        return {
            "win_rate": sums[WON] / n if n else math.nan,
            "update_rms": math.sqrt(sums[SQUARES] / n) if n else math.nan,
            "changed": sums[CHANGED] / n if n else math.nan,
            "nonfinite": sums[NONFINITE],
            "elements": n,
            "skipped_refreshes": sum(float(v) for v in self._skipped.values()),
        }

    def warn_if_lost(self, optimizer: Sophia) -> None:
        """Once: most of the updates of half-precision parameters were too small to be stored.

        A GPU's counts are copied without waiting and looked at in a later step.
        """
        if self._warned:
            return
        for (device, rounds), sums in self._sums.items():
            if rounds and device.type == "cpu":
                self._judge(sums, optimizer)
            elif rounds and not self._copies and not torch.cuda.is_current_stream_capturing():
                event = torch.cuda.Event()
                copy = torch.empty(6, dtype=torch.float64, pin_memory=True).copy_(sums, non_blocking=True)
                event.record(torch.cuda.current_stream(device))
                self._copies.append((copy, event))
        arrived = [pair for pair in self._copies if pair[1].query()]
        for pair in arrived:
            self._copies.remove(pair)
            self._judge(pair[0], optimizer)

    def _judge(self, sums: Tensor, optimizer: Sophia) -> None:
        moving, changed = float(sums[MOVING]), float(sums[CHANGED])
        if self._warned or moving == 0 or changed >= 0.5 * moving or not any(_lrs(optimizer)):
            return
        self._warned = True
        warnings.warn(
            f"Sophia: {100 * changed / moving:.1f} % of the half-precision weights with an update changed; "
            "the others lost it to rounding. Use master=True, rounding='stochastic' or rounding='kahan'.",
            stacklevel=4,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copies": []}


def _lrs(optimizer: Sophia) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]
