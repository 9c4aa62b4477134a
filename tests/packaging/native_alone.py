"""The compiled module of an installed wheel by itself, where there is no PyTorch for this Python.

    python native_alone.py FOLDER      FOLDER: the package, site-packages/tenfold

Loads it with the system's OpenMP, draws the same numbers on every instruction set, and compiles every Python
file of the package, which finds what this Python cannot read.
"""

from __future__ import annotations

import array
import compileall
import ctypes
import importlib.util
import sys
from pathlib import Path


def main(folder: Path) -> None:
    ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    (path,) = folder.glob("_cpu.*.so")
    spec = importlib.util.spec_from_file_location("tenfold._cpu", path)
    assert spec is not None
    assert spec.loader is not None
    cpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cpu)
    drawn = set()
    for isa in cpu.isa_available():
        cpu.use_isa(isa)
        numbers = array.array("f", bytes(4 * 1000))
        cpu.zo_sample(42, 0, 0, 0, 0, 1000, 0, numbers.buffer_info()[0], 1)
        assert 0.9 < sum(x * x for x in numbers) / 1000 < 1.1
        drawn.add(numbers.tobytes())
    assert len(drawn) == 1, "instruction sets differ"
    assert compileall.compile_dir(folder, quiet=1, force=True), "a file of the package does not compile"
    print(f"Python {sys.version.split()[0]}: {path.name} loads, {cpu.isa_available()} draw the same")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
