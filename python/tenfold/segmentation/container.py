"""The challenge's container: one CT pair in, one 4-D MHA out.

    python -m tenfold.segmentation.container --model weights.safetensors [--input /input] [--output /output]

It reads the single file in images/head-neck-ct/ and in images/head-neck-contrast-enhanced-ct/, and writes
<stem of the first>.mha to images/head-neck-segmentation/ (task 1: 45 channels) or
images/gross-tumor-volume-segmentation/ (task 2: 2 channels), uint8 [channels, z, y, x]. No network is needed,
no shared memory, and memory stays near that of one window of logits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold import ops
from tenfold.segmentation.files import compare, ending, read_volume, write_mha
from tenfold.segmentation.labels import TASKS, Task, swap_labels
from tenfold.segmentation.preprocess import crop_and_scale, restore
from tenfold.segmentation.unet import load_network

__all__ = ["ContainerConfig", "run", "segment"]

INPUTS = ("head-neck-ct", "head-neck-contrast-enhanced-ct")
OUTPUTS = {"1": "head-neck-segmentation", "2": "gross-tumor-volume-segmentation"}


@dataclass
class ContainerConfig:
    """Settings of the container."""

    model: str = "/opt/algorithm/weights.safetensors"
    """Weights with their recipe, as training writes them."""
    input: str = "/input"
    """Folder with images/."""
    output: str = "/output"
    """Folder that images/ is written to."""
    step: float = 0.5
    """Distance of windows as a share of their side."""
    mirror: bool = False
    """Average with the mirror image, sides exchanged back."""
    largest: bool = True
    """Keep only the largest component of each part."""
    device: str = ""
    """cpu or cuda; left empty: cuda if there is one."""


def run(config: ContainerConfig) -> Path:
    """Segment the case in `config.input`; the path of the written file.

    Raises ValueError for inputs that are missing, not alone or not on one grid, and for a network of
    another task.
    """
    files = [_only_file(Path(config.input) / "images" / name) for name in INPUTS]
    network, recipe = load_network(Path(config.model))
    if recipe.task not in OUTPUTS:
        raise ValueError(f"model: expected a network of task 1 or 2, got task {recipe.task!r}")
    task = TASKS[recipe.task]
    labels, header = segment(files[: recipe.channels], network, recipe, config)
    out = Path(config.output) / "images" / OUTPUTS[recipe.task]
    out.mkdir(parents=True, exist_ok=True)
    name = files[0].name
    path = out / f"{name[: len(name) - len(ending(name))]}.mha"
    write_mha(path, _channels(labels, task), header)
    return path


def segment(
    files: Sequence[Path], network: Any, recipe: Any, config: ContainerConfig
) -> tuple[NDArray[Any], Any]:
    """(label map on the grid of the first file, its header)."""
    volumes = [read_volume(path) for path in files]
    for path, volume in zip(files[1:], volumes[1:], strict=True):
        errors, _ = compare(volumes[0].header, volume.header)
        if errors:
            raise ValueError(f"{path}: {'; '.join(errors)}")
    header = volumes[0].header
    image, _, way = crop_and_scale([v.array for v in volumes], header, recipe.scales(), recipe.spacing)
    del volumes
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device)
    if config.mirror:
        pairs = [(a, b) for a, b in swap_labels(TASKS[recipe.task]).items() if a < b]
        network = ops.mirrored(network, (2,), left_right_axis=2, swap=pairs)
    found = ops.sliding_window(
        torch.from_numpy(image), network, recipe.patch, step=config.step, device=device
    )
    if config.largest:
        found = ops.keep_largest(found)
    labels = found.numpy()
    return restore(labels, way), header


def _channels(labels: NDArray[Any], task: Task) -> Iterator[NDArray[np.uint8]]:
    for parts in task.parts.values():
        table = np.zeros(max(task.highest, int(labels.max(initial=0))) + 1, np.uint8)
        table[list(parts)] = 1
        yield table[labels]


def _only_file(folder: Path) -> Path:
    files = sorted(p for p in folder.glob("*") if ending(p.name)) if folder.is_dir() else []
    if len(files) != 1:
        raise ValueError(f"{folder}: expected one volume, got {len(files)}")
    return files[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the container: exit code 0, or 2 with one line that says what is wrong."""
    from tenfold.cli.parsing import make_parser, parse, with_config

    parser = with_config(make_parser("tenfold segrap container", __doc__ or ""), ContainerConfig)
    try:
        values = parse(parser, list(sys.argv[1:] if arguments is None else arguments))
        values.pop("config", None)
        path = run(ContainerConfig(**values))
    except (ValueError, OSError) as error:
        print(f"tenfold segrap container: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
