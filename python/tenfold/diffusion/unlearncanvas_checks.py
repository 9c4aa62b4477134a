"""What settings of ``unlearncanvas`` must be, told before any model is loaded: a run takes hours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold import _checks
from tenfold.diffusion.canvas.keys import Key, budget_keys, pair_keys
from tenfold.diffusion.canvas.scores import CRA, SEED_IMAGES
from tenfold.diffusion.canvas.vocabulary import Canvas
from tenfold.diffusion.sampling import SAMPLERS

if TYPE_CHECKING:
    from tenfold.diffusion.unlearncanvas_config import UnlearnCanvasConfig

__all__ = ["check_cells", "check_settings", "found_names", "found_pair"]

CANVASES = ("mini", "unlearncanvas")
SAMPLING = ("uniform", "reference")
PRESETS = ("auto", "small", "published")
TRANSFER_KINDS = ("vgg", "vit", "gram")
_LISTS = (
    "methods", "targets", "seeds", "finer", "finer_methods", "sequential", "sequential_methods", "robust",
    "robust_methods",
)  # fmt: skip
_METHOD_LISTS = ("methods", "finer_methods", "sequential_methods", "robust_methods")
_TEXTS = ("model", "style_judge", "object_judge", "data", "features", "feature_name", "transfer_features")
_MAPS = ("settings", "transfer")
_LABEL = re.compile(r"[a-z_][a-z0-9_]*")


def check_settings(config: UnlearnCanvasConfig) -> None:
    """Each setting by itself, and those that exclude each other.

    Raises:
        TypeError, ValueError: a setting is wrong (named).
    """
    _check_kinds(config)
    _checks.choice("canvas", config.canvas, CANVASES)
    _checks.choice("preset", config.preset, PRESETS)
    _checks.choice("sampling", config.sampling, SAMPLING)
    _checks.choice("seed_images", config.seed_images, SEED_IMAGES)
    _checks.choice("cra", config.cra, CRA)
    _checks.choice("retain", config.retain, ("others", "all", "anchors"))
    _checks.choice("on_error", config.on_error, ("stop", "record"))
    _checks.choice("transfer_kind", config.transfer_kind, TRANSFER_KINDS)
    if not config.model:
        _checks.fail(ValueError, "model", "canvas, a folder or a hub id", "nothing")
    _check_methods(config)
    _check_numbers(config)
    _check_sampling(config)
    _check_places(config)
    if config.device != "cpu":
        import torch

        if not config.device.startswith("cuda") or not torch.cuda.is_available():
            _checks.fail(ValueError, "device", "cpu, or cuda where there is one", repr(config.device))


def _check_kinds(config: UnlearnCanvasConfig) -> None:
    for name in _LISTS:
        value = getattr(config, name)
        if value is not None:
            _checks.sequence(name, value, "integers" if name == "seeds" else "names")
            for one in value if name != "seeds" else ():
                if not isinstance(one, str):
                    _checks.fail(TypeError, name, "a list of names", _checks.describe(one))
    for name in _TEXTS:
        value = getattr(config, name)
        if not isinstance(value, str) or (value and not value.strip().isprintable()) or value.isspace():
            kind = ValueError if isinstance(value, str) else TypeError
            _checks.fail(kind, name, "a text of one line", _checks.describe(value))
    for name in _MAPS:
        value = getattr(config, name)
        if not isinstance(value, dict):
            _checks.fail(TypeError, name, "a mapping", _checks.describe(value))
    for method, own in config.settings.items():
        if not isinstance(own, dict):
            expected = "{setting: value}"
            _checks.fail(TypeError, f"settings.{method}", expected, _checks.describe(own))


def _check_methods(config: UnlearnCanvasConfig) -> None:
    from tenfold.diffusion.unlearncanvas_config import eraser_class, label_of

    if not config.methods:
        _checks.fail(ValueError, "methods", "at least one eraser", "none")
    named: dict[str, str] = {}
    for argument in _METHOD_LISTS:
        names = getattr(config, argument)
        labels = [label_of(name) for name in names]
        if len(set(labels)) != len(labels):
            _checks.fail(ValueError, argument, "different ones", names)
        for name, label in zip(names, labels, strict=True):
            eraser_class(name)
            if label == "base":
                _checks.fail(ValueError, argument, "a name that is not the base model's", name)
            if not _LABEL.fullmatch(label):  # a folder's name
                _checks.fail(ValueError, argument, "a class named in ASCII letters and digits", name)
            if named.setdefault(label, name) != name:  # their models would lie in one folder
                got = f"{named[label]} and {name}"
                _checks.fail(ValueError, argument, f"one eraser of the name {label!r}", got)
    for name in config.settings:
        if name not in named.values():
            _checks.fail(ValueError, "settings", f"names of {', '.join(named.values())}", repr(name))


def _check_numbers(config: UnlearnCanvasConfig) -> None:
    for name, low, high in (
        ("fit_seed", 0, 2**32 - 1), ("per_cell", 1, 10**6), ("workers", 0, 4096), ("robust_k", 1, 2**16),
        ("robust_prompts", 1, 10**6), ("robust_timesteps", 1, 1000), ("robust_iterations", 1, 10**6),
    ):  # fmt: skip
        _checks.integer(name, getattr(config, name), low, high)
    for seed in config.seeds:
        _checks.integer("seeds", seed, 0, 2**32 - 1)
    if len(set(config.seeds)) != len(config.seeds):
        _checks.fail(ValueError, "seeds", "each once", config.seeds)
    if config.budget is not None:
        _checks.integer("budget", config.budget, 1, 2**31)


def _check_sampling(config: UnlearnCanvasConfig) -> None:
    given = ("sampler", config.sampler), ("steps", config.steps), ("guidance", config.guidance)
    for name, value in given if config.sampling == "reference" else ():
        if value is not None:
            _checks.fail(ValueError, name, "None beside sampling=reference, which has its own", value)
    if config.sampler is not None:
        _checks.choice("sampler", config.sampler, SAMPLERS)
    if config.steps is not None:
        _checks.integer("steps", config.steps, 1, 1000)
    if config.guidance is not None:
        _checks.real("guidance", config.guidance, at_least=0.0)


def _check_places(config: UnlearnCanvasConfig) -> None:
    if config.canvas != "mini":
        for name in ("style_judge", "object_judge", "data"):
            if not getattr(config, name):
                _checks.fail(ValueError, name, "a folder, as the canvas is not mini", "nothing")
        if config.model == "canvas":
            expected = "a pipeline that draws the canvas, as that is not mini"
            _checks.fail(ValueError, "model", expected, repr(config.model))
    if config.data and not Path(config.data).is_dir():
        _checks.fail(ValueError, "data", "a folder of pictures", config.data)
    most = 18 if config.data else 48
    if config.per_cell > most:
        expected = f"at most {most}, the pictures of a cell that erasers may learn from"
        _checks.fail(ValueError, "per_cell", expected, config.per_cell)
    for name in ("style_judge", "object_judge"):
        value = getattr(config, name)
        if value and ":" not in value and not Path(value).is_dir():
            _checks.fail(ValueError, name, "a folder of an image classifier, or module:object", repr(value))
    if config.features not in ("", "judge") and not config.feature_name:
        _checks.fail(ValueError, "feature_name", f"a name for the features of {config.features}", "none")
    _check_transfer(config)


def _check_transfer(config: UnlearnCanvasConfig) -> None:
    if not config.transfer:
        return
    for name, needed in (("data", "the data set, whose stylised photographs are the truth"),
                         ("transfer_features", "module:function, pictures to feature maps")):  # fmt: skip
        if not getattr(config, name):
            _checks.fail(ValueError, name, needed, "nothing, beside transfer")
    if len({str(name).lower() for name in config.transfer}) != len(config.transfer):
        _checks.fail(ValueError, "transfer", "names that differ by more than case", [*config.transfer])
    for name, folder in config.transfer.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            _checks.fail(ValueError, "transfer", "names of letters, digits, '_' and '-'", repr(name))
        if not isinstance(folder, str) or not Path(folder).is_dir():
            _checks.fail(ValueError, f"transfer.{name}", "a folder of results", repr(folder))


# ---- names and cells of the canvas -----------------------------------------------------------------------


def found_names(canvas: Canvas, argument: str, names: Sequence[str]) -> list[str]:
    """Targets as the canvas spells them.

    Raises:
        ValueError: an unknown name, one twice, or that of the photographs.
    """
    try:
        found = [canvas.find(name)[1] for name in names]
    except ValueError as error:
        raise ValueError(f"{argument}: {str(error).removeprefix('name: ')}") from error
    if len(set(found)) != len(found):
        _checks.fail(ValueError, argument, "each once", found)
    if canvas.photo in found:
        _checks.fail(ValueError, argument, "styles and objects that are unlearned", canvas.photo)
    return found


def found_pair(canvas: Canvas, pair: str) -> str:
    """ "Style/Object" as the canvas spells it.

    Raises:
        ValueError: another text, an unknown name, or the style of the photographs.
    """
    if pair.count("/") != 1:
        _checks.fail(ValueError, "finer", '"Style/Object"', repr(pair))
    style, thing = pair.split("/")
    style, thing = canvas.style(style), canvas.object(thing)
    if style == canvas.photo:
        _checks.fail(ValueError, "finer", "a style that can become photographs", repr(pair))
    return f"{style}/{thing}"


def check_cells(config: UnlearnCanvasConfig, canvas: Canvas) -> None:
    """The budget has pictures for every number that is asked of it.

    Raises:
        ValueError: it has not (what is missing is named).
    """
    for domain in ("style", "object"):
        asked = {canvas.find(name) for name in config.sequential or ()}
        if {(domain, name) for name in canvas.names(domain)} <= asked:
            _checks.fail(
                ValueError,
                "sequential",
                f"{'a style' if domain == 'style' else 'an object'} that is kept",
                "all of them",
            )
    if config.budget is None:
        return
    seeds, budget = config.seeds, config.budget
    base = budget_keys(canvas, budget, seeds=seeds)
    for target in config.targets:
        domain, name = canvas.find(target)
        for keys in (base, budget_keys(canvas, budget, seeds=seeds, target=target)):
            _covered(canvas, keys, domain, name, config.cra)
    if config.sequential:
        _covered(canvas, base, "style", "", "all")
    for pair in config.finer or ():
        style, thing = pair.split("/")
        own = [*pair_keys(canvas, style, thing, seeds=seeds), *base]
        for what, sees in (("its style", (True, False)), ("its object", (False, True)),
                           ("the rest", (False, False))):  # fmt: skip
            if not any((k.style == style, k.object == thing) == sees for k in own):
                _few(budget, f"pictures of {what}", f"none beside {pair}")


def _covered(canvas: Canvas, keys: Sequence[Key], domain: str, name: str, cra: str) -> None:
    """UA, IRA and CRA of a target are means over every concept's pictures."""
    for kind in ("style", "object"):
        rows: Any = keys
        if cra == "exclude_target" and kind != domain:
            rows = [key for key in keys if getattr(key, domain) != name]
        seen = {getattr(key, kind) for key in rows}
        missing = [one for one in canvas.names(kind) if one not in seen]
        if missing:
            _few(len(keys), f"pictures of every {kind}", f"none of {', '.join(missing[:4])}")


def _few(budget: int, expected: str, got: str) -> None:
    _checks.fail(ValueError, "budget", f"enough for {expected}", f"{budget}: {got}")
