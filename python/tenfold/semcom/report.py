"""Tables, pictures, numbers and the page of a ``ctsemcom`` run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tenfold.metrics.image import psnr
from tenfold.runs import Claim, Headline, Report, RunFolder, Section, style
from tenfold.semcom import figures, tables
from tenfold.semcom.codec import parameters
from tenfold.semcom.config import METHODS
from tenfold.semcom.paper import CLAIM_DB, SOURCE
from tenfold.semcom.run import Outcome
from tenfold.semcom.tables import title

__all__ = ["write"]


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Everything that a finished run leaves; returns its numbers."""
    folder.write_table("results", tables.result_rows(outcome))
    shown = figures.shown(outcome)
    with style():
        sections = [
            _pictures(outcome, shown, folder), _snr(outcome, folder), _variance(outcome, folder),
            *_gains(outcome, shown, folder), *_signal(outcome, folder), *_csi(outcome, folder),
            *_users(outcome, folder),
            *_training(outcome, folder), _methods(outcome, folder),
        ]  # fmt: skip
    numbers = tables.numbers(outcome)
    report = Report(
        title=f"One codec, other channels: {len(outcome.config.methods)} ways to send over fading",
        lead=_lead(outcome), headlines=_headlines(outcome), sections=sections, claims=_claims(outcome),
        measured=_measured(outcome),
    )  # fmt: skip
    folder.finish(numbers, report)
    return numbers


def _pictures(outcome: Outcome, found: figures.Shown, folder: RunFolder) -> Section:
    names = []
    for user in range(outcome.config.group):
        names.append(f"pictures-user{user + 1}")
        folder.write_figure(names[-1], *figures.side_by_side(outcome, found, user))
    folder.write_table("pictures", found.rows)
    text = (
        "Whole photographs that the codec never saw, by every method over the same draw of fading and "
        "noise. One draw says little; the curves below are averages." + _not_learned(found)
    )
    return Section("What arrives", text, names, ["pictures"])


def _not_learned(found: figures.Shown) -> str:
    """Users whose pictures a codec trained end to end does not deliver: no better than one colour."""
    told = ""
    for method in ("e2e", "e2e-matched"):
        for user, sent in enumerate(found.originals if method in found.received else ()):
            plain = sent.mean((1, 2), keepdim=True).expand_as(sent)
            if float(psnr(found.received[method][user], sent)) < float(psnr(plain, sent)) + 0.5:
                told += (
                    f" **In so many steps the codec {title(method)} has not learned to send user "
                    f"{user + 1}'s pictures at all: what arrives is no nearer than one plain colour.**"
                )
    return told


def _snr(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("psnr-snr", *figures.snr(outcome))
    folder.write_table("psnr_snr", tables.snr_rows(outcome))
    text = (
        "SNR is 10 log10(P1 / sigma²) with sigma² the noise power of a complex sample: the noise floor "
        "is fixed and does not follow what is received. PSNR is averaged in decibels over pictures and "
        "users."
    )
    return Section("PSNR against SNR", text, ["psnr-snr"], ["psnr_snr"])


def _variance(outcome: Outcome, folder: RunFolder) -> Section:
    folder.write_figure("psnr-variance", *figures.variance(outcome))
    names = []
    for snr in outcome.config.variance_snr_db:
        names.append(f"psnr_variance_{snr:g}db".replace("-", "m"))
        folder.write_table(names[-1], tables.variance_rows(outcome, snr))
    return Section("PSNR against the variance of fading", "", ["psnr-variance"], names)


def _gains(outcome: Outcome, found: figures.Shown, folder: RunFolder) -> list[Section]:
    picture = figures.gains(outcome)
    rows = tables.gain_rows(outcome)
    if picture is None or not rows:
        return []
    folder.write_figure("gains", *picture)
    folder.write_table("gains", rows)
    text = (
        f"The abstract claims {CLAIM_DB[0]} to {CLAIM_DB[1]} dB over existing work under different "
        "variances; which work and which variances is not in it. "
        + _spans(outcome)
        + _end_to_end(outcome)
        + _not_learned(found)
        + "\n\n"
        "**Joint is a bound**: it needs every user's symbols at every user, and alpha, which depends on "
        "them, at the receiver. **Separable can be deployed**: each user knows its own symbols and "
        "channel, and alpha follows from channels alone. Both minimise the error of the received sum, "
        "not that of the pictures."
    )
    return [Section("What SSDT gains", text, ["gains"], ["gains"])]


def _end_to_end(outcome: Outcome) -> str:
    """What the codecs are that learned on the fading channel, and what a stronger one does to the gain."""
    config = outcome.config
    if "e2e" not in config.methods and "e2e-matched" not in config.methods:
        return ""
    text = (
        " Trainings are short, those end to end too, so gains over them are upper estimates; `--e2e_steps` "
        "and `--steps` make them longer."
    )
    at = config.snr_picture_db
    for m in tables.SSDT:
        plain, strong = (tables.gain(outcome, m, over, at) for over in ("e2e", "e2e-matched"))
        if plain is not None and strong is not None:
            text += (
                f" {title(m)}, at {at:g} dB and variance 1: {plain} dB over {title('e2e')}, but {strong} dB "
                f"over {title('e2e-matched')}."
            )
    if {"e2e", "e2e-matched"} <= set(config.methods):
        text += (
            " **Both have the same knowledge; they differ in how it is shown to the decoder.** The first, "
            "the form that the paper's gain is held against here, has signal and channels side by side, and "
            "its convolutions would have to learn to multiply them. The second is given the products."
        )
    return text


def _signal(outcome: Outcome, folder: RunFolder) -> list[Section]:
    picture = figures.nmse(outcome)
    if picture is None:
        return []
    folder.write_figure("nmse", *picture)
    return [Section("How near the received sum comes", "", ["nmse"])]


def _csi(outcome: Outcome, folder: RunFolder) -> list[Section]:
    picture = figures.csi(outcome)
    rows = tables.csi_rows(outcome)
    bits = tables.bits_rows(outcome)
    if picture is None or not (rows or bits):
        return []
    folder.write_figure("csi", *picture)
    written = [(name, found) for name, found in (("csi", rows), ("csi_bits", bits)) if found]
    for name, found in written:
        folder.write_table(name, found)
    text = (
        "The error is Gaussian; bits are per user and subcarrier, half for the real and half for the "
        "imaginary part, to the levels of Lloyd and Max (4 bits: 256 per user and OFDM symbol of 64 "
        "subcarriers)."
    )
    return [Section("Channels known with error", text, ["csi"], [name for name, _ in written])]


def _users(outcome: Outcome, folder: RunFolder) -> list[Section]:
    rows = tables.users_rows(outcome)
    if not rows:
        return []
    folder.write_table("users", rows)
    text = (
        f"Groups of {outcome.config.group} share subcarriers; each group has OFDM symbols of its own, as "
        "many as one group alone, so that the frame grows with the number of users. Groups do not meet: "
        "what differs between columns is chance (other fading and noise, and averages over groups)."
    )
    return [Section("More users, in groups", text, [], ["users"])]


def _training(outcome: Outcome, folder: RunFolder) -> list[Section]:
    picture = figures.training(outcome)
    if picture is None:
        return []
    folder.write_figure("training", *picture)
    text = "Codecs are trained once, each over its own channel, and frozen; test pictures have no part in it."
    return [Section("Training", text, ["training"])]


def _methods(outcome: Outcome, folder: RunFolder) -> Section:
    rows = []
    for name in outcome.config.methods:
        costs = [s.ms_per_row for s in outcome.scores if s.method == name and s.ms_per_row > 0]
        cost = round(1000 * float(np.median(costs)), 1) if costs else ""
        rows.append(
            {"method": title(name), "name": name, "what": METHODS[name][1],
             "channel and allocation, processor µs per OFDM symbol": cost}
        )  # fmt: skip
    folder.write_table("methods", rows)
    text = (
        "Uplink, one decoder that takes the superposed signal; no successive cancellation, except in the "
        "digital bound. Of the letter the abstract was at hand; the signal model is the one of its first "
        "author's later journal paper, the solvers are this library's derivation."
    )
    return Section("The methods", text, [], ["methods"])


def _best(outcome: Outcome) -> tuple[float, float]:
    """The channel that the lead tells of: the pictures' SNR where it was swept, variance 1."""
    config = outcome.config
    return config.snr_picture_db, 1.0


def _lead(outcome: Outcome) -> str:
    config = outcome.config
    snr, variance = _best(outcome)
    trained = "a channel without fading" if config.train_fading == "awgn" else f"{config.train_fading} fading"
    where = {"awgn": "a channel without fading", "rayleigh": "Rayleigh fading", "rician": "Rician fading"}
    kind = "the channels of a file" if config.channels else where[config.fading]
    text = (
        f"A codec trained over {trained} sends {len(outcome.images) * config.group} patches of "
        f"{_data(outcome)} by {config.group} user{'s' if config.group > 1 else ''} on the same "
        f"{config.carriers} subcarriers, over {kind}. At {snr:g} dB SNR and variance "
        f"{variance:g}: "
    )
    parts = []
    for name in ("none", "rx-lmmse", "phase", "e2e", "e2e-matched", "ssdt-sep", "ssdt-joint", "awgn"):
        s = outcome.score(name, snr, variance)
        if s is not None:
            parts.append(f"{title(name)} {s.values.mean():.1f} dB")
    return text + "; ".join(parts) + "."


def _data(outcome: Outcome) -> str:
    names = outcome.pictures.test_names
    if outcome.pictures.name == "photographs":
        return f"{len(names)} photographs ({' and '.join(names)}) that it never saw"
    return f"{outcome.pictures.name} (test part)"


def _headlines(outcome: Outcome) -> list[Headline]:
    snr, variance = _best(outcome)
    tiles = []
    for method in tables.SSDT:
        for over in ("e2e", "e2e-matched", "rx-lmmse", "none"):
            g = tables.gain(outcome, method, over, snr, variance)
            if g is not None and (
                over.startswith("e2e") or method == "ssdt-sep" or "e2e" not in outcome.config.methods
            ):
                note = f"95 % interval {g.low:+.1f} to {g.high:+.1f}, at {snr:g} dB, variance {variance:g}"
                tiles.append(Headline(f"{title(method)} over {title(over)}", f"{g.mean:+.1f} dB", note))
    g = tables.gain(outcome, "awgn", "ssdt-joint", snr, variance)
    if g is not None:
        tiles.append(
            Headline(
                "Joint below the channel without fading",
                f"{g.mean:.2f} dB",
                f"at {snr:g} dB, variance {variance:g}",
            )
        )
    return tiles


def _claims(outcome: Outcome) -> list[Claim]:
    said = f"PSNR {CLAIM_DB[0]} to {CLAIM_DB[1]} dB above existing work, under different Rayleigh variances"
    told = [(method, _span(outcome, method)) for method in tables.SSDT]
    return [
        Claim(said, f"{title(m)}: {parts} ({_where(outcome)})", SOURCE) for m, parts in told if parts
    ] or [Claim(said, "SSDT and what to hold it against were not both run", SOURCE)]


def _where(outcome: Outcome) -> str:
    config = outcome.config
    snr = " and ".join(f"{snr:g}" for snr in config.variance_snr_db)
    return f"variances {config.variances[0]:g} to {config.variances[-1]:g}, SNR {snr} dB"


def _span(outcome: Outcome, method: str) -> str:
    """Smallest and largest mean gain over each reference in the sweep of variances."""
    config = outcome.config
    parts = []
    for over in ("e2e", "e2e-matched", "rx-lmmse", "phase", "none"):
        found = [
            g.mean for snr in config.variance_snr_db for v in config.variances
            if (g := tables.gain(outcome, method, over, snr, v)) is not None
        ]  # fmt: skip
        if found:
            parts.append(f"over {title(over)} {min(found):+.1f} to {max(found):+.1f} dB")
    return "; ".join(parts)


def _spans(outcome: Outcome) -> str:
    told = [f"{title(m)} gains here {_span(outcome, m)}." for m in tables.SSDT if _span(outcome, m)]
    return " ".join(told) + f" ({_where(outcome)})"


def _steps(outcome: Outcome) -> str:
    told = [f"{role} {outcome.config.settings(role).steps:,}" for role in outcome.codecs]
    return f"steps ({', '.join(told)})" if told else "no steps"


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    sizes = ", ".join(f"{role} {parameters(codec):,}" for role, codec in outcome.codecs.items())
    power = " and ".join(f"{p:g}" for p in config.power_w)
    text = (
        f"Codec `{config.codec}` (parameters: {sizes}), {config.symbols} complex feature maps per user; "
        f"Adam, {_steps(outcome)} of {config.batch} codewords, SNR drawn from "
        f"{config.train_snr_db[0]:g} to {config.train_snr_db[1]:g} dB. Powers {power} W, (1/K) sum |t|² = "
        "P "
        if config.power_mode == "mean"
        else f"Codec `{config.codec}` (parameters: {sizes}); powers {power} W, sum |t|² = P "
    )
    text += (
        "per OFDM symbol. sigma² is the power of a complex noise sample, half of it in each part. Every "
        "method has the same pictures, the same fading and the same noise; gains are paired. Intervals "
        "are bootstrap over codewords: they speak of patches of these test pictures and of channels, not "
        "of other photographs."
    )
    if config.csi_err_db is not None or config.csi_bits is not None:
        text += f" Channel knowledge: error {config.csi_err_db} dB, feedback {config.csi_bits} bits."
    if config.channels:
        text += f" Channels are those of {Path(config.channels).name}, times the square root of the variance."
    if config.checkpoint:
        text += " Codecs were taken from an earlier run."
    return text
