"""Pictures of a ``ctsemcom`` run: PSNR against SNR and variance, gains, the pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tenfold.metrics.image import ms_ssim, psnr, ssim
from tenfold.runs import figures
from tenfold.semcom import tables
from tenfold.semcom.config import METHODS
from tenfold.semcom.evaluate import Cell, Score, evaluate_one
from tenfold.semcom.images import half_size
from tenfold.semcom.paper import CLAIM_DB
from tenfold.semcom.run import Outcome

__all__ = ["Picture", "Shown", "csi", "gains", "nmse", "shown", "side_by_side", "snr", "training", "variance"]

_LOOKS: dict[str, dict[str, Any]] = {
    "awgn": {"color": figures.INK, "linestyle": "--"},
    "none": {"color": figures.MUTED, "linestyle": "-", "marker": "x"},
    "rx-lmmse": {"color": figures.SERIES[4], "linestyle": "-", "marker": "s"},
    "phase": {"color": figures.SERIES[5], "linestyle": "-", "marker": "^"},
    "water-filling": {"color": figures.SERIES[5], "linestyle": ":", "marker": "v"},
    "mse-water-filling": {"color": figures.SERIES[4], "linestyle": ":", "marker": "D"},
    "invert": {"color": figures.MUTED, "linestyle": ":", "marker": "P"},
    "ssdt-sep": {"color": figures.SERIES[2], "linestyle": "-", "marker": "o"},
    "ssdt-joint-csi": {"color": figures.SERIES[0], "linestyle": ":", "marker": "d"},
    "ssdt-joint": {"color": figures.SERIES[0], "linestyle": "-", "marker": "o"},
    "e2e": {"color": figures.SERIES[1], "linestyle": "-", "marker": "s"},
    "e2e-matched": {"color": figures.SERIES[1], "linestyle": ":", "marker": "v"},
    "oma": {"color": figures.SERIES[3], "linestyle": "-", "marker": "^"},
    "digital": {"color": figures.SERIES[3], "linestyle": ":", "marker": "*"},
    "digital-ldpc": {"color": figures.SERIES[3], "linestyle": "--", "marker": "x"},
}

_PICTURE = (192, 288)  # largest height and width of the pictures side by side


class Picture(NamedTuple):
    """`folder.write_figure(name, *picture)`."""

    figure: Any
    caption: str
    alt: str


def _curve(axis: Any, x: Sequence[float], scores: Sequence[Score | None], method: str) -> None:
    kept = [(a, s) for a, s in zip(x, scores, strict=True) if s is not None]
    if not kept:
        return
    at = [a for a, _ in kept]
    mean = np.array([s.values.mean() for _, s in kept])
    bounds = np.array([tables.interval(s) for _, s in kept]).T
    look = _LOOKS[method]
    axis.plot(at, mean, markersize=4.5, label=tables.title(method), **look)
    axis.fill_between(at, bounds[0], bounds[1], color=look["color"], alpha=0.12, linewidth=0)


def _told(outcome: Outcome, snr_db: float, variance: float = 1.0) -> str:
    parts = []
    for m in outcome.config.methods:
        s = outcome.score(m, snr_db, variance)
        if s is not None:
            parts.append(f"{tables.title(m)} {s.values.mean():.1f}")
    return "; ".join(parts)


_BAND = "Bands are 95 % bootstrap intervals over codewords (patches and channel draws)."


def snr(outcome: Outcome) -> Picture:
    """PSNR against SNR at variance 1."""
    config = outcome.config
    fig, axis = figures.figure(9.0, 4.6)
    for m in config.methods:
        _curve(axis, config.snr_db, [outcome.score(m, s) for s in config.snr_db], m)
    axis.set(xlabel="SNR, dB", ylabel="PSNR, dB", xticks=config.snr_db)
    axis.set_title(f"{_fading(outcome)}, variance 1")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    at = config.snr_db[len(config.snr_db) // 2]
    caption = f"PSNR of the received pictures against the SNR. {_BAND}"
    return Picture(fig, caption, f"Line plot. PSNR in dB at {at:g} dB SNR: {_told(outcome, at)}.")


_FADINGS = {"awgn": "No fading", "rayleigh": "Rayleigh fading", "rician": "Rician fading"}


def _fading(outcome: Outcome) -> str:
    config = outcome.config
    name = "Channels of a file" if config.channels else _FADINGS[config.fading]
    return f"{name}, {config.group} users" if config.group > 1 else f"{name}, one user"


def variance(outcome: Outcome) -> Picture:
    """PSNR against the variance of fading."""
    config = outcome.config
    fig, axes = figures.figure(10.5, 4.4, ncols=len(config.variance_snr_db), sharey=True, squeeze=False)
    for axis, at in zip(axes[0], config.variance_snr_db, strict=True):
        for m in config.methods:
            _curve(axis, config.variances, [outcome.score(m, at, v) for v in config.variances], m)
        _variance_axis(axis, config.variances)
        axis.set_title(f"SNR {at:g} dB")
    axes[0, 0].set_ylabel("PSNR, dB")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    at, last = config.variance_snr_db[-1], config.variances[-1]
    caption = (
        "PSNR against the variance of fading, E|g|². The noise does not follow the received power: more "
        f"variance is more signal. {_BAND}"
    )
    alt = f"Line plots. PSNR in dB at {at:g} dB SNR and variance {last:g}: {_told(outcome, at, last)}."
    return Picture(fig, caption, alt)


def _variance_axis(axis: Any, values: Sequence[float]) -> None:
    if min(values) > 0:
        axis.set_xscale("log", base=2)
    axis.set_xticks(list(values), [f"{v:g}" for v in values])
    axis.minorticks_off()
    axis.set_xlabel("variance of fading")


def gains(outcome: Outcome) -> Picture | None:
    """PSNR gains of SSDT over other methods, beside the paper's range."""
    config = outcome.config
    methods = [m for m in tables.SSDT if m in config.methods]
    others = [m for m in tables.REFERENCES if m in config.methods]
    if not methods or not others:
        return None
    fig, axes = figures.figure(
        10.5, 3.4 * len(methods) + 0.6, nrows=len(methods), ncols=len(config.variance_snr_db), sharex=True,
        sharey=True, squeeze=False,
    )  # fmt: skip
    told = []
    for row, method in zip(axes, methods, strict=True):
        for axis, at in zip(row, config.variance_snr_db, strict=True):
            axis.axhspan(*CLAIM_DB, color=figures.GRID, zorder=0, label="paper: 4.2 to 7.3 dB")
            axis.axhline(0, color=figures.MUTED, linewidth=1)
            for over in others:
                found = [tables.gain(outcome, method, over, at, v) for v in config.variances]
                kept = [(v, g) for v, g in zip(config.variances, found, strict=True) if g is not None]
                look = _LOOKS[over]
                axis.plot([v for v, _ in kept], [g.mean for _, g in kept], markersize=4.5,
                          label=f"over {tables.title(over)}", **look)  # fmt: skip
                axis.fill_between([v for v, _ in kept], [g.low for _, g in kept], [g.high for _, g in kept],
                                  color=look["color"], alpha=0.15, linewidth=0)  # fmt: skip
                if at == config.variance_snr_db[-1] and kept:
                    told.append(
                        f"{tables.title(method)} over {tables.title(over)} {kept[-1][1].mean:+.1f} dB"
                    )
            axis.set_title(f"{tables.title(method)}, SNR {at:g} dB")
        row[0].set_ylabel("PSNR gain, dB")
    for axis in axes[-1]:
        _variance_axis(axis, config.variances)
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Gain in PSNR, paired by codeword, with 95 % intervals. The grey band is what the paper's abstract "
        "claims over existing work, on other pictures and at variances that were not at hand."
    )
    alt = f"Line plots of gains. At {config.variance_snr_db[-1]:g} dB, largest variance: {'; '.join(told)}."
    return Picture(fig, caption, alt)


def nmse(outcome: Outcome) -> Picture | None:
    """How near the decoder's input is to what it was trained on."""
    config = outcome.config
    fig, axis = figures.figure(9.0, 4.2)
    told = []
    for m in config.methods:
        scores = [outcome.score(m, s) for s in config.snr_db]
        kept = [(x, s) for x, s in zip(config.snr_db, scores, strict=True) if s is not None and s.nmse_db]
        if kept:
            mean = [float(np.mean(s.nmse_db)) for _, s in kept]
            axis.plot([x for x, _ in kept], mean, markersize=4.5, label=tables.title(m), **_LOOKS[m])
            told.append(f"{tables.title(m)} {mean[-1]:.1f}")
    if not told:
        return None
    axis.set(xlabel="SNR, dB", ylabel="NMSE of the decoder's input, dB", xticks=config.snr_db)
    axis.set_title(f"{_fading(outcome)}, variance 1")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Error of the decoder's input against the sum without fading and noise, over its power; what the "
        "allocators minimise. Lower is better."
    )
    return Picture(fig, caption, f"Line plot. NMSE in dB at the highest SNR: {'; '.join(told)}.")


def csi(outcome: Outcome) -> Picture | None:
    """PSNR with errors of the channel estimate, and with the channel fed back in few bits."""
    config = outcome.config
    at = config.snr_picture_db
    errors = sorted(config.csi_errors_db) if config.fading != "awgn" else []
    bits = sorted(config.csi_bits_tried, reverse=True) if config.fading != "awgn" else []
    every: list[tuple[str, list[str], list[dict[str, Any]]]] = [
        ("error of the channel estimate over the variance", [f"{e:g} dB" for e in errors],
         [{"csi_err_db": e} for e in errors]),
        ("feedback per user and subcarrier", [f"{b} bits" for b in bits], [{"csi_bits": b} for b in bits]),
    ]  # fmt: skip
    tried = [trial for trial in every if trial[1]]
    if not tried:
        return None
    fig, axes = figures.figure(10.5, 4.2, ncols=len(tried), sharey=True, squeeze=False)
    told = []
    for axis, (label, names, settings) in zip(axes[0], tried, strict=True):
        for m in config.methods:
            scores = [outcome.score(m, at), *(outcome.score(m, at, **given) for given in settings)]
            last = scores[-1]
            if last is not None:
                _curve(axis, list(range(len(scores))), scores, m)
                told.append(f"{tables.title(m)} at {names[-1]} {last.values.mean():.1f}")
        axis.set_xticks(range(len(names) + 1), ["as set", *names])
        axis.set_xlabel(label)
    axes[0, 0].set_ylabel("PSNR, dB")
    axes[0, 0].set_title(f"SNR {at:g} dB, variance 1")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    if not told:
        return None
    caption = f"What a wrong or coarse channel costs, at users and receiver alike. {_BAND}"
    return Picture(fig, caption, f"Line plots. PSNR in dB: {'; '.join(told)}.")


_ROLES = {
    "codec": "codec",
    "e2e": "end-to-end codec",
    "e2e-matched": "end-to-end codec, matched",
    "oma": "OMA codec",
}


def training(outcome: Outcome) -> Picture | None:
    """Loss of the codecs' trainings."""
    if not any(outcome.losses.values()):
        return None
    fig, axis = figures.figure(9.0, 3.2)
    told = []
    for number, (role, losses) in enumerate(outcome.losses.items()):
        width = max(1, len(losses) // 100)
        means = np.array(losses[: len(losses) // width * width]).reshape(-1, width).mean(1)
        at = (np.arange(len(means)) + 0.5) * width
        axis.plot(at, -10 * np.log10(means), label=_ROLES[role], color=figures.SERIES[number])
        told.append(f"{_ROLES[role]} {-10 * np.log10(means[-1]):.1f} dB")
    axis.set(xlabel="step", ylabel="-10 log10 of the loss, dB")
    axis.set_title("Training")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    caption = (
        "Mean squared error of the training patches in decibels, averaged over a hundredth of the steps."
    )
    return Picture(fig, caption, f"Line plot. At the end: {'; '.join(told)}.")


class Shown(NamedTuple):
    """Whole pictures, sent by several methods."""

    originals: Tensor
    """[N, 3, H, W]"""
    received: dict[str, Tensor]
    rows: list[dict[str, Any]]
    names: tuple[str, ...]


def shown(outcome: Outcome) -> Shown:
    """Send whole test pictures, one per user, over one draw of the channel."""
    config = outcome.config
    originals, names = _whole(outcome)
    ways = [m for m in METHODS if m in config.methods]
    received, rows = {}, []
    cell = Cell(config.snr_picture_db)
    for m in ways:
        out, _ = evaluate_one(config, outcome.codecs, originals[None].to(config.device), cell, m)
        received[m] = out[0].float().cpu()
        for n in range(config.group):
            a, b = received[m][n], originals[n]
            row = {
                "method": tables.title(m), "user": n + 1, "picture": names[n],
                "PSNR dB": round(float(psnr(a, b)), 2), "SSIM": round(float(ssim(a, b)), 3),
            }  # fmt: skip
            if min(b.shape[-2:]) >= 161:
                row["MS-SSIM"] = round(float(ms_ssim(a, b)), 3)
            rows.append(row)
    return Shown(originals, received, rows, names)


def _whole(outcome: Outcome) -> tuple[Tensor, tuple[str, ...]]:
    """Middles of the first test pictures, at half their size where they are large, all of one size."""
    config, pictures = outcome.config, outcome.pictures
    chosen = [pictures.test[n % len(pictures.test)] for n in range(config.group)]
    chosen = [half_size(p) if min(p.shape[1:]) >= 2 * _PICTURE[0] else p for p in chosen]
    height = min(_PICTURE[0], *(p.shape[1] for p in chosen)) // 4 * 4
    width = min(_PICTURE[1], *(p.shape[2] for p in chosen)) // 4 * 4
    cut = []
    for p in chosen:
        y, x = (p.shape[1] - height) // 2, (p.shape[2] - width) // 2
        cut.append(p[:, y : y + height, x : x + width])
    given = pictures.test_names or tuple(f"test picture {n + 1}" for n in range(len(pictures.test)))
    return torch.stack(cut).float() / 255, tuple(given[n % len(given)] for n in range(config.group))


def side_by_side(outcome: Outcome, pictures: Shown, user: int) -> Picture:
    """One user's picture as every method delivers it."""
    ways = list(pictures.received)
    columns = 3
    lines = -(-(len(ways) + 1) // columns)
    height, width = pictures.originals.shape[-2:]
    size = 10.5 / columns
    fig, axes = figures.figure(
        10.5, lines * (size * height / width + 0.36), nrows=lines, ncols=columns, squeeze=False
    )
    told = []
    for axis in axes.flat:
        axis.set_axis_off()
    tiles = [("original", pictures.originals[user]), *((m, pictures.received[m][user]) for m in ways)]
    for axis, (name, picture) in zip(axes.flat, tiles, strict=False):
        axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        label = "sent"
        if name != "original":
            value = float(psnr(picture, pictures.originals[user]))
            label = f"{tables.title(name)}, {value:.1f} dB"
            told.append(label)
        axis.set_title(label, fontsize=10)
    config = outcome.config
    caption = (
        f"User {user + 1}'s picture ({pictures.names[user]}), sent together with the others' over one draw "
        f"of the channel at {config.snr_picture_db:g} dB SNR, variance 1; the codec learned on 32x32 patches "
        "of other pictures."
    )
    return Picture(fig, caption, f"Photographs side by side. PSNR: {'; '.join(told)}.")
