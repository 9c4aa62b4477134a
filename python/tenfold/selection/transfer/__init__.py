"""Pruning a source data set for a target before pretraining (DP4TL, arXiv 2310.08782).

    from tenfold.selection import transfer

    kept = transfer.prune(source, target, surrogate, "lm", ratios=[0.4, 0.6, 0.8], out="kept/pets")
    transfer.pretrain("rn18_16.json", "runs/pruned", indices="kept/pets_lm_train_top400.indices")
    transfer.finetune("oxfordpets_rn18_ff.json", "runs/pets", weights="runs/pruned/network.safetensors")
    transfer.study()                                    # the embedded default, as `tenfold run dp4tl`

Modules load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.selection.transfer.attack import Attack, perturb
    from tenfold.selection.transfer.augment import View
    from tenfold.selection.transfer.beton import read_beton, write_beton
    from tenfold.selection.transfer.config import DP4TLConfig
    from tenfold.selection.transfer.health import Health, mapping_health
    from tenfold.selection.transfer.images import Images, load_images
    from tenfold.selection.transfer.mapping import (
        class_distance_mapping,
        class_means,
        coreset_means,
        feature_mapping,
        label_mapping,
        pseudo_class_mapping,
    )
    from tenfold.selection.transfer.methods import METHODS, Evidence, rank
    from tenfold.selection.transfer.networks import build, load_weights
    from tenfold.selection.transfer.pruning import Pruned, prune
    from tenfold.selection.transfer.published import read_mapping, read_published
    from tenfold.selection.transfer.published_runs import Trained, finetune, pretrain
    from tenfold.selection.transfer.rankings import ClassRanking, ModerateRanking, SampleRanking
    from tenfold.selection.transfer.recipe import Recipe
    from tenfold.selection.transfer.run import study
    from tenfold.selection.transfer.tasks import SUITES, load_task
    from tenfold.selection.transfer.training import accuracy, fit, probe

_HOMES = {
    "attack": ("Attack", "perturb"),
    "augment": ("View",),
    "beton": ("read_beton", "write_beton"),
    "config": ("DP4TLConfig",),
    "health": ("Health", "mapping_health"),
    "images": ("Images", "load_images"),
    "mapping": (
        "class_distance_mapping", "class_means", "coreset_means", "feature_mapping", "label_mapping",
        "pseudo_class_mapping",
    ),
    "methods": ("METHODS", "Evidence", "rank"),
    "networks": ("build", "load_weights"),
    "pruning": ("Pruned", "prune"),
    "published": ("read_mapping", "read_published"),
    "published_runs": ("Trained", "finetune", "pretrain"),
    "rankings": ("ClassRanking", "ModerateRanking", "SampleRanking"),
    "recipe": ("Recipe",),
    "run": ("study",),
    "tasks": ("SUITES", "load_task"),
    "training": ("accuracy", "fit", "probe"),
}  # fmt: skip
"""Module of this package -> the public names that live in it."""

__all__ = [
    "METHODS", "SUITES", "Attack", "ClassRanking", "DP4TLConfig", "Evidence", "Health", "Images",
    "ModerateRanking", "Pruned", "Recipe", "SampleRanking", "Trained", "View", "accuracy", "build",
    "class_distance_mapping", "class_means", "coreset_means", "feature_mapping", "finetune", "fit",
    "label_mapping", "load_images", "load_task", "load_weights", "mapping_health", "perturb", "pretrain",
    "probe", "prune", "pseudo_class_mapping", "rank", "read_beton", "read_mapping", "read_published",
    "study", "write_beton",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
