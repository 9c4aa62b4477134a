"""`import tenfold` is cheap, and asks for torch and numpy only."""

from __future__ import annotations

import json
import os
import subprocess
import sys

LIMIT_S = 0.3

_TIMED = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import tenfold
plain = time.process_time() - start
import tenfold.ops, tenfold.optim
every = time.process_time() - start
loaded = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"plain": plain, "every": every, "loaded": loaded}))
"""

HEAVY = {
    *(
        "transformers",
        "tokenizers",
        "gguf",
        "safetensors",
        "matplotlib",
        "jinja2",
        "rich",
        "jsonargparse",
        "yaml",
        "psutil",
    ),
    *("triton", "cupy", "pandas", "scipy", "sklearn"),
}


def measured() -> dict:
    """With compiled modules, as pip installs them: an editable checkout writes them at the first import."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", _TIMED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_import_takes_less_than_the_limit() -> None:
    """Processor time, the best of several: other programs may use the machine."""
    best = measured()
    for _ in range(4):
        if best["plain"] < LIMIT_S and best["every"] < LIMIT_S:
            break
        again = measured()
        best = {
            **best,
            "plain": min(best["plain"], again["plain"]),
            "every": min(best["every"], again["every"]),
        }
    assert best["plain"] < LIMIT_S, best
    assert best["every"] < LIMIT_S, best


def test_import_loads_nothing_heavy() -> None:
    loaded = set(measured()["loaded"])
    assert "tenfold" in loaded
    assert not loaded & HEAVY


def test_ops_and_optimizers_need_torch_and_numpy_only() -> None:
    """With every other third-party package out of reach."""
    blocked = sorted(HEAVY)
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import torch, tenfold, tenfold.ops, tenfold.optim
w = torch.zeros(8)
tenfold.ops.zo_perturb_([w], [0], seed=1, query=0, c=1.0)
assert w.abs().sum() > 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_a_star_loads_no_submodule_and_dir_names_them_all() -> None:
    code = (
        "import sys\nfrom tenfold import *\nimport tenfold\n"
        "names = tenfold._SUBMODULES\n"
        "print([n for n in names if 'tenfold.' + n in sys.modules], {*names} - {*dir(tenfold)})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] set()"
