"""Record a zeroth-order run in 40 bytes for each scalar, and make its weights again from the record.

    log = zolog.ZOLog.create("run.zolog", optimizer, model)      # every step is now appended
    ...
    optimizer = zolog.replay(base_model, "run.zolog")             # the same weights and state, bit for bit

A step of these optimizers is a function of the weights, the seed and a few scalars, so the scalars and the
weights at the start are the whole run.  The file is described in docs/zolog.md.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tenfold import _checks

from . import _log, _passes
from ._log import Contents, LoggedStep, Part, ZOLogError
from ._record import FLAG_SKIPPED, StepRecord
from ._shards import fsdp_modules, gathered, reshard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._base import ZerothOrder

__all__ = ["ZOLog", "ZOLogError", "info", "merge", "replay", "resume", "truncate", "undo", "weights_sha256"]

GENERATORS = {"rademacher": "tfz-rademacher v1", "gauss16": "tfz-normal16 v1"}
_OWN_CHANGES = ("lr", "eps")  # of a group; every record tells them
_STATEFUL = ("ZOSGDMomentum", "ZOAdam", "HiZOO")  # have a state after every step that moves weights
_NOT_OF_THE_RUN = ("parallel", "max_nonfinite")  # options that change no bit of a step

Weights = nn.Module | Mapping[str, Tensor]


class ZOLog:
    """A log that an optimizer appends every step to, as soon as the step is made.

    Use `create`, `open` or `resume`, not the constructor.  Closing it (or leaving a `with` block) lets go of
    the optimizer.
    """

    def __init__(self, path: Path, contents: Contents, optimizer: ZerothOrder, *, fsync: bool) -> None:
        self.path = path
        self.optimizer = optimizer
        self._appender = _log.Appender(path, contents, fsync=fsync)
        self._options = _options(contents.header["optimizer"])
        self._trainable = [entry["trainable"] for entry in contents.header["manifest"]]
        self._hook = optimizer.register_step_pre_hook(self._before_step)
        optimizer._log = self

    @classmethod
    def create(
        cls,
        path: str | Path,
        optimizer: ZerothOrder,
        module: Weights,
        *,
        fsync: bool = False,
        overwrite: bool = False,
    ) -> ZOLog:
        """Begin a log at the weights as they are; they must be kept, as they are what a replay starts from.

        Args:
            path: of the file, by custom with the ending .zolog.
            optimizer: any of `tenfold.optim` but one with a hybrid part, whose gradients are no scalars.
            module: the module, or a dict of named tensors, that holds all parameters of the optimizer. Where
                they are sharded, all ranks begin a log, each its own: the weights are gathered, one tensor at
                a time, for their hash.
            fsync: wait for the disk at each step: it then survives a loss of power, not only the end of the
                process.
            overwrite: replace a file that exists.

        Raises:
            FileExistsError: the file exists.
            ZOLogError: the file to replace is being written.
            ValueError: the optimizer has a log already, cannot be logged, or has a parameter that
                `module` has not.
        """
        path = Path(path)
        _check_unlogged(optimizer)
        if path.exists() and not overwrite:
            raise FileExistsError(f"path: expected a new file, got {path}; overwrite=True replaces it")
        if optimizer.num_queries >= _log.MAX_QUERY:
            got = optimizer.num_queries
            _checks.fail(ValueError, "num_queries", f"fewer than {_log.MAX_QUERY} in a log", got)
        _log.write_aside(path, [_log.encode_header(_header(optimizer, module))])
        return cls(path, _log.read(path), optimizer, fsync=fsync)

    @classmethod
    def open(
        cls,
        path: str | Path,
        optimizer: ZerothOrder,
        module: Weights,
        *,
        recover: bool = False,
        fsync: bool = False,
    ) -> ZOLog:
        """Go on with a log whose last step is the last one of the optimizer (see also `resume`).

        recover: drop a step that was being written when the process died.

        Raises ZOLogError for a damaged or locked log, for another optimizer, parameters or options than the
        log's, and for another number of steps.
        """
        path = Path(path)
        _check_unlogged(optimizer)
        contents = _log.read(path, recover=recover)
        part = contents.single()
        _check_same(path, part.header, optimizer, module)
        if optimizer.num_steps != part.end:
            raise ZOLogError(
                f"{path}: expected an optimizer at step {part.end}, got one at {optimizer.num_steps}; "
                "zolog.resume brings it there, zolog.truncate drops the later steps"
            )
        return cls(path, contents, optimizer, fsync=fsync)

    def append(self, record: StepRecord) -> None:
        """What the optimizer calls after each step."""
        step = LoggedStep(record.step, record.seed, record.scalars, record.lrs, record.eps)
        self._appender.append(step)

    def retract(self) -> None:
        """Take back the step appended last, whose update failed."""
        self._appender.retract()

    def close(self) -> None:
        """Idempotent."""
        self._hook.remove()
        if self.optimizer._log is self:
            self.optimizer._log = None
        self._appender.close()

    def __enter__(self) -> ZOLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Nothing moves before it is known that the step can be logged."""
        if optimizer.num_steps != self._appender.next_step:
            raise ZOLogError(
                f"{self.path}: expected step {self._appender.next_step} next, got {optimizer.num_steps}"
            )
        changed = _options(optimizer.hyperparameters()) != self._options
        if changed or [p.requires_grad for p in optimizer._slots] != self._trainable:
            what = "options" if changed else "trainable parameters"
            raise ZOLogError(f"{self.path}: expected the {what} of its header, got others; begin a new log")


def replay(
    module: Weights,
    path: str | Path,
    until: int | None = None,
    *,
    optimizer: ZerothOrder | None = None,
    recover: bool = False,
) -> ZerothOrder | None:
    """Bring the base weights in `module` to where the logged run was, bit for bit.

    Optimizers whose update is a sum of directions are replayed with one read and write of the weights in
    all; others step by step. No loss is computed.

    Args:
        module: the module, or a dict of named tensors (of safetensors, say), written in place.
        until: stop before this step; default: the end.
        optimizer: one to be brought along: at the step at which the log begins, with the state that it had
            there.  Needed for a log that begins in the middle of a run with a state (momentum, ...).
        recover: drop a torn tail.

    Returns the optimizer, ready to go on with the next step; None for an average of runs, which has none.

    Raises ZOLogError, before anything is written, for a damaged log, for weights of other names, shapes or
    dtypes than in its manifest, and for other weights than those it starts from.
    """
    path = Path(path)
    contents = _log.read(path, recover=recover)
    if contents.averaged:
        if until is not None or optimizer is not None:
            raise ZOLogError(f"{path}: expected the log of one run with until= or optimizer=, got an average")
        _replay_average(path, contents, module)
        return None
    part = contents.single()
    last = part.end if until is None else _checks.integer("until", until, part.first_step, part.end)
    if optimizer is None:
        optimizer = _fresh(path, part, module)
    else:
        _check_same(path, part.header, optimizer, module)
    _check_start(path, part, optimizer, module)
    _advance(path, optimizer, part.steps[: last - part.first_step])
    return optimizer


def _advance(path: Path, optimizer: ZerothOrder, steps: Sequence[LoggedStep]) -> None:
    """Make the steps, naming the log where numbers that are finite alone have no finite product."""
    try:
        _passes.advance(optimizer, steps)
    except ValueError as error:
        raise ZOLogError(f"{path}: expected steps that can be made again, got {error}") from error


def _fresh(path: Path, part: Part, module: Weights) -> ZerothOrder:
    """The optimizer of a log that begins without a state, at its first step."""
    if part.header["state_sha256"] is not None:
        raise ZOLogError(
            f"{path}: expected optimizer=, with the state that the run had at step "
            f"{part.first_step}, got None"
        )
    optimizer: ZerothOrder = _rebuild(path, part.header, module)
    optimizer.num_steps = part.first_step
    return optimizer


def resume(
    path: str | Path, optimizer: ZerothOrder, module: Weights, *, recover: bool = True, fsync: bool = False
) -> ZOLog:
    """After a crash: bring weights and optimizer to the end of the log, and append from there.

    `module` holds the base weights and `optimizer` is as it was when the log began.  Or both are of a
    checkpoint of the same run, taken while the log was written: then only the later steps are made again (a
    checkpoint's weights are not in the log and cannot be checked).  Read the number of steps, and with it
    the place in the data and in a learning-rate schedule, from `optimizer.num_steps`.

    Raises ZOLogError, before any weight is written, as `replay` does.
    """
    path = Path(path)
    _check_unlogged(optimizer)
    part = _log.read(path, recover=recover).single()
    _check_same(path, part.header, optimizer, module)
    start = optimizer.num_steps
    if start == part.first_step:
        _check_start(path, part, optimizer, module)
    elif not part.first_step < start <= part.end:
        expected = f"an optimizer at a step of [{part.first_step}, {part.end}]"
        raise ZOLogError(f"{path}: expected {expected}, got one at {start}")
    _advance(path, optimizer, part.steps[start - part.first_step :])
    return ZOLog.open(path, optimizer, module, recover=recover, fsync=fsync)


def undo(
    module: Weights,
    path: str | Path,
    steps: int,
    base: Weights | None = None,
    *,
    optimizer: ZerothOrder | None = None,
    recover: bool = False,
) -> int:
    """Take back the last `steps` steps of the log from the weights in `module`.

    With `base`, the weights that the log starts from, this is a replay up to that step: exact, for every
    optimizer.  Without, the directions are subtracted again from the weights that the log ends with: right
    up to rounding, not to the bit, and for optimizers without a state only.  The log keeps its steps
    (`truncate` drops them).

    optimizer: only with `base`: one to be brought along, as for `replay`; needed for a log that begins in
        the middle of a run with a state.

    Returns the number of the step that would come next.

    Raises ZOLogError as `replay`, before anything is written, and ValueError where the inverse needs `base`.
    """
    path = Path(path)
    part = _log.read(path, recover=recover).single()
    left = len(part.steps) - _checks.integer("steps", steps, 0, len(part.steps))
    if base is not None:
        if optimizer is None:
            optimizer = _fresh(path, part, module)
        else:
            _check_same(path, part.header, optimizer, module)
        _check_start(path, part, optimizer, base)
        named, start = _bound(path, part.header, module), _bound(path, part.header, base)
        with torch.no_grad():
            for (_, target), (_, source) in zip(named, start, strict=True):
                target.copy_(source)
        _advance(path, optimizer, part.steps[:left])
        return part.first_step + left
    if optimizer is not None:
        _checks.fail(ValueError, "optimizer", "None without base", type(optimizer).__name__)
    optimizer = _rebuild(path, part.header, module)
    if not _passes.is_chain(optimizer):
        got = f"None, and {type(optimizer).__name__} has a state or masks that follow the weights"
        _checks.fail(ValueError, "base", "the weights that the log starts from", got)
    optimizer.num_steps = part.first_step + left
    _passes.undo(optimizer, part.steps[left:])
    return part.first_step + left


def merge(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    average: bool = False,
    base: Weights | None = None,
) -> None:
    """Make one log of several.

    average=False joins segments of one run, given in order: each begins where the one before ends, or before
    that, whose later steps are then dropped, as after a return to a checkpoint.  With `base`, the weights
    that the first one starts from (not written), it is checked that each segment starts from the weights
    that the segments before lead to.

    average=True averages runs from the same base: the replay leads to the mean of their weights, up to
    rounding, at the cost of a replay of all.  For optimizers whose update is a sum of directions, without
    weight decay.

    Raises ZOLogError for logs that do not fit together, ValueError for an average of other optimizers.
    """
    if len(paths) < 2:
        _checks.fail(ValueError, "paths", "two logs or more", len(paths))
    read = [_log.read(path) for path in paths]
    parts = [contents.single() for contents in read]
    names = [str(path) for path in paths]
    if average:
        _write(Path(out), *_averaged(names, parts))
        return
    joined = parts[0]
    for name, part in zip(names[1:], parts[1:], strict=True):
        joined = _joined(joined, part, name, base)
    _write(Path(out), _fields(joined.header), [joined])


def truncate(path: str | Path, steps: int, out: str | Path | None = None) -> None:
    """Keep only the first `steps` steps of a log, in place (written aside, then renamed) or as `out`."""
    part = _log.read(path).single()
    keep = _checks.integer("steps", steps, 0, len(part.steps))
    _write(Path(path if out is None else out), _fields(part.header), [Part(part.header, part.steps[:keep])])


def info(path: str | Path, *, recover: bool = True) -> dict[str, Any]:
    """What a log says about itself, as plain JSON; `torn_bytes` tells of a torn tail."""
    contents = _log.read(path, recover=recover)
    header = contents.header
    steps = [step for part in contents.parts for step in part.steps]
    trainable = [entry for entry in header["manifest"] if entry["trainable"]]
    lrs = [step.lrs[0] for step in steps]
    return {
        "version": header["version"],
        "generator": header["generator"],
        "optimizer": header["optimizer"]["class"],
        "runs": len(contents.parts),
        "seed": header["seed"],
        "first_step": header["first_step"],
        "steps": len(steps),
        "skipped_steps": sum(any(s.kind == FLAG_SKIPPED for s in step.scalars) for step in steps),
        "scalars": sum(len(step.scalars) for step in steps),
        "lr": [min(lrs), max(lrs)] if lrs else None,
        "bytes": contents.size,
        "torn_bytes": contents.torn,
        "tensors": len(trainable),
        "elements": sum(_count(entry["shape"]) for entry in trainable),
        "base_sha256": header["base_sha256"],
        "state_sha256": header["state_sha256"],
        "options": {**header["optimizer"]["options"], "groups": header["optimizer"]["groups"]},
    }


@torch.no_grad()
def weights_sha256(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, dtype, shape and bytes (little-endian, row-major) of each tensor in turn."""
    found = hashlib.sha256()
    for name, tensor in named:
        found.update(f"{name} {_dtype(tensor)} {list(tensor.shape)}\n".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()


# -- headers ------------------------------------------------------------------------------------------


def _header(optimizer: ZerothOrder, module: Weights, base_sha256: str | None = None) -> dict[str, Any]:
    """The fields of the header of a log that begins now; base_sha256: of weights that were hashed before."""
    hyperparameters = _json(optimizer.hyperparameters())
    entries = _manifest(optimizer, module)
    return {
        "generator": GENERATORS.get(optimizer.dist, "tfz-normal v1"),
        "dist": optimizer.dist,
        "z_round": None if optimizer.z_round is None else str(optimizer.z_round).removeprefix("torch."),
        "restore": optimizer.restore,
        "rounding": optimizer.rounding,
        "seed": optimizer.seed,
        "first_step": optimizer.num_steps,
        "eps": [float(group["eps"]) for group in optimizer.param_groups],
        "optimizer": hyperparameters,
        "manifest": entries,
        "base_sha256": base_sha256 or _sha256_of(entries, module),
        "state_sha256": _state_sha256(optimizer),
    }


def _fields(header: dict[str, Any]) -> dict[str, Any]:
    """A header as `encode_header` takes it."""
    return {k: v for k, v in header.items() if k not in ("format", "version", "crc32", "records")}


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def _options(hyperparameters: dict[str, Any]) -> Any:
    """What of the hyper-parameters must stay the same throughout a log."""
    found = _json(hyperparameters)
    for group in found["groups"]:
        for name in _OWN_CHANGES:
            group.pop(name, None)
    for name in _NOT_OF_THE_RUN:
        found["options"].pop(name, None)
    return found


def _tensors(module: Weights) -> dict[str, Tensor]:
    if isinstance(module, nn.Module):
        reshard(fsdp_modules(module))
        return dict(module.named_parameters(remove_duplicate=False))
    if not isinstance(module, Mapping):
        got = type(module).__name__
        _checks.fail(TypeError, "module", "a torch.nn.Module or a dict of named tensors", got)
    return dict(module)


def _manifest(optimizer: ZerothOrder, module: Weights) -> list[dict[str, Any]]:
    """One entry for each parameter of the optimizer, in its order."""
    names: dict[int, str] = {}
    for name, tensor in _tensors(module).items():
        names.setdefault(id(tensor), name)
    blocks = None if optimizer._layout is None else optimizer._layout.block_of
    entries = []
    for index, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if id(p) not in names:
                got = f"one without {optimizer._label(p)}"
                _checks.fail(ValueError, "module", "one that holds every parameter of the optimizer", got)
            slot = optimizer._slots[p]
            entries.append(
                {
                    "stream": slot.stream,
                    "name": names[id(p)],
                    "shape": list(p.shape),
                    "dtype": _dtype(p),
                    "group": index,
                    "block": None if blocks is None else blocks.get(p),
                    "decays": slot.decays,
                    "trainable": p.requires_grad,
                }
            )
    return entries


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _count(shape: Sequence[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


# -- hashes -------------------------------------------------------------------------------------------


def _bytes(tensor: Tensor) -> Any:
    flat = gathered(tensor.detach()).cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def _sha256_of(entries: Sequence[dict[str, Any]], module: Weights) -> str:
    """The hash of the trainable weights; frozen ones do not change and may be shared by many runs."""
    tensors = _tensors(module)
    names = [entry["name"] for entry in entries if entry["trainable"]]
    return weights_sha256((name, tensors[name]) for name in names)


@torch.no_grad()
def _state_sha256(optimizer: ZerothOrder) -> str | None:
    """The hash of momentum buffers and the like, None if there are none."""
    found = hashlib.sha256()
    known = False
    for k, p in enumerate(optimizer._slots):
        for name, value in sorted(optimizer.state.get(p, {}).items()):
            known = True
            found.update(f"{k} {name} ".encode())
            if isinstance(value, Tensor):
                found.update(f"{_dtype(value)} {list(value.shape)}\n".encode())
                found.update(_bytes(value))
            else:
                found.update(f"{value!r}\n".encode())
        if optimizer.mask is not None and p in optimizer._limits and optimizer.num_steps:
            known = True
            found.update(f"{k} limit {optimizer._limits[p]!r} {optimizer._limits_from}\n".encode())
    return found.hexdigest() if known else None


# -- does it fit? ---------------------------------------------------------------------------------------


def _check_unlogged(optimizer: ZerothOrder) -> None:
    if optimizer._log is not None:
        got = f"one that writes {getattr(optimizer._log, 'path', 'one')}"
        _checks.fail(ValueError, "optimizer", "one without a log (close() ends one)", got)


def _check_same(path: Path, header: dict[str, Any], optimizer: ZerothOrder, module: Weights) -> None:
    """Raise unless the optimizer is one that could have written the log."""
    theirs, ours = _options(header["optimizer"]), _options(optimizer.hyperparameters())
    if theirs != ours:
        difference = _difference(theirs, ours)
        raise ZOLogError(f"{path}: expected the optimizer of the log, got one with {difference}")
    for entry, own in zip(header["manifest"], _manifest(optimizer, module), strict=True):
        if entry != own:
            raise ZOLogError(
                f"{path}: expected parameter '{entry['name']}' as in the log, got {_difference(entry, own)}"
            )


def _difference(theirs: Any, ours: Any, name: str = "") -> str:
    """The first place at which two JSON values differ, in words."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in {**theirs, **ours}:
            if theirs.get(key, ...) != ours.get(key, ...):
                return _difference(theirs.get(key), ours.get(key), f"{name}.{key}" if name else key)
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for k, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            if a != b:
                return _difference(a, b, f"{name}[{k}]")
    return f"{name} = {ours!r:.60} where it has {theirs!r:.60}"


def _bound(path: Path, header: dict[str, Any], module: Weights) -> list[tuple[str, Tensor]]:
    """The tensors of the manifest, by name, checked."""
    tensors = _tensors(module)
    found = []
    for entry in header["manifest"]:
        name = entry["name"]
        if name not in tensors:
            raise ZOLogError(f"{path}: expected weights with '{name}', got none of that name")
        tensor = tensors[name]
        shape, dtype = list(tensor.shape), _dtype(tensor)
        if (shape, dtype) != (entry["shape"], entry["dtype"]):
            expected = f"{entry['dtype']} {entry['shape']}"
            raise ZOLogError(f"{path}: expected '{name}' as {expected}, got {dtype} {shape}")
        found.append((name, tensor))
    return found


def _check_base(path: Path, header: dict[str, Any], module: Weights) -> None:
    _bound(path, header, module)
    found = _sha256_of(header["manifest"], module)
    if found != header["base_sha256"]:
        expected = f"the weights that it starts from (sha256 {header['base_sha256'][:16]}...)"
        raise ZOLogError(f"{path}: expected {expected}, got others ({found[:16]}...)")


def _check_start(path: Path, part: Part, optimizer: ZerothOrder, module: Weights) -> None:
    """Raise unless weights and state are those that the log starts from."""
    if optimizer.num_steps != part.first_step:
        got = f"one at {optimizer.num_steps}"
        raise ZOLogError(f"{path}: expected an optimizer at step {part.first_step}, got {got}")
    _check_base(path, part.header, module)
    if _state_sha256(optimizer) != part.header["state_sha256"]:
        raise ZOLogError(
            f"{path}: expected an optimizer with the state that the log starts from, got another"
        )


# -- an optimizer from a header -------------------------------------------------------------------------


class _StandIn(nn.Module):
    """Holds parameters under their dotted names, in place of the model."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        for name, parameter in named:
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for step in path:
                if not hasattr(owner, step):
                    owner.add_module(step, nn.Module())
                owner = getattr(owner, step)
            owner.register_parameter(leaf, parameter)


def _rebuild(path: Path, header: dict[str, Any], module: Weights) -> Any:
    """The optimizer of the log, over these weights, before its first step."""
    from ._blocks import Layout
    from ._manifest import Slot
    from ._options import Blocks
    from ._rebuild import from_hyperparameters

    named = []
    for (name, tensor), entry in zip(_bound(path, header, module), header["manifest"], strict=True):
        if not isinstance(module, nn.Module):
            tensor = nn.Parameter(tensor, requires_grad=entry["trainable"])  # the same memory
        elif tensor.requires_grad != entry["trainable"]:
            expected = f"requires_grad={entry['trainable']}"
            raise ZOLogError(f"{path}: expected '{name}' with {expected}, got {tensor.requires_grad}")
        named.append((name, tensor))
    described = copy.deepcopy(header["optimizer"])
    described["options"].pop("parallel", None)
    blocks = described["options"].get("blocks")
    streams: nn.Module | None = module if isinstance(module, nn.Module) else None
    if streams is None:
        streams = _StandIn((name, p) for name, p in named if isinstance(p, nn.Parameter))
        described["streams"] = described["options"].get("compat") == "mezo"
        described["options"].pop("blocks", None)
    try:
        optimizer = from_hyperparameters(described, named, streams)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ZOLogError(f"{path}: expected an optimizer of this version, got {str(error)[:120]}") from error
    entries = dict(zip((p for _, p in named), header["manifest"], strict=True))
    optimizer._slots = {p: Slot(entry["stream"], entry["decays"]) for p, entry in entries.items()}
    if blocks is not None and optimizer.blocks is None:
        block_of = {p: entry["block"] for p, entry in entries.items() if entry["block"] is not None}
        optimizer.blocks = Blocks(streams, order=blocks["order"])
        optimizer._layout = Layout(block_of, [[] for _ in range(1 + max(block_of.values()))], [])
    return optimizer


# -- merging --------------------------------------------------------------------------------------------


def _joined(first: Part, second: Part, name: str, base: Weights | None) -> Part:
    """Two segments of a run as one."""
    for key in ("optimizer", "seed", "manifest", "generator"):
        theirs, ours = first.header[key], second.header[key]
        if key == "optimizer":
            theirs, ours = _options(theirs), _options(ours)
        if theirs != ours:
            raise ZOLogError(
                f"{name}: expected a segment of the same run, got {_difference(theirs, ours, key)}"
            )
    if not first.first_step <= second.first_step <= first.end:
        expected = f"a segment that begins at a step of [{first.first_step}, {first.end}]"
        raise ZOLogError(f"{name}: expected {expected}, got {second.first_step}; average=True averages runs")
    kept = first.steps[: second.first_step - first.first_step]
    if not kept and second.header["base_sha256"] != first.header["base_sha256"]:
        raise ZOLogError(f"{name}: expected the base weights of the segment before, got others")
    if not _state_can_follow(first.header, kept, second.header["state_sha256"]):
        raise ZOLogError(f"{name}: expected the optimizer state of the segment before, got another")
    if base is not None:
        weights = {n: t.detach().clone() for n, t in _bound(Path(name), first.header, base)}
        optimizer = _rebuild(Path(name), first.header, weights)
        optimizer.num_steps = first.first_step
        _check_start(Path(name), first, optimizer, weights)
        _passes.advance(optimizer, kept)
        _check_base(Path(name), second.header, weights)
        if _state_sha256(optimizer) != second.header["state_sha256"]:
            raise ZOLogError(f"{name}: expected the optimizer state that these steps lead to, got another")
    return Part(first.header, [*kept, *second.steps])


def _state_can_follow(header: dict[str, Any], steps: Sequence[LoggedStep], state: str | None) -> bool:
    """What can be told without the weights: a state stays, and an optimizer that keeps one has one."""
    if not steps:
        return bool(state == header["state_sha256"])
    made = any(all(s.kind != FLAG_SKIPPED for s in step.scalars) for step in steps)
    described = header["optimizer"]
    keeps = described["class"] in _STATEFUL
    keeps = keeps or (described["class"] == "LOZO" and described["options"].get("momentum", 0.0) > 0)
    return state is not None or not (header["state_sha256"] is not None or (keeps and made))


def _averaged(names: Sequence[str], parts: Sequence[Part]) -> tuple[dict[str, Any], list[Part]]:
    """Header and parts of an average."""
    first = parts[0].header
    for name, part in zip(names, parts, strict=True):
        header = part.header
        for key in ("base_sha256", "manifest"):
            if header[key] != first[key]:
                raise ZOLogError(f"{name}: expected a run from the same {key} as {names[0]}, got another")
        stand_in = {
            entry["name"]: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
            for entry in header["manifest"]
        }
        optimizer = _rebuild(Path(name), header, stand_in)
        decay = any(group["weight_decay"] for group in optimizer.param_groups)
        if decay or header["state_sha256"] is not None or not _passes.is_chain(optimizer):
            got = f"{type(optimizer).__name__} with " + ("weight decay" if decay else "a state")
            expected = "optimizers whose update is a sum of directions, without weight decay"
            _checks.fail(ValueError, name, expected, got)
    records = [sum(1 for _ in _rows(part)) for part in parts]
    headers = [{**part.header, "records": n} for part, n in zip(parts, records, strict=True)]
    return {**_fields(first), "average": headers}, list(parts)


def _rows(part: Part) -> Iterator[bytes]:
    for step in part.steps:
        data, _ = _log.encode_step(step, part.header["eps"], 0)
        for at in range(0, len(data), _log.RECORD.size):
            yield data[at : at + _log.RECORD.size]


def _write(out: Path, fields: dict[str, Any], parts: Sequence[Part]) -> None:
    """A whole log."""
    import zlib

    pieces = [_log.encode_header(fields)]
    crc = zlib.crc32(pieces[0])
    for part in parts:
        for step in part.steps:
            data, crc = _log.encode_step(step, part.header["eps"], crc)
            pieces.append(data)
    _log.write_aside(out, pieces)


def _replay_average(path: Path, contents: Contents, module: Weights) -> None:
    _check_base(path, contents.header, module)
    runs = []
    for part in contents.parts:
        optimizer = _rebuild(path, part.header, module)
        if not _passes.is_chain(optimizer):
            raise ZOLogError(f"{path}: expected sums of directions in an average, got others")
        optimizer.num_steps = part.first_step
        runs.append((optimizer, part.steps))
    _passes.average(runs)
