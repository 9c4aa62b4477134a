"""What a model of the digits world can still do: digits it draws as asked, and distances of picture sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.digits.judge import read_digits
from tenfold.diffusion.digits.vocabulary import digit_of, name_prompts
from tenfold.diffusion.sampling import generate

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = ["Agreement", "digit_agreement", "pixel_frechet"]


class Agreement(NamedTuple):
    """mean: share of pictures in which the judge reads the digit of the prompt (and the gate accepts).
    ungated: the same without the gate. accepted: share that the gate accepts. by_digit: `mean` of each digit.
    images: [N, 1, 8, 8]. asked: int64 [N]."""

    mean: float
    ungated: float
    accepted: float
    by_digit: dict[int, float]
    images: Tensor
    asked: Tensor


def digit_agreement(
    bundle: Bundle,
    *,
    exclude: Iterable[int | str] = (),
    per_digit: int = 20,
    guidance: float = 3.0,
    steps: int = 20,
    seed: int = 0,
    batch: int = 64,
    **options: Any,
) -> Agreement:
    """Draw every digit from prompts that name it, and let the judge read.

    Without the erased digit (`exclude`) this is the accuracy that an eraser retains.

    Args:
        exclude: digits or names to leave out. per_digit: pictures of each, 1 to 40, each with another prompt.
        seed: of the first picture; the others count on.
        options: more arguments of `generate`.
    """
    per_digit = _checks.integer("per_digit", per_digit, 1, 40)
    left_out = {digit_of(d) for d in exclude}
    digits = [d for d in range(10) if d not in left_out]
    prompts = [prompt for d in digits for prompt in name_prompts(d, per_digit)]
    if not digits:
        _checks.fail(ValueError, "exclude", "a digit that is left", "all ten")
    asked = torch.tensor(digits).repeat_interleave(per_digit)
    seeds: Sequence[int] = range(seed, seed + len(prompts))
    images = generate(bundle, prompts, list(seeds), steps=steps, guidance=guidance, batch=batch, **options)
    read, _, accepted = read_digits(images)
    right = (read == asked) & accepted
    by_digit = {d: float(right[asked == d].float().mean()) for d in digits}
    return Agreement(
        float(right.float().mean()),
        float((read == asked).float().mean()),
        float(accepted.float().mean()),
        by_digit,
        images,
        asked,
    )


def pixel_frechet(images: Tensor, others: Tensor) -> float:
    """Frechet distance between two sets of pictures as Gaussians over pixels in [-1, 1], in float64.

        |mean difference|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)

    It says nothing about prompts: a model that ignores them may have a smaller one. Report it beside
    `digit_agreement`, not alone.

    Args:
        images, others: [N, C, H, W] in [0, 1], at least two each.
    """
    means, covariances = [], []
    for name, value in (("images", images), ("others", others)):
        if value.ndim != 4 or value.shape[0] < 2:
            _checks.fail(ValueError, name, "at least two pictures [N, C, H, W]", list(value.shape))
        rows = value.flatten(1).double() * 2 - 1
        if not bool(rows.isfinite().all()):
            _checks.fail(ValueError, name, "finite pixels", "NaN or infinity")
        means.append(rows.mean(0))
        covariances.append(torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]))
    if means[0].shape != means[1].shape:
        _checks.fail(ValueError, "others", f"{means[0].numel()} pixels", means[1].numel())
    root = _square_root(covariances[0])
    cross = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    apart = (means[0] - means[1]).square().sum()
    return float((apart + covariances[0].trace() + covariances[1].trace() - 2 * cross).clamp(min=0))


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
