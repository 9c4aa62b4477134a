"""The parts of a model: its chain of layers, blocks of parameters, and activations kept between probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from tenfold import _checks

from ._options import Blocks


class Layout(NamedTuple):
    """How trainable parameters fall into blocks.

    Attributes:
        block_of: index of the block of each parameter.
        owners: per block, the modules that own its parameters.
        chain: the model's layers in order; empty where a list of modules was given.
    """

    block_of: dict[Tensor, int]
    owners: list[list[nn.Module]]
    chain: list[nn.Module]


def chain_of(model: nn.Module) -> list[nn.Module]:
    """The layers: of all lists of at least two modules in the model, the one that holds most parameters.

    Lists of modules of one class come before mixed ones.
    """
    lists = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]

    def rank(layers: nn.Module) -> tuple[bool, int]:
        classes = {type(child) for child in layers.children()}
        return len(classes) == 1, sum(p.numel() for p in layers.parameters())

    return list(max(lists, key=rank).children()) if lists else []


def is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) or "embed" in type(module).__name__.lower()


def _owns(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def _before_layers(model: nn.Module) -> set[Tensor]:
    """Parameters of embeddings, whatever else uses them too."""
    return {p for module in model.modules() if is_embedding(module) for p in module.parameters()}


def tail(model: nn.Module, last: int) -> set[Tensor]:
    """Parameters of the last layers and of what is behind them."""
    chain = chain_of(model)
    if not last < len(chain):
        _checks.fail(ValueError, "hybrid", f"fewer layers than the {len(chain)} of the model", last)
    front = _before_layers(model) | {p for layer in chain[:-last] for p in layer.parameters()}
    return {p for p in model.parameters() if p not in front}


def _parts_of_layer(layer: nn.Module) -> list[list[nn.Module]]:
    """Attention and the rest, norms with the part that their name tells."""
    attention: list[nn.Module] = []
    rest: list[nn.Module] = []
    for name, child in layer.named_children():
        label = (name + type(child).__name__).lower()
        (attention if "attn" in label or "attention" in label else rest).append(child)
    return [part for part in (attention, rest) if part]


def _modules_of_blocks(blocks: Blocks, chain: list[nn.Module]) -> list[list[nn.Module]]:
    model = blocks.model
    if not isinstance(model, nn.Module) or isinstance(model, nn.ModuleList):
        return [[module] for module in model]
    if blocks.level == "linear":
        return [[m] for m in model.modules() if _owns(m)]
    if not chain:
        got = f"{type(model).__name__} without one"
        _checks.fail(ValueError, "blocks", "a module with a list of layers", got)
    embeddings = [m for m in model.modules() if is_embedding(m)]
    layers = [
        part for layer in chain for part in ([[layer]] if blocks.level == "block" else _parts_of_layer(layer))
    ]
    inside = {m for layer in chain for m in layer.modules()} | {m for e in embeddings for m in e.modules()}
    others = [
        [m]
        for m in model.modules()
        if m not in inside and next(m.parameters(recurse=False), None) is not None
    ]
    return [embeddings, *layers, *others]


def layout(blocks: Blocks, trainable: Sequence[Tensor]) -> Layout:
    """The blocks of the trainable parameters; a parameter belongs to the first block that holds it.

    Raises ValueError if no trainable parameter is in any block.
    """
    model = blocks.model
    whole = isinstance(model, nn.Module) and not isinstance(model, nn.ModuleList)
    chain = chain_of(model) if whole else list(model)  # type: ignore[arg-type]
    wanted = set(trainable)
    block_of: dict[Tensor, int] = {}
    owners: list[list[nn.Module]] = []
    groups = _modules_of_blocks(blocks, chain)
    held = {p for group in groups for module in group for p in module.parameters()}
    if not held & wanted:
        _checks.fail(ValueError, "blocks", "modules that hold trainable parameters", "none that does")
    outside = [p for p in trainable if p not in held]
    if outside:
        block_of.update(dict.fromkeys(outside, 0))
        owners.append([])
    for group in groups:
        recurse = blocks.level != "linear" or not whole
        mine = {
            p: m
            for top in group
            for m in (top.modules() if recurse else [top])
            for p in m.parameters(recurse=False)
            if p in wanted and p not in block_of
        }
        if mine:
            block_of.update(dict.fromkeys(mine, len(owners)))
            owners.append(list(dict.fromkeys(mine.values())))
    return Layout(block_of, owners, chain)


# -- activations before the block under probe -----------------------------------------------------------


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    for item in value if isinstance(value, (tuple, list)) else ():
        found = _first_tensor(item)
        if found is not None:
            return found
    return None


class Prefix:
    """What comes out of the layers before the block under probe, kept from one evaluation to the next.

    In the probes of a block, the layers before it stand where they stood, so their output is that of the
    evaluation before.  A probe of a block in layer D computes layers D, D+1, ... and hands the kept output of
    layer D-1 to layer D; layers before give their place-holders without computing.

    The first evaluation (of a block before all layers, or of any block) computes everything and notes, for
    each block, how many layers had run when it was first used.
    """

    def __init__(self, parts: Layout) -> None:
        self.chain = parts.chain
        self.owners = parts.owners
        self.depth: list[int] | None = None
        self._reached = [0] * len(parts.owners)
        self.clear()

    def clear(self) -> None:
        """Forget the activations (not where the blocks are)."""
        self._have = 0  # layers whose output need not be computed
        self._kept: list[Any] = []  # per call of the model in one evaluation, the output of layer have-1
        self._want = 0
        self._new: list[Any] = []
        self._calls: list[int] = []
        self._last: tuple[int, Tensor | None] = (-1, None)

    @contextmanager
    def evaluation(self, block: int) -> Iterator[None]:
        """Around one evaluation of the closure with only `block` (and blocks that rest) away from clean."""
        self._want = 0 if self.depth is None else self.depth[block]
        if self._want < self._have:
            self.clear()
            self._want = 0 if self.depth is None else self.depth[block]
        self._calls = [0] * len(self.chain)
        self._new = []
        hooks = self._watch() if self.depth is None else []
        originals = [layer.__dict__.get("forward") for layer in self.chain]
        for index, layer in enumerate(self.chain):
            layer.forward = self._wrapped(index, layer.forward)
        try:
            yield
        finally:
            for layer, original in zip(self.chain, originals, strict=True):
                del layer.forward
                if original is not None:
                    layer.forward = original
            for hook in hooks:
                hook.remove()
        if self.depth is None:
            self.depth = self._reached
        if self._want > self._have:
            self._have, self._kept = self._want, self._new

    def _watch(self) -> list[Any]:
        """Note how many layers have begun when a block is first used: it is in or before the last of them."""
        seen: set[int] = set()
        layers_of = {m: i for i, layer in enumerate(self.chain) for m in layer.modules()}

        def note(block: int, module: nn.Module) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                if block not in seen:
                    seen.add(block)
                    done = max((i + 1 for i, calls in enumerate(self._calls) if calls), default=0)
                    self._reached[block] = layers_of.get(module, done)

            return hook

        return [
            module.register_forward_pre_hook(note(block, module))
            for block, modules in enumerate(self.owners)
            for module in modules
        ]

    def _wrapped(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            number = self._calls[index]
            self._calls[index] += 1
            if index < self._have:
                if number >= len(self._kept):
                    raise RuntimeError("closure: expected as many forward passes each time, got more")
                return self._kept[number]
            if self.depth is None:
                self._check_chain(index, (args, kwargs))
            out = forward(*args, **kwargs)
            if self.depth is None:
                self._last = index, _first_tensor(out)
            if index == self._want - 1:
                self._new.append(out)
            return out

        return call

    def _check_chain(self, index: int, inputs: Any) -> None:
        """Layer `index` must take what layer `index - 1` gave, or the kept outputs would not do."""
        before, value = self._last
        if index > 0 and (before != index - 1 or _first_tensor(inputs) is not value):
            got = f"layer {index} with another input; pass reuse_prefix=False"
            _checks.fail(ValueError, "blocks", "layers that feed one another", got)


def restart_streams(parts: Layout, slots: Sequence[Tensor]) -> dict[Tensor, int]:
    """Streams as the benchmark's code has them: counted anew in each block, equal blocks have equal ones."""
    counts = [0] * len(parts.owners)
    streams = {}
    for p in slots:
        if p in parts.block_of:
            block = parts.block_of[p]
            streams[p] = counts[block]
            counts[block] += 1
    return streams


__all__ = ["Layout", "Prefix", "chain_of", "is_embedding", "layout", "restart_streams", "tail"]
