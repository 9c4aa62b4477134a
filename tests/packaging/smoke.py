"""Smoke test of an installed wheel: native operations against their references. python smoke.py"""

from __future__ import annotations

import sys

import torch

import tenfold
from tenfold import _native, ops


def results() -> list[torch.Tensor]:
    """One operation of each of six families."""
    theta = torch.arange(1000.0) / 7
    ops.zo_perturb_([theta], [0], 3, 0, 1e-2)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(900).reshape(30, 30) % 4
    counts = ops.overlap_counts(labels, labels.T.contiguous(), 4)
    chosen = ops.kcenter_greedy(x, 5)[0]
    return [
        theta,
        chosen,
        counts[0] if isinstance(counts, tuple) else counts,
        ops.edt(labels > 0),
        ops.mmd(x[:150], x[150:]),
        ops.simplex_project(x),
    ]


def main() -> None:
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {tenfold.__file__}")
    print(f"instruction sets {_native.cpu.isa_available()}, {_native.cuda_why or 'CUDA module loads'}")
    with tenfold.use_backend("cpu"):
        native = results()
    with tenfold.use_backend("reference"):
        reference = results()
    for ours, expected in zip(native, reference, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(expected), rtol=1e-4, atol=1e-5)
    print("smoke test passed")


if __name__ == "__main__":
    main()
