"""Runs: one folder for each, with its numbers, tables, figures, checkpoints, environment and a page to read.

    from tenfold import runs

    folder = runs.RunFolder.create("mine", config)
    with runs.style():
        fig, ax = runs.figure()
        ax.plot(losses)
    folder.write_figure("loss", fig, caption="Loss of each step.", alt="A falling curve.")
    folder.finish({"accuracy": 0.77}, runs.Report(title="Mine", lead="What was run.", sections=[...]))

Light to import: matplotlib, jinja2, rich, yaml and safetensors load when they are first used.
"""

from __future__ import annotations

from tenfold.runs.environment import capture
from tenfold.runs.figures import figure, style
from tenfold.runs.folder import RunFolder, require
from tenfold.runs.report import Claim, Headline, Report, Section

__all__ = ["Claim", "Headline", "Report", "RunFolder", "Section", "capture", "figure", "require", "style"]
