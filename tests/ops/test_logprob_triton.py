"""The Triton kernels compile ahead of time, where there is no GPU, and keep to registers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILE = """
import pathlib, re, subprocess, sys, tempfile
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tenfold.kernels.logprob import logprob_triton

dump = pathlib.Path(nvidia.__file__).parent / "bin" / "cuobjdump"
for name, kernel, signature, constants, options in logprob_triton.ahead_of_time():
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        command = [dump, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    print(name, *re.findall(r"(?:REG|STACK|LOCAL):(\\d+)", usage))
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_ahead_of_time(capability: int) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [
        f"token_logprobs.{case}_rows"
        for case in ("fp32.16", "fp32.32", "bf16.16", "bf16.64", "fp16.16", "fp16.64")
    ]
    for name, registers, stack, local in lines:
        assert int(registers) <= 200, name
        assert int(stack) <= 16, name
        assert int(local) == 0, name
