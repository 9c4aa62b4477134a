"""`tenfold segrap`: what there is to do with segmentations besides `tenfold run segrap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenfold.cli import did_you_mean
from tenfold.cli.parsing import make_parser, parse, with_config

__all__ = ["segrap"]

_USAGE = """usage: tenfold segrap COMMAND ...

  evaluate --predictions DIR --ground_truth DIR
                                    score cases, without ranking and pictures
  rank TABLE.csv ... [--out DIR]    rank teams by scores in tables: leaderboard, tests, bootstrap, pictures
  convert --source DIR --out DIR    write cases in another layout: masks, label maps, 4-D stacks
  prepare, nnunet, train            training data for the small U-Net and for nnU-Net; train the first
  container --model FILE            segment one case as the challenge runs containers

tenfold segrap COMMAND --help explains the settings.
"""


def segrap(arguments: Sequence[str]) -> int:
    """Exit code of `tenfold segrap`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    name = arguments[0]
    if name not in _COMMANDS:
        known = ", ".join(_COMMANDS)
        raise ValueError(f"expected a command of {known}, got {name!r}{did_you_mean(name, _COMMANDS)}")
    return _COMMANDS[name](arguments[1:])


def _evaluate(arguments: Sequence[str]) -> int:
    """Exit code 1 if something was wrong with the files of a case; all else is scored."""
    from tenfold.cli.run import run_workflow
    from tenfold.workflows import Workflow

    target = "tenfold.segmentation.evaluate_task:"
    about = "Score predictions against references as SegRap2023 does (arXiv 2312.09576)"
    whole = Workflow("segrap-evaluate", about, (), "", f"{target}EvaluateConfig", f"{target}run", ready=True)
    return run_workflow(whole, arguments)


def _rank(arguments: Sequence[str]) -> int:
    from tenfold.runs import RunFolder
    from tenfold.segmentation.rank_task import RankConfig, run

    parser = make_parser("tenfold segrap rank", "Rank teams by scores that stand in CSV files.")
    parser.add_argument(
        "files", metavar="TABLE", type=str, nargs="*", help="CSV file, or TEAM=FILE; as --tables"
    )
    with_config(parser, RankConfig)
    parser.add_argument(
        "--out", metavar="DIR", type=str, help="folder to write (default: runs/segrap-rank-DATE-TIME)"
    )
    values = parse(parser, arguments)
    out, files = values.pop("out"), values.pop("files")
    values.pop("config", None)
    config = RankConfig(**values)
    config.tables = [*config.tables, *files]
    config.scheme()  # refuse before a folder is made
    folder = RunFolder.create("segrap-rank", config, out)
    try:
        found = run(config, folder)
    except Exception:
        folder.discard()
        raise
    for pieces in found:
        ranking = pieces.ranking
        for t in ranking.order:
            print(f"{ranking.rank[t]:>4g}  {ranking.teams[t]:<24} {ranking.score[t]:.4f}")
    print(f"leaderboard: {folder.path}\nreport: {folder.path / 'report.html'}")
    return 0


def _tool(name: str, about: str, function: str, config: str) -> Callable[[Sequence[str]], int]:
    """A command that calls `function(config)` of `tenfold.segmentation.tools` and prints what it says."""

    def run(arguments: Sequence[str]) -> int:
        from tenfold.segmentation import tools

        kind = getattr(tools, config)
        values = parse(with_config(make_parser(f"tenfold segrap {name}", about), kind), arguments)
        values.pop("config", None)
        print(getattr(tools, function)(kind(**values)))
        return 0

    return run


def _container(arguments: Sequence[str]) -> int:
    from tenfold.segmentation.container import main

    return main(arguments)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "evaluate": _evaluate,
    "rank": _rank,
    "convert": _tool("convert", "Write cases in another layout.", "convert", "ConvertConfig"),
    "prepare": _tool("prepare", "Resample, crop and normalise training cases.", "prepare", "PrepareConfig"),
    "nnunet": _tool("nnunet", "Export training data for nnU-Net.", "nnunet", "NnunetConfig"),
    "train": _tool("train", "Train a 3-D U-Net on prepared cases.", "train_network", "TrainConfig"),
    "container": _container,
}
