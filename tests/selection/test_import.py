"""`import tenfold.selection` is light, and selecting needs torch and numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ["sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "jinja2", "rich", "jsonargparse", "yaml"]
HEAVY += ["apricot", "numba", "transformers", "safetensors", "datasets", "triton"]


def test_import_loads_nothing_heavy():
    code = """
import json, sys
import torch, tenfold
before = set(sys.modules)
import tenfold.selection
light = sorted(set(sys.modules) - before)
from tenfold import selection
names = [selection.METHODS, selection.Recorder, selection.compat, selection.sharded, selection.files]
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"light": light, "loaded": loaded}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["light"] == ["tenfold.selection"]
    assert not set(found["loaded"]) & set(HEAVY)


def test_torch_and_numpy_are_enough():
    code = f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None
import numpy as np, tempfile, pathlib
from tenfold import selection
x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
for method in ("kcenter", "facility_location", "moderate", "herding", "ssp", "random"):
    chosen = selection.select(method, x, k=5)
    assert len(chosen) == 5
path = pathlib.Path(tempfile.mkdtemp()) / "kept.npz"
assert list(selection.Selection.load(chosen.save(path))) == list(chosen)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
