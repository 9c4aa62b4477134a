"""Tables and numbers of an ``unlearncanvas`` run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tenfold.diffusion.canvas.files import (
    reference_results,
    table_rows,
)
from tenfold.diffusion.canvas.ranking import Ranked
from tenfold.diffusion.canvas.scores import Score, Summary
from tenfold.diffusion.unlearncanvas_figures import words
from tenfold.diffusion.unlearncanvas_run import BASE, Outcome, Single
from tenfold.runs import RunFolder

__all__ = ["mean_distances", "numbers", "write_tables"]


def write_tables(
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
