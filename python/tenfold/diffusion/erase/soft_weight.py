"""Taking a word out of a prompt while its picture is made (Li et al., arXiv 2402.05375, "SuppressEOT").

Soft weighting: the states of the concept's tokens and of the end and padding tokens, which repeat what the
prompt says, are written X = U diag(s) V and s becomes s exp(-alpha s): what they have in common goes. Inner
updates: in some early steps the states are then moved against

    L = sum over tokens and positions of cosine distances between attention maps before and after,
        kept tokens pulled together, the concept's pushed apart

by steps of size 20 sqrt(r), r falling from 1 to 0.1 along the walk. Nothing is trained and no weight changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold import _checks
from tenfold.diffusion.encode import tokenize
from tenfold.diffusion.erase.attention import attn_maps, grid_of, record

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle
    from tenfold.diffusion.sampling import Batch, Step

__all__ = ["SoftWeight", "find_tokens", "soft_weighted"]

_ENLARGED = 16  # masks of positions are cut from maps enlarged so often, as published (16 x 16 to 256 x 256)
_CUT, _CUT_KEPT = 0.85, 0.95


def find_tokens(bundle: Bundle, texts: Sequence[str], phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Where phrases stand in texts: (bool [B, L], int64 [B], position of each text's end token).

    A phrase is found as its tokens in a row, whatever their number and place; all its places count.
    """
    tokens = tokenize(bundle, list(texts), overflow="truncate")
    wanted = tokenize(bundle, list(phrases), overflow="truncate")
    found = torch.zeros_like(tokens.ids, dtype=torch.bool)
    for phrase, n in zip(wanted.ids, wanted.lengths.tolist(), strict=True):
        if not n:
            continue
        piece = phrase[1 : 1 + n]
        for i, length in enumerate(tokens.lengths.tolist()):
            for at in range(1, 2 + length - n):
                if torch.equal(tokens.ids[i, at : at + n], piece):
                    found[i, at : at + n] = True
    return found, tokens.lengths + 1


def soft_weighted(states: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """States [L, D] with the chosen rows (bool [L]) weighted softly: s -> s exp(-alpha s)."""
    chosen = states[rows].double()
    u, s, v = torch.linalg.svd(chosen, full_matrices=False)
    out = states.clone()
    out[rows] = ((u * (s * (-alpha * s).exp())) @ v).to(states.dtype)
    return out


@dataclass(frozen=True)
class SoftWeight:
    """A `SamplingHook`. A prompt without one of the phrases is left as it is, to the bit.

    phrases: texts to take out. alpha: of the weighting. start, stop: shares of the steps; states are weighted
    from `start` on, and updated from `start` to before `stop`. inner_steps, step_size: of the updates in a
    step.
    retain, erase, self_retain, self_erase: weights of the distances of cross and self attention; what is
    erased counts negatively. map_size: side of the maps that are compared; the one next to a quarter of the
    latents' if None (16 for Stable Diffusion's 64).
    compare: at which latents the maps before are taken: "edited", where the maps after are, as UnlearnCanvas
    has it; "original", those of a walk with the unedited prompt beside it, as the paper's own code does, for
    one more guided prediction in each step before `stop`.
    rows: pictures in one call of the updates. With 1 a picture does not depend on the others, to the bit;
    more are faster where calls are short.
    """

    phrases: tuple[str, ...]
    alpha: float = 1.0
    start: float = 0.2
    stop: float = 0.4
    inner_steps: int = 10
    step_size: float = 20.0
    retain: float = 1.0
    erase: float = -0.5
    self_retain: float = 1.0
    self_erase: float = -0.5
    map_size: int | None = None
    compare: str = "edited"
    rows: int = 1

    def __post_init__(self) -> None:
        phrases = tuple(_checks.sequence("phrases", self.phrases, "texts"))
        if not phrases or not all(isinstance(p, str) and p.strip() for p in phrases):
            _checks.fail(ValueError, "phrases", "texts to take out", list(phrases))
        object.__setattr__(self, "phrases", phrases)
        for name in ("alpha", "retain", "erase", "self_retain", "self_erase"):
            _checks.real(name, getattr(self, name))
        _checks.choice("compare", self.compare, ("edited", "original"))
        for name in ("start", "stop", "step_size"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        _checks.integer("inner_steps", self.inner_steps, 0, 10**6)
        _checks.integer("rows", self.rows, 1, 2**16)
        if self.map_size is not None:
            _checks.integer("map_size", self.map_size, 1, 2**12)

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> SoftWeight:
        """From the fields as JSON has them."""
        return cls(**{**settings, "phrases": tuple(settings["phrases"])})

    @contextmanager
    def begin(self, batch: Batch) -> Iterator[Callable[[Step, Tensor], Tensor]]:
        """Find the phrases in the batch's prompts and weight their states.

        Raises:
            ValueError: no texts, or an SDXL model, whose states stand for two tokenisations.
        """
        if batch.texts is None:
            _checks.fail(ValueError, "texts", "what the prompts say", "states only")
        if batch.bundle.is_sdxl:
            _checks.fail(ValueError, "bundle", "a model with one text encoder", "one with two (SDXL)")
        assert batch.texts is not None
        found, end = find_tokens(batch.bundle, batch.texts, self.phrases)
        touched = found.any(1).nonzero()[:, 0]
        walks = [
            _Walk(self, batch, part, found[part], end[part]) for part in touched.split(self.rows) if len(part)
        ]

        def act(step: Step, states: Tensor) -> Tensor:
            for walk in walks:
                states = walk.act(step, states)
            return states

        yield act


class _Walk:
    """Some touched rows of a batch: their weighted states, which tokens are kept."""

    def __init__(self, soft: SoftWeight, batch: Batch, touched: Tensor, found: Tensor, end: Tensor):
        self.soft, self.batch, self.touched, self.found = soft, batch, touched, found
        place = torch.arange(found.shape[1], device=found.device)
        self.kept = (place > 0) & (place < end[:, None]) & ~found
        rows = found | (place >= end[:, None])
        states = batch.states[touched]
        self.weighted = torch.stack(
            [soft_weighted(s, r, soft.alpha) for s, r in zip(states, rows, strict=True)]
        )
        self.original = _Original(batch, touched) if soft.compare == "original" else None

    def act(self, step: Step, states: Tensor) -> Tensor:
        """The states of this step."""
        soft, count = self.soft, self.batch.steps
        weights = (soft.retain, soft.erase, soft.self_retain, soft.self_erase)
        early = step.number < soft.stop * count and soft.inner_steps and any(weights)
        z = step.z[self.touched]
        beside = self.original.step(step) if self.original is not None and early else z
        if step.number < soft.start * count:
            return states
        new = self._updated(step, z, beside, states[self.touched]) if early else self.weighted
        out = states.clone()
        out[self.touched] = new.to(out.dtype)
        return out

    def _updated(self, step: Step, z: Tensor, beside: Tensor, original: Tensor) -> Tensor:
        soft, bundle = self.soft, self.batch.bundle
        falling = torch.linspace(1.0, 0.1, self.batch.steps)[step.number]
        size = soft.step_size * float(falling.sqrt())
        with record(bundle.unet, "attn1", "attn2") as recorded:
            before = self._maps(recorded, beside, step.t, original)
            masks = self._masks(before[0], z)
            new = self.weighted
            for _ in range(soft.inner_steps):
                with torch.enable_grad():
                    moving = new.detach().requires_grad_()
                    loss = self._loss(before, self._maps(recorded, z, step.t, moving), masks)
                    (slope,) = torch.autograd.grad(loss, moving)
                if not bool(slope.isfinite().all()):
                    _checks.fail(
                        RuntimeError, "soft_weight", "finite gradients", f"others at step {step.number}"
                    )
                new = (moving - size * slope).detach()
        return new

    def _maps(self, recorded: list[Any], z: Tensor, t: Any, states: Tensor) -> tuple[Tensor, Tensor]:
        """(cross [B, n, L], self [B, n, n]) of one call, at the maps' size."""
        recorded.clear()
        self.batch.bundle.unet_output(z, t, states)
        rows = [r for r in recorded if r.name.endswith("attn2")]
        count = self._positions({r.q.shape[2] for r in rows}, z)
        return attn_maps(rows, count), attn_maps([r for r in recorded if r.name.endswith("attn1")], count)

    def _positions(self, counts: set[int], z: Tensor) -> int:
        """Positions of the maps that are compared."""
        height, width = z.shape[2:]
        sides = {n: grid_of(n, height, width)[0] for n in counts}
        wanted = self.soft.map_size
        if wanted is not None:
            chosen = [n for n, side in sides.items() if side == wanted]
            if not chosen:
                _checks.fail(ValueError, "map_size", f"one of {sorted(sides.values())}", wanted)
            return chosen[0]
        return min(counts, key=lambda n: (max(sides[n] * 4 / height, height / (sides[n] * 4)), n))

    def _masks(self, cross: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """For self attention, how many kept and how many erased tokens look at each position: two [B, n]."""
        rows, columns = grid_of(cross.shape[1], z.shape[2], z.shape[3])
        maps = cross.transpose(1, 2).unflatten(2, (rows, columns))
        large = F.interpolate(maps, scale_factor=_ENLARGED, mode="bilinear")
        cut = torch.where(self.found, _CUT, _CUT_KEPT)[..., None, None] * large.amax((2, 3), keepdim=True)
        looked = F.interpolate((large >= cut).to(large.dtype), size=(rows, columns), mode="bilinear")
        looked = (looked > 0).flatten(2).to(cross.dtype)
        return (looked * self.kept[..., None]).sum(1), (looked * self.found[..., None]).sum(1)

    def _loss(self, before: Any, after: Any, masks: tuple[Tensor, Tensor]) -> Tensor:
        soft = self.soft
        cross, own = (1 - F.cosine_similarity(a, b, dim=1) for a, b in zip(before, after, strict=True))
        kept, gone = masks
        return (
            soft.retain * (cross * self.kept).sum() + soft.erase * (cross * self.found).sum()
            + soft.self_retain * (own * kept).sum() + soft.self_erase * (own * gone).sum()
        )  # fmt: skip


class _Original:
    """The walk of the unedited prompts, with a sampler of its own."""

    def __init__(self, batch: Batch, touched: Tensor):
        self.batch, self.touched = batch, touched
        self.scheduler = batch.bundle.schedule.scheduler(batch.sampler)
        self.scheduler.set_timesteps(batch.steps)
        self.states = torch.cat([batch.empty.expand(len(touched), -1, -1), batch.states[touched]])
        self.scale = batch.guidance[touched].view(-1, 1, 1, 1)
        self.z: Tensor | None = None

    def step(self, step: Step) -> Tensor:
        """What the UNet reads of it in this step; asked once for each step from the first on."""
        z = step.latents[self.touched] if self.z is None else self.z
        read: Tensor = self.scheduler.scale_model_input(z, step.t)
        eu, ec = self.batch.bundle.unet_output(torch.cat([read, read]), step.t, self.states).chunk(2)
        self.z = self.scheduler.step(eu + self.scale * (ec - eu), step.t, z, return_dict=False)[0]
        return read
