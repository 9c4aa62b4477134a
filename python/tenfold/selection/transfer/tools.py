"""What `tenfold dp4tl` does besides `tenfold run dp4tl`: index files alone, and single trainings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from tenfold import _checks
from tenfold.selection.transfer import training
from tenfold.selection.transfer.health import Health, mapping_health
from tenfold.selection.transfer.images import Images, has_split, load_images
from tenfold.selection.transfer.mapping import label_mapping
from tenfold.selection.transfer.methods import METHODS
from tenfold.selection.transfer.networks import ARCHITECTURES, build, load_weights
from tenfold.selection.transfer.pruning import prune
from tenfold.selection.transfer.published_runs import Trained, finetune, pretrain

__all__ = ["FinetuneConfig", "PretrainConfig", "PruneConfig"]

TRAINED = {"target_logits", "features", "target_features", "el2n", "grand", "margin"}
"""Evidence that only a trained surrogate gives."""


@dataclass
class PruneConfig:
    """Say what a method keeps of a source for a target, as index files, without any pretraining."""

    source: str
    """Images: a folder per class, .npz, .beton, hf:NAME; train and val, or the training set alone."""

    out: str
    """Stem of the files to write, for example kept/pets."""

    source_val: str = ""
    """Validation images of the source. Left empty: its split val, if it has one."""

    target: str = ""
    """Images of the target (split train). Not needed by methods that look at the source alone."""

    surrogate: str = "resnet18"
    """Architecture of the surrogate."""

    surrogate_weights: str = ""
    """Its weights, a .safetensors file with torchvision's names and an output for each source class."""

    method: str = "lm"
    """lm, fm, fm-kmeans, moderate, el2n, random, file, ..."""

    ratios: list[float] = field(default_factory=lambda: [0.4, 0.6, 0.8])
    """Shares of the source that are pruned."""

    clusters: int = 0
    """fm-kmeans, ssp: number of clusters. 0: min(2000, images / 50)."""

    coreset_ratio: float = 0.8
    """ffmm and cmt: share of each class that is left out of its mean."""

    scores: str = ""
    """file: CSV of in-domain scores, identifier in column 1 and score in column 3."""

    classes: str = ""
    """classes: .npy or .txt file of hand-picked class numbers."""

    seed: int = 0
    """Of random methods and of k-means."""

    device: str = "cpu"
    """cpu or cuda."""

    readers: int = 0
    """Processes that read images."""


def write_index_files(config: PruneConfig) -> str:
    """Prune, and say what was kept, where it is written, and whether the mapping can be trusted.

    Raises:
        ValueError, FileNotFoundError: a setting or a file is wrong (named); nothing has been written then.
    """
    _checks.choice("method", config.method, [name for name, m in METHODS.items() if m.unit != "all"])
    _checks.choice("surrogate", config.surrogate, ARCHITECTURES)
    needs = set(METHODS[config.method].needs)
    if needs & (TRAINED | {"unlabelled"}) and not config.surrogate_weights:
        _checks.fail(ValueError, "surrogate_weights", f"a file, for the method {config.method}", "nothing")
    source = load_images(config.source, "train")
    target = load_images(config.target, "train") if config.target else None
    held_out = None
    if config.source_val or has_split(config.source, "val"):
        held_out = load_images(config.source_val or config.source, "val")
    network = None
    if config.surrogate_weights:
        network = build(config.surrogate, len(source.classes))
        load_weights(network, config.surrogate_weights)
    found = prune(
        source, target, network, config.method, ratios=config.ratios, validation=held_out, out=config.out,
        scores=config.scores or None, classes=config.classes or None, clusters=config.clusters or None,
        coreset_ratio=config.coreset_ratio, seed=config.seed, device=config.device, workers=config.readers,
    )  # fmt: skip
    lines = [f"{METHODS[config.method].title}: {source.name}, {len(source):,} images"]
    for one in found:
        of = f" of {len(one.classes)} classes" if one.classes else ""
        lines.append(
            f"{100 * one.ratio:g} % pruned: {len(one.kept):,} images{of}: {', '.join(map(str, one.files))}"
        )
    if network is not None and target is not None and held_out is not None:
        lines += _said(_health(network, source, target, held_out, config))
    return "\n".join(lines)


def _health(
    network: nn.Module, source: Images, target: Images, held_out: Images, config: PruneConfig
) -> Health:
    """Of label mapping, whichever method was asked for: the surrogate is the same."""
    view = training.view_of(source)
    here, there = (
        torch.cat([
            logits for _, logits, _ in
            training.outputs(network, images, view, device=config.device, workers=config.readers)
        ])
        for images in (target, held_out)
    )  # fmt: skip
    count = len(source.classes)
    lm = label_mapping(
        here, source.labels, count, target_labels=target.labels, target_classes=len(target.classes)
    )
    return mapping_health(here, there, lm)


def _said(health: Health) -> list[str]:
    lines = [
        f"confidence: {health.confidence:.3f} on the target, {health.confidence_held_out:.3f} on validation "
        f"images of the source; votes spread over {health.effective_classes:.1f} classes"
    ]
    return lines + [f"warning: {warning}" for warning in health.warnings]


@dataclass
class PretrainConfig:
    """Train on a source, or on what an index file names of it, by a settings file of the published code."""

    settings: str
    """JSON file of the published code: pretraining, adversarial pretraining, or from scratch."""

    out: str
    """Folder to write; if it holds an interrupted training, that goes on."""

    train_path: str = ""
    """Training images instead of those in the file."""

    val_path: str = ""
    """Test images instead of those in the file."""

    indices: str = ""
    """Index file with the identifiers to train on."""

    val_indices: str = ""
    """Index file of the test images."""

    epochs: int = 0
    """Instead of the file's. 0: the file's."""

    compat: bool = False
    """Attack as the published code does."""

    amp: Literal["none", "fp16", "bf16"] = "none"
    """fp16 (on CUDA) is the published arithmetic."""

    device: str = "cpu"
    """cpu or cuda."""


def train(config: PretrainConfig) -> str:
    """:func:`pretrain` with the settings of a command."""
    return _trained(
        pretrain(
            config.settings, config.out, train_path=config.train_path or None,
            val_path=config.val_path or None, indices=config.indices or None,
            val_indices=config.val_indices or None, epochs=config.epochs or None, compat=config.compat,
            amp=config.amp, device=config.device,
        )
    )  # fmt: skip


@dataclass
class FinetuneConfig:
    """Transfer a pretrained network to a target by a settings file of the published code."""

    settings: str
    """JSON file of the published code (network.finetune_method lp or ff)."""

    out: str
    """Folder to write; if it holds an interrupted training, that goes on."""

    weights: str
    """.safetensors file of the pretrained network."""

    train_path: str = ""
    """Training images instead of those in the file."""

    test_path: str = ""
    """Test images instead of those in the file."""

    source_classes: int = 1000
    """Outputs of the pretrained network."""

    compat_head: bool = False
    """Keep the pretrained head with all its outputs, as published."""

    epochs: int = 0
    """Instead of the file's. 0: the file's."""

    amp: Literal["none", "fp16", "bf16"] = "none"
    """fp16 (on CUDA) is the published arithmetic."""

    device: str = "cpu"
    """cpu or cuda."""


def transfer(config: FinetuneConfig) -> str:
    """:func:`finetune` with the settings of a command."""
    return _trained(
        finetune(
            config.settings, config.out, weights=config.weights, train_path=config.train_path or None,
            test_path=config.test_path or None, source_classes=config.source_classes,
            compat_head=config.compat_head, epochs=config.epochs or None, amp=config.amp,
            device=config.device,
        )
    )  # fmt: skip


def _trained(done: Trained) -> str:
    return (
        f"{100 * done.last:.2f} % after the last epoch, {100 * done.best:.2f} % in the best; {done.images:,} "
        f"images, {done.steps:,} steps, {done.seconds:.0f} s of processor time\n"
        f"weights: {done.path / 'network.safetensors'}\nnumbers: {done.path / 'metrics.json'}"
    )
