"""The page and the files of an ``unlearncanvas`` run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.diffusion import unlearncanvas_figures as figures
from tenfold.diffusion import unlearncanvas_task_figures as tasks
from tenfold.diffusion.canvas.files import (
    reference_results,
    table_rows,
    write_matrix,
    write_published_result,
    write_results,
    write_table,
)
from tenfold.diffusion.canvas.ranking import Ranked, rank_methods
from tenfold.diffusion.canvas.scores import Score, Summary, concept_table, summarise
from tenfold.diffusion.canvas.tasks import FINER_FORMULA
from tenfold.diffusion.unlearncanvas_config import UnlearnCanvasConfig
from tenfold.diffusion.unlearncanvas_figures import words
from tenfold.diffusion.unlearncanvas_run import BASE, Outcome, Single
from tenfold.diffusion.unlearncanvas_sources import REFERENCES
from tenfold.runs import Claim, Headline, Report, RunFolder, Section, style
from tenfold.runs.files import write_json

__all__ = ["numbers", "write"]

_NOT_SD = (
    "These are numbers of a model of 2.8 million weights that draws eight photographs in eight styles, and "
    "of "
    "judges that know the same photographs: they say how erasers differ here. They are no numbers of Stable "
    "Diffusion."
)


def write(outcome: Outcome, folder: RunFolder) -> dict[str, float | int]:
    """Everything that a finished run leaves; returns its numbers."""
    scores = outcome.scores()
    summaries, ranked = summarise(scores), rank_methods(scores)
    path = folder.path
    write_results(path / "results.jsonl", [*outcome.base_scores(), *scores])
    for method in dict.fromkeys(one.method for one in scores):
        write_matrix(path / f"matrix_{method}.npz", [one for one in scores if one.method == method])
    _write_published(outcome, path)
    for ending in ("csv", "md", "tex"):
        write_table(path / f"table.{ending}", summaries)
    write_json(path / "summaries.json", [_plain_summary(one, ranked) for one in summaries])
    names = _write_tables(outcome, folder, scores, summaries, ranked)
    drawn = _write_figures(outcome, folder, scores, ranked)
    values = numbers(outcome, scores, summaries, ranked)
    folder.finish(values, _report(outcome, scores, summaries, ranked, drawn, names))
    return values


def _write_published(outcome: Outcome, path: Path) -> None:
    """Both judges' counts in the published layout, `published/{method}/{style|object}/{Target}.pth`."""
    for one in outcome.singles:
        for domain in ("style", "object"):
            write_published_result(
                path / "published" / one.method / domain / f"{one.target}.pth",
                concept_table(one.predictions, domain), target=one.target,
                input_dir=one.answers.relative_to(path).as_posix(),
            )  # fmt: skip


def _plain_summary(one: Summary, ranked: Sequence[Ranked]) -> dict[str, Any]:
    rank = next(r for r in ranked if r.method == one.method)
    return {
        "method": one.method, "domain": one.domain, "n": one.n,
        **{key: getattr(one, key) for key in ("ua", "ira", "cra")},
        **{f"{key}_interval": list(getattr(one, f"{key}_interval")) for key in ("ua", "ira", "cra")},
        "fid": one.fid,
        "costs": None if one.costs is None else vars(one.costs),
        "mean_rank": rank.mean_rank,
    }  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------------------


def _write_tables(
    outcome: Outcome,
    folder: RunFolder,
    scores: Sequence[Score],
    summaries: Sequence[Summary],
    ranked: Sequence[Ranked],
) -> list[str]:
    tables: dict[str, list[dict[str, Any]]] = {
        "methods": _methods(outcome, summaries, ranked),
        "targets": [_target_row(outcome, one) for one in scores],
        "ranks": [
            {"method": one.method, "mean rank": round(one.mean_rank, 2),
             "95 %": f"{one.interval[0]:.2f} to {one.interval[1]:.2f}",
             **{name.replace("_", " "): rank for name, rank in one.ranks.items()},
             "beaten by": ", ".join(one.beaten_by)}
            for one in ranked
        ],
        "judges": _judge_rows(outcome),
        "finer": [
            {"method": one.method, "style": words(one.style), "object": words(one.object),
             **{key.upper(): str(getattr(one, key)) for key in ("ua", "sc", "oc", "up")}}
            for one in outcome.finer
        ],
        "sequential": _sequential_rows(outcome),
        "robust": [
            {"method": method, "target": words(target), "prompts": one.post.n,
             "ASR, prompt as it is": str(one.pre), "ASR, attacked": str(one.post),
             "robust UA": str(one.robust_ua), "did not finish": one.errors,
             "s a prompt": round(one.seconds, 2)}
            for method, target, one, _ in outcome.robust
        ],
        "prompts": [
            {"method": method, "target": words(target), "prompt": prompt}
            for method, target, _, prompts in outcome.robust
            for prompt in prompts
        ],
        "paper": [
            {"method": method, **{k.replace("_", " "): v for k, v in row.items() if k != "source"},
             "source": row["source"]}
            for method, row in reference_results().items()
        ],
        "settings": _setting_rows(outcome),
        "failures": [{"what": what, "why": why} for what, why in outcome.failures],
        "transfer": [
            {"method": method, "results": next(iter(losses["overall"].values()))["n"],
             **_spread(losses["overall"])}
            for method, losses in outcome.transfer.items()
        ],
        "transfer_concepts": [
            {"method": method, "of": part.removesuffix("s"), "name": words(name), **_spread(rows)}
            for method, losses in outcome.transfer.items()
            for part in ("styles", "objects")
            for name, rows in losses[part].items()
        ],
    }  # fmt: skip
    for name, rows in tables.items():
        if rows:
            folder.write_table(name, rows)
        else:  # of a run before, that was resumed
            (folder.path / "tables" / f"{name}.csv").unlink(missing_ok=True)
    return [name for name, rows in tables.items() if rows]


def _spread(losses: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Mean and deviation of each loss."""
    found = {}
    for loss, value in losses.items():
        found[f"{loss} loss"] = float(f"{value['mean']:.5g}")
        found[f"{loss} loss, deviation"] = float(f"{value['std']:.5g}")
    return found


def _methods(
    outcome: Outcome, summaries: Sequence[Summary], ranked: Sequence[Ranked]
) -> list[dict[str, Any]]:
    place = {one.method: one.mean_rank for one in ranked}
    found = []
    for method, row in table_rows(summaries).items():
        line: dict[str, Any] = {"method": method}
        for domain in ("style", "object"):
            for key in ("ua", "ira", "cra"):
                value = row[f"{domain}_{key}"]
                line[f"{domain} {key.upper()} %"] = "" if value is None else round(value, 1)
        fid = next((one.fid["name"] for one in summaries if one.fid is not None), "")
        if row["fid"] is not None:
            line[fid] = round(row["fid"], 2)
        own = [one for one in outcome.singles if one.method == method]
        line |= {name: float(f"{value:.4g}") for name, value in mean_distances(own, ("kid", "cmmd")).values()}
        if row["seconds"] is not None:
            line["time s"] = round(row["seconds"], 2)
            line["kept KiB"] = round((row["storage_gb"] or 0) * 1e9 / 1024, 1)
        line["mean rank"] = round(place[method], 2)
        found.append(line)
    return sorted(found, key=lambda line: line["mean rank"])


def mean_distances(
    singles: Sequence[Single], kinds: Sequence[str] = ("fid", "kid", "cmmd")
) -> dict[str, tuple[str, float]]:
    """kind -> (its name, its mean over the models), of the kinds that all of them have."""
    found = {}
    for kind in kinds:
        rows = [one.distances[kind] for one in singles if kind in one.distances]
        if rows and len(rows) == len(singles):
            found[kind] = (rows[0]["name"], sum(row["value"] for row in rows) / len(rows))
    return found


def _target_row(outcome: Outcome, one: Score) -> dict[str, Any]:
    single = next(s for s in outcome.singles if (s.method, s.target) == (one.method, one.target))
    delta = one.delta or {}
    row: dict[str, Any] = {
        "method": one.method, "target": words(one.target), "domain": one.domain,
        "UA": round(one.ua.value, 3), "UA low": round(one.ua.interval[0], 3),
        "UA high": round(one.ua.interval[1], 3),
        "IRA": f"{one.ira:.3f}", "CRA": f"{one.cra:.3f}",
        "IRA against base": f"{delta.get('ira', 0):+.3f}", "CRA against base": f"{delta.get('cra', 0):+.3f}",
        "chance of target": f"{one.chance:.3f}",
    }  # fmt: skip
    for found in single.distances.values():
        row[found["name"]] = float(f"{found['value']:.4g}")
    if one.costs is not None:
        row |= {"time s": one.costs.seconds, "CPU s": single.cpu_seconds}
    return row


def _judge_rows(outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.base is not None
    rows = []
    for domain, card, name in zip(
        ("style", "object"), outcome.cards, outcome.base.predictions.judges, strict=True
    ):
        rows.append(
            {
                "domain": domain,
                "judge": name,
                "classes": len(outcome.base.predictions.classes(domain)),
                "valid for": card.trained_on if card else "not stated",
                "accuracy on held-out pictures": "" if not card or card.accuracy is None else card.accuracy,
                "accuracy on the base model's": round(outcome.base.predictions.accuracy(domain), 4),
            }
        )
    return rows


def _sequential_rows(outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    for method, found in outcome.sequential.items():
        for t, target in enumerate(found.targets):
            rows.append(
                {
                    "method": method,
                    "step": t + 1,
                    "unlearned": words(target),
                    "UA at once": round(float(found.ua[t, t]), 3),
                    "UA at the end": round(float(found.ua[t, -1]), 3),
                    "rebound": round(float(found.rebound[t]), 3),
                    "styles retained": round(float(found.ra_style[t + 1]), 3),
                    "objects retained": round(float(found.ra_object[t + 1]), 3),
                    "catastrophic": "yes" if found.catastrophic[t + 1] else "no",
                }
            )
    return rows


def _setting_rows(outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    for method in dict.fromkeys(one.method for one in outcome.singles):
        details = next(one.details for one in outcome.singles if one.method == method)
        for name, value in sorted(details.items()):
            if isinstance(value, (int, float, str, bool)) or value is None:
                rows.append({"method": method, "setting": name, "value": str(value)})
    return rows


# ---- figures ---------------------------------------------------------------------------------------------


def _write_figures(
    outcome: Outcome, folder: RunFolder, scores: Sequence[Score], ranked: Sequence[Ranked]
) -> dict[str, list[str]]:
    """Part of the page -> names of its figures."""
    with style():
        found: dict[str, dict[str, figures.Picture]] = {
            "drawn": figures.pictures(outcome),
            "matrix": figures.heat(outcome, scores),
            "methods": {"scatter": figures.scatter(outcome, scores), "radar": figures.radar(scores)},
            "ranking": {"ranking": figures.ranking(ranked)},
            "confusion": {"confusion": figures.confusion(scores)},
            "costs": {"costs": figures.costs(scores)},
        }
        if outcome.finer:
            found["finer"] = {"finer": tasks.finer(outcome)}
        if outcome.sequential:
            found["sequential"] = {"sequential": tasks.sequential(outcome)}
        if outcome.robust:
            found["robust"] = {"robust": tasks.robust(outcome)}
        if outcome.transfer:
            found["transfer"] = {"transfer": tasks.transfer(outcome)}
        for pictures in found.values():
            for name, picture in pictures.items():
                folder.write_figure(name, *picture)
    return {part: list(pictures) for part, pictures in found.items()}


# ---- numbers ---------------------------------------------------------------------------------------------


def numbers(
    outcome: Outcome, scores: Sequence[Score], summaries: Sequence[Summary], ranked: Sequence[Ranked]
) -> dict[str, float | int]:
    """Flat name -> number."""
    base = outcome.base
    assert base is not None
    found: dict[str, float | int] = {
        "targets": len(outcome.config.targets),
        "pictures": len(base.predictions),
        f"{BASE}.style": base.predictions.accuracy("style"),
        f"{BASE}.object": base.predictions.accuracy("object"),
        "doubts": len(outcome.doubts),
        "failures": len(outcome.failures),
    }
    for key, value in base.distances.items():
        found[f"{key}.{BASE}"] = value["value"]
    for one in summaries:
        for key in ("ua", "ira", "cra"):
            found[f"{one.method}.{one.domain}.{key}"] = getattr(one, key)
        own = [
            s for s in outcome.singles
            if s.method == one.method and outcome.canvas.find(s.target)[0] == one.domain
        ]  # fmt: skip
        for kind, (_, mean) in mean_distances(own).items():
            found[f"{kind}.{one.method}.{one.domain}"] = mean
        if one.costs is not None:
            found[f"{one.method}.{one.domain}.seconds"] = one.costs.seconds
            found[f"{one.method}.{one.domain}.storage_bytes"] = one.costs.storage_bytes
    for rank in ranked:
        found[f"{rank.method}.mean_rank"] = rank.mean_rank
    for score in scores:
        found[f"{score.method}.{score.domain}.{score.target}.ua"] = score.ua.value
    for pair in outcome.finer:
        for key in ("ua", "sc", "oc", "up"):
            found[f"finer.{pair.method}.{pair.style}.{pair.object}.{key}"] = getattr(pair, key).value
    for method, steps in outcome.sequential.items():
        found[f"sequential.{method}.last_ua"] = float(steps.ua[:, -1].mean())
        found[f"sequential.{method}.rebound"] = float(steps.rebound.max())
        found[f"sequential.{method}.retained_style"] = float(steps.ra_style[-1])
        found[f"sequential.{method}.retained_object"] = float(steps.ra_object[-1])
    for method, target, rates, _ in outcome.robust:
        found[f"robust.{method}.{target}.pre"] = rates.pre.value
        found[f"robust.{method}.{target}.post"] = rates.post.value
    for method, losses in outcome.transfer.items():
        for loss, statistics in losses["overall"].items():
            found[f"transfer.{method}.{loss}"] = statistics["mean"]
            found[f"transfer.{method}.{loss}_std"] = statistics["std"]
    return {name: value for name, value in found.items() if not math.isnan(value)}


# ---- the page --------------------------------------------------------------------------------------------


def _report(
    outcome: Outcome,
    scores: Sequence[Score],
    summaries: Sequence[Summary],
    ranked: Sequence[Ranked],
    drawn: dict[str, list[str]],
    tables: list[str],
) -> Report:
    config = outcome.config
    photos = "counts" if config.seed_images == "include" else "does not count"
    pictures = "all pictures" if config.cra == "all" else "pictures without the target"
    fid = next((one.fid["name"] for one in summaries if one.fid is not None), "")
    sections = [] if not outcome.failures else [
        Section(
            "What was not made",
            "A method without the model of one of its targets is left out of all that follows: means over "
            "other targets are no numbers to compare. The log has more; --resume tries again.",
            [], ["failures"],
        )
    ]  # fmt: skip
    sections += [
        Section("What the models draw", _warning(outcome), drawn["drawn"]),
        Section(
            "What is gone and what stays",
            "UA, unlearning accuracy, is the share of the target's pictures in which the judge no longer "
            "sees "
            "it. IRA, in-domain, and CRA, cross-domain retain accuracy, are means of the shares of all "
            "other "
            f"styles and objects. The style of photographs {photos} among those retained; CRA is over "
            f"{pictures}. Intervals are Wilson's for UA.",
            drawn["matrix"], ["methods", "targets"],
        ),
        Section(
            "Methods against each other",
            "The mean rank is over all metrics of the table that tell the methods apart, each with the same "
            "weight. It is a summary of ours; who cares for one metric should read that one. A method that "
            "erases nothing keeps everything and costs little: read UA first.",
            [*drawn["ranking"], *drawn["methods"]], ["ranks"],
        ),
        Section("What is drawn instead", "", drawn["confusion"]),
        Section(
            "What it costs",
            "Time is wall time of making one edited model, with other models being made beside it; memory is "
            "that of a GPU, and not measured on a CPU. Storage is what is kept beyond the base model."
            + (f"\n\n{fid} is the Frechet distance by features of {_featured(config)}, to {REFERENCES} "
               "pictures of each cell, those of the target left out on both sides; KID and CMMD, which do "
               "not take features for normal, are of the same ones. They are not the published FID."
               if fid else ""),
            drawn["costs"],
        ),
    ]  # fmt: skip
    if outcome.finer:
        sections.append(Section("One object in one style", FINER_FORMULA + ".", drawn["finer"], ["finer"]))
    if outcome.sequential:
        sections.append(
            Section(
                "One after another",
                "Each target is unlearned from the model that the last one left. A rebound is the best UA "
                "that "
                "a target ever had, less its last. Retained accuracy below half of the base model's is "
                "called "
                "catastrophic.",
                drawn["sequential"],
                ["sequential"],
            )
        )
    if outcome.robust:
        body = "Tokens that UnlearnDiffAtk finds are put before the target's own prompts."
        more = ["robust"] + (["prompts"] if "prompts" in tables else [])
        sections.append(Section("Under attack", body, drawn["robust"], more))
    if outcome.transfer:
        sections.append(
            Section(
                "Style transfer",
                "Stylised photographs against the data set's own stylisation of them, by feature maps of "
                f"`{config.transfer_features}`, pictures squeezed to {outcome.canvas.resolution} pixels. "
                "Losses say nothing without the network that made the features.",
                drawn["transfer"], ["transfer", "transfer_concepts"],
            )
        )  # fmt: skip
    sections.append(Section("The judges", "\n\n".join(outcome.doubts) or _validity(outcome), [], ["judges"]))
    if "settings" in tables:
        sections.append(Section("The erasers' settings", "", [], ["settings"]))
    sections.append(
        Section(
            "Beside the paper",
            "UnlearnCanvas, Stable Diffusion 1.5 fine-tuned on 50 styles and 20 objects. Its FID has another "
            "network and another resizing than the usual one. " + _warning(outcome),
            [], ["paper"],
        )
    )  # fmt: skip
    return Report(
        title=_title(outcome), lead=_lead(outcome, ranked), headlines=_headlines(outcome, summaries, ranked),
        sections=sections, claims=_claims(outcome, summaries), measured=_measured(outcome),
    )  # fmt: skip


def _featured(config: UnlearnCanvasConfig) -> str:
    return "the style judge" if config.features == "judge" else f"`{config.features}`"


def _title(outcome: Outcome) -> str:
    methods = len({one.method for one in outcome.singles})
    targets = len(outcome.config.targets)
    ways = "One way" if methods == 1 else f"{methods} ways"
    plural = "s" if targets > 1 else ""
    return f"{ways} to unlearn {targets} concept{plural}, {outcome.canvas.name} canvas"


def _warning(outcome: Outcome) -> str:
    config = outcome.config
    return _NOT_SD if (config.canvas, config.model) == ("mini", "canvas") else ""


def _validity(outcome: Outcome) -> str:
    known = [card.trained_on for card in outcome.cards if card is not None and card.trained_on]
    text = "Both judges are right on more than 80 % of what the base model draws."
    if known:
        text += f" They are valid for pictures like {known[0]}, and for no others."
    return text


def _asked(config: UnlearnCanvasConfig) -> str:
    whole = "each style with each object"
    return whole if config.budget is None else "spread evenly over styles and objects"


def _lead(outcome: Outcome, ranked: Sequence[Ranked]) -> str:
    config, base = outcome.config, outcome.base
    assert base is not None
    said = base.predictions
    listed = ", ".join(words(t) for t in config.targets[:6])
    more = f" and {len(config.targets) - 6} more" if len(config.targets) > 6 else ""
    return (
        f"Each of {listed}{more} was unlearned from {config.model} with each of "
        f"{', '.join(dict.fromkeys(one.method for one in outcome.singles))}; every edited model then drew "
        f"{len(said)} pictures, {_asked(config)}, and two judges said what they see. Before, they "
        f"named the style of {100 * said.accuracy('style'):.1f} % and the object of "
        f"{100 * said.accuracy('object'):.1f} %. First by mean rank over all metrics: {ranked[0].method}."
    )


def _headlines(outcome: Outcome, summaries: Sequence[Summary], ranked: Sequence[Ranked]) -> list[Headline]:
    tiles = []
    for one in ranked[:6]:
        own = [s for s in summaries if s.method == one.method]
        n = sum(s.n for s in own)
        ua = sum(s.n * s.ua for s in own) / n
        kept = ", ".join(
            f"{key.upper()} {100 * sum(s.n * getattr(s, key) for s in own) / n:.1f} %"
            for key in ("ira", "cra")
        )
        tiles.append(
            Headline(f"{one.method}: UA", f"{100 * ua:.1f} %", f"{kept}; mean rank {one.mean_rank:.1f}")
        )
    return tiles


def _claims(outcome: Outcome, summaries: Sequence[Summary]) -> list[Claim]:
    published = {name.lower(): row for name, row in reference_results().items()}
    claims = []
    for method in dict.fromkeys(one.method for one in summaries):
        row = published.get(method)
        if row is None:
            continue
        said, here = [], []
        for domain in ("style", "object"):
            own = next((s for s in summaries if (s.method, s.domain) == (method, domain)), None)
            if own is None or row[f"{domain}_ua"] is None:
                continue
            numbers = [row[f"{domain}_{key}"] for key in ("ua", "ira", "cra")]
            said.append(f"{domain} UA {numbers[0]:.1f}, IRA {numbers[1]:.1f}, CRA {numbers[2]:.1f} %")
            here.append(f"{domain} UA {100 * own.ua:.1f}, IRA {100 * own.ira:.1f}, CRA {100 * own.cra:.1f} %")
        if said:
            claims.append(Claim(f"{method}: {'; '.join(said)}", "; ".join(here), row["source"]))
    for method, steps in outcome.sequential.items():
        claims.append(
            Claim(
                "Unlearning one concept after another brings earlier ones back (unlearning rebound) and "
                "can ruin what is retained",
                f"{method}: largest rebound {100 * float(steps.rebound.max()):.1f} points over "
                f"{len(steps.targets)} targets; styles retained {100 * float(steps.ra_style[-1]):.1f} %, "
                "objects "
                f"{100 * float(steps.ra_object[-1]):.1f} %",
                "arXiv 2402.11846, sequential unlearning",
            )
        )
    return claims


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    budget = "all cells" if config.budget is None else f"{config.budget} pictures spread over the cells"
    return (
        f"Every model drew {budget} for the seeds {', '.join(map(str, config.seeds))}. Noise is a function "
        "of "
        "seed, style and object, so that models differ by their weights alone and a picture does not depend "
        "on "
        "its batch, on the number of processes or on an interruption. "
        f"Erasers were made with seed {config.fit_seed}; sampling: {config.sampling}. Each edited model is "
        "in "
        "`edits/`, its pictures in `answers/`, what the judges said in `judged/`; `results.jsonl`, "
        "`matrix_*.npz` and `table.csv|md|tex` hold the scores, `published/` the judges' "
        "counts as the paper's code writes them."
    )
