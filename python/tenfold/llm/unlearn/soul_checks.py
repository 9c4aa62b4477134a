"""What is checked of the settings of ``soul`` before a model is loaded, beside the names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tenfold.llm.unlearn import methods
from tenfold.llm.unlearn.curvature import OPTIMIZERS
from tenfold.llm.unlearn.one_shot import SOLVERS
from tenfold.llm.unlearn.templates import check_template

if TYPE_CHECKING:
    from tenfold.llm.unlearn.soul_config import SoulConfig

__all__ = ["check_values", "soul_parts"]


def check_values(config: SoulConfig) -> None:
    """Numbers in their ranges, and texts that are no choice among names.

    Raises:
        ValueError: the setting that is wrong, named.
    """
    for name in ("gamma", "weight_decay", "clip", "save_seconds"):
        value = getattr(config, name)
        if value is not None and not (_is_number(value) and value >= 0):
            raise ValueError(f"{name}: expected a number >= 0, got {value!r}")
    for name in ("epochs", "teach_epochs", "forget_ratio"):
        value = getattr(config, name)
        if value is not None and not (_is_number(value) and value > 0):
            raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    for name, least in (("limit", 1), ("max_length", 2), ("dataset_seed", 0)):
        value = getattr(config, name)
        if value is not None and not (_is_whole(value) and value >= least):
            raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
    for seed in config.seeds or []:
        if not (_is_whole(seed) and 0 <= seed < 2**32):
            raise ValueError(f"seeds: expected whole numbers in [0, 2^32), got {config.seeds!r}")
    if config.lr is not None and not config.lr:
        raise ValueError("lr: expected numbers > 0, got []")
    _check_trainable(str(config.trainable))
    if config.template:
        check_template(config.template, _AnyTokenizer)
    for name in str(config.full_evaluation).split(","):
        if name not in ("best", "all", *OPTIMIZERS, *SOLVERS):
            expected = f"best, all or names of {', '.join((*OPTIMIZERS, *SOLVERS))}"
            raise ValueError(f"full_evaluation: expected {expected}, got {config.full_evaluation!r}")
    _check_options(config)


def soul_parts(stored: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """``overall``, ``unlearn`` and ``dataset`` of a configuration of SOUL's repository.

    Raises:
        ValueError: not an object of objects; a number or text that is none; betas that its optimizer here has
            not.
    """
    if not isinstance(stored, dict):
        raise ValueError(f"soul_config: expected a JSON object, got {type(stored).__name__}")
    found = []
    for name in ("overall", "unlearn", "dataset"):
        part = stored.get(name, {})
        if not isinstance(part, dict):
            raise ValueError(f"soul_config: expected an object under {name!r}, got {type(part).__name__}")
        found.append(part)
    overall, unlearn, dataset = found
    numbers = (
        (unlearn, ("lr", "num_epochs", "weight_decay", "gradient_accumulation_steps")),
        (dataset, ("batch_size", "forget_ratio", "dataset_seed")), (overall, ("seed",)),
    )  # fmt: skip
    for part, names in numbers:
        for name in names:
            if name in part and not _is_number(part[name]):
                raise ValueError(f"soul_config: expected a number as {name!r}, got {part[name]!r}")
    for part, name in (
        (overall, "model_name"),
        (unlearn, "unlearn_method"),
        (dataset, "forget_dataset_name"),
    ):
        if not isinstance(part.get(name, ""), str):
            raise ValueError(f"soul_config: expected a text as {name!r}, got {part[name]!r}")
    settings = _own_numbers(unlearn, "sophia_params", ("rho",))
    _own_numbers(unlearn, unlearn.get("unlearn_method", ""), ("gamma",))
    betas = (settings.get("betas_low", 0.9), settings.get("betas_high", 0.95))
    if unlearn.get("sophia") and betas != (0.9, 0.95):
        raise ValueError(f"soul_config: expected betas 0.9 and 0.95 in 'sophia_params', got {betas}")
    return overall, unlearn, dataset


def _own_numbers(unlearn: dict[str, Any], name: str, numbers: tuple[str, ...]) -> dict[str, Any]:
    """The settings under a name, {} where there are none."""
    settings = unlearn.get(name, {})
    if not isinstance(settings, dict):
        raise ValueError(f"soul_config: expected an object under {name!r}, got {type(settings).__name__}")
    for key in numbers:
        if key in settings and not _is_number(settings[key]):
            raise ValueError(f"soul_config: expected a number as {key!r}, got {settings[key]!r}")
    return settings


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_trainable(trainable: str) -> None:
    """How many blocks there are is known, and checked, once the model is there."""
    number = trainable.removeprefix("last-")
    if trainable not in ("full", "lora", "last-block") and not (
        number != trainable and number.isdigit() and int(number) >= 1
    ):
        raise ValueError(f"trainable: expected 'full', 'last-N' or 'lora', got {trainable!r}")


class _AnyTokenizer:
    """Whether the tokenizer has a chat template is known once it is there."""

    chat_template = "chat"


def _check_options(config: SoulConfig) -> None:
    for name, value in config.options.items():
        known = methods.find(config.methods[0]).defaults
        if name not in known:
            expected = f"{', '.join(known) or 'none'} for {config.methods[0]}"
            raise ValueError(f"options: expected {expected}, got {name!r}")
        positive = name == "beta" and config.methods[0] in ("npo", "dpo", "simnpo")
        if isinstance(value, float) and not (math.isfinite(value) and (value > 0 or not positive)):
            expected = "a number > 0" if positive else "a finite number"
            raise ValueError(f"options: expected {expected} as {name}, got {value!r}")
