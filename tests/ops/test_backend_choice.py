"""Which implementation runs, and what is said when the one asked for cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from tenfold.kernels.zo import zo_native
from tenfold.kernels.zo import zo_reference as ref

import tenfold
from tenfold import _backend, _native
from tenfold._backend import OPS, PerformanceWarning, chosen_backend, forced_backend, why_not
from tenfold.ops import random_words, stochastic_round, zo_moments, zo_perturb_, zo_sample


@pytest.fixture(autouse=True)
def unforced(monkeypatch):
    monkeypatch.delenv("TENFOLD_BACKEND", raising=False)
    monkeypatch.setattr(_backend, "_forced", None)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Names of the modules whose chain_ or sample_ ran, in order."""
    seen: list[str] = []

    def spy(module, name: str) -> None:
        original = getattr(module, name)

        def wrapped(*args, **kwargs):
            seen.append(module.__name__.rpartition("_")[2])
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    for module in (zo_native, ref):
        for name in ("chain_", "sample_", "words_", "stochastic_round"):
            spy(module, name)
    return seen


def every_op() -> None:
    zo_perturb_([torch.zeros(5)], [0], 1, 0, 0.1)
    zo_sample(1, n=5)
    random_words(1, blocks=1)
    stochastic_round(torch.ones(3), torch.bfloat16, 1)


def test_the_native_kernels_are_the_default_on_the_cpu(calls):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        every_op()
    assert calls == ["native"] * 4


def test_a_block_forces_a_backend_and_ends(calls):
    with tenfold.use_backend("reference") as used:
        assert isinstance(used, tenfold.use_backend)
        assert forced_backend() == "reference"
        every_op()
        with tenfold.use_backend("cpu"):
            zo_sample(1, n=5)
        zo_sample(1, n=5)
        with tenfold.use_backend("auto"):
            zo_sample(1, n=5)
    assert forced_backend() is None
    zo_sample(1, n=5)
    assert calls == ["reference"] * 4 + ["native", "reference", "native", "native"]


def test_the_choice_before_is_back_after_an_error():
    with pytest.raises(ZeroDivisionError), tenfold.use_backend("reference"):
        raise ZeroDivisionError
    assert forced_backend() is None


def test_a_call_forces_from_there_on(calls):
    tenfold.use_backend("reference")
    zo_sample(1, n=5)
    tenfold.use_backend("auto")
    zo_sample(1, n=5)
    assert calls == ["reference", "native"]


def test_the_environment_forces_a_backend(calls, monkeypatch):
    monkeypatch.setenv("TENFOLD_BACKEND", "reference")
    zo_sample(1, n=5)
    with tenfold.use_backend("cpu"):
        zo_sample(1, n=5)
    with tenfold.use_backend("auto"):
        zo_sample(1, n=5)
    monkeypatch.setenv("TENFOLD_BACKEND", "auto")
    zo_sample(1, n=5)
    monkeypatch.setenv("TENFOLD_BACKEND", "")
    zo_sample(1, n=5)
    assert calls == ["reference", "native", "native", "native", "native"]


@pytest.mark.parametrize("name", ["gpu", "CPU", "", None, 3, ["cpu"]])
def test_unknown_names_are_refused(name):
    with pytest.raises((TypeError, ValueError), match="use_backend: expected one of 'auto', 'cpu'"):
        tenfold.use_backend(name)
    assert forced_backend() is None


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("TENFOLD_BACKEND", "gpu")
    w = torch.zeros(5)
    with pytest.raises(ValueError, match=r"TENFOLD_BACKEND: expected one of 'cpu', .*got 'gpu'"):
        zo_perturb_([w], [0], 1, 0, 0.1)
    assert torch.equal(w, torch.zeros(5))


def test_a_forced_backend_is_never_replaced():
    w = torch.zeros(5)
    with tenfold.use_backend("cuda"), pytest.raises(RuntimeError, match=r"'cuda' was forced.*CUDA device"):
        zo_perturb_([w], [0], 1, 0, 0.1)
    assert torch.equal(w, torch.zeros(5))


def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    w = torch.zeros(5)
    with (
        tenfold.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"'triton' was forced.*TRITON_INTERPRET"),
    ):
        zo_perturb_([w], [0], 1, 0, 0.1)
    monkeypatch.setattr(_backend, "_has_triton", lambda: False)
    with tenfold.use_backend("triton"), pytest.raises(RuntimeError, match="pip install triton"):
        zo_perturb_([w], [0], 1, 0, 0.1)
    assert torch.equal(w, torch.zeros(5))


def test_a_backend_that_an_op_is_not_written_for_is_named(monkeypatch):
    monkeypatch.setitem(OPS, "zo_sample", ("cpu", "reference"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with tenfold.use_backend("triton"), pytest.raises(RuntimeError, match=r"zo_sample.*it has cpu, ref"):
        zo_sample(1, n=5)


def test_falling_back_to_the_reference_warns_once(monkeypatch):
    monkeypatch.setattr(_backend, "_warned", set())
    with pytest.warns(
        PerformanceWarning, match=r"tenfold\.zo_sample runs as the slow PyTorch reference on 'xpu'"
    ):
        assert chosen_backend("zo_sample", "xpu") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen_backend("zo_sample", "xpu") == "reference"


def test_every_op_has_the_reference_and_known_backends():
    assert {"zo_chain_", "zo_adam_", "zo_sample", "random_words", "stochastic_round"} <= set(OPS)
    for name, backends in OPS.items():
        assert backends[-1] == "reference", name
        assert set(backends) <= set(_backend.BACKENDS), name


def test_reasons():
    assert why_not("reference", "anything") is None
    assert why_not("cpu", "cpu") is None
    assert "on the CPU" in why_not("cpu", "cuda")
    assert "CUDA device" in why_not("cuda", "cpu")


def test_moments_obey_the_forced_backend():
    native = zo_moments(1, n=5000)
    with tenfold.use_backend("reference"):
        assert zo_moments(1, n=5000) == pytest.approx(native, rel=1e-12)
    with tenfold.use_backend("cuda"), pytest.raises(RuntimeError, match="zo_moments"):
        zo_moments(1, n=5000)


# -- instruction sets ---------------------------------------------------------------------------------------


def test_instruction_sets_are_listed_and_the_best_is_used():
    compiled, available = _native.cpu.isa_compiled(), _native.cpu.isa_available()
    assert compiled[0] == "baseline"
    assert set(available) <= set(compiled)
    assert "baseline" in available
    flags = set()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    if flags:
        assert ("avx2" in available) == ("avx2" in compiled and {"avx2", "fma", "f16c"} <= flags)
        needed = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
        assert ("avx512" in available) == ("avx512" in compiled and needed <= flags)


def test_an_unknown_instruction_set_changes_nothing():
    before = _native.cpu.isa_used()
    with pytest.raises(ValueError, match=r"expected one of baseline.*got 'sse9'"):
        _native.cpu.use_isa("sse9")
    assert _native.cpu.isa_used() == before


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter, quiet and on one thread."""
    settings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=120
    )


def test_the_environment_chooses_the_instruction_set():
    done = python("from tenfold import _native; print(_native.cpu.isa_used())", TENFOLD_ISA="baseline")
    assert done.stdout.strip() == "baseline", done.stderr


def test_an_unknown_instruction_set_in_the_environment_is_named():
    done = python("import tenfold.ops", TENFOLD_ISA="sse9")
    assert done.returncode != 0
    assert "TENFOLD_ISA: expected one of baseline" in done.stderr.strip().splitlines()[-1]


def test_importing_is_light_and_brings_one_openmp_runtime():
    """On top of PyTorch and as installed, that is, compiled to bytecode: the first start does that."""
    code = """
import sys, time, torch
before = set(sys.modules)
start = time.process_time()
import tenfold
tenfold.ops
seconds = time.process_time() - start
heavy = {"triton", "transformers", "matplotlib", "jsonargparse", "rich", "jinja2", "pandas", "scipy"}
print(sorted(heavy & (set(sys.modules) - before)))
tenfold.ops.zo_perturb_([torch.zeros(100000)], [0], 1, 0, 0.1)
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print(len({l.split()[-1] for l in maps.splitlines() if "gomp" in l or "iomp" in l or "libomp" in l}))
print(seconds)
"""
    starts = [python(code, TRITON_INTERPRET="0", PYTHONDONTWRITEBYTECODE="") for _ in range(3)]
    assert not any(done.returncode for done in starts), starts[0].stderr
    heavy, runtimes, _ = starts[0].stdout.splitlines()
    assert heavy == "[]"
    assert int(runtimes) <= 1
    assert min(float(done.stdout.splitlines()[2]) for done in starts) < 0.3
