"""Score tables that several tests rank and draw."""

from __future__ import annotations

import numpy as np

from tenfold.segmentation.scores import ScoreTable

TEAMS = ("UniSeg", "nnU-Net baseline", "a team with quite a long name", "DKFZ")


def challenge(teams: int = 4, cases: int = 14, organs: int = 3, gaps: bool = False) -> ScoreTable:
    """Teams in falling order of skill, on two metrics; with `gaps`, the second team lacks one score."""
    random = np.random.default_rng(7)
    base = random.uniform(0.75, 0.9, organs)
    rows = []
    for t in range(teams):
        for c in range(cases):
            for o in range(organs):
                dsc = base[o] - 0.03 * t + random.normal(0, 0.02)
                missing = gaps and (t, c, o) == (1, 2, 0)
                common = {"team": TEAMS[t], "case": f"case_{c:02}", "task": "oar", "organ": f"Organ_{o}"}
                rows.append({**common, "metric": "dsc", "value": None if missing else min(1.0, dsc)})
                rows.append({**common, "metric": "nsd_dm@tolerance", "value": min(1.0, dsc + 0.02)})
    return ScoreTable.from_records(rows)
