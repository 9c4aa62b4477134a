"""Compile the CUDA and Triton kernels without a GPU, and print what they take: registers, spills, wide loads.

    python -m tenfold.benchmarks.cuda_compile                  # nvcc for sm_90, Triton for sm_80 and sm_90
    python -m tenfold.benchmarks.cuda_compile --nvcc-arch sm_80 --only nvcc --json report.json
    python -m tenfold.benchmarks.cuda_compile --family power scores

Exit code 1 when a kernel does not compile, spills registers to local memory, or (for the kernels that promise
their bits) holds an operation that rounds differently.  What is not installed is named and left out;
--require makes that an error too.  Needs the source tree: a wheel carries no .cu files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
NVCC_FLAGS = ("-std=c++17", "-O3", "--fmad=false", "--expt-relaxed-constexpr", "--expt-extended-lambda")
"""As in CMakeLists.txt."""

EXACT_FAMILIES = ("zo", "lowrank", "dual", "sophia", "channel")
"""Families whose results are the same bits everywhere: nothing contracted, approximate or flushed to zero."""
KNOWN_SPILLS = {
    ("triton", "sm_90", "token_logprobs.fp32.16_rows"): 12,
    ("triton", "sm_90", "step.sign.bf16.bf16.fp32"): 8,
    ("triton", "sm_90", "columns.by_rows.fp32.160"): 368,
    ("triton", "sm_90", "columns.by_columns.fp32.160"): 272,
    ("triton", "sm_80", "columns.by_rows.fp32.160"): 628,
    ("triton", "sm_80", "columns.by_columns.fp32.160"): 288,
    ("triton", "sm_80", "columns.by_rows.bf16.80"): 40,
    ("triton", "sm_80", "columns.by_rows.fp16.80"): 40,
}
"""Bytes that a kernel is known to spill, and may."""
INEXACT = re.compile(r"\b(?:\w+\.approx|\w+\.full|[\w.]+\.ftz)(?:\.\w+)*\b|\b(?:mad|fma\.r[zmp])\.f\d+\b")
WIDE = {"load128": "LDG.E.128", "store128": "STG.E.128", "FFMA": "FFMA"}


@dataclass
class Kernel:
    """What one compiled kernel takes: registers per thread, bytes of stack and spills, some instructions."""

    compiler: str
    arch: str
    family: str
    name: str
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    sass: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def take(self, numbers: dict[str, int]) -> None:
        """Set fields from what ptxas_report gives."""
        for name, value in numbers.items():
            setattr(self, name, value)


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


# -- reading what ptxas and cuobjdump say -------------------------------------------------------------

_PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\S+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes "
    r"spill stores, (?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def ptxas_report(text: str) -> Iterator[tuple[str, dict[str, int]]]:
    """(mangled kernel name, its numbers) from the output of ptxas -v."""
    for found in _PTXAS.finditer(text):
        yield (
            found["name"],
            {
                "registers": int(found["registers"]),
                "stack": int(found["stack"]),
                "spill_stores": int(found["stores"]),
                "spill_loads": int(found["loads"]),
            },
        )


def _tool(name: str) -> str | None:
    """A CUDA tool: the one that Triton carries (it reads what Triton writes), or one on PATH."""
    try:
        import triton.backends.nvidia as nvidia
    except ImportError:
        return shutil.which(name)
    beside = Path(nvidia.__file__).parent / "bin" / name
    return str(beside) if beside.exists() else shutil.which(name)


def _triton_assembler(arch: int) -> str | None:
    """The ptxas that this Triton uses for cuda:`arch`: it may carry several, each for its PTX versions."""
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        return str(get_ptxas(arch).path)
    except (ImportError, TypeError, AttributeError, RuntimeError):
        return _tool("ptxas")


def sass_counts(cubin: Path) -> dict[str, dict[str, int]]:
    """Instructions of interest per mangled kernel; empty without cuobjdump."""
    tool = _tool("cuobjdump")
    if tool is None:
        return {}
    counts = {}
    for part in _run((tool, "-sass", cubin)).stdout.split("Function : ")[1:]:
        name, _, code = part.partition("\n")
        counts[name.strip()] = {label: len(re.findall(rf"\b{op}\b", code)) for label, op in WIDE.items()}
    return counts


def _readable(names: Sequence[str]) -> dict[str, str]:
    """Mangled C++ names as `kernel<types>`."""
    tool = shutil.which("c++filt")
    plain = _run((tool, *names)).stdout.splitlines() if tool and names else list(names)
    noise = re.compile(r"\(anonymous namespace\)::|\btf_cuda::|\btenfold::|^void ")
    return {
        mangled: re.sub(r"\((?!\w+\)\d).*$", "", noise.sub("", name))
        for mangled, name in zip(names, plain, strict=True)
    }


def _check_spills(kernel: Kernel) -> None:
    known = KNOWN_SPILLS.get((kernel.compiler, kernel.arch, kernel.name), 0)
    if kernel.spill_stores + kernel.spill_loads > known:
        kernel.faults.append(f"spills {kernel.spill_stores} + {kernel.spill_loads} bytes")


def _check_ptx(kernel: Kernel, ptx: str) -> None:
    inexact = sorted(set(INEXACT.findall(ptx)))
    if kernel.family in EXACT_FAMILIES and inexact:
        kernel.faults.append("rounds differently: " + ", ".join(inexact))


# -- CUDA C++ ------------------------------------------------------------------------------------------


def _ptx_of(ptx: str) -> dict[str, str]:
    """The body of each kernel in a PTX file."""
    parts = re.split(r"\.entry\s+", ptx)[1:]
    return {re.split(r"\W", part, maxsplit=1)[0]: part for part in parts}


def compile_cuda(nvcc: str, source: Path, arch: str, folder: Path) -> list[Kernel]:
    """Compile one .cu file for one architecture, to machine code and to PTX."""
    family = source.parent.name
    cubin, ptx = folder / f"{source.stem}.cubin", folder / f"{source.stem}.ptx"
    common = (nvcc, *NVCC_FLAGS, "-DTF_NS=tf_cuda", f"-I{KERNELS}", f"-arch={arch}", source)
    done = _run((*common, "-ptx", "-o", ptx))
    if done.returncode == 0:
        done = _run((*common, "-Xptxas", "-v", "-cubin", "-o", cubin))
    if done.returncode != 0:
        return [Kernel("nvcc", arch, family, source.name, faults=["does not compile:\n" + done.stderr])]
    numbers = dict(ptxas_report(done.stderr + done.stdout))
    names, sass, bodies = _readable(list(numbers)), sass_counts(cubin), _ptx_of(ptx.read_text())
    kernels = []
    for mangled, found in numbers.items():
        kernel = Kernel("nvcc", arch, family, names[mangled], sass=sass.get(mangled, {}))
        kernel.take(found)
        _check_spills(kernel)
        _check_ptx(kernel, bodies.get(mangled, ""))
        kernels.append(kernel)
    return kernels


# -- Triton --------------------------------------------------------------------------------------------


def triton_modules() -> list[tuple[str, str]]:
    """(family, module) of the Triton files: FAMILY/NAME_triton.py."""
    return sorted((path.parent.name, path.stem) for path in KERNELS.glob("*/*_triton.py"))


def compile_triton(family: str, module: str, arch: int, folder: Path) -> list[Kernel]:
    """Compile what `ahead_of_time()` of a Triton module lists, for cuda:`arch`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernels = []
    for name, function, signature, constants, options in import_module(
        f"tenfold.kernels.{family}.{module}"
    ).ahead_of_time():
        kernel = Kernel("triton", f"sm_{arch}", family, name)
        kernels.append(kernel)
        order = list(signature)
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, p in enumerate(order) if signature[p].startswith("*")
        }
        source = ASTSource(
            function,
            signature,
            constexprs={(order.index(k),): v for k, v in constants.items()},
            attrs=aligned,
        )
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        except Exception as error:  # whatever the compiler raises is the finding
            kernel.faults.append(f"does not compile: {type(error).__name__}: {error}")
            continue
        ptx = compiled.asm["ptx"]
        fusion = () if options.get("enable_fp_fusion", True) else ("--fmad=false",)
        _measure_triton(kernel, ptx, compiled.asm["cubin"], (_triton_assembler(arch), *fusion), folder)
        _check_spills(kernel)
        _check_ptx(kernel, ptx)
    return kernels


def _measure_triton(
    kernel: Kernel, ptx: str, cubin: bytes, assembler: tuple[str | None, ...], folder: Path
) -> None:
    """Assemble the PTX again, to be told about registers and spills."""
    source, binary = folder / "triton.ptx", folder / "triton.cubin"
    source.write_text(ptx)
    binary.write_bytes(cubin)
    kernel.sass = next(iter(sass_counts(binary).values()), {})
    target = re.search(r"\.target\s+(sm_\w+)", ptx)
    ptxas, *flags = assembler
    if target is None or ptxas is None:
        kernel.faults.append("no ptxas to read registers with")
        return
    report = _run(
        (ptxas, "-v", *map(str, flags), f"--gpu-name={target[1]}", source, "-o", folder / "again.cubin")
    )
    for _, found in ptxas_report(report.stderr):
        kernel.take(found)
    if not kernel.registers:
        kernel.faults.append(f"ptxas: {report.stderr.strip()[-400:]}")


# -- the command ----------------------------------------------------------------------------------------


def table(kernels: Sequence[Kernel]) -> str:
    """The kernels as lines of text."""
    head = f"{'compiler':9}{'arch':7}{'family':9}{'kernel':58}{'regs':>5}{'stack':>6}{'spills':>8}"
    head += "".join(f"{label:>9}" for label in WIDE)
    lines = [head]
    for k in kernels:
        spills = f"{k.spill_stores}+{k.spill_loads}"
        wide = "".join(f"{k.sass.get(label, '-'):>9}" for label in WIDE)
        lines.append(
            f"{k.compiler:9}{k.arch:7}{k.family:9}{k.name:58}{k.registers:>5}{k.stack:>6}{spills:>8}{wide}"
        )
        lines.extend(f"    FAULT {fault}" for fault in k.faults)
    return "\n".join(lines)


PAGE = """# What the GPU compilers make of the kernels

Every CUDA C++ kernel as nvcc compiles it, and every Triton kernel as Triton does, without a GPU:
`python -m benchmarks.cuda_compile --nvcc-arch sm_80 sm_90 --page docs/compiled.md`. Registers are per thread;
spills are bytes of local memory that a kernel writes and reads back; wide are kernels whose machine code
loads or stores 128 bits at a time. A kernel that spills more than is known of it, or that promises its bits
and holds an operation that rounds otherwise, fails the command.

| family | compiler | for | kernels | registers | spills | wide |
|---|---|---|--:|--:|--:|--:|
"""


def page(kernels: Sequence[Kernel], versions: str) -> str:
    """The kernels family by family, as Markdown."""
    groups: dict[tuple[str, str, str], list[Kernel]] = {}
    for k in kernels:
        groups.setdefault((k.family, k.compiler, k.arch), []).append(k)
    lines = []
    for (family, compiler, arch), found in sorted(groups.items()):
        registers = [k.registers for k in found]
        spills = sum(k.spill_stores + k.spill_loads for k in found)
        wide = sum(bool(k.sass.get("load128") or k.sass.get("store128")) for k in found)
        lines.append(
            f"| `{family}` | {compiler} | {arch} | {len(found)} | {min(registers)} to {max(registers)} | "
            f"{spills or ''} | {wide} |"
        )
    spilling = [k for k in kernels if k.spill_stores + k.spill_loads]
    said = [
        f"- `{k.family}` {k.name} ({k.compiler}, {k.arch}): {k.spill_stores} written, {k.spill_loads} read"
        for k in spilling
    ]
    known = ["", "Kernels that spill (bytes a thread):", "", *said] if said else []
    return PAGE + "\n".join([*lines, *known, "", f"Compiled with {versions}.", ""])


def _versions() -> str:
    """Of the compilers that are here."""
    found = []
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        release = re.search(r"release [\d.]+, V([\d.]+)", _run((nvcc, "--version")).stdout)
        found.append(f"nvcc {release[1]}" if release else "nvcc")
    with contextlib.suppress(ImportError):
        found.append(f"Triton {import_module('triton').__version__}")
    return " and ".join(found)


def _cuda_kernels(
    arches: Sequence[str], folder: Path, missing: list[str], families: Sequence[str]
) -> list[Kernel]:
    nvcc = shutil.which("nvcc") or os.environ.get("CUDACXX")
    sources = sorted(KERNELS.glob("*/*_cuda.cu"))
    if nvcc is None:
        missing.append("nvcc is not on PATH: no CUDA C++ kernel was compiled")
        return []
    if not sources:
        missing.append(f"no .cu files under {KERNELS.name}/: this is not a source tree")
    chosen = [source for source in sources if not families or source.parent.name in families]
    return [k for arch in arches for source in chosen for k in compile_cuda(nvcc, source, arch, folder)]


def _triton_kernels(
    arches: Sequence[int], folder: Path, missing: list[str], families: Sequence[str]
) -> list[Kernel]:
    try:
        import triton  # noqa: F401
    except ImportError:
        missing.append("Triton is not installed: no Triton kernel was compiled")
        return []
    return [
        k
        for arch in arches
        for family, module in triton_modules()
        if not families or family in families
        for k in compile_triton(family, module, arch, folder)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print, and return the exit code."""
    known = sorted({path.parent.name for path in KERNELS.glob("*/*_native.py")})
    parser = argparse.ArgumentParser(prog="python -m tenfold.benchmarks.cuda_compile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", choices=("nvcc", "triton"), help="compile only these")
    parser.add_argument(
        "--family",
        nargs="+",
        default=[],
        choices=known,
        metavar="NAME",
        help="compile only these (power ...)",
    )
    parser.add_argument("--nvcc-arch", nargs="+", default=["sm_90"], metavar="SM", help="default: sm_90")
    parser.add_argument(
        "--triton-arch", nargs="+", type=int, default=[80, 90], metavar="N", help="default: 80 90"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write a summary by families here (Markdown)"
    )
    parser.add_argument("--require", action="store_true", help="a missing compiler is an error")
    options = parser.parse_args(argv)
    if os.environ.pop("TRITON_INTERPRET", "0") != "0" and "triton" in sys.modules:
        parser.error("Triton was already imported as an interpreter; run this as a process of its own")
    missing: list[str] = []
    kernels: list[Kernel] = []
    with tempfile.TemporaryDirectory() as name:
        if options.only != "triton":
            kernels += _cuda_kernels(options.nvcc_arch, Path(name), missing, options.family)
        if options.only != "nvcc":
            kernels += _triton_kernels(options.triton_arch, Path(name), missing, options.family)
    print(table(kernels))
    faults = sum(bool(k.faults) for k in kernels)
    print(f"{len(kernels)} kernels, {faults} with faults")
    for line in missing:
        print(line)
    if options.json:
        options.json.write_text(json.dumps([asdict(k) for k in kernels], indent=1) + "\n")
    if options.page and not faults and not missing:
        options.page.write_text(page(kernels, _versions()))
    return 1 if faults or (missing and options.require) else 0


if __name__ == "__main__":
    sys.exit(main())
