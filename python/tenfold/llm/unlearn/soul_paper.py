"""Figures of the paper (SOUL, arXiv 2404.18239): TOFU forget10 on LLaMA2-7B-chat.

``checked`` says whether a figure was read in a source (the teaser picture of the paper's repository, or the
table
of a later paper that repeats it) or is only remembered; nothing is printed without that mark.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TOFU"]

_COLUMNS = (
    "forget quality", "forget accuracy", "forget ROUGE-L", "MIA", "retain accuracy", "real authors accuracy",
    "world facts accuracy", "utility",
)  # fmt: skip
_ROWS: dict[str, tuple[tuple[float | None, ...], bool]] = {
    "original": ((0.36, 85.25, 0.980, 0.789, 85.75, 89.0, 86.32, None), False),
    "GradDiff, first order": ((0.02, 72.75, 0.817, 0.763, 76.50, 71.0, 79.49, 0.757), True),
    "GradDiff, second order": ((1.00, 10.25, 0.022, 0.216, 72.25, 78.0, 82.05, 0.774), True),
    "PO, first order": ((0.72, 37.0, 0.088, 0.791, 82.75, 90.0, 84.62, 0.858), False),
    "PO, second order": ((0.92, 28.75, 0.076, 0.788, 82.75, 90.0, 86.32, 0.864), False),
    "NPO, first order": ((1.00, 16.0, 0.046, 0.306, 80.75, 85.0, 82.91, None), False),
    "NPO, second order": ((1.00, 16.0, 0.029, 0.227, 81.25, 89.0, 85.47, None), False),
}

TOFU: list[dict[str, Any]] = [
    {
        "method": name,
        **{c: "" if v is None else v for c, v in zip(_COLUMNS, values, strict=True)},
        "source": "checked" if checked else "forget quality and utility checked, the rest remembered",
    }
    for name, (values, checked) in _ROWS.items()
]
"""One row per method; forget quality there is SOUL's own, against the retain set of the same model."""
