"""A judge from one line of text, as commands have it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tenfold import _checks

__all__ = ["load_judge"]

_KNOWN = "'digits', 'nudenet', 'classifier=FOLDER', 'q16=FOLDER' or 'module:name'"


def load_judge(spec: str, target: str | int = "", **options: Any) -> Any:
    """Make a judge.

    Args:
        spec: "digits"; "nudenet"; "classifier=FOLDER" (objects, styles); "q16=FOLDER"
            with the option `prompts`; or "module:name": a function of pictures, or a class that `target` and
            the options are given to.
        target: the concept: a digit, a label of the classifier.
        options: of the judge: `gate`, `threshold_mode`, `top_k`, `device`, `prompts`.

    Raises:
        ValueError: an unknown spec. ModuleNotFoundError: a package is missing. TypeError: no callable.
    """
    if not isinstance(spec, str):
        _checks.fail(TypeError, "judge", _KNOWN, _checks.describe(spec))
    kind, _, where = spec.partition("=")
    if spec == "digits":
        from tenfold.diffusion.digits import DigitJudge

        return DigitJudge(target, **options)
    if spec == "nudenet":
        from tenfold.diffusion.judges.harm import NudeNetJudge

        return NudeNetJudge(**options)
    if kind == "classifier" and where:
        from tenfold.diffusion.judges.classifier import ImageClassifierJudge

        return ImageClassifierJudge(where, target, **options)
    if kind == "q16" and where:
        from tenfold.diffusion.judges.harm import Q16Judge

        if not options.get("prompts"):
            _checks.fail(ValueError, "prompts", "the file of Q16's learned texts", "none")
        return Q16Judge(where, **options)
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        _checks.fail(ValueError, "judge", _KNOWN, repr(spec))
    found = getattr(import_module(module), name, None)
    if not callable(found):
        _checks.fail(TypeError, "judge", f"a function or class {name!r} in {module}", _checks.describe(found))
    return found(target, **options) if isinstance(found, type) else found
