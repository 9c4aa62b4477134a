"""The work of a run: surveys of the source with a surrogate, and pretrainings with their transfer."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold import _checks
from tenfold.runs.files import read_json, replacing, write_json
from tenfold.selection.transfer import baselines, training
from tenfold.selection.transfer.augment import View
from tenfold.selection.transfer.checkpoint import Checkpoint
from tenfold.selection.transfer.config import DP4TLConfig
from tenfold.selection.transfer.health import mapping_health
from tenfold.selection.transfer.images import Images
from tenfold.selection.transfer.index_files import read_class_list, read_score_csv
from tenfold.selection.transfer.methods import METHODS, Evidence, pca, rank
from tenfold.selection.transfer.networks import build, head_of, load_weights, replace_head
from tenfold.selection.transfer.rankings import ClassRanking
from tenfold.selection.transfer.recipe import Recipe
from tenfold.selection.transfer.tasks import Task, load_task, shots_of

__all__ = ["Job", "keys_of", "survey", "task_of", "transfer_one", "view_for_recipe"]

COMPONENTS = 32
"""Principal components of the pixels for methods without labels."""

_held: dict[str, tuple[str, Any]] = {}
"""What this process read last: name -> (from what, value)."""


def task_of(config: DP4TLConfig) -> Task:
    """The run's task; kept, because many trainings of a process share it."""
    key = repr([config.source, config.target, config.target_split, config.fashion])
    if "task" not in _held or _held["task"][0] != key:
        made = load_task(
            config.source, config.target, target_split=config.target_split, fashion=config.fashion
        )
        _held["task"] = (key, made)
    found: Task = _held["task"][1]
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's generator at `seed` while the block runs; outside nothing changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def make(config: DP4TLConfig, name: str, task: Task, classes: int, seed: int) -> nn.Module:
    """A network for the task's images with weights drawn from `seed`."""
    pixels = task.source.pixels
    channels, side = (3, 224) if pixels is None else (pixels.shape[1], pixels.shape[2])
    with _seeded(seed):
        return build(name, classes, channels=channels, side=side)


def view_for(task: Task, recipe: Recipe) -> View:
    """How images are looked at for features: the whole central square, nothing mirrored."""
    return replace(view_for_recipe(task.source, recipe), crop="centre", share=1.0, flip=0.0)


def view_for_recipe(images: Images, recipe: Recipe) -> View:
    """Normalisation and size for features: 224 pixels where pretraining is tested at 256, as published."""
    size = 224 if recipe.test_resolution == 256 else recipe.test_resolution
    return training.view_of(images).at(0 if images.pixels is not None else size)


# ---- survey ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A pretraining on what a method keeps and its transfer. `ratio` 0: nothing pruned."""

    method: str
    ratio: float
    seed: int
    draw: int = 0

    @property
    def key(self) -> str:
        """Name in the folder."""
        draw = f"-draw{self.draw}" if self.draw else ""
        return f"{self.method}-{round(1000 * self.ratio):04d}-seed{self.seed}{draw}"


def keys_of(config: DP4TLConfig, seed: int) -> list[Job]:
    """All trainings of a seed."""
    found = []
    for method in config.methods:
        if METHODS[method].unit == "all":
            found.append(Job(method, 0.0, seed))
            continue
        draws = config.draws if method.startswith("random") else 1
        found += [Job(method, ratio, seed, draw) for ratio in config.ratios for draw in range(draws)]
    return found


def survey(
    config: DP4TLConfig, seed: int, epochs: Path | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What each method keeps, and how far the mapping can be trusted.

    Args:
        config: resolved.
        seed: of the surrogate, of random prunings and of k-means.
        epochs: where the surrogate's training keeps its state after each epoch.

    Returns:
        (plain data: health, seconds of the surrogate, of its passes and of each ranking; tensors:
        "kept/JOB" positions, "votes/METHOD",
        "matrix/METHOD", "confidence", "confidence_held_out").
    """
    task = task_of(config)
    recipe = config.recipe("surrogate")
    network = make(config, config.surrogate, task, len(task.source.classes), 10_000 + seed)
    spent = 0.0
    if config.surrogate_weights:
        load_weights(network, config.surrogate_weights)
    else:
        fitted = training.fit(
            network, task.source.subset(task.known), recipe, seed=seed, device=config.device,
            workers=config.readers, checkpoint=None if epochs is None else Checkpoint(epochs),
        )  # fmt: skip
        spent = fitted.seconds
    begun = time.process_time()
    evidence, extra = _evidence(config, task, network, view_for(task, recipe), seed)
    looked = time.process_time() - begun
    ranked: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    rankings: dict[str, ClassRanking] = {}
    for job in keys_of(config, seed):
        if METHODS[job.method].unit == "all":
            continue
        begun = time.process_time()
        ranking = rank(job.method, evidence, seed * 1000 + job.draw)
        tensors[f"kept/{job.key}"] = torch.from_numpy(ranking.keep(job.ratio))
        ranked.setdefault(job.method, time.process_time() - begun)
        if isinstance(ranking, ClassRanking):
            rankings[job.method] = ranking
    for method, found in rankings.items():
        for name, value in (("votes", found.votes), ("matrix", found.matrix)):
            if value is not None:
                tensors[f"{name}/{method}"] = value
        tensors[f"order/{method}"] = torch.from_numpy(found.order())
    state: dict[str, Any] = {
        "seed": seed, "surrogate_seconds": spent, "features_seconds": looked, "ranking_seconds": ranked,
    }  # fmt: skip
    state["accuracy_held_out"] = float((extra["held_out"].argmax(1) == task.held_out.labels).double().mean())
    lm, fm = (rankings.get(m) or rank(m, evidence, seed) for m in ("lm", "fm"))
    assert isinstance(lm, ClassRanking)
    assert isinstance(fm, ClassRanking)
    assert evidence.target_logits is not None
    state["health"] = asdict(mapping_health(evidence.target_logits, extra["held_out"], lm, fm))
    tensors["confidence"] = evidence.target_logits.softmax(1).amax(1)
    tensors["confidence_held_out"] = extra["held_out"].softmax(1).amax(1)
    return state, tensors


def _evidence(
    config: DP4TLConfig, task: Task, network: nn.Module, view: View, seed: int
) -> tuple[Evidence, dict[str, Tensor]]:
    """Everything that the chosen methods look at."""
    options: dict[str, Any] = {"device": config.device, "workers": config.readers}
    needs = {need for m in config.methods for need in METHODS[m].needs} | {"features"}
    found = Evidence(
        task.source.labels, len(task.source.classes), clusters=config.clusters or None,
        coreset_ratio=config.coreset_ratio, target_labels=task.target.labels,
        target_classes=len(task.target.classes),
    )  # fmt: skip
    blocks = list(training.outputs(network, task.target, view, **options))
    found.target_features, found.target_logits = (torch.cat([b[k] for b in blocks]) for k in (0, 1))
    want = tuple(name for name in ("el2n", "margin") if name in needs)
    found.features, scores = _source_outputs(config, task.source, network, view, want)
    for name in want:
        setattr(found, name, scores[name])
    if "grand" in needs:
        found.grand = _grand(config, task, seed)
    if "unlabelled" in needs:
        if config.unlabelled == "pca":
            if not task.in_memory:
                _checks.fail(ValueError, "unlabelled", "surrogate for images that are read from files", "pca")
            assert task.source.pixels is not None
            assert task.target.pixels is not None
            found.unlabelled, found.target_unlabelled = pca(
                task.source.pixels, task.target.pixels, COMPONENTS
            )
        else:
            found.unlabelled, found.target_unlabelled = found.features, found.target_features
    if "file" in needs:
        found.file = baselines.file_scores(*read_score_csv(config.scores), task.source)
    if "picked" in needs:
        found.picked = read_class_list(config.classes, found.classes)
    held_out = torch.cat([b for _, b, _ in training.outputs(network, task.held_out, view, **options)])
    return found, {"held_out": held_out}


def _grand(config: DP4TLConfig, task: Task, seed: int) -> NDArray[np.float64]:
    """GraNd early in training, averaged over networks of their own (arXiv 2107.07075)."""
    networks = []
    recipe = config.recipe("surrogate")
    for k in range(config.grand_models):
        network = make(config, config.surrogate, task, len(task.source.classes), 20_000 + 100 * seed + k)
        training.fit(
            network, task.source.subset(task.known), recipe, seed=100 * seed + k, device=config.device,
            workers=config.readers, until=config.grand_epochs,
        )  # fmt: skip
        networks.append(network)
    return baselines.grand_scores(networks, task.source, view=view_for(task, recipe))


def _source_outputs(
    config: DP4TLConfig, images: Images, network: nn.Module, view: View, want: tuple[str, ...]
) -> tuple[Tensor, dict[str, NDArray[np.float64]]]:
    """Features of the source [N, d], in memory or memory-mapped in the cache, and scores, from one pass."""
    width = head_of(network).in_features
    if not config.cache:
        features = torch.empty(len(images), width)
        scores = _fill(features, config, images, network, view, want)
        return features, scores
    folder = Path(config.cache)
    key = {"images": images.fingerprint(), "network": weights_hash(network), "view": repr(view)}
    data, note = folder / "features.npy", folder / "features.json"
    if note.exists():
        stored = read_json(note)
        for name, value in key.items():
            if stored.get(name) != value:
                _checks.fail(
                    ValueError, f"cache {folder}", f"features of these {name} ({value[:12]})",
                    f"features of {str(stored.get(name))[:12]}; name another folder or delete it",
                )  # fmt: skip
        features = torch.from_numpy(np.load(data, mmap_mode="c"))
        missing = want and not all(f"score_{name}" in stored for name in want)
        if not missing:
            return features, {n: np.load(folder / f"{n}.npy") for n in want}
    with replacing(data) as aside:
        mapped = np.lib.format.open_memmap(aside, "w+", np.float32, (len(images), width))
        scores = _fill(torch.from_numpy(mapped), config, images, network, view, want)
        mapped.flush()
    for name, values in scores.items():
        with replacing(folder / f"{name}.npy") as aside, aside.open("wb") as file:
            np.save(file, values)
    write_json(note, {**key, **{f"score_{name}": True for name in scores}})
    return torch.from_numpy(np.load(data, mmap_mode="c")), scores


def _fill(
    features: Tensor, config: DP4TLConfig, images: Images, network: nn.Module, view: View,
    want: tuple[str, ...],
) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    def blocks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        options: dict[str, Any] = {"device": config.device, "workers": config.readers}
        for x, logits, at in training.outputs(network, images, view, **options):
            features[at] = x
            yield x, logits, images.labels[at]

    return baselines.prediction_scores(blocks(), len(images), want) if want else _drained(blocks())


def _drained(blocks: Iterator[Any]) -> dict[str, NDArray[np.float64]]:
    for _ in blocks:
        pass
    return {}


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over the names and values of a network's tensors."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


# ---- pretraining and transfer ----------------------------------------------------------------------------


@dataclass
class Transfer:
    """What a training came to: images and steps of pretraining, its processor seconds, accuracies on the
    target (last weights; `best` over epochs where it was looked at), NaN for what was not asked for."""

    images: int = 0
    classes: int = 0
    steps: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    lp: float = float("nan")
    ff: float = float("nan")
    ff_best: float = float("nan")
    notes: list[str] = field(default_factory=list)


def transfer_one(
    config: DP4TLConfig, job: Job, kept: NDArray[np.int64] | None, epochs: Path | None = None
) -> tuple[Transfer, dict[str, Tensor]]:
    """Pretrain on the kept images and transfer to the target.

    Args:
        config: resolved.
        job: which; "none" takes all images, "scratch" does not pretrain.
        kept: positions of the source; None for all.
        epochs: where pretraining keeps its state after each epoch.

    Returns:
        (figures, tensors: "lp" and "ff", whether each test image was right, bool [n]; "network/..." weights).
    """
    task = task_of(config)
    network = make(config, config.model, task, len(task.source.classes), 30_000 + job.seed)
    done = Transfer()
    if job.method != "scratch":
        source = task.source if kept is None else task.source.subset(kept)
        recipe = config.recipe("pretrain")
        fitted = training.fit(
            network, source, recipe, seed=job.seed, device=config.device, workers=config.readers,
            checkpoint=None if epochs is None else Checkpoint(epochs),
        )  # fmt: skip
        done.images, done.classes = len(source), int(source.labels.unique().numel())
        done.steps, done.seconds, done.loss = fitted.steps, fitted.seconds, fitted.losses[-1]
    shots = task.target.subset(shots_of(task.target.labels.numpy(), config.shots or 0, job.seed))
    tensors: dict[str, Tensor] = {}
    if config.save == "first" and job.seed == config.seeds[0]:
        tensors |= {f"network/{k}": v.detach().cpu().clone() for k, v in network.state_dict().items()}
    if "lp" in config.evaluate:
        tensors["lp"] = _probed(config, task, network, shots, job.seed)
        done.lp = float(tensors["lp"].double().mean())
    if "ff" in config.evaluate:
        tensors["ff"], done.ff_best = _tuned(config, task, network, shots, job)
        done.ff = float(tensors["ff"].double().mean())
    return done, tensors


def _probed(config: DP4TLConfig, task: Task, network: nn.Module, shots: Images, seed: int) -> Tensor:
    recipe = config.recipe("lp")
    view = view_for(task, recipe)
    options: dict[str, Any] = {"device": config.device, "workers": config.readers}
    x, z = (
        torch.cat([f for f, _, _ in training.outputs(network, images, view, **options)])
        for images in (shots, task.test)
    )
    head = copy.deepcopy(head_of(network)).cpu()
    if config.head == "new":
        with _seeded(40_000 + seed):
            head = nn.Linear(head.in_features, len(task.target.classes))
    training.probe(x, shots.labels, head, recipe, seed=seed)
    with torch.no_grad():
        return head(z).argmax(1) == task.test.labels


def _tuned(
    config: DP4TLConfig, task: Task, network: nn.Module, shots: Images, job: Job
) -> tuple[Tensor, float]:
    recipe = config.recipe("scratch" if job.method == "scratch" else "ff")
    tuned = copy.deepcopy(network)
    if config.head == "new":
        with _seeded(40_000 + job.seed):
            replace_head(tuned, len(task.target.classes))
    watched = None if task.in_memory else task.test
    fitted = training.fit(
        tuned, shots, recipe, seed=job.seed, device=config.device, workers=config.readers, test=watched
    )
    return training.hits(
        tuned, task.test, recipe, device=config.device, workers=config.readers
    ), fitted.best  # fmt: skip
