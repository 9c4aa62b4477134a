"""An optimizer from what `hyperparameters` wrote down."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tenfold import _checks

from ._base import ZerothOrder
from ._helpers import _mask_from_json
from ._options import Blocks


def _classes() -> dict[str, type[ZerothOrder]]:
    found: dict[str, type[ZerothOrder]] = {}
    waiting: list[type[ZerothOrder]] = [ZerothOrder]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            found[kind.__name__] = kind
            waiting.append(kind)
    return found


def from_hyperparameters(
    hyperparameters: dict[str, Any], params: Iterable[Any], streams: nn.Module | None = None
) -> Any:
    """The optimizer that `opt.hyperparameters()` describes, over these parameters.

    Args:
        hyperparameters: the dict, also after a way through JSON.
        params: tensors or (name, tensor) pairs, in the order of the first optimizer, over all its groups.
        streams: the module, where the first optimizer was given one.

    Raises ValueError if class, number of parameters or the presence of `streams` do not fit.
    """
    known = _classes()
    name = hyperparameters.get("class")
    if name not in known:
        _checks.fail(ValueError, "hyperparameters", "the class of an optimizer here", repr(name))
    if hyperparameters["streams"] and streams is None:
        _checks.fail(ValueError, "streams", "the module that the optimizer was made with", None)
    kind = known[name]
    listed = list(params)
    groups, at = [], 0
    for saved in hyperparameters["groups"]:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k != "count"}
        groups.append({"params": listed[at : at + saved["count"]], **values})
        at += saved["count"]
    if at != len(listed):
        _checks.fail(ValueError, "params", f"{at} tensors", len(listed))
    options = {k.removeprefix("_"): v for k, v in hyperparameters["options"].items() if k not in kind._fixed}
    for key in ("z_round", "state_dtype"):
        if isinstance(options.get(key), str):
            options[key] = getattr(torch, options[key])
    if "mask" in options:
        options["mask"] = _mask_from_json(options["mask"])
    saved_blocks = options.pop("blocks", None)
    if saved_blocks is not None:
        modules = dict(streams.named_modules()) if streams is not None else {}
        model = saved_blocks["model"]
        chosen: Any = modules[model] if isinstance(model, str) else [modules[m] for m in model]
        rest = {k: v for k, v in saved_blocks.items() if k != "model"}
        options["blocks"] = Blocks(chosen, **rest)
    if hyperparameters["streams"]:
        options["streams"] = streams
    return kind(groups, **options)
