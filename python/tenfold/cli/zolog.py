"""`tenfold zolog`: what a log of a zeroth-order run holds, and weights from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.cli import did_you_mean
from tenfold.cli.parsing import make_parser, parse
from tenfold.runs.files import read_safetensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["zolog"]

_USAGE = """usage: tenfold zolog info|replay|merge|undo ...

  info LOG                                  what the log says about its run
  replay LOG --base W --out W2              from the weights that the run began with to those it ended with
  merge LOG LOG ... --out LOG               segments of a run as one log; --average: the mean of several runs
  undo LOG --steps N --weights W --out W2   take the last steps back from the weights that the run ended with

Weights are .safetensors files, or a folder of them as models are published in; --out is one file.
tenfold zolog COMMAND --help explains the flags.
"""


def zolog(arguments: Sequence[str]) -> int:
    """Exit code of `tenfold zolog`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise ValueError(f"expected a command of {known}, got {name!r}{did_you_mean(name, _COMMANDS)}")
    _COMMANDS[name](arguments[1:])
    return 0


def _info(arguments: Sequence[str]) -> None:
    parser = make_parser("tenfold zolog info", "What a log says about its run.")
    parser.add_argument("log", metavar="LOG", type=str, help="a .zolog file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    values = parse(parser, arguments)
    from tenfold.optim import zolog as logs

    found = logs.info(values["log"])
    if values["json"]:
        print(json.dumps(found, indent=2))
        return
    options = found.pop("options")
    width = max(map(len, found)) + 2
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<{width}}{_shown(value)}")
    for name, value in options.items():
        if name != "groups" and value is not None:
            print(f"{name:<{width}}{_shown(value)}")
    for k, group in enumerate(options["groups"]):
        print(f"{f'group {k}':<{width}}" + ", ".join(f"{name} {value}" for name, value in group.items()))
    if found["torn_bytes"]:
        print("the last step is torn; replay and undo take --recover to go without it")


def _replay(arguments: Sequence[str]) -> None:
    parser = make_parser("tenfold zolog replay", "The weights of a logged run, from those it began with.")
    parser.add_argument("log", metavar="LOG", type=str, help="a .zolog file")
    _add_weights(parser, "base", "the weights that the run began with", required=True)
    _add_weights(parser, "out", "file to write", required=True)
    parser.add_argument("--until", metavar="STEP", type=int, help="stop before this step (default: the end)")
    parser.add_argument("--recover", action="store_true", help="do without a torn last step")
    values = parse(parser, arguments)
    from tenfold.optim import zolog as logs

    tensors, metadata = _load(values["base"])
    opt = logs.replay(tensors, values["log"], values["until"], recover=values["recover"])
    _save(values["out"], tensors, metadata)
    where = "the mean of the runs" if opt is None else f"before step {opt.num_steps}"
    print(f"weights {where}: {values['out']}")


def _merge(arguments: Sequence[str]) -> None:
    about = "Segments of a run as one log, or several runs from the same weights as their average."
    parser = make_parser("tenfold zolog merge", about)
    parser.add_argument("logs", metavar="LOG", type=str, nargs="+", help="two or more .zolog files, in order")
    parser.add_argument("--out", metavar="LOG", type=str, required=True, help="file to write")
    parser.add_argument("--average", action="store_true", help="average runs instead of joining segments")
    _add_weights(parser, "base", "weights the first begins with: check that each segment goes on from them")
    values = parse(parser, arguments)
    from tenfold.optim import zolog as logs

    base = None if values["base"] is None else _load(values["base"])[0]
    logs.merge(values["logs"], values["out"], average=values["average"], base=base)
    print(f"{len(values['logs'])} logs, {logs.info(values['out'])['steps']} steps: {values['out']}")


def _undo(arguments: Sequence[str]) -> None:
    parser = make_parser("tenfold zolog undo", "Take the last steps of a logged run back.")
    parser.add_argument("log", metavar="LOG", type=str, help="a .zolog file")
    parser.add_argument("--steps", metavar="N", type=int, required=True, help="how many steps to take back")
    _add_weights(parser, "weights", "the weights that the run ended with; not needed with --base")
    _add_weights(parser, "base", "the weights that the run began with: makes the result exact to the bit")
    _add_weights(parser, "out", "file to write", required=True)
    parser.add_argument("--recover", action="store_true", help="do without a torn last step")
    values = parse(parser, arguments)
    given, base = values["weights"], values["base"]
    if (given is None) == (base is None):
        got = "neither" if base is None else "both"
        raise ValueError(f"--weights: expected either it or --base, got {got}")
    from tenfold.optim import zolog as logs

    tensors, metadata = _load(base if given is None else given)
    start = None if base is None else tensors
    left = logs.undo(tensors, values["log"], values["steps"], start, recover=values["recover"])
    _save(values["out"], tensors, metadata)
    how = "up to rounding (exact with --base)" if base is None else "to the bit"
    print(f"weights before step {left}, {how}: {values['out']}")


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "info": _info,
    "replay": _replay,
    "merge": _merge,
    "undo": _undo,
}


def _add_weights(parser: Any, name: str, text: str, *, required: bool = False) -> None:
    parser.add_argument(f"--{name}", metavar="WEIGHTS", type=str, required=required, help=text)


def _shown(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def _load(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file, or of all of them in a folder, and the metadata of the first."""
    files = [Path(path)]
    if Path(path).is_dir():
        files = sorted(Path(path).glob("*.safetensors"))
        if not files:
            raise ValueError(f"{path}: expected a folder with .safetensors files, got none there")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, told = read_safetensors(file)
        again = tensors.keys() & found.keys()
        if again:
            raise ValueError(f"{file}: expected tensors of new names, got '{min(again)}' again")
        tensors |= found
        metadata = metadata or told
    return tensors, metadata


def _save(path: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write aside, then rename."""
    from safetensors.torch import save_file

    aside = Path(f"{path}.{os.getpid()}.part")
    try:
        save_file(tensors, aside, metadata=metadata or None)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
