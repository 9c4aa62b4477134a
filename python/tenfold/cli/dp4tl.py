"""`tenfold dp4tl`: pruning and single trainings besides `tenfold run dp4tl`."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.cli import did_you_mean
from tenfold.cli.parsing import make_parser, parse, with_config

__all__ = ["dp4tl"]

_USAGE = """usage: tenfold dp4tl COMMAND ...

  prune --source DIR --target DIR --surrogate_weights FILE --out STEM
                                    index files of what a method keeps, and whether the mapping can be trusted
  pretrain --settings FILE.json --out DIR [--indices FILE]
                                    train on a source or a part of it, by a settings file of the paper's code
  finetune --settings FILE.json --weights FILE --out DIR
                                    linear probe or fine-tuning on a target, likewise

tenfold dp4tl COMMAND --help explains the settings.
"""

_COMMANDS = {
    "prune": ("write_index_files", "PruneConfig", "Say what is kept of a source for a target."),
    "pretrain": ("train", "PretrainConfig", "Pretrain by a settings file of the published code."),
    "finetune": ("transfer", "FinetuneConfig", "Transfer by a settings file of the published code."),
}
"""Command -> (function and config of `tenfold.selection.transfer.tools`, one line of help)."""


def dp4tl(arguments: Sequence[str]) -> int:
    """Exit code of `tenfold dp4tl`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise ValueError(f"expected a command of {known}, got {name!r}{did_you_mean(name, _COMMANDS)}")
    from tenfold.selection.transfer import tools

    function, config, about = _COMMANDS[name]
    kind = getattr(tools, config)
    values = parse(with_config(make_parser(f"tenfold dp4tl {name}", about), kind), arguments[1:])
    values.pop("config", None)
    print(getattr(tools, function)(kind(**values)))
    return 0
