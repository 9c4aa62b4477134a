"""Target pictures as the published data sets have them: what the original model draws for each prompt.

    folder/prompts.csv                      case_number, prompt, evaluation_seed, evaluation_guidance, sizes
    folder/imgs/{case_number}_{n}.png       pictures of the prompt

`tenfold.diffusion.read_targets` reads them, and so does the published code of UnlearnDiffAtk.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack.logs import to_pil
from tenfold.diffusion.attack.target import Case, Sampling
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.prompts import PromptRow, check_file_part, read_targets
from tenfold.diffusion.sampling import generate

__all__ = ["case_of", "cases_of_targets", "draw_targets", "write_targets"]


def draw_targets(original: Bundle, cases: Sequence[Case], sampling: Sampling | None = None) -> list[Tensor]:
    """Pictures uint8 [c, H, W] that the original model makes of each case's prompt, seed and guidance.

    Args:
        sampling: 25 steps of "lms" if None, as the published data sets were made.
    """
    sampling = sampling or Sampling(steps=25)
    found: dict[int, Tensor] = {}
    for size in dict.fromkeys((case.height, case.width) for case in cases):
        rows = [i for i, case in enumerate(cases) if (case.height, case.width) == size]
        images = generate(
            original, [cases[i].prompt for i in rows], [cases[i].seed for i in rows],
            guidance=[cases[i].guidance for i in rows], steps=sampling.steps, sampler=sampling.sampler,
            height=size[0], width=size[1], batch=sampling.batch, noise=sampling.noise,
        )  # fmt: skip
        found.update(zip(rows, (images * 255).round().to(torch.uint8).cpu(), strict=True))
    return [found[i] for i in range(len(cases))]


def write_targets(folder: str | Path, cases: Sequence[Case], pictures: Sequence[Tensor]) -> Path:
    """Write a data set at one stroke.

    Args:
        folder: a new one. pictures: uint8 [c, H, W] of each case, c 1 or 3.

    Raises:
        FileExistsError: there is something at `folder`. ValueError: another number of pictures than cases, or
        a case number that is no file name.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"folder: expected a new one, got {folder}, which exists")
    _checks.length("pictures", pictures, len(cases), "the cases")
    if not cases:
        _checks.fail(ValueError, "cases", "at least one prompt", "none")
    for case in cases:
        check_file_part("case_number", case.case_number)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        (aside / "imgs").mkdir(parents=True)
        for case, picture in zip(cases, pictures, strict=True):
            to_pil(picture).save(aside / "imgs" / f"{case.case_number}_0.png", format="png")
        with (aside / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(_row(cases[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(_row(case) for case in cases)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _row(case: Case) -> dict[str, Any]:
    return {
        "case_number": case.case_number,
        "prompt": case.prompt,
        "evaluation_seed": case.seed,
        "evaluation_guidance": repr(float(case.guidance)),
        "sd_image_width": case.width or "",
        "sd_image_height": case.height or "",
    }


def case_of(row: PromptRow) -> Case:
    """The case of a prompt file's row.

    Raises:
        ValueError: it has no seed.
    """
    if row.seed is None:
        _checks.fail(
            ValueError, f"case {row.case_number}: evaluation_seed", "an integer in [0, 2^32)", "none"
        )
    return Case(row.case_number, row.prompt, row.seed, row.guidance, height=row.height, width=row.width)


def cases_of_targets(folder: str | Path) -> tuple[list[Case], list[Tensor]]:
    """The prompts of a data set with the first picture of each, uint8 [c, H, W]; ignored ones are left out.

    Raises:
        ValueError, FileNotFoundError: as `read_targets`; a row has no seed.
    """
    found = read_targets(folder)
    cases, pictures = [], []
    for i, row in enumerate(found.rows):
        if row.case_number in found.ignored:
            continue
        cases.append(case_of(row))
        pictures.append((found.load(i)[0] * 255).round().to(torch.uint8))
    if not cases:
        _checks.fail(ValueError, str(folder), "a prompt that is not ignored", "none")
    return cases, pictures
