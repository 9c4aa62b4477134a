"""Unified Concept Editing: cross attention rewritten in closed form (Gandikota et al., arXiv 2308.14761).

For every matrix W of the keys and values [out, d], rows C_o [m, d] of text states that are erased, C_n [m,
d] that stand in for them, C_p [p, d] that are kept:

    W' = (lam W + s_e V^T C_o + s_p W C_p^T C_p) M^-1,   M = lam I + s_e C_o^T C_o + s_p C_p^T C_p
    V = C_n W^T

which is W' = W + (W D^T) R with D = C_n - C_o and R = s_e C_o M^-1: neither depends on W. One Cholesky factor
in float64 serves all matrices, and D and R are all that is stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import encode_ids, tokenize
from tenfold.diffusion.erase.concept import Concept, check_fit, check_words
from tenfold.diffusion.erase.edit import Edit, digest
from tenfold.ops.uce import uce_edit

__all__ = ["UCE", "cross_attention_matrices", "uce_factors"]


def cross_attention_matrices(unet: torch.nn.Module) -> dict[str, Tensor]:
    """Name -> weight [out, d] of every `attn2.to_k` and `attn2.to_v`."""
    return {
        name: p
        for name, p in unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


def uce_factors(
    old: Tensor, new: Tensor, keep: Tensor, *, lam: float, erase_scale: float, retain_scale: float
) -> tuple[Tensor, Tensor]:
    """(R, D), float64 [m, d] each, with W' = W + (W D^T) R.

    Args:
        old, new: [m, d], rows to erase and what stands in for them. keep: [p, d], p may be 0.
        lam: > 0 unless the rows span all of d.

    Raises:
        ValueError: shapes differ, or values are not finite.
        RuntimeError: the system is singular (lam = 0 and too few rows).
    """
    if old.shape != new.shape or old.ndim != 2 or keep.ndim != 2 or keep.shape[1] != old.shape[1]:
        got = f"{list(new.shape)} and {list(keep.shape)} beside {list(old.shape)}"
        _checks.fail(ValueError, "new, keep", "[m, d] and [p, d] beside old [m, d]", got)
    edit = uce_edit(old, new, keep, lam=lam, erase_scale=erase_scale, retain_scale=retain_scale)
    return edit.right, edit.left


@dataclass(frozen=True)
class UCE:
    """lam: weight of W as it is. erase_scale, retain_scale: s_e, s_p.

    technique: "replace", states are mapped to the anchor's; "tensor", only the part along the old values
        is taken away.
    templates: prompts with {} for the concept, edited beside the bare one.
    Rows: from the concept's last token on, aligned with the anchor's, to the end of the padding. Retained
    prompts are kept with all their rows.
    """

    lam: float = 1.0
    erase_scale: float = 0.05
    retain_scale: float = 0.1
    technique: str = "replace"
    templates: tuple[str, ...] = (
        "{}",
        "image of {}",
        "photo of {}",
        "portrait of {}",
        "picture of {}",
        "painting of {}",
    )

    name: ClassVar[str] = "uce"

    def __post_init__(self) -> None:
        _checks.choice("technique", self.technique, ("replace", "tensor"))
        for name in ("lam", "erase_scale", "retain_scale"):
            _checks.real(name, getattr(self, name), at_least=0.0)
        if not _checks.sequence("templates", self.templates, "texts with {}"):
            _checks.fail(ValueError, "templates", "texts with {}", "none")
        for template in self.templates:
            if not isinstance(template, str) or "{}" not in template:
                _checks.fail(ValueError, "templates", "texts with {}", repr(template))

    def fit(
        self, bundle: Bundle, concept: Concept, *, seed: int = 0, progress: Any = None, **unused: Any
    ) -> Edit:
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
        keep = self._keep(bundle, concept, old)
        scales = {"lam": self.lam, "erase_scale": self.erase_scale, "retain_scale": self.retain_scale}
        right, left = uce_factors(old, new, keep, **scales)
        details = {
            "eraser": self.name, "settings": asdict(self), "concept": asdict(concept), "seed": seed,
            "base": bundle.name, "base_sha256": digest(bundle.unet), "layers": list(matrices),
            "rows": len(old),
        }  # fmt: skip
        if progress is not None:
            progress(1, 1, {"rows": float(len(old))})
        if self.technique == "replace":
            return Edit("closed_form", "unet", {"R": right.cpu(), "D": left.cpu()}, details)
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
            (template.replace("{}", prompt), template.replace("{}", anchor).strip() if anchor else "")
            for prompt, anchor in concept.pairs for template in self.templates
        ]  # fmt: skip
        check_words(bundle, tuple(text for pair in pairs for text in pair))
        blocks = []
        for old, new in pairs:
            tokens = tokenize(bundle, [old, new])
            with torch.no_grad():
                states = encode_ids(bundle, tokens.ids)
            first = [max(int(n), 1) for n in tokens.lengths]  # position of the last content token
            columns = tokens.ids.shape[1] - max(first)
            blocks.append(tuple(states[i, f : f + columns] for i, f in enumerate(first)))
        return blocks

    def _keep(self, bundle: Bundle, concept: Concept, like: Tensor) -> Tensor:
        if not concept.retain:
            return like[:0]
        check_words(bundle, concept.retain)
        with torch.no_grad():
            states = encode_ids(bundle, tokenize(bundle, list(concept.retain)).ids)
        return states.flatten(0, 1)
