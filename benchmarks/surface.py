"""Surface metrics of all structures of a pair of label volumes (benchmarks/ts512.py), and the distance
transform.

Peers work structure by structure, each inside the box around both masks plus two voxels, as their careful
users do; MONAI and surface-distance crop by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from . import ts512
from .harness import Agreement, Case, Side, Work, Workload
from .installed import missing, version_of
from .overlap import Array, close
from .zo import _backend, _version

TOLERANCE = 1.0
EDT_SHAPE = (50, 313, 271)
NAMES = ("NSD at 1 mm", "HD95", "HD", "ASD of the target", "ASD of the prediction")


def box_of(*masks: Array, margin: int = 2) -> tuple[slice, ...]:
    """The box around all masks, with a margin where there is room."""
    some = np.logical_or.reduce(masks)
    out = []
    for axis, n in enumerate(some.shape):
        at = np.flatnonzero(some.any(tuple(i for i in range(some.ndim) if i != axis)))
        out.append(slice(max(0, at[0] - margin), min(n, at[-1] + 1 + margin)))
    return tuple(out)


def _ours(
    x: torch.Tensor, y: torch.Tensor, organs: Sequence[tuple[int, ...]], definition: str = "area"
) -> Any:
    from tenfold.ops import surface_metrics

    return surface_metrics(
        x, y, organs, ts512.SPACING, tolerances=(TOLERANCE,), percentiles=(95, 100), definition=definition
    )


def table(found: Any) -> Array:
    """[organs, 5] in the order of NAMES, of a SurfaceMetrics."""
    rows = (found.nsd(), found.hausdorff(), found.asd())
    return np.concatenate([np.asarray(r.cpu() if isinstance(r, torch.Tensor) else r) for r in rows], 1)


def _surface_distance_side(a: Array, b: Array, organs: Sequence[tuple[int, ...]]) -> Side:
    def prepare() -> str | None:
        np_module: Any = np
        np_module.Inf, np_module.NaN = np.inf, np.nan  # names it uses that NumPy 2 has removed
        return missing("surface_distance")

    def run() -> Array:
        import surface_distance as sd

        rows = []
        for (label,) in organs:
            found = sd.compute_surface_distances(a == label, b == label, ts512.SPACING)
            rows.append(
                [
                    sd.compute_surface_dice_at_tolerance(found, TOLERANCE),
                    sd.compute_robust_hausdorff(found, 95),
                    sd.compute_robust_hausdorff(found, 100),
                    *sd.compute_average_surface_distance(found),
                ]
            )
        return np.array(rows)

    def agree(ours: Array, theirs: Array) -> Agreement:
        return close(ours, theirs, 1e-9, "largest difference of any of " + ", ".join(NAMES))

    return Side(
        "surface_distance",
        run,
        version=version_of("surface_distance"),
        agree=agree,
        prepare=prepare,
        fewest=1,
        host=True,
    )


def _monai_side(a: Array, b: Array, organs: Sequence[tuple[int, ...]]) -> Side:
    def run() -> Array:
        from monai.metrics import compute_surface_dice

        scores = []
        for (label,) in organs:
            p, y = (torch.from_numpy(v == label)[None, None] for v in (b, a))
            found = compute_surface_dice(
                p, y, [TOLERANCE], include_background=True, spacing=list(ts512.SPACING), use_subvoxels=True
            )
            scores.append(float(found))
        return np.array(scores)

    def agree(ours: Array, theirs: Array) -> Agreement:
        return close(ours[:, 0], theirs, 2e-6, "largest difference of NSD, which alone it computes")

    return Side(
        "monai",
        run,
        version=version_of("monai"),
        agree=agree,
        prepare=partial(missing, "monai"),
        fewest=1,
        host=True,
    )


def _medpy_side(a: Array, b: Array, organs: Sequence[tuple[int, ...]], edge: Callable[[], Any]) -> Side:
    def run() -> Array:
        from medpy.metric import binary

        rows = []
        for (label,) in organs:
            x, y = a == label, b == label
            part = box_of(x, y)
            x, y = x[part], y[part]
            rows.append([f(y, x, ts512.SPACING) for f in (binary.hd95, binary.assd)])
        return np.array(rows)

    def agree(ours: Array, theirs: Array) -> Agreement:
        found = edge()
        want = np.stack([found.hd_pooled[:, 0].numpy(), found.assd().numpy()], 1)
        return close(want, theirs, 1e-9, "largest difference of HD95 and ASSD, by our edge definition")

    return Side(
        "medpy",
        run,
        version=version_of("medpy"),
        agree=agree,
        prepare=partial(missing, "medpy"),
        fewest=1,
        host=True,
    )


def _workload(
    a: Array,
    b: Array,
    organs: Sequence[tuple[int, ...]],
    note: str,
    device: torch.device,
    peers: Sequence[str],
) -> Workload:
    x, y = (torch.from_numpy(v).to(device) for v in (a, b))
    sides = {
        "surface_distance": lambda: _surface_distance_side(a, b, organs),
        "monai": lambda: _monai_side(a, b, organs),
        "medpy": lambda: _medpy_side(
            a, b, organs, lambda: _ours(torch.from_numpy(a), torch.from_numpy(b), organs, "edge")
        ),
    }
    return Workload(
        ours=Side(
            "tenfold",
            lambda: _ours(x, y, organs),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "surface_metrics", device),
        ),
        others=[sides[name]() for name in peers],
        work=Work(bytes=float(a.nbytes + b.nbytes)),
        keep=lambda result: result if isinstance(result, np.ndarray) else table(result),
        note=note,
    )


def _present(a: Array) -> list[tuple[int, ...]]:
    return [(label,) for label in ts512.present(a)]


def _all(device: torch.device, tiny: bool) -> Workload:
    a, b, note = ts512.volumes(tiny)
    what = "; overlap, NSD, HD95, HD, ASD of all structures"
    return _workload(a, b, _present(a), note + what, device, ("surface_distance", "monai", "medpy"))


def _swapped(device: torch.device, tiny: bool) -> Workload:
    """The four largest structures that are far from each other, each mistaken for the other."""
    a, _, note = ts512.volumes(tiny)
    pairs = ((2, 3), (8, 9))
    lut = np.arange(256, dtype=np.uint8)
    for left, right in pairs:
        lut[left], lut[right] = right, left
    organs = [(label,) for pair in pairs for label in pair if (a == label).any() and (lut[a] == label).any()]
    note = note.partition(",")[0] + f", structures {organs} swapped left and right, disjoint masks"
    return _workload(a, lut[a], organs, note, device, ("surface_distance",))


def _edt(dtype: torch.dtype, device: torch.device, tiny: bool) -> Workload:
    """Distance to the surface of an ellipsoid, 50 x 313 x 271, 3 x 0.54 x 0.54 mm."""
    from tenfold.ops import edt

    shape = (6, 20, 18) if tiny else EDT_SHAPE
    spacing = (3.0, 0.54, 0.54)
    at = np.indices(shape)
    inside = sum(((x - n / 2) / (0.4 * n)) ** 2 for x, n in zip(at, shape, strict=True)) < 1
    features = (
        inside & ~np.roll(inside, 1, 0) | inside & ~np.roll(inside, 1, 1) | inside & ~np.roll(inside, -1, 2)
    )
    x = torch.from_numpy(features).to(device)

    def edt_package() -> Array:
        import edt as peer

        found: Array = peer.edt(
            ~features, anisotropy=spacing, black_border=False, parallel=torch.get_num_threads()
        )
        return found

    def scipy() -> Array:
        from scipy import ndimage

        found: Array = ndimage.distance_transform_edt(~features, spacing)
        return found

    def agree(ours: Array, theirs: Array) -> Agreement:
        return close(ours, theirs, 1e-3, "largest difference of any distance in mm")

    def peer(name: str, run: Callable[[], Array]) -> Side:
        return Side(
            name, run, version=version_of(name), agree=agree, prepare=partial(missing, name), host=True
        )

    return Workload(
        ours=Side(
            "tenfold", lambda: edt(x, spacing, dtype=dtype), version=_version(), kind="ours",
            backend=partial(_backend, "edt", device),
        ),
        others=[peer("edt", edt_package), peer("scipy", scipy)],
        work=Work(bytes=float(features.nbytes + 5 * features.size * dtype.itemsize)),
        keep=lambda result: result.cpu().numpy() if isinstance(result, torch.Tensor) else result,
        note=f"{' x '.join(map(str, shape))} voxels, {int(features.sum()):,} features; three passes",
    )  # fmt: skip


def cases() -> list[Case]:
    """All cases of the family."""
    return [
        Case("surface.all.u8.ts512", _all),
        Case("surface.swapped.u8.ts512", _swapped),
        Case("surface.edt.f32.50x313x271", partial(_edt, torch.float32)),
        Case("surface.edt.f64.50x313x271", partial(_edt, torch.float64)),
    ]
