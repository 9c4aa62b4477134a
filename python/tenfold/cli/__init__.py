"""The `tenfold` command.

Exit codes: 0 done, 2 what was asked cannot be done, 130 interrupted, 1 a fault of ours.

Commands load when they are called: `tenfold --help` and `tenfold list` load no workflow and no plotting.
"""

from __future__ import annotations

import difflib
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module, metadata

__all__ = ["main"]

_COMMANDS = {
    "list": ("tenfold.cli.show:list_workflows", "the ten workflows: paper, embedded default, kernels, state"),
    "run": ("tenfold.cli.run:run", "run a workflow: tenfold run NAME [--field value ...]"),
    "bench": ("tenfold.cli.show:bench", "measure the kernels against their floors and their peers"),
    "doctor": ("tenfold.cli.show:doctor", "what is installed, which backend each op takes, what is missing"),
    "report": ("tenfold.cli.show:report", "make report.html of a run folder again"),
    "zolog": ("tenfold.cli.zolog:zolog", "logs of zeroth-order runs: info, replay, merge, undo"),
    "segrap": ("tenfold.cli.segrap:segrap", "scores of segmentations: rank teams by their tables"),
    "select": ("tenfold.cli.select:select", "choose rows of feature files: k-center, facility location, ..."),
    "unlearncanvas": ("tenfold.cli.unlearncanvas:unlearncanvas", "leader board of several runs"),
    "plan": ("tenfold.cli.plan:plan", "memory of a training step of a language model, on paper"),
    "dp4tl": ("tenfold.cli.dp4tl:dp4tl", "prune a source for a target: index files, single trainings"),
}
"""Command -> (function of its arguments, one line of help)."""

EXPLAINED = (ArgumentError, ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError)
"""Errors whose message is meant for the user: one line, no traceback."""

_EXTRAS = {
    "run": "demo",
    "bench": "bench",
    "report": "run",
    "zolog": "run",
    "plan": "llm",
    "segrap": "seg",
    "dp4tl": "selection",
    "unlearncanvas": "diffusion",
}
"""Command -> the extra that brings the packages it may miss."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the process's arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"tenfold {metadata.version('tenfold')}")
        return 0
    return _guarded(*arguments, debug=debug)


def _guarded(name: str, *arguments: str, debug: bool) -> int:
    try:
        code = _command(name)(list(arguments))
        sys.stdout.flush()  # here, where a reader that has left is no error
        return code
    except SystemExit as stop:  # --help and --print_config end this way
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("tenfold: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # tenfold list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except EXPLAINED as error:
        if debug:
            raise
        print(f"tenfold {name}: error: {_one_line(name, error)}", file=sys.stderr)
        return 2


def _command(name: str) -> Callable[[list[str]], int]:
    if name not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise ValueError(f"expected a command of {known}, got {name!r}{did_you_mean(name, _COMMANDS)}")
    module, _, function = _COMMANDS[name][0].partition(":")
    found: Callable[[list[str]], int] = getattr(import_module(module), function)
    return found


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where one of `known` is close to `name`, whatever its case, else nothing."""
    spelled = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f" (did you mean {spelled[close[0]]!r}?)" if close else ""


def _one_line(command: str, error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and command in _EXTRAS:
        return f"{text}; in the checkout: pip install '.[{_EXTRAS[command]}]' brings what this command needs"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:  # Python, NumPy and kernels; PyTorch
        return f"memory has run out ({text}); smaller batches, fewer --workers or a smaller model need less"
    return text


def _overview() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: tenfold COMMAND [arguments]",
            "",
            *lines,
            "",
            "tenfold COMMAND --help explains a command, tenfold run NAME --help a workflow's settings.",
            "--debug with any command shows the traceback of an error; tenfold --version the version.",
        ]
    )
