"""Settings of the workflow ``zo``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from tenfold.llm import prompts

MAX_SEED = 2**43  # the seed of a permutation of the examples is 2**20 times as large
OPTIMIZERS = ("fzoo", "zo-sgd", "zo-adam")


@dataclass
class ZOConfig:
    """Fine-tune a language model with forward passes only (zeroth-order optimization).

    Fields left at None take the value of the preset, or the one that suits the optimizer. They are filled
    when the object is made: a stored config.yaml, and dataclasses.replace, keep every value of theirs, so
    another preset or optimizer changes nothing else there.
    """

    preset: Literal["default", "quick", "long"] = "default"
    """default: three seeds on the last block, then every parameter for a few steps; three to four minutes on
    two cores. quick: a smaller version, half a minute. long: every parameter, about a quarter of an hour."""

    model: str = "smollm2"
    """'smollm2' (embedded), or a folder or hub id of a Hugging Face causal language model."""

    data: str = "reviews"
    """'reviews' (embedded film reviews), a .tsv, .csv or .jsonl file with sentence and label, or a folder
    with train and dev files (GLUE's SST-2 folder as it is)."""

    template: str = "{text} It was"
    """Prompt; {text} stands for the example."""

    verbalizers: list[str] = field(default_factory=lambda: [" terrible", " great"])
    """Answer word of each class, one token each, the word of label 0 first."""

    optimizer: Literal["fzoo", "zo-sgd", "zo-adam"] = "fzoo"
    """fzoo (arXiv 2506.09034), zo-sgd (MeZO, arXiv 2305.17333) or zo-adam."""

    trainable: str | None = None
    """'last-block', 'last-N' or 'full'. With the first two, what enters the trained blocks is computed
    once."""

    steps: int | None = None
    """Optimizer steps of each seed."""

    batch_size: int | None = None
    """Examples per step."""

    lr: float | None = None
    """Learning rate."""

    eps: float = 1e-3
    """Size of the perturbation of each weight."""

    num_queries: int | None = None
    """Random directions per step (fzoo: 8, the others: 1)."""

    weight_decay: float = 0.0
    """Decoupled weight decay; biases and norm weights are left out."""

    restore: Literal["arithmetic", "exact"] = "arithmetic"
    """arithmetic: no extra memory; exact: keep one clean copy of the trained tensors, no rounding drift."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights. The loss is computed in float32 either way; bfloat16 rounds stochastically."""

    device: str = "cpu"
    """Where the model runs: 'cpu' or 'cuda'."""

    seeds: list[int] | None = None
    """One training run for each; accuracy is averaged over them."""

    train_size: int | None = None
    """Training examples, all classes together."""

    dev_size: int | None = None
    """Examples that choose the step whose weights are kept."""

    test_size: int | None = None
    """Held-out examples, used once before and once after training."""

    data_seed: int = 0
    """Chooses which examples go into which split."""

    eval_every: int | None = None
    """Steps between looks at the dev examples."""

    full_steps: int | None = None
    """Steps of a second phase that trains every parameter from the start again; 0 for none
    (always so where every parameter is trained already)."""

    full_batch_size: int | None = None
    """Examples per step of the second phase."""

    full_lr: float | None = None
    """Learning rate of the second phase."""

    memory: bool | None = None
    """Measure peak memory against back-propagation, in child processes."""

    max_length: int = 256
    """Longest prompt in tokens; longer ones are cut on their left."""

    max_minutes: float | None = None
    """Stop training when it has lasted this long (then the numbers depend on the machine); None for no
    limit."""

    save_seconds: float = 20.0
    """Seconds between saved states, from which --resume goes on."""

    def __post_init__(self) -> None:
        """Fill what was left at None and check everything.

        Raises:
            ValueError: a value is out of range; the message names the field.
        """
        _check_choice("preset", self.preset, tuple(_PRESETS))
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        asked = self.full_steps
        _fill(self, _PRESETS["default"] | _PRESETS[self.preset])
        suits = _SUITS[self.optimizer]
        own: dict[str, Any] = dict(suits["full" if self.trainable == "full" else "part"])
        if self.preset == "quick":
            own["steps"] = min(40, own["steps"])
        _fill(self, own | {"full_lr": suits["full"]["lr"]})
        if self.trainable == "full":
            if asked:
                raise ValueError(f"full_steps: expected 0 with trainable=full, got {asked!r}")
            self.full_steps = 0
        _check(self)


_PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "trainable": "last-block",
        "seeds": [0, 1, 2],
        "train_size": 256,
        "dev_size": 200,
        "test_size": 500,
        "eval_every": 10,
        "full_steps": 16,
        "full_batch_size": 8,
        "memory": True,
    },
    "quick": {
        "seeds": [0],
        "train_size": 128,
        "dev_size": 60,
        "test_size": 120,
        "full_steps": 2,
        "memory": False,
    },
    "long": {"trainable": "full", "seeds": [0], "eval_every": 20},
}
# Found by trial on the dev examples of the embedded reviews.
_SUITS: dict[str, dict[str, dict[str, Any]]] = {
    "fzoo": {
        "part": {"lr": 1.5e-2, "num_queries": 8, "batch_size": 64, "steps": 120},
        "full": {"lr": 4e-3, "num_queries": 8, "batch_size": 16, "steps": 160},
    },
    "zo-sgd": {
        "part": {"lr": 2e-3, "num_queries": 1, "batch_size": 64, "steps": 600},
        "full": {"lr": 5e-5, "num_queries": 1, "batch_size": 16, "steps": 600},
    },
    "zo-adam": {
        "part": {"lr": 3e-3, "num_queries": 1, "batch_size": 64, "steps": 600},
        "full": {"lr": 8e-4, "num_queries": 1, "batch_size": 16, "steps": 600},
    },
}


def _fill(config: ZOConfig, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if getattr(config, name) is None:
            setattr(config, name, list(value) if isinstance(value, list) else value)


def _check(config: ZOConfig) -> None:
    _check_text(config)
    for name in ("steps", "batch_size", "num_queries", "eval_every", "full_batch_size", "max_length"):
        _check_whole(name, getattr(config, name), 1)
    _check_whole("full_steps", config.full_steps, 0)
    for name in ("lr", "eps", "full_lr", "save_seconds"):
        value = getattr(config, name)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    decay = config.weight_decay
    if not (isinstance(decay, (int, float)) and math.isfinite(decay) and decay >= 0):
        raise ValueError(f"weight_decay: expected a number >= 0, got {decay!r}")
    if config.max_minutes is not None and not config.max_minutes > 0:
        raise ValueError(f"max_minutes: expected a number > 0 or None, got {config.max_minutes!r}")
    if config.optimizer == "fzoo" and config.num_queries == 1:
        raise ValueError(
            "num_queries: expected at least 2 for fzoo (its step size is a spread of losses), got 1"
        )
    if not config.seeds or not isinstance(config.seeds, (list, tuple)):
        raise ValueError(f"seeds: expected at least one seed in a list, got {config.seeds!r}")
    for seed in config.seeds:
        _check_whole("seeds", seed, 0)
        if seed >= MAX_SEED:
            raise ValueError(f"seeds: expected seeds below 2**43, got {seed}")
    if len(set(config.seeds)) != len(config.seeds):
        raise ValueError(f"seeds: expected different seeds, got {config.seeds}")
    _check_choice("restore", config.restore, ("arithmetic", "exact"))
    _check_choice("dtype", config.dtype, ("float32", "bfloat16"))
    _check_choice("device", config.device, ("cpu", "cuda"))
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu here, got 'cuda', but torch finds no CUDA device")
    for name in ("batch_size", "full_batch_size"):
        if getattr(config, name) > (config.train_size or 0):
            raise ValueError(
                f"{name}: expected at most train_size={config.train_size}, got {getattr(config, name)}"
            )


def _check_text(config: ZOConfig) -> None:
    """What is trained, on which examples and with which words."""
    if not re.fullmatch(r"last-block|last-[1-9][0-9]*|full", str(config.trainable)):
        raise ValueError(
            f"trainable: expected 'last-block', 'last-N' (N blocks) or 'full', got {config.trainable!r}"
        )
    words = config.verbalizers
    if not isinstance(words, (list, tuple)) or len(words) < 2 or not all(isinstance(w, str) for w in words):
        raise ValueError(f"verbalizers: expected at least two answer words in a list, got {words!r}")
    for name in ("train_size", "dev_size", "test_size"):
        _check_whole(name, getattr(config, name), len(words))  # one example of each class
    prompts.check_template(config.template)


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
