"""What the settings of ``unlearncanvas`` name: judges, pictures, features, and the distances made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.canvas.answers import AnswerSet
from tenfold.diffusion.canvas.dataset import CanvasData
from tenfold.diffusion.canvas.vocabulary import STYLES60, UNLEARNCANVAS, Canvas

if TYPE_CHECKING:
    from tenfold.diffusion.canvas.transfer import TransferPair
    from tenfold.diffusion.unlearncanvas_config import UnlearnCanvasConfig

__all__ = [
    "REFERENCES", "check_data", "check_judges", "distances_of", "features_of", "judges_of", "pairs_of",
    "pictures_of", "transfer_features_of",
]  # fmt: skip

REFERENCES = 5
"""Pictures of each cell that drawn ones are compared with, as published."""
_HELD_OUT = 49
"""First picture of a cell of the mini canvas that nothing was trained on."""
_LOADED: dict[tuple[str, ...], Any] = {}
"""Judges and features of references, which all jobs of a process share."""


def _once(key: tuple[str, ...], make: Callable[[], Any]) -> Any:
    """What `make` makes; of one kind (key[0]) the last is kept."""
    if key not in _LOADED:
        for old in [one for one in _LOADED if one[0] == key[0]]:
            del _LOADED[old]
        _LOADED[key] = make()
    return _LOADED[key]


# ---- judges ----------------------------------------------------------------------------------------------


def judges_of(config: UnlearnCanvasConfig) -> tuple[Any, Any]:
    """(judge of styles, judge of objects).

    Raises:
        ValueError: there is no such judge. OSError: its folder cannot be read.
    """
    found: tuple[Any, Any] = _once(
        ("judges", config.style_judge, config.object_judge, config.device), lambda: _judges(config)
    )
    return found


def _judges(config: UnlearnCanvasConfig) -> tuple[Any, Any]:
    given = (config.style_judge, config.object_judge)
    own: tuple[Any, ...] = (None, None)
    if not all(given):
        from tenfold.diffusion.canvas.mini import mini_judges

        own = mini_judges()
    found = [
        _judge(argument, spec, config.device) if spec else judge
        for argument, spec, judge in zip(("style_judge", "object_judge"), given, own, strict=True)
    ]
    return found[0], found[1]


def _judge(argument: str, spec: str, device: str) -> Any:
    if Path(spec).is_dir():
        from tenfold.diffusion.canvas.judging import ViTJudge

        return ViTJudge(spec, device=device)
    return _named(argument, spec)


def _named(argument: str, spec: str) -> Any:
    """What module:attribute names; of a class, an object.

    Raises:
        ValueError: there is no such thing, or it cannot be called.
    """
    from tenfold.diffusion.unlearncanvas_config import attribute

    found = attribute(argument, spec)
    found = found() if isinstance(found, type) else found
    if not callable(found):
        _checks.fail(ValueError, argument, "something that is called with pictures", _checks.describe(found))
    return found


def check_judges(config: UnlearnCanvasConfig) -> None:
    """Both judges know all names of the canvas. Raises: as `judge_answers`."""
    from tenfold.diffusion.canvas.judging import class_order

    for domain, judge in zip(("style", "object"), judges_of(config), strict=True):
        class_order(f"{domain}_judge", judge, config.grid().names(domain))


# ---- pictures --------------------------------------------------------------------------------------------


def pictures_of(
    config: UnlearnCanvasConfig, size: tuple[int, int] | None = None
) -> Callable[[str, str, int], Tensor]:
    """(style, object, n) -> float32 [n, 3, H, W] of a cell, for erasers that learn from pictures. size: to
    which pictures of a folder are brought."""
    if config.data:
        return CanvasData(Path(config.data), config.grid(), size).cell_pictures
    from tenfold.diffusion.canvas.mini import cell_tensors

    return cell_tensors


def check_data(config: UnlearnCanvasConfig) -> None:
    """Every picture that jobs will read is there.

    Raises:
        FileNotFoundError: one is not (it is named).
    """
    if config.data:
        data = CanvasData(Path(config.data), config.grid())
        count = max(config.per_cell, REFERENCES if config.features else 0)
        for style, thing in data.canvas.cells:
            for number in range(1, count + 1):
                data.path(style, thing, number)
    for name in config.transfer:
        pairs_of(config, name)


def _references(config: UnlearnCanvasConfig, style: str, object: str) -> Tensor:
    """float32 [5, 3, H, W] of a cell, to compare drawn pictures with, of their size."""
    canvas = config.grid()
    if config.data:
        data = CanvasData(Path(config.data), canvas, (canvas.resolution, canvas.resolution))
        return data.images(style, object, "all", REFERENCES).float() / 255
    from tenfold.diffusion.canvas.mini import cell_tensors

    return cell_tensors(style, object, REFERENCES, first=_HELD_OUT)


# ---- features --------------------------------------------------------------------------------------------


def features_of(config: UnlearnCanvasConfig) -> Callable[[Tensor], Tensor] | None:
    """Pictures to features, or None.

    Raises:
        ValueError: the judge has no features.
    """
    if not config.features:
        return None
    if config.features != "judge":
        found: Callable[[Tensor], Tensor] = _once(
            ("features", config.features), lambda: _named("features", config.features)
        )
        return found
    features = getattr(judges_of(config)[0], "features", None)
    if not callable(features):
        expected = 'module:function, or "" for no distances, as the style judge has no features'
        _checks.fail(ValueError, "features", expected, "judge")
    return features


def distances_of(
    config: UnlearnCanvasConfig, canvas: Canvas, answers: AnswerSet, target: str
) -> dict[str, dict[str, Any]]:
    """Frechet and kernel distance and CMMD to pictures of the data, those of the target left out on both
    sides. No CMMD where features are all zero, as those have no direction."""
    features = features_of(config)
    if features is None:
        return {}
    from tenfold.metrics.features import clip_mmd, frechet_distance, kernel_distance, score_label

    domain, name = canvas.find(target) if target else ("", "")
    place = {"style": 0, "object": 1}.get(domain, 0)
    rows = [i for i, key in enumerate(answers.keys) if not name or key[place] != name]
    cells = [cell for cell in canvas.cells if not name or cell[place] != name]
    drawn = torch.cat(
        [_rows(config, features, answers.pictures(rows[i : i + 64])) for i in range(0, len(rows), 64)]
    )
    real = torch.cat([_real(config, features, cell) for cell in cells])
    size = min(len(real), len(drawn), 1000)
    kid, _ = kernel_distance(real, drawn, subsets=20, subset_size=max(2, size // 2))
    found = {"fid": ("FID", float(frechet_distance(real, drawn))), "kid": ("KID", float(kid))}
    if bool((real.norm(dim=1) > 0).all() and (drawn.norm(dim=1) > 0).all()):
        found["cmmd"] = ("CMMD", float(clip_mmd(real, drawn)))
    return {
        key: {"name": score_label(kind, config.feature_name), "value": number, "n": len(drawn)}
        for key, (kind, number) in found.items()
    }


def _rows(config: UnlearnCanvasConfig, features: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """float [B, D] of pictures, uint8 [B, c, H, W] or float in [0, 1].

    Raises:
        TypeError, ValueError: features of another shape, or not finite.
    """
    images = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
    with torch.no_grad():
        found = features(images.expand(-1, 3, -1, -1))
    shaped = isinstance(found, Tensor) and found.is_floating_point() and found.ndim == 2
    if not shaped or len(found) != len(images):
        got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else _checks.describe(found)
        _checks.fail(TypeError, f"features: {config.features}", f"floating-point [{len(images)}, D]", got)
    if not bool(found.isfinite().all()):
        _checks.fail(ValueError, f"features: {config.features}", "finite features", "NaN or infinity")
    kept = found.detach().cpu()
    return kept if kept.dtype == torch.float64 else kept.float()


def _real(config: UnlearnCanvasConfig, features: Callable[[Tensor], Tensor], cell: tuple[str, str]) -> Tensor:
    """Features of a cell's references."""
    key = ("real", config.canvas, config.data, config.features, config.style_judge, config.device)
    held: dict[tuple[str, str], Tensor] = _once(key, dict)
    if cell not in held:
        held[cell] = _rows(config, features, _references(config, *cell))
    return held[cell]


# ---- style transfer --------------------------------------------------------------------------------------


def pairs_of(config: UnlearnCanvasConfig, name: str) -> list[TransferPair]:
    """Results of a style-transfer method and their truths; on the published canvas of all 60 styles.

    Raises:
        FileNotFoundError: one is missing (it is named).
    """
    from tenfold.diffusion.canvas.transfer import transfer_pairs

    canvas = config.grid()
    if canvas is UNLEARNCANVAS:
        canvas = Canvas("unlearncanvas-60", (*STYLES60, canvas.photo), canvas.objects)
    data = CanvasData(Path(config.data), canvas)
    return list(transfer_pairs(config.transfer[name], data, ending=None))


def transfer_features_of(config: UnlearnCanvasConfig) -> Any:
    """Pictures to feature maps. Raises: ValueError: there is no such thing."""
    return _named("transfer_features", config.transfer_features)
