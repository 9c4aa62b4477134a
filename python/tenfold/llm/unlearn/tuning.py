"""Learning rates chosen where nothing that is reported can be seen.

The rows change roles: as many rows of the retain set as are to be forgotten (its last ones: in mini-TOFU and
in TOFU, rows lie author by author) are forgotten, from the same weights and with a seed of their own, and
those that are really to be forgotten are among the rows to keep. The sets have the same sizes, so that
learning rates, steps and alphas carry over.
"""

from __future__ import annotations

import dataclasses

from tenfold.llm.unlearn.tofu import TofuData

__all__ = ["PREFIX", "TUNING_KEPT", "other_roles"]

PREFIX = "tuning-"
"""In front of the names of the sets and of the runs."""

TUNING_KEPT = 0.82
"""Share of the retain probability that a tuning run must keep: a little more than is asked of a reported run,
since other authors are no more than alike."""


def other_roles(data: TofuData) -> TofuData:
    """The same rows with other ones to forget; for training alone.

    Raises:
        ValueError: fewer retain rows than are needed for both roles.
    """
    count = len(data.forget)
    if len(data.retain) < 2 * count:
        raise ValueError(
            f"select: expected at least {2 * count} retain rows to tune on other ones, got {len(data.retain)}"
        )
    forget, retain = list(data.retain[-count:]), [*data.retain[:-count], *data.forget]
    return dataclasses.replace(
        data, forget=forget, retain=retain, forget_eval=forget, retain_eval=retain, world_facts=[], holdout=[]
    )
