"""What a canvas is drawn with: styles x objects, their prompts, and how the pictures are made.

UnlearnCanvas (Zhang et al., arXiv 2402.11846) asks an edited model for every style with every object and lets
two judges, of styles and of objects, say what it drew. A cell is one (style, object); photographs,
`Seed_Images`, are a style too. The order of the names is that of the judges' classes.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from tenfold import _checks

__all__ = ["OBJECTS", "PHOTO", "STYLES60", "UNLEARNCANVAS", "Canvas", "plain_name"]

PHOTO = "Seed_Images"
"""The published name of the style that is no style: the photographs that the others were painted from."""


@dataclass(frozen=True)
class Canvas:
    """A grid of styles x objects and the protocol of its pictures.

    styles: names, the photographs' among them. objects: names. Both in the order of the judges' classes.
    photo: the style of the photographs, one of `styles`.
    template: the prompt, with {style} and {object}. photo_word: what stands for {style} in the photographs.
    steps, guidance, sampler: of `tenfold.diffusion.generate`. resolution: pixels of a side.
    seeds: one picture of every cell is made for each.

    Raises:
        ValueError: no names, names that are alike but for case and spaces, a template without its fields.
    """

    name: str
    styles: tuple[str, ...]
    objects: tuple[str, ...]
    photo: str = PHOTO
    template: str = "A {object} image in {style} style."
    photo_word: str = "Photo"
    steps: int = 100
    guidance: float = 9.0
    resolution: int = 512
    seeds: tuple[int, ...] = (188, 288, 588, 688, 888)
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        for what in ("styles", "objects", "seeds"):
            object.__setattr__(self, what, tuple(getattr(self, what)))
            if not getattr(self, what):
                _checks.fail(ValueError, what, "at least one", "none")
        seen: dict[str, str] = {}
        for name in (*self.styles, *self.objects):
            _check_name(name)
            if plain_name(name) in seen:
                _checks.fail(ValueError, "names", "each once", f"{seen[plain_name(name)]!r} and {name!r}")
            seen[plain_name(name)] = name
        _checks.choice("photo", self.photo, self.styles)
        missing = [part for part in ("{style}", "{object}") if part not in self.template]
        if missing:
            _checks.fail(ValueError, "template", f"a text with {' and '.join(missing)}", repr(self.template))
        _checks.integer("steps", self.steps, 1, 1000)
        _checks.real("guidance", self.guidance, at_least=0.0)
        _checks.integer("resolution", self.resolution, 1, 2**16)
        for seed in self.seeds:
            _checks.integer("seeds", seed, 0, 2**32 - 1)
        if len(set(self.seeds)) != len(self.seeds):
            _checks.fail(ValueError, "seeds", "each once", list(self.seeds))

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """All (style, object), styles first."""
        return tuple((style, one) for style in self.styles for one in self.objects)

    @property
    def targets(self) -> tuple[tuple[str, str], ...]:
        """What the benchmark erases: ("style", name) for all but the photographs, then ("object", name)."""
        styles = [("style", name) for name in self.styles if name != self.photo]
        return (*styles, *(("object", name) for name in self.objects))

    def words(self, name: str) -> str:
        """A name as it stands in a text: "Van Gogh"; the photographs are `photo_word`."""
        return self.photo_word if name == self.photo else name.replace("_", " ")

    def prompt(self, style: str, object: str, *, compat: str = "exact", method: str = "") -> str:
        """The text of a cell.

        Args:
            compat: "exact": the text that the model was trained on. "reference": what the published samplers
                write: "Seed Images" for the photographs, which no caption has; and with method="FMN" names
                keep their underscores and the text has no full stop.

        Raises:
            ValueError: an unknown name (the closest are named), or `compat`.
        """
        _checks.choice("compat", compat, ("exact", "reference"))
        style, object = self.style(style), self.object(object)
        if compat == "exact":
            return self.template.format(style=self.words(style), object=self.words(object))
        if method.upper() == "FMN":
            return self.template.format(style=style, object=object).removesuffix(".")
        said = style.replace("_", " ")
        return self.template.format(style=said, object=object.replace("_", " "))

    def find(self, name: str) -> tuple[str, str]:
        """("style" | "object", the name as it is spelled here); case, spaces, `_` and `-` do not matter.

        Raises:
            TypeError: no text. ValueError: an unknown name; the closest ones are named.
        """
        if not isinstance(name, str):
            _checks.fail(TypeError, "name", "a style or an object", _checks.describe(name))
        for domain, names in (("style", self.styles), ("object", self.objects)):
            for one in names:
                if plain_name(one) == plain_name(name):
                    return domain, one
        _unknown("name", name, (*self.styles, *self.objects), f"a style or an object of {self.name}")

    def style(self, name: str) -> str:
        """The style as it is spelled here. Raises: as `find`."""
        return _one_of("style", name, self.styles, self.name)

    def object(self, name: str) -> str:
        """The object as it is spelled here. Raises: as `find`."""
        return _one_of("object", name, self.objects, self.name)

    def names(self, domain: str) -> tuple[str, ...]:
        """`styles` or `objects`."""
        return (
            self.styles if _checks.choice("domain", domain, ("style", "object")) == "style" else self.objects
        )

    def to_plain(self) -> dict[str, Any]:
        """As JSON data; `Canvas(**data)` is the canvas again."""
        from dataclasses import asdict

        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def plain_name(name: str) -> str:
    """For comparing names: small letters, one space for `_`, `-` and any white space."""
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def _check_name(name: Any) -> None:
    """Names become parts of file names."""
    good = isinstance(name, str) and name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    if not good:
        _checks.fail(ValueError, "names", "letters, digits, '_' and '-'", _checks.describe(name))


def _one_of(what: str, name: Any, names: tuple[str, ...], canvas: str) -> str:
    if not isinstance(name, str):
        _checks.fail(TypeError, what, "a name", _checks.describe(name))
    for one in names:
        if plain_name(one) == plain_name(name):
            return one
    _unknown(what, name, names, f"one of the {what}s of {canvas}")


def _unknown(what: str, name: str, names: tuple[str, ...], expected: str) -> Any:
    by_plain = {plain_name(one): one for one in names}
    near = difflib.get_close_matches(plain_name(name), by_plain, n=3, cutoff=0.4) or list(by_plain)[:3]
    closest = ", ".join(by_plain[one] for one in near)
    _checks.fail(ValueError, what, f"{expected} (closest: {closest})", repr(name))


OBJECTS = (
    *("Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs"),
    *("Horses", "Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees"),
    "Waterfalls",
)
_BENCHMARK_STYLES = (
    *("Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine", "Cartoon", "Cold_Warm"),
    *("Color_Fantasy", "Comic_Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early_Autumn"),
    *("Expressionism", "Fauvism", "French", "Glowing_Sunset", "Gorgeous_Love", "Greenfield", "Impressionism"),
    *("Ink_Art", "Joy", "Liquid_Dreams", "Magic_Cube", "Meta_Physics", "Meteor_Shower", "Monet", "Mosaic"),
    *("Neon_Lines", "On_Fire", "Pastel", "Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust"),
    *(PHOTO, "Sketch", "Sponge_Dabbed", "Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van_Gogh"),
    *("Vibrant_Flow", "Warm_Love", "Warm_Smear", "Watercolor", "Winter"),
)
_OTHER_STYLES = (
    *("Blue_Blooming", "Crypto_Punks", "Dreamweave", "Foliage_Patchwork", "Impasto", "Palette_Knife"),
    *("Pointillism", "Rainwash", "Realistic_Watercolor", "Techno"),
)


def _all_styles() -> tuple[str, ...]:
    """The 60 painted styles of the data set, by alphabet but for Palette_Knife, before Magic_Cube."""
    names = sorted({*_BENCHMARK_STYLES, *_OTHER_STYLES} - {PHOTO, "Palette_Knife"})
    names.insert(names.index("Magic_Cube"), "Palette_Knife")
    return tuple(names)


STYLES60 = _all_styles()
"""The 60 styles of the data set (style transfer uses them all), without the photographs."""

UNLEARNCANVAS = Canvas("unlearncanvas", _BENCHMARK_STYLES, OBJECTS)
"""The published benchmark: 50 styles and the photographs x 20 objects, five seeds: 5,100 pictures a model."""
