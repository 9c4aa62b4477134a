"""Coverage-guided fuzzing of one reader of tests/robustness/file_makers.py. Needs atheris.

    python readers.py NAME CORPUS [libFuzzer's options]

The corpus begins with the maker's valid file. How it is taken is judged as in test_readers_fuzz.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import torch  # before instrumenting: not what is looked at

sys.path.insert(0, str(Path(__file__).parents[1] / "robustness"))

import judging
from instrument import instrumented
from mutate import mutated

READ_IN_PYTHON = {"tenfold", "nibabel", "yaml", "jsonargparse", "scipy"}


def main(name: str, corpus: str, *options: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        with instrumented(READ_IN_PYTHON):
            import file_makers

            path, read = file_makers.MAKERS[name](Path(place))
            judging.judge(read, path)  # readers import what they need when they are called
        Path(corpus).mkdir(parents=True, exist_ok=True)
        (Path(corpus) / "valid").write_bytes(path.read_bytes())
        judging.limit_memory()

        def one(data: bytes) -> None:
            path.write_bytes(data)
            fault = judging.judge(read, path)
            if fault:
                raise AssertionError(f"{name}: {fault}")

        def mutator(data: bytes, size: int, seed: int) -> bytes:
            return mutated(data, size, seed, atheris.Mutate)

        limits = [f"-timeout={judging.SECONDS}", "-rss_limit_mb=4096", "-max_len=65536"]
        atheris.Setup([sys.argv[0], corpus, *limits, *options], one, custom_mutator=mutator)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
