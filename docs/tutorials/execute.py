"""Executes the tutorials: NAME.md, the source, becomes NAME.ipynb, the same cells with their outputs.

    python docs/tutorials/execute.py                 all of them; nox -s tutorials does so
    python docs/tutorials/execute.py zo segrap       some

A source is a MyST notebook: Markdown, with a `{code-cell}` block for every cell. The notebook beside it is
what the documentation shows and what a reader downloads. Each one runs in a folder of its own that is removed
afterwards, on one core. An error in a cell ends everything, as does a picture or a text too large to keep.
Progress (standard error) is left out: it tells of the machine and changes from run to run.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

from tenfold.workflows import WORKFLOWS

FOLDER = Path(__file__).parent
LARGEST_PICTURE, LARGEST_NOTEBOOK = 60_000, 200_000  # bytes
WIDEST, COLOURS = 800, 64  # of a stored picture, in pixels and in number
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="tutorials; all of them if none is named")
    names = parser.parse_args().names or [n for n in WORKFLOWS if (FOLDER / f"{n}.md").exists()]
    os.environ.update(ONE_CORE)  # kernels inherit it
    os.environ.pop("MPLBACKEND", None)  # or a kernel would draw no pictures into the notebook
    for name in names:
        before = processor_seconds()
        write(FOLDER / f"{name}.ipynb", executed(FOLDER / f"{name}.md"))
        print(f"{name}: {processor_seconds() - before:.0f} s of processor time", flush=True)


def executed(source: Path) -> Any:
    """The notebook of a source, every cell run in a kernel of its own, in an empty folder."""
    notebook = jupytext.read(source, fmt="md:myst")
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=None, record_timing=False, resources={"metadata": {"path": folder}}
        )
        client.execute()
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same in every execution
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = smaller(output.data["image/png"])
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def smaller(png: str) -> str:
    """A PNG in base64 as one of few colours, no wider than a page."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    if picture.width > WIDEST:
        picture = picture.resize(
            (WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS
        )
    stored = io.BytesIO()
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(stored, "png", optimize=True)
    return base64.b64encode(stored.getvalue()).decode()


def write(path: Path, notebook: Any) -> None:
    """Keep a notebook, unless it or one of its pictures is too large for a repository."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            size = len(output.get("data", {}).get("image/png", "")) * 3 // 4
            if size > LARGEST_PICTURE:
                raise ValueError(
                    f"{path.name}: expected pictures of at most {LARGEST_PICTURE} bytes, got {size}"
                )
    text = nbformat.writes(notebook)
    if len(text) > LARGEST_NOTEBOOK:
        raise ValueError(f"{path.name}: expected at most {LARGEST_NOTEBOOK} bytes, got {len(text)}")
    path.write_text(text + "\n", encoding="utf-8")


def processor_seconds() -> float:
    """Of all processes that were started here and have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
