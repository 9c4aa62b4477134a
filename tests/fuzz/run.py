"""Runs the coverage-guided targets one after the other: python run.py SECONDS [TARGET ...]

Targets are "ops", the readers of tests/robustness/file_makers.py by name, and native_*.cpp by file name
without its ending. Corpora and crashing inputs stay in build/fuzz. Exits with 1 where a target failed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUT = ROOT / "build" / "fuzz"

SANITIZE = "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"
FLAGS = (
    "-std=c++17",
    "-O1",
    "-g1",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
)
ISAS = {"baseline": (), "avx2": ("-mavx2", "-mfma", "-mf16c")}


def natives() -> list[str]:
    return sorted(path.stem for path in HERE.glob("native_*.cpp"))


def built(name: str) -> Path:
    """The program of native_FAMILY_FAMILY.cpp with the families' kernels, once for each instruction set."""
    families, folder = name.split("_")[1:], OUT / "native"
    folder.mkdir(parents=True, exist_ok=True)
    objects, newest = [], max(p.stat().st_mtime for p in (ROOT / "kernels").rglob("*.[ch]pp"))
    for isa, more in ISAS.items():
        for source in (p for f in families for p in sorted((ROOT / "kernels" / f).glob("*_cpu.cpp"))):
            objects.append(str(folder / f"{source.stem}-{isa}.o"))
            if os.path.exists(objects[-1]) and os.path.getmtime(objects[-1]) > newest:
                continue
            named = (f"-DTF_NS=tf_{isa}", f"-DTF_ISA_{isa.upper()}=1", "-DTF_SANITIZE=1", *more)
            compiled(*named, "-c", str(source), "-o", objects[-1])
    compiled(str(HERE / f"{name}.cpp"), *objects, "-o", str(folder / name))
    return folder / name


def compiled(*arguments: str) -> None:
    subprocess.run(
        ["clang++", *FLAGS, *SANITIZE, f"-I{ROOT / 'kernels'}", f"-I{HERE}", *arguments], check=True
    )


def command(name: str) -> list[str]:
    if name.startswith("native_"):
        return [str(built(name)), "-timeout=20", "-rss_limit_mb=4096", "-len_control=0", "-max_len=2048"]
    script = ["ops.py"] if name == "ops" else ["readers.py", name]
    return [sys.executable, str(HERE / script[0]), *script[1:]]


def ran(name: str, seconds: int) -> bool:
    """Whether the target found nothing wrong; prints what libFuzzer counted."""
    corpus, crashes = OUT / "corpus" / name, OUT / "crashes" / name
    for folder in (corpus, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={crashes}/", "-print_final_stats=1"]
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "TF_CPP_MIN_LOG_LEVEL": "3"}
    place = {"TMPDIR": "/dev/shm"} if os.path.isdir("/dev/shm") else {}
    done = subprocess.run(
        ["nice", *command(name), str(corpus), *options],
        env={**os.environ, **quiet, **place},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    (OUT / f"{name}.log").write_text(done.stdout)
    counted = re.findall(r"^#\d+.*cov: .*", done.stdout, re.M)
    runs = re.findall(r"number_of_executed_units: (\d+)", done.stdout)
    shown = re.sub(r"lim:.*", "", counted[-1].split("cov:")[1]).strip() if counted else "nothing counted"
    print(f"{name}: {runs[-1] if runs else '?'} runs, cov: {shown}", flush=True)
    if done.returncode:
        artifacts = re.findall(r"Test unit written to (\S+)", done.stdout)
        print(
            f"FAILED {name}: {', '.join(artifacts) or 'before it ran'}; the log: {OUT / name}.log", flush=True
        )
    return done.returncode == 0


def main(seconds: int, *names: str) -> int:
    if find_spec("atheris") is None:
        sys.exit(
            "fuzz: expected the package atheris, got none; pip install atheris (Linux, Python 3.11 to 3.13)"
        )
    sys.path.insert(0, str(HERE.parent / "robustness"))
    from file_makers import MAKERS

    known = ("ops", *natives(), *MAKERS)
    for name in set(names) - set(known):
        sys.exit(f"fuzz: expected targets of {', '.join(known)}, got {name!r}")
    chosen = names or known
    if any(name.startswith("native_") for name in chosen) and shutil.which("clang++") is None:
        sys.exit(
            "fuzz: expected clang++ with libFuzzer, got none (Debian: apt install clang libclang-rt-14-dev)"
        )
    fine = [ran(name, seconds) for name in chosen]  # all of them, whatever fails
    return int(not all(fine))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
