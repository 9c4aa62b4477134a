"""Text to the states that a UNet reads: tokens, word embeddings put in by hand, and splicing of extra tokens.

CLIP's text model takes ids only. What an attack or a defence needs is a forward pass from word embeddings of
its own: `inject` puts them in by a hook on the embedding table, and gradients flow through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.diffusion.condition import Condition
from tenfold.diffusion.splice import MODES, end_positions, splice, splice_ids, splice_plan

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = [
    "MODES",
    "Condition",
    "Tokens",
    "check_shared_words",
    "condition",
    "condition_embeds",
    "condition_ids",
    "count_tokens",
    "embed_ids",
    "encode",
    "encode_embeds",
    "encode_ids",
    "end_positions",
    "flat",
    "inject",
    "no_text",
    "splice",
    "splice_ids",
    "splice_plan",
    "tokenize",
    "vocabulary_size",
    "word_table",
]


class Tokens(NamedTuple):
    """ids: int64 [B, L], first token, prompt, end token, padding. lengths: int64 [B], tokens of the prompt
    itself, without the first and the end token."""

    ids: Tensor
    lengths: Tensor


def flat(text_encoder: Any) -> Any:
    """The module that holds `embeddings`, `encoder` and `final_layer_norm`.

    transformers 5.6 and later have them in `CLIPTextModel` itself, older versions and `...WithProjection` in
    its `text_model`.
    """
    return getattr(text_encoder, "text_model", text_encoder)


def vocabulary_size(bundle: Bundle) -> int:
    """Rows of the text encoder's table of word embeddings."""
    return int(_table(bundle.text_encoder).shape[0])


def word_table(bundle: Bundle) -> Tensor:
    """The table of word embeddings W [V, D] of the text encoder (the parameter itself).

    Of SDXL both encoders' tables side by side, [V, D1 + D2]: a token is one row of each. That is a copy
    (405 MB for SDXL in float32), made once for as long as the tables stay as they are.

    Raises:
        ValueError: SDXL whose tables are not of one length.
    """
    first = _table(bundle.text_encoder)
    if not bundle.is_sdxl:
        return first
    _check_lengths(bundle)
    second = _table(bundle.text_encoder_2)
    owner = bundle.text_encoder.get_input_embeddings()
    with _lock:
        kept = _side_by_side.get(owner)
        if kept is None or not (kept.first.is_of(first) and kept.second.is_of(second)):
            both = torch.cat([first, second], dim=1).detach()
            kept = _side_by_side[owner] = _SideBySide(_Seen.now(first), _Seen.now(second), both)
        return kept.table


class _Seen(NamedTuple):
    """A table as it was. An address alone says nothing: a freed table's is given to the next one."""

    table: ref[Tensor]
    state: tuple[Any, ...]

    @classmethod
    def now(cls, table: Tensor) -> _Seen:
        return cls(ref(table), cls._state(table))

    def is_of(self, table: Tensor) -> bool:
        return self.table() is table and self.state == self._state(table)

    @staticmethod
    def _state(table: Tensor) -> tuple[Any, ...]:
        return table._version, table.data_ptr(), table.dtype, table.device


class _SideBySide(NamedTuple):
    first: _Seen
    second: _Seen
    table: Tensor


def _table(text_encoder: Any) -> Tensor:
    table: Tensor = text_encoder.get_input_embeddings().weight
    return table


def check_shared_words(bundle: Bundle) -> None:
    """Refuse two text encoders that do not read the same ids: one row of tokens is to be read by both.

    Raises:
        ValueError: the vocabularies of the tokenizers or the lengths of the tables differ.
    """
    if not bundle.is_sdxl:
        return
    _check_words(bundle)
    _check_lengths(bundle)


def _check_words(bundle: Bundle) -> None:
    """Refuse tokenizers whose vocabularies differ. Looked at once for a pair while their sizes stay:
    every encoding asks."""
    one, two = bundle.tokenizer, bundle.tokenizer_2
    sizes = len(one), len(two)
    with _lock:
        kept = _alike.get(one)
    if kept is not None and kept[0]() is two and kept[1] == sizes:
        return
    words, others = one.get_vocab(), two.get_vocab()
    if words != others:
        differing = words.items() ^ others.items()
        word, number = min(differing)
        expected = "the vocabulary of tokenizer"
        got = f"another ({len(differing)} entries differ, {word!r}: {number} among them)"
        _checks.fail(ValueError, "tokenizer_2", expected, got)
    with _lock:
        _alike[one] = ref(two), sizes


def _check_lengths(bundle: Bundle) -> None:
    sizes = vocabulary_size(bundle), int(_table(bundle.text_encoder_2).shape[0])
    if sizes[0] != sizes[1]:
        _checks.fail(ValueError, "text_encoder_2", f"a table of {sizes[0]} words, as text_encoder", sizes[1])


def count_tokens(bundle: Bundle, prompts: Sequence[str]) -> list[int]:
    """How many tokens each prompt has, uncut, without the first and the end token."""
    prompts = _strings("prompts", prompts)
    if not prompts:
        return []
    rows = bundle.tokenizer(prompts, padding=False, truncation=False, add_special_tokens=False, verbose=False)
    return [len(row) for row in rows["input_ids"]]


def tokenize(
    bundle: Bundle,
    prompts: Sequence[str],
    *,
    room: int = 0,
    overflow: str = "error",
    compat: str = "fixed",
) -> Tokens:
    """Prompts as ids on the bundle's device, padded to its context.

    Args:
        room: tokens that are to be spliced in later and must fit as well.
        overflow: "error", or "truncate": the tail of a prompt that is too long is cut (`count_tokens` tells
            which are).
        compat: "reference": `lengths` counts words between blanks, as AdvUnlearn's published code does; with
            `splice(..., compat="reference")` it then loses the second piece of a word of two tokens.

    Raises:
        ValueError: a prompt has more than context - 2 - room tokens.
    """
    prompts = _strings("prompts", prompts)
    _checks.choice("overflow", overflow, ("error", "truncate"))
    _checks.choice("compat", compat, ("fixed", "reference"))
    most = bundle.context - 2 - _checks.integer("room", room, 0, bundle.context - 2)
    tokenizer = bundle.tokenizer
    rows = _content(tokenizer, prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > most and overflow == "error":
            spare = f" beside {room} spliced ones" if room else ""
            _checks.fail(
                ValueError, "prompts", f"at most {most} tokens{spare}", f"{len(row)} in {prompt[:60]!r}"
            )
    rows = [row[:most] for row in rows]
    ids = torch.full((len(rows), bundle.context), int(tokenizer.pad_token_id), dtype=torch.int64)
    for i, row in enumerate(rows):
        whole = [tokenizer.bos_token_id, *row, tokenizer.eos_token_id]
        ids[i, : len(whole)] = torch.tensor(whole)
    counts = [len(p.split()) for p in prompts] if compat == "reference" else [len(row) for row in rows]
    return Tokens(ids.to(bundle.device), torch.tensor(counts, dtype=torch.int64, device=bundle.device))


def _content(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    """The ids of each prompt up to the first end token, without the specials."""
    if not prompts:
        return []
    rows = tokenizer(prompts, padding=False, truncation=False, add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    end = tokenizer.eos_token_id
    return [list(row[: row.index(end)] if end in row else row) for row in rows]


def _strings(name: str, prompts: Any) -> list[str]:
    found = [prompts] if isinstance(prompts, str) else list(_checks.sequence(name, prompts, "strings"))
    for prompt in found:
        if not isinstance(prompt, str):
            _checks.fail(TypeError, name, "strings", _checks.describe(prompt))
        # Bytes of a command line that are no text come as surrogates.
        if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            _checks.fail(ValueError, name, "text", _checks.describe(prompt))
    return found


_lock = threading.Lock()
_busy: dict[int, int] = {}  # id of an embedding table -> the thread whose `inject` holds it
_side_by_side: WeakKeyDictionary[nn.Module, _SideBySide] = WeakKeyDictionary()  # `word_table` of SDXL
# tokenizer -> the second one of the same vocabulary, and the sizes of both when they were compared
_alike: WeakKeyDictionary[Any, tuple[ref[Any], tuple[int, int]]] = WeakKeyDictionary()


@contextmanager
def inject(text_encoder: nn.Module) -> Iterator[Callable[[Tensor | None], None]]:
    """Let a text encoder read given word embeddings instead of its table's.

        with inject(text_encoder) as put:
            put(embeds)                            # [B, L, D]; put(None) is the table again
            out = text_encoder(input_ids=ids)      # ids [B, L] still give the shape and the mask

    Equal to the plain forward, bit for bit, when `embeds` are the table's own rows. The hook is gone after
    the block, after an exception too.

    Raises:
        RuntimeError: a block on the same encoder is open already, or another thread calls the encoder
            meanwhile; `embeds` have another shape than the table would have given.
    """
    table = text_encoder.get_input_embeddings()  # type: ignore[operator]
    thread = threading.get_ident()
    with _lock:
        if id(table) in _busy:
            raise RuntimeError(
                "inject: expected a text encoder that no other block injects into, got one that does"
            )
        _busy[id(table)] = thread
    given: list[Tensor | None] = [None]

    def put(embeds: Tensor | None) -> None:
        given[0] = embeds

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != thread:
            raise RuntimeError("inject: expected calls from the thread that injects, got one from another")
        embeds = given[0]
        if embeds is not None and embeds.shape != output.shape:
            got = f"{tuple(embeds.shape)} for ids that need {tuple(output.shape)}"
            raise RuntimeError(f"embeds: expected one word embedding for each id, got {got}")
        return embeds

    handle = table.register_forward_hook(hook)
    try:
        yield put
    finally:
        handle.remove()
        with _lock:
            _busy.pop(id(table), None)


def encode_ids(bundle: Bundle, ids: Tensor, *, pooled: bool = False, end: Tensor | None = None) -> Any:
    """Text states of ids [B, L]: [B, L, D], or with `pooled` also the pooled text [B, P].

    Args:
        end: int64 [B], positions of the end tokens: the pooled text is that of them, and SDXL's second
            tokenizer pads behind them; the first of each row if None.
    """
    found = _encoded(bundle, ids, None, pooled, end)
    return (found.states, found.pooled) if pooled else found.states


def encode_embeds(
    bundle: Bundle, ids: Tensor, embeds: Tensor, *, pooled: bool = False, end: Tensor | None = None
) -> Any:
    """Text states from word embeddings [B, L, D] (`embed_ids`, `splice`); gradients flow to them.

    Of SDXL embeddings are both encoders' side by side, [B, L, D1 + D2] (`word_table`). Behind the end token
    its second encoder reads its own padding, whatever stands there.

    Args:
        ids: [B, L], the ids the embeddings stand for (`splice_ids`): where the end token is.
        end: int64 [B], positions of the end tokens (`end_positions`); the first of each row of ids if None.

    Raises:
        RuntimeError: shapes do not fit.
    """
    found = _encoded(bundle, ids, embeds, pooled, end)
    return (found.states, found.pooled) if pooled else found.states


def condition_ids(bundle: Bundle, ids: Tensor, *, end: Tensor | None = None) -> Condition:
    """What the UNet reads of ids [B, L]; see `encode_ids`."""
    return _encoded(bundle, ids, None, bundle.is_sdxl, end)


def condition_embeds(bundle: Bundle, ids: Tensor, embeds: Tensor, *, end: Tensor | None = None) -> Condition:
    """What the UNet reads of word embeddings [B, L, D]; see `encode_embeds`."""
    return _encoded(bundle, ids, embeds, bundle.is_sdxl, end)


def condition(bundle: Bundle, prompts: Sequence[str], *, overflow: str = "error") -> Condition:
    """What the UNet reads of prompts."""
    return condition_ids(bundle, tokenize(bundle, prompts, overflow=overflow).ids)


def no_text(bundle: Bundle) -> Condition:
    """What the UNet reads for no text, one row: the empty prompt, or zeros where SDXL's pipeline has them
    (`Bundle.force_zeros_for_empty_prompt`)."""
    empty = condition(bundle, [""])
    return empty.zeros() if bundle.has_zeros_for_no_text else empty


def encode(bundle: Bundle, prompts: Sequence[str], *, pooled: bool = False, overflow: str = "error") -> Any:
    """Text states [B, L, D] of prompts; with `pooled` also the pooled text [B, P]."""
    return encode_ids(bundle, tokenize(bundle, prompts, overflow=overflow).ids, pooled=pooled)


def embed_ids(bundle: Bundle, ids: Tensor) -> Tensor:
    """Word embeddings [..., D] of ids: rows of the table, looked up (not a product with one-hot rows); of
    SDXL the rows of both tables, one behind the other."""
    encoders = [bundle.text_encoder, bundle.text_encoder_2] if bundle.is_sdxl else [bundle.text_encoder]
    rows = [nn.functional.embedding(ids, _table(encoder)) for encoder in encoders]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)


def _encoded(
    bundle: Bundle, ids: Tensor, embeds: Tensor | None, pooled: bool, end: Tensor | None
) -> Condition:
    _rows_of_ids(bundle, ids)
    if not bundle.is_sdxl:
        states = _forward(bundle, bundle.text_encoder, ids, embeds).last_hidden_state
        of_end = _pooled(bundle.text_encoder, bundle.tokenizer, states, ids, end) if pooled else None
        return Condition(states, of_end)
    _check_words(bundle)
    one, two = (None, None) if embeds is None else _parts(bundle, ids, embeds, end)
    first = _forward(bundle, bundle.text_encoder, ids, one)
    other = _second_ids(bundle, ids, end)
    second = _forward(bundle, bundle.text_encoder_2, other, two)
    states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    if not pooled:
        return Condition(states)
    last = second.last_hidden_state
    return Condition(states, _pooled(bundle.text_encoder_2, bundle.tokenizer_2, last, other, end))


def _parts(bundle: Bundle, ids: Tensor, embeds: Tensor, end: Tensor | None) -> list[Tensor]:
    """Each encoder's embeddings; the second's are its padding behind the end."""
    widths = [_table(encoder).shape[1] for encoder in (bundle.text_encoder, bundle.text_encoder_2)]
    if embeds.shape != (*ids.shape, sum(widths)):
        got = f"{tuple(embeds.shape)} for ids {tuple(ids.shape)} and widths {widths[0]} + {widths[1]}"
        raise RuntimeError(f"embeds: expected the word embeddings of both encoders for each id, got {got}")
    one, two = embeds.split(widths, dim=-1)
    padding = _table(bundle.text_encoder_2)[int(bundle.tokenizer_2.pad_token_id)]
    return [one, torch.where(_behind(bundle, ids, end)[:, :, None], padding.to(two), two)]


def _forward(bundle: Bundle, text_encoder: Any, ids: Tensor, embeds: Tensor | None) -> Any:
    arguments: dict[str, Any] = {"output_hidden_states": bundle.is_sdxl}
    if getattr(text_encoder.config, "use_attention_mask", False):
        arguments["attention_mask"] = (ids != bundle.tokenizer.pad_token_id).long()
    if embeds is None:
        return text_encoder(input_ids=ids, **arguments)
    with inject(text_encoder) as put:
        put(embeds)
        return text_encoder(input_ids=ids, **arguments)


def _pooled(text_encoder: Any, tokenizer: Any, states: Tensor, ids: Tensor, end: Tensor | None) -> Tensor:
    """The state of the end token, projected where the encoder has a projection.

    Not the encoder's own `pooler_output`: with old configurations that is the state of the largest id.
    """
    if end is None:
        is_end = ids == tokenizer.eos_token_id
        if not bool(is_end.any(1).all()):
            _checks.fail(ValueError, "ids", "an end token in every row", "a row without")
        end = is_end.int().argmax(1)
    taken = states[torch.arange(states.shape[0], device=states.device), end.to(states.device)]
    projection = getattr(text_encoder, "text_projection", None)
    return taken if projection is None else projection(taken)


def _second_ids(bundle: Bundle, ids: Tensor, end: Tensor | None) -> Tensor:
    """SDXL's second tokenizer has the same vocabulary and pads with another token."""
    padding = torch.full_like(ids, int(bundle.tokenizer_2.pad_token_id))
    return torch.where(_behind(bundle, ids, end), padding, ids)


def _behind(bundle: Bundle, ids: Tensor, end: Tensor | None) -> Tensor:
    """bool [B, L]: what stands behind the end token, the first of each row if `end` is None."""
    if end is not None:
        return torch.arange(ids.shape[1], device=ids.device) > end.to(ids.device)[:, None]
    is_end = (ids == bundle.tokenizer.eos_token_id).int()
    return is_end.cumsum(1) - is_end > 0


def _rows_of_ids(bundle: Bundle, ids: Any) -> None:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 2:
        got = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else _checks.describe(ids)
        _checks.fail(TypeError, "ids", "int64 [B, L]", got)
    if ids.shape[1] > bundle.context:
        _checks.fail(ValueError, "ids", f"at most {bundle.context} columns", ids.shape[1])
