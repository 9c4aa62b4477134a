"""An eraser in 30 lines: the text states of the concept's prompts are led to those of its anchors, by one
matrix behind the keys and values of cross attention (ridge regression on all prompts)."""

from dataclasses import dataclass

import torch

from tenfold.diffusion.encode import encode
from tenfold.diffusion.erase import Edit


@dataclass(frozen=True)
class Shift:
    """ridge: what holds the matrix near the identity."""

    ridge: float = 0.1

    def fit(self, bundle, concept, *, seed=0):
        """The edit; nothing in it is random."""
        old, new = zip(*concept.pairs, strict=True)
        kept = list(concept.retain)
        with torch.no_grad():
            before = encode(bundle, [*old, *kept]).flatten(0, 1).double()
            after = encode(bundle, [*new, *kept]).flatten(0, 1).double()
        eye = torch.eye(before.shape[1], dtype=torch.float64)
        gram = before.T @ before + self.ridge * eye
        shift = torch.linalg.solve(gram, before.T @ (after - before))  # [d, d]
        weights = {
            name: (w.double() + w.double() @ shift.T).to(w.dtype)
            for name, w in bundle.unet.named_parameters()
            if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        }
        return Edit("weights", "unet", weights, {"eraser": "shift", "ridge": self.ridge})
