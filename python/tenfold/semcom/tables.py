"""Numbers and tables of a ``ctsemcom`` run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tenfold._statistics import bootstrap_mean
from tenfold.semcom.config import METHODS
from tenfold.semcom.evaluate import Score
from tenfold.semcom.run import Outcome

__all__ = [
    "REFERENCES",
    "SSDT",
    "Gain",
    "bits_rows",
    "csi_rows",
    "gain",
    "gain_rows",
    "interval",
    "numbers",
    "result_rows",
    "snr_rows",
    "title",
    "users_rows",
    "variance_rows",
]

SSDT = ("ssdt-sep", "ssdt-joint")
"""The two forms that gains are told of: deployable and bound."""

REFERENCES = ("none", "rx-lmmse", "phase", "e2e", "e2e-matched")
"""What they are held against; "e2e" is the paper's kind of baseline."""


@dataclass(frozen=True)
class Gain:
    """Mean PSNR difference of two methods over the same codewords, with its 95 % bootstrap interval,
    in dB."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def title(method: str) -> str:
    """What a reader sees."""
    return METHODS[method][0]


def interval(score: Score) -> tuple[float, float]:
    """95 % bootstrap interval of the mean PSNR over codewords."""
    return bootstrap_mean(score.values)


def gain(outcome: Outcome, method: str, over: str, snr_db: float, variance: float = 1.0) -> Gain | None:
    """Paired by codeword; None where one of them was not evaluated."""
    a, b = (outcome.score(name, snr_db, variance) for name in (method, over))
    if a is None or b is None:
        return None
    difference = a.values - b.values
    return Gain(float(difference.mean()), *bootstrap_mean(difference))


def result_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """One row per method and channel; the trials of feedback bits have a table of their own."""
    config = outcome.config
    rows = []
    for s in outcome.scores:
        if s.csi_bits is not None:
            continue
        low, high = interval(s)
        users = s.users or config.group
        rows.append(
            {
                "system": "ctsemcom", "codec": config.codec, "method": s.method, "N": users,
                "K": config.carriers, "L": config.rows, "snr_db": s.snr_db, "var": s.variance,
                "csi_err_db": "" if s.csi_err_db is None else s.csi_err_db, "seed": config.seed,
                "n_images": len(s.psnr_db) * users, "psnr_db": round(float(s.values.mean()), 4),
                "psnr_ci95": round((high - low) / 2, 4), "ssim": round(float(np.mean(s.ssim)), 4),
                "nmse_db": round(float(np.mean(s.nmse_db)), 3) if s.nmse_db else "",
                "alpha_mean": round(s.alpha, 4), "ms_per_row": round(s.ms_per_row, 4),
            }
        )  # fmt: skip
    return rows


def snr_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """PSNR against SNR at variance 1."""
    return [
        {"method": title(m), **{f"{snr:g} dB": _psnr(outcome.score(m, snr)) for snr in outcome.config.snr_db}}
        for m in outcome.config.methods
    ]


def variance_rows(outcome: Outcome, snr_db: float) -> list[dict[str, Any]]:
    """PSNR against the variance of fading at one SNR."""
    return [
        {
            "method": title(m),
            **{f"variance {v:g}": _psnr(outcome.score(m, snr_db, v)) for v in outcome.config.variances},
        }
        for m in outcome.config.methods
    ]


def _psnr(score: Score | None) -> Any:
    if score is None:
        return ""
    low, high = interval(score)
    return f"{score.values.mean():.2f} ± {(high - low) / 2:.2f}"


def gain_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """PSNR gains of SSDT, at every SNR and variance of the variance sweep."""
    rows = []
    for method in SSDT:
        for over in REFERENCES:
            for snr in outcome.config.variance_snr_db:
                found = {v: gain(outcome, method, over, snr, v) for v in outcome.config.variances}
                if all(g is not None for g in found.values()):
                    cells = {f"variance {v:g}": str(g) for v, g in found.items()}
                    rows.append(
                        {"method": title(method), "minus": title(over), "SNR dB": f"{snr:g}", **cells}
                    )
    return rows


def csi_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """PSNR with errors of the channel estimate."""
    config = outcome.config
    rows = []
    for m in config.methods:
        scores = {e: outcome.score(m, config.snr_picture_db, 1.0, e) for e in config.csi_errors_db}
        if any(scores.values()):
            row = {"method": title(m), "as configured": _psnr(outcome.score(m, config.snr_picture_db))}
            rows.append(row | {f"error {e:g} dB": _psnr(s) for e, s in scores.items()})
    return rows


def bits_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """PSNR with the channel fed back in few bits."""
    config = outcome.config
    rows = []
    for m in config.methods:
        scores = {b: outcome.score(m, config.snr_picture_db, csi_bits=b) for b in config.csi_bits_tried}
        if any(scores.values()):
            row = {"method": title(m), "as configured": _psnr(outcome.score(m, config.snr_picture_db))}
            rows.append(row | {f"{b} bits": _psnr(s) for b, s in scores.items()})
    return rows


def users_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """PSNR with several groups of users."""
    config = outcome.config
    if not config.users:
        return []
    at = config.snr_picture_db
    return [
        {"method": title(m), **{f"{n} users": _psnr(outcome.score(m, at, users=n)) for n in config.users}}
        for m in config.methods
    ]


def numbers(outcome: Outcome) -> dict[str, float | int]:
    """The flat numbers of metrics.json."""
    config = outcome.config
    found: dict[str, float | int] = {
        "users": config.group, "codewords": len(outcome.images), "pictures": outcome.images.shape[0] *
        config.group,
    }  # fmt: skip
    for role, losses in outcome.losses.items():
        if losses:
            found[f"train.{role}.loss"] = float(np.mean(losses[-50:]))
            found[f"train.{role}.steps"] = len(losses)
    for s in outcome.scores:
        where = ".".join([s.method, *s.cell.parts])
        low, high = interval(s)
        found |= {
            f"{where}.psnr_db": float(s.values.mean()), f"{where}.psnr_db_low": low,
            f"{where}.psnr_db_high": high, f"{where}.ssim": float(np.mean(s.ssim)),
        }  # fmt: skip
        if s.nmse_db:
            found[f"{where}.nmse_db"] = float(np.mean(s.nmse_db))
    for snr, variance in dict.fromkeys((s.snr_db, s.variance) for s in outcome.scores):
        for method in SSDT:
            for over in REFERENCES:
                g = gain(outcome, method, over, snr, variance)
                if g is not None:
                    where = f"gain.{method}.over.{over}.snr{snr:g}.var{variance:g}"
                    found |= {where: g.mean, f"{where}.low": g.low, f"{where}.high": g.high}
    return found
