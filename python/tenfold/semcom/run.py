"""Workflow ``ctsemcom``: a picture codec trained on one channel is used on others, with and without SSDT.

    tenfold run ctsemcom                                          the embedded default: photographs
    tenfold run ctsemcom --checkpoint runs/ctsemcom-...           again with the codecs of a finished run
    tenfold run ctsemcom --dataset cifar10 --data data/cifar10 --codec adjscc --steps 200000 --device cuda
    tenfold run ctsemcom --csi_err_db -10 --csi_bits 4            channels known with error, fed back
    in 4 bits

Codecs are trained side by side; each that is done is kept, and so is every channel that is evaluated, so that
an interrupted run goes on.

Paper: arXiv 2312.03299, of which the abstract was at hand; docs/systems/ctsemcom.md says what is derived.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._reading import reading
from tenfold.runs import RunFolder, require
from tenfold.runs.executor import run_jobs
from tenfold.runs.files import read_safetensors, replacing
from tenfold.runs.progress import Progress, make_console
from tenfold.semcom.cache import kept_at
from tenfold.semcom.channel_file import write_channels
from tenfold.semcom.codec import Codec, make_codec
from tenfold.semcom.config import DIGITAL, CtsemcomConfig
from tenfold.semcom.digital import Ladder
from tenfold.semcom.evaluate import TEST_SEED, Cell, Score, cells, evaluate, ladders_of
from tenfold.semcom.images import PictureSet, load_pictures, patches
from tenfold.semcom.ldpc import require_sionna
from tenfold.semcom.train import train_codec

__all__ = ["CtsemcomConfig", "Outcome", "Result", "load_codec", "run", "transfer"]

SIDE = 32
"""Pixels of the patches that are sent."""

_EVERY = 200  # steps between two states of a training


@dataclass
class Result:
    """What a run found: flat numbers (also in ``metrics.json``) and the folder that holds everything else."""

    metrics: dict[str, float | int]
    path: Path


@dataclass
class Outcome:
    """Everything that the report is written from."""

    config: CtsemcomConfig
    pictures: PictureSet
    images: Tensor
    """Test patches, [pairs, N, 3, 32, 32]."""
    codecs: dict[str, Codec]
    losses: dict[str, list[float]]
    scores: list[Score] = field(default_factory=list)

    def score(
        self, method: str, snr_db: float, variance: float = 1.0, csi_err_db: float | None = None,
        csi_bits: int | None = None, users: int = 0,
    ) -> Score | None:  # fmt: skip
        """One method on one channel, if it was evaluated."""
        wanted = Cell(snr_db, variance, csi_err_db, csi_bits, users)
        for s in self.scores:
            if s.method == method and s.cell == wanted:
                return s
        return None


def transfer(
    config: CtsemcomConfig | None = None, out: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Run the workflow in a new folder (or go on with an interrupted one); see :func:`run`."""
    config = (config or CtsemcomConfig()).resolved()
    return run(config, RunFolder.create("ctsemcom", config, out, resume))


def run(config: CtsemcomConfig, folder: RunFolder) -> Result:
    """Run the workflow into ``folder``.

    Raises:
        ValueError, FileNotFoundError: a setting or a data file is wrong (named).
        RuntimeError: a loss is not finite, or a worker died.
        ModuleNotFoundError: Pillow, joblib or a package with the embedded photographs is not installed.
    """
    config = config.resolved()
    require("PIL", "joblib")
    if "digital-ldpc" in config.methods:
        require_sionna()
    images = test_patches(config)
    if config.fading != "awgn":
        write_channels(folder.path / "channels.npz", _channels(config, len(images)))
    _make_codecs(config, folder)
    outcome = Outcome(config, load_pictures(config.dataset, config.data), images, {}, {})
    for role in config.roles():
        outcome.codecs[role], outcome.losses[role] = load_codec(folder.path, role, config)
    _evaluate_all(config, folder, outcome)
    from tenfold.semcom.report import write

    return Result(write(outcome, folder), folder.path)


def test_patches(config: CtsemcomConfig) -> Tensor:
    """[pairs, N, 3, 32, 32], fewer pairs if the pictures do not give as many."""
    pictures = load_pictures(config.dataset, config.data)
    flat = patches(pictures.test, SIDE, config.pairs * config.group, config.seed)
    pairs = len(flat) // config.group
    if pairs < 2:
        _checks.fail(ValueError, "data", f"test patches for two codewords of {config.group}", len(flat))
    return flat[: pairs * config.group].view(pairs, config.group, 3, SIDE, SIDE)


def _channels(config: CtsemcomConfig, codewords: int) -> Tensor:
    """The channels of the whole test at variance 1, [B, L, N, K], in the order of their codewords."""
    shape = (codewords * (1 + len(config.users)), config.rows, config.group, config.carriers)
    return config.link("none").gains(shape, config.seed + TEST_SEED, first=0, device="cpu")


def _path(folder: Path, role: str) -> Path:
    return folder / "checkpoints" / f"{role}.safetensors"


def _make_codecs(config: CtsemcomConfig, folder: RunFolder) -> None:
    """Train, or take over, what is not there yet."""
    kept = {role: kept_at(config, role) for role in config.roles()}
    for role, cached in kept.items():
        source = _path(Path(config.checkpoint), role) if config.checkpoint else cached
        if source is None or _path(folder.path, role).exists() or not (config.checkpoint or source.exists()):
            continue
        _save_codec(_path(folder.path, role), *read_codec(source, role, config))
        folder.log(f"{role} is that of {config.checkpoint or 'an earlier run (cache)'}")
    missing = [role for role in config.roles() if not _path(folder.path, role).exists()]
    if missing:
        told = ", ".join(f"{role} ({config.settings(role).steps} steps)" for role in missing)
        folder.log(f"training {told}")
    missing.sort(key=lambda role: -config.settings(role).steps)  # so that no core is left with the longest
    workers = config.workers if config.device == "cpu" else 1
    for role in run_jobs(partial(_train, config, folder.path), missing, workers=workers):
        folder.log(f"{role} is trained")
        if (cached := kept[role]) is not None:
            _save_codec(cached, *load_codec(folder.path, role, config))


def _train(config: CtsemcomConfig, folder: Path, role: str) -> str:
    """One codec, in a process of its own; its state is kept on the way."""
    from safetensors.torch import save_file

    held = folder / "state" / f"train-{role}.safetensors"

    def keep(state: dict[str, Tensor]) -> None:
        with replacing(held) as aside:
            save_file({name: value.contiguous() for name, value in state.items()}, aside)

    state = read_safetensors(held)[0] if held.exists() else None
    done = 0 if state is None else len(state["losses"])
    console = make_console(terminal=False)
    pictures = load_pictures(config.dataset, config.data)
    with Progress(config.settings(role).steps, f"train {role}", done=done, console=console) as progress:
        trained = train_codec(
            config.spec(role), pictures.train, config.train_link(role), config.settings(role), state=state,
            on_step=lambda step, loss: progress.advance(loss=loss), checkpoint=keep, every=_EVERY,
            device=config.device,
        )  # fmt: skip
    _save_codec(_path(folder, role), trained.codec, trained.losses)
    held.unlink(missing_ok=True)
    return role


def _save_codec(path: Path, codec: Codec, losses: list[float]) -> None:
    import json

    from safetensors.torch import save_file

    tensors = {f"codec.{name}": value.cpu().contiguous() for name, value in codec.state_dict().items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    with replacing(path) as aside:
        save_file(tensors, aside, metadata={"codec": json.dumps(codec.spec.plain())})


def load_codec(
    folder: str | Path, role: str = "codec", config: CtsemcomConfig | None = None
) -> tuple[Codec, list[float]]:
    """A trained codec ("codec", "e2e", "e2e-matched" or "oma") of a run's folder, and its training's losses.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it is not the codec that `config` asks for.
    """
    return read_codec(_path(Path(folder), role), role, config)


def read_codec(path: Path, role: str, config: CtsemcomConfig | None = None) -> tuple[Codec, list[float]]:
    """As `load_codec`, of a file."""
    import json

    from tenfold.semcom.codec import CodecSpec

    if not path.exists():
        raise FileNotFoundError(f"{path}: expected the codec of a run, got nothing")
    tensors, told = read_safetensors(path)
    with reading(path, "a codec"):
        spec = CodecSpec(**json.loads(told.get("codec", "{}")))
    if config is not None and spec != config.spec(role):
        _checks.fail(ValueError, str(path), f"a codec {config.spec(role).plain()}", spec.plain())
    with reading(path, f"the codec {spec.plain()}"):
        codec = make_codec(spec)
        codec.load_state_dict({n.removeprefix("codec."): v for n, v in tensors.items() if n != "losses"})
        losses = tensors["losses"].tolist()
    device = "cpu" if config is None else config.device
    codec.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return codec.requires_grad_(False).eval(), losses


_held: dict[str, tuple[str, Any]] = {}
"""What this process read last: name -> (from what, value)."""


def _hold(name: str, key: str, make: Callable[[], Any]) -> Any:
    if name not in _held or _held[name][0] != key:
        _held[name] = (key, make())
    return _held[name][1]


def _evaluate_all(config: CtsemcomConfig, folder: RunFolder, outcome: Outcome) -> None:
    every = cells(config)
    done: dict[str, list[dict[str, Any]]] = {}
    for cell in every:
        saved = folder.load_state(cell.key)
        if saved is not None:
            done[cell.key] = saved[0]
    todo = [cell for cell in every if cell.key not in done]
    workers = config.workers if config.device == "cpu" else 1
    with folder.progress(len(every), "evaluate", done=len(done)) as progress:
        for key, rows in run_jobs(partial(_one_cell, config, folder.path), todo, workers=workers):
            folder.save_state(key, rows)
            done[key] = rows
            progress.advance()
    outcome.scores = [Score(**row) for cell in every for row in done[cell.key]]


def _one_cell(config: CtsemcomConfig, folder: Path, cell: Cell) -> tuple[str, list[dict[str, Any]]]:
    def read() -> tuple[dict[str, Codec], Tensor, list[Ladder] | None]:
        codecs = {role: load_codec(folder, role, config)[0] for role in config.roles()}
        images = test_patches(config)
        ladders = ladders_of(images) if set(DIGITAL) & set(config.methods) else None
        return codecs, images.to(config.device), ladders

    codecs, images, ladders = _hold("codecs", f"{folder} {config}", read)
    return cell.key, [score.plain() for score in evaluate(config, codecs, images, cell, ladders)]
