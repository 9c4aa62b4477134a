"""Coverage-guided fuzzing of every public op: the fuzzer's bytes are the choices of test_ops_fuzz. Needs atheris.

python ops.py CORPUS [libFuzzer's options]
"""

from __future__ import annotations

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    limits = ["-timeout=60", "-rss_limit_mb=4096", "-max_len=4096", "-len_control=0"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:]], any_op.hypothesis.fuzz_one_input)
    atheris.Fuzz()
