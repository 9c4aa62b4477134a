"""Zeroth-order fine-tuning of models larger than memory: weights stay on disk (or in host memory), one block
at a time is computed.

    trainer = OffloadedZO.from_pretrained(FOLDER, "weights", lr=1e-6)     # weights stay on disk
    for batch in loader:
        loss = trainer.step(batch)
    trainer.save(OUT)

With `journal=FILE` a killed run goes on to the same bits (`resume=True`).

Both probes of a step go through a block together, so a step reads each weight once. The update of a step is
written when its weights are read for the next step, in the same visit (ZO2, arXiv 2503.12668). Probes are
scratch copies of one block: the stored weights are never perturbed. Given the same losses, the result is that
of `tenfold.optim.ZOSGD(..., restore="exact", streams=model)` with the same seed, bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold import _checks
from tenfold.llm.scorer import find_blocks
from tenfold.ops import ReplayPass, Term, zo_chain_, zo_perturb_, zo_replay_
from tenfold.optim import splitmix64
from tenfold.optim._manifest import manifest
from tenfold.optim._walk import interrupts_deferred

__all__ = ["OffloadedZO", "WeightStore"]

Loss = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
_SHARD_BYTES = 1 << 30
_FLOAT32_MAX = torch.finfo(torch.float32).max
_PASSES = 256  # recorded steps that are made again in one call


class WeightStore:
    """The tensors of a model by number: one file each in `folder`, or in host memory if `folder` is None.

    reuse: the folder may hold files of an earlier store, which are written over.

    A tensor of a file is mapped when it is asked for and unmapped when the last reference to it goes: what is
    not in use takes no memory of the process. Writing to it writes to the file.
    """

    def __init__(self, folder: str | Path | None = None, *, reuse: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        self._held: dict[int, Tensor] = {}
        self._layout: dict[int, tuple[torch.Size, torch.dtype]] = {}
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(not (reuse and _is_ours(path)) for path in self.folder.iterdir()):
                _checks.fail(ValueError, "folder", "an empty or new folder", str(self.folder))

    def put(self, number: int, tensor: Tensor) -> None:
        """Store a tensor under a number that is still free."""
        if number in self._layout:
            _checks.fail(ValueError, "number", "one that holds no tensor yet", number)
        tensor = tensor.detach().to("cpu").contiguous()
        if self.folder is None:
            self._held[number] = tensor.clone()
        elif tensor.numel():
            path = self._path(number)
            with path.open("wb") as file:
                file.truncate(tensor.numel() * tensor.element_size())
            torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype).copy_(
                tensor.flatten()
            )
        self._layout[number] = tensor.shape, tensor.dtype

    def get(self, number: int) -> Tensor:
        """The stored tensor itself: writing to it changes what is stored."""
        if self.folder is None:
            return self._held[number]
        shape, dtype = self._layout[number]
        if not shape.numel():
            return torch.empty(shape, dtype=dtype)
        flat = torch.from_file(str(self._path(number)), shared=True, size=shape.numel(), dtype=dtype)
        return flat.view(shape)

    def __contains__(self, number: int) -> bool:
        return number in self._layout

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.bin"


def _is_ours(path: Path) -> bool:
    return path.suffix == ".bin" and path.stem.isdigit()


@dataclass
class _Unit:
    """A module that is computed as a whole: a block, or a module outside the blocks with own parameters."""

    module: nn.Module
    inner: Callable[..., Any]
    places: list[tuple[nn.Module, str, int]] = field(default_factory=list)  # (owner, name, number)


@dataclass(frozen=True)
class _Update:
    """What the last step decided and the next visit of each tensor writes."""

    terms: tuple[Term, ...]
    lr: float
    weight_decay: float
    rounding_seed: int | None


class OffloadedZO:
    r"""ZO-SGD (MeZO) on a model whose weights are stored elsewhere.

    S. Malladi et al., arXiv 2305.17333; offloading after L. Wang et al., "ZO2: scalable zeroth-order
    fine-tuning for extremely large language models with limited GPU memory", arXiv 2503.12668. Memory on
    `device`: activations of two probes, and the weights of one block twice.

    Args:
        model: a Hugging Face model with one list of blocks. Its parameters move into `store` and become
            placeholders without data.
        store: an empty `WeightStore`, or one that already holds the parameters, numbered as
            `model.parameters()` gives them.
        lr, eps, num_queries, dist, weight_decay, seed, rounding, z_round, max_nonfinite: as in
            `tenfold.optim.ZOSGD`; num_queries from 1 to 64.
        loss: (logits of the model [B, T, V], batch) -> scalar. Default: mean cross-entropy of the next token
            of `batch["labels"]` [B, T], -100 left out.
        device: where blocks are computed.
        journal: a new file that gets one line per step, what `resume=True` of `from_pretrained` needs.

    Raises:
        ValueError, TypeError: an argument is out of range or of another type; its name comes first.
    """

    def __init__(
        self,
        model: Any,
        store: WeightStore,
        *,
        lr: float = 1e-6,
        eps: float = 1e-3,
        num_queries: int = 1,
        dist: str = "gaussian",
        weight_decay: float = 0.0,
        seed: int = 0,
        rounding: str = "rne",
        z_round: torch.dtype | None = None,
        max_nonfinite: int = 3,
        loss: Loss | None = None,
        device: torch.device | str = "cpu",
        journal: str | Path | None = None,
    ) -> None:
        self.lr = _checks.real("lr", lr, at_least=0.0)
        self.eps = _checks.real("eps", eps, positive=True)
        self.num_queries = _checks.integer("num_queries", num_queries, 1, 64)
        self.dist = _checks.choice("dist", dist, ("gaussian", "rademacher"))
        self.weight_decay = _checks.real("weight_decay", weight_decay, at_least=0.0)
        self.seed = _checks.seed("seed", seed)
        self.rounding = _checks.choice("rounding", rounding, ("rne", "sr"))
        self.z_round = z_round
        self.max_nonfinite = _checks.integer("max_nonfinite", max_nonfinite, 1, 1 << 31)
        self.loss = loss or _next_token_loss
        self.device = torch.device(device)
        self.model, self.store = model, store
        self.num_steps = 0
        self.num_skipped = 0
        self.projected_grads: tuple[float, ...] = ()
        self._bad_in_a_row = 0
        self._update: _Update | None = None
        self._updated: set[int] = set()
        self._probes: list[tuple[int, float, int | None]] = []
        self._copies = 1
        slots = manifest(model)
        self._names = {p: name for name, p in reversed(list(model.named_parameters()))}
        self._number = {p: slot.stream for p, slot in slots.items()}
        self._decays = {slot.stream: slot.decays for slot in slots.values()}
        self._journal = None if journal is None else Path(journal)
        if self._journal is not None and self._journal.exists() and self._journal.stat().st_size:
            _checks.fail(ValueError, "journal", "a new file, or resume=True", str(journal))
        self._units = self._make_units()
        self._empty_parameters()
        if self._journal is not None:
            self._note(self._identity())

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        store_folder: str | Path | None,
        *,
        dtype: torch.dtype | None = None,
        journal: str | Path | None = None,
        resume: bool = False,
        **options: Any,
    ) -> OffloadedZO:
        """A causal language model of a local folder (config.json and safetensors), one tensor at a time.

        Args:
            path: the folder. store_folder: a new folder for the working copy of the weights; None: host
                memory. dtype: of the stored weights; default: as in the file. options: those of the class.
            journal: file with a line per step. resume: go on with the run that wrote it: the steps are made
                again on a fresh copy of the weights, one read and write of each, to the same bits.

        Raises:
            ValueError: no safetensors in the folder, or a parameter is missing from them (named); the journal
                belongs to another model or other options.
        """
        from accelerate import init_empty_weights  # type: ignore[import-untyped]
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = Path(path)
        files = _tensor_files(folder)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        model.tie_weights()
        model.eval()
        if resume and journal is None:
            _checks.fail(ValueError, "journal", "the file of the run to resume", "None")
        store = WeightStore(store_folder, reuse=resume)
        for number, (name, parameter) in enumerate(model.named_parameters()):
            key = _key_of(name, model, files)
            if key is None:
                _checks.fail(ValueError, "path", f"a tensor {name} in the safetensors of {folder}", "none")
            tensor = _read_tensor(files[key], key)
            if tensor.shape != parameter.shape:
                _checks.fail(ValueError, name, f"shape {tuple(parameter.shape)}", tuple(tensor.shape))
            store.put(number, tensor if dtype is None else tensor.to(dtype))
        if not resume:
            return cls(model, store, journal=journal, **options)
        trainer = cls(model, store, **options)
        trainer._go_on(Path(journal or ""))
        return trainer

    # -- a step ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """One step on a batch of keyword arguments of the model (and "labels" for the loss); the mean loss.

        Nothing is written but the update of the step before. A loss that is not finite skips the step's own
        update; an exception leaves all weights as they were or with the former update, which is completed at
        the next step.

        Raises:
            RuntimeError: `max_nonfinite` steps in a row were not finite.
        """
        seed = splitmix64(self.seed, self.num_steps)
        losses: list[float] = []
        for query in range(self.num_queries):
            seeds = [self._rounding_seed(seed, 2 * query + k) for k in (0, 1)]
            self._probes = [(query, self.eps, seeds[0]), (query, -self.eps, seeds[1])]
            losses += self._forward(batch, seed)
            self._settle()
        grads = tuple((a - b) / (2 * self.eps) for a, b in zip(losses[::2], losses[1::2], strict=True))
        update = self._make_update(self.num_steps, grads, self.lr)
        self._note({"step": self.num_steps, "lr": self.lr, "grads": grads if update is not None else None})
        self.num_steps += 1
        self.projected_grads = grads
        if update is not None:
            self._bad_in_a_row = 0
            self._update = update
        else:
            self.num_skipped += 1
            self._bad_in_a_row += 1
            if self._bad_in_a_row >= self.max_nonfinite:
                raise RuntimeError(
                    f"loss: expected finite values, got {losses}, {self._bad_in_a_row} steps in a row"
                )
        return torch.tensor(sum(losses) / len(losses), dtype=torch.float64)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, T, V] at the present weights."""
        self.flush()
        self._probes = []
        inputs = {k: v.to(self.device) for k, v in batch.items() if k != "labels"}
        self._copies, self._rows = 1, _rows(inputs)
        return self.model(**inputs, use_cache=False).logits

    @torch.no_grad()
    def flush(self) -> None:
        """Write the update of the last step to every weight now."""
        self._settle()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, stored tensor) of every parameter at the present weights, tied ones once."""
        self.flush()
        for name, number in self._stored:
            yield name, self.store.get(number)

    def save(self, folder: str | Path) -> None:
        """Weights as safetensors shards of about 1 GiB with an index, and the model's config."""
        from safetensors.torch import save_file

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        shards: list[list[tuple[str, Tensor]]] = [[]]
        for name, tensor in self.tensors():
            if sum(t.nbytes for _, t in shards[-1]) + tensor.nbytes > _SHARD_BYTES and shards[-1]:
                shards.append([])
            shards[-1].append((name, tensor))
        where: dict[str, str] = {}
        total = 0
        for i, shard in enumerate(shards):
            file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            save_file(dict(shard), target / (file + ".part"), metadata={"format": "pt"})
            os.replace(target / (file + ".part"), target / file)
            where |= {name: file for name, _ in shard}
            total += sum(t.nbytes for _, t in shard)
            shard.clear()
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (target / "index.part").write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.replace(target / "index.part", target / "model.safetensors.index.json")
        self.model.config.save_pretrained(target)

    # -- the journal -------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        """What the lines of a journal belong to."""
        names = ("eps", "num_queries", "dist", "weight_decay", "seed", "rounding")
        layout = {name: list(self.store.get(number).shape) for name, number in self._stored}
        options = {name: getattr(self, name) for name in names}
        return {"format": "tenfold offload 1", **options, "z_round": str(self.z_round), "tensors": layout}

    def _note(self, line: dict[str, Any]) -> None:
        if self._journal is not None:
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _go_on(self, journal: Path) -> None:
        """Make the steps of a journal again on weights that are as they were before the first."""
        if not journal.is_file():
            _checks.fail(ValueError, "journal", "the file of the run to resume", str(journal))
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a line without an end was being written
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            _checks.fail(ValueError, "journal", "lines of JSON", str(journal))
        mine = json.loads(json.dumps(self._identity()))
        other = [key for key in mine if not isinstance(first, dict) or first.get(key) != mine[key]]
        if other or any(line.get("step") != i for i, line in enumerate(lines)):
            what = f"another {other[0]}" if other else "steps out of order"
            _checks.fail(ValueError, "journal", "one of this model and these options", what)
        updates = [self._make_update(i, line["grads"], line["lr"]) for i, line in enumerate(lines)]
        self._replay([update for update in updates if update is not None])
        if len(whole) < len(content):
            part = journal.with_name(journal.name + ".part")
            part.write_bytes(whole)
            os.replace(part, journal)
        self._journal = journal
        self.num_steps, self.num_skipped = len(lines), updates.count(None)

    @torch.no_grad()
    def _replay(self, updates: list[_Update]) -> None:
        for _, number in self._stored:
            stored = self.store.get(number)
            live = stored.to(self.device)
            for at in range(0, len(updates), _PASSES):
                passes = [
                    ReplayPass(
                        update.terms,
                        1.0 - update.lr * update.weight_decay if self._decays[number] else 1.0,
                        update.rounding_seed,
                    )
                    for update in updates[at : at + _PASSES]
                ]
                zo_replay_([live], [number], passes, z_round=self.z_round, out_rounding=self.rounding)
            if live is not stored:
                stored.copy_(live)

    # -- inside ------------------------------------------------------------------------------------------

    def _make_update(self, step: int, grads: tuple[float, ...] | None, lr: float) -> _Update | None:
        """The update that a step decides on, or None where it is skipped."""
        coefs = [] if grads is None else [-lr * g / self.num_queries for g in grads]
        if not coefs or not all(abs(c) <= _FLOAT32_MAX for c in coefs):
            return None
        seed = splitmix64(self.seed, step)
        terms = tuple(Term(seed, i, c, self.dist) for i, c in enumerate(coefs))
        return _Update(terms, lr, self.weight_decay, self._rounding_seed(seed, 2 * self.num_queries))

    def _forward(self, batch: Mapping[str, Tensor], seed: int) -> list[float]:
        """Losses of the present probes, in their order."""
        batch = {key: value.to(self.device) for key, value in batch.items()}
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        self._copies, self._rows, self._step_seed = len(self._probes), _rows(inputs), seed
        doubled = {
            k: torch.cat([v] * self._copies) if _is_batched(v, self._rows) else v for k, v in inputs.items()
        }
        logits = self.model(**doubled, use_cache=False).logits
        return [float(self.loss(part, batch)) for part in logits.chunk(self._copies)]

    def _rounding_seed(self, seed: int, index: int) -> int | None:
        return splitmix64(seed, index) if self.rounding == "sr" else None

    def _settle(self) -> None:
        """After a forward: complete the former update where the forward did not come by."""
        for _, number in self._stored:
            self._updated_tensor(number)
        self._update = None
        self._updated = set()

    def _updated_tensor(self, number: int) -> Tensor:
        """The stored tensor, with the former step's update written to it if that is still due."""
        stored = self.store.get(number)
        update = self._update
        if update is None or number in self._updated:
            return stored
        decay = 1.0 - update.lr * update.weight_decay if self._decays[number] else 1.0
        live = stored.to(self.device)
        options: dict[str, Any] = {
            "z_round": self.z_round,
            "out_rounding": self.rounding,
            "rounding_seed": update.rounding_seed,
        }
        with interrupts_deferred():
            zo_chain_([live], [number], update.terms, decay=decay, **options)
            if live is not stored:
                stored.copy_(live)
            self._updated.add(number)
        return stored

    def _run(self, unit: _Unit, *args: Any, **kwargs: Any) -> Any:
        """The forward of a unit: once per probe, each on its part of the batch, with its own weights."""
        clean = {number: self._updated_tensor(number).to(self.device) for _, _, number in unit.places}
        if not self._probes:
            return self._with(unit, clean, args, kwargs)
        weights = {n: torch.empty_like(t, memory_format=torch.contiguous_format) for n, t in clean.items()}
        outputs = []
        for k, (query, coef, rounding_seed) in enumerate(self._probes):
            zo_perturb_(
                list(weights.values()),
                list(weights),
                self._step_seed,
                query,
                coef,
                self.dist,
                sources=list(clean.values()),
                z_round=self.z_round,
                out_rounding=self.rounding,
                rounding_seed=rounding_seed,
            )
            outputs.append(self._with(unit, weights, self._part(args, k), self._part(kwargs, k)))
        return self._join(outputs)

    def _with(self, unit: _Unit, weights: dict[int, Tensor], args: Any, kwargs: Any) -> Any:
        placeholders = [(owner, name, owner._parameters[name]) for owner, name, _ in unit.places]
        try:
            for owner, name, number in unit.places:
                owner._parameters[name] = weights[number]  # type: ignore[assignment]
            return unit.inner(*args, **kwargs)
        finally:
            for owner, name, parameter in placeholders:
                owner._parameters[name] = parameter

    def _part(self, value: Any, k: int) -> Any:
        """What copy k of the batch has of a value: its rows of tensors that carry the whole batch."""
        if isinstance(value, Tensor):
            whole = self._rows * self._copies
            if _is_batched(value, whole) or (value.ndim >= 3 and value.shape[0] % whole == 0):
                return value.chunk(self._copies)[k]  # the second: heads beside rows, as BLOOM's biases
            return value
        if isinstance(value, dict):
            return {key: self._part(v, k) for key, v in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self._part(v, k) for v in value)
        return value

    def _join(self, outputs: list[Any]) -> Any:
        """The outputs of all probes as one batch; one row for all examples becomes a row for each."""
        first = outputs[0]
        if isinstance(first, Tensor):
            if first.ndim >= 2 and first.shape[0] == 1 != self._rows:
                outputs = [out.expand(self._rows, *out.shape[1:]) for out in outputs]
            return torch.cat(outputs)
        if isinstance(first, tuple):
            return tuple(self._join([out[i] for out in outputs]) for i in range(len(first)))
        return first

    def _make_units(self) -> list[_Unit]:
        _, blocks = find_blocks(self.model)
        inside = {module for block in blocks for module in block.modules()}
        others = [
            m
            for m in self.model.modules()
            if m not in inside and next(m.parameters(recurse=False), None) is not None
        ]
        units = []
        for module in [*blocks, *others]:
            whole = module in inside
            places = [
                (owner, name, self._number[parameter])
                for owner in (module.modules() if whole else [module])
                for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False)
            ]
            unit = _Unit(module, module.forward, places)
            module.forward = lambda *a, _unit=unit, **k: self._run(_unit, *a, **k)
            units.append(unit)
        return units

    def _empty_parameters(self) -> None:
        """Move the parameters into the store and leave placeholders of the same shape."""
        self._stored = [(self._names[p], number) for p, number in self._number.items()]
        twins: dict[Tensor, nn.Parameter] = {}
        for parameter, number in self._number.items():
            if number not in self.store:
                self.store.put(number, parameter)
            meta = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            twins[parameter] = nn.Parameter(meta, requires_grad=False)
        for module in self.model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = twins[parameter]
        for buffer_owner in self.model.modules():
            for name, buffer in list(buffer_owner._buffers.items()):
                if buffer is not None:
                    buffer_owner._buffers[name] = buffer.to(self.device)


def _rows(inputs: Mapping[str, Tensor]) -> int:
    """The number of examples in a batch.

    Raises ValueError if there is none.
    """
    for value in inputs.values():
        if isinstance(value, Tensor) and value.ndim >= 2:
            return value.shape[0]
    return _checks.fail(ValueError, "batch", "a tensor [B, T] among its values", sorted(inputs))


def _is_batched(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == rows


def _next_token_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy of labels[:, t+1] by logits[:, t], float32."""
    if "labels" not in batch:
        _checks.fail(ValueError, "batch", "a key 'labels' (or give your own loss)", sorted(batch))
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    return F.cross_entropy(logits[:, :-1][kept].float(), labels[kept])


# -- folders of safetensors --------------------------------------------------------------------------------


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Name of a tensor -> file that holds it."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        _checks.fail(ValueError, "path", "a folder with safetensors files", str(folder))
    where: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            where |= dict.fromkeys(tensors.keys(), file)
    return where


def _key_of(name: str, model: Any, files: Mapping[str, Path]) -> str | None:
    """A file may hold the base model alone, or a tied tensor under its other name."""
    prefix = model.base_model_prefix + "."
    aliases = [n for n, p in model.named_parameters(remove_duplicate=False) if p is model.get_parameter(name)]
    for candidate in (n for alias in [name, *aliases] for n in (alias, alias.removeprefix(prefix))):
        if candidate in files:
            return candidate
    return None


def _read_tensor(file: Path, key: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(key)
    return tensor
