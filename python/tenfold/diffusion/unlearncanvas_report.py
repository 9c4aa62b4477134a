"""The page and the files of an ``unlearncanvas`` run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.diffusion import unlearncanvas_figures as figures
from tenfold.diffusion import unlearncanvas_task_figures as tasks
from tenfold.diffusion.canvas.files import (
    reference_results,
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
from tenfold.diffusion.unlearncanvas_run import Outcome
from tenfold.diffusion.unlearncanvas_sources import REFERENCES
from tenfold.diffusion.unlearncanvas_tables import numbers, write_tables
from tenfold.runs import Claim, Headline, Report, RunFolder, Section, style
from tenfold.runs.files import write_json

__all__ = ["write"]

_NOT_SD = (
    "These are numbers of a model of 2.8 million weights that draws eight photographs in eight styles, and "
    "of judges that know the same photographs: they say how erasers differ here. They are no numbers of "
    "Stable Diffusion."
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
    names = write_tables(outcome, folder, scores, summaries, ranked)
    drawn = _write_figures(outcome, folder, scores, ranked)
    values = numbers(outcome, scores, summaries, ranked)
    folder.finish(values, _report(outcome, summaries, ranked, drawn, names))
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


# ---- the page --------------------------------------------------------------------------------------------


def _report(
    outcome: Outcome,
    summaries: Sequence[Summary],
    ranked: Sequence[Ranked],
    drawn: dict[str, list[str]],
    tables: list[str],
) -> Report:
    sections = [
        *_failures(outcome),
        *_of_singles(outcome, summaries, drawn),
        *_of_tasks(outcome, drawn, tables),
    ]
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
        title=_title(outcome), lead=_lead(outcome, ranked), headlines=_headlines(summaries, ranked),
        sections=sections, claims=_claims(outcome, summaries), measured=_measured(outcome),
    )  # fmt: skip


def _failures(outcome: Outcome) -> list[Section]:
    return [] if not outcome.failures else [
        Section(
            "What was not made",
            "A method without the model of one of its targets is left out of all that follows: means over "
            "other targets are no numbers to compare. The log has more; --resume tries again.",
            [], ["failures"],
        )
    ]  # fmt: skip


def _of_singles(outcome: Outcome, summaries: Sequence[Summary], drawn: dict[str, list[str]]) -> list[Section]:
    """What models of one target each have drawn."""
    config = outcome.config
    photos = "counts" if config.seed_images == "include" else "does not count"
    pictures = "all pictures" if config.cra == "all" else "pictures without the target"
    fid = next((one.fid["name"] for one in summaries if one.fid is not None), "")
    return [
        Section("What the models draw", _warning(outcome), drawn["drawn"]),
        Section(
            "What is gone and what stays",
            "UA, unlearning accuracy, is the share of the target's pictures in which the judge no longer "
            "sees it. IRA, in-domain, and CRA, cross-domain retain accuracy, are means of the shares of "
            f"all other styles and objects. The style of photographs {photos} among those retained; CRA is "
            f"over {pictures}. Intervals are Wilson's for UA.",
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


def _of_tasks(outcome: Outcome, drawn: dict[str, list[str]], tables: Sequence[str]) -> list[Section]:
    """The other tasks, those that were asked for."""
    sections = []
    if outcome.finer:
        sections.append(Section("One object in one style", FINER_FORMULA + ".", drawn["finer"], ["finer"]))
    if outcome.sequential:
        sections.append(
            Section(
                "One after another",
                "Each target is unlearned from the model that the last one left. A rebound is the best UA "
                "that a target ever had, less its last. Retained accuracy below half of the base model's "
                "is called catastrophic.",
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
                f"`{outcome.config.transfer_features}`, pictures squeezed to {outcome.canvas.resolution} "
                "pixels. Losses say nothing without the network that made the features.",
                drawn["transfer"], ["transfer", "transfer_concepts"],
            )
        )  # fmt: skip
    return sections


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


def _headlines(summaries: Sequence[Summary], ranked: Sequence[Ranked]) -> list[Headline]:
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
                f"objects {100 * float(steps.ra_object[-1]):.1f} %",
                "arXiv 2402.11846, sequential unlearning",
            )
        )
    return claims


def _measured(outcome: Outcome) -> str:
    config = outcome.config
    budget = "all cells" if config.budget is None else f"{config.budget} pictures spread over the cells"
    return (
        f"Every model drew {budget} for the seeds {', '.join(map(str, config.seeds))}. Noise is a function "
        "of seed, style and object, so that models differ by their weights alone and a picture does not "
        "depend on its batch, on the number of processes or on an interruption. Erasers were made with "
        f"seed {config.fit_seed}; sampling: {config.sampling}. Each edited model is in `edits/`, its "
        "pictures in `answers/`, what the judges said in `judged/`; `results.jsonl`, `matrix_*.npz` and "
        "`table.csv|md|tex` hold the scores, `published/` the judges' counts as the paper's code writes "
        "them."
    )
