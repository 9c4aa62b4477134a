"""What an eraser gives back: the changed weights of one component, or how pictures are to be made.

edit = AdvUnlearn().fit(bundle, concept)
edit.save("nudity_unlearned")
Edit.load("nudity_unlearned").apply(pipe)                                  # a pipeline of diffusers, in place
pipe.text_encoder = CLIPTextModel.from_pretrained("nudity_unlearned")      # or without this library

Of SDXL's text encoders both may be in an edit; its folder then has `text_encoder` and `text_encoder_2`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import weakref
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold._reading import reading
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.erase.closed import closed_value, composed, inverted
from tenfold.diffusion.erase.lowrank import layers_of, merged_weights, write_lowrank
from tenfold.diffusion.erase.transport import METRICS, Transport
from tenfold.diffusion.keys import load_component_state, load_strict
from tenfold.runs.files import read_json

__all__ = ["ABOUT", "Edit", "digest"]

ABOUT = "edit.json"
"""What was done, beside the weights."""
_ADV_ABOUT = "adv_unlearn.json"
_KINDS = ("weights", "closed_form", "lowrank", "hook")
_ENCODERS = ("text_encoder", "text_encoder_2")
_BOTH = "text_encoders"
_PARTS = ("unet", *_ENCODERS, _BOTH, "sampling")
_OPTIONS = {"negative", "safe", "soft_weight"}
_CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
_SCHEMA = "tenfold.edit/1"
_FILE = "edit.safetensors"


@dataclass(eq=False)
class Edit:
    """kind: "weights" replaces tensors of a component; "closed_form" adds (W D^T) R to each matrix W named in
    `details["layers"]`; "lowrank" adds U D to each (`lowrank`), in the weights where `details["transport"]`
    is "merge", else beside them when pictures are made; "hook" has no weights and acts when pictures are made
    (`options`).
    component: "unet", "text_encoder", "text_encoder_2", or "text_encoders" for SDXL's both, whose tensors
    have the encoder's name in front ("sampling" for hooks).
    tensors: name -> new value, R and D, or lora_unet_... .
    details: hyper-parameters, seed, versions, digest of the base: plain data.
    """

    kind: str
    component: str
    tensors: dict[str, Tensor]
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checks.choice("kind", self.kind, _KINDS)
        _checks.choice("component", self.component, _PARTS)
        self.details = json.loads(json.dumps(self.details, allow_nan=False))  # as `load` will have it
        for name, value in self.tensors.items():
            if not bool(value.isfinite().all()):
                _checks.fail(ValueError, name, "finite values", "NaN or infinity")
        if self.kind == "closed_form":
            _check_closed(self.tensors, self.details.get("layers"))
        if self.kind == "lowrank":
            _checks.choice("transport", self.details.get("transport"), (*METRICS, "merge"))
        self._before: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `tenfold.diffusion.generate` (and of an attack's `Target`) that belong to the edit;
        none unless it acts when pictures are made."""
        if not self._acts_later:
            return {}
        from tenfold.diffusion.sld import SafeGuidance

        if self.kind == "lowrank":
            erased = tuple(self.details.get("erased", ()))
            return {"hooks": (Transport(self.tensors, erased, self.details["transport"]),)}
        found = dict(self.details["options"])
        if not found.keys() <= _OPTIONS:
            _checks.fail(ValueError, "options", " and ".join(sorted(_OPTIONS)), sorted(found))
        if isinstance(found.get("safe"), dict):
            found["safe"] = SafeGuidance(**found["safe"])
        if "soft_weight" in found:
            from tenfold.diffusion.erase.soft_weight import SoftWeight

            found["hooks"] = (SoftWeight.from_json(found.pop("soft_weight")),)
        return found

    @property
    def _acts_later(self) -> bool:
        """Whether the weights stay and pictures are made with `options`."""
        return self.kind == "hook" or (self.kind == "lowrank" and self.details["transport"] != "merge")

    def merged(self) -> Edit:
        """A low-rank edit that changes the weights themselves, for every prompt alike: for a pipeline.

        Raises:
            ValueError: an edit of another kind.
        """
        if self.kind != "lowrank":
            _checks.fail(ValueError, "kind", "a lowrank edit", self.kind)
        return Edit(self.kind, self.component, self.tensors, {**self.details, "transport": "merge"})

    def compose(self, *later: Edit) -> Edit:
        """One edit that does what this and later ones do one after the other; all of closed form, on the same
        layers. Edits of other kinds are applied one by one.

        Raises:
            ValueError: another kind, or other layers.
        """
        edits = (self, *later)
        for edit in edits:
            if edit.kind != "closed_form" or set(edit.details["layers"]) != set(self.details["layers"]):
                _checks.fail(ValueError, "edits", "closed forms on the same layers", edit.kind)
        right, left = composed([(e.tensors["R"], e.tensors["D"]) for e in edits])
        details = {
            "eraser": "composed", "parts": [e.details for e in edits], "layers": self.details["layers"],
        }  # fmt: skip
        return Edit(self.kind, self.component, {"R": right, "D": left}, details)

    def inverse(self) -> Edit:
        """The edit that leads back from an edited model whose original is not at hand, to a rounding of its
        weights; `undo` leads back bit for bit.

        Raises:
            ValueError: an edit of another kind than closed form. RuntimeError: it has no inverse.
        """
        if self.kind != "closed_form":
            _checks.fail(ValueError, "kind", "a closed form", self.kind)
        right, left = inverted(self.tensors["R"], self.tensors["D"])
        details = {"eraser": "inverse", "of": self.details, "layers": self.details["layers"]}
        return Edit(self.kind, self.component, {"R": right, "D": left}, details)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def apply(self, target: Any) -> Any:
        """The edited model: a new `Bundle` that shares all but the component, or the same pipeline, changed.

        A hook leaves a bundle as it is: pass `options` on where pictures are made.

        Raises:
            ValueError: names, shapes, vocabulary or the tokenizer do not fit; nothing is changed then.
            TypeError: a hook on a pipeline.
            RuntimeError: it is applied to this pipeline already; `undo` would not find the way back.
        """
        if self._acts_later:
            if not isinstance(target, Bundle):
                expected = "a Bundle and generate(..., **edit.options)"
                if self.kind == "lowrank":
                    expected += ", or merged().apply(pipe)"
                _checks.fail(TypeError, "target", expected, type(target).__name__)
            if self.kind == "lowrank":
                layers_of(target.unet, self.tensors)
            return target
        modules: dict[str, Any] = {part: getattr(target, part, None) for part in self.parts}
        for part, module in modules.items():
            if not isinstance(module, nn.Module):
                _checks.fail(
                    TypeError, "target", f"a Bundle or pipeline with a {part}", type(target).__name__
                )
            if module in self._before and not isinstance(target, Bundle):
                raise RuntimeError(
                    "target: expected a pipeline without this edit, got one that it is applied to"
                )
        self._check_words(target)
        values = {part: self._values(part, module) for part, module in modules.items()}
        if isinstance(target, Bundle):
            changed = {part: copy.deepcopy(module).requires_grad_(False) for part, module in modules.items()}
            for part, module in changed.items():
                _write(module, values[part])
                self._before[module] = modules[part]
            return target.replace(**changed)
        for part, module in modules.items():
            before = dict(module.named_parameters())
            self._before[module] = {name: before[name].detach().clone() for name in values[part]}
            _write(module, values[part])
        return target

    def undo(self, target: Any) -> Any:
        """The model before `apply`, bit for bit.

        Raises:
            RuntimeError: this edit was not applied to it.
        """
        if self._acts_later:
            return target
        modules: dict[str, Any] = {part: getattr(target, part, None) for part in self.parts}
        for module in modules.values():
            if not isinstance(module, nn.Module) or module not in self._before:
                raise RuntimeError("target: expected a model that this edit was applied to, got another")
        before = {part: self._before.pop(module) for part, module in modules.items()}
        if isinstance(target, Bundle):
            return target.replace(**before)
        for part, module in modules.items():
            _write(module, before[part])
        return target

    def save(self, folder: str | Path) -> Path:
        """Write a folder: a whole text encoder as `save_pretrained` does (stock transformers loads it), of
        two each in a folder of its name, anything else as edit.safetensors; and a JSON with the details.

        Raises:
            FileExistsError: there is something at `folder`.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"folder: expected a new one, got {folder}, which exists")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            aside.mkdir()
            if self._has_whole_encoders:
                for part in self.parts:
                    place = aside / part if self.component == _BOTH else aside
                    _text_encoder(self, part).save_pretrained(place, safe_serialization=True)
            elif self.kind == "lowrank":
                write_lowrank(aside / _FILE, self.tensors, self.details)
            elif self.tensors:
                from safetensors.torch import save_file

                save_file({k: t.detach().cpu().contiguous() for k, t in self.tensors.items()}, aside / _FILE)
            about = {
                "schema": _SCHEMA,
                "kind": self.kind,
                "component": self.component,
                "details": self.details,
            }
            name = _ADV_ABOUT if self.details.get("eraser") == "advunlearn" else ABOUT
            (aside / name).write_text(json.dumps(about, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Edit:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such folder, or its weights are missing. ValueError: another schema; tensors
            are missing, left over or not finite.
        """
        folder = Path(folder)
        found = next((folder / name for name in (_ADV_ABOUT, ABOUT) if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"folder: expected one with {ABOUT} or {_ADV_ABOUT}, got {folder}")
        about = _read_about(found)
        with reading(found, "an edit with its weights"):
            return cls._of_file(folder, about)

    @classmethod
    def _of_file(cls, folder: Path, about: dict[str, Any]) -> Edit:
        kind, component, details = about["kind"], about["component"], about["details"]
        if kind == "hook":
            return cls(kind, component, {}, details)
        if _is_whole(kind, component, details):
            if component != _BOTH:
                return cls(kind, component, _read_encoder(folder, details), details)
            states = {part: _read_encoder(folder / part, _about_encoder(details, part)) for part in _ENCODERS}
            return cls(kind, component, _named(states), details)
        return cls(kind, component, load_component_state(_present(folder / _FILE)), details)

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that it changes, by their names in diffusers' pipelines."""
        return _ENCODERS if self.component == _BOTH else (self.component,)

    @property
    def _has_whole_encoders(self) -> bool:
        return _is_whole(self.kind, self.component, self.details)

    def _of(self, part: str) -> dict[str, Tensor]:
        """Tensors of one component, by their names in it."""
        if self.component != _BOTH:
            return self.tensors
        start = f"{part}."
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    def _values(self, part: str, module: nn.Module) -> dict[str, Tensor]:
        """New value of each changed parameter, checked."""
        if self.kind == "lowrank":
            return merged_weights(module, self.tensors, 1.0)
        parameters, tensors = dict(module.named_parameters()), self._of(part)
        names = self.details["layers"] if self.kind == "closed_form" else list(tensors)
        missing = sorted(set(names) - set(parameters))
        if missing:
            _checks.fail(ValueError, part, f"a parameter {missing[0]}", f"none ({len(missing)} missing)")
        if self.kind == "closed_form":
            right, left = self.tensors["R"], self.tensors["D"]
            values = {}
            for name in names:
                w = parameters[name].detach()
                if w.shape[1] != right.shape[1]:
                    _checks.fail(ValueError, name, f"{right.shape[1]} columns", w.shape[1])
                values[name] = closed_value(w, right, left)
            return values
        for name, value in tensors.items():
            if parameters[name].shape != value.shape:
                _checks.fail(ValueError, name, str(list(parameters[name].shape)), list(value.shape))
        return dict(tensors)

    def _check_words(self, target: Any) -> None:
        """A text encoder is of use only with the tokenizer whose ids it was trained on."""
        expected = self.details.get("ids")
        if not expected:
            return
        for part in self.parts:
            if part not in _ENCODERS:
                continue
            name = part.replace("text_encoder", "tokenizer")
            tokenizer = getattr(target, name)
            for prompt, ids in expected.items():
                got = tokenizer([prompt], padding=False, truncation=True)["input_ids"][0]
                if list(got) != list(ids):
                    _checks.fail(ValueError, name, f"the ids {ids} for {prompt!r}", list(got))


def _read_about(file: Path) -> dict[str, Any]:
    about = read_json(file)
    schema = about.get("schema") if isinstance(about, dict) else None
    if schema != _SCHEMA:
        _checks.fail(ValueError, str(file), f"schema {_SCHEMA}", repr(schema))
    for key, kind in (("kind", str), ("component", str), ("details", dict)):
        if not isinstance(about.get(key), kind):
            _checks.fail(ValueError, f"{file}: {key}", f"a {kind.__name__}", _checks.describe(about.get(key)))
    return dict(about)


def _check_closed(tensors: dict[str, Tensor], layers: Any) -> None:
    shapes = {name: list(value.shape) for name, value in tensors.items()}
    good = shapes.keys() == {"R", "D"} and shapes["R"] == shapes["D"] and len(shapes["R"]) == 2
    if not good:
        _checks.fail(ValueError, "tensors", "R and D, both [m, d]", shapes)
    if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
        _checks.fail(ValueError, "layers", "names of the matrices", _checks.describe(layers))


def _write(module: nn.Module, values: dict[str, Tensor]) -> None:
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def _named(states: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of both encoders, the encoder's name in front."""
    return {f"{part}.{name}": t for part, state in states.items() for name, t in state.items()}


def _about_encoder(details: dict[str, Any], part: str) -> dict[str, Any]:
    """Class and configuration of one of two encoders."""
    both = details.get("encoders")
    found = both.get(part) if isinstance(both, dict) else None
    if not isinstance(found, dict):
        _checks.fail(ValueError, "encoders", f"class and config of {part}", _checks.describe(found))
    return found


def _is_whole(kind: str, component: str, details: dict[str, Any]) -> bool:
    """Whether an edit holds text encoders whole: only then its details name their classes. Of one that holds
    some of an encoder's parameters the others are not known."""
    if kind != "weights" or component not in (*_ENCODERS, _BOTH):
        return False
    return ("encoders" if component == _BOTH else "class") in details


def _present(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"folder: expected {file.name} in {file.parent}, got none")
    return file


def _read_encoder(folder: Path, about: dict[str, Any]) -> dict[str, Tensor]:
    state = load_component_state(_present(folder / "model.safetensors"))
    module = _new_text_encoder(about)
    load_strict(module, state, allow_identical=True)
    return _parameters(module)


def _text_encoder(edit: Edit, part: str) -> Any:
    """The text encoder as a module of transformers."""
    about = _about_encoder(edit.details, part) if edit.component == _BOTH else edit.details
    module, values = _new_text_encoder(about), edit._of(part)
    missing = sorted({name for name, _ in module.named_parameters()} - values.keys())
    if missing:
        got = f"{len(missing)} missing, {missing[0]} among them"
        _checks.fail(ValueError, "tensors", f"all parameters of {part}, whose class is named", got)
    _write(module, values)
    return module.eval()


def _new_text_encoder(details: dict[str, Any]) -> Any:
    import transformers

    kind = _checks.choice("class", details.get("class"), _CLASSES)
    config = details.get("config")
    if not isinstance(config, dict):
        _checks.fail(ValueError, "config", "a CLIPTextConfig as JSON", _checks.describe(config))
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**config))


def weights_edit(module: nn.Module, component: str, names: list[str], details: dict[str, Any]) -> Edit:
    """An edit that holds a text encoder whole, or the named parameters of a UNet, on the CPU."""
    values = _parameters(module)
    whole = component in _ENCODERS
    kept = values if whole else {name: values[name] for name in names}
    about = {**details, **(_encoder_about(module) if whole else {}), "versions": _versions()}
    return Edit("weights", component, {name: value.cpu() for name, value in kept.items()}, about)


def encoders_edit(modules: dict[str, nn.Module], details: dict[str, Any]) -> Edit:
    """An edit that holds both text encoders of SDXL whole, on the CPU."""
    encoders = {part: _encoder_about(module) for part, module in modules.items()}
    values = _named({part: _parameters(module) for part, module in modules.items()})
    about = {**details, "encoders": encoders, "versions": _versions()}
    return Edit("weights", _BOTH, {name: value.cpu() for name, value in values.items()}, about)


def _encoder_about(module: Any) -> dict[str, Any]:
    config = json.loads(json.dumps(module.config.to_dict(), default=str))
    return {"config": config, "class": type(module).__name__}


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}


def digest(*modules: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of modules' parameters."""
    found = hashlib.sha256()
    for module in modules:
        for name, p in sorted(module.named_parameters()):
            found.update(f"{name} {list(p.shape)} {p.dtype}".encode())
            found.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
