"""What is to be erased, and what is to stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import tokenize, vocabulary_size
from tenfold.diffusion.erase.data import ConceptData

__all__ = ["ONE_ENCODER", "Concept", "check_fit", "check_words", "joined", "words_of"]

ONE_ENCODER = "a model with one text encoder (esd, advunlearn, uce, negative and sld take two)"
"""What the other trainings expect."""


@dataclass(frozen=True)
class Concept:
    """name: how reports call it. prompts: texts that mean it ("nudity"; several for a concept with several
    names). anchors: for `UCE`, what each prompt is to mean instead, one for all or one each; None is the
    empty text. retain: prompts whose pictures are to stay as they are. data: pictures for erasers that
    learn from them; None, such an eraser lets the model draw them from the prompts above (`pictures`).
    """

    name: str
    prompts: tuple[str, ...] = ()
    anchors: tuple[str, ...] | None = None
    retain: tuple[str, ...] = ()
    data: ConceptData | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            _checks.fail(ValueError, "name", "the concept's name", repr(self.name))
        object.__setattr__(self, "prompts", _texts("prompts", self.prompts) or (self.name,))
        object.__setattr__(self, "retain", _texts("retain", self.retain))
        for prompt in self.prompts:
            if not prompt.strip():
                _checks.fail(ValueError, "prompts", "texts that mean the concept", repr(prompt))
        if self.anchors is not None:
            anchors = _texts("anchors", self.anchors)
            if len(anchors) not in (1, len(self.prompts)):
                _checks.fail(ValueError, "anchors", f"1 or {len(self.prompts)} texts", len(anchors))
            object.__setattr__(self, "anchors", anchors)
        if self.data is not None and not isinstance(self.data, ConceptData):
            _checks.fail(TypeError, "data", "a ConceptData", _checks.describe(self.data))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each prompt with its anchor."""
        anchors = self.anchors or ("",)
        return list(zip(self.prompts, anchors * (len(self.prompts) // len(anchors)), strict=True))

    def pictures(self, count: int, **options: Any) -> ConceptData:
        """The data, or else `count` pictures to draw of the concept and of what stays, prompt after prompt.

        Args:
            options: of `ConceptData` (steps, guidance, sampler).
        """
        if self.data is not None:
            return self.data
        pairs = [self.pairs[i % len(self.prompts)] for i in range(count)]
        retain = tuple(self.retain[i % len(self.retain)] for i in range(count)) if self.retain else ()
        return ConceptData(tuple(p for p, _ in pairs), tuple(a for _, a in pairs), retain, **options)

    def about(self) -> dict[str, Any]:
        """The concept as plain data, for JSON."""
        found: dict[str, Any] = {
            "name": self.name,
            "prompts": list(self.prompts),
            "anchors": None if self.anchors is None else list(self.anchors),
            "retain": list(self.retain),
        }
        return found if self.data is None else {**found, "data": self.data.about()}


def joined(*concepts: Concept) -> Concept:
    """Several concepts as one, for an eraser to take out together.

    A prompt becomes what the first concept with it says, and where that is a prompt of another concept, what
    that one says of it. What any of them erases is not retained. Pictures are left out: erasers that learn
    from them draw new ones.

    Raises:
        ValueError: no concept; prompts that become each other in a circle.
    """
    if not concepts:
        _checks.fail(ValueError, "concepts", "one or more", "none")
    becomes: dict[str, str] = {}
    for concept in concepts:
        for prompt, anchor in concept.pairs:
            becomes.setdefault(prompt, anchor)
    anchors = []
    for prompt in becomes:
        seen, at = {prompt}, becomes[prompt]
        while at in becomes:
            if at in seen:
                _checks.fail(ValueError, "anchors", "texts that are not erased themselves", repr(at))
            seen.add(at)
            at = becomes[at]
        anchors.append(at)
    kept = dict.fromkeys(text for concept in concepts for text in concept.retain if text not in becomes)
    name = ", ".join(concept.name for concept in concepts)
    return Concept(name, tuple(becomes), tuple(anchors), tuple(kept))


def words_of(concept: Concept) -> tuple[str, ...]:
    """The words that mean a concept, with blanks for underscores: its name where a prompt has it, as
    "Van_Gogh" in "A Dogs image in Van Gogh style.", or the parts of the name between commas; else its
    prompts."""
    parts = [" ".join(part.split()) for part in concept.name.replace("_", " ").split(",")]
    said = [prompt.replace("_", " ").lower() for prompt in concept.prompts]
    if all(part and any(part.lower() in text for text in said) for part in parts):
        return tuple(parts)
    return concept.prompts


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = tuple(_checks.sequence(name, value, "texts"))
    for text in texts:
        if not isinstance(text, str):
            _checks.fail(TypeError, name, "texts", _checks.describe(text))
    return texts


def check_fit(bundle: Bundle, concept: Concept, seed: int) -> None:
    """Refuse what no eraser can start from.

    Raises:
        TypeError: no Bundle, no Concept. ValueError: a seed outside [0, 2^32).
    """
    if not isinstance(bundle, Bundle):
        expected = "a Bundle (load_bundle, Bundle.from_pipeline)"
        _checks.fail(TypeError, "bundle", expected, type(bundle).__name__)
    if not isinstance(concept, Concept):
        _checks.fail(TypeError, "concept", "a Concept", _checks.describe(concept))
    _checks.integer("seed", seed, 0, 2**32 - 1)


def check_words(bundle: Bundle, prompts: tuple[str, ...], room: int = 0) -> None:
    """Refuse prompts that do not fit the context beside `room` more tokens, and a tokenizer that is not
    the text encoder's.

    Raises:
        ValueError: either; the message names the prompt or the ids.
    """
    ids = tokenize(bundle, list(prompts), room=room).ids
    size = vocabulary_size(bundle)
    if ids.numel() and int(ids.max()) >= size:
        _checks.fail(ValueError, "tokenizer", f"ids below {size}, the text encoder's table", int(ids.max()))
    expected, got = getattr(bundle.text_encoder.config, "eos_token_id", None), bundle.tokenizer.eos_token_id
    # Old CLIP configurations say 2 whatever the vocabulary; that is no statement about the tokenizer.
    if expected not in (None, 2) and expected != got:
        _checks.fail(ValueError, "tokenizer", f"the end token {expected} of the text encoder", got)
