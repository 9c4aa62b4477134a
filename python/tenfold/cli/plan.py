"""`tenfold plan`: the memory of a training step, on paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.cli.parsing import make_parser, parse
from tenfold.llm.memory_plan import LLAMA_2_7B, LLAMA_2_70B, METHODS, WHOLE, Plan, memory_plan, parameters_of

__all__ = ["plan"]

_ABOUT = """Memory of one training step of a language model, per rank and method, without allocating any.

For decoders of the LLaMA kind; docs/scale.md says what is counted and holds it against measured steps."""
_KNOWN = {"llama-2-7b": LLAMA_2_7B, "llama-2-70b": LLAMA_2_70B}
_NEAR = 0.1  # --params names a known model within this share of its parameters
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_PARTS = ("weights", "gradients", "states", "activations", "logits", "gathered", "peak")


def plan(arguments: Sequence[str]) -> int:
    """Exit code of `tenfold plan`."""
    values = parse(_parser(), arguments)
    model, shape = _model(values["model"], values["params"])
    settings = {name: values[name] for name in ("batch", "length", "ranks", "checkpointing", "chunked")}
    settings["dtype"] = _DTYPES.get(values["dtype"], values["dtype"])
    try:
        parameters = parameters_of(shape)
    except ValueError as error:  # what the configuration is not
        raise ValueError(f"--model {model}: {str(error).removeprefix('shape: ')}") from error
    sharded = [name for name in METHODS if settings["ranks"] == 1 or name not in WHOLE]
    methods = sharded if values["method"] is None else [values["method"]]
    found = {name: memory_plan(shape, method=name, **settings) for name in methods}
    if values["json"]:
        print(json.dumps(_record(model, parameters, settings, found), indent=2))
    else:
        print(_table(model, parameters, settings, found))
    return 0


def _parser() -> Any:
    parser = make_parser("tenfold plan", _ABOUT)
    known = ", ".join(_KNOWN)
    parser.add_argument(
        "--model", metavar="MODEL", type=str, help=f"{known}, or a config.json of transformers or its folder"
    )
    parser.add_argument(
        "--params", metavar="N", type=float, help="instead: that many parameters, as 7e9 or 70e9"
    )
    parser.add_argument("--method", type=str, help=f"one of {', '.join(METHODS)} (default: each)")
    parser.add_argument(
        "--dtype", type=str, default="float32", help="of weights: float32 (fp32) or bfloat16 (bf16)"
    )
    parser.add_argument("--batch", metavar="N", type=int, default=1, help="rows of a micro-batch on a rank")
    parser.add_argument("--length", metavar="N", type=int, default=512, help="tokens of a row")
    parser.add_argument("--ranks", metavar="N", type=int, default=1, help="FSDP2 shards over so many")
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks again going back")
    parser.add_argument("--chunked", action="store_true", help="a loss of tenfold.ops: logits by chunks")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    return parser


def _model(name: str | None, params: float | None) -> tuple[str, Any]:
    """Name and shape of the model that is meant."""
    if (name is None) == (params is None):
        raise ValueError(f"--model: expected either it or --params, got {'none' if name is None else 'both'}")
    if params is not None:
        return _of_size(params)
    assert name is not None
    if name.lower() in _KNOWN:
        return name.lower(), _KNOWN[name.lower()]
    if not Path(name).exists():
        raise ValueError(f"--model: expected {', '.join(_KNOWN)}, a config.json or its folder, got {name!r}")
    from transformers import AutoConfig

    try:
        return name, AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, ... by what is wrong with the file
        first = str(error).partition("\n")[0]
        raise ValueError(f"--model {name}: expected a config.json of transformers, got {first}") from error


def _of_size(params: float) -> tuple[str, Any]:
    for name, shape in _KNOWN.items():
        if abs(params / parameters_of(shape) - 1) <= _NEAR:
            return name, shape
    known = " or ".join(f"{parameters_of(shape) / 1e9:.1f}e9 ({name})" for name, shape in _KNOWN.items())
    raise ValueError(
        f"--params: expected about {known}, got {params:g}; for another size give --model its config.json"
    )


def _record(model: str, parameters: int, settings: dict[str, Any], found: dict[str, Plan]) -> dict[str, Any]:
    plans = [{"method": name} | {part: getattr(one, part) for part in _PARTS} for name, one in found.items()]
    return {"schema": "tenfold.plan/1", "model": model, "parameters": parameters, **settings, "plans": plans}


def _table(model: str, parameters: int, settings: dict[str, Any], found: dict[str, Plan]) -> str:
    told = [settings["dtype"], f"{settings['batch']} x {settings['length']} tokens"]
    told += [name for name in ("checkpointing", "chunked") if settings[name]]
    told += [f"{settings['ranks']} ranks of FSDP2"] if settings["ranks"] > 1 else []
    wide = max(map(len, METHODS))
    lines = [f"{model}: {parameters:,} parameters, {', '.join(told)}; GiB on each rank", ""]
    lines.append(f"{'method':<{wide}}" + "".join(f"{part:>13}" for part in _PARTS))
    for name, one in found.items():
        lines.append(f"{name:<{wide}}" + "".join(f"{getattr(one, part) / 2**30:13,.2f}" for part in _PARTS))
    lines += ["", "The peak is less than the sum, as activations go while gradients come."]
    if settings["ranks"] > 1:
        lines.append(f"{' and '.join(WHOLE)} do not take sharded parameters.")
    return "\n".join(lines)
