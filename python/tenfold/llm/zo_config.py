"""Settings of the workflow ``zo``."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold.llm import prompts
from tenfold.llm.data import EMBEDDED

MAX_SEED = 2**43  # the seed of a permutation of the examples is 2**20 times as large
OPTIMIZERS = (
    "fzoo",
    "zo-sgd",
    "zo-adam",
)  # of the embedded default; the engine knows those of methods.METHODS
TABLES = ("accuracy", "alignment", "memory", "ablations")
"""What `--tables all` stands for; "words" is made on request only."""


@dataclass
class ZOConfig:
    """Fine-tune a language model with forward passes only (zeroth-order optimization).

    Three commands in one: the embedded default; with --task one run of any task, scheme and optimizer; with
    --tables the benchmark's tables.

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
    with train and dev files (GLUE's SST-2 folder as it is). With --task or --tables: 'reviews', or a folder
    with the task's published files."""

    task: str = ""
    """One run of this task: sst2 rte cb boolq multirc wic wsc copa winogrande record squad drop."""

    tables: str = ""
    """Tables to make, with commas: accuracy, alignment, memory, ablations, or all; words on request (logistic
    regression on a bag of words, every optimizer)."""

    version: int = 0
    """Template of the task: 0 is the benchmark's, others its ablations."""

    scheme: str = ""
    """With --task: ft, lora, prefix, prompt or head; ft if left empty."""

    schemes: str = ""
    """With --tables: the columns, with commas; all five if left empty."""

    optimizers: str = ""
    """With --tables: the rows, with commas; all if left empty."""

    families: str = ""
    """With --tables and no --model: tiny models that are made and pre-trained first, with commas: roberta
    opt llama vicuna mistral; or smollm2 alone, the embedded model. Left empty: opt."""

    forwards: int = 0
    """With --task or --tables: budget of each zeroth-order run in evaluations of the loss, in place of
    --steps; 0 for the default: 40,000, in tables of the embedded reviews 400 (the table of words: 40,000)."""

    checkpointing: bool = False
    """With --task and back-propagation: compute activations again instead of keeping them."""

    calibrate: bool = False
    """With --task or --tables: subtract each option's score behind the task's domain string."""

    kshot: int = 0
    """With --task or --tables: k training examples of each class (masked models' few-shot protocol); 0 for
    all."""

    template: str = "{text} It was"
    """Prompt; {text} stands for the example."""

    verbalizers: list[str] = field(default_factory=lambda: [" terrible", " great"])
    """Answer word of each class, one token each, the word of label 0 first."""

    offload: str = ""
    """With --task: a new folder, on a disk with room for the model, for a working copy of its weights, of
    which one block at a time is in memory (arXiv 2503.12668). For a local model folder, ft and zo-sgd. The
    copy is deleted at the end."""

    optimizer: str = ""
    """fzoo (arXiv 2506.09034), zo-sgd (MeZO, arXiv 2305.17333) or zo-adam. With --task also sgd adam adamw
    logreg none forward-grad zo-mmt zo-cons zo-sign radazo lozo lozo-m zo-muon sparse-mezo hizoo. Left empty:
    fzoo, with --offload zo-sgd."""

    trainable: str | None = None
    """'last-block', 'last-N' or 'full'. With the first two, what enters the trained blocks is computed
    once."""

    steps: int | None = None
    """Optimizer steps of each seed. With --tables: steps of ZO-SGD; every method without back-propagation has
    twice as many evaluations of the loss, back-propagation a sixth of these as steps."""

    batch_size: int | None = None
    """Examples per step."""

    lr: float | None = None
    """Learning rate."""

    sweep: list[float] = field(default_factory=list)
    """With --task or --tables: factors on the learning rate, e.g. [0.1, 1, 10]. Each is trained for the whole
    budget, the one with the lowest dev loss is run again and alone scored on test."""

    eps: float | None = None
    """Size of the perturbation of each weight; None: 1e-3 (with lora, prefix and head 1e-2 or 1e-1)."""

    num_queries: int | None = None
    """Random directions per step (fzoo: 8, the others: 1)."""

    weight_decay: float = 0.0
    """Decoupled weight decay; biases and norm weights are left out."""

    restore: Literal["arithmetic", "exact", "auto", "dual"] = "arithmetic"
    """arithmetic: no extra memory; exact: keep one clean copy of the trained tensors, no rounding drift. With
    --task or --tables also dual (weights never written in a probe) and auto; arithmetic then means auto."""

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
        self.optimizer = self.optimizer or ("zo-sgd" if self.offload else "fzoo")
        if self.mode != "demo":
            fill_engine(self)
            return
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("restore", self.restore, ("arithmetic", "exact"))
        for name, wanted in _ENGINE_ONLY.items():
            if getattr(self, name) != wanted:
                where = "task" if name == "offload" else "task or tables"
                raise ValueError(f"{name}: expected it with {where}, got {getattr(self, name)!r}")
        if self.eps is None:
            self.eps = 1e-3
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

    @property
    def mode(self) -> str:
        """``"demo"`` (the embedded default), ``"task"`` (one run) or ``"tables"``."""
        if self.tables:
            return "tables"
        return "task" if self.task else "demo"

    @property
    def embedded_tables(self) -> bool:
        """Whether tables are made on the embedded reviews and no model of the user's."""
        return self.mode == "tables" and self.model == "smollm2" and self.data == EMBEDDED


_ENGINE_ONLY: dict[str, Any] = {
    "scheme": "", "schemes": "", "optimizers": "", "families": "", "forwards": 0, "kshot": 0,
    "version": 0, "checkpointing": False, "calibrate": False, "sweep": [], "offload": "",
}  # fmt: skip
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
# With --task and --tables. The protocol's sizes are those of the task (None); 20,000 steps are MeZO's.
_ONE: dict[str, Any] = {"seeds": [0], "batch_size": 16, "test_size": 1000, "memory": False}
_PROTOCOL: dict[str, Any] = _ONE | {"memory": True}
_TINY: dict[str, Any] = {
    "seeds": [0], "batch_size": 32, "train_size": 512, "dev_size": 200, "test_size": 500, "memory": True,
}  # fmt: skip
TINY_FORWARDS = 400
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


def fill_engine(config: ZOConfig) -> None:
    """Check and fill the settings of a run with ``task`` or ``tables``; what depends on method and scheme is
    left at None and filled for each run.

    Raises:
        ValueError: a value is out of range; the message names the field.
    """
    from tenfold.llm import families, methods, schemes, tasks

    if config.tables:
        names = listed("tables", config.tables, (*TABLES, "words"), everything=TABLES)
        config.tables = ",".join(names)
        config.task = config.task or "sst2"
        if config.seeds is None:
            config.seeds = [0, 1, 2] if names == ["words"] else [0]
    task = tasks.find(config.task)
    task.check_version(config.version)
    config.scheme = config.scheme or "ft"
    _check_choice("scheme", config.scheme, schemes.SCHEMES)
    _check_choice("optimizer", config.optimizer, tuple(methods.METHODS))
    _check_choice("restore", config.restore, ("arithmetic", "exact", "auto", "dual"))
    if config.restore == "arithmetic":
        config.restore = "auto"
    _refuse_unused(config)
    if config.offload:
        _check_offload(config)
    for name, known in (("schemes", schemes.SCHEMES), ("optimizers", tuple(methods.METHODS)),
                        ("families", (*families.FAMILIES, "smollm2"))):  # fmt: skip
        if getattr(config, name):
            setattr(config, name, ",".join(listed(name, getattr(config, name), known)))
    if config.data == EMBEDDED and task.name != "sst2":
        raise ValueError(f"data: expected a folder with the files of {task.name}, got {config.data!r}")
    _fill(config, _TINY if config.embedded_tables else _PROTOCOL if config.tables else _ONE)
    for name in ("forwards", "kshot"):
        _check_whole(name, getattr(config, name), 0)
    for name in ("steps", "batch_size", "num_queries", "eval_every", "max_length", "train_size", "dev_size",
                 "test_size"):  # fmt: skip
        if getattr(config, name) is not None:
            _check_whole(name, getattr(config, name), 1)
    for factor in config.sweep:
        if not (isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0):
            raise ValueError(f"sweep: expected factors > 0, got {config.sweep!r}")
    if len(set(config.sweep)) < len(config.sweep):
        raise ValueError(f"sweep: expected each factor once, got {config.sweep!r}")
    for name in ("lr", "eps", "save_seconds", "max_minutes"):
        value = getattr(config, name)
        if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    _check_shared(config)


def _refuse_unused(config: ZOConfig) -> None:
    """What only another way of running reads."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    for name in ("trainable", "template", "full_steps", "full_batch_size", "full_lr"):
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{name}: expected it without task and tables, got {getattr(config, name)!r}")
    for name in ("schemes", "optimizers", "families") if not config.tables else ():
        if getattr(config, name):
            raise ValueError(f"{name}: expected it with tables, got {getattr(config, name)!r}")
    if config.checkpointing and not config.tables and config.optimizer not in ("sgd", "adam", "adamw"):
        raise ValueError(f"checkpointing: expected sgd, adam or adamw, got {config.optimizer!r}")


def _check_offload(config: ZOConfig) -> None:
    """What a model whose weights stay on disk can be trained with."""
    if config.tables:
        raise ValueError(f"offload: expected it with task alone, got tables={config.tables!r} too")
    for name, fits in (("optimizer", ("zo-sgd",)), ("scheme", ("ft",)), ("restore", ("auto", "exact"))):
        if getattr(config, name) not in fits:
            got = getattr(config, name)
            raise ValueError(f"{name}: expected {' or '.join(fits)} with offload, got {got!r}")
    if config.sweep:
        raise ValueError(f"sweep: expected none with offload (a run for each rate), got {config.sweep!r}")
    if not (Path(config.model) / "config.json").is_file():
        expected = "a local folder with config.json and safetensors with offload"
        raise ValueError(f"model: expected {expected}, got {config.model!r}")


def listed(name: str, text: str, known: tuple[str, ...], everything: tuple[str, ...] = ()) -> list[str]:
    """The names in a text with commas, each once, in the order given.

    Raises:
        ValueError: an unknown name, or none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return list(everything or known)
    for word in words:
        if word not in known:
            raise ValueError(f"{name}: expected some of {', '.join(known)}, or all, got {word!r}")
    if not words:
        raise ValueError(f"{name}: expected at least one of {', '.join(known)}, got {text!r}")
    return list(dict.fromkeys(words))


def _check(config: ZOConfig) -> None:
    _check_text(config)
    for name in ("steps", "batch_size", "num_queries", "eval_every", "full_batch_size", "max_length"):
        _check_whole(name, getattr(config, name), 1)
    _check_whole("full_steps", config.full_steps, 0)
    for name in ("lr", "eps", "full_lr", "save_seconds"):
        value = getattr(config, name)
        if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    if config.max_minutes is not None and not config.max_minutes > 0:
        raise ValueError(f"max_minutes: expected a number > 0 or None, got {config.max_minutes!r}")
    if config.optimizer == "fzoo" and config.num_queries == 1:
        raise ValueError(
            "num_queries: expected at least 2 for fzoo (its step size is a spread of losses), got 1"
        )
    _check_choice("restore", config.restore, ("arithmetic", "exact"))
    _check_shared(config)
    for name in ("batch_size", "full_batch_size"):
        if getattr(config, name) > (config.train_size or 0):
            raise ValueError(
                f"{name}: expected at most train_size={config.train_size}, got {getattr(config, name)}"
            )


def _check_shared(config: ZOConfig) -> None:
    """What every way of running has."""
    decay = config.weight_decay
    if not (isinstance(decay, (int, float)) and math.isfinite(decay) and decay >= 0):
        raise ValueError(f"weight_decay: expected a number >= 0, got {decay!r}")
    if not config.seeds or not isinstance(config.seeds, (list, tuple)):
        raise ValueError(f"seeds: expected at least one seed in a list, got {config.seeds!r}")
    for seed in config.seeds:
        _check_whole("seeds", seed, 0)
        if seed >= MAX_SEED:
            raise ValueError(f"seeds: expected seeds below 2**43, got {seed}")
    if len(set(config.seeds)) != len(config.seeds):
        raise ValueError(f"seeds: expected different seeds, got {config.seeds}")
    _check_choice("dtype", config.dtype, ("float32", "bfloat16"))
    _check_choice("device", config.device, ("cpu", "cuda"))
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu here, got 'cuda', but torch finds no CUDA device")


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
