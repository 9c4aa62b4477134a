"""The CUDA coverage kernels behind the signatures of coverage_reference.py."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import coverage_device
from .coverage_device import Points
from .problem import Cover, Similarity, Sparse, Wanted


def module(device: torch.device) -> tuple[ModuleType, int]:
    """The compiled module and the handle of the current stream."""
    assert _native.cuda is not None
    return _native.cuda, torch.cuda.current_stream(device).cuda_stream


class Cuda:
    """A coverage_device.Launch."""

    def norms(self, z: Tensor) -> Tensor:
        kernels, stream = module(z.device)
        out = z.new_empty(len(z))
        kernels.cover_norms(z.data_ptr(), *z.shape, out.data_ptr(), stream)
        return out

    def _tiles(
        self, task: str, p: Points, which: Tensor, current: int, weights: int, partial: int, values: int
    ) -> None:
        kernels, stream = module(p.z.device)
        kernels.cover_tiles(
            task, p.z.data_ptr(), p.norms.data_ptr(), p.rows, p.z.shape[1], p.code, p.gamma,
            which.data_ptr(), len(which), current, weights, partial, values, stream,
        )  # fmt: skip

    def _partial(self, p: Points, which: Tensor) -> Tensor:
        kernels, _ = module(p.z.device)
        shape = (-(-p.rows // kernels.cover_tile_rows), len(which))
        return p.z.new_empty(shape, dtype=torch.float64)

    def _joined(self, partial: Tensor) -> Tensor:
        kernels, stream = module(partial.device)
        gains = partial.new_empty(partial.shape[1])
        kernels.cover_join(partial.data_ptr(), *partial.shape, gains.data_ptr(), stream)
        return gains

    def gains(self, p: Points, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        partial = self._partial(p, which)
        self._tiles("gains", p, which, current.data_ptr(), weights.data_ptr(), partial.data_ptr(), 0)
        return self._joined(partial)

    def values(self, p: Points, which: Tensor) -> Tensor:
        out = p.z.new_empty(len(which), p.rows)
        self._tiles("values", p, which, 0, 0, 0, out.data_ptr())
        return out

    def farthest(self, p: Points, which: Tensor) -> Tensor:
        partial = self._partial(p, which)
        self._tiles("farthest", p, which, 0, 0, partial.data_ptr(), 0)
        return partial.max()

    def take(self, values: Tensor, current: Tensor, owner: Tensor, number: int) -> None:
        kernels, stream = module(values.device)
        kernels.cover_take(
            values.data_ptr(), len(values), current.data_ptr(), owner.data_ptr(), number, stream
        )

    def matrix_gains(self, matrix: Tensor, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        kernels, stream = module(matrix.device)
        rows = matrix.shape[1]
        shape = (-(-rows // kernels.cover_piece_rows), len(which))
        partial = matrix.new_empty(shape, dtype=torch.float64)
        kernels.cover_matrix_gains(
            matrix.data_ptr(), DTYPE_CODES[matrix.dtype], rows, which.data_ptr(), len(which),
            current.data_ptr(), weights.data_ptr(), partial.data_ptr(), stream,
        )  # fmt: skip
        return self._joined(partial)

    def lists_gains(self, sparse: Sparse, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        kernels, stream = module(current.device)
        gains = current.new_empty(len(which), dtype=torch.float64)
        kernels.cover_lists_gains(
            *(t.data_ptr() for t in sparse), which.data_ptr(), len(which), current.data_ptr(),
            weights.data_ptr(), gains.data_ptr(), stream,
        )  # fmt: skip
        return gains


def fl_greedy(similarity: Similarity, wanted: Wanted) -> Cover:
    """See coverage_reference.fl_greedy."""
    return coverage_device.fl_greedy(Cuda(), similarity, wanted)


def graphcut_greedy(
    similarity: Similarity, k: int, lam: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.graphcut_greedy."""
    return coverage_device.graphcut_greedy(Cuda(), similarity, k, lam, initial)


def logdet_greedy(
    similarity: Similarity, k: int, ridge: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.logdet_greedy."""
    return coverage_device.logdet_greedy(Cuda(), similarity, k, ridge, initial)


def nearest(similarity: Similarity, neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """See coverage_reference.nearest."""
    return coverage_device.nearest(Cuda(), similarity, neighbors)


herding = coverage_device.herding
