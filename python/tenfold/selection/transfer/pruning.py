"""Pruning as a function: a surrogate, a source and a target in, index files out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold import _checks
from tenfold.runs.files import replacing, write_json
from tenfold.selection import Selection
from tenfold.selection.transfer import baselines, training
from tenfold.selection.transfer.augment import View
from tenfold.selection.transfer.images import Images
from tenfold.selection.transfer.index_files import (
    read_class_list,
    read_score_csv,
    write_frequency,
    write_indices,
)
from tenfold.selection.transfer.methods import METHODS, Evidence, rank
from tenfold.selection.transfer.networks import head_of
from tenfold.selection.transfer.rankings import ClassRanking, Ranking

__all__ = ["Pruned", "prune"]


@dataclass(frozen=True)
class Pruned:
    """A source after pruning.

    Attributes:
        ratio: share pruned.
        kept: positions of the kept training images (info: method, ratio, classes, votes).
        classes: kept classes, the most relevant first; empty for methods that prune samples.
        validation: positions of the source's validation images of these classes, if there is such a set.
        files: what was written.
    """

    ratio: float
    kept: Selection
    classes: list[int]
    validation: NDArray[np.int64] | None = None
    files: list[Path] = field(default_factory=list)


def prune(
    source: Images, target: Images | None, surrogate: nn.Module | None, method: str = "lm", *,
    ratios: Sequence[float] = (0.4, 0.6, 0.8), validation: Images | None = None,
    out: str | Path | None = None, view: View | None = None, unlabelled: tuple[Tensor, Tensor] | None = None,
    scores: str | Path | None = None, classes: str | Path | None = None, clusters: int | None = None,
    coreset_ratio: float = 0.8, seed: int = 0, device: str = "cpu", batch: int = 512, workers: int = 0,
) -> list[Pruned]:  # fmt: skip
    """What `method` keeps of `source` for `target` at every ratio, from one pass over the images.

    Args:
        source, target: images (`load_images`). Methods that do not look at the target take None.
        surrogate: network with `features(x)` and a linear head over the source's classes.
        method: a key of METHODS, except "none" and "scratch". grand here is the last layer's, in closed form.
        ratios: shares to prune, in [0, 1).
        validation: the source's validation images, pruned to the same classes.
        out: stem of index files: OUT_lm_train_top400.indices, OUT_lm_val_top400.indices and OUT_lm.frequency
            (bottom instead of top for reversed rankings); OUTfm_Top400_class_index.pth and so on for fm and
            its variants; OUT_METHOD_60.indices for methods that prune samples. OUT_METHOD.json lists them.
        view: how images are seen; by default the central square at 224 pixels.
        unlabelled: features [N, e] and [n, e] for fm-kmeans and ssp; by default the surrogate's.
        scores, classes: files for the methods "file" and "classes".
        clusters, coreset_ratio: of fm-kmeans and ssp; of ffmm and cmt.
        seed, device, batch, workers: of random choices and k-means; of the surrogate's passes.

    Raises:
        ValueError, TypeError: an argument is wrong (named); nothing has been written then.
    """
    _checks.choice("method", method, [name for name, m in METHODS.items() if m.unit != "all"])
    if not ratios:
        _checks.fail(ValueError, "ratios", "at least one share", "none")
    for ratio in ratios:
        _checks.real("ratios", ratio, at_least=0.0, below=1.0)
    seen = _Seen(
        surrogate, view or training.view_of(source), {"batch": batch, "device": device, "workers": workers}
    )
    evidence = _evidence(
        source, target, seen, method, unlabelled=unlabelled, scores=scores, classes=classes,
        clusters=clusters, coreset_ratio=coreset_ratio,
    )  # fmt: skip
    ranking = rank(method, evidence, seed)
    found = [_at(ranking, ratio, source, validation) for ratio in ratios]
    if out is not None:
        found = [_written(Path(out), ranking, one, source, validation) for one in found]
        _note(Path(out), method, ranking, found, source)
    return found


@dataclass(frozen=True)
class _Seen:
    surrogate: nn.Module | None
    view: View
    options: dict[str, Any]

    def outputs(self, images: Images) -> Any:
        if self.surrogate is None:
            _checks.fail(ValueError, "surrogate", "a network, for this method", "none")
        return training.outputs(self.surrogate, images, self.view, **self.options)


def _evidence(
    source: Images, target: Images | None, seen: _Seen, method: str, *, scores: Any, classes: Any,
    unlabelled: Any, clusters: int | None, coreset_ratio: float,
) -> Evidence:  # fmt: skip
    needs = set(METHODS[method].needs)
    found = Evidence(source.labels, len(source.classes), clusters=clusters, coreset_ratio=coreset_ratio)
    if needs & {"target_logits", "target_features", "target_unlabelled"}:
        if target is None:
            _checks.fail(ValueError, "target", f"images, for the method {method}", "none")
        found.target_labels, found.target_classes = target.labels, len(target.classes)
        if unlabelled is None or "target_unlabelled" not in needs:
            blocks = list(seen.outputs(target))
            found.target_features, found.target_logits = (torch.cat([b[k] for b in blocks]) for k in (0, 1))
    if unlabelled is not None:
        found.unlabelled, found.target_unlabelled = unlabelled
    want = tuple(name for name in ("el2n", "margin", "grand") if name in needs)
    looked_at = "features" in needs or ("unlabelled" in needs and unlabelled is None)
    if want or looked_at:
        _look(found, source, seen, want)
    if "file" in needs:
        if scores is None:
            _checks.fail(ValueError, "scores", "a CSV file, for the method file", "none")
        found.file = baselines.file_scores(*read_score_csv(scores), source)
    if "picked" in needs:
        if classes is None:
            _checks.fail(ValueError, "classes", "a file of class numbers", "none")
        found.picked = read_class_list(classes, found.classes)
    return found


def _look(found: Evidence, source: Images, seen: _Seen, want: tuple[str, ...]) -> None:
    """One pass over the source: features, and scores of predictions."""
    assert seen.surrogate is not None or not want
    kept: list[Tensor] = []

    def blocks() -> Any:
        for x, logits, at in seen.outputs(source):
            kept.append(x)
            yield x, logits, source.labels[at]

    scores = baselines.prediction_scores(blocks(), len(source), want or ("el2n",))
    for name in want:
        setattr(found, name, scores[name])
    found.features = torch.cat(kept) if kept else torch.empty(0, head_of(seen.surrogate).in_features)  # type: ignore[arg-type]
    if found.unlabelled is None:
        found.unlabelled, found.target_unlabelled = found.features, found.target_features


def _at(ranking: Ranking, ratio: float, source: Images, validation: Images | None) -> Pruned:
    kept = ranking.keep(ratio)
    classes: list[int] = []
    held = None
    if isinstance(ranking, ClassRanking) and ranking.distances is None:
        from tenfold.ops import class_mask

        classes = ranking.kept_classes(ratio).tolist()
        if validation is not None:
            held = class_mask(validation.labels, classes, len(ranking.scores)).numpy()
    info = {
        "method": ranking.method,
        "ratio": ratio,
        "n": len(source),
        "source": source.name,
        "classes": classes,
    }
    return Pruned(ratio, Selection(kept, info=info), classes, held)


def _written(out: Path, ranking: Ranking, one: Pruned, source: Images, validation: Images | None) -> Pruned:
    method = ranking.method
    sets = [("train", source, one.kept.indices)]
    if one.validation is not None and validation is not None:
        sets.append(("val", validation, one.validation))
    files = []
    for name, images, positions in sets:
        if not one.classes:
            path = Path(f"{out}_{method}_{round(100 * one.ratio)}.indices")
        elif method.startswith(("fm", "ffmm", "cmt")):
            side = "Last" if method.endswith("-reverse") else "Top"
            base = method.removesuffix("-reverse")
            path = Path(f"{out}{base}_{side}{len(one.classes)}_{name}_data_index.pth")
        else:
            side = "bottom" if method.endswith("-reverse") else "top"
            path = Path(f"{out}_{method.removesuffix('-reverse')}_{name}_{side}{len(one.classes)}.indices")
        write_indices(path, images.identifiers[torch.from_numpy(positions)].numpy())
        files.append(path)
        if path.suffix == ".pth" and name == "train":
            path = Path(str(path).replace("_train_data_index", "_class_index"))
            write_indices(path, one.classes)
            files.append(path)
    return Pruned(one.ratio, one.kept, one.classes, one.validation, files)


def _note(out: Path, method: str, ranking: Ranking, found: list[Pruned], source: Images) -> None:
    votes = ranking.votes if isinstance(ranking, ClassRanking) else None
    if votes is not None and method == "lm":
        write_frequency(f"{out}_lm.frequency", votes)
    entries = [
        {"ratio": p.ratio, "images": len(p.kept), "classes": p.classes, "files": [f.name for f in p.files]}
        for p in found
    ]
    note = {
        "method": method, "source": source.name, "fingerprint": source.fingerprint(), "images": len(source),
        "votes": None if votes is None else votes.tolist(), "kept": entries,
    }  # fmt: skip
    write_json(Path(f"{out}_{method}.json"), note)
    if isinstance(ranking, ClassRanking) and ranking.matrix is not None:
        with replacing(Path(f"{out}_{method}_votes.npz")) as aside, aside.open("wb") as file:
            np.savez_compressed(file, matrix=ranking.matrix.numpy())
