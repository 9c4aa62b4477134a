"""One small call of every op that has a GPU kernel, on odd sizes: for tests and for compute-sanitizer.

    compute-sanitizer python -m tenfold.benchmarks.calls [--device cuda] [NAME ...]

A `Call` makes its inputs from a seed on the CPU, so that they are the same on every device, and runs as often
as one likes with the same result: what an op writes in place starts from a copy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import tenfold

from .calls_inputs import Call
from .calls_pictures import PICTURES
from .calls_samples import SAMPLES
from .calls_weights import WEIGHTS

CALLS: tuple[Call, ...] = (*WEIGHTS, *SAMPLES, *PICTURES)


def main(argv: Sequence[str] | None = None) -> int:
    """Every call once, or those whose names begin with one of the arguments; prints each."""
    parser = argparse.ArgumentParser(prog="tenfold.benchmarks.calls", description="Call every op once.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="calls or families (default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", choices=("auto", "cuda", "triton", "reference", "cpu"), default="auto")
    options = parser.parse_args(argv)
    chosen = [c for c in CALLS if not options.names or any(c.name.startswith(n) for n in options.names)]
    if not chosen:
        print(f"NAME: expected calls or families, got {options.names}", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    with tenfold.use_backend(options.backend):
        for call in chosen:
            if options.backend in ("cuda", "triton") and options.backend not in call.backends:
                continue
            call.make(device, 7)()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            print(call.name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
