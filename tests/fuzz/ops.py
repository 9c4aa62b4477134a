"""Coverage-guided fuzzing of every public op: the fuzzer's bytes are test_ops_fuzz's choices. Needs atheris.

python ops.py CORPUS [libFuzzer's options]
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris
import torch  # before instrumenting: not what is looked at
from hypothesis import given, settings
from hypothesis import strategies as st
from instrument import instrumented

sys.path.insert(0, str(Path(__file__).parents[1] / "robustness"))

with instrumented({"tenfold"}):
    import test_ops_fuzz as fuzzed


@settings(database=None, deadline=None)
@given(st.sampled_from(fuzzed.NAMES), st.booleans(), st.data())
def any_op(name: str, spoil: bool, data: st.DataObject) -> None:
    fuzzed.draw_and_check(name, spoil, data)


def main(corpus: str, *options: str) -> None:
    torch.set_num_threads(1)
    for seed in range(300):  # most short inputs end before all is drawn
        (Path(corpus) / f"random-{seed}").write_bytes(random.Random(seed).randbytes(600))
    limits = ["-timeout=60", "-rss_limit_mb=4096", "-max_len=4096", "-len_control=0"]
    atheris.Setup([sys.argv[0], corpus, *limits, *options], any_op.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
