"""Run by test_offline.py: imports tenfold, or runs a command, where the network is watched and shut.

    python offline_child.py import
    python offline_child.py run NAME [--field value ...]

What asks for an address or a connection outside this machine is printed and refused.
"""

from __future__ import annotations

import importlib
import pkgutil
import socket
import sys
import traceback
from typing import Any

LOCAL = ("localhost", "127.0.0.1", "::1", "", None)


def shut(name: str, host: Any) -> None:
    if host in LOCAL or host == socket.gethostname():
        return
    caller = next(
        (f for f in reversed(traceback.extract_stack()) if "/tenfold/" in f.filename), "no file of tenfold"
    )
    print(f"network: {name}({host!r}) from {caller}", flush=True)
    raise OSError("the network is shut")


def watch() -> None:
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def refused(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            shut("connect", address[0])
        connect(self, address)

    def unresolved(host: Any, *rest: Any, **more: Any) -> Any:
        shut("getaddrinfo", host)
        return resolve(host, *rest, **more)

    socket.socket.connect = refused  # type: ignore[method-assign]
    socket.getaddrinfo = unresolved


OPTIONAL = ("sionna", "cupy", "distributed", "nudenet", "profanity_check", "pyarrow", "triton")


def import_all() -> None:
    import tenfold.ops  # loads PyTorch's OpenMP, without which _cpu cannot be imported

    for module in pkgutil.walk_packages(tenfold.__path__, "tenfold."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in OPTIONAL and module.name != "tenfold._cuda":
                raise


if __name__ == "__main__":
    watch()
    if sys.argv[1] == "import":
        import_all()
    else:
        from tenfold.cli import main

        sys.exit(main(sys.argv[1:]))
