"""What the compilers make of the kernels: nothing here needs a GPU, only nvcc or Triton."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from tenfold.benchmarks import cuda_compile

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

# One Box-Muller pair, counted by hand from kernels/core/normal.hpp.
FMA, MUL, ADD = 18, 10, 2

PTXAS_TEXT = """\
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_90'
ptxas info    : Function properties for _Z5firstv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
ptxas info    : Compiling entry function '_Z6secondv' for 'sm_90'
ptxas info    : Function properties for _Z6secondv
    48 bytes stack frame, 40 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def test_ptxas_text_is_read():
    report = dict(cuda_compile.ptxas_report(PTXAS_TEXT))
    assert report["_Z5firstv"] == {"registers": 32, "stack": 0, "spill_stores": 0, "spill_loads": 0}
    assert report["_Z6secondv"] == {"registers": 255, "stack": 48, "spill_stores": 40, "spill_loads": 36}


@pytest.mark.parametrize(
    "line",
    [
        "sqrt.approx.f32 %r1, %r2;",
        "div.full.f32 %r1, %r2, %r3;",
        "add.ftz.f32 %r1, %r2, %r3;",
        "fma.rz.f32 %r1, %r2, %r3, %r4;",
        "sqrt.approx.ftz.f32 %r1, %r2;",
    ],
)
def test_inexact_operations_are_faults_in_exact_families(line):
    exact, free = (cuda_compile.Kernel("nvcc", "sm_90", family, "k") for family in ("zo", "logprob"))
    for kernel in (exact, free):
        cuda_compile._check_ptx(kernel, "fma.rn.f32 %r1, %r2, %r3, %r4;\n" + line)
    assert exact.faults
    assert not free.faults


def test_exact_operations_are_no_faults():
    kernel = cuda_compile.Kernel("nvcc", "sm_90", "zo", "k")
    cuda_compile._check_ptx(
        kernel, "fma.rn.f32 a; mul.rn.f32 b; add.f32 c; sqrt.rn.f32 d; div.rn.f32 e; mad.lo.s32 f;"
    )
    assert not kernel.faults


def test_spills_are_faults():
    kernel = cuda_compile.Kernel("nvcc", "sm_90", "zo", "k", spill_stores=4)
    cuda_compile._check_spills(kernel)
    assert kernel.faults
    assert "FAULT" in cuda_compile.table([kernel])


def test_page_sums_up_families():
    kernels = [
        cuda_compile.Kernel("nvcc", "sm_90", "zo", "a", registers=32, sass={"load128": 4}),
        cuda_compile.Kernel("nvcc", "sm_90", "zo", "b", registers=40, spill_stores=4, spill_loads=8),
        cuda_compile.Kernel("triton", "sm_80", "mmd", "c", registers=80),
    ]
    text = cuda_compile.page(kernels, "nvcc 13")
    assert "| `zo` | nvcc | sm_90 | 2 | 32 to 40 | 12 | 1 |" in text
    assert "| `mmd` | triton | sm_80 | 1 | 80 to 80 |  | 0 |" in text
    assert "- `zo` b (nvcc, sm_90): 4 written, 8 read" in text


def _floating_operations(ptx: str) -> Counter[str]:
    """How many fma, mul, add (with sub), sqrt ... on float32; without moves, selections, conversions."""
    counts: Counter[str] = Counter()
    for operation in re.findall(r"\b([a-z]+)((?:\.\w+)*)\.f32\b", ptx):
        name = {"sub": "add"}.get(operation[0], operation[0])
        if name not in ("cvt", "ld", "st", "mov", "selp", "neg", "setp"):
            counts[name] += 1
    return counts


@pytest.mark.slow
@needs_nvcc
def test_nvcc_contracts_nothing(tmp_path: Path):
    """The PTX of one Box-Muller pair holds exactly the operations that normal.hpp writes."""
    source = tmp_path / "pair.cu"
    source.write_text(
        '#include "core/normal.hpp"\n'
        'extern "C" __global__ void pair(const unsigned* word, float* z) {\n'
        "  tf_cuda::box_muller<float, uint32_t>(word[0], word[1], z[0], z[1]);\n}\n"
    )
    nvcc = shutil.which("nvcc")
    assert nvcc is not None
    flags = [*cuda_compile.NVCC_FLAGS, "-DTF_NS=tf_cuda", f"-I{cuda_compile.KERNELS}", "-arch=sm_90", "-ptx"]
    out = tmp_path / "pair.ptx"
    subprocess.run([nvcc, *flags, str(source), "-o", str(out)], check=True, capture_output=True)
    assert _floating_operations(out.read_text()) == {"fma": FMA, "mul": MUL, "add": ADD, "sqrt": 1}


_TRITON_PTX = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from importlib import import_module
cases = {case[0]: case[1:] for case in import_module("tenfold.kernels.FAMILY").ahead_of_time()}
kernel, signature, constants, options = cases["CASE"]
order = list(signature)
source = ASTSource(kernel, signature, constexprs={(order.index(k),): v for k, v in constants.items()})
print(triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"])
"""


def _without_interpreter() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def _triton_ptx(family: str, case: str) -> str:
    script = _TRITON_PTX.replace("FAMILY", family).replace("CASE", case)
    done = subprocess.run(
        [sys.executable, "-c", script], env=_without_interpreter(), capture_output=True, text=True, check=True
    )
    return done.stdout


@needs_triton
def test_all_triton_files_are_compiled():
    found = set(cuda_compile.triton_modules())
    assert {("zo", "zo_triton"), ("sophia", "sophia_triton"), ("logprob", "rows_triton")} <= found
    assert ("logprob", "logprob_triton") in found


@pytest.mark.slow
@needs_triton
def test_triton_contracts_nothing_in_sophia():
    """Per element of the float32 step: scale, two decays, denominator (mul), eps (add), m and theta (fma)."""
    ptx = _triton_ptx("sophia.sophia_triton", "step.add.fp32.fp32.fp32")
    found = _floating_operations(ptx)
    elements = found["div"]
    assert elements >= 4
    assert {name: found[name] for name in ("fma", "mul", "add", "div")} == {
        "fma": 2 * elements,
        "mul": 4 * elements,
        "add": elements,
        "div": elements,
    }
    assert "div.rn.f32" in ptx
    assert "ld.global.v4" in ptx
    assert "st.global.v4" in ptx


@pytest.mark.slow
@needs_triton
def test_triton_contracts_nothing():
    """Per thread of the float32 chain: whole pairs, one product (decay) and one fma for each element."""
    ptx = _triton_ptx("zo.zo_triton", "chain.gaussian.fp32")
    found = _floating_operations(ptx)
    pairs = found["sqrt"]
    assert pairs >= 1
    elements = 2 * pairs
    assert found == {
        "fma": FMA * pairs + elements,
        "mul": MUL * pairs + elements,
        "add": ADD * pairs,
        "sqrt": pairs,
    }
    assert "ld.global.v4" in ptx
    assert "st.global.v4" in ptx


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiler", [pytest.param("nvcc", marks=needs_nvcc), pytest.param("triton", marks=needs_triton)]
)
def test_every_kernel_compiles_without_spills(compiler):
    command = [
        sys.executable,
        "-m",
        "tenfold.benchmarks.cuda_compile",
        "--only",
        compiler,
        "--triton-arch",
        "80",
    ]
    done = subprocess.run(command, env=_without_interpreter(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^[1-9]\d* kernels, 0 with faults", done.stdout, re.MULTILINE), done.stdout
