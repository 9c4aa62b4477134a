"""What attacks by gradient share: the prompts' embeddings with extra tokens put in, and the loss's gradient
there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack.base import run_attack
from tenfold.diffusion.attack.draws import normals
from tenfold.diffusion.attack.logs import CaseLog
from tenfold.diffusion.attack.steps import eps_mse_rows
from tenfold.diffusion.attack.target import Case, CaseError, Target
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import (
    MODES,
    check_shared_words,
    condition_embeds,
    count_tokens,
    embed_ids,
    end_positions,
    splice,
    splice_ids,
    tokenize,
    vocabulary_size,
)

__all__ = [
    "ORDERS",
    "GradientAttack",
    "Text",
    "allowed_tokens",
    "attack_times",
    "check_losses",
    "check_room",
    "check_words",
    "known_modes",
    "loss_gradient",
    "noise_block",
]

ORDERS = ("ascending", "descending")


def attack_times(count: int, order: str = "ascending", total: int = 1000) -> list[int]:
    """`count` evenly spread timesteps: 10, 30, ..., 990 for 50 of 1000."""
    count = _checks.integer("timesteps", count, 1, total)
    stride = total // count
    times = [stride // 2 + i * stride for i in range(count)]
    return times if _checks.choice("order", order, ORDERS) == "ascending" else times[::-1]


@dataclass
class Text:
    """Prompts of a batch: ids int64 [n, L], lengths (tokens of each, without the specials), word embeddings
    [n, L, D], and how many tokens of each did not fit."""

    ids: Tensor
    lengths: list[int]
    embeds: Tensor
    cut: list[int]

    @classmethod
    def of(cls, bundle: Bundle, prompts: Sequence[str], k: int, overflow: str) -> Text:
        tokens = tokenize(bundle, prompts, room=k, overflow=overflow)
        lengths = tokens.lengths.tolist()
        whole = count_tokens(bundle, prompts)
        cut = [max(a - b, 0) for a, b in zip(whole, lengths, strict=True)]
        with torch.no_grad():
            return cls(tokens.ids, lengths, embed_ids(bundle, tokens.ids).detach(), cut)

    def rows(self, extra: Tensor, mode: str) -> Tensor:
        """Ids [n, L] with extra ids [n, k] put in."""
        return splice_ids(self.ids, extra.to(self.ids.device), self.lengths, mode)

    def keep(self, rows: list[int]) -> None:
        self.ids, self.embeds = self.ids[rows], self.embeds[rows]
        self.lengths, self.cut = [self.lengths[i] for i in rows], [self.cut[i] for i in rows]

    @classmethod
    def joined(cls, texts: Sequence[Text]) -> Text:
        if len(texts) == 1:
            return texts[0]
        return cls(
            torch.cat([t.ids for t in texts]), [x for t in texts for x in t.lengths],
            torch.cat([t.embeds for t in texts]), [x for t in texts for x in t.cut],
        )  # fmt: skip


@dataclass(frozen=True)
class GradientAttack:
    """Settings; the defaults are the published ones for objects and styles (k = 5 for nudity).

    k: extra tokens. mode: where they go ("prefix", "suffix", "mid", "insert", "per_k_words").
    timesteps, iterations: a candidate is judged after `iterations` steps at each of `timesteps` timesteps.
    order: of the timesteps, "ascending" or "descending".
    lr, weight_decay: of Adam; the decay is part of the gradient.
    criterion: "l2" or "l1". banned: words whose tokens are not used.
    overflow: what becomes of prompts that are too long, "error" or "truncate" (the log says how much).
    compat: "reference", what the published code does by mistake (the attack's docstring says what).
    seed: of every draw.
    """

    k: int = 3
    mode: str = "prefix"
    timesteps: int = 50
    iterations: int = 40
    order: str = "ascending"
    lr: float = 0.01
    weight_decay: float = 0.1
    criterion: str = "l2"
    banned: tuple[str, ...] = ()
    overflow: str = "error"
    compat: str = "fixed"
    seed: int = 0

    stops: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checks.integer("k", self.k, 1, 2**16)
        _checks.choice("mode", self.mode, known_modes())
        _checks.integer("iterations", self.iterations, 1, 10**6)
        attack_times(self.timesteps, self.order)
        _checks.real("lr", self.lr, positive=True)
        _checks.real("weight_decay", self.weight_decay, at_least=0.0)
        _checks.choice("criterion", self.criterion, ("l1", "l2"))
        check_words("banned", self.banned)
        _checks.choice("overflow", self.overflow, ("error", "truncate"))
        _checks.choice("compat", self.compat, ("fixed", "reference"))
        _checks.seed("seed", self.seed)

    def run(self, target: Target, cases: Sequence[Case], judge: Any, **options: Any) -> list[CaseLog]:
        """Attack every case (`base.run_attack`, whose options these are)."""
        return run_attack(self, target, cases, judge, **options)  # type: ignore[arg-type]

    def check(self, target: Target, cases: Sequence[Case]) -> None:
        """See `base.Attack`."""
        check_shared_words(target.bundle)
        check_room(self, target, cases)
        for case in cases:
            if case.image is None:
                expected = "target latents (target_cases makes them)"
                _checks.fail(ValueError, f"case {case.case_number}: image", expected, "None")


def check_room(attack: Any, target: Target, cases: Sequence[Case]) -> None:
    """Refuse prompts that have no room for the attack's k tokens, unless it cuts them (`overflow`)."""
    most = target.bundle.context - 2 - _checks.integer("k", attack.k, 1, target.bundle.context - 2)
    for case, count in zip(cases, count_tokens(target.bundle, [c.prompt for c in cases]), strict=True):
        if count > most and attack.overflow == "error":
            expected = f"at most {most} tokens beside k = {attack.k} (or overflow='truncate')"
            _checks.fail(ValueError, f"case {case.case_number}: prompt", expected, count)


def check_words(name: str, words: Any) -> None:
    """Refuse what is no list of words, a single string too."""
    for word in _checks.sequence(name, words, "words"):
        if not isinstance(word, str):
            _checks.fail(TypeError, name, "a list of words", _checks.describe(word))


def allowed_tokens(bundle: Bundle, banned: Sequence[str]) -> Tensor | None:
    """bool [V], False for every token of the banned words; None if none is banned."""
    if not banned:
        return None
    allowed = torch.ones(vocabulary_size(bundle), dtype=torch.bool, device=bundle.device)
    tokens = tokenize(bundle, list(banned), overflow="truncate")
    for row, length in zip(tokens.ids, tokens.lengths.tolist(), strict=True):
        allowed[row[1 : 1 + length]] = False
    return allowed


def noise_block(seed: int, streams: Sequence[int], step: int, steps: int, like: Tensor) -> Tensor:
    """The noise of `steps` steps from `step` for each prompt: float32 [steps, n, C, h, w]."""
    shape = like.shape[1:]
    return torch.stack([normals(seed, s, step, steps, shape, like.device) for s in streams], dim=1)


def loss_gradient(
    bundle: Bundle,
    text: Text,
    embeds: Tensor,
    extra: Tensor,
    mode: str,
    z: Tensor,
    t: Tensor,
    wanted: Tensor,
    criterion: str,
) -> tuple[Tensor, Tensor]:
    """Each prompt's loss [n] and the gradient [n, k, D] at the extra tokens' embeddings, float32.

    Prompts do not see each other: the sum of their losses has the gradient that each has alone. It is taken
    of sums over a picture and divided afterwards, so that half precision does not lose it.

    Args:
        embeds: of the extra tokens, [n, k, D] (`embed_ids`; of SDXL both encoders' side by side). extra:
            their ids [n, k].
        z: noisy latents [n, C, h, w]. t: timesteps [n]. wanted: what the prediction is held against.
    """
    leaf = embeds.detach().clone().requires_grad_()
    with torch.enable_grad():
        spliced = splice(text.embeds, leaf, text.lengths, mode)
        end = end_positions(torch.tensor(text.lengths, device=leaf.device), leaf.shape[1], mode)
        read = condition_embeds(bundle, text.rows(extra, mode), spliced, end=end)
        found = bundle.predict(z.to(bundle.dtype), t, read)
        wide = torch.promote_types(found.dtype, wanted.dtype)
        loss = eps_mse_rows(found.to(wide), wanted.to(wide), criterion)
        size = found[0].numel()
        (gradient,) = torch.autograd.grad((loss * size).sum(), leaf)
    return loss.detach(), gradient.float() / size


def check_losses(cases: Sequence[Case], losses: Tensor, times: Sequence[int], where: str) -> None:
    """Stop at the first prompt whose loss is not finite."""
    if bool(losses.isfinite().all()):
        return
    row = int((~losses.isfinite()).nonzero()[0])
    raise CaseError(
        cases[row], f"expected a finite loss, got {float(losses[row])} at t = {times[row]}{where}"
    )


def known_modes() -> tuple[str, ...]:
    """Splice modes that an attack may take (not "add", which leaves no ids)."""
    return tuple(mode for mode in MODES if mode not in ("add", "replace"))
