"""Zeroth-order fine-tuning of models larger than memory: weights stay on disk (or in host memory), one block
at a time is computed.

    trainer = OffloadedZO.from_pretrained(FOLDER, "weights", lr=1e-6)     # weights stay on disk
    for batch in loader:
        loss = trainer.step(batch)
    trainer.save(OUT)

With `journal=FILE` a killed run goes on to the same bits (`resume=True`); the file is a `.zolog`.

Both probes of a step go through a block together, so a step reads each weight once. The update of a step is
written when its weights are read for the next step, in the same visit (ZO2, arXiv 2503.12668). Probes are
scratch copies of one block: the stored weights are never perturbed. While a block computes, a thread reads
the weights of the next one. Given the same losses, the result is that of
`tenfold.optim.ZOSGD(..., restore="exact", streams=model)` with the same seed, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold import _checks
from tenfold.llm._read_ahead import ReadAhead
from tenfold.llm._weight_store import WeightStore, key_of, read_tensor, save_shards, tensor_files
from tenfold.llm.schemes import entering_head
from tenfold.llm.scorer import find_blocks
from tenfold.ops import ReplayPass, Term, zo_chain_, zo_perturb_, zo_replay_
from tenfold.optim import ZOSGD, _log, splitmix64, zolog
from tenfold.optim._manifest import Slot, manifest
from tenfold.optim._record import FLAG_GRAD, FLAG_SKIPPED, Scalar
from tenfold.optim._walk import interrupts_deferred

__all__ = ["OffloadedZO", "WeightStore"]

Loss = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
HeadLoss = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
_FLOAT32_MAX = torch.finfo(torch.float32).max
_PASSES = 256  # recorded steps that are made again in one call


@dataclass(eq=False)
class _Unit:
    """A module that is computed as a whole: a block, or a module outside the blocks with own parameters."""

    module: nn.Module
    inner: Callable[..., Any]
    places: list[tuple[nn.Module, str, int]] = field(default_factory=list)  # (owner, name, number)

    @property
    def numbers(self) -> list[int]:
        return [number for _, _, number in self.places]


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
    `device`: activations of two probes, the weights of one block twice, and those of the next one.

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
        journal: a new `.zolog` file that every step is appended to, what `resume=True` of `from_pretrained`
            needs; the weights are hashed once for it. It is the log of the optimizer named above.
        read_ahead: read the weights of the next block while one computes. The bits are the same without.

    Attributes:
        num_steps, num_skipped: steps made, and those among them without an update.
        projected_grads: of the last step, one per query.
        seconds: wall time of the last step in "forward" (computing) and in "passes" (reading, updating and
            perturbing weights).

    Raises:
        ValueError, TypeError: an argument is out of range or of another type; its name comes first.
        FileExistsError: `journal` exists.
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
        read_ahead: bool = True,
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
        if journal is not None and Path(journal).exists():
            raise FileExistsError(f"journal: expected a new file, or resume=True, got {journal}")
        self.model, self.store = model, store
        self.num_steps = 0
        self.num_skipped = 0
        self.projected_grads: tuple[float, ...] = ()
        self.seconds = {"forward": 0.0, "passes": 0.0}
        self._bad_in_a_row = 0
        self._update: _Update | None = None
        self._updated: set[int] = set()
        self._probes: list[tuple[int, float, int | None]] = []
        self._copies = self._rows = 1
        self._folder: tuple[Path, torch.dtype | None] | None = None
        slots = manifest(model)
        self._names = {p: name for name, p in reversed(list(model.named_parameters()))}
        self._number = {p: slot.stream for p, slot in slots.items()}
        self._decays = {slot.stream: slot.decays for slot in slots.values()}
        self._units = self._make_units()
        self._empty_parameters()
        self._ahead = ReadAhead(store, self.device) if read_ahead else None
        self._came = self._units[0]  # the unit visited last
        self._follows: dict[_Unit, _Unit] = {}
        self._log: _log.Appender | None = None
        if journal is not None:
            _log.write_aside(Path(journal), [_log.encode_header(self._header())])
            self._log = _log.Appender(Path(journal), _log.read(journal), fsync=False)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        store_folder: str | Path | None,
        *,
        dtype: torch.dtype | None = None,
        journal: str | Path | None = None,
        resume: bool = False,
        reuse: bool = False,
        **options: Any,
    ) -> OffloadedZO:
        """A causal language model of a local folder (config.json and safetensors), one tensor at a time.

        Args:
            path: the folder. store_folder: a new folder for the working copy of the weights; None: host
                memory. dtype: of the stored weights; default: as in the file. options: those of the class.
            journal: `.zolog` file of the run. resume: go on with the run that wrote it: the steps are made
                again on a fresh copy of the weights, one read and write of each, to the same bits.
            reuse: `store_folder` may hold the files of an earlier run, which are written over; so with
                `resume`.

        Raises:
            ValueError: no safetensors in the folder, or a parameter is missing from them (named).
            ZOLogError: the journal is damaged, or of another model, other weights or other options.
        """
        from accelerate import init_empty_weights  # type: ignore[import-untyped]
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = Path(path)
        tensor_files(folder)
        if resume and (journal is None or not Path(journal).is_file()):
            _checks.fail(ValueError, "journal", "the file of the run to resume", str(journal))
        with init_empty_weights(include_buffers=False):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
        model.eval()
        store = WeightStore(store_folder, reuse=resume or reuse)
        _fill(store, model, folder, dtype)
        trainer = cls(model, store, journal=None if resume else journal, **options)
        trainer._folder = folder, dtype
        if resume:
            trainer._go_on(Path(journal or ""))
        return trainer

    # -- a step ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, batch: Mapping[str, Any], head_loss: HeadLoss | None = None) -> Tensor:
        """One step on a batch of keyword arguments of the model (and "labels" for the loss); the mean loss.

        Nothing is written but the update of the step before. A loss that is not finite skips the step's own
        update; an exception leaves all weights as they were or with the former update, which is completed at
        the next step.

        Args:
            head_loss: (hidden states [B, T, H], weight [V, H] and bias [V] or None of the unembedding) ->
                scalar, in place of `loss`: the forward ends before the unembedding, and logits are only those
                that it makes (see `tenfold.ops.option_loss`).

        Raises:
            RuntimeError: `max_nonfinite` steps in a row were not finite.
        """
        started = time.perf_counter()
        self.seconds = {"forward": 0.0, "passes": 0.0}
        seed = splitmix64(self.seed, self.num_steps)
        losses: list[float] = []
        for query in range(self.num_queries):
            seeds = [self._rounding_seed(seed, 2 * query + k) for k in (0, 1)]
            self._probes = [(query, self.eps, seeds[0]), (query, -self.eps, seeds[1])]
            losses += self._forward(batch, seed, head_loss)
            self._settle()
        grads = tuple((a - b) / (2 * self.eps) for a, b in zip(losses[::2], losses[1::2], strict=True))
        update = self._make_update(self.num_steps, grads, self.lr)
        self._note(seed, grads if update is not None else None, len(losses))
        self.num_steps += 1
        self.projected_grads = grads
        self.seconds["forward"] = time.perf_counter() - started - self.seconds["passes"]
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
    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits [B, T, V] at the present weights."""
        logits: Tensor = self.model(**({"use_cache": False} | self._plain_inputs(batch))).logits
        return logits

    @torch.no_grad()
    def hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """Hidden states [B, T, H] that enter the unembedding, at the present weights."""
        return entering_head(self.model, {"use_cache": False} | self._plain_inputs(batch))

    @torch.no_grad()
    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, H] and bias [V] (or None) of the unembedding on `device`, at the present weights; to be
        read, not written."""
        unit = self._head_unit()
        clean = self._visit(unit)
        found = {name: clean[number] for _, name, number in unit.places}
        return found["weight"], found.get("bias")

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
        """Weights as safetensors shards of about 1 GiB with an index, and the model's config; in memory is
        one tensor at a time."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        self.flush()
        save_shards(target, self.store, self._stored)
        self.model.config.save_pretrained(target)

    def close(self) -> None:
        """Let go of the journal and end the thread. Idempotent; weights can still be read."""
        if self._log is not None:
            self._log.close()
        if self._ahead is not None:
            self._ahead.close()

    # -- the journal -------------------------------------------------------------------------------------

    @torch.no_grad()
    def rewind(self, steps: int) -> None:
        """Bring the weights to where they were after the first `steps` steps of the journal, bit for bit.

        They are copied from the folder again and the steps are made on them. No step can be made afterwards.

        Raises:
            ValueError: not of `from_pretrained` with a journal, or more steps than it has.
            ZOLogError: the folder holds other weights now.
        """
        if self._folder is None or self._log is None:
            _checks.fail(ValueError, "journal", "one, and a trainer of from_pretrained", "none")
        _checks.integer("steps", steps, 0, self.num_steps)
        folder, dtype = self._folder
        part = _log.read(self._log.path).single()
        _fill(self.store, self.model, folder, dtype)
        self._check_base(self._log.path, part.header)
        self._make_again(part.steps[:steps])

    def _optimizer(self) -> ZOSGD:
        """The optimizer in memory that would make the same steps: what a log describes."""
        named = [(name, nn.Parameter(self.store.get(number))) for name, number in self._stored]
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("lr", "eps", "num_queries", "dist", "weight_decay", "seed", "rounding", "z_round")
        }
        optimizer = ZOSGD(named, restore="exact", max_nonfinite=self.max_nonfinite, **options)
        numbers = [number for _, number in self._stored]
        optimizer._slots = {
            p: Slot(number, self._decays[number]) for (_, p), number in zip(named, numbers, strict=True)
        }
        optimizer._module = self.model
        return optimizer

    def _header(self) -> dict[str, Any]:
        optimizer = self._optimizer()
        return zolog._header(optimizer, _named(optimizer), self._sha256())

    def _sha256(self) -> str:
        return zolog.weights_sha256((name, self.store.get(number)) for name, number in self._stored)

    def _check_base(self, journal: Path, header: dict[str, Any]) -> None:
        found = self._sha256()
        if found != header["base_sha256"]:
            expected = f"the weights that it starts from (sha256 {header['base_sha256'][:16]}...)"
            raise zolog.ZOLogError(f"{journal}: expected {expected}, got others ({found[:16]}...)")

    def _note(self, seed: int, grads: tuple[float, ...] | None, losses: int) -> None:
        if self._log is None:
            return
        skipped = (Scalar(0, FLAG_SKIPPED, float(losses)),)
        scalars = skipped if grads is None else tuple(Scalar(i, FLAG_GRAD, g) for i, g in enumerate(grads))
        self._log.append(_log.LoggedStep(self.num_steps, seed, scalars, (self.lr,), (self.eps,)))

    def _go_on(self, journal: Path) -> None:
        """Make the steps of a journal again on weights that are as they were before the first."""
        contents = _log.read(journal, recover=True)
        part = contents.single()
        optimizer = self._optimizer()
        zolog._check_same(journal, part.header, optimizer, _named(optimizer))
        if part.header["eps"] != [self.eps] or part.first_step:
            got = f"eps {self.eps:g} at step 0"
            expected = f"eps {part.header['eps']} at step {part.first_step}"
            raise zolog.ZOLogError(f"{journal}: expected {expected}, got {got}")
        self._check_base(journal, part.header)
        self._log = _log.Appender(journal, contents, fsync=False)
        self._make_again(part.steps)
        self.num_steps = len(part.steps)

    def _make_again(self, steps: list[_log.LoggedStep]) -> None:
        updates = [self._make_update(step.step, _grads(step), step.lrs[0]) for step in steps]
        self._replay([update for update in updates if update is not None])
        self.num_skipped = updates.count(None)
        self._update, self._updated = None, set()

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

    def _inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What the model gets of a batch, on the device."""
        return {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
            if key != "labels"
        }

    def _plain_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same, and no probes in the forward that follows."""
        inputs = self._inputs(batch)
        self._probes = []
        self._copies, self._rows = 1, _rows(inputs)
        return inputs

    def _forward(self, batch: Mapping[str, Any], seed: int, head_loss: HeadLoss | None) -> list[float]:
        """Losses of the present probes, in their order."""
        inputs = self._inputs(batch)
        self._copies, self._rows, self._step_seed = len(self._probes), _rows(inputs), seed
        given = {"use_cache": False} | {
            k: torch.cat([v] * self._copies) if _is_batched(v, self._rows) else v for k, v in inputs.items()
        }
        if head_loss is not None:
            return self._head_losses(entering_head(self.model, given), head_loss)
        logits = self.model(**given).logits
        batch = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return [float(self.loss(part, batch)) for part in logits.chunk(self._copies)]

    def _head_losses(self, hidden: Tensor, head_loss: HeadLoss) -> list[float]:
        unit = self._head_unit()
        clean = self._visit(unit)
        weights = _scratch(clean)
        losses = []
        for part, probe in zip(hidden.chunk(self._copies), self._probes, strict=True):
            self._perturb(clean, weights, probe)
            found = {name: weights[number] for _, name, number in unit.places}
            losses.append(float(head_loss(part, found["weight"], found.get("bias"))))
        return losses

    def _head_unit(self) -> _Unit:
        head = self.model.get_output_embeddings()
        for unit in self._units:
            if unit.module is head:
                return unit
        return _checks.fail(ValueError, "model", "an unembedding with own parameters", type(head).__name__)

    def _rounding_seed(self, seed: int, index: int) -> int | None:
        return splitmix64(seed, index) if self.rounding == "sr" else None

    def _settle(self) -> None:
        """After a forward: complete the former update where the forward did not come by."""
        if self._update is not None:
            for _, number in self._stored:
                if number not in self._updated:
                    self._live(number)
        self._update = None
        self._updated = set()

    def _visit(self, unit: _Unit) -> dict[int, Tensor]:
        """The weights of a unit on the device, updated; reading of what followed it last time begins."""
        started = time.perf_counter()
        held: dict[int, Tensor] = {}
        if self._ahead is not None:
            held = self._ahead.take(unit.numbers)
            self._follows[self._came] = unit
            self._came = unit
            if unit in self._follows:
                self._ahead.start(self._follows[unit].numbers)
        clean = {number: self._live(number, held.get(number)) for number in unit.numbers}
        self.seconds["passes"] += time.perf_counter() - started
        return clean

    def _live(self, number: int, held: Tensor | None = None) -> Tensor:
        """A tensor on the device, where the former step's update is written to it, and to the store, if that
        is still due. held: the tensor, if it has been read already."""
        live = self.store.get(number).to(self.device) if held is None else held
        update = self._update
        if update is None or number in self._updated:
            return live
        decay = 1.0 - update.lr * update.weight_decay if self._decays[number] else 1.0
        options: dict[str, Any] = {
            "z_round": self.z_round,
            "out_rounding": self.rounding,
            "rounding_seed": update.rounding_seed,
        }
        if self._ahead is not None:
            self._ahead.forget(number)
        with interrupts_deferred():
            zo_chain_([live], [number], update.terms, decay=decay, **options)
            if self.device.type != "cpu":  # there, `live` is the stored tensor itself
                self.store.get(number).copy_(live)
            self._updated.add(number)
        return live

    def _perturb(
        self, clean: dict[int, Tensor], weights: dict[int, Tensor], probe: tuple[int, float, int | None]
    ) -> None:
        """Write the weights of a probe into scratch tensors."""
        started = time.perf_counter()
        query, coef, rounding_seed = probe
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
        self.seconds["passes"] += time.perf_counter() - started

    def _run(self, unit: _Unit, *args: Any, **kwargs: Any) -> Any:
        """The forward of a unit: once per probe, each on its part of the batch, with its own weights."""
        clean = self._visit(unit)
        if not self._probes:
            return self._with(unit, clean, args, kwargs)
        weights = _scratch(clean)
        outputs = []
        for k, probe in enumerate(self._probes):
            self._perturb(clean, weights, probe)
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


def _fill(store: WeightStore, model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """The weights of a folder into a store, under the numbers of the model's parameters; over what it holds.

    Raises ValueError for a parameter that is missing or has another shape, naming it.
    """
    files = tensor_files(folder)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        key = key_of(name, model, files)
        if key is None:
            _checks.fail(ValueError, "path", f"a tensor {name} in the safetensors of {folder}", "none")
        tensor = read_tensor(files[key], key)
        if tensor.shape != parameter.shape:
            _checks.fail(ValueError, name, f"shape {tuple(parameter.shape)}", tuple(tensor.shape))
        tensor = tensor if dtype is None else tensor.to(dtype)
        if number in store:
            store.get(number).copy_(tensor)
        else:
            store.put(number, tensor)


def _named(optimizer: ZOSGD) -> dict[str, Tensor]:
    return {name: p for p, name in optimizer._names.items()}


def _grads(step: _log.LoggedStep) -> tuple[float, ...] | None:
    """The projected gradients of a step of a log, or None where it was skipped."""
    if any(scalar.kind == FLAG_SKIPPED for scalar in step.scalars):
        return None
    return tuple(scalar.value for scalar in step.scalars)


def _scratch(clean: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {n: torch.empty_like(t, memory_format=torch.contiguous_format) for n, t in clean.items()}


def _rows(inputs: Mapping[str, Any]) -> int:
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
