"""The calls on volumes, pictures and latents: overlap, surfaces, quality, diffusion models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tenfold import ops

from .calls_inputs import ON_CUDA, Call, Inputs, Run, in_place, with_gradient

# ---- volumes ---------------------------------------------------------------------------------------------


def _soft_overlap(device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    logits, labels = x.normal(2, 5, 3, 7, 33), x.whole(5, 2, 3, 7, 33, dtype=torch.uint8)
    return with_gradient([logits], lambda z: ops.dice_ce_loss(z, labels))


def _other_dice(device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    logits, labels = x.normal(2, 5, 3, 7, 33), x.whole(5, 2, 3, 7, 33)
    losses = ops.dice_loss, ops.tversky_loss, ops.generalized_dice_loss
    runs = [with_gradient([logits], partial(lambda f, z: f(z, labels), f)) for f in losses]
    return lambda: [t for run in runs for t in run()]


def _labels(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Two label volumes 7 x 11 x 67 in blocks, as segmentations are."""
    x = Inputs(torch.device("cpu"), seed)
    pair = []
    for _ in range(2):
        volume = x.whole(5, 3, 4, 23, dtype=torch.uint8)
        for axis, n in enumerate((7, 11, 67)):
            volume = volume.repeat_interleave(3, axis).narrow(axis, 0, n)
        pair.append(volume.contiguous().to(device))
    return pair[0], pair[1]


def _overlap(device: torch.device, seed: int) -> Run:
    a, b = _labels(device, seed)
    return lambda: list(ops.overlap_counts(a, b, 5, boxes=True))


def _bits(device: torch.device, seed: int) -> Run:
    a, b = _labels(device, seed)
    lut = torch.tensor([0, 1, 2, 5, 6], device=device)
    masks = [torch.stack([v == c for c in range(5)]) for v in (a, b)]

    def run() -> list[Tensor]:
        owners = [ops.label_lut(v, lut) for v in (a, b)]
        packed = [ops.pack_bits(m) for m in masks]
        counts = [ops.multihot_counts(*packed), ops.owner_counts(owners[0], owners[1], 3)]
        return [*owners, *packed, *counts, ops.unpack_bits(packed[0], a.shape)]

    return run


def _edt(device: torch.device, seed: int) -> Run:
    a, _ = _labels(device, seed)
    mask = a == 1
    return lambda: [
        ops.edt(mask, (3.0, 0.5, 0.7)),
        ops.edt(mask, (3.0, 0.5, 0.7), dtype=torch.float64, squared=True),
        ops.signed_distance(mask, (3.0, 0.5, 0.7)),
    ]


def _surface(definition: str, device: torch.device, seed: int) -> Run:
    a, b = _labels(device, seed)
    organs = [(1,), (2, 3), (7,)]
    return lambda: list(ops.surface_metrics(a, b, organs, (3.0, 0.5, 0.7), definition=definition))[1:]


def _resample(device: torch.device, seed: int) -> Run:
    logits = Inputs(device, seed).normal(5, 3, 7, 33)
    return lambda: [ops.resample_argmax(logits, (5, 9, 67))]


# ---- pictures --------------------------------------------------------------------------------------------


def _quality(name: str, device: torch.device, seed: int) -> Run:
    side = 163 if name == "ms_ssim" else 47
    x = Inputs(device, seed).normal(2, 3, side, side + 6).sigmoid()
    y = (x + Inputs(device, seed + 1).normal(*x.shape, scale=0.1)).clamp(0, 1)
    return with_gradient([x, y], partial(getattr(ops, name), reduction="none"))


# ---- attacks on diffusion models -------------------------------------------------------------------------


def _tokens(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    table, q = x.normal(1301, 24), x.normal(11, 24)
    p, u = ops.simplex_project(x.normal(3, 1301)), torch.linspace(0.1, 0.9, 3, dtype=torch.float64)
    if name == "simplex":
        return with_gradient((x.normal(3, 1301), x.normal(3, 1301)), lambda a, b: ops.simplex_project(a) * b)
    if name == "nearest":
        return lambda: [*ops.nearest_token(q, table), *ops.nearest_token(q[:3], table, metric="l2")]
    if name == "samples":
        return lambda: [ops.sample_rows(p, u.to(device))]
    if name == "signs":
        steps = (x.normal(2, 1025), x.normal(2, 1025))

        def step(pair: Sequence[Tensor]) -> None:
            ops.sign_step_(pair[0], steps[0], lr=0.05, eps=0.1)
            ops.sign_step_(pair[1], steps[1], lr=0.05, eps=0.5, norm="l2")

        return in_place([[x.normal(2, 1025), x.normal(2, 1025)]], step)
    zeros = [torch.zeros_like(p), torch.zeros_like(p)]
    return in_place(
        [[p, *zeros]],
        lambda state: ops.ste_adam_simplex_(
            state[0], state[1], state[2], q[:3], table, lr=0.01, step=1, weight_decay=0.1
        ),
    )


def _guidance(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    a, b, c, d = (x.normal(3, 4, 9, 31) for _ in range(4))
    if name == "losses":
        return with_gradient(
            (a, b, c), lambda a, b, c: ops.esd_mse(a, b, c, 0.7) + ops.eps_mse_rows(a, b, "l1").sum()
        )
    if name == "splice":
        index = x.whole(13, 3, 9)
        words = (x.normal(3, 9, 16), x.normal(3, 4, 16))
        return with_gradient(words, lambda e, v: ops.splice_embed(e, v, index).square())
    t, abar = x.whole(50, 3), torch.linspace(0.999, 0.005, 50, dtype=torch.float64).to(device)

    safe = partial(ops.sld_guidance, scale=5.0, threshold=0.01, momentum_scale=0.3, momentum_beta=0.4)

    def stepped() -> list[Tensor]:
        found = [ops.add_noise_rows(a, b, t, abar), *safe(a, b, c, d, 7.5)]
        return [*found, ops.cfg_ddim_step(a, b, c, 7.5, abar[t], abar[t // 2], doubled=True)]

    return stepped


PICTURES: tuple[Call, ...] = (
    Call("softdice.dice_ce", _soft_overlap, 2e-5, captures=True, covers=("dice_ce_loss", "soft_overlap")),
    Call("softdice.others", _other_dice, 2e-5, covers=("dice_loss", "tversky_loss", "generalized_dice_loss")),
    Call("overlap.counts", _overlap, captures=True, backends=ON_CUDA, covers=("overlap_counts",)),
    Call(
        "overlap.bits",
        _bits,
        captures=True,
        backends=ON_CUDA,
        covers=("label_lut", "pack_bits", "unpack_bits", "multihot_counts", "owner_counts"),
    ),
    Call("surface.edt", _edt, 1e-6, captures=True, backends=ON_CUDA, covers=("edt", "signed_distance")),
    *(
        Call(f"surface.{kind}", partial(_surface, kind), 1e-12, backends=ON_CUDA, covers=("surface_metrics",))
        for kind in ("area", "edge")
    ),
    *(
        Call(f"quality.{name}", partial(_quality, name), 2e-5, captures=True, covers=(name,))
        for name in ("psnr", "ssim", "ms_ssim")
    ),
    *(
        Call(
            f"attack.{name}",
            partial(_tokens, name),
            near,
            captures=name != "simplex",
            backends=on,
            covers=(op,),
        )
        for name, op, near, on in (
            ("simplex", "simplex_project", 2e-5, ("cuda", "triton")),
            ("adam", "ste_adam_simplex_", 1e-4, ("cuda", "triton")),
            ("samples", "sample_rows", 0.0, ("cuda", "triton")),
            ("nearest", "nearest_token", 1e-5, ("cuda",)),
            ("signs", "sign_step_", 2e-6, ("cuda", "triton")),
        )
    ),
    *(
        Call(f"attack.{name}", partial(_guidance, name), 1e-5, covers=covers)
        for name, covers in (
            ("losses", ("esd_mse", "eps_mse_rows")),
            ("latents", ("add_noise_rows", "cfg_ddim_step", "sld_guidance")),
            ("splice", ("splice_embed",)),
        )
    ),
    Call("volume.resample", _resample, captures=True, backends=("triton",), covers=("resample_argmax",)),
)
