"""What is attacked and with which prompts; candidates as text; pictures of candidates, judged."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.diffusion.bundle import Bundle
from tenfold.diffusion.encode import encode_ids, tokenize
from tenfold.diffusion.judges import verdict_of
from tenfold.diffusion.sampling import generate
from tenfold.diffusion.schedule import SAMPLERS

__all__ = ["Case", "CaseError", "Sampling", "Shot", "Target", "decode", "shots", "survives", "target_cases"]


@dataclass(frozen=True, eq=False)
class Target:
    """An unlearned model.

    bundle: the model. original: the model before unlearning, for attacks that compare with it (p4d) and for
    target images. negative: a negative prompt at generation. safe: Safe Latent Diffusion at generation
    ("weak" ... "max" or a `SafeGuidance`). hooks: of edits that act while pictures are made. These three act
    on pictures only, not on an attack's loss, as in the published code.
    """

    bundle: Bundle
    original: Bundle | None = None
    negative: str | None = None
    safe: Any = None
    name: str = ""
    hooks: Sequence[Any] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """A prompt with its own seed and guidance.

    case_number: its name, unique and stable, as the prompt files have it. seed: in [0, 2^32).
    image: latents [C, h, w] of what the original model makes of it (`target_cases`), which text_grad and p4d
    need. height, width: pixels; the model's own if None.
    """

    case_number: str
    prompt: str
    seed: int = 0
    guidance: float = 7.5
    image: Tensor | None = None
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.case_number, str) or not self.case_number:
            _checks.fail(TypeError, "case_number", "text", _checks.describe(self.case_number))
        if not isinstance(self.prompt, str):
            _checks.fail(TypeError, f"case {self.case_number}: prompt", "text", _checks.describe(self.prompt))
        what = "an integer in [0, 2^32)"
        _checks.integer(f"case {self.case_number}: seed", self.seed, 0, 2**32 - 1, what)
        _checks.real(f"case {self.case_number}: guidance", self.guidance, at_least=0.0)
        for side in ("height", "width"):
            if getattr(self, side) is not None:
                _checks.integer(f"case {self.case_number}: {side}", getattr(self, side), 1, 2**16)


@dataclass(frozen=True)
class Sampling:
    """How candidates become pictures.

    steps, sampler, noise: of `generate`; 50 steps of "lms" as in the published runs. batch: pictures at a
    time.
    ids: "both" judges a picture from the candidate's ids as well, where its text has other ids when tokenised
    again; "text" never does.
    """

    steps: int = 50
    sampler: str = "lms"
    batch: int = 16
    noise: str = "torch"
    ids: str = "both"

    def __post_init__(self) -> None:
        _checks.integer("steps", self.steps, 1, 999)
        _checks.choice("sampler", self.sampler, SAMPLERS)
        _checks.integer("batch", self.batch, 1, 2**16)
        _checks.choice("noise", self.noise, ("torch", "philox"))
        _checks.choice("ids", self.ids, ("both", "text"))


@dataclass(frozen=True, eq=False)
class Shot:
    """A judged picture: uint8 [c, H, W], and the verdict."""

    picture: Tensor
    success: bool
    label: str
    score: float
    accepted: bool
    details: Any = None


class CaseError(RuntimeError):
    """The attack of one prompt cannot go on."""

    def __init__(self, case: Case, message: str):
        super().__init__(f"case {case.case_number} ({case.prompt[:60]!r}): {message}")
        self.case_number = case.case_number


def decode(bundle: Bundle, ids: Tensor) -> str:
    """The text of a row of ids [L] or of extra ids alone, without the first and the end tokens."""
    tokenizer = bundle.tokenizer
    row = ids.tolist()
    if row and row[0] == tokenizer.bos_token_id:
        row = row[1:]
    return str(tokenizer.decode([one for one in row if one != tokenizer.eos_token_id])).strip()


def survives(bundle: Bundle, ids: Tensor) -> bool:
    """Whether a row of ids [L] comes back when its text is tokenised."""
    again = tokenize(bundle, [decode(bundle, ids)], overflow="truncate").ids[0]
    return bool(torch.equal(again, ids.to(again.device)))


def surviving(
    bundle: Bundle, scores: Tensor, row_of: Callable[[Tensor], Tensor], *, width: int = 8, tries: int = 256
) -> Tensor:
    """The best extra ids [k] whose row survives the way over text; the best of all if none of `tries` does.

    Args:
        scores: [k, V], added over the k tokens; -inf where a token may not be chosen.
        row_of: extra ids [k] -> the whole row [L].
    """
    top = scores.topk(min(width, scores.shape[1]), dim=1)
    values, ids = top.values.double().cpu(), top.indices.cpu()
    k, width = ids.shape
    first = (0,) * k
    heap = [(-float(values[:, 0].sum()), first)]
    seen = {first}
    for _ in range(tries):
        if not heap:
            break
        _, ranks = heapq.heappop(heap)
        chosen = torch.stack([ids[i, r] for i, r in enumerate(ranks)])
        if survives(bundle, row_of(chosen)):
            return chosen
        for i in range(k):
            other = (*ranks[:i], ranks[i] + 1, *ranks[i + 1 :])
            if other[i] < width and other not in seen:
                seen.add(other)
                total = sum(float(values[j, r]) for j, r in enumerate(other))
                if total > -torch.inf:
                    heapq.heappush(heap, (-total, other))
    return ids[:, 0]


def shots(
    target: Target,
    judge: Any,
    cases: Sequence[Case],
    prompts: Sequence[str] | Tensor,
    sampling: Sampling,
    seeds: Sequence[int] | None = None,
) -> list[Shot]:
    """Make one picture for each case and judge it.

    Args:
        prompts: what each case's picture is made of: texts, or ids int64 [B, L].
        seeds: instead of the cases' own.

    Pictures are rounded to 8 bits before they are judged: what is judged is what is saved.

    Raises:
        CaseError: a picture is not finite.
    """
    chosen = [case.seed for case in cases] if seeds is None else list(seeds)
    found: list[Shot | None] = [None] * len(cases)
    for size in dict.fromkeys((case.height, case.width) for case in cases):
        rows = [i for i, case in enumerate(cases) if (case.height, case.width) == size]
        text: Any = None
        pooled = said = None
        if not isinstance(prompts, Tensor):
            text = [prompts[i] for i in rows]
        elif target.bundle.is_sdxl:
            text, pooled = encode_ids(target.bundle, prompts[rows], pooled=True)
        else:
            text = encode_ids(target.bundle, prompts[rows])
        if isinstance(prompts, Tensor):
            said = [decode(target.bundle, prompts[i]) for i in rows]
        images = generate(
            target.bundle, text, [chosen[i] for i in rows], guidance=[cases[i].guidance for i in rows],
            steps=sampling.steps, sampler=sampling.sampler, negative=target.negative, safe=target.safe,
            hooks=target.hooks, texts=said, height=size[0], width=size[1], batch=sampling.batch,
            noise=sampling.noise, pooled=pooled,
        )  # fmt: skip
        broken = (~images.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if broken:  # in 8 bits it would be some picture without the concept
            raise CaseError(cases[rows[broken[0]]], "expected a picture of finite values, got NaN")
        pictures = (images * 255).round().to(torch.uint8)
        verdict = verdict_of(judge, pictures.float() / 255)
        details = verdict.details or (None,) * len(rows)
        for j, i in enumerate(rows):
            found[i] = Shot(
                pictures[j], bool(verdict.success[j]), verdict.label[j], float(verdict.score[j]),
                bool(verdict.accepted[j]), details[j],
            )  # fmt: skip
    return [shot for shot in found if shot is not None]


def target_cases(
    original: Bundle,
    cases: Sequence[Case],
    sampling: Sampling | None = None,
    *,
    pictures: Sequence[Tensor] | None = None,
) -> list[Case]:
    """The cases with the latents of their target images: what the original model makes of each prompt.

    Args:
        pictures: uint8 [c, H, W] of each case, instead of making them (`data.read_targets`).
        sampling: 25 steps of "lms" if None, as the published data sets were made.
    """
    sampling = sampling or Sampling(steps=25)
    if pictures is None:
        never = _Never()
        made = shots(Target(original), never, cases, [case.prompt for case in cases], sampling)
        pictures = [shot.picture for shot in made]
    _checks.length("pictures", pictures, len(cases), "the cases")
    channels = original.picture_shape()[0]
    for i, picture in enumerate(pictures):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != channels:
            got = f"{picture.dtype} {list(picture.shape)}"
            _checks.fail(ValueError, f"pictures[{i}]", f"torch.uint8 [{channels}, H, W]", got)
    found = []
    for case, picture in zip(cases, pictures, strict=True):
        with torch.no_grad():
            latents = original.encode_images(picture[None].float() / 255)[0]
        found.append(replace(case, image=latents))
    return found


class _Never:
    """Judges nothing."""

    name = "none"

    def __call__(self, images: Tensor) -> list[bool]:
        return [False] * images.shape[0]
