"""Data reweighting: Meta-Weight-Net for any module, and CW-ERM, which learns weights on a small coreset.

    MetaWeightNet(model, optimizer).step(batch, meta_batch)   in a training loop of your own
    meta_weight_step(model, weight_net, batch, meta_batch, optimizer)   the exact meta gradient alone
    moderate_coreset(features, labels, budget, classes)       which rows to learn weights on
    broadcast(core_weights, features, core, "label_aware", labels=y)    weights of all rows
    fit(model, data, Recipe(), seed, weights=w)               weighted training
    reweight(CwermConfig(seeds=[0]))                          the workflow cwerm

Submodules load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.selection.reweight.arms import ARMS
    from tenfold.selection.reweight.carry import broadcast, constant, normalised, shuffled
    from tenfold.selection.reweight.config import CwermConfig
    from tenfold.selection.reweight.coreset import moderate_coreset, purity, random_coreset, split_meta
    from tenfold.selection.reweight.corrupt import class_counts, long_tail, noisy_labels
    from tenfold.selection.reweight.data import Labelled, load
    from tenfold.selection.reweight.extract import features_of
    from tenfold.selection.reweight.meta import MetaStep, MetaWeightNet, WeightNet, meta_weight_step
    from tenfold.selection.reweight.models import CifarResNet, PreActResNet, make_model
    from tenfold.selection.reweight.run import reweight
    from tenfold.selection.reweight.train import Fitted, Recipe, fit
    from tenfold.selection.reweight.weigh import Learned, MetaRecipe, learn_weights

_HOMES = {
    "ARMS": "arms", "broadcast": "carry", "constant": "carry", "normalised": "carry",
    "shuffled": "carry", "CwermConfig": "config", "moderate_coreset": "coreset", "purity": "coreset",
    "random_coreset": "coreset", "split_meta": "coreset", "class_counts": "corrupt", "long_tail": "corrupt",
    "noisy_labels": "corrupt", "Labelled": "data", "load": "data", "features_of": "extract",
    "MetaStep": "meta", "MetaWeightNet": "meta", "WeightNet": "meta", "meta_weight_step": "meta",
    "CifarResNet": "models", "PreActResNet": "models", "make_model": "models", "reweight": "run",
    "Fitted": "train", "Recipe": "train", "fit": "train", "Learned": "weigh", "MetaRecipe": "weigh",
    "learn_weights": "weigh",
}  # fmt: skip

__all__ = [
    "ARMS", "CifarResNet", "CwermConfig", "Fitted", "Labelled", "Learned", "MetaRecipe", "MetaStep",
    "MetaWeightNet", "PreActResNet", "Recipe", "WeightNet", "broadcast", "class_counts", "constant",
    "features_of", "fit", "learn_weights", "load", "long_tail", "make_model", "meta_weight_step",
    "moderate_coreset", "noisy_labels", "normalised", "purity", "random_coreset", "reweight", "shuffled",
    "split_meta",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
