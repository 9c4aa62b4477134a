"""Workflow ``unlearncanvas``: erasers scored by what edited models draw of every style with every object.

    tenfold run unlearncanvas                                       the embedded default: the mini canvas
    tenfold run unlearncanvas --methods '[uce, my.module:MyEraser]' --targets '[all]'
    tenfold run unlearncanvas --model path/to/finetuned-sd --canvas unlearncanvas --data path/to/UnlearnCanvas
        --style_judge path/to/vit-styles --object_judge path/to/vit-objects --targets '[Van_Gogh, Dogs]'
        --device cuda

Every model is edited, draws its answers and is judged, in processes side by side; edits, pictures and
judgements are kept as they are made, so that an interrupted run goes on.

Paper: arXiv 2402.11846.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle, load_bundle
from tenfold.diffusion.canvas.answers import REFERENCE_SAMPLING, AnswerSet, answer_set
from tenfold.diffusion.canvas.files import read_answers_json, write_answers_json
from tenfold.diffusion.canvas.judging import JudgeCard, Predictions, judge_answers
from tenfold.diffusion.canvas.keys import answer_keys, budget_keys, pair_keys
from tenfold.diffusion.canvas.scores import Costs, Score, score
from tenfold.diffusion.canvas.tasks import (
    FinerScore,
    RobustScore,
    SequentialScore,
    finer_scores,
    robust_scores,
    sequential_scores,
)
from tenfold.diffusion.canvas.vocabulary import Canvas
from tenfold.diffusion.erase import Concept, Edit, canvas_concept, pair_concept
from tenfold.diffusion.unlearncanvas_config import UnlearnCanvasConfig, label_of
from tenfold.diffusion.unlearncanvas_sources import (
    check_data,
    check_judges,
    distances_of,
    features_of,
    judges_of,
    pairs_of,
    pictures_of,
    transfer_features_of,
)
from tenfold.runs import RunFolder, require
from tenfold.runs.executor import run_jobs

__all__ = ["BASE", "Outcome", "Result", "Single", "UnlearnCanvasConfig", "benchmark", "run"]

BASE = "base"
Job = tuple[str, str, str]
"""("base" | "single" | "finer" | "sequential" | "robust" | "transfer", method, target)."""


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass
class Single:
    """One edited model. costs: of making it. distances: "fid", "kid" and "cmmd" as {"name", "value", "n"}."""

    method: str
    target: str
    predictions: Predictions
    answers: Path
    costs: Costs | None = None
    cpu_seconds: float = 0.0
    distances: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """Everything that the report is written from. singles: of every method and target, in the order of the
    config. robust: (method, target, score, prompts that brought it back). transfer: method -> "styles",
    "objects" and "overall" losses of style transfer. failures: (what was not made, why); a method is in the
    others only with all of its targets."""

    config: UnlearnCanvasConfig
    canvas: Canvas
    base: Single | None = None
    cards: tuple[JudgeCard | None, JudgeCard | None] = (None, None)
    singles: list[Single] = field(default_factory=list)
    finer: list[FinerScore] = field(default_factory=list)
    sequential: dict[str, SequentialScore] = field(default_factory=dict)
    robust: list[tuple[str, str, RobustScore, list[str]]] = field(default_factory=list)
    transfer: dict[str, dict[str, Any]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def scores(self) -> list[Score]:
        """UA, IRA and CRA of every edited model, with what changed against the base model."""
        assert self.base is not None
        return [
            score(
                one.predictions, one.target, seed_images=self.config.seed_images, cra=self.config.cra,
                base=self.base.predictions, costs=one.costs, fid=one.distances.get("fid"),
            )
            for one in self.singles
        ]  # fmt: skip

    def base_scores(self) -> list[Score]:
        """The same of the base model, for each target: where UA starts."""
        assert self.base is not None
        return [
            score(self.base.predictions, target, seed_images=self.config.seed_images, cra=self.config.cra)
            for target in self.config.targets
        ]


def benchmark(
    config: UnlearnCanvasConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = (config or UnlearnCanvasConfig()).resolved()
    return run(config, RunFolder.create("unlearncanvas", config, out, resume))


def run(config: UnlearnCanvasConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a setting, a file or a model is wrong (named).
        RuntimeError: a loss or a picture is not finite, or a worker died.
        ModuleNotFoundError: diffusers, transformers, scikit-learn or joblib is not installed.
    """
    config = config.resolved()
    require("diffusers", "transformers", "sklearn", "skimage", "joblib")
    check_judges(config)
    features_of(config)
    check_data(config)
    if config.transfer:
        transfer_features_of(config)
    workers = config.workers if config.device == "cpu" else config.workers or 1
    states: dict[Job, dict[str, Any]] = {}
    rounds = jobs_of(config)
    count = sum(map(len, rounds))
    for jobs in rounds:
        for job in jobs:
            saved = folder.load_state(_key(job))
            if saved is not None:
                states[job] = saved[0]
    with folder.progress(count, "models", done=len(states)) as progress:
        for jobs in rounds:  # an attack needs the model that the round before has made
            todo = [job for job in jobs if job not in states]
            for job, state in run_jobs(partial(tried, config, str(folder.path)), todo, workers=workers):
                if "error" in state:  # not kept: a resumed run tries again
                    folder.log(f"{_said(job)}: {state['error']}")
                else:
                    folder.save_state(_key(job), state)
                states[job] = state
                progress.advance()
    outcome = gathered(config, folder.path, states)
    for doubt in outcome.doubts:
        folder.log(f"warning: {doubt}")
    from tenfold.diffusion.unlearncanvas_report import write

    return Result(write(outcome, folder), folder.path)


def jobs_of(config: UnlearnCanvasConfig) -> list[list[Job]]:
    """All models that are made, in rounds; the longest first."""
    first: list[Job] = []
    if config.sequential:
        first += [("sequential", method, "") for method in config.sequential_methods]
    first += [("base", BASE, "")]
    slow = sorted(config.methods, key=lambda name: name in ("uce", "seot"))
    first += [("single", method, target) for method in slow for target in config.targets]
    first += [("finer", method, pair) for method in config.finer_methods for pair in config.finer or ()]
    first += [("transfer", name, "") for name in config.transfer]
    second: list[Job] = [
        ("robust", m, target) for m in config.robust_methods for target in config.robust or ()
    ]
    return [first, second] if second else [first]


def _key(job: Job) -> str:
    kind, method, target = job
    return "-".join(part for part in (kind, label_of(method), target.replace("/", "__")) if part)


def _said(job: Job) -> str:
    """A job in words."""
    kind, method, target = job
    named = {"base": "the base model", "single": ""}.get(kind, kind)
    return ", ".join(part for part in (named, "" if kind == "base" else method, target) if part)


# ---- one job, in a process of its own --------------------------------------------------------------------


def tried(config: UnlearnCanvasConfig, out: str, job: Job) -> tuple[Job, dict[str, Any]]:
    """`one`, whose errors say which model they are of, or are recorded: without the base model's pictures
    nothing can be said, so that one never is."""
    try:
        return one(config, out, job)
    except Exception as error:
        if config.on_error == "record" and job[0] != "base":
            return job, {"error": f"{type(error).__name__}: {error}"}
        if job[0] != "base" and type(error) in (ValueError, TypeError, RuntimeError):
            raise type(error)(f"{_said(job)}: {error}") from error
        raise


def one(config: UnlearnCanvasConfig, out: str, job: Job) -> tuple[Job, dict[str, Any]]:
    """Do one job; what is read from files later is left out of the state."""
    kind, method, target = job
    if kind == "transfer":
        return job, _transferred(config, method)
    base = load_bundle(config.model, device=config.device)
    place = Place(config, config.grid(), Path(out), label_of(method))
    if kind == "base":
        answers = place.draw(base, None, "")
        place.judge(answers, "")
        return job, {"distances": distances_of(config, place.canvas, answers, "")}
    if kind == "sequential":
        return job, _sequence(place, base, method)
    if kind == "robust":
        return job, _attacked(place, base, method, target)
    edit = place.edit(base, method, target)
    answers = place.draw(base, edit, target)
    place.judge(answers, target)
    state: dict[str, Any] = {"costs": edit.details["costs"]}
    if kind == "single":
        state["distances"] = distances_of(config, place.canvas, answers, target)
        state["details"] = {k: v for k, v in edit.details.items() if k not in ("costs", "losses", "concept")}
    return job, state


@dataclass
class Place:
    """Where one method's edits, answers and judgements lie: `edits/{method}/{target}`,
    `answers/{method}/{canvas}/{target}` (the published layout), `judged/{method}/{target}.json`."""

    config: UnlearnCanvasConfig
    canvas: Canvas
    root: Path
    label: str

    def name(self, target: str) -> str:
        """A folder's name for a target, a pair "Style/Object", or the base model."""
        return target.replace("/", "__") or BASE

    def answers(self, target: str) -> Path:
        return self.root / "answers" / self.label / self.canvas.name / self.name(target)

    def judged(self, target: str) -> Path:
        return self.root / "judged" / self.label / f"{self.name(target)}.json"

    def edit(self, bundle: Bundle, method: str, target: str, under: str = "") -> Edit:
        """Fit the eraser, or read what an interrupted run has made. `details["costs"]` has what it took."""
        path = self.root / "edits" / self.label / (under or self.name(target))
        if path.is_dir():
            return Edit.load(path)
        domain = "style" if "/" in target else self.canvas.find(target)[0]
        eraser = self.config.method(method, domain)
        cuda = bundle.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(bundle.device)
        start, cpu = time.perf_counter(), time.process_time()
        edit: Edit = eraser.fit(bundle, self.concept(bundle, target), seed=self.config.fit_seed)
        if not isinstance(edit, Edit):
            _checks.fail(TypeError, f"methods: {method}", "an Edit from fit", _checks.describe(edit))
        if cuda:
            torch.cuda.synchronize(bundle.device)
        edit.details["costs"] = {
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "peak_bytes": int(torch.cuda.max_memory_allocated(bundle.device)) if cuda else 0,
            "storage_bytes": edit.nbytes,
        }
        edit.save(path)
        return edit

    def concept(self, bundle: Bundle, target: str) -> Concept:
        """The target as the canvas words it, with pictures of the model's size."""
        size = bundle.picture_shape()[1:]
        options: dict[str, Any] = {
            "images": pictures_of(self.config, size), "per_cell": self.config.per_cell,
            "retain": self.config.retain, "seed": self.config.fit_seed,
        }  # fmt: skip
        if "/" in target:
            return pair_concept(self.canvas, *target.split("/"), **options)
        return canvas_concept(self.canvas, target, **options)

    def draw(
        self, bundle: Bundle, edit: Edit | None, target: str, under: str = "", **options: Any
    ) -> AnswerSet:
        """The canvas, as files; what is there already stays."""
        config = self.config
        folder = self.answers(under or target)
        sampling: dict[str, Any] = {
            "sampler": config.sampler, "steps": config.steps, "guidance": config.guidance,
        }  # fmt: skip
        if config.sampling == "reference":
            own = {name.lower(): value for name, value in REFERENCE_SAMPLING.items()}.get(self.label, {})
            sampling = {name: own.get(name, value) for name, value in sampling.items()}
        pair = "/" in target
        keys: dict[str, Any] = {"seeds": config.seeds, "budget": config.budget}
        if pair and config.budget is not None:
            first = set(pair_keys(self.canvas, *target.split("/"), seeds=config.seeds))
            first |= set(budget_keys(self.canvas, config.budget, seeds=config.seeds))
            keys = {"keys": [k for k in answer_keys(self.canvas, seeds=config.seeds) if k in first]}
        return answer_set(
            bundle, self.canvas, edit=edit, method=self.label, target="" if pair else target,
            **keys, out=folder, resume=folder.is_dir(),
            compat="reference" if config.sampling == "reference" else "exact", options=options or None,
            **sampling,
        )  # fmt: skip

    def judge(self, answers: AnswerSet, target: str) -> Predictions:
        """What both judges say, kept as a file."""
        path = self.judged(target)
        if path.is_file():
            return read_answers_json(path)
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # doubts are told once, by the run
            found = judge_answers(answers, *judges_of(self.config))
        write_answers_json(path, found)
        return found


def _transferred(config: UnlearnCanvasConfig, name: str) -> dict[str, Any]:
    """Losses of one method's stylised photographs; pictures are squeezed to the canvas' square."""
    from dataclasses import asdict

    from tenfold.diffusion.canvas.transfer import transfer_scores

    side = config.grid().resolution
    found = transfer_scores(
        pairs_of(config, name), transfer_features_of(config), kind=config.transfer_kind, size=side
    )
    plain = {"overall": {loss: asdict(value) for loss, value in found["overall"].items()}}
    for part in ("styles", "objects"):
        rows = found[part].items()
        plain[part] = {one: {loss: asdict(v) for loss, v in losses.items()} for one, losses in rows}
    return plain


def _sequence(place: Place, base: Bundle, method: str) -> dict[str, Any]:
    """One target after another, each taken out of the model that the last edit left."""
    bundle, hooks, costs = base, [], []
    for number, target in enumerate(place.config.sequential or (), 1):
        step = f"sequential-{number}-{target}"
        edit = place.edit(bundle, method, target, under=step)
        bundle = edit.apply(bundle)
        more = dict(edit.options)
        hooks += list(more.pop("hooks", ()))
        if more:
            expected = "erasers that change weights or act by hooks"
            _checks.fail(
                ValueError, "sequential_methods", expected, f"{method}, whose edits need {sorted(more)}"
            )
        costs.append(edit.details["costs"])
        answers = place.draw(bundle, None, "", under=step, **({"hooks": tuple(hooks)} if hooks else {}))
        place.judge(answers, step)
    return {"costs": costs}


def _attacked(place: Place, base: Bundle, method: str, target: str) -> dict[str, Any]:
    """UnlearnDiffAtk on the target's own prompts; the judge of the target's domain says what succeeds."""
    from tenfold.diffusion.attack import Case, Sampling, Target, TextGrad, target_cases

    config, canvas = place.config, place.canvas
    edit = place.edit(base, method, target)
    domain, name = canvas.find(target)
    judge = judges_of(config)[0 if domain == "style" else 1]
    number = [str(one) for one in judge.classes].index(name)

    def shows(images: Tensor) -> list[bool]:
        said = judge(images.expand(-1, 3, -1, -1)).argmax(dim=1)
        return [bool(one) for one in said == number]

    cells = [cell for cell in canvas.cells if cell[0 if domain == "style" else 1] == name]
    guidance = canvas.guidance if config.guidance is None else config.guidance
    side = canvas.resolution
    cases = [
        Case(f"{style}_{thing}", canvas.prompt(style, thing), 1000 + i, float(guidance), None, side, side)
        for i, (style, thing) in enumerate(cells[: config.robust_prompts])
    ]
    steps, sampler = config.steps or canvas.steps, config.sampler or canvas.sampler
    sampling = Sampling(steps=steps, sampler=sampler, ids="text", batch=32)
    options = edit.options
    model = Target(
        edit.apply(base), base, options.get("negative"), options.get("safe"), place.label,
        options.get("hooks", ()),
    )  # fmt: skip
    attack = TextGrad(
        k=config.robust_k, timesteps=config.robust_timesteps, iterations=config.robust_iterations,
        seed=config.fit_seed, overflow="truncate",
    )  # fmt: skip
    logs = attack.run(model, target_cases(base, cases, sampling), shows, sampling=sampling, batch=20,
                      on_error="record")  # fmt: skip
    if all(log.error for log in logs):
        raise RuntimeError(f"expected at least one attack that finished, got none ({logs[0].error})")
    found = robust_scores(logs)
    return {
        **{
            n: [r.successes, r.n] for n, r in (("pre", found.pre), ("post", found.post), ("held", found.held))
        },
        "errors": found.errors,
        "seconds": found.seconds,
        "prompts": [log.found.prompt for log in logs if log.found is not None],
    }


# ---- all jobs together -----------------------------------------------------------------------------------


def gathered(config: UnlearnCanvasConfig, path: Path, states: dict[Job, dict[str, Any]]) -> Outcome:
    """What the jobs left, in the order of the config, of methods that made the models of all targets."""
    canvas = config.grid()
    outcome = Outcome(config, canvas)
    judges = judges_of(config)
    outcome.cards = (getattr(judges[0], "card", None), getattr(judges[1], "card", None))

    def single(method: str, target: str, state: dict[str, Any]) -> Single:
        place = Place(config, canvas, path, label_of(method))
        costs = dict(state.get("costs") or {})
        cpu = float(costs.pop("cpu_seconds", 0.0))
        return Single(
            place.label, target, read_answers_json(place.judged(target)), place.answers(target),
            Costs(**costs) if costs else None, cpu, state.get("distances", {}), state.get("details", {}),
        )  # fmt: skip

    outcome.base = single(BASE, "", states["base", BASE, ""])
    outcome.doubts = outcome.base.predictions.doubts()
    outcome.failures = [(_said(job), state["error"]) for job, state in states.items() if "error" in state]
    done = {job: state for job, state in states.items() if "error" not in state}
    whole = [m for m in config.methods if all(("single", m, t) in done for t in config.targets)]
    if not whole:
        raise RuntimeError(f"methods: expected one that made all models, got none ({outcome.failures[0][1]})")
    outcome.singles = [single(m, t, done["single", m, t]) for m in whole for t in config.targets]
    lacking = set(config.methods) - set(whole)
    _gather_tasks(outcome, path, {job: state for job, state in done.items() if job[1] not in lacking})
    outcome.transfer = {
        name: done["transfer", name, ""] for name in config.transfer if ("transfer", name, "") in done
    }
    return outcome


def _gather_tasks(outcome: Outcome, path: Path, done: dict[Job, dict[str, Any]]) -> None:
    """Pairs, sequences and attacks, of the jobs that are done."""
    from tenfold.diffusion.attack.asr import Rate

    config, canvas, base = outcome.config, outcome.canvas, outcome.base
    assert base is not None
    for method in config.finer_methods:
        place = Place(config, canvas, path, label_of(method))
        for pair in (p for p in config.finer or () if ("finer", method, p) in done):
            outcome.finer.append(finer_scores(read_answers_json(place.judged(pair)), *pair.split("/")))
    targets = config.sequential or ()
    for method in (m for m in config.sequential_methods if targets and ("sequential", m, "") in done):
        place = Place(config, canvas, path, label_of(method))
        steps = [
            read_answers_json(place.judged(f"sequential-{n}-{target}")) for n, target in enumerate(targets, 1)
        ]
        outcome.sequential[place.label] = sequential_scores([base.predictions, *steps], targets)
    for method in config.robust_methods:
        for target in (t for t in config.robust or () if ("robust", method, t) in done):
            state = done["robust", method, target]
            pre, post, held = (Rate(*state[name]) for name in ("pre", "post", "held"))
            unlearned = Rate(post.n - post.successes, post.n)
            rates = RobustScore(pre, post, unlearned, held, state["errors"], state["seconds"])
            outcome.robust.append((label_of(method), target, rates, state["prompts"]))
