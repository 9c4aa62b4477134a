"""Five ways to fine-tune a language model: which tensors are trained, and how they enter the forward.

    adapted = attach(model, "lora")            ft, lora, prefix, prompt or head
    hidden = adapted.hidden(ids, mask)         [B, T, H], what enters the unembedding
    save_adapter(adapted, "lora.safetensors"); adapted.detach()

Everything is found by the module tree and the cache interface of ``transformers``; no forward of a model is
rewritten. Tested on RoBERTa, OPT, LLaMA (Vicuna has the same modules) and Mistral.

ft: every parameter.  lora: Hu et al., arXiv 2106.09685.  prefix: Li and Liang, arXiv 2101.00190, keys and
values without reparametrisation.  prompt: Lester et al., arXiv 2104.08691.  head: the unembedding alone,
untied. Sizes and initial values as in the ZO benchmark (arXiv 2402.11592, section 4, and its code).
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold._reading import reading
from tenfold.llm.scorer import find_blocks
from tenfold.runs.files import read_safetensors

__all__ = ["SCHEMES", "Adapted", "LoRALinear", "attach", "checkpointed", "load_adapter", "save_adapter"]

SCHEMES = ("ft", "lora", "prefix", "prompt", "head")
QUERY, KEY, VALUE = ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")
DEFAULTS: dict[str, dict[str, Any]] = {
    "ft": {},
    "lora": {"rank": 8, "alpha": 16.0},
    "prefix": {"length": 5, "init": "activations"},
    "prompt": {"length": 10, "init": "vocabulary"},
    "head": {},
}


class _Reached(Exception):
    """Ends a forward where its last wanted values are known."""


class LoRALinear(nn.Linear):
    """A linear layer y = x W^T + b + (alpha / r) (x A^T) B^T that shares W and b with the layer it replaces.

    A [r, in] is uniform in +-1/sqrt(in) (kaiming with a = sqrt 5), B [out, r] is zero, both in the dtype of
    W. A layer without bias stays without.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.scale = alpha / rank
        weight = base.weight
        a = torch.empty(rank, self.in_features).uniform_(-1.0, 1.0, generator=generator)
        a = (a / math.sqrt(self.in_features)).to(weight.device, weight.dtype)
        self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(
            torch.zeros(self.out_features, rank, dtype=weight.dtype, device=weight.device)
        )
        self.train(base.training)

    def forward(self, input: Tensor) -> Tensor:
        low = F.linear(F.linear(input, self.lora_A), self.lora_B)
        return F.linear(input, self.weight, self.bias) + self.scale * low


class Prefix(nn.Module):
    """Trained keys and values of every layer, each [key/value heads, length, head size]."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self.keys = nn.ParameterList([nn.Parameter(k.clone()) for k in keys])
        self.values = nn.ParameterList([nn.Parameter(v.clone()) for v in values])


class Prompt(nn.Module):
    """Trained embeddings of virtual tokens, [length, embedding size]."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows.clone())


class Adapted:
    """A model with one scheme on it, made by :func:`attach`.

    ``parameters`` holds the trained tensors by their name in ``model``; they alone require gradients.
    """

    def __init__(self, model: Any, scheme: str, options: dict[str, Any]) -> None:
        self.model, self.scheme, self.options = model, scheme, options
        self.parameters: dict[str, nn.Parameter] = {}
        self._undo: list[Callable[[], None]] = []
        self._was_training = {p: p.requires_grad for p in model.parameters()}

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def trainable(self) -> int:
        """Number of trained scalars."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def head(self) -> tuple[Tensor, Tensor | None]:
        """(weight [V, H], bias [V] or None) of the unembedding."""
        layer = self.model.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [B, T, H] that enter the unembedding; row t predicts token t + 1 (a masked model: t).

        Args:
            ids, mask: int64 [B, T]; the mask is 0 on padding, which may stand on either side. Positions count
                real tokens.
        """
        return self._entering_head(self.inputs(ids, mask))[:, self._virtual :]

    def inputs(self, ids: Tensor, mask: Tensor) -> dict[str, Any]:
        """Keyword arguments of the model's forward: virtual tokens and prefix included."""
        given: dict[str, Any] = {}
        if self.scheme == "prompt":
            rows = self.model.prompt.weight.expand(len(ids), -1, -1)
            embedded = self.model.get_input_embeddings()(ids)
            given["inputs_embeds"] = torch.cat((rows.to(embedded.dtype), embedded), 1)
            mask = torch.cat((mask.new_ones(len(ids), self._virtual), mask), 1)
        else:
            given["input_ids"] = ids
        given |= positions(self.model, mask)
        if self.scheme == "prefix" and not is_masked(self.model):
            from tenfold.llm._prefix_cache import prefix_cache

            prefix = self.model.prefix
            given["past_key_values"] = prefix_cache(list(prefix.keys), list(prefix.values))
            mask = torch.cat((mask.new_ones(len(ids), prefix.keys[0].shape[-2]), mask), 1)
        given["attention_mask"] = mask
        if not is_masked(self.model):
            given["use_cache"] = False
        return given

    @torch.no_grad()
    def greedy(self, ids: Tensor, mask: Tensor, *, max_new: int = 50, stop: set[int]) -> list[list[int]]:
        """Greedy continuations: one list of token ids per row, without the token of ``stop`` that ended it.

        Args:
            ids, mask: int64 [B, T], padded on the left.

        Raises:
            ValueError: a masked language model.
        """
        if is_masked(self.model):
            raise ValueError(f"model: expected a causal model to generate, got {type(self.model).__name__}")
        cache, hidden = self.prefill(ids, mask)
        weight, bias = self.head()
        made: list[list[int]] = [[] for _ in range(len(ids))]
        live = set(range(len(ids)))
        for _ in range(max_new):
            tokens = F.linear(hidden, weight, bias).argmax(-1)
            for row in sorted(live):
                if int(tokens[row]) in stop:
                    live.discard(row)
                else:
                    made[row].append(int(tokens[row]))
            if not live:
                break
            one = torch.ones_like(tokens)[:, None]
            hidden = self.continued(tokens[:, None], one, mask, cache)[:, -1]
            mask = torch.cat((mask, one), 1)
        return made

    @torch.no_grad()
    def prefill(self, ids: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
        """A cache that holds scheme and prompts, and the hidden state [B, H] behind each prompt.

        Args:
            ids, mask: int64 [B, T], padded on the left; a causal model.
        """
        from tenfold.llm._prefix_cache import growing_cache

        prefix = self.model.prefix if self.scheme == "prefix" else None
        keys, values = (list(prefix.keys), list(prefix.values)) if prefix is not None else ((), ())
        cache = growing_cache(keys, values, len(ids))
        given = self.inputs(ids, mask) | {"past_key_values": cache, "use_cache": True}
        return cache, self._entering_head(given)[:, -1]

    @torch.no_grad()
    def continued(self, ids: Tensor, mask: Tensor, before: Tensor, cache: Any) -> Tensor:
        """Hidden states [B, T, H] of tokens that follow what a cache of :meth:`prefill` holds.

        Args:
            ids, mask: int64 [B, T], padded on the right.  before: the mask of all tokens in the cache.
        """
        front = self._virtual if self.scheme != "prefix" else self.model.prefix.keys[0].shape[-2]
        whole = torch.cat((mask.new_ones(len(ids), front), before, mask), 1)
        given = {"input_ids": ids, "attention_mask": whole, "past_key_values": cache, "use_cache": True}
        counted = whole if self.scheme != "prefix" else whole[:, front:]
        places = positions(self.model, counted)
        given |= {name: value[:, -ids.shape[1] :] for name, value in places.items()}
        return self._entering_head(given)

    def _entering_head(self, given: dict[str, Any]) -> Tensor:
        """What enters the unembedding in a forward with these arguments, which then ends."""
        return entering_head(self.model, given)

    def merge(self) -> None:
        """Add the low-rank update of every LoRA layer to its weight and detach; other schemes: detach only.

        The weights round to their dtype.
        """
        with torch.no_grad():
            for module in self.model.modules():
                if isinstance(module, LoRALinear):
                    module.weight += module.scale * (module.lora_B @ module.lora_A)
        self.detach()

    def detach(self) -> None:
        """Take the scheme off: modules and marks are as before; the trained weights of ``ft`` stay."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        for parameter, was in self._was_training.items():
            parameter.requires_grad_(was)

    @property
    def _virtual(self) -> int:
        return int(self.model.prompt.weight.shape[0]) if self.scheme == "prompt" else 0


def entering_head(model: Any, given: dict[str, Any]) -> Tensor:
    """What enters the unembedding of a model in a forward with these arguments, which then ends."""
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(args[0])
        raise _Reached

    handle = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        model(**given)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]


def attach(model: Any, scheme: str, *, seed: int = 0, **options: Any) -> Adapted:
    """Put a scheme on a model of ``transformers`` (causal or masked language model).

    Args:
        scheme: ``"ft"``, ``"lora"`` (options ``rank``, ``alpha``), ``"prefix"`` (``length``, ``init``:
            ``"activations"`` of random real tokens or ``"normal"``, sd 0.02), ``"prompt"`` (``length``,
            ``init``: ``"vocabulary"``, rows of random real tokens, or ``"normal"``) or ``"head"``.
        seed: of the initial values.

    Raises:
        ValueError: an unknown scheme or option, one out of range, a model that carries a scheme already, or
            one whose attention layers are not found.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    chosen = _options(scheme, options)
    if any(isinstance(module, (LoRALinear, Prefix, Prompt)) for module in model.modules()):
        raise ValueError("model: expected one without a scheme, got one that carries LoRA, prefix or prompt")
    adapted = Adapted(model, scheme, chosen)
    try:
        trained = _ATTACH[scheme](adapted, torch.Generator().manual_seed(seed))
    except BaseException:
        adapted.detach()
        raise
    wanted = {id(parameter) for parameter in trained}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    adapted.parameters = {n: p for n, p in model.named_parameters() if id(p) in wanted}
    return adapted


def _options(scheme: str, given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(DEFAULTS[scheme]))
    if unknown:
        raise ValueError(
            f"options: expected {sorted(DEFAULTS[scheme]) or 'none'} for {scheme}, got {unknown}"
        )
    chosen = {**DEFAULTS[scheme], **given}
    for name in ("rank", "length"):
        if name in chosen and (not isinstance(chosen[name], int) or chosen[name] < 1):
            raise ValueError(f"{name}: expected a whole number >= 1, got {chosen[name]!r}")
    if "alpha" in chosen and not chosen["alpha"] > 0:
        raise ValueError(f"alpha: expected a number > 0, got {chosen['alpha']!r}")
    inits = {"prefix": ("activations", "normal"), "prompt": ("vocabulary", "normal")}.get(scheme, ())
    if inits and chosen["init"] not in inits:
        raise ValueError(f"init: expected one of {', '.join(inits)}, got {chosen['init']!r}")
    return chosen


# -- the schemes -------------------------------------------------------------------------------------------


def _ft(adapted: Adapted, generator: torch.Generator) -> list[nn.Parameter]:
    return list(adapted.model.parameters())


def _lora(adapted: Adapted, generator: torch.Generator) -> list[nn.Parameter]:
    trained: list[nn.Parameter] = []
    for attention in attention_modules(adapted.model):
        for names in (QUERY, VALUE):
            name = _child(attention, names)
            base = getattr(attention, name)
            layer = LoRALinear(base, generator=generator, **adapted.options)
            setattr(attention, name, layer)
            adapted._undo.append(functools.partial(setattr, attention, name, base))
            trained += [layer.lora_A, layer.lora_B]
    return trained


def _prefix(adapted: Adapted, generator: torch.Generator) -> list[nn.Parameter]:
    model, length = adapted.model, adapted.options["length"]
    attention = attention_modules(model)
    if any("past_key_values" not in inspect.signature(a.forward).parameters for a in attention):
        raise ValueError(
            f"model: expected attention layers that take a cache, got {type(attention[0]).__name__}"
        )
    if adapted.options["init"] == "activations":
        keys, values = _activations(model, _random_tokens(model, length, generator))
    else:
        shapes = [_key_value_shape(model, a) for a in attention]
        keys, values = (
            [_normal((heads, length, size), model, generator) for heads, size in shapes] for _ in range(2)
        )
    model.prefix = Prefix(keys, values)
    adapted._undo.append(lambda: delattr(model, "prefix"))
    if is_masked(model):  # its own forward takes no cache: each attention is given one
        from tenfold.llm._prefix_cache import prefix_cache

        prefix = model.prefix
        adapted._undo += _give_cache(
            model, lambda: prefix_cache(list(prefix.keys), list(prefix.values)), length
        )
    return list(model.prefix.parameters())


def _prompt(adapted: Adapted, generator: torch.Generator) -> list[nn.Parameter]:
    model, length = adapted.model, adapted.options["length"]
    table = model.get_input_embeddings().weight
    if adapted.options["init"] == "vocabulary":
        rows = table.detach()[_random_tokens(model, length, generator).to(table.device)]
    else:
        rows = _normal((length, table.shape[1]), model, generator)
    model.prompt = Prompt(rows)
    adapted._undo.append(lambda: delattr(model, "prompt"))
    return list(model.prompt.parameters())


def _head(adapted: Adapted, generator: torch.Generator) -> list[nn.Parameter]:
    """The unembedding, with a copy of its own where it shared the table of the input embeddings."""
    layer = adapted.model.get_output_embeddings()
    shared = layer.weight
    if shared is adapted.model.get_input_embeddings().weight:
        layer.weight = nn.Parameter(shared.detach().clone())
        adapted._undo.append(lambda: setattr(layer, "weight", shared))
    return [p for p in (layer.weight, getattr(layer, "bias", None)) if isinstance(p, nn.Parameter)]


_ATTACH = {"ft": _ft, "lora": _lora, "prefix": _prefix, "prompt": _prompt, "head": _head}


# -- finding one's way in a model --------------------------------------------------------------------------


def is_masked(model: Any) -> bool:
    """Whether it predicts masked tokens (RoBERTa) rather than the next one."""
    return type(model).__name__.endswith("ForMaskedLM")


def attention_modules(model: Any) -> list[nn.Module]:
    """The module of each block that holds the query, key and value projections as ``nn.Linear``.

    Raises:
        ValueError: a block has none, or several; the message names its linear layers.
    """
    _, blocks = find_blocks(model)
    found = []
    for block in blocks:
        holders = [m for m in block.modules() if all(_child(m, names) for names in (QUERY, KEY, VALUE))]
        if len(holders) != 1:
            linear = sorted(n for n, m in block.named_modules() if isinstance(m, nn.Linear))
            raise ValueError(
                f"model: expected one attention with linear q_proj/k_proj/v_proj or query/key/value in each "
                f"block, got {linear} in {type(block).__name__}"
            )
        found.append(holders[0])
    return found


def _child(module: nn.Module, names: Sequence[str]) -> str:
    return next((n for n in names if isinstance(getattr(module, n, None), nn.Linear)), "")


def _key_value_shape(model: Any, attention: nn.Module) -> tuple[int, int]:
    """(key/value heads, head size); with grouped queries there are fewer such heads than query heads."""
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return getattr(attention, _child(attention, KEY)).out_features // size, size


def positions(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """Position of each real token, counted from the model's first one, where its forward takes positions."""
    base = model.base_model
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return {}
    embeddings = getattr(base, "embeddings", None)
    pad = getattr(embeddings, "padding_idx", None) if is_masked(model) else None
    if pad is not None and hasattr(embeddings, "create_position_ids_from_input_ids"):
        return {"position_ids": mask.cumsum(1) * mask + pad}  # RoBERTa counts from padding_idx + 1
    return {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def _normal(shape: tuple[int, ...], model: Any, generator: torch.Generator) -> Tensor:
    like = next(model.parameters())
    return (0.02 * torch.randn(shape, generator=generator)).to(like.device, like.dtype)


def _random_tokens(model: Any, count: int, generator: torch.Generator) -> Tensor:
    """Token ids drawn without the special ones that the configuration names."""
    config = model.config
    named = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id")
    special: set[int] = set()
    for value in (getattr(config, name, None) for name in named):
        special |= set(value) if isinstance(value, (list, tuple)) else {value} if value is not None else set()
    usual = [i for i in torch.randperm(config.vocab_size, generator=generator).tolist() if i not in special]
    return torch.tensor(usual[:count])


@torch.no_grad()
def _activations(model: Any, tokens: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values [heads, count, size] that real tokens leave in every layer."""
    from tenfold.llm._prefix_cache import growing_cache, recorded

    cache = growing_cache((), (), 1)
    ids = tokens[None].to(next(model.parameters()).device)
    if is_masked(model):
        handles = _give_cache(model, lambda: cache, 0)
        try:
            model.base_model(input_ids=ids)
        finally:
            for remove in handles:
                remove()
    else:
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    return recorded(cache)


def _give_cache(model: Any, make: Callable[[], Any], length: int) -> list[Callable[[], None]]:
    """From now on the attention of every block reads the cache that ``make`` gives, and masks are widened by
    ``length`` open columns; returns what takes this back.

    The hooks stay as long as the scheme, since checkpointing calls a block again in the backward pass.
    """

    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None and len(args) > 1:
            mask = args[1]
        if mask is not None and length:
            mask = F.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)
        return args[:1], kwargs | {"attention_mask": mask, "past_key_values": make()}

    undo: list[Callable[[], None]] = []
    for index, attention in enumerate(attention_modules(model)):
        if getattr(attention, "layer_idx", index) is None:
            attention.layer_idx = index  # type: ignore[assignment]
        undo.append(attention.register_forward_pre_hook(give, with_kwargs=True).remove)
    return undo


@contextmanager
def checkpointed(model: Any, on: bool = True) -> Iterator[None]:
    """Inside, every block keeps its input only and is computed again in the backward pass (arXiv 1604.06174).

    Works in evaluation mode and with every scheme; ``gradient_checkpointing_enable`` of transformers does
    not: it needs training mode and drops the cache that a prefix lives in.
    """
    from torch.utils.checkpoint import checkpoint

    blocks = find_blocks(model)[1] if on else ()
    try:
        for block in blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


# -- files -------------------------------------------------------------------------------------------------


def save_adapter(adapted: Adapted, path: str | Path) -> Path:
    """The trained tensors as safetensors under their names in the model, scheme and options beside them."""
    from safetensors.torch import save_file

    from tenfold.runs.files import replacing

    tensors = {name: p.detach().contiguous().cpu() for name, p in adapted.parameters.items()}
    metadata = {"format": "tenfold.adapter/1", "scheme": adapted.scheme}
    with replacing(Path(path)) as aside:
        save_file(tensors, aside, metadata=metadata | {"options": json.dumps(adapted.options)})
    return Path(path)


def load_adapter(model: Any, path: str | Path) -> Adapted:
    """Put the scheme of a file of :func:`save_adapter` on a model, with the file's tensors.

    Raises:
        ValueError: no such file of ours, or names or shapes that differ from the model's; nothing is changed.
    """
    try:
        tensors, metadata = read_safetensors(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"path: expected an adapter in safetensors, got {path} ({error})") from error
    if metadata.get("format") != "tenfold.adapter/1":
        raise ValueError(f"path: expected a file of save_adapter, got metadata {metadata} in {path}")
    with reading(path, "a file of save_adapter"):
        options = json.loads(metadata["options"])
        adapted = attach(model, metadata["scheme"], **_without_forward(metadata["scheme"], options))
        adapted.options = options
        try:
            _check_tensors(adapted, tensors)
        except ValueError:
            adapted.detach()
            raise
    with torch.no_grad():
        for name, parameter in adapted.parameters.items():
            parameter.copy_(tensors[name])
    return adapted


def _without_forward(scheme: str, options: dict[str, Any]) -> dict[str, Any]:
    """The values come from the file: a prefix need not be computed first."""
    return options | ({"init": "normal"} if scheme in ("prefix", "prompt") else {})


def _check_tensors(adapted: Adapted, tensors: dict[str, Tensor]) -> None:
    if set(tensors) != set(adapted.parameters):
        differing = sorted(set(tensors) ^ set(adapted.parameters))
        raise ValueError(
            f"path: expected the tensors of {adapted.scheme} on this model, got only on one side "
            f"{differing[:4]}"
        )
    for name, parameter in adapted.parameters.items():
        if tensors[name].shape != parameter.shape:
            raise ValueError(
                f"path: expected {name} of shape {tuple(parameter.shape)}, got {tuple(tensors[name].shape)}"
            )
