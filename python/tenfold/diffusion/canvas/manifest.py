"""Files of an answer set: pictures, and the manifest that says how they were made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.attack.logs import from_pil, from_png, to_pil
from tenfold.diffusion.canvas.keys import Key, file_stem
from tenfold.runs.files import read_json, replacing, write_json

if TYPE_CHECKING:
    from tenfold.diffusion.canvas.answers import AnswerSet
    from tenfold.diffusion.canvas.vocabulary import Canvas

__all__ = [
    "ENDINGS", "MANIFEST", "begin", "fitted", "join", "match", "read_manifest", "read_pictures",
    "settings_of", "verify", "write_manifest", "write_picture",
]  # fmt: skip

ENDINGS = ("png", "jpg")
MANIFEST = "manifest.json"
SCHEMA = "tenfold.answers/1"
_PART = re.compile(r"manifest-(\d+)of(\d+)\.json")
_QUALITY = 95
_SEEDS = "philox(seed, style index, object index)"


def settings_of(bundle: Any, canvas: Canvas, edit: Any, **settings: Any) -> dict[str, Any]:
    """What pictures depend on, as plain data, with a digest of it all."""
    from importlib import metadata

    from tenfold.diffusion.erase.edit import digest

    base = {name: digest(module) for name, module in sorted(bundle.modules().items())}
    held = {
        **settings,
        "canvas": canvas.to_plain(),
        "prompt_template": canvas.template,
        "seed_scheme": _SEEDS,
        "base": {"name": bundle.name, "sha256": base},
        "edit": None if edit is None else _digest_of(edit),
        "version": metadata.version("tenfold"),
    }
    held = json.loads(json.dumps(held, allow_nan=False))
    return {**held, "settings_sha256": _sha({k: v for k, v in held.items() if k != "version"})}


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of(edit: Any) -> dict[str, Any]:
    """Its details and a digest of its tensors."""
    found = hashlib.sha256()
    for name, value in sorted(edit.tensors.items()):
        found.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"kind": edit.kind, "sha256": found.hexdigest(), "bytes": edit.nbytes, "details": edit.details}


def _manifest_name(shard: tuple[int, int] | None) -> str:
    return MANIFEST if shard is None or shard[1] == 1 else f"manifest-{shard[0]}of{shard[1]}.json"


def begin(folder: Path, about: dict[str, Any], shard: tuple[int, int] | None, resume: bool) -> set[str]:
    """Names of the pictures that are there; the folder is made, and its manifest says that it is begun.

    Raises:
        ValueError: the folder has answers, and `resume` is false, or they are of other settings.
    """
    held = {p.name for p in _pictures(folder)} if folder.is_dir() else set()
    kept = [folder / MANIFEST, *folder.glob("manifest-*of*.json")] if folder.is_dir() else []
    kept = [path for path in kept if path.is_file()]
    for path in kept:
        there = _read(path)["settings"].get("settings_sha256")
        if there != about["settings_sha256"]:
            _checks.fail(ValueError, "out", "a folder without answers of other settings", path)
    mine = folder / _manifest_name(shard)
    if not resume and (mine in kept or (held and not kept)):
        _checks.fail(ValueError, "out", "an empty folder, or resume=True", f"{folder}, {len(held)} pictures")
    if held and not kept:
        _checks.fail(ValueError, "out", "a folder with a manifest", f"{folder}, pictures of unknown settings")
    write_json(mine, {"schema": SCHEMA, "complete": False, "settings": about})
    return held if resume else set()


def write_manifest(
    folder: Path, answers: AnswerSet, paths: Sequence[Path], shard: tuple[int, int] | None = None
) -> None:
    """The finished manifest: settings, keys, and the SHA-1 of each file, in the order of the keys."""
    digests = {p.name: hashlib.sha1(p.read_bytes(), usedforsecurity=False).hexdigest() for p in paths}
    value = {
        "schema": SCHEMA,
        "complete": True,
        "method": answers.method,
        "target": answers.target,
        "canvas": answers.canvas.to_plain(),
        "settings": answers.about,
        "seconds": round(answers.seconds, 3),
        "peak_bytes": answers.peak_bytes,
        "keys": [list(key) for key in answers.keys],
        "sha1": digests,
    }
    write_json(folder / _manifest_name(shard), value)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The finished manifest; {} where there is none, as in published folders.

    Raises:
        ValueError: it is no manifest, or was begun and not finished, or there are only parts.
    """
    path = folder / MANIFEST
    if not path.is_file():
        parts = sorted(p.name for p in folder.glob("manifest-*of*.json"))
        if parts:
            _checks.fail(ValueError, "folder", "one manifest (merge_answers)", ", ".join(parts))
        return {}
    value = _read(path)
    if not value.get("complete"):
        _checks.fail(
            ValueError, str(path), "a finished answer set", "one that was begun; resume=True goes on"
        )
    _check_whole(path, value)
    return value


def _read(path: Path) -> dict[str, Any]:
    """A manifest with settings.

    Raises:
        ValueError: another file.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        _checks.fail(ValueError, str(path), f"a manifest of schema {SCHEMA}", str(value)[:60])
    _entry(path, value, "settings", dict)
    return value


def _entry(path: Path, value: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    found = value.get(name)
    if not isinstance(found, kind) or isinstance(found, bool):
        _checks.fail(ValueError, f"{path}: {name}", "what a manifest has", _checks.describe(found))
    return found


def _check_whole(path: Path, value: dict[str, Any]) -> None:
    """Refuse a finished manifest whose parts are not what `write_manifest` writes."""
    from tenfold.diffusion.canvas.vocabulary import Canvas

    for name, kind in (("keys", list), ("sha1", dict), ("canvas", dict), ("seconds", (int, float)),
                       ("peak_bytes", int), ("method", str), ("target", str)):  # fmt: skip
        _entry(path, value, name, kind)
    try:
        canvas = Canvas(**value["canvas"])
        cells = set(canvas.cells)
        for style, thing, seed in value["keys"]:
            if (style, thing) not in cells:
                _checks.fail(ValueError, "keys", f"cells of {canvas.name}", f"{style}, {thing}")
            _checks.integer("seed", seed, 0, 2**32 - 1)
    except (TypeError, ValueError) as error:
        expected = "the canvas and keys of a manifest"
        raise ValueError(f"{path}: expected {expected}, got others ({error})") from error


def join(folder: Path) -> None:
    """One manifest of all parts' manifests, which are removed.

    Raises:
        FileNotFoundError: no part. ValueError: parts are missing, unfinished or differ.
    """
    if (folder / MANIFEST).is_file():
        return
    parts = {}
    for path in folder.glob("manifest-*of*.json"):
        found = _PART.fullmatch(path.name)
        if found:
            parts[int(found[1]), int(found[2])] = (path, _read(path))
    if not parts:
        raise FileNotFoundError(f"folder: expected manifests of parts, got none in {folder}")
    totals = {n for _, n in parts}
    n = totals.pop()
    missing = [i for i in range(n) if (i, n) not in parts]
    if totals or missing:
        _checks.fail(ValueError, "folder", "all parts of one division", f"{len(parts)}, without {missing}")
    rows = [parts[i, n] for i in range(n)]
    for path, value in rows:
        if not value.get("complete"):
            _checks.fail(ValueError, str(path), "a finished part", "one that was begun")
        _check_whole(path, value)
        if value["settings"].get("settings_sha256") != rows[0][1]["settings"].get("settings_sha256"):
            _checks.fail(ValueError, str(path), "the settings of the other parts", "others")
    whole = {**rows[0][1]}
    keys = [key for _, value in rows for key in value["keys"]]
    whole["keys"] = sorted(keys, key=_canvas_order(whole["canvas"]))
    whole["sha1"] = {name: digest for _, value in rows for name, digest in value["sha1"].items()}
    whole["seconds"] = round(sum(value["seconds"] for _, value in rows), 3)
    whole["peak_bytes"] = max(value["peak_bytes"] for _, value in rows)
    write_json(folder / MANIFEST, whole)
    for path, _ in rows:
        path.unlink()


def _canvas_order(canvas: dict[str, Any]) -> Any:
    styles = {name: i for i, name in enumerate(canvas["styles"])}
    objects = {name: i for i, name in enumerate(canvas["objects"])}
    seeds = {seed: i for i, seed in enumerate(canvas["seeds"])}
    return lambda key: (seeds.get(key[2], len(seeds) + key[2]), styles[key[0]], objects[key[1]])


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg") and p.is_file()
                  and not p.name.startswith("."))  # fmt: skip


def match(folder: Path, keys: Sequence[Key]) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The file of each key, and the pictures that are no key's.

    Raises:
        FileNotFoundError: some are missing. ValueError: a picture has two files.
    """
    by_stem: dict[str, Path] = {}
    for path in _pictures(folder):
        if path.stem in by_stem:
            got = f"{by_stem[path.stem].name} and {path.name}"
            _checks.fail(ValueError, "folder", f"one file for each picture in {folder}", got)
        by_stem[path.stem] = path
    stems = [file_stem(key) for key in keys]
    missing = [stem for stem in stems if stem not in by_stem]
    if missing:
        shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
        raise FileNotFoundError(
            f"folder: expected {len(stems)} pictures in {folder}, got {len(stems) - len(missing)}; "
            f"missing: {shown}"
        )
    wanted = set(stems)
    return tuple(by_stem[s] for s in stems), tuple(p.name for s, p in by_stem.items() if s not in wanted)


def verify(folder: Path, about: dict[str, Any]) -> None:
    """Compare files with the manifest's digests.

    Raises:
        ValueError: there is no manifest, or a file is not what was written.
    """
    if not about:
        _checks.fail(ValueError, "folder", "a manifest to verify by", f"none in {folder}")
    for name, wanted in about["sha1"].items():
        if Path(name).name != name or not (folder / name).is_file():
            _checks.fail(ValueError, f"{folder / MANIFEST}: sha1", "files of this folder", repr(name))
        got = hashlib.sha1((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
        if got != wanted:
            _checks.fail(ValueError, str(folder / name), f"SHA-1 {wanted}", got)


def write_picture(path: Path, picture: Tensor) -> None:
    """uint8 [c, H, W] as PNG, or as JPEG of quality 95 without subsampling of colours."""
    kind = {"png": "png", "jpg": "jpeg"}[_checks.choice("ending", path.suffix.removeprefix("."), ENDINGS)]
    more = {"quality": _QUALITY, "subsampling": 0} if kind == "jpeg" else {}
    with replacing(path) as aside:
        to_pil(picture).save(aside, format=kind, **more)


def read_pictures(paths: Sequence[Path]) -> Tensor:
    """uint8 [B, c, H, W].

    Raises:
        ValueError: a file is no picture, or has another size than the first.
    """
    found: list[Tensor] = []
    for path in paths:
        try:
            picture = from_png(path)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{path}: expected a picture, got a file that cannot be read ({error})"
            ) from error
        if found and picture.shape != found[0].shape:
            _checks.fail(ValueError, str(path), f"a picture of {list(found[0].shape)}", list(picture.shape))
        found.append(picture)
    if not found:
        _checks.fail(ValueError, "paths", "at least one picture", "none")
    return torch.stack(found)


def fitted(picture: Tensor, size: tuple[int, int], *, crop: bool = True) -> Tensor:
    """uint8 [3, *size] of a picture [c, H, W] of any shape, by Lanczos.

    crop: the largest part of that shape from the middle; without, the shape is not kept.
    """
    from PIL import Image

    rows, columns = size
    if picture.shape[1:] == torch.Size(size):
        return picture.expand(3, -1, -1)
    image = to_pil(picture.expand(3, -1, -1).contiguous())
    high, wide = float(image.height), float(image.width)
    if crop:
        scale = min(high / rows, wide / columns)
        high, wide = rows * scale, columns * scale
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    box = (left, top, left + wide, top + high)
    return from_pil(image.resize((columns, rows), Image.Resampling.LANCZOS, box=box))
