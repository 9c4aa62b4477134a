"""Unlearning in language models: data, losses, training and evaluation (SOUL, arXiv 2404.18239).

    tenfold.llm.unlearn.unlearn(SoulConfig(preset="quick"))     the workflow `tenfold run soul`

`tenfold.llm.unlearn.data` and `tenfold.llm.unlearn.evaluate` are the doors to the pieces. Nothing is imported
before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.llm.unlearn.soul import SoulConfig, unlearn

__all__ = ["SoulConfig", "unlearn"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tenfold.llm.unlearn import soul

        return getattr(soul, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
