"""Language models: loading, labelled text, and fine-tuning with forward passes only.

    tenfold.llm.load_smollm2()          the embedded SmolLM2-135M and its tokenizer
    tenfold.llm.load_splits("reviews")  the embedded film reviews
    tenfold.llm.finetune(ZOConfig(...)) the workflow `tenfold run zo`

Submodules load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.llm.data import load_splits
    from tenfold.llm.models import load, load_smollm2
    from tenfold.llm.zo import ZOConfig, finetune, load_trained

__all__ = ["ZOConfig", "finetune", "load", "load_smollm2", "load_splits", "load_trained"]

_HOMES = {
    "ZOConfig": "zo",
    "finetune": "zo",
    "load": "models",
    "load_smollm2": "models",
    "load_splits": "data",
    "load_trained": "zo",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"tenfold.llm.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
