"""Settings of the workflow ``unlearncanvas``."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tenfold import _checks
from tenfold.diffusion.canvas.scores import CRA, SEED_IMAGES
from tenfold.diffusion.canvas.vocabulary import UNLEARNCANVAS, Canvas
from tenfold.diffusion.sampling import SAMPLERS

__all__ = ["CANVASES", "METHODS", "UnlearnCanvasConfig"]

METHODS = ("esd", "fmn", "uce", "ca", "salun", "seot", "spm", "ediff", "shs", "sa", "advunlearn")
"""The nine of the paper, Selective Amnesia that its code has beside them, and AdvUnlearn."""
CANVASES = ("mini", "unlearncanvas")
SAMPLING = ("uniform", "reference")
PRESETS = ("auto", "small", "published")
_MINI = {
    "targets": ["Sketch", "Mosaic", "Cats", "Human"],
    "finer": ["Winter/Horses"],
    "sequential": ["Bricks", "Mosaic", "Neon_Lines", "Winter"],
    "robust": ["Sketch"],
}
"""What is asked of the mini canvas where nothing else is."""


@dataclass
class UnlearnCanvasConfig:
    """Score erasers of concepts by what the edited models draw of every style with every object."""

    model: str = "canvas"
    """canvas (embedded, for the mini canvas), a folder of a diffusers pipeline, or a hub id."""

    canvas: str = "mini"
    """Styles and objects: mini, or unlearncanvas (50 styles and photographs x 20 objects)."""

    methods: list[str] = field(default_factory=lambda: ["uce", "salun", "ca", "sa", "esd"])
    """Erasers by name (esd, fmn, uce, ca, salun, seot, spm, ediff, shs, sa, advunlearn), or module:class."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of erasers that differ from the preset: {method: {setting: value}}."""

    preset: str = "auto"
    """Where erasers' other settings come from: small, published, or auto (small for the model canvas)."""

    targets: list[str] = field(default_factory=list)
    """Styles and objects to unlearn, each alone; ["all"] for all. Empty: two of each, on the mini canvas."""

    seeds: list[int] = field(default_factory=list)
    """One picture of every cell for each. Empty: the canvas' own."""

    fit_seed: int = 0
    """Seed of the erasers."""

    budget: int | None = None
    """Pictures of each edited model, spread evenly, all of the target among them; none: the whole canvas."""

    sampling: str = "uniform"
    """uniform, one sampler for all; or reference, each method's published one."""

    sampler: str | None = None
    """Sampler of pictures; none: the canvas' own."""

    steps: int | None = None
    """Its steps."""

    guidance: float | None = None
    """Its guidance."""

    style_judge: str = ""
    """Who names styles: a folder of an image classifier, or module:object. Empty: the mini canvas' judge."""

    object_judge: str = ""
    """Who names objects, likewise."""

    data: str = ""
    """Folder of pictures, {Style}/{Object}/{1..20}.jpg. Empty: the mini canvas' own pictures."""

    per_cell: int = 4
    """Pictures of each cell of a target that erasers learn from."""

    retain: str = "others"
    """Pictures that are to stay, for these erasers: others, all, or anchors (as published)."""

    seed_images: str = "include"
    """Whether photographs count among retained styles: include (as the published code) or exclude."""

    cra: str = "all"
    """Whose pictures CRA counts: all (as the published code), or exclude_target."""

    features: str = "judge"
    """What makes features of pictures for the Frechet distance: judge, or module:function. Empty: none."""

    feature_name: str = ""
    """What these features are called, as in FID[name]. Empty: judge-192 for the mini judge."""

    finer: list[str] | None = None
    """Pairs "Style/Object" to unlearn alone. None: one on the mini canvas, elsewhere nothing."""

    finer_methods: list[str] = field(default_factory=lambda: ["uce", "salun"])
    """With which methods."""

    sequential: list[str] | None = None
    """Styles or objects to unlearn one after another. None: four on the mini canvas, elsewhere nothing."""

    sequential_methods: list[str] = field(default_factory=lambda: ["uce"])
    """With which methods."""

    robust: list[str] | None = None
    """Targets whose prompts are attacked after unlearning. None: one on the mini canvas, else none."""

    robust_methods: list[str] = field(default_factory=lambda: ["uce", "salun"])
    """With which methods."""

    robust_prompts: int = 8
    """Prompts of each target that are attacked."""

    robust_k: int = 3
    """Tokens that the attack may put before a prompt."""

    robust_timesteps: int = 10
    """Timesteps at which it searches."""

    robust_iterations: int = 10
    """Iterations at each."""

    workers: int = 0
    """Processes; 0 for one on each usable core. On a GPU one."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        _check(self)

    def resolved(self) -> UnlearnCanvasConfig:
        """With open settings filled, names as the canvas spells them, and every eraser made once."""
        canvas, mini = self.grid(), self.canvas == "mini"
        targets = self.targets
        if [t.lower() for t in targets] == ["all"]:
            targets = [name for _, name in canvas.targets]
        elif not targets:
            if not mini:
                _checks.fail(ValueError, "targets", 'styles and objects, or ["all"]', "none")
            targets = _MINI["targets"]
        tasks = {
            name: getattr(self, name) if getattr(self, name) is not None else _MINI[name] if mini else []
            for name in ("finer", "sequential", "robust")
        }
        spelled: dict[str, Any] = {
            "targets": _found(canvas, "targets", targets),
            "sequential": _found(canvas, "sequential", tasks["sequential"]),
            "robust": _found(canvas, "robust", tasks["robust"]),
            "finer": ["/".join(self._pair(canvas, pair)) for pair in tasks["finer"]],
            "seeds": list(self.seeds or canvas.seeds),
        }
        made = dataclasses.replace(self, **spelled)
        if self.features == "judge" and not self.feature_name:
            made.feature_name = (
                "judge-192" if not self.style_judge else f"judge-{Path(self.style_judge).name}"
            )
        for name in made.every_method():
            made.method(name, *canvas.find(made.targets[0]))
        if made.budget is not None:
            from tenfold.diffusion.canvas.keys import budget_keys

            for target in made.targets:
                budget_keys(canvas, made.budget, seeds=made.seeds, target=target)
        return made

    def grid(self) -> Canvas:
        """The canvas."""
        if self.canvas == "unlearncanvas":
            return UNLEARNCANVAS
        from tenfold.diffusion.canvas.mini import MINI

        return MINI

    def every_method(self) -> list[str]:
        """All methods of all tasks, each once."""
        more = [
            *(self.finer_methods if self.finer else ()),
            *(self.sequential_methods if self.sequential else ()),
            *(self.robust_methods if self.robust else ()),
        ]
        return list(dict.fromkeys((*self.methods, *more)))

    def method(self, name: str, domain: str, target: str) -> Any:
        """The eraser that takes `target`, a style or an object (`domain`), out.

        Raises:
            ValueError: an unknown name or setting. TypeError: it is no eraser.
        """
        kind = eraser_class(name)
        own = dict(self.settings.get(name, {}))
        small = self.preset == "small" or (self.preset == "auto" and self.model == "canvas")
        preset = getattr(kind, "small" if small else domain, kind)
        known = inspect.signature(kind).parameters
        for setting in own:
            if setting not in known:
                expected = f"settings of {name}: {', '.join(known)}"
                _checks.fail(ValueError, f"settings.{name}", expected, repr(setting))
        return preset(**own)

    def _pair(self, canvas: Canvas, pair: str) -> tuple[str, str]:
        if pair.count("/") != 1:
            _checks.fail(ValueError, "finer", '"Style/Object"', repr(pair))
        style, thing = pair.split("/")
        return canvas.style(style), canvas.object(thing)


def label_of(name: str) -> str:
    """A method's name in files and tables: what stands behind the colon of module:class."""
    return name.rpartition(":")[2].lower()


def eraser_class(name: str) -> Any:
    """The class of a method.

    Raises:
        ValueError: an unknown name. TypeError: it has no `fit`.
    """
    if ":" in name:
        kind = attribute("methods", name)
        if not callable(kind) or not callable(getattr(kind, "fit", None)):
            expected = "a class with fit(bundle, concept, seed=...) -> Edit"
            _checks.fail(TypeError, "methods", expected, f"{name}, {_checks.describe(kind)}")
        return kind
    from tenfold.diffusion.erase import ERASERS

    return ERASERS[_checks.choice("methods", name, METHODS)]


def attribute(argument: str, reference: str) -> Any:
    """What "module:attribute" names.

    Raises:
        ValueError: there is no such thing.
    """
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{argument}: expected module:attribute, got {reference!r} ({error})") from error


def _found(canvas: Canvas, argument: str, names: list[str]) -> list[str]:
    try:
        found = [canvas.find(name)[1] for name in names]
    except (ValueError, TypeError) as error:
        raise type(error)(f"{argument}: {str(error).removeprefix('name: ')}") from error
    if len(set(found)) != len(found):
        _checks.fail(ValueError, argument, "each once", found)
    if canvas.photo in found:
        _checks.fail(ValueError, argument, "styles and objects that are unlearned", canvas.photo)
    return found


def _check(config: UnlearnCanvasConfig) -> None:
    _checks.choice("canvas", config.canvas, CANVASES)
    _checks.choice("preset", config.preset, PRESETS)
    _checks.choice("sampling", config.sampling, SAMPLING)
    _checks.choice("seed_images", config.seed_images, SEED_IMAGES)
    _checks.choice("cra", config.cra, CRA)
    _checks.choice("retain", config.retain, ("others", "all", "anchors"))
    if not config.methods:
        _checks.fail(ValueError, "methods", "at least one eraser", "none")
    for argument in ("methods", "finer_methods", "sequential_methods", "robust_methods"):
        names = getattr(config, argument)
        labels = [label_of(name) for name in names]
        if len(set(labels)) != len(labels):
            _checks.fail(ValueError, argument, "different ones", names)
        for name in names:
            eraser_class(name)
            if label_of(name) == "base":
                _checks.fail(ValueError, argument, "a name that is not the base model's", name)
    for name in config.settings:
        if name not in config.every_method():
            _checks.fail(ValueError, "settings", f"names of {', '.join(config.every_method())}", repr(name))
    if config.sampler is not None:
        _checks.choice("sampler", config.sampler, SAMPLERS)
    for name, low, high in (
        ("fit_seed", 0, 2**32 - 1), ("per_cell", 1, 10**6), ("workers", 0, 4096), ("robust_k", 1, 2**16),
        ("robust_prompts", 1, 10**6), ("robust_timesteps", 1, 1000), ("robust_iterations", 1, 10**6),
    ):  # fmt: skip
        _checks.integer(name, getattr(config, name), low, high)
    for seed in config.seeds:
        _checks.integer("seeds", seed, 0, 2**32 - 1)
    if len(set(config.seeds)) != len(config.seeds):
        _checks.fail(ValueError, "seeds", "each once", config.seeds)
    if config.canvas != "mini":
        for name in ("style_judge", "object_judge", "data"):
            if not getattr(config, name):
                _checks.fail(ValueError, name, "a folder, as the canvas is not mini", "nothing")
        if config.model == "canvas":
            expected = "a pipeline that draws the canvas, as that is not mini"
            _checks.fail(ValueError, "model", expected, repr(config.model))
    if config.data and not Path(config.data).is_dir():
        _checks.fail(ValueError, "data", "a folder of pictures", config.data)
    if config.features not in ("", "judge") and not config.feature_name:
        _checks.fail(ValueError, "feature_name", f"a name for the features of {config.features}", "none")
    if config.device != "cpu":
        import torch

        if not config.device.startswith("cuda") or not torch.cuda.is_available():
            _checks.fail(ValueError, "device", "cpu, or cuda where there is one", repr(config.device))
