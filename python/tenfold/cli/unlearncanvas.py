"""`tenfold unlearncanvas`: a leader board from several runs."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.cli import did_you_mean
from tenfold.cli.parsing import make_parser, parse

__all__ = ["unlearncanvas"]

_USAGE = """usage: tenfold unlearncanvas board RUN [RUN ...] --out FILE.html

  board    one page that ranks the methods of several runs of `tenfold run unlearncanvas`;
           runs that were scored differently get tables of their own
"""


def unlearncanvas(arguments: Sequence[str]) -> int:
    """Exit code of `tenfold unlearncanvas`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] != "board":
        got = f"{arguments[0]!r}{did_you_mean(arguments[0], ('board',))}"
        raise ValueError(f"expected the command board, got {got}")
    parser = make_parser("tenfold unlearncanvas board", "Rank the methods of several runs on one page.")
    parser.add_argument("runs", metavar="RUN", type=str, nargs="+", help="folders of finished runs")
    parser.add_argument("--out", metavar="FILE.html", type=str, required=True, help="the page")
    values = parse(parser, arguments[1:])
    from tenfold.diffusion.unlearncanvas_board import leader_board

    print(f"board: {leader_board(values['runs'], values['out'])}")
    return 0
