"""`tenfold segrap evaluate`: scores of all cases, without ranking and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tenfold.runs import RunFolder
from tenfold.segmentation.segrap import Result, evaluated, source_of
from tenfold.segmentation.segrap_config import SegrapConfig

__all__ = ["EvaluateConfig", "run"]


@dataclass
class EvaluateConfig:
    """Settings of an evaluation; each means what it means for `tenfold run segrap`."""

    predictions: str = ""
    """Folder or zip archive: <case>/<Organ>.nii.gz, <case>.nii.gz or <case>.mha, with or without a folder for
    each team above; several with commas, each PATH or TEAM=PATH."""
    ground_truth: str = ""
    """Folder or zip archive with the references, in any of the same layouts."""
    task: str = "1"
    """1 (45 organs at risk), 2 (two tumour volumes), or a label table."""
    tolerance: float = 1.0
    """Tolerance of the surface Dice in mm, for label tables."""
    edge: bool = False
    """Also the edge-voxel metrics of MONAI and MedPy."""
    keep_going: bool = False
    """Score a structure whose prediction cannot be used 0 and 0, instead of leaving it out."""
    reorient: bool = False
    """Flip and exchange axes of predictions that run otherwise than the reference's."""
    empty_distance: Literal["inf", "nan", "diagonal"] = "inf"
    """Distance where one of two masks is empty; diagonal: that of the image."""
    geometry_tolerance: float = 1e-3
    """Largest difference of spacing and origin in mm, and of direction, that is none."""
    workers: int = 0
    """Processes; 0 for one on each usable core."""
    cluster: str = ""
    """Address of a dask scheduler (tcp://host:8786) whose workers see the same files."""

    def __post_init__(self) -> None:
        if not self.predictions:
            raise ValueError("predictions: expected a folder or an archive, got nothing")
        self.whole()

    def whole(self) -> SegrapConfig:
        """The same as settings of the workflow."""
        return SegrapConfig(**vars(self))


def run(config: EvaluateConfig, folder: RunFolder) -> Result:
    """Score all cases and finish `folder`; errors as those of `tenfold.segmentation.segrap.run`."""
    from tenfold.segmentation.segrap_report import write_scores

    whole = config.whole().resolved()
    source = source_of(whole, folder)
    found = evaluated(whole, folder, source)
    return Result(write_scores(whole, source, found, folder), folder.path, 1 if found.flagged else 0)
