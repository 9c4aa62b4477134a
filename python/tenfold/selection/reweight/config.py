"""Settings of the workflow ``cwerm``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tenfold import _checks
from tenfold.selection.reweight.arms import ARMS, DEFAULT, SWEPT, Arm, with_controls
from tenfold.selection.reweight.data import DATASETS
from tenfold.selection.reweight.models import MODELS
from tenfold.selection.reweight.settings import Setting, parse_setting

__all__ = ["CwermConfig"]

_DIGITS: dict[str, Any] = {
    "settings": ["symmetric:0.4", "symmetric:0.4+wd=0+epochs=100", "clean"], "model": "mlp",
    "meta_model": "mlp", "extractor": "pixels", "ratio": 0.1, "ratios": [0.02, 0.05, 0.3],
    "epochs": 60, "batch": 32, "augment": False,
}  # fmt: skip
_ARRAYS: dict[str, Any] = {
    **_DIGITS, "settings": ["clean"], "ratios": [], "ratio": 0.05, "epochs": 100, "batch": 128,
}  # fmt: skip
_PAPER: dict[str, Any] = {
    "settings": ["clean"], "model": "preactresnet18", "meta_model": "resnet32", "extractor": "resnet50",
    "ratio": 0.01, "ratios": [], "epochs": 100, "batch": 128, "augment": True,
}  # fmt: skip
_PRESETS = {"digits": _DIGITS, "cifar10": _PAPER, "cifar100": _PAPER, "arrays": _ARRAYS, "images": _PAPER}
"""What is left open in a config is filled with these, by data set."""


@dataclass
class CwermConfig:
    """Learn sample weights on a small coreset, carry them to all data, train once (arXiv 2403.12166).

    Baselines, variants and two controls of every weighted method are trained beside it. The embedded default
    is scikit-learn's digits with noisy labels.
    """

    dataset: Literal["digits", "cifar10", "cifar100", "arrays", "images"] = "digits"
    """digits (embedded), CIFAR in its published "python version", arrays (an .npz file with x, y, x_test,
    y_test), images (folders train/CLASS and test/CLASS, or hf:NAME)."""

    data: str = ""
    """Folder or file of the data set. Left empty: the embedded digits."""

    settings: list[str] = field(default_factory=list)
    """Problems: clean, symmetric:0.4, flip:0.4, flip2:0.4, asymmetric:0.4, longtail:100, joined by + with
    epochs=N and wd=X. Empty: as the data set's preset says."""

    methods: list[str] = field(default_factory=list)
    """Names of methods. Controls (constant and shuffled weights) are added to every weighted one. Empty: ERM,
    W-ERM, both coresets alone, CW-ERM, normalised CW-ERM, label-aware."""

    model: str = ""
    """mlp, preactresnet18, resnet20, resnet32, resnet44 or resnet56. Empty: mlp for digits and arrays,
    preactresnet18 else."""

    meta_model: str = ""
    """The classifier that weights are learned with. Empty: mlp, or resnet32."""

    extractor: str = ""
    """Features for the coreset and for nearness: pixels, resnet18 to resnet152, vit_b_16. Empty: pixels, or
    resnet50 for images."""

    extractor_weights: str = ""
    """The extractor's .safetensors file, tensors named as torchvision names them."""

    features: str = ""
    """Features that exist already, .npy or .npz, one row for each training row; instead of an extractor."""

    cache: str = ""
    """Folder to keep extracted features in, by the hash of data and weights. Empty: the run's own."""

    ratio: float | None = None
    """Coreset's share of the training rows. None: 0.1 for digits, 0.01 else."""

    ratios: list[float] | None = None
    """Other shares to try, in the first problem. None: 0.02, 0.05, 0.3 for digits, none else."""

    neighbours: int = 5
    """Coreset samples that vote on a label (label-aware)."""

    weights: Literal["final", "trajectory"] = "final"
    """What is carried: V's weights at the end, or their mean over all epochs."""

    meta: Literal["split", "clean", "given"] = "split"
    """Meta rows: a part of the coreset that is not trained on; rows with right labels, put aside before noise
    is made (--meta_rows); or x_meta and y_meta of the data."""

    meta_rows: int | None = None
    """How many. None: as the published code counts for split, and 50 for clean."""

    every_method: bool | None = None
    """All methods in every problem; else W-ERM, which is what takes time, and variants in the first one only.
    None: yes, except for the embedded default."""

    epochs: int | None = None
    """Of the weighted training. None: 60 for digits, 100 else."""

    batch: int | None = None
    """None: 32 for digits, 128 else."""

    lr: float = 0.1
    """SGD, momentum 0.9, cosine over epochs."""

    weight_decay: float = 5e-4
    """Of SGD."""

    clamp: float = 5.0
    """Limit of each element of the gradient; 0 for none."""

    augment: bool | None = None
    """Random crops and flips. None: for images."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast in the weighted training."""

    meta_epochs: int = 120
    """Of Meta-Weight-Net."""

    meta_batch: int = 100
    """Rows, and meta rows, of a step of Meta-Weight-Net."""

    meta_lr: float = 1e-5
    """Of Adam on V. The original Meta-Weight-Net has 1e-3."""

    meta_weight_decay: float = 0.0
    """Of Adam on V. The original Meta-Weight-Net has 1e-4."""

    meta_interval: int = 1
    """V moves at every so many steps."""

    meta_normalise: bool = False
    """Weights are divided by their mean in each batch while V learns."""

    given_weights: str = ""
    """Weights of all training rows (.npz or .csv of a Selection, .npy), to train with beside the others."""

    compat: Literal["", "reference"] = ""
    """reference: what the published code does otherwise. Meta rows are the training rows, counts of the
    coreset are rounded to even, the extractor and the final weights use training mode and augmented
    images."""

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Everything is made with each."""

    side: int = 32
    """Pixels of a side that folders of pictures are read at."""

    watch: bool = False
    """Test after each epoch, for curves; nothing is chosen by it."""

    checkpoint_every: int = 10
    """Epochs between two states of a training that --resume can go on from; 0 for none."""

    save: Literal["first", "all", "none"] = "first"
    """Networks and weights to keep: of the first seed, of every seed, or none."""

    workers: int = 0
    """Processes; 0 for one on each usable core, or one for each GPU."""

    device: str = "cpu"
    """cpu or cuda (trainings are handed out to all visible GPUs)."""

    def __post_init__(self) -> None:
        _check(self)

    def resolved(self) -> CwermConfig:
        """With everything that was left open filled in, controls named."""
        filled: dict[str, Any] = {
            name: value for name, value in _PRESETS[self.dataset].items()
            if getattr(self, name) in (None, "") or (name == "settings" and not self.settings)
        }  # fmt: skip
        names = list(self.methods) or list(DEFAULT)
        if self.given_weights and "given" not in names:
            names.append("given")
        filled["methods"] = with_controls(names)
        if self.every_method is None:
            filled["every_method"] = self.dataset != "digits" or bool(self.methods)
        if self.meta_rows is None and self.meta == "clean":
            filled["meta_rows"] = 50
        made = dataclasses.replace(self, **filled)
        _check_resolved(made)
        return made

    def problems(self) -> list[Setting]:
        """The settings, parsed."""
        return [parse_setting(text) for text in self.settings]

    def arms(self, setting: int = 0) -> list[Arm]:
        """What is trained in a problem."""
        named = [ARMS[name] for name in self.methods]
        if setting and not self.every_method:
            named = [arm for arm in named if arm.name in SWEPT or arm.of in SWEPT or arm.name == "erm"]
        return named

    def swept(self) -> list[Arm]:
        """What is trained at each coreset ratio: all that depends on it and is worth it, with controls."""
        return [arm for arm in self.arms() if arm.name in SWEPT or arm.of in SWEPT]


def _check(config: CwermConfig) -> None:
    for name, known in (
        ("dataset", DATASETS), ("weights", ("final", "trajectory")), ("meta", ("split", "clean", "given")),
        ("compat", ("", "reference")), ("save", ("first", "all", "none")),
        ("precision", ("float32", "bfloat16")),
    ):  # fmt: skip
        _checks.choice(name, getattr(config, name), known)
    if config.dataset != "digits" and not config.data:
        _checks.fail(ValueError, "data", f"where the files of {config.dataset} are", "nothing")
    if config.dataset == "digits" and config.data:
        _checks.fail(ValueError, "data", "nothing for digits (or another --dataset)", repr(config.data))
    for name in config.methods:
        _checks.choice("methods", name, list(ARMS))
    if len(set(config.methods)) < len(config.methods):
        _checks.fail(ValueError, "methods", "each name once", config.methods)
    slugs = [parse_setting(text).slug for text in config.settings]
    if len(set(slugs)) < len(slugs):
        _checks.fail(ValueError, "settings", "each problem once", config.settings)
    for name, value in (("model", config.model), ("meta_model", config.meta_model)):
        if value:
            _checks.choice(name, value, MODELS)
    for share in [*([] if config.ratio is None else [config.ratio]), *(config.ratios or [])]:
        if not 0 < _checks.real("ratio", share) <= 1:
            _checks.fail(ValueError, "ratio", "a share in (0, 1]", share)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        _checks.fail(ValueError, "seeds", "different whole numbers", config.seeds)
    for seed in config.seeds:
        _checks.integer("seeds", seed, 0, 2**31 - 1)
    for name in ("meta_epochs", "meta_batch", "meta_interval", "neighbours"):
        _checks.integer(name, getattr(config, name), 1, 32 if name == "neighbours" else 2**31 - 1)
    for name in ("lr", "meta_lr"):
        _checks.real(name, getattr(config, name), positive=True)
    for name in ("weight_decay", "meta_weight_decay", "clamp"):
        _checks.real(name, getattr(config, name), at_least=0.0)
    for name in ("epochs", "batch", "meta_rows"):
        if getattr(config, name) is not None:
            _checks.integer(name, getattr(config, name), 1, 2**31 - 1)
    _checks.integer("workers", config.workers, 0, 4096)
    _checks.integer("checkpoint_every", config.checkpoint_every, 0, 2**31 - 1)
    _check_device(config.device)


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    if device != "cuda":
        _checks.fail(ValueError, "device", "cpu or cuda", repr(device))
    import torch

    if not torch.cuda.is_available():
        _checks.fail(ValueError, "device", "cpu, for torch sees no CUDA device", repr(device))


def _check_resolved(config: CwermConfig) -> None:
    from tenfold.selection.reweight.extract import EXTRACTORS

    _checks.choice("extractor", config.extractor, EXTRACTORS)
    if not config.features and config.extractor != "pixels":
        if config.dataset == "digits":
            _checks.fail(ValueError, "extractor", "pixels for digits", repr(config.extractor))
        if not config.extractor_weights:
            expected = f"the .safetensors file of {config.extractor} (or --extractor pixels, or --features)"
            _checks.fail(ValueError, "extractor_weights", expected, "nothing")
    for name in ("extractor_weights", "features", "given_weights"):
        if getattr(config, name) and not Path(getattr(config, name)).is_file():
            raise FileNotFoundError(
                f"{name}: expected a file, got {getattr(config, name)}, which is not there"
            )
    if config.features and len(config.seeds) > 1 and config.dataset == "digits":
        _checks.fail(ValueError, "features", "one seed, for digits are parted anew by each", config.seeds)
    if "given" in config.methods and not config.given_weights:
        _checks.fail(ValueError, "given_weights", "a file of weights for the method `given`", "nothing")
    if config.meta == "given" and config.dataset != "arrays":
        _checks.fail(ValueError, "meta", "split or clean (only arrays hold x_meta)", repr(config.meta))
