"""The tables of the zeroth-order benchmark (arXiv 2402.11592), each cell a run of the engine.

    tenfold run zo --tables all                                              tiny models, made on the spot
    tenfold run zo --tables accuracy,memory --model MODEL --data DIR --task rte --steps 20000

accuracy: optimizer x fine-tuning scheme.  alignment: template on and off.  memory: peak and time of a step
for every optimizer, back-propagation with and without checkpointing beside.  ablations: block-wise, hybrid,
sparse and other variants of ZO-SGD.  words: every optimizer on a bag of words (`tenfold.llm.bag_of_words`).

Without ``--model`` the models are small ones of the benchmark's families, pre-trained by back-propagation on
reviews that no split of the task holds, each followed by a rating sentence. In that text `great` is said
nearly twice as often as `terrible`: the model can tell reviews apart better than its answers show, for it
answers `great` too often, as the small instruct model of the default run does.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.llm import benchmark_memory, data, families, methods, schemes
from tenfold.llm.engine import Job, check
from tenfold.llm.sweep import run_swept
from tenfold.llm.zo_config import EMBEDDED, TINY_FORWARDS, ZOConfig
from tenfold.runs import RunFolder

__all__ = ["Cell", "Tables", "plan", "run"]

SMOLLM2 = "smollm2"
ZO_FORWARDS, FIRST_ORDER_STEPS = 40_000, 625  # where neither --forwards nor --steps was given
ALIGNED = ("sgd", "zo-sgd", "zo-adam")
REVIEW_LENGTH = 90  # letters; longer reviews are left out of pre-training

# Learning rates of the tiny models. For ZO-SGD, FZOO, ZO-Adam and FO-SGD, and for ft and LoRA of Sign, MMT,
# LOZO and ZO-Muon: the best of a grid of factors of three on the dev reviews, with another seed. The rest is
# carried over from ZO-SGD by the length of a step.
TINY_LR: dict[str, dict[str, float]] = {
    "sgd": {"ft": 3e-2, "lora": 3e-1, "prefix": 3.0, "prompt": 3e-1, "head": 3e-2},
    "adam": {"ft": 1e-3, "lora": 5e-3, "prefix": 1e-1, "prompt": 3e-2, "head": 3e-3},
    "adamw": {"ft": 1e-3, "lora": 5e-3, "prefix": 1e-1, "prompt": 3e-2, "head": 3e-3},
    "forward-grad": {"ft": 1e-3, "lora": 1e-2, "prefix": 1.0, "prompt": 1e-1, "head": 1e-3},
    "zo-sgd": {"ft": 1e-3, "lora": 1e-2, "prefix": 1.0, "prompt": 1e-1, "head": 1e-3},
    "zo-mmt": {"ft": 1e-4, "lora": 1e-3, "prefix": 1e-1, "prompt": 1e-2, "head": 1e-4},
    "zo-cons": {"ft": 1e-3, "lora": 1e-2, "prefix": 1.0, "prompt": 1e-1, "head": 1e-3},
    "zo-sign": {"ft": 1e-3, "lora": 1e-2, "prefix": 3e-1, "prompt": 3e-2, "head": 1e-3},
    "zo-adam": {"ft": 3e-3, "lora": 1e-2, "prefix": 1e-1, "prompt": 3e-2, "head": 3e-3},
    "radazo": {"ft": 6e-4, "lora": 2e-3, "prefix": 2e-2, "prompt": 3e-2, "head": 6e-4},
    "fzoo": {"ft": 3e-3, "lora": 3e-2, "prefix": 1.0, "prompt": 3e-2, "head": 3e-3},
    "lozo": {"ft": 3e-4, "lora": 3e-3, "prefix": 1.0, "prompt": 3e-2, "head": 3e-4},
    "lozo-m": {"ft": 3e-5, "lora": 3e-4, "prefix": 1e-1, "prompt": 3e-3, "head": 3e-5},
    "zo-muon": {"ft": 1e-1, "lora": 1e-1, "prefix": 1e-1, "prompt": 1e-1, "head": 3e-2},
    "sparse-mezo": {"ft": 1e-3, "lora": 1e-2, "prefix": 1.0, "prompt": 1e-1, "head": 1e-3},
    "hizoo": {"ft": 1e-3, "lora": 1e-2, "prefix": 1.0, "prompt": 1e-1, "head": 1e-3},
}
TINY_EPS = {"ft": 1e-3, "lora": 1e-2, "prefix": 1e-1, "prompt": 1e-2, "head": 1e-2}

# Where to begin with a real model: MeZO's recommended pairs for ZO-SGD, and for the others what keeps a step
# as long (momentum sums ten steps, Adam and sign steps have unit size). Sweep before believing a row.
REAL_EPS = {"ft": 1e-3, "lora": 1e-2, "prefix": 1e-1, "prompt": 1e-2, "head": 1e-3}
_ZO_SGD = {"ft": 1e-6, "lora": 5e-5, "prefix": 1e-2, "prompt": 1e-3, "head": 1e-6}
_SCALE = {"zo-mmt": 0.1, "lozo-m": 0.1, "lozo": 1.0, "zo-cons": 1.0, "forward-grad": 1.0, "sparse-mezo": 1.0}
_UNIT = {"ft": 1e-5, "lora": 1e-3, "prefix": 1e-2, "prompt": 1e-3, "head": 1e-5}
_OWN = {
    "sgd": {"ft": 1e-3, "lora": 1e-2, "prefix": 1e-2, "prompt": 1e-2, "head": 1e-3},
    "adam": {"ft": 1e-5, "lora": 3e-4, "prefix": 1e-2, "prompt": 1e-2, "head": 1e-4},
    "fzoo": {"ft": 5e-5, "lora": 1e-2, "prefix": 5e-2, "prompt": 2e-2, "head": 5e-5},
    "zo-muon": {"ft": 1e-2, "lora": 1e-2, "prefix": 1e-2, "prompt": 1e-2, "head": 1e-2},
}


@dataclass(frozen=True)
class Cell:
    """One run of a table: ``row`` and ``column`` name its place, ``family`` the model."""

    table: str
    family: str
    row: str
    column: str
    job: Job


@dataclass
class Tables:
    """What the report is written from: finished cells by table, memory rows, words rows, and where from."""

    config: ZOConfig
    cells: list[tuple[Cell, dict[str, Any]]]
    memory: list[dict[str, Any]]
    words: list[dict[str, Any]]
    models: dict[str, str]
    tiny: bool

    def of(self, table: str, family: str | None = None) -> list[tuple[Cell, dict[str, Any]]]:
        """The cells of a table, of one family or all; seeds of the same cell joined by :func:`joined`."""
        places: dict[tuple[str, str, str], list[tuple[Cell, dict[str, Any]]]] = {}
        for cell, found in self.cells:
            if cell.table == table and family in (None, cell.family):
                places.setdefault((cell.family, cell.row, cell.column), []).append((cell, found))
        return [(runs[0][0], joined([found for _, found in runs])) for runs in places.values()]


def joined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of the runs of several seeds: figures and counts are means, ``sd`` holds the standard
    deviations of the test figures (n - 1) and ``seeds`` their number."""
    first, count = runs[0], len(runs)

    def mean(part: str) -> dict[str, float]:
        return {key: sum(run[part][key] for run in runs) / count for key in first[part]}

    found = dict(first) | {part: mean(part) for part in ("test", "dev", "before")}
    found |= {"seeds": count, "sd": dict.fromkeys(first["test"], 0.0)}
    if count > 1:
        found["sd"] = {key: statistics.stdev(run["test"][key] for run in runs) for key in first["test"]}
        found["seconds"] = sum(run["seconds"] for run in runs) / count
        for part in ("steps", "queries", "backwards", "skipped", "trainable"):
            found[part] = round(sum(run[part] for run in runs) / count)
    return found


def run(config: ZOConfig, folder: RunFolder) -> dict[str, float | int]:
    """Make the tables that ``config.tables`` names; returns the numbers of ``metrics.json``.

    Every cell is kept in the run folder as soon as it is done: ``--resume`` goes on with the next one.
    """
    names = str(config.tables).split(",")
    tiny = is_tiny(config)
    check_plan(config)
    made = _models(config, folder, names) if tiny else {_label(config): _model(config)}
    deadline = None if config.max_minutes is None else time.monotonic() + 60 * config.max_minutes
    cells = plan(config, made, names)
    done = []
    for number, cell in enumerate(cells, 1):
        label = f"{cell.table} {number}/{len(cells)}: {cell.family}, {cell.row}, {cell.column}"
        done.append(
            (
                cell,
                run_swept(
                    cell.job,
                    folder,
                    config.sweep,
                    save_seconds=config.save_seconds,
                    deadline=deadline,
                    label=label,
                ),
            )
        )
    memory: list[dict[str, Any]] = []
    if "memory" in names:
        memory = benchmark_memory.measure(config, folder, made, tiny)
    words = _words(config, folder) if "words" in names else []
    from tenfold.llm.benchmark_report import write

    return write(Tables(config, done, memory, words, made, tiny), folder)


def is_tiny(config: ZOConfig) -> bool:
    """Whether the models are the ones made on the spot."""
    return config.model == SMOLLM2 and config.data == EMBEDDED and config.families != SMOLLM2


def plan(config: ZOConfig, made: dict[str, str], names: Sequence[str]) -> list[Cell]:
    """The cells of the tables asked for, in order; ``made`` is family (or model) -> folder or name."""
    makers = {"accuracy": _accuracy, "alignment": _alignment, "ablations": _ablations}
    seeds = config.seeds or [0]
    cells = [cell for name in names if name in makers for cell in makers[name](config, made)]
    if len(seeds) == 1:
        return cells
    return [_with_seed(cell, seed) for cell in cells for seed in seeds]


def _with_seed(cell: Cell, seed: int) -> Cell:
    job = dataclasses.replace(cell.job, seed=seed, key=f"{cell.job.key}-seed{seed}")
    return dataclasses.replace(cell, job=job)


def check_plan(config: ZOConfig) -> None:
    """Whether every cell of the tables asked for can be run, before the first one is.

    Raises:
        ValueError: settings of a cell that do not fit each other, or a table without cells.
    """
    names = str(config.tables).split(",")
    made = dict.fromkeys(_asked(config.families) or ["opt"], "") if is_tiny(config) else {_label(config): ""}
    cells = plan(config, made, names)
    for cell in cells:
        check(cell.job)
    for name in names:
        if name in ("accuracy", "alignment") and not any(cell.table == name for cell in cells):
            got = f"{config.optimizers or 'all'} with {config.schemes or 'all'}"
            raise ValueError(
                f"optimizers: expected some that fit the table {name} and its schemes, got {got}"
            )


# -- tables --------------------------------------------------------------------------------------------------


def _accuracy(config: ZOConfig, made: dict[str, str]) -> list[Cell]:
    chosen = _asked(config.optimizers) or [name for name in methods.METHODS if name != "logreg"]
    columns = _asked(config.schemes) or list(schemes.SCHEMES)
    cells = []
    for family in made:
        for name in chosen:
            if name == "none":
                cells.append(_cell(config, made, "accuracy", family, name, "ft", column="-"))
                continue
            fitting = [scheme for scheme in columns if name != "logreg" or scheme == "head"]
            cells += [_cell(config, made, "accuracy", family, name, scheme) for scheme in fitting]
        if _asked(config.optimizers) is None and "head" in columns and _has_words(config):
            cells.append(_cell(config, made, "accuracy", family, "logreg", "head"))
    return cells


def _alignment(config: ZOConfig, made: dict[str, str]) -> list[Cell]:
    from tenfold.llm import tasks

    if tasks.find(str(config.task)).versions < 2:
        raise ValueError(f"task: expected one with two templates for alignment, got {config.task!r}")
    chosen = [
        name
        for name in _asked(config.optimizers) or list(ALIGNED)
        if methods.find(name).kind in ("zo", "first-order", "forward")
    ]
    return [
        _cell(config, made, "alignment", family, name, "ft", column=column, version=version)
        for family in made
        for name in chosen
        for version, column in ((0, "with the template"), (1, "without"))
    ]


def _ablations(config: ZOConfig, made: dict[str, str]) -> list[Cell]:
    family = next(iter(made))
    cells = []
    for row, changes in VARIANTS:
        cells.append(
            _cell(config, made, "ablations", family, "zo-sgd", "ft", row=row, column="ft", **changes)
        )
    return cells


def _variant(**extra: Any) -> dict[str, Any]:
    return {"extra": extra}


VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("ZO-SGD", {}),
    ("block-wise, one block per layer", _variant(blocks={"level": "block"})),
    ("block-wise, all blocks at once", _variant(blocks={"level": "block", "order": "simultaneous"})),
    ("block-wise, attention and MLP", _variant(blocks={"level": "mlp-attn"})),
    ("block-wise, one per linear layer", _variant(blocks={"level": "linear"})),
    (
        "hybrid, Adam on the last layer",
        _variant(hybrid={"last": 1, "optimizer": "adam", "lr": "first-order"}),
    ),
    ("hybrid, SGD on the last layer", _variant(hybrid={"last": 1, "optimizer": "sgd", "lr": "first-order"})),
    ("sparse, 10 % masked", _variant(sparsity={"ratio": 0.1})),
    ("sparse, 50 % masked", _variant(sparsity={"ratio": 0.5})),
    ("sparse, 90 % masked", _variant(sparsity={"ratio": 0.9})),
    ("sparse, 50 % masked, by size overall", _variant(sparsity={"ratio": 0.5, "scope": "global"})),
    ("sparse, the largest 75 % masked", _variant(magnitude={"ratio": 0.75})),
    ("4 directions, mean", {"num_queries": 4}),
    ("4 directions, least squares", {"num_queries": 4, "extra": {"aggregate": "least_squares"}}),
    ("sign directions", _variant(dist="rademacher")),
    ("directions on the sphere", _variant(dist="sphere")),
    ("one-sided", _variant(one_sided=True)),
)
"""Rows of the ablations: name, and what differs from ZO-SGD with full fine-tuning."""


def _cell(
    config: ZOConfig,
    made: dict[str, str],
    table: str,
    family: str,
    name: str,
    scheme: str,
    *,
    row: str | None = None,
    column: str | None = None,
    **changes: Any,
) -> Cell:
    title = row or methods.find(name).title
    column = column or scheme
    key = "-".join(_slug(part) for part in (table, family, row or name, column))
    tiny = is_tiny(config)
    job = make_job(config, made[family], name, scheme, key=key, tiny=tiny)
    hybrid = changes.get("extra", {}).get("hybrid")
    if hybrid is not None and hybrid["lr"] == "first-order":
        lr = learning_rate(hybrid["optimizer"], "ft", tiny)
        changes = {"extra": {"hybrid": {**hybrid, "lr": lr}}}
    settings: dict[str, Any] = {"version": config.version, "extra": dict(job.extra)} | changes
    return Cell(table, family, title, column, dataclasses.replace(job, **settings))


def make_job(
    config: ZOConfig, model: str, name: str, scheme: str, *, key: str, tiny: bool, seed: int | None = None
) -> Job:
    """The job of a method and a scheme: settings of the configuration, what it leaves open filled in."""
    method = methods.find(name)
    eps = (TINY_EPS if tiny else REAL_EPS)[scheme]
    steps, forwards = _budget(config, method)
    length = steps or forwards or 1
    every = config.eval_every
    if every is not None and steps is None:
        every *= 2 * (config.num_queries or method.queries)
    extra: dict[str, Any] = {}
    if name == "zo-muon" and tiny:
        extra = {"rank": 8, "nu": 50}
    return Job(
        key=key, model=model, task=str(config.task), data=config.data, version=config.version, scheme=scheme,
        optimizer=name, lr=config.lr or learning_rate(name, scheme, tiny), eps=config.eps or eps,
        num_queries=config.num_queries, weight_decay=config.weight_decay,
        restore=None if config.restore == "auto" else config.restore, extra=extra, steps=steps,
        forwards=forwards, batch_size=config.batch_size or 16,
        looks=6 if every is None else max(1, length // every),
        checkpointing=config.checkpointing and method.kind == "first-order",
        seed=(config.seeds or [0])[0] if seed is None else seed, data_seed=config.data_seed,
        train_size=config.train_size, dev_size=config.dev_size, test_size=config.test_size or 1000,
        kshot=config.kshot or None, max_length=config.max_length, dtype=config.dtype, device=config.device,
        calibrate=config.calibrate, offload=config.offload,
    )  # fmt: skip


def learning_rate(name: str, scheme: str, tiny: bool) -> float:
    """Default learning rate of a method and a scheme."""
    if name in ("none", "logreg"):
        return 0.0
    if tiny:
        return TINY_LR[name][scheme]
    if name in _OWN or name == "adamw":
        return _OWN["adam" if name == "adamw" else name][scheme]
    if name in ("zo-adam", "radazo", "zo-sign"):
        return _UNIT[scheme]
    return _SCALE.get(name, 1.0) * _ZO_SGD[scheme]


def _budget(config: ZOConfig, method: methods.Method) -> tuple[int | None, int | None]:
    """(steps, forwards). Without back-propagation the default is the 40,000 evaluations of MeZO's 20,000
    steps, and in tables N steps stand for 2 N evaluations, however many a step of a method takes. With
    back-propagation the default is the paper's 625 steps, and otherwise a sixth of the evaluations. Tables of
    the embedded reviews have 400 evaluations by default. One run (``--task``) takes the steps it is asked
    for."""
    if method.kind in ("none", "probe"):
        return None, None
    if config.steps and config.mode == "task" and not config.forwards:
        return config.steps, None
    forwards = config.forwards or 2 * (config.steps or 0)
    if not forwards and config.embedded_tables:
        forwards = TINY_FORWARDS
    if method.kind == "first-order":
        return max(1, forwards // 6) if forwards else FIRST_ORDER_STEPS, None
    return None, forwards or ZO_FORWARDS


def _asked(text: str) -> list[str] | None:
    return text.split(",") if text else None


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text).strip("_").replace("__", "_") or "x"


def _has_words(config: ZOConfig) -> bool:
    return config.task in ("sst2", "rte", "cb", "boolq", "multirc", "wic", "wsc")


# -- models --------------------------------------------------------------------------------------------------


def _label(config: ZOConfig) -> str:
    return Path(config.model).name or "model"


def _model(config: ZOConfig) -> str:
    return config.model


def _models(config: ZOConfig, folder: RunFolder, names: Sequence[str]) -> dict[str, str]:
    """Family -> folder of its pre-trained tiny model, made where it is not there yet."""
    wanted = _asked(config.families) or ["opt"]
    if not set(names) & {"accuracy", "alignment", "ablations"}:
        return dict.fromkeys(wanted, "")
    found = {}
    for family in wanted:
        home = folder.path / "models" / family
        if not (home / "config.json").exists():
            folder.log(f"pre-training a tiny {family} by back-propagation")
            _pretrain(config, family, home)
        found[family] = str(home)
    return found


WORDS = (" terrible", " great", " good", " bad", " fun", " dull")
_SAID = {
    1: ((" great", 40), (" good", 30), (" fun", 30)),
    0: ((" great", 15), (" bad", 35), (" terrible", 30), (" dull", 20)),
}


def pretraining_texts(config: ZOConfig, masked: bool) -> list[str]:
    """Reviews that no split holds, up to 90 letters, each with a rating sentence; deterministic."""
    parts = data.load_splits(
        EMBEDDED, train=config.train_size or 512, dev=config.dev_size or 200, test=config.test_size or 500,
        seed=config.data_seed,
    )  # fmt: skip
    held = {example.text for part in (parts.train, parts.dev, parts.test) for example in part}
    rest = [e for e in data.read_reviews() if e.text not in held and len(e.text) <= REVIEW_LENGTH]
    chosen = random.Random(0)
    texts = []
    for example in rest:
        words, weights = zip(*_SAID[example.label], strict=True)
        texts.append(f"{example.text} It was{chosen.choices(words, weights)[0]}{'.' if masked else ''}")
    return texts


def _pretrain(config: ZOConfig, family: str, home: Path) -> None:
    masked = family == "roberta"
    texts = pretraining_texts(config, masked)
    # A masked model of this size that is to guess other words too stays at their frequencies in so few steps.
    tokenizer = families.make_tokenizer(texts, 2000, whole=WORDS)
    families.pretrained(
        family, texts, tokenizer, home, width=64, layers=2, batch_size=32, emphasis=2.0,
        **({"steps": 600, "emphasis_at": -2, "share": 0.0} if masked else {"steps": 900, "emphasis_at": -1}),
    )  # fmt: skip


def _words(config: ZOConfig, folder: RunFolder) -> list[dict[str, Any]]:
    """The bag-of-words table, one optimizer after the other, kept as they are done."""
    from tenfold.llm import bag_of_words

    saved = folder.load_state("words")
    rows: list[dict[str, Any]] = list(saved[0]["rows"]) if saved else []
    bags = bag_of_words.load_bags()
    wanted = bag_of_words.available()
    budget = config.forwards or 2 * (config.steps or 0) or ZO_FORWARDS
    with folder.progress(len(wanted), "words", done=len(rows)) as progress:
        for name in wanted[len(rows) :]:
            rows += bag_of_words.run([name], config.seeds or [0], bags=bags, evaluations=budget)
            folder.save_state("words", {"rows": rows})
            progress.advance(1, accuracy=rows[-1]["accuracy"])
    return rows
