"""The objective of ESD, on which AdvUnlearn builds (Gandikota et al., arXiv 2303.07345).

    target = e0 - eta (ep - e0),   e0 = e(z, t, ""), ep = e(z, t, concept), both of the original model

All predictions are of noise. Weights of the combination sum to 1, so it means the same for a model that
predicts v or a clean sample.
"""

from __future__ import annotations

from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.ops import esd_mse

__all__ = ["esd_loss", "esd_target", "mse", "snr_weight", "weighted_mse"]


def esd_target(e0: Tensor, ep: Tensor, eta: float = 1.0) -> Tensor:
    """Noise prediction that leads away from the concept: e0 - eta (ep - e0), [B, C, h, w]."""
    return e0 - eta * (ep - e0)


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of the squared difference over all elements, a scalar in float32 at least.

    Raises:
        ValueError: shapes differ, or there is nothing.
    """
    if prediction.shape != target.shape or prediction.numel() == 0:
        _checks.fail(ValueError, "target", f"{list(prediction.shape)} with elements", list(target.shape))
    return (
        (prediction - target).float().square().mean()
        if prediction.dtype.itemsize < 4
        else (prediction - target).square().mean()
    )


def esd_loss(prediction: Tensor, e0: Tensor, ep: Tensor, eta: float = 1.0) -> Tensor:
    """mean((prediction - esd_target(e0, ep, eta))^2)."""
    if prediction.shape != e0.shape or prediction.shape != ep.shape or prediction.numel() == 0:
        _checks.fail(ValueError, "target", f"{list(prediction.shape)} with elements", list(e0.shape))
    loss: Tensor = esd_mse(prediction, e0, ep, eta)
    return loss


def snr_weight(bundle: Bundle, t: Tensor, like: Tensor, gamma: float | None) -> Tensor | None:
    """min(SNR, gamma) / SNR at timesteps [B], shaped to multiply `like`; SNR = abar / (1 - abar)."""
    if gamma is None:
        return None
    abar = bundle.schedule.abar(t, like)
    snr = abar / (1 - abar)
    return snr.clamp(max=gamma) / snr


def weighted_mse(found: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Mean squared difference, each picture's times its weight."""
    squares = (found - target).square()
    return squares.mean() if weight is None else (weight * squares).mean()
