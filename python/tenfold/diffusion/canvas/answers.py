"""Answer sets: what a model draws for every cell of a canvas and every seed.

Files are named as the published ones, `{Style}_{Object}_seed{n}.jpg` (or .png), in
`{root}/{method}/{subset}/{Target}/`. A `manifest.json` beside them has the settings and each file's digest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.canvas import manifest as files
from tenfold.diffusion.canvas.keys import Key, answer_keys, budget_keys, cell_noise, file_stem, shard_keys
from tenfold.diffusion.canvas.vocabulary import Canvas

if TYPE_CHECKING:
    from tenfold.diffusion.bundle import Bundle

__all__ = ["LANES", "REFERENCE_SAMPLING", "AnswerSet", "answer_set", "merge_answers", "read_answers"]

LANES = 16
"""Rows of a network call on a CPU. A picture's row is given by its place on the canvas: kernels round by the
number of rows and by the row."""

REFERENCE_SAMPLING: dict[str, dict[str, Any]] = {
    "ESD": {"sampler": "ddim", "steps": 100, "guidance": 9.0},
    "CA": {"sampler": "ddim", "steps": 100, "guidance": 9.0},
    "SalUn": {"sampler": "ddim", "steps": 100, "guidance": 9.0},
    "EDiff": {"sampler": "ddim", "steps": 100, "guidance": 9.0},
    "SHS": {"sampler": "ddim", "steps": 100, "guidance": 9.0},
    "UCE": {"sampler": "lms", "steps": 100, "guidance": 9.0},
    "SEOT": {"sampler": "ddim", "steps": 50, "guidance": 9.0},
    "SPM": {"steps": 100, "guidance": 7.5},
    "FMN": {"steps": 100, "guidance": 9.0},
}
"""Sampler, steps and guidance that the published scripts use for each method, where they are the method's
own. The SPM script also has a long negative prompt. A table made with these compares samplers as well as
methods."""


@dataclass(eq=False)
class AnswerSet:
    """The pictures of one model.

    canvas: what was asked. keys: the pictures that there are, in order. method, target: which edit made them;
    both "" for the base model. about: settings, as the manifest has them.
    images: uint8 [N, c, H, W], or None where they lie in files. folder, paths: those.
    seconds: of making them. peak_bytes: device memory at most, 0 on a CPU. extra: files that belong to no
    key.
    """

    canvas: Canvas
    keys: tuple[Key, ...]
    method: str = ""
    target: str = ""
    images: Tensor | None = None
    folder: Path | None = None
    paths: tuple[Path, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_bytes: int = 0
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.keys)) != len(self.keys):
            _checks.fail(ValueError, "keys", "each once", f"{len(self.keys) - len(set(self.keys))} repeated")
        if (self.images is None) == (not self.paths):
            _checks.fail(ValueError, "images", "either pictures or files", "both or neither")
        held = self.paths if self.images is None else self.images
        _checks.length(
            "images", list(held) if self.images is None else range(len(held)), len(self), "the keys"
        )

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> str:
        """A picture's file, or what its file would be called."""
        return str(self.paths[index]) if self.paths else file_stem(self.keys[index])

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """uint8 [len(indices), c, H, W].

        Raises:
            ValueError: a file cannot be read, or has another size than the others (it is named).
        """
        if self.images is not None:
            return self.images[list(indices)]
        return files.read_pictures([self.paths[i] for i in indices])

    def picture(self, style: str, object: str, seed: int) -> Tensor:
        """uint8 [c, H, W] of one cell and seed. Raises: ValueError: it is not there."""
        key = Key(self.canvas.style(style), self.canvas.object(object), seed)
        if key not in self.keys:
            _checks.fail(ValueError, "seed", f"a picture of the set ({len(self)} are)", file_stem(key))
        return self.pictures([self.keys.index(key)])[0]

    def batches(self, size: int = 64) -> Iterator[tuple[range, Tensor]]:
        """(indices, uint8 [B, c, H, W]) of all pictures in order."""
        size = _checks.integer("size", size, 1, 2**20)
        for start in range(0, len(self), size):
            indices = range(start, min(start + size, len(self)))
            yield indices, self.pictures(indices)

    def write(self, folder: str | Path, *, ending: str = "png") -> AnswerSet:
        """The pictures and their manifest as files; the set that reads them."""
        folder = Path(folder)
        rows = [folder / f"{file_stem(key)}.{ending}" for key in self.keys]
        for index, path in enumerate(rows):
            files.write_picture(path, self.pictures([index])[0])
        files.write_manifest(folder, self, rows)
        return read_answers(folder, self.canvas)


def answer_set(
    bundle: Bundle,
    canvas: Canvas,
    *,
    edit: Any = None,
    method: str = "",
    target: str = "",
    seeds: Sequence[int] | None = None,
    cells: Iterable[tuple[str, str]] | None = None,
    keys: Sequence[Key] | None = None,
    budget: int | None = None,
    batch: int = 64,
    lanes: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    compat: str = "exact",
    options: dict[str, Any] | None = None,
    out: str | Path | None = None,
    ending: str = "png",
    shard: tuple[int, int] | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AnswerSet:
    """Draw the canvas.

    A picture depends on the model, its cell and its seed only. On a CPU it is the same, bit for bit, for any
    `batch`, order of cells, and parts: the noise is counter-based (`cell_noise`), and networks always
    read `lanes` rows, a picture's own among them.

    Args:
        bundle: the model. edit: an `Edit` (it is applied, and its `options` are used), or None.
        method, target: for the manifest; `target` is checked against the canvas.
        seeds, cells: only these; the canvas' if None. keys: exactly these pictures (an order of its own is
            allowed). budget: as many pictures, spread evenly (`budget_keys`), the target's all among them.
        batch: pictures between two reports of progress, and, on an accelerator, rows of a network call.
        lanes: rows of a network call; on a CPU `LANES` if None.
        steps, guidance, sampler: the canvas' if None. options: more arguments of `generate`.
        compat: "reference": prompts as the published samplers wrote them (`Canvas.prompt`).
        out: a folder for files and manifest; None keeps the pictures in memory.
        ending: "png", or "jpg" as published (quality 95).
        shard: (i, n), part i of n; into one folder, then `merge_answers`.
        resume: files that are there already are kept; their settings must be these.
        progress: called with (pictures done, pictures in all).

    Raises:
        TypeError, ValueError: an argument; `out` holds answers of other settings, or any without `resume`.
    """
    _checks.choice("compat", compat, ("exact", "reference"))
    _checks.choice("ending", ending, files.ENDINGS)
    _checks.integer("batch", batch, 1, 2**16)
    if target:
        target = canvas.find(target)[1]
    wanted = _wanted(canvas, seeds, cells, keys, budget, target)
    wanted = shard_keys(wanted, shard)
    settings: dict[str, Any] = {
        "steps": canvas.steps if steps is None else steps,
        "guidance": canvas.guidance if guidance is None else guidance,
        "sampler": canvas.sampler if sampler is None else sampler,
    }
    model, extra = bundle, dict(options or {})
    if edit is not None:
        model, extra = edit.apply(bundle), {**edit.options, **extra}
    lanes = _checks.integer("lanes", lanes or (LANES if model.device.type == "cpu" else batch), 1, 2**16)
    about = files.settings_of(
        bundle, canvas, edit, method=method, target=target, compat=compat, lanes=lanes,
        ending=ending if out is not None else "", options=sorted(extra), **settings,
    )  # fmt: skip
    made = _Maker(model, canvas, {**settings, **extra}, lanes, compat, method)
    return _drawn(made, wanted, about, out, ending, shard, resume, batch, progress)


def _wanted(
    canvas: Canvas, seeds: Any, cells: Any, keys: Any, budget: int | None, target: str
) -> tuple[Key, ...]:
    given = [name for name, one in (("cells", cells), ("keys", keys), ("budget", budget)) if one is not None]
    if len(given) > 1:
        _checks.fail(ValueError, given[1], f"None beside {given[0]}", "a value")
    if budget is not None:
        return budget_keys(canvas, budget, seeds=seeds, target=target or None)
    if keys is None:
        return answer_keys(canvas, seeds=seeds, cells=cells)
    if seeds is not None:
        _checks.fail(ValueError, "seeds", "None beside keys", "a value")
    found = tuple(Key(canvas.style(k[0]), canvas.object(k[1]), _checks.integer("keys", k[2], 0, 2**32 - 1))
                  for k in keys)  # fmt: skip
    if not found or len(set(found)) != len(found):
        _checks.fail(
            ValueError, "keys", "at least one, each once", f"{len(found)} of {len(set(found))} kinds"
        )
    return found


@dataclass(eq=False)
class _Maker:
    """Pictures of keys, each in the row of the network call that is its own."""

    bundle: Bundle
    canvas: Canvas
    settings: dict[str, Any]
    lanes: int
    compat: str
    method: str

    def rounds(self, keys: Sequence[Key]) -> Iterator[dict[int, Key]]:
        """Network calls: row -> picture. A row takes the pictures whose index on the canvas leads to it."""
        index = {cell: i for i, cell in enumerate(self.canvas.cells)}
        queues: list[list[Key]] = [[] for _ in range(self.lanes)]
        for key in keys:
            queues[(index[key.style, key.object] + key.seed) % self.lanes].append(key)
        for number in range(max(map(len, queues))):
            yield {row: queue[number] for row, queue in enumerate(queues) if number < len(queue)}

    def make(self, rows: dict[int, Key]) -> tuple[list[Key], Tensor]:
        """Keys and their pictures, uint8 [B, c, H, W]. Rows that nobody wants repeat the first picture."""
        from tenfold.diffusion.sampling import generate

        spare = next(iter(rows.values()))
        keys = [rows.get(row, spare) for row in range(self.lanes)]
        side = self.canvas.resolution
        shape = self.bundle.latent_shape(side, side)
        images = generate(
            self.bundle,
            [self.canvas.prompt(k.style, k.object, compat=self.compat, method=self.method) for k in keys],
            [k.seed for k in keys],
            latents=torch.stack([cell_noise(self.canvas, k, shape) for k in keys]),
            batch=self.lanes,
            height=side,
            width=side,
            **self.settings,
        )
        if not bool(images.isfinite().all()):
            raise RuntimeError(
                f"bundle: expected finite pictures, got NaN or infinity ({file_stem(spare)} ...)"
            )
        return list(rows.values()), (images[list(rows)] * 255).round().to(torch.uint8)


def _drawn(
    made: _Maker, keys: tuple[Key, ...], about: dict[str, Any], out: Any, ending: str,
    shard: tuple[int, int] | None, resume: bool, batch: int, progress: Any,
) -> AnswerSet:  # fmt: skip
    start, done = time.perf_counter(), 0
    cuda = made.bundle.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(made.bundle.device)
    left, folder = keys, None if out is None else Path(out)
    if folder is not None:
        held = files.begin(folder, about, shard, resume)
        left = tuple(k for k in keys if f"{file_stem(k)}.{ending}" not in held)
        done = len(keys) - len(left)
    found: dict[Key, Tensor] = {}
    told = done
    for rows in made.rounds(left):
        for key, picture in zip(*made.make(rows), strict=True):
            if folder is None:
                found[key] = picture
            else:
                files.write_picture(folder / f"{file_stem(key)}.{ending}", picture)
            done += 1
        if progress is not None and (done - told >= batch or done == len(keys)):
            progress(done, len(keys))
            told = done
    peak = int(torch.cuda.max_memory_allocated(made.bundle.device)) if cuda else 0
    paths = () if folder is None else tuple(folder / f"{file_stem(k)}.{ending}" for k in keys)
    answers = AnswerSet(
        made.canvas, keys, about["method"], about["target"], about=about, folder=folder, paths=paths,
        images=torch.stack([found[k] for k in keys]) if folder is None else None,
        seconds=time.perf_counter() - start, peak_bytes=peak,
    )  # fmt: skip
    if folder is not None:
        files.write_manifest(folder, answers, paths, shard)
    return answers


def read_answers(
    folder: str | Path,
    canvas: Canvas,
    *,
    keys: Sequence[Key] | None = None,
    verify: bool = False,
) -> AnswerSet:
    """An answer set from its files, ours or the published layout's (which has no manifest).

    Which pictures there must be says `keys`, else the manifest, else the canvas: all cells and seeds.

    Args:
        verify: compare every file with the manifest's digest, not only open it when it is judged.

    Raises:
        FileNotFoundError: pictures are missing; they are named, and never counted as anything.
        ValueError: two files for one picture; the manifest is of another canvas; a digest differs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder of answers, got {folder}")
    about = files.read_manifest(folder)
    if about and about["canvas"] != canvas.to_plain() | {"seeds": about["canvas"].get("seeds")}:
        _checks.fail(
            ValueError, "canvas", f"that of the manifest, {about['canvas']['name']!r}", repr(canvas.name)
        )
    if keys is None:
        keys = [Key(*one) for one in about["keys"]] if about else answer_keys(canvas)
    paths, extra = files.match(folder, keys)
    if verify:
        files.verify(folder, about)
    return AnswerSet(
        canvas, tuple(keys), about.get("method", ""), about.get("target", ""), folder=folder, paths=paths,
        about=about.get("settings", {}), seconds=about.get("seconds", 0.0),
        peak_bytes=about.get("peak_bytes", 0), extra=extra,
    )  # fmt: skip


def merge_answers(folder: str | Path, canvas: Canvas) -> AnswerSet:
    """One set of the parts (`shard`) in a folder: their manifests become one.

    Raises:
        ValueError: parts are missing, or were made with other settings.
    """
    files.join(Path(folder))
    return read_answers(folder, canvas)
