"""Independent jobs on all cores of this machine, or on a cluster: joblib, with loky or dask behind it.

Both give the same results in the same form. Jobs are handed out as workers become free, so that neither the
jobs nor their results pile up.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

__all__ = ["run_jobs", "usable_cores"]

CONNECT = 10.0
"""Seconds to wait for a cluster's scheduler."""

LOOK = 1.0
"""Seconds between two looks of a worker at whether the process that started it is still there."""

Job = TypeVar("Job")
Done = TypeVar("Done")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    function: Callable[[Job], Done], jobs: Sequence[Job], *, workers: int = 0, cluster: str = ""
) -> Iterator[Done]:
    """`function(job)` of every job, as they are done.

    Args:
        function: importable, so that another process finds it.
        jobs: picklable.
        workers: processes; 0 for all usable cores, 1 for none but this one.
        cluster: address of a dask scheduler ("tcp://host:8786"): its workers do the work, whatever
            `workers` is. They must see the files under the same names.

    Workers of this machine end when this process is killed; on Windows, where a process does not see that its
    parent has gone, they do not.

    Raises:
        ModuleNotFoundError: `cluster` is given and dask.distributed is not installed.
        RuntimeError: the scheduler cannot be reached, or a worker died (for want of memory, mostly).
    """
    if cluster:
        yield from _on_cluster(function, jobs, cluster)
        return
    workers = min(workers or usable_cores(), max(len(jobs), 1))
    if workers == 1:
        for job in jobs:
            yield _quiet(function, job)
        return
    import joblib
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    parallel = joblib.Parallel(
        n_jobs=workers, backend="loky", return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs"
    )
    try:
        parent = os.getpid()
        yield from parallel(joblib.delayed(_work)(function, job, parent) for job in jobs)
    except TerminatedWorkerError as error:
        raise RuntimeError(
            f"workers: expected {workers} processes that stay alive, got one that was ended from outside, "
            "as happens when memory runs out; --resume goes on, fewer --workers need less memory"
        ) from error


def _on_cluster(function: Callable[[Job], Done], jobs: Sequence[Job], address: str) -> Iterator[Done]:
    import joblib
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT, set_as_default=True)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"cluster: expected a dask scheduler at {address}, got none ({error})") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise RuntimeError(f"cluster: expected workers at {address}, got a scheduler without any")
        with joblib.parallel_config(backend="dask", wait_for_workers_timeout=30):
            parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs")
            yield from parallel(joblib.delayed(_quiet)(function, job) for job in jobs)


def _work(function: Callable[[Any], Done], job: Any, parent: int) -> Done:
    """In a process of its own, which ends when `parent` does, however that was ended."""
    if os.getppid() == parent:  # else something stands between them, which is left to itself
        _follow(parent)
    return _quiet(function, job)


@lru_cache
def _follow(parent: int) -> None:
    """Once for a process and its parent."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=look, name="tenfold-parent", daemon=True).start()


def _quiet(function: Callable[[Any], Done], job: Any) -> Done:
    """One thread per worker: the cores are taken by the other workers."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(job)
    finally:
        torch.set_num_threads(before)
