"""Unified Concept Editing: cross attention rewritten in closed form (Gandikota et al., arXiv 2308.14761).

For every matrix W of the keys and values [out, d], rows C_o [m, d] of text states that are erased, C_n [m,
d] that stand in for them, C_p [p, d] that are kept:

    W' = (lam W + s_e V^T C_o + s_p W C_p^T C_p) M^-1,   M = lam I + s_e C_o^T C_o + s_p C_p^T C_p
    V = C_n W^T

which is W' = W + (W D^T) R with D = C_n - C_o and R = s_e C_o M^-1: neither depends on W. One Cholesky factor
in float64 serves all matrices, and D and R are all that is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import encode_ids, tokenize
from tenfold.diffusion.erase.closed import shortened
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words, words_of
from tenfold.diffusion.erase.edit import Edit, digest
from tenfold.ops.uce import uce_edit

__all__ = ["OBJECT_TEMPLATES", "STYLE_TEMPLATES", "UCE", "cross_attention_matrices", "uce_factors"]

OBJECT_TEMPLATES = (
    "{}",
    "image of {}",
    "photo of {}",
    "portrait of {}",
    "picture of {}",
    "painting of {}",
)
STYLE_TEMPLATES = ("{}", "image in {} Style", "art by {}", "artwork by {}", "picture by {}", "style of {}")
"""Around a bare word, as published for objects and styles."""

_PROMPTS = 64  # prompts that are encoded at a time


def cross_attention_matrices(unet: torch.nn.Module) -> dict[str, Tensor]:
    """Name -> weight [out, d] of every `attn2.to_k` and `attn2.to_v`."""
    return {
        name: p
        for name, p in unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


def uce_factors(
    old: Tensor,
    new: Tensor,
    keep: Tensor,
    *,
    lam: float,
    erase_scale: float,
    retain_scale: float,
    keep_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(R, D), float64 [m, d] each, with W' = W + (W D^T) R.

    Args:
        old, new: [m, d], rows to erase and what stands in for them. keep: [p, d], p may be 0.
        lam: > 0 unless the rows span all of d.
        keep_weight: [p], how often each kept row counts; once if None.

    Raises:
        ValueError: shapes differ, or values are not finite.
        RuntimeError: the system is singular (lam = 0 and too few rows).
    """
    if old.shape != new.shape or old.ndim != 2 or keep.ndim != 2 or keep.shape[1] != old.shape[1]:
        got = f"{list(new.shape)} and {list(keep.shape)} beside {list(old.shape)}"
        _checks.fail(ValueError, "new, keep", "[m, d] and [p, d] beside old [m, d]", got)
    edit = uce_edit(
        old,
        new,
        keep,
        lam=lam,
        erase_scale=erase_scale,
        retain_scale=retain_scale,
        keep_weights=keep_weight,
    )
    return edit.right, edit.left


def last_rows(old: Sequence[int], new: Sequence[int], n: int, m: int) -> tuple[list[int], list[int]]:
    """Places in two rows of ids, [L] each, n and m words behind the first token: from the last word on."""
    first = max(n, 1), max(m, 1)
    count = len(old) - max(first)
    return list(range(first[0], first[0] + count)), list(range(first[1], first[1] + count))


def aligned_rows(old: Sequence[int], new: Sequence[int], n: int, m: int) -> tuple[list[int], list[int]]:
    """The same from the first word that differs on. Words that only one has stand against the other's last
    word there; common words behind them against each other, and so does what follows the texts. Texts that
    are the same have no rows.
    """
    if n == m and list(old) == list(new):
        return [], []
    front = 1
    while front <= min(n, m) and old[front] == new[front]:
        front += 1
    back = 0
    while back < min(n, m) - front + 1 and old[n - back] == new[m - back]:
        back += 1
    apart = n - back - front + 1, m - back - front + 1  # words that differ; one of them may be 0
    ours = [front + min(i, max(apart[0] - 1, 0)) for i in range(max(apart))]
    theirs = [front + min(i, max(apart[1] - 1, 0)) for i in range(max(apart))]
    behind = len(old) - max(n, m) + back - 1
    ours += [n - back + 1 + i for i in range(behind)]
    theirs += [m - back + 1 + i for i in range(behind)]
    return ours, theirs


@dataclass(frozen=True)
class UCE:
    """lam: weight of W as it is. erase_scale, retain_scale: s_e, s_p.

    technique: "replace", states are mapped to the anchor's; "tensor", only the part along the old values
        is taken away.
    templates: texts with {} for each of the concept's prompts. "bundle": prompts that have the concept's name
        among other words are those that pictures are made of, and are edited as they are; a bare name goes
        into `OBJECT_TEMPLATES`. An edit reaches the texts it was made with: pictures of "A Cats image in X
        style." keep X where only "image in X Style" was edited.
    guide: a text that stands in for every prompt as it is; the concept's anchors, put into the templates, if
        None.
    keep: texts that are kept beside the concept's own; published: the empty one.
    truncate: singular values of the change below this share of the largest are not stored; 0 keeps all rows.
    rows: which text states of a prompt are edited. "aligned": those of the words that differ from the
        anchor's and all behind them. "last": from the prompt's last word on, as published; where a concept
        stands in front ("A Cats image in X style."), its own word's state is left then, and attention still
        finds it. Both to the end of the padding. Retained prompts are kept with all their rows.
    """

    lam: float = 1.0
    erase_scale: float = 0.05
    retain_scale: float = 0.1
    technique: str = "replace"
    templates: str | tuple[str, ...] = "bundle"
    guide: str | None = None
    keep: tuple[str, ...] = ("",)
    rows: str = "aligned"
    truncate: float = 0.0

    name: ClassVar[str] = "uce"

    def __post_init__(self) -> None:
        _checks.choice("technique", self.technique, ("replace", "tensor"))
        for name in ("lam", "erase_scale", "retain_scale", "truncate"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        if self.guide is not None and not isinstance(self.guide, str):
            _checks.fail(TypeError, "guide", "a text or None", _checks.describe(self.guide))
        keep = tuple(_checks.sequence("keep", self.keep, "texts"))
        if not all(isinstance(text, str) for text in keep):
            _checks.fail(TypeError, "keep", "texts", _checks.describe(self.keep))
        object.__setattr__(self, "keep", keep)
        if isinstance(self.templates, str):
            _checks.choice("templates", self.templates, ("bundle",))
            return
        if not _checks.sequence("templates", self.templates, "texts with {}"):
            _checks.fail(ValueError, "templates", "texts with {}", "none")
        for template in self.templates:
            if not isinstance(template, str) or "{}" not in template:
                _checks.fail(ValueError, "templates", "texts with {}", repr(template))

    @classmethod
    def style(cls, **changes: Any) -> UCE:
        """UnlearnCanvas' setting for a style."""
        own = cls(templates=STYLE_TEMPLATES, guide="An image in Photo style", rows="last")
        return replace(own, **changes)

    @classmethod
    def object(cls, **changes: Any) -> UCE:
        """UnlearnCanvas' setting for an object; `guide` is another object's text ("A Elephant image")."""
        own = cls(
            lam=10.0, erase_scale=0.01, templates=OBJECT_TEMPLATES, guide="A Elephant image", rows="last"
        )
        return replace(own, **changes)

    @classmethod
    def small(cls, **changes: Any) -> UCE:
        """For a model of a few million weights."""
        return replace(cls(lam=0.1, erase_scale=1.0, retain_scale=0.1), **changes)

    def fit(self, bundle: Bundle, concept: Concept, *, seed: int = 0, progress: Any = None) -> Edit:
        """The edit of the UNet. There is nothing random and nothing to resume; `seed` is only noted.

        Raises:
            ValueError: a prompt does not fit, no cross attention. RuntimeError: the system is singular.
        """
        check_fit(bundle, concept, seed)
        matrices = cross_attention_matrices(bundle.unet)
        if not matrices:
            _checks.fail(ValueError, "unet", "cross attention (attn2.to_k, attn2.to_v)", "none")
        blocks = self._blocks(bundle, concept)
        old, new = (torch.cat([block[i] for block in blocks]) for i in (0, 1))
        keep, weight = self._keep(bundle, concept, old)
        scales = {"lam": self.lam, "erase_scale": self.erase_scale, "retain_scale": self.retain_scale}
        right, left = uce_factors(old, new, keep, **scales, keep_weight=weight)
        details = {
            "eraser": self.name, "settings": asdict(self), "concept": concept.about(), "seed": seed,
            "base": bundle.name, "base_sha256": digest(bundle.unet), "layers": list(matrices),
            "rows": len(old),
        }  # fmt: skip
        if progress is not None:
            progress(1, 1, {"rows": float(len(old))})
        if self.technique == "replace":
            if self.truncate:
                right, left, details["left_out"] = shortened(right, left, self.truncate)
                details["rank"] = len(right)
            # float32 holds the change to 6e-8 of itself: less than a rounding of W in float32
            kind = torch.float64 if bundle.dtype == torch.float64 else torch.float32
            factors = {"R": right.to("cpu", kind), "D": left.to("cpu", kind)}
            return Edit("closed_form", "unet", factors, details)
        return Edit("weights", "unet", self._tensor(matrices, blocks, right), details)

    def _tensor(
        self, matrices: dict[str, Tensor], blocks: list[tuple[Tensor, Tensor]], right: Tensor
    ) -> dict[str, Tensor]:
        """V_i = C_n W^T - <U, C_n W^T> U with U = C_o W^T / |C_o W^T| for each prompt's rows."""
        found = {}
        for name, w in matrices.items():
            exact, at = w.detach().double(), 0
            change = torch.zeros_like(exact)
            for old, new in blocks:
                values, wanted = old.double() @ exact.T, new.double() @ exact.T
                unit = values / values.norm().clamp(min=1e-300)
                wanted = wanted - (unit * wanted).sum() * unit
                change += (wanted - values).T @ right[at : at + len(old)]
                at += len(old)
            found[name] = (exact + change).to(w.dtype).cpu()
        return found

    def _blocks(self, bundle: Bundle, concept: Concept) -> list[tuple[Tensor, Tensor]]:
        """(C_o, C_n) of each prompt that is edited."""
        pairs = [
            (template.replace("{}", prompt), self._stand_in(template, anchor))
            for prompt, anchor in concept.pairs for template in self._templates(concept, prompt)
        ]  # fmt: skip
        check_words(bundle, tuple(text for pair in pairs for text in pair))
        blocks = []
        for old, new in pairs:
            tokens = tokenize(bundle, [old, new])
            with torch.no_grad():
                states = encode_ids(bundle, tokens.ids)
            old_rows, new_rows = (aligned_rows if self.rows == "aligned" else last_rows)(
                *(row.tolist() for row in tokens.ids), *(int(n) for n in tokens.lengths)
            )
            blocks.append((states[0, old_rows], states[1, new_rows]))
        return blocks

    def _templates(self, concept: Concept, prompt: str) -> tuple[str, ...]:
        if not isinstance(self.templates, str):
            return self.templates
        said = prompt.replace("_", " ").lower().strip()
        words = [word.lower() for word in words_of(concept)]
        return ("{}",) if any(w in said and w != said for w in words) else OBJECT_TEMPLATES

    def _stand_in(self, template: str, anchor: str) -> str:
        if self.guide is not None:
            return self.guide
        return template.replace("{}", anchor).strip() if anchor else ""

    def _keep(self, bundle: Bundle, concept: Concept, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows [p, d], how often each counts). The first token's state is every prompt's: kept once."""
        texts = tuple(dict.fromkeys((*self.keep, *concept.retain)))
        if not texts:
            return like[:0], None
        check_words(bundle, texts)
        ids = tokenize(bundle, list(texts)).ids
        with torch.no_grad():
            states = torch.cat([encode_ids(bundle, part) for part in ids.split(_PROMPTS)])
        first, rest = states[:1, 0], states[:, 1:].flatten(0, 1)
        if not torch.allclose(states[:, 0].double(), first.double(), rtol=1e-5, atol=1e-6):
            return states.flatten(0, 1), None
        weight = torch.ones(1 + len(rest), device=rest.device)
        weight[0] = len(states)
        return torch.cat([first, rest]), weight
