"""UA, IRA and CRA: how well one concept was unlearned, and what that did to all others.

With C[c] the share of a concept's pictures in which its judge sees it (UnlearnCanvas, arXiv 2402.11846):

    UA  = 1 - C[target]                                        unlearning accuracy
    IRA = mean of C over the other concepts of its domain      in-domain retain accuracy
    CRA = mean of C over the concepts of the other domain      cross-domain retain accuracy

A share is of all pictures asked for: a missing one is an error of `read_answers`, never a smaller number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold._statistics import bootstrap_mean
from tenfold.diffusion.attack.asr import Rate
from tenfold.diffusion.canvas.judging import Predictions
from tenfold.diffusion.canvas.vocabulary import Canvas

__all__ = [
    "CRA",
    "SEED_IMAGES",
    "ConceptTable",
    "Costs",
    "Score",
    "Summary",
    "concept_table",
    "score",
    "score_matrix",
    "score_tables",
    "summarise",
]

SEED_IMAGES = ("include", "exclude")
CRA = ("all", "exclude_target")
_DOMAINS = ("style", "object")


@dataclass(frozen=True)
class Costs:
    """Of making one edited model. seconds: wall time, the making of its data with it. peak_bytes: device
    memory allocated at most. storage_bytes: kept beyond the base model; 0 for what acts at sampling only."""

    seconds: float
    peak_bytes: int
    storage_bytes: int

    def __post_init__(self) -> None:
        _checks.real("seconds", self.seconds, at_least=0.0)
        _checks.integer("peak_bytes", self.peak_bytes, 0, 2**62)
        _checks.integer("storage_bytes", self.storage_bytes, 0, 2**62)


@dataclass(frozen=True, eq=False)
class ConceptTable:
    """Counts of one judge. names: concepts, K. classes: those and the judge's other ones.

    confusion: int [K, len(classes)], pictures by prompt and by what the judge saw, the right ones too.
    chance: float [K], the prompt's class' probability, summed over the pictures. loss: cross-entropy, summed.
    """

    domain: str
    names: tuple[str, ...]
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    chance: NDArray[np.float64]
    loss: NDArray[np.float64]

    @property
    def n(self) -> NDArray[np.int64]:
        """[K]: pictures of each concept."""
        return np.asarray(self.confusion.sum(axis=1), dtype=np.int64)

    @property
    def right(self) -> NDArray[np.int64]:
        """[K]: of these, with the concept seen."""
        return self.confusion[:, : len(self.names)].diagonal().copy()

    @property
    def shares(self) -> NDArray[np.float64]:
        """[K]: C of each concept.

        Raises:
            ValueError: a concept has no picture (it is named).
        """
        self.check()
        return np.asarray(self.right / self.n, dtype=np.float64)

    def check(self) -> None:
        """Refuse concepts without a picture."""
        if (self.n == 0).any():
            name = self.names[int(np.flatnonzero(self.n == 0)[0])]
            _checks.fail(ValueError, "predictions", f"pictures of every {self.domain}", f"none of {name}")

    def rate(self, name: str) -> Rate:
        """C of one concept, with its interval."""
        i = self.names.index(name)
        return Rate(int(self.right[i]), int(self.n[i]))

    def seen_instead(self, name: str) -> dict[str, int]:
        """What the judge saw in a concept's pictures but the concept: class -> pictures, the most first."""
        i = self.names.index(name)
        row = {c: int(v) for c, v in zip(self.classes, self.confusion[i], strict=True) if v and c != name}
        return dict(sorted(row.items(), key=lambda item: -item[1]))


def concept_table(
    predictions: Predictions, domain: str, *, rows: NDArray[np.bool_] | None = None
) -> ConceptTable:
    """Counts of a domain's judge. rows: bool [N], the pictures that count; all if None."""
    truth, said = predictions.truth(domain), predictions.said(domain)
    log = predictions.log(domain)[np.arange(len(predictions)), truth]
    use = np.ones(len(predictions), dtype=np.bool_) if rows is None else rows
    names, classes = predictions.canvas.names(domain), predictions.classes(domain)
    confusion = np.zeros((len(names), len(classes)), np.int64)
    np.add.at(confusion, (truth[use], said[use]), 1)
    chance, loss = np.zeros(len(names)), np.zeros(len(names))
    np.add.at(chance, truth[use], np.exp(log[use]))
    np.add.at(loss, truth[use], -log[use])
    return ConceptTable(domain, names, classes, confusion, chance, loss)


@dataclass(frozen=True)
class Score:
    """Of one edited model. ua: with Wilson's interval. ira, cra: means of shares, and their 95 % bootstrap
    intervals over concepts.

    style, object: C of every concept. chance: mean probability of the target's class in its pictures.
    seen_instead: class -> pictures, what became of the target. seed_images, cra_over: the conventions.
    delta: change of UA, IRA, CRA against the base model, where that was given (there UA means 1 - C too).
    """

    method: str
    target: str
    domain: str
    ua: Rate
    ira: float
    cra: float
    ira_interval: tuple[float, float]
    cra_interval: tuple[float, float]
    style: dict[str, float]
    object: dict[str, float]
    chance: float
    seen_instead: dict[str, int] = field(default_factory=dict)
    seed_images: str = "include"
    cra_over: str = "all"
    delta: dict[str, float] | None = None
    costs: Costs | None = None
    fid: dict[str, Any] | None = None


def score(
    predictions: Predictions,
    target: str | None = None,
    *,
    seed_images: str = "include",
    cra: str = "all",
    base: Predictions | None = None,
    costs: Costs | None = None,
    fid: dict[str, Any] | None = None,
) -> Score:
    """UA, IRA and CRA of one edited model.

    Args:
        target: a style or an object; that of the answer set if None.
        seed_images: whether the photographs count among the styles that are retained ("include", as the
            published code does) or not.
        cra: "all": over all pictures, those drawn with the target too (as the code); "exclude_target": without
            them (as the published text may be read).
        base: predictions of the unedited model, for `delta`. costs, fid ({name, value, n}): kept beside.

    Raises:
        ValueError: an unknown target or convention; a concept without a picture; `base` of another canvas.
    """
    name = target if target is not None else predictions.target
    if not name:
        _checks.fail(ValueError, "target", "a style or an object", "none: the base model's pictures")
    domain, name = predictions.canvas.find(name)
    tables = _two_tables(predictions, domain, name, cra)
    before = None
    if base is not None:
        if (base.canvas.styles, base.canvas.objects) != (
            predictions.canvas.styles,
            predictions.canvas.objects,
        ):
            _checks.fail(ValueError, "base", "predictions of the same canvas", base.canvas.name)
        before = _two_tables(base, domain, name, cra)
    return score_tables(
        predictions.canvas, *tables, name, method=predictions.method, seed_images=seed_images, cra=cra,
        base=before, costs=costs, fid=fid,
    )  # fmt: skip


def _two_tables(
    predictions: Predictions, domain: str, name: str, cra: str
) -> tuple[ConceptTable, ConceptTable]:
    """Of styles and of objects; the other domain's as `cra` has it."""
    _checks.choice("cra", cra, CRA)
    index = predictions.canvas.names(domain).index(name)
    others = predictions.truth(domain) != index if cra == "exclude_target" else None
    style = concept_table(predictions, "style", rows=others if domain == "object" else None)
    thing = concept_table(predictions, "object", rows=others if domain == "style" else None)
    return style, thing


def score_tables(
    canvas: Canvas,
    style: ConceptTable,
    object: ConceptTable,
    target: str,
    *,
    method: str = "",
    seed_images: str = "include",
    cra: str = "all",
    base: tuple[ConceptTable, ConceptTable] | None = None,
    costs: Costs | None = None,
    fid: dict[str, Any] | None = None,
) -> Score:
    """The same from counts, as published result files have them. With cra="exclude_target" the tables must
    have been counted so; published ones are over all pictures.

    Raises:
        ValueError: see `score`.
    """
    _checks.choice("seed_images", seed_images, SEED_IMAGES)
    _checks.choice("cra", cra, CRA)
    domain, name = canvas.find(target)
    tables = {"style": style, "object": object}
    for what, table in tables.items():
        if table.domain != what or table.names != canvas.names(what):
            _checks.fail(
                ValueError, what, f"counts of the canvas' {what}s", f"{table.domain}: {table.names[:3]}"
            )
    ira, cra_terms = _terms(canvas, tables, domain, name, seed_images)
    own = tables[domain]
    delta = None
    if base is not None:
        held = dict(zip(_DOMAINS, base, strict=True))
        old_ira, old_cra = _terms(canvas, held, domain, name, seed_images)
        delta = {
            "ua": held[domain].rate(name).value - own.rate(name).value,
            "ira": float(ira.mean() - old_ira.mean()),
            "cra": float(cra_terms.mean() - old_cra.mean()),
        }
    hit = own.rate(name)
    index = own.names.index(name)
    return Score(
        method=method, target=name, domain=domain, ua=Rate(hit.n - hit.successes, hit.n),
        ira=float(ira.mean()), cra=float(cra_terms.mean()),
        ira_interval=bootstrap_mean(ira), cra_interval=bootstrap_mean(cra_terms),
        style=dict(zip(style.names, map(float, style.shares), strict=True)),
        object=dict(zip(object.names, map(float, object.shares), strict=True)),
        chance=float(own.chance[index] / own.n[index]), seen_instead=own.seen_instead(name),
        seed_images=seed_images, cra_over=cra, delta=delta, costs=costs, fid=fid,
    )  # fmt: skip


def _terms(
    canvas: Canvas, tables: dict[str, ConceptTable], domain: str, name: str, seed_images: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares that IRA and CRA are the means of."""
    skip = canvas.photo if seed_images == "exclude" else ""
    other = "object" if domain == "style" else "style"
    own_shares, other_shares = tables[domain].shares, tables[other].shares
    own = [s for one, s in zip(tables[domain].names, own_shares, strict=True) if one not in (name, skip)]
    cross = [s for one, s in zip(tables[other].names, other_shares, strict=True) if one != skip]
    for what, terms in (("ira", own), ("cra", cross)):
        if not terms:
            _checks.fail(ValueError, what, "other concepts to average over", "none")
    return np.array(own), np.array(cross)


@dataclass(frozen=True)
class Summary:
    """Means over targets of one method and domain, each with its 95 % bootstrap interval over targets; the
    rows of the published table. costs: means (memory: the most); None where a target has none."""

    method: str
    domain: str
    n: int
    ua: float
    ira: float
    cra: float
    ua_interval: tuple[float, float]
    ira_interval: tuple[float, float]
    cra_interval: tuple[float, float]
    fid: dict[str, Any] | None = None
    costs: Costs | None = None


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """One row for each method and domain, in the order of their first scores.

    Raises:
        ValueError: no score, a target twice, conventions or FIDs that differ within a row.
    """
    if not scores:
        _checks.fail(ValueError, "scores", "at least one", "none")
    groups: dict[tuple[str, str], list[Score]] = {}
    for one in scores:
        groups.setdefault((one.method, one.domain), []).append(one)
    return [_summary(method, domain, group) for (method, domain), group in groups.items()]


def _summary(method: str, domain: str, group: list[Score]) -> Summary:
    targets = [one.target for one in group]
    if len(set(targets)) != len(targets):
        _checks.fail(ValueError, "scores", f"each target of {method!r} once", ", ".join(targets))
    kinds = {(one.seed_images, one.cra_over) for one in group}
    if len(kinds) > 1:
        _checks.fail(ValueError, "scores", "one convention", sorted(kinds))
    columns = [np.array(values) for values in zip(*((s.ua.value, s.ira, s.cra) for s in group), strict=True)]
    means = [float(values.mean()) for values in columns]
    intervals = [bootstrap_mean(values) for values in columns]
    return Summary(method, domain, len(group), *means, *intervals, _mean_fid(group), _mean_costs(group))


def _mean_fid(group: list[Score]) -> dict[str, Any] | None:
    found = [one.fid for one in group if one.fid is not None]
    if len(found) != len(group):
        return None
    if len({one["name"] for one in found}) > 1:
        _checks.fail(ValueError, "scores", "one FID", sorted({one["name"] for one in found}))
    value = float(np.mean([one["value"] for one in found]))
    return {"name": found[0]["name"], "value": value, "n": min(one["n"] for one in found)}


def _mean_costs(group: list[Score]) -> Costs | None:
    found = [one.costs for one in group if one.costs is not None]
    if len(found) != len(group):
        return None
    return Costs(
        float(np.mean([one.seconds for one in found])),
        max(one.peak_bytes for one in found),
        round(float(np.mean([one.storage_bytes for one in found]))),
    )


def score_matrix(scores: Sequence[Score]) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """(targets, concepts, float64 [targets, concepts]): C of every concept, styles first, for each score.

    Raises:
        ValueError: no score, or of different canvases.
    """
    if not scores:
        _checks.fail(ValueError, "scores", "at least one", "none")
    concepts = [*scores[0].style, *scores[0].object]
    for one in scores:
        if [*one.style, *one.object] != concepts:
            _checks.fail(ValueError, "scores", "scores of one canvas", one.target)
    rows = [[*one.style.values(), *one.object.values()] for one in scores]
    return [one.target for one in scores], concepts, np.array(rows)
