"""Greedy facility location in rounds that the device decides: the host launches them and waits for none.

A round brings the gains of the candidates up to date whose bounds are the largest, and takes the largest of
all if its gain is of the present cover (Minoux 1978); else it leaves the cover as it is, and the next round
goes on.  The first of equals is always among those brought up to date, so that every round gets nearer.  As
many rounds as there are picks to come may be launched before the host has to look.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .coverage_device import State
from .problem import Cover, Wanted

EVALUATED = 255
"""Candidates brought up to date in a round beside the first."""
LAUNCHED = 64
"""Rounds between two looks at most: where a budget ends early, those behind the end do nothing."""
BLOCK = 4096


class Rounds:
    """What the rounds know of the candidates, [N], and of the picks, a place more than there can be."""

    def __init__(self, state: State, candidates: int, wanted: Wanted) -> None:
        device = state.current.device
        self.state, self.most = state, len(wanted.initial) + wanted.k
        self.all = torch.arange(candidates, device=device)
        self.lazy = wanted.optimizer == "lazy" and candidates > EVALUATED
        self.shut = torch.zeros(candidates, dtype=torch.bool, device=device)
        self.shut[list(wanted.initial)] = True
        self.bounds = torch.zeros(candidates, dtype=torch.float64, device=device)
        self.made = torch.full_like(self.shut, -1, dtype=torch.int32)  # picks when the bound was made
        self.costs = wanted.costs
        self.left = torch.full((1,), wanted.budget, dtype=torch.float64, device=device)
        self.picks = torch.empty(self.most + 1, dtype=torch.int64, device=device)
        self.gains = torch.empty(self.most + 1, dtype=torch.float64, device=device)
        first = state.first_bounds(wanted) if self.lazy else None
        if first is not None:
            self.bounds.copy_(first)
        else:
            self._update(self.all)

    def worth(self) -> Tensor:
        """Bounds of gains, or of gains per cost; -inf of what cannot be taken."""
        if self.costs is None:
            return self.bounds.masked_fill(self.shut, -math.inf)
        return (self.bounds / self.costs).masked_fill(self.shut | (self.costs > self.left), -math.inf)

    def _update(self, which: Tensor) -> None:
        for block in which.split(BLOCK):
            self.bounds[block] = self.state.gains_of(block)
        self.made[which] = self.state.taken

    def round(self) -> None:
        which = self.all
        if self.lazy:
            worth = self.worth()
            which = torch.cat((worth.argmax(0, keepdim=True), worth.topk(EVALUATED).indices))
        self._update(which)
        worth = self.worth()
        best = worth.argmax(0, keepdim=True)  # the first of equals
        taken = self.state.taken
        accepted = (self.made[best] == taken) & (worth[best] != -math.inf) & (taken < self.most)
        place = torch.where(accepted, taken, self.most)  # behind the picks if it is none
        self.picks[place] = best
        self.gains[place] = self.bounds[best]
        self.shut[best] |= accepted
        if self.costs is not None:
            self.left -= self.costs[best] * accepted
        self.state.take_if(best, accepted)

    def missing(self) -> int:
        """Picks to come; waits for the device."""
        possible = (self.worth() != -math.inf).any()[None]
        taken, possible = torch.cat((self.state.taken, possible)).tolist()
        return (self.most - taken) if possible else 0


def greedy(state: State, candidates: int, wanted: Wanted) -> Cover:
    """As coverage_reference.greedy, for "lazy" and "naive"."""
    for j in wanted.initial:
        state.take(j)
    rounds = Rounds(state, candidates, wanted)
    missing = wanted.k
    while missing:
        for _ in range(min(missing, LAUNCHED)):
            rounds.round()
        missing = rounds.missing()
    picks = slice(len(wanted.initial), int(state.taken))
    return Cover(
        rounds.picks[picks].cpu(),
        rounds.gains[picks].cpu(),
        state.owner.long().cpu(),
        state.objective(),
    )
