"""`tenfold select`: choose rows of feature files by any method of `tenfold.selection`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold._reading import reading
from tenfold.cli import did_you_mean
from tenfold.cli.parsing import make_parser, parse

__all__ = ["select"]

_HEAD = """usage: tenfold select METHOD [FILE ...] (--k N | --ratio R) [--out FILE] [settings]

FILE: features [N, d], .npy (mapped into memory, not read) or .pt; several are shards of one set, one behind
the other. Without --out the chosen row numbers are printed, one a line, in the order of selection.

"""
_TAIL = "\ntenfold select METHOD --help explains a method and its settings.\n"
_LEFT_OUT = {"budget", "sharded", "costs", "sample_weight"}
"""Parameters without a flag: --k and --ratio are the budget; the others are arrays, or of processes."""


def select(arguments: Sequence[str]) -> int:
    """Exit code of `tenfold select`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(), end="")
        return 0 if arguments else 2
    from tenfold.selection.methods import METHODS

    name = arguments[0]
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"expected a method of {known}, got {name!r}{did_you_mean(name, METHODS)}")
    values = parse(_parser(name), arguments[1:])
    chosen = _run(name, values)
    if values["out"] is None:
        for row in chosen:
            print(row)
    else:
        path = chosen.save(Path(values["out"]))
        print(f"{len(chosen)} of {chosen.info['n']} rows by {name}: {path}")
    return 0


def _overview() -> str:
    from tenfold.selection.methods import METHODS

    wide = max(map(len, METHODS)) + 2
    lines = [f"  {name:<{wide}}{_first_line(kind)}" for name, kind in METHODS.items()]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _parser(name: str) -> Any:
    from tenfold.selection.methods import METHODS

    kind = METHODS[name]
    parser = make_parser(f"tenfold select {name}", (kind.__doc__ or "").partition("Attributes:")[0])
    parser.add_argument("files", metavar="FILE", type=str, nargs="*", help="features, .npy or .pt")
    for flag, text in (
        ("labels", "class of each row: .npy, .pt, .txt, or a DP4TL .label file"),
        ("logits", "outputs of a classifier [N, C] or [R, N, C]: .npy or .pt"),
        ("scores", "a score for each row: .npy, .npz, .pt, or .csv of (row number, score)"),
        ("dynamics", "records of a training run: what Recorder.save wrote"),
        ("validation", "X, logits and y of a validation set: three files with commas between"),
    ):
        parser.add_argument(f"--{flag}", metavar="FILE", type=str, help=text)
    parser.add_argument("--k", metavar="N", type=int, help="how many rows")
    parser.add_argument("--ratio", metavar="R", type=float, help="which share of the rows, in (0, 1]")
    parser.add_argument(
        "--out", metavar="FILE", type=str, help="file to write: .npz, .csv, .parquet, .pt, ..."
    )
    parser.add_class_arguments(kind, skip=_LEFT_OUT)
    for action in parser._actions:
        if action.dest in ("balanced", "verbose", "weighted"):
            action.nargs, action.const = "?", True
    return parser


def _run(name: str, values: dict[str, Any]) -> Any:
    import dataclasses

    from tenfold.selection.dynamics import Recorder
    from tenfold.selection.files import read_scores
    from tenfold.selection.methods import METHODS, make

    if (values["k"] is None) == (values["ratio"] is None):
        raise ValueError(
            f"--k: expected either it or --ratio, got {'none' if values['k'] is None else 'both'}"
        )
    if values["out"] is not None:
        from tenfold.selection.files import check_suffix

        check_suffix(Path(values["out"]))  # refuse before the work, not after
    options = {f.name: values[f.name] for f in dataclasses.fields(METHODS[name]) if f.name in values}
    options.pop("scores", None)
    data: dict[str, Any] = {}
    if values["logits"] is not None:
        data["logits"] = _array(values["logits"])
    if values["scores"] is not None:
        data["scores"] = read_scores(values["scores"])
    if values["dynamics"] is not None:
        data["dynamics"] = Recorder.load(values["dynamics"])
    if values["validation"] is not None:
        parts = values["validation"].split(",")
        if len(parts) != 3:
            raise ValueError(f"--validation: expected three files with commas between, got {len(parts)}")
        data["validation"] = (_array(parts[0]), _array(parts[1]), _labels(parts[2]))
    files = [_array(file) for file in values["files"]]
    X = None if not files else files[0] if len(files) == 1 else files
    y = None if values["labels"] is None else _labels(values["labels"])
    budget = values["k"] if values["k"] is not None else values["ratio"]
    return make(name, **options).fit(X, y, **data).select(budget)


def _array(file: str) -> Any:
    from tenfold.selection.files import load_tensor
    from tenfold.selection.inputs import mapped

    path = Path(file)
    if path.suffix.lower() in (".pt", ".pth"):
        return load_tensor(path)
    return mapped(path)


def _labels(file: str) -> Any:
    import numpy as np

    from tenfold.selection.files import read_labels

    path = Path(file)
    if path.suffix.lower() == ".label":
        return read_labels(path)
    if path.suffix.lower() == ".txt":
        with reading(path, "text in UTF-8"):
            return np.array(path.read_text(encoding="utf-8").split())
    return _array(file)
