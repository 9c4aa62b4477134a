"""Tables, pictures and the page of a ``segrap`` run."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.runs import Claim, Headline, Report, RunFolder, Section
from tenfold.runs.files import write_json
from tenfold.segmentation import tables
from tenfold.segmentation.cases import Row, load_pair
from tenfold.segmentation.evaluate import Evaluation
from tenfold.segmentation.figures import bland_altman
from tenfold.segmentation.files import read_header, read_labels, read_volume, upright
from tenfold.segmentation.overlays import SOFT_TISSUE, Overlay, overlays, shades
from tenfold.segmentation.rank_report import RankingPieces, write_ranking
from tenfold.segmentation.rank_tables import worst_scores
from tenfold.segmentation.ranking import Scheme
from tenfold.segmentation.scores import ScoreTable
from tenfold.segmentation.segrap import Source, read_cohorts
from tenfold.segmentation.segrap_config import SegrapConfig
from tenfold.segmentation.segrap_paper import MIRRORING, RANGES, published

__all__ = ["write"]

RANKED = ("dsc", "nsd_dm")
"""The metrics that teams are ranked by, as the challenge does."""


def write(
    config: SegrapConfig, source: Source, found: Evaluation, folder: RunFolder
) -> dict[str, float | int]:
    """Everything that the run leaves; returns the numbers of metrics.json."""
    folder.log("tables and pictures")
    table = score_table(found, read_cohorts(config.cohorts))
    _write_tables(found, folder)
    scheme = Scheme("segrap", ties=config.ties, na="drop", statistical=config.statistical)
    pieces = write_ranking(
        folder, table, scheme, samples=config.bootstrap, seed=config.seed, title=found.task.title
    )
    best = pieces.ranking.teams[int(pieces.ranking.order[0])]
    ordered = [pieces.ranking.teams[int(t)] for t in pieces.ranking.order]
    names = _write_teams(source, found, ordered, folder)
    sections = [_teams_section(source, names), pieces.sections[0]]
    sections += _worst_section(source, found, table, best, folder)
    sections += _sides_section(source, found, folder)
    sections += pieces.sections[1:]
    sections += _volumes_section(found, best, folder)
    sections += _training_section(folder)
    sections += _definitions_section(found, best, folder)
    sections += _faults_section(found, folder)
    sections += _files_section(source, found, folder)
    numbers = _numbers(found, pieces)
    report = Report(
        title=f"{source.task.title}: {_count(len(found.teams), 'team')} scored",
        lead=_lead(source, found, best), headlines=_headlines(found, pieces, best), sections=sections,
        claims=_claims(config, source, found, best), measured=_measured(config, found),
    )  # fmt: skip
    folder.finish(numbers, report)
    return numbers


def write_scores(
    config: SegrapConfig, source: Source, found: Evaluation, folder: RunFolder
) -> dict[str, float | int]:
    """The same without ranking and pictures."""
    score_table(found)  # refuses if nothing could be scored
    _write_tables(found, folder)
    best = max(found.teams, key=lambda team: _finite(tables.means(found, "dsc", team)))
    numbers = _counts(found)
    for team in found.teams:
        numbers |= _team_numbers(found, team)
    sections = [_teams_section(source, _write_teams(source, found, found.teams, folder))]
    sections += _faults_section(found, folder) + _files_section(source, found, folder)
    tiles = [
        Headline(f"{name}, {team}" if len(found.teams) > 1 else name, f"{value:.4f}", "mean over structures")
        for team in found.teams
        for name, value in (
            ("DSC", tables.means(found, "dsc", team)),
            ("NSD", tables.means(found, "nsd_dm", team)),
        )
    ]
    if found.flagged:
        tiles.append(Headline("Faults", len(found.faults), "named in the report; the rest was scored"))
    report = Report(
        title=f"{source.task.title}: {_count(len(found.teams), 'team')} scored",
        lead=_lead(source, found, best), headlines=tiles, sections=sections,
        claims=_claims(config, source, found, best), measured=_measured(config, found),
    )  # fmt: skip
    folder.finish(numbers, report)
    return numbers


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -1.0


def score_table(found: Evaluation, cohorts: dict[str, str] | None = None) -> ScoreTable:
    """The ranked metrics of all rows; what could not be scored is missing."""
    records = [
        {"team": row["team"], "case": row["case"], "task": row["task"], "organ": row["organ"],
         "metric": metric, "value": row.get(metric)}
        for row in found.rows
        if "no_reference" not in row["flags"]
        for metric in RANKED
    ]  # fmt: skip
    if not any(record["value"] is not None for record in records):
        first = found.faults[0] if found.faults else "no reason known"
        raise ValueError(
            f"predictions: expected at least one structure that can be scored, got none ({first})"
        )
    return ScoreTable.from_records(records, cohorts=cohorts or None)


def _write_tables(found: Evaluation, folder: RunFolder) -> None:
    folder.write_table("per_case", tables.case_rows(found))
    folder.write_table("summary", tables.summary_rows(found))
    for team in found.teams:
        end = f"-{_name(team)}" if len(found.teams) > 1 else ""
        folder.write_table(f"segrap{end}", tables.challenge_rows(found, team))
        write_json(
            folder.path / "grand_challenge" / f"metrics{end}.json", tables.grand_challenge(found, team)
        )
    tables.write_run_json(folder.path / "run.json", found)


def _name(team: str) -> str:
    """A team's name where only letters, digits, '_', '.' and '-' may stand."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", team).lstrip("_.-") or "team"


def _flagged(found: Evaluation, team: str, flag: str) -> int:
    return sum(flag in row["flags"].split() for row in found.rows if row["team"] == team)


def _write_teams(source: Source, found: Evaluation, teams: list[str], folder: RunFolder) -> list[str]:
    rows = []
    for team in teams:
        row: Row = {
            "team": team,
            "DSC": tables.means(found, "dsc", team),
            "NSD": tables.means(found, "nsd_dm", team),
        }
        row["HD95 mm"] = tables.means(found, "hd95_dm", team)
        for flag, name in (("swapped", "sides swapped"), ("missing", "missing"), ("failed", "failed")):
            if any(flag in r["flags"].split() for r in found.rows):
                row[name] = _flagged(found, team, flag)
        if source.descriptions:
            row["what it does"] = source.descriptions.get(team, "")
        rows.append({name: _blank(value) for name, value in row.items()})
    folder.write_table("teams", rows)
    return ["teams"]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _blank(value: Any) -> Any:
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def _teams_section(source: Source, names: list[str]) -> Section:
    text = (
        "Means over structures of the means over cases. NSD is the share of both surfaces that lies "
        "within the "
        "tolerance of the other (surface elements weighted by area, as the challenge defines it); HD95 "
        "is in mm, "
        "over the structures that both sides hold."
    )
    if source.task.name == "brains":
        text += (
            "\n\nNo prediction has seen its target's labels. What each has seen of the target is the "
            "outline of its "
            "grey matter, the union of all 82 structures, which atlases are laid over and predictions "
            "are cut to: "
            "that the outline is right is given, how it is divided is predicted."
        )
    return Section("What was compared", text, [], names)


def _worst_section(
    source: Source, found: Evaluation, table: ScoreTable, best: str, folder: RunFolder
) -> list[Section]:
    shown = worst_scores(table, "dsc", 6, teams=[best])
    drawn = [_panel(source, found, w.team, w.case, w.organ) for w in shown]
    panels = [panel for panel in drawn if panel is not None]
    if not panels:
        return []
    folder.write_figure("worst", *overlays(panels, margin_mm=25.0, behind=_behind(panels)))
    text = f"The structures with the lowest DSC of **{best}**, each once, on the slice that differs most."
    return [Section("Where the first team fails", text, ["worst"])]


def _panel(source: Source, found: Evaluation, team: str, case: str, organ: str) -> Overlay | None:
    job = next(j for j in found.jobs if (j.team, j.case) == (team, case))
    pair = load_pair(job, organ)
    if pair is None or not pair[0].any():
        return None
    row = next(r for r in found.rows if (r["team"], r["case"], r["organ"]) == (team, case, organ))
    note = f"DSC {row['dsc']:.2f}, NSD {row['nsd_dm']:.2f}"
    image, window = _image(source, found, case, pair[0].shape), SOFT_TISSUE
    if image is None and job.target.volume is not None and read_header(job.target.volume).channels == 1:
        image, window = shades(read_labels(job.target.volume).array), (0.0, 1.0)
    target, pred, header = pair
    (a, here), (b, _) = upright(target, header), upright(pred, header)
    behind = None if image is None else upright(image, header)[0]
    return Overlay(a, b, here.spacing, f"{case}, {organ}", note, behind, window)


def _image(source: Source, found: Evaluation, case: str, shape: tuple[int, ...]) -> NDArray[Any] | None:
    """The CT of a case, if there is one that can be read and lies on the reference's grid."""
    if case not in source.images:
        return None
    try:
        image = read_volume(source.images[case]).array
    except (ValueError, OSError) as error:
        wrong = str(error)
    else:
        if image.shape == shape:
            return image
        wrong = f"{source.images[case]}: expected shape {shape} (z, y, x), got {image.shape}"
    note = f"{case}: {wrong}; drawn without it"
    if note not in found.notes:
        found.notes.append(note)
    return None


def _behind(panels: Sequence[Overlay]) -> str:
    """What is drawn under the outlines."""
    text = "The front is up, the patient's left on the right."
    if all(panel.window == SOFT_TISSUE for panel in panels):
        return text
    return text + " Grey: the structures of the reference, where there is no image."


def _sides_section(source: Source, found: Evaluation, folder: RunFolder) -> list[Section]:
    swapped = [row for row in found.rows if "swapped" in row["flags"].split()]
    if not swapped:
        return []
    counts = {team: _flagged(found, team, "swapped") for team in found.teams}
    told = ", ".join(f"**{team}** in {count:,}" for team, count in counts.items() if count)
    text = (
        "A structure that lies where the reference has its partner of the other side is flagged: its DSC "
        "with the "
        f"partner is above 0.5 and above its own. That is so for {told} rows of {len(found.rows):,}. The "
        f"usual "
        "cause is training with mirrored images without exchanging the labels of the two sides."
    )
    seen: dict[str, Row] = {}
    for row in swapped:
        seen.setdefault(row["organ"], row)
    largest = sorted(seen.values(), key=lambda r: -r.get("ml_target", 0.0))[:3]
    drawn = [_panel(source, found, row["team"], row["case"], row["organ"]) for row in largest]
    panels = [panel for panel in drawn if panel is not None]
    if panels:
        folder.write_figure("sides", *overlays(panels, margin_mm=25.0, behind=_behind(panels)))
    return [Section("Sides exchanged", text, ["sides"] if panels else [])]


def _training_section(folder: RunFolder) -> list[Section]:
    if not (folder.path / "figures" / "training.svg").exists():
        return []
    text = (
        "The small U-Net has seen one CT and no slice of the piece that it is scored on; its teacher is the "
        "fast model, not the reference. Weights: `checkpoints/small-unet.safetensors`."
    )
    return [Section("Training of the small U-Net", text, ["training"])]


def _volumes_section(found: Evaluation, best: str, folder: RunFolder) -> list[Section]:
    rows = [
        r for r in found.rows if r["team"] == best and r.get("ml_target", 0) > 0 and r.get("ml_pred", 0) > 0
    ]
    if len(rows) < 3:
        return []
    picture = bland_altman(
        [r["ml_target"] for r in rows],
        [r["ml_pred"] for r in rows],
        title=f"Volumes of {best} against the reference",
    )
    folder.write_figure("volumes", *picture)
    bias = float(np.mean([r["rvd"] for r in rows]))
    way = "larger" if bias > 0 else "smaller"
    text = f"On average a structure of **{best}** is {abs(bias):.1%} {way} than the reference."
    return [Section("Volumes", text, ["volumes"])]


def _definitions_section(found: Evaluation, best: str, folder: RunFolder) -> list[Section]:
    if not found.options.edge:
        return []
    pairs = (
        ("nsd_dm", "nsd_edge"),
        ("hd95_dm", "hd95_edge_max"),
        ("hd95_dm", "hd95_edge_pooled"),
        ("assd_dm", "assd_edge"),
    )
    rows = []
    for area, edge in pairs:
        values = [
            (float(r[area]), float(r[edge])) for r in found.rows
            if r["team"] == best and all(math.isfinite(r.get(name, math.nan)) for name in (area, edge))
        ]  # fmt: skip
        if not values:
            continue
        a, b = np.array(values).T
        rows.append(
            {"by area": area, "mean": float(a.mean()), "by edge voxels": edge, "its mean": float(b.mean()),
             "largest difference": float(np.abs(a - b).max())}
        )  # fmt: skip
    folder.write_table("definitions", rows)
    text = (
        "The same predictions under the two definitions of a surface in use: surface elements weighted "
        "by area "
        "(the challenge, surface-distance) and edge voxels (MONAI's default, MedPy). They are different "
        "metrics; "
        "columns carry the definition in their name."
    )
    return [Section("The definition decides", text, [], ["definitions"])] if rows else []


def _faults_section(found: Evaluation, folder: RunFolder) -> list[Section]:
    rows = [{"kind": "fault", "what": fault} for fault in found.faults]
    rows += [{"kind": "note", "what": note} for note in found.notes]
    if not rows:
        return []
    folder.write_table("faults", rows)
    text = (
        f"{_count(len(found.faults), 'fault')} and {_count(len(found.notes), 'note')}; all else was scored."
    )
    return [Section("What was wrong with the files", text, [], ["faults"])]


def _files_section(source: Source, found: Evaluation, folder: RunFolder) -> list[Section]:
    listed = ["summary"]
    rows = published(found.task.name)
    if rows:
        folder.write_table("published", rows)
        listed.insert(0, "published")
    text = (
        "`tables/per_case.csv` holds every score with its convention, `tables/segrap.csv` the "
        "challenge's own table, "
        "`grand_challenge/metrics.json` the form of Grand Challenge, `run.json` tolerances, conventions "
        "and the "
        "SHA-256 of every file that was read."
    )
    return [Section("All numbers", text, [], listed)]


def _lead(source: Source, found: Evaluation, best: str) -> str:
    cases = len({row["case"] for row in found.rows})
    dsc, nsd = tables.means(found, "dsc", best), tables.means(found, "nsd_dm", best)
    text = (
        f"{source.about}: {cases} {'case' if cases == 1 else 'cases'}, {len(found.task.organs)} structures, "
        f"{len(found.rows):,} comparisons. "
    )
    text = text[0].upper() + text[1:]
    if len(found.teams) > 1:
        text += f"{best} comes first, with a mean DSC of {dsc:.3f} and a mean NSD of {nsd:.3f}."
    else:
        text += f"The mean DSC is {dsc:.3f}, the mean NSD {nsd:.3f}."
    if found.flagged:
        text += f" {len(found.faults):,} faults in the files are named below; everything else was scored."
    return text


def _headlines(found: Evaluation, pieces: RankingPieces, best: str) -> list[Headline]:
    tiles = list(pieces.headlines)
    tiles.append(Headline("DSC", f"{tables.means(found, 'dsc', best):.3f}", f"{best}, mean over structures"))
    tiles.append(
        Headline("NSD", f"{tables.means(found, 'nsd_dm', best):.3f}", "surface Dice at the tolerance")
    )
    if found.flagged:
        tiles.append(Headline("Faults", len(found.faults), "named in the report; the rest was scored"))
    return tiles


def _claims(config: SegrapConfig, source: Source, found: Evaluation, best: str) -> list[Claim]:
    claims = []
    task = found.task.name
    if task in RANGES:
        low, high = RANGES[task]
        claims.append(
            Claim(f"Mean DSC of the teams on the test cases: {low:.2%} to {high:.2%}",
                  f"{tables.means(found, 'dsc', best):.2%} ({best}, on the cases given here)",
                  "arXiv 2312.09576, abstract")
        )  # fmt: skip
    if config.embedded:
        plain, mirrored = (tables.means(found, "dsc", team) for team in ("vote-moments", "vote-mirrored"))
        claims.append(
            Claim(f"Mirroring that forgets the sides costs nnU-Net {MIRRORING['not mirrored']:.4f} - "
                  f"{MIRRORING['mirrored']:.4f} of mean DSC (task 1, fold 0)",
                  f"the same vote from mirrored atlases falls from {plain:.4f} to {mirrored:.4f}, and "
                  f"{_flagged(found, 'vote-mirrored', 'swapped')} of its rows are flagged as exchanged sides",
                  "poster of a team in the challenge's repository")
        )  # fmt: skip
    return claims


def _measured(config: SegrapConfig, found: Evaluation) -> str:
    workers = f"a dask cluster at {config.cluster}" if config.cluster else "joblib on this machine"
    return (
        "All structures of a pair of label maps are counted in one pass; surface distances are exact. "
        "Tolerances are "
        "inclusive and in mm of the reference's spacing. Where both masks are empty DSC and NSD are 1, "
        "where one is "
        f"or a prediction is missing they are 0. Cases were spread by {workers}; the memory above is that "
        f"of the main "
        f"process."
    )


def _counts(found: Evaluation) -> dict[str, float | int]:
    counts: dict[str, float | int] = {
        "rows": len(found.rows),
        "faults": len(found.faults),
        "notes": len(found.notes),
    }
    return counts | {"swapped": sum("swapped" in row["flags"].split() for row in found.rows)}


def _team_numbers(found: Evaluation, team: str) -> dict[str, float | int]:
    means = {m: tables.means(found, m, team) for m in ("dsc", "nsd_dm", "hd95_dm", "assd_dm")}
    return {f"{_name(team)}.{metric}": value for metric, value in means.items() if math.isfinite(value)}


def _numbers(found: Evaluation, pieces: RankingPieces) -> dict[str, float | int]:
    numbers = pieces.numbers | _counts(found)
    for team in found.teams:
        numbers |= _team_numbers(found, team)
        at = pieces.ranking.teams.index(team)
        numbers[f"{_name(team)}.rank"] = float(pieces.ranking.rank[at])
    return numbers
