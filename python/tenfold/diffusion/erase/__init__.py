"""Erasing a concept from a text-to-image model, all methods behind one call.

    concept = Concept("five", retain=("a photo of six", ...))
    edit = AdvUnlearn(bank_size=32).fit(bundle, concept)
    erased = edit.apply(bundle)            # or edit.apply(pipe), a pipeline of diffusers, in place
    edit.save("five_unlearned")            # safetensors; Edit.load reads it

An eraser is a frozen dataclass of its settings with `fit(bundle, concept, *, seed, progress, state,
on_state)`.
"""

from __future__ import annotations

from typing import Any

from tenfold.diffusion.erase.advunlearn import AdvUnlearn
from tenfold.diffusion.erase.bank import Bank, Draw, Live, Walk
from tenfold.diffusion.erase.ca import CA, ablation_data
from tenfold.diffusion.erase.canvas import canvas_concept, pair_concept
from tenfold.diffusion.erase.concept import Concept, joined
from tenfold.diffusion.erase.data import ConceptData
from tenfold.diffusion.erase.ediff import EDiff
from tenfold.diffusion.erase.edit import Edit
from tenfold.diffusion.erase.fmn import FMN
from tenfold.diffusion.erase.hooks import NegativePrompt, SafeLatent
from tenfold.diffusion.erase.sa import SA
from tenfold.diffusion.erase.salun import SalUn
from tenfold.diffusion.erase.seot import SEOT
from tenfold.diffusion.erase.shs import SHS
from tenfold.diffusion.erase.soft_weight import SoftWeight
from tenfold.diffusion.erase.spm import SPM, read_spm, write_spm
from tenfold.diffusion.erase.target import esd_loss, esd_target
from tenfold.diffusion.erase.trainable import trainable
from tenfold.diffusion.erase.training import ESD
from tenfold.diffusion.erase.transport import Transport
from tenfold.diffusion.erase.uce import UCE, uce_factors

__all__ = [
    "CA",
    "ERASERS",
    "ESD",
    "FMN",
    "SA",
    "SEOT",
    "SHS",
    "SPM",
    "UCE",
    "AdvUnlearn",
    "Bank",
    "Concept",
    "ConceptData",
    "Draw",
    "EDiff",
    "Edit",
    "Live",
    "NegativePrompt",
    "SafeLatent",
    "SalUn",
    "SoftWeight",
    "Transport",
    "Walk",
    "ablation_data",
    "canvas_concept",
    "esd_loss",
    "esd_target",
    "joined",
    "pair_concept",
    "read_spm",
    "trainable",
    "uce_factors",
    "write_spm",
]

ERASERS: dict[str, Any] = {
    eraser.name: eraser
    for eraser in (
        ESD,
        UCE,
        AdvUnlearn,
        FMN,
        SPM,
        SEOT,
        SalUn,
        EDiff,
        SHS,
        CA,
        SA,
        SafeLatent,
        NegativePrompt,
    )
}
"""Name -> class."""
