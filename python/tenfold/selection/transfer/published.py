"""Settings files (JSON) of the published code, taken unchanged: network, data and training.

    settings = read_published("configs/imagenet_train_from_scratch/rn18_16.json")
    settings.kind, settings.architecture, settings.recipe.epochs           "pretrain", "resnet18", 16

Sections: network, dataset, train (optimizer, scheduler, resolution), validation or test, adv, distributed;
and cfg of the mapping scripts. A key that none of the scripts knows is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tenfold import _checks
from tenfold.runs.files import read_json
from tenfold.selection.transfer.attack import Attack
from tenfold.selection.transfer.recipe import Recipe

__all__ = ["Mapping", "Settings", "read_mapping", "read_published"]

Kind = Literal["pretrain", "finetune", "scratch"]


@dataclass(frozen=True)
class Settings:
    """What a settings file asks for.

    Attributes:
        kind: "pretrain" on the source, "finetune" (`method` lp or ff) or "scratch" on the target.
        architecture, blurpool, weights, method: of the network.
        train_path, test_path, workers: of the data; `train_indices`, `test_indices` name index files.
        recipe, seed: of the training.
        world_size: processes that the file was written for (torchrun starts them here).
    """

    kind: Kind
    architecture: str
    recipe: Recipe
    seed: int
    train_path: str
    test_path: str
    blurpool: bool = False
    weights: str | None = None
    method: Literal["lp", "ff"] = "ff"
    workers: int = 0
    train_indices: str | None = None
    test_indices: str | None = None
    world_size: int = 1


@dataclass(frozen=True)
class Mapping:
    """What a settings file of the mapping scripts asks for."""

    train_labels: str
    val_labels: str
    architecture: str
    weights: str
    retained: tuple[int, ...]


_KNOWN = {
    "exp": {"identifier"},
    "network": {"architecture", "blurpool", "pretrained_ckpt", "finetune_method"},
    "dataset": {
        "train_path", "val_path", "test_path", "num_workers", "in_memory", "prune", "indices.training",
        "indices.testing",
    },
    "train": {
        "seed", "epoch", "batch_size", "distributed", "label_smoothing", "scheduler_type",
        "progressive_resize", "optimizer.type", "optimizer.lr", "optimizer.weight_decay",
        "optimizer.momentum",
        "scheduler.step.step_ratio", "scheduler.step.step_size", "scheduler.cyclic.lr_peak_epoch",
        "scheduler.cosine_with_warmup.warmup_epoch", "scheduler.cosine_with_warmup.starting_factor",
        *(f"{group}.{key}" for group in ("resolution", "progressive_resolution")
          for key in ("min_res", "max_res", "end_ramp", "start_ramp")), "static_resolution.res",
    },
    "validation": {"batch_size", "resolution", "lr_tta"},
    "test": {"batch_size", "resolution", "lr_tta"},
    "adv": {"epsilon", "attack_step"},
    "logging": {"dry_run", "path", "save_intermediate_frequency"},
    "distributed": {"world_size", "address", "port"},
}  # fmt: skip


def read_published(path: str | Path) -> Settings:
    """Settings of a training.

    The default optimiser, where a file names none, is the one of the script that it is for: SGD for
    pretraining and training from scratch, Adam for fine-tuning. Adversarial settings (section adv, or a
    folder named adv_...) attack with epsilon / 255.

    Raises:
        ValueError: no JSON, an unknown key, or a value that is missing or out of range (named).
    """
    path = Path(path)
    flat = _flat(path, read_json(path))
    kind: Kind = "pretrain"
    if "network.finetune_method" in flat:
        kind = "finetune"
    elif "dataset.val_path" not in flat:
        kind = "scratch"
    need = _Needed(path, flat)
    method = flat.get("network.finetune_method", "ff")
    _checks.choice(f"{path}: network.finetune_method", method, ("lp", "ff"))
    recipe = _recipe(need, flat, kind, method)
    if kind == "pretrain" and ("adv.epsilon" in flat or "adv_" in path.parent.name):
        steps = int(flat.get("adv.attack_step") or 3)
        recipe = replace(recipe, attack=Attack(float(flat.get("adv.epsilon") or 3.0) / 255, steps))
    prune = bool(flat.get("dataset.prune"))
    return Settings(
        kind, str(need("network.architecture")), recipe, int(need("train.seed")),
        str(need("dataset.train_path")),
        str(need("dataset.val_path" if kind == "pretrain" else "dataset.test_path")),
        bool(flat.get("network.blurpool")), flat.get("network.pretrained_ckpt"), method,
        int(flat.get("dataset.num_workers") or 0),
        flat.get("dataset.indices.training") if prune else None,
        flat.get("dataset.indices.testing") if prune else None,
        int(flat.get("distributed.world_size") or 1) if flat.get("train.distributed") else 1,
    )  # fmt: skip


def _recipe(need: _Needed, flat: dict[str, Any], kind: Kind, method: str) -> Recipe:
    given = flat.get("train.optimizer.type") or ("Adam" if kind == "finetune" else "SGD")
    _checks.choice(f"{need.path}: train.optimizer.type", given, ("SGD", "Adam", "AdamW"))
    ramped = kind == "pretrain" or bool(flat.get("train.progressive_resize"))
    group = "train.resolution" if kind == "pretrain" else "train.progressive_resolution"
    if ramped:
        low, high = int(need(f"{group}.min_res")), int(need(f"{group}.max_res"))
        ramp = (int(need(f"{group}.start_ramp")), int(need(f"{group}.end_ramp")))
    else:
        low = high = int(need("train.static_resolution.res"))
        ramp = (0, 1)
    test = "validation" if kind == "pretrain" else "test"
    scheduler = str(need("train.scheduler_type"))
    of = f"train.scheduler.{scheduler}"
    made: dict[str, Any] = {}
    if scheduler == "cyclic":
        made["peak_epoch"] = int(flat.get(f"{of}.lr_peak_epoch") or 2)
    elif scheduler == "cosine_with_warmup":
        made["warmup_epochs"] = int(need(f"{of}.warmup_epoch"))
        made["warmup_factor"] = float(need(f"{of}.starting_factor"))
    elif scheduler == "step":
        made["step_epochs"] = int(flat.get(f"{of}.step_size") or 30)
        made["step_ratio"] = float(flat.get(f"{of}.step_ratio") or 0.1)
    optimizer: Any = given.lower()
    return Recipe(
        epochs=int(need("train.epoch")), batch=int(need("train.batch_size")), optimizer=optimizer,
        lr=float(need("train.optimizer.lr")), momentum=float(flat.get("train.optimizer.momentum", 0.9)),
        weight_decay=float(need("train.optimizer.weight_decay")), scheduler=scheduler,  # type: ignore[arg-type]
        label_smoothing=float(flat.get("train.label_smoothing") or 0.0), resolution=low, max_resolution=high,
        ramp=ramp, augment=method == "ff" or kind != "finetune",
        test_resolution=int(flat.get(f"{test}.resolution") or 224),
        test_share=224 / 256, test_flip=bool(flat.get(f"{test}.lr_tta")),
        test_batch=int(flat.get(f"{test}.batch_size") or 512),
        train_mode=not (kind == "finetune" and method == "lp"), **made,
    )  # fmt: skip


def read_mapping(path: str | Path) -> Mapping:
    """Settings of the mapping scripts (section cfg)."""
    path = Path(path)
    document = read_json(path)
    cfg = document.get("cfg") if isinstance(document, dict) else None
    if not isinstance(cfg, dict):
        _checks.fail(ValueError, str(path), "a section cfg", "none")
    need = _Needed(path, {f"cfg.{key}": value for key, value in cfg.items()})
    numbers = str(need("cfg.retain_class_nums")).split(",")
    if not all(n.strip().isdigit() for n in numbers):
        _checks.fail(ValueError, f"{path}: cfg.retain_class_nums", "numbers with commas between", numbers)
    return Mapping(
        str(need("cfg.source_train_label_path")), str(need("cfg.source_val_label_path")),
        str(need("cfg.architecture")), str(need("cfg.pretrained_ckpt")), tuple(int(n) for n in numbers),
    )  # fmt: skip


@dataclass(frozen=True)
class _Needed:
    path: Path
    flat: dict[str, Any]

    def __call__(self, key: str) -> Any:
        value = self.flat.get(key)
        if value is None:
            _checks.fail(ValueError, str(self.path), f"a value of {key}", "none")
        return value


def _flat(path: Path, document: Any) -> dict[str, Any]:
    """{"train.optimizer.lr": 0.5, ...}; unknown keys are refused."""
    if not isinstance(document, dict):
        _checks.fail(ValueError, str(path), "an object of sections", type(document).__name__)
    found: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            else:
                found[f"{prefix}{key}"] = value

    walk("", document)
    for key in found:
        section, _, rest = key.partition(".")
        if rest not in _KNOWN.get(section, set()):
            _checks.fail(ValueError, str(path), "keys of the published scripts", repr(key))
    return found
