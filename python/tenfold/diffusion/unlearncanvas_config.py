"""Settings of the workflow ``unlearncanvas``."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from tenfold import _checks
from tenfold.diffusion.canvas.vocabulary import UNLEARNCANVAS, Canvas
from tenfold.diffusion.unlearncanvas_checks import check_cells, check_settings, found_names, found_pair
from tenfold.runs.folder import MAY_DIFFER

__all__ = ["METHODS", "UnlearnCanvasConfig"]

METHODS = ("esd", "fmn", "uce", "ca", "salun", "seot", "spm", "ediff", "shs", "sa", "advunlearn")
"""The nine of the paper, Selective Amnesia that its code has beside them, and AdvUnlearn."""
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

    transfer: dict[str, str] = field(default_factory=dict)
    """Results of style transfer to be scored, {method: folder}; their truth is in `data`."""

    transfer_features: str = ""
    """What makes feature maps for its losses: module:function, pictures to a list of maps."""

    transfer_kind: str = "vgg"
    """Its losses: vgg (content and style), vit or gram."""

    on_error: str = field(default="stop", metadata=MAY_DIFFER)
    """What becomes of a run when a model cannot be made: stop, or record: it goes on, and says what is not
    there. --resume may change it."""

    workers: int = 0
    """Processes; 0 for one on each usable core. On a GPU one."""

    device: str = "cpu"
    """cpu or cuda."""

    def __post_init__(self) -> None:
        check_settings(self)

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
            "targets": found_names(canvas, "targets", targets),
            "sequential": found_names(canvas, "sequential", tasks["sequential"]),
            "robust": found_names(canvas, "robust", tasks["robust"]),
            "finer": [found_pair(canvas, pair) for pair in tasks["finer"]],
            "seeds": list(self.seeds or canvas.seeds),
        }
        made = dataclasses.replace(self, **spelled)
        if self.features == "judge" and not self.feature_name:
            made.feature_name = (
                "judge-192" if not self.style_judge else f"judge-{Path(self.style_judge).name}"
            )
        for name in made.every_method():
            made.method(name, canvas.find(made.targets[0])[0])
        if len(set(made.finer or ())) != len(made.finer or ()):
            _checks.fail(ValueError, "finer", "each once", made.finer)
        check_cells(made, canvas)
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

    def method(self, name: str, domain: str) -> Any:
        """The eraser that takes a style or an object (`domain`) out.

        Raises:
            ValueError: an unknown name or setting. TypeError: it is no eraser.
        """
        kind = eraser_class(name)
        own = dict(self.settings.get(name, {}))
        small = self.preset == "small" or (self.preset == "auto" and self.model == "canvas")
        preset = getattr(kind, "small" if small else domain, kind)
        if not callable(preset):  # a setting of that name
            preset = kind
        known = inspect.signature(kind).parameters
        for setting in own:
            if setting not in known:
                expected = f"settings of {name}: {', '.join(known)}"
                _checks.fail(ValueError, f"settings.{name}", expected, repr(setting))
        return preset(**own)


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
