"""Settings of the workflow ``msdcda``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tenfold import _checks
from tenfold.eeg.methods import METHODS, VARIANTS, Method, find
from tenfold.eeg.normalise import NORMALISATIONS
from tenfold.eeg.options import Options
from tenfold.eeg.protocols import PROTOCOLS
from tenfold.eeg.study import STUDY
from tenfold.eeg.train import Settings

__all__ = ["DATASETS", "MsdcdaConfig"]

DATASETS = ("vowel", "seed", "seed-iv", "seed-v", "deap", "faced", "complexity", "saved")


@dataclass
class MsdcdaConfig:
    """Recognise the emotions of a person without labels of that person, by methods of domain adaptation.

    MS-DCDA here is reconstructed from the abstract of arXiv 2408.10235; every choice of the reconstruction is
    an option (--options.NAME). The embedded default holds out each of 15 speakers in turn, for 11 vowels.
    """

    dataset: Literal["vowel", "seed", "seed-iv", "seed-v", "deap", "faced", "complexity", "saved"] = "vowel"
    """vowel (embedded), or the layout of --data. complexity: neurokit2's source archive, real EEG, eyes open
    or closed, two sites. saved: a corpus kept by tenfold.eeg.save."""

    data: str = ""
    """Folder (of complexity and saved: file) of the data set as it is published. Left empty: the embedded
    vowels."""

    subjects: list[int] = field(default_factory=list)
    """Numbers of the subjects to load. Empty: all."""

    raw: bool | None = None
    """Compute features from raw EEG. None: only where no features are published."""

    extraction: dict[str, Any] = field(default_factory=dict)
    """How features are computed from raw EEG: definition, smoothing, window_s, ... (see tenfold.eeg)."""

    feature: str = ""
    """SEED and SEED-IV: which published features, say de_movingAve. Left empty: de_LDS."""

    label: str = ""
    """DEAP: the rating (valence, arousal, ...); FACED: emotion or valence. Left empty: the first of these."""

    threshold: float | None = None
    """DEAP: a rating is high from here on. None: 5."""

    protocol: Literal["leave-one-subject-out", "last-subject", "cross-session", "last-session"] = (
        "leave-one-subject-out"
    )
    """Which domains train and which one is tested. The last-... ones are what MS-MDA's code does."""

    methods: list[str] = field(default_factory=list)
    """Names of methods, ablations and study variants. Empty: all methods."""

    ablations: bool = False
    """Also MS-DCDA without its parts."""

    study: bool = False
    """Also one change of the reconstruction at a time, and the changes together."""

    options: Options = field(default_factory=Options)
    """Choices of the methods, MS-DCDA's above all."""

    normalise: Literal["zscore", "minmax", "sample", "global", "source", "none"] = "zscore"
    """Scaling. source: by the sources alone (inductive); zscore, minmax and global use the target's own rows,
    without labels (transductive)."""

    steps: int = 300
    """Optimiser steps of each training."""

    batch: int = 32
    """Rows of each source in a step."""

    target_batch: int | None = None
    """Rows of the target in a step. None: as --batch."""

    lr: float = 1e-3
    """Learning rate of Adam."""

    bn: Literal["shared", "target"] = "shared"
    """Whose rows move the running statistics of batch normalisation."""

    sampler: Literal["shuffle", "class-aware"] = "shuffle"
    """Rows of a step: shuffled, or the same classes in every domain (of the target by pseudo-labels)."""

    relabel: int = 10
    """Steps between two labellings of the whole target (class-aware, labels=cluster)."""

    seeds: list[int] = field(default_factory=lambda: [0, 1])
    """Every training is made with each."""

    select: Literal["last", "oracle"] = "last"
    """last: the weights after the last step. oracle: those that score best on the TARGET'S LABELS, as
    MS-MDA's code reports; no honest result, only to compare with such figures."""

    targets: list[int] = field(default_factory=list)
    """Numbers of the folds to run, from 0. Empty: all."""

    workers: int = 0
    """Processes; 0 for one on each usable core."""

    device: str = "cpu"
    """cpu or cuda."""

    embedding: Literal["tsne", "pca", "none"] = "tsne"
    """How features are drawn in the plane. tsne needs scikit-learn."""

    save: Literal["first", "all", "none"] = "first"
    """Weights to keep: of the first seed, of every seed, or none."""

    def __post_init__(self) -> None:
        _check(self)

    def resolved(self) -> MsdcdaConfig:
        """With the methods named."""
        names = list(self.methods) or list(METHODS)
        names += [name for name in VARIANTS if self.ablations and name not in names]
        names += [name for name in STUDY if self.study and name not in names]
        return dataclasses.replace(self, methods=names, ablations=False, study=False)

    def method(self, name: str) -> Method:
        """A method with the options of this run."""
        found = STUDY[name] if name in STUDY else find(name)
        return found.with_options(self.options)

    def settings(self, seed: int, method: Method) -> Settings:
        """Length, rates and batches of one training."""
        made = Settings(
            self.steps, self.batch, self.target_batch, self.lr, self.bn, self.sampler, self.relabel, seed
        )
        return dataclasses.replace(made, **method.settings)


def _check(config: MsdcdaConfig) -> None:
    for name, known in (
        ("dataset", DATASETS), ("protocol", tuple(PROTOCOLS)), ("normalise", NORMALISATIONS),
        ("select", ("last", "oracle")), ("save", ("first", "all", "none")),
        ("embedding", ("tsne", "pca", "none")),
    ):  # fmt: skip
        _checks.choice(name, getattr(config, name), known)
    if config.dataset != "vowel" and not config.data:
        _checks.fail(ValueError, "data", f"where the files of {config.dataset} are", "nothing")
    if config.data and config.dataset == "vowel" and not Path(config.data).is_file():
        _checks.fail(ValueError, "data", "the file vowel.dat (or another --dataset)", repr(config.data))
    if config.dataset == "vowel":
        for name in ("subjects", "raw", "extraction", "feature", "label", "threshold"):
            if getattr(config, name) not in (None, "", [], {}):
                _checks.fail(ValueError, name, "nothing, for vowel has no such choice", getattr(config, name))
    if len(set(config.methods)) < len(config.methods):
        _checks.fail(ValueError, "methods", "each name once", config.methods)
    for name in config.methods:
        _checks.choice("methods", name, [*METHODS, *VARIANTS, *STUDY])
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        _checks.fail(ValueError, "seeds", "different whole numbers", config.seeds)
    for seed in config.seeds:
        config.settings(seed, METHODS["source-only"])
    for fold in config.targets:
        _checks.integer("targets", fold, 0, 2**31 - 1)
    _checks.integer("workers", config.workers, 0, 4096)
    if config.device != "cpu":
        import torch

        if not config.device.startswith("cuda") or not torch.cuda.is_available():
            found = "that" if torch.cuda.is_available() else "no CUDA device that torch finds"
            _checks.fail(ValueError, "device", "cpu or cuda", f"{config.device!r} ({found})")
