"""Scores of single source samples that the paper's system is compared with.

EL2N and GraNd (arXiv 2107.07075) and the margin need a network trained on the source; the distance to the own
k-means centre (arXiv 2206.14486) needs features; influence or memorisation comes from a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold import _checks
from tenfold.selection.transfer.augment import View
from tenfold.selection.transfer.images import Images
from tenfold.selection.transfer.training import outputs, view_of

__all__ = ["file_scores", "grand_scores", "prediction_scores", "prototype_distances"]


def prediction_scores(
    blocks: Iterable[tuple[Tensor, Tensor, Tensor]], count: int, want: tuple[str, ...] = ("el2n", "margin")
) -> dict[str, NDArray[np.float64]]:
    """Scores of all samples from one pass over (features [b, d], logits [b, C], labels [b]) blocks.

    Args:
        blocks: in the order of the samples.
        count: samples in all.
        want: of el2n, margin, loss, entropy, and grand (of the last layer, in closed form).

    Returns:
        float64 [count] each. margin is p1 - p2: small is hard.
    """
    from tenfold.ops import score_fused

    found = {name: np.empty(count) for name in want}
    at = 0
    for features, logits, labels in blocks:
        norms = features.double().square().sum(1).float() if "grand" in want else None
        scores = score_fused(logits, labels, feature_norms_squared=norms, want=want)
        for name in want:
            found[name][at : at + len(labels)] = getattr(scores, name).numpy()
        at += len(labels)
    if at != count:
        _checks.fail(ValueError, "blocks", f"{count} samples in all", at)
    return found


def grand_scores(
    networks: Iterable[nn.Module], images: Images, *, view: View | None = None, batch: int = 64
) -> NDArray[np.float64]:
    """GraNd: norm of each sample's gradient with respect to all parameters, mean over `networks`.

    The networks are taken in evaluation mode: a gradient of one sample is not defined where batch statistics
    mix samples.

    Returns:
        float64 [N].
    """
    view = view or view_of(images)
    total, count = np.zeros(len(images)), 0
    for network in networks:
        network.eval()
        parameters = {k: v.detach() for k, v in network.named_parameters()}
        buffers = dict(network.named_buffers())

        def loss(p: Any, x: Tensor, y: Tensor, network: Any = network, buffers: Any = buffers) -> Tensor:
            logits = torch.func.functional_call(network, (p, buffers), (x[None],))
            return F.cross_entropy(logits, y[None])

        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
        for x, y, at in images.batches(view, batch):
            each = gradients(parameters, x, y)
            squared = sum(g.flatten(1).double().square().sum(1) for g in each.values())
            total[at.numpy()] += torch.as_tensor(squared).sqrt().numpy()
        count += 1
    if not count:
        _checks.fail(ValueError, "networks", "at least one", "none")
    return total / count


def prototype_distances(
    features: Tensor, clusters: int, *, iterations: int = 25, seed: int = 0
) -> NDArray[np.float64]:
    """Distance of each sample to its k-means centre, float64 [N]; large is hard (prototypes)."""
    from tenfold.ops import kmeans, nn_assign

    found = kmeans(features, clusters, iterations=iterations, seed=seed)
    return nn_assign(features, found.centers)[1][:, 0].double().sqrt().numpy()


def file_scores(
    identifiers: NDArray[np.int64], scores: NDArray[np.float64], images: Images
) -> NDArray[np.float64]:
    """Scores from a file (`read_score_csv`) in the order of `images`; the file must name each image once."""
    place = {int(one): k for k, one in enumerate(identifiers)}
    if len(place) < len(identifiers):
        _checks.fail(
            ValueError, "scores", "each identifier once", f"{len(identifiers) - len(place)} repeated"
        )
    for one in images.identifiers.tolist():
        if one not in place:
            _checks.fail(ValueError, "scores", f"a score of image {one}", "none")
    return scores[[place[one] for one in images.identifiers.tolist()]]


def labelled_outputs(network: nn.Module, images: Images, view: View, **options: Any) -> Any:
    """(features, logits, labels) blocks, for `prediction_scores`."""
    for features, logits, at in outputs(network, images, view, **options):
        yield features, logits, images.labels[at]
