"""Puts the figures of a benchmark run into README.md and draws the picture above them.

    tenfold bench zo --json bench.json
    python docs/update_readme.py bench.json   takes the records into docs/bench.json, writes tables, picture
    python docs/update_readme.py              writes tables and picture again from docs/bench.json
    python docs/update_readme.py --check      only says whether they are up to date (exit code 1 if not)

Records taken in replace those of the same id; the others stay, with what they were measured on. So each
family can be measured by itself:

    tenfold bench sophia logprob --json bench.json && python docs/update_readme.py bench.json

    python docs/update_readme.py --gpu DIR/gpu.json   takes a GPU's run in: docs/gpu.json, docs/gpu.md

Every figure in the README comes from here, so each one can be traced to a record that `tenfold bench` wrote;
every figure of docs/gpu.md to one of `python -m tenfold.benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RECORD = ROOT / "docs" / "bench.json"
PICTURE = ROOT / "docs" / "_static" / "bench.svg"
GPU_PAGE = ROOT / "docs" / "gpu.md"
GPU_RECORD = ROOT / "docs" / "gpu.json"
GPU_PICTURE = ROOT / "docs" / "_static" / "gpu.svg"
BEGIN, END = "<!-- benchmarks:begin (docs/update_readme.py) -->", "<!-- benchmarks:end -->"

WHAT = {
    "zo.perturb.gaussian.f32.opt125m": "perturb all weights of OPT-125M, Gaussian, float32",
    "zo.perturb.gaussian.bf16.opt125m": "the same in bfloat16",
    "zo.perturb.gaussian.f16.opt125m": "the same in float16",
    "zo.perturb.rademacher.f32.opt125m": "perturb with random signs, float32",
    "zo.perturb.rademacher.bf16.opt125m": "the same in bfloat16",
    "zo.step_passes.f32.opt125m": "all weight passes of one step, float32",
    "zo.step.f32.opt125m-b16x32": "a whole training step, batch 16 x 32 (1)",
    "zo.step.f32.opt125m-b16x32-optionhead": "the same with a two-option loss (2)",
    "zo.step.f32.opt125m-b16x32-sameforward": "the same with one forward for both (3)",
    "zo.step.f32.opt125m-b16x32-dual": "the same, weights never perturbed in memory (4)",
    "zo.momentum.f32.opt125m": "update with momentum",
    "zo.adam.f32.opt125m": "update by Adam",
    "zo.mask.random.f32.opt125m": "perturb half of the weights, random mask",
    "lowrank.perturb.r2.f32.opt125m": "perturb matrices along rank 2 (LOZO)",
    "sophia.step.f32.124m": "Sophia's step on the weights of GPT-2, float32",
    "sophia.step.bf16.124m": "the same, weights and gradients in bfloat16",
    "sophia.step.8bit.124m": "the same, states in 8 bits",
    "sophia.hessian.f32.124m": "update of the Hessian estimate",
    "sophia.legacy.f32.124m": "the step of SOUL's code",
    "logprob.sequence.f32.b4t512v50257": "log-probability of 4 sequences of 512 tokens, float32 logits",
    "logprob.sequence.bf16.b4t512v50257": "the same in bfloat16",
    "logprob.sample.f32.b4t512v50257": "draw a label for each of their tokens",
    "logprob.linear_loss.f32.n2048d768v50257": "from hidden states: loss and gradients, tokens weighed (5)",
    "logprob.linear_npo.f32.n2048d768v50257": "the same for NPO of the sequences (5)",
    "logprob.linear.f32.n2048d768v50257": "the same, whatever the loss (5)",
    "logprob.linear_frozen.f32.n2048d768v50257": "the same, unembedding frozen (5)",
    "surface.all.u8.ts512": "all surface metrics of 61 structures, 120 x 512 x 512 voxels",
    "surface.swapped.u8.ts512": "the same of a prediction whose sides are exchanged",
    "surface.edt.f32.50x313x271": "exact distance transform, float32",
    "overlap.counts.u8.ts512": "Dice counts of the 61 structures",
    "overlap.dice_ce.f32.55x28x224x224": "Dice-CE loss of 55 classes, forward and backward",
    "volume.resample_argmax.f32.55x32x96x96": "logits of 55 classes to the CT's grid, argmax",
    "volume.keep_largest.u8.60x120x512x512": "largest component of each of 60 structures",
    "mmd.mk.f32.32x64": "MMD, five kernels, two batches of 32, loss and gradients",
    "mmd.mk.f32.512x64": "the same of 512",
    "mmd.mk.f32.8192x64": "the same of 8,192 (6)",
    "mmd.cdd.f32.j15-32x32-c3": "contrastive discrepancy of 15 domains, 3 classes",
    "selection.kcenter.f32.50kx512-k500": "500 of 50,000 rows by greedy k-center, 512 wide",
    "selection.facility_location.f32.10kx64-k200": "200 of 10,000 rows by facility location, 64 wide (7)",
    "selection.nn1.f32.50kx500x2048": "nearest of 500 centres for 50,000 rows, 2,048 wide",
    "selection.nn1.bf16.50kx500x2048": "the same, 16-bit products, candidates measured again",
    "selection.kmeans.f32.50kx256-k500-it10": "k-means of 50,000 rows, 500 centres, 10 rounds",
    "selection.scores.f32.50kx1000": "seven scores of 50,000 samples, 1,000 classes",
    "selection.gradmatch.f32.4000x256-k100": "100 of 4,000 gradients by matching pursuit",
    "power.ssdt_joint.f32.1e5x64-n2": "joint transmit signals of two users, 100,000 rows of 64 subcarriers",
    "power.waterfill.f32.1e5x64": "water-filling of 100,000 rows of 64 subcarriers",
    "power.mse_waterfill.f32.1e5x64": "the same for the mean squared error, weights per subcarrier",
    "channel.noma.rayleigh.c64.4096x8x64-n2": "two users over Rayleigh fading in noise, 2.1 million samples",
    "channel.joint.rayleigh.c64.4096x8x64-n2": "the same, powers allocated on the way (8)",
    "quality.ssim.f32.32x3x256x256": "SSIM of 32 colour pictures of 256 x 256",
    "quality.ssim_backward.f32.32x3x256x256": "the same and its gradient",
    "quality.ms_ssim.f32.32x3x256x256": "MS-SSIM of them",
    "quality.ms_ssim_backward.f32.32x3x256x256": "the same and its gradient",
    "quality.psnr.f32.32x3x256x256": "PSNR of them",
    "attack.simplex.f32.r5-v49408": "five rows of CLIP's vocabulary projected onto the simplex",
    "attack.nearest_token.f32.r8-49408x768": "nearest of 49,408 tokens for eight vectors, 768 wide",
    "erase.uce.f32.sd15-32matrices": "UCE of all cross attentions of Stable Diffusion 1.5 (9)",
    "erase.saliency.f32.10m": "threshold of the largest half of 10 million gradients",
    "metrics.frechet.f64.d2048-n5000": "Fréchet distance, 2,048 dimensions, moments given",
    "metrics.frechet.f64.d2048-n500": "the same of 500 rows a side, from the rows",
}
"""Record id -> what the row says. Records not named here (sweeps, samplers) stay out of the README."""

TABLES = {
    ("zo", "lowrank"): "",
    (
        "sophia",
        "logprob",
    ): "**Second-order unlearning**: Sophia's steps, and a language model's log-probabilities.",
    ("surface", "overlap", "volume"): "**Segmentation**: metrics, losses and what comes before and after.",
    ("mmd",): "**Discrepancies between domains**: loss and gradients.",
    ("selection",): "**Data selection**: coresets and what they are chosen by.",
    (
        "power",
        "channel",
        "quality",
    ): "**Semantic communication**: power allocation, the channel, and what arrives.",
    (
        "attack",
        "erase",
        "metrics",
    ): "**Diffusion models**: attacks, erasing, and how far pictures are apart.",
}
"""Families of a table -> what stands above it. The first is also the picture's."""


def load(path: Path) -> dict[str, Any]:
    """A benchmark record whose figures may be shown.

    Raises:
        ValueError: another schema, no record that the README shows, one that did not run, or a peer that
            disagrees.
    """
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if result.get("schema") != "tenfold.bench/1":
        raise ValueError(f"{path}: expected schema 'tenfold.bench/1', got {result.get('schema')!r}")
    if not shown(result):
        raise ValueError(f"{path}: expected at least one record of {', '.join(WHAT)}, got none")
    for record in shown(result):
        if record["ms"] is None:
            raise ValueError(f"{path}: {record['id']} did not run: {record['why_missing']}")
        wrong = [peer["name"] for peer in record["peers"] if peer["ms"] is not None and not peer["agrees"]]
        if str(record.get("peak_method", "")).startswith("failed"):
            raise ValueError(f"{path}: {record['id']}: memory was not measured: {record['peak_method']}")
        if wrong:
            raise ValueError(f"{path}: {record['id']} disagrees with {', '.join(wrong)}")
    return result


def shown(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The records that the README shows, in the order of WHAT."""
    by_id = {record["id"]: record for record in result["records"]}
    return [by_id[key] for key in WHAT if key in by_id]


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The records of both, those of ``new`` in place of the same ids, each with what it was measured on.

    `run` of a record counts in `runs`, a list of {"environment", "floors"}; without it, or with 0, it is
    the environment and the floors of the whole.
    """
    found = runs_of(old) + runs_of(new)
    records = {record["id"]: record | {"run": record.get("run", 0)} for record in old["records"]}
    for record in new["records"]:
        records[record["id"]] = record | {"run": record.get("run", 0) + len(runs_of(old))}
    used = sorted({record["run"] for record in records.values()})
    runs = [found[i] for i in used]
    place = {run: i for i, run in enumerate(used)}
    for record in records.values():
        record["run"] = place[record["run"]]
    return {"schema": new["schema"], **runs[0], "runs": runs, "records": list(records.values())}


def runs_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the records were measured on: {"environment", "floors"} of each run."""
    alone = [{"environment": result["environment"], "floors": result["floors"]}]
    runs: list[dict[str, Any]] = result.get("runs", alone)
    return runs


def groups(
    result: dict[str, Any],
) -> list[tuple[tuple[str, ...], dict[str, Any], list[dict[str, Any]]]]:
    """(families, run, its records) of the tables, each run by itself."""
    found = []
    for families in TABLES:
        for i, run in enumerate(runs_of(result)):
            mine = [r for r in shown(result) if r.get("run", 0) == i and _family(r) in families]
            if mine:
                found.append((families, run, mine))
    return found


def _family(record: dict[str, Any]) -> str:
    return str(record["id"].split(".")[0])


def _zeroth(record: dict[str, Any]) -> bool:
    return _family(record) in next(iter(TABLES))


def compared(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The sides that a user could take instead: peers and torch.compile, not our own slow reference."""
    return [peer for peer in record["peers"] if peer.get("kind") != "reference" and peer["ms"] is not None]


def times(record: dict[str, Any], peer: dict[str, Any]) -> float:
    """How many times as long the peer takes."""
    return float(peer["ms"] / record["ms"])


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} MiB" if value >= 10 else f"{value:.1f} MiB"


def table(result: dict[str, Any]) -> str:
    """The benchmark section: per run one row per comparison, and how it was measured."""
    parts: list[str] = []
    for number, (families, run, records) in enumerate(groups(result)):
        again = bool(TABLES[families]) and TABLES[families] in parts
        title = "The same families, from another run:" if again else TABLES[families]
        rows = ["| | compared with | times faster | time / floor | extra memory | theirs |"]
        rows += ["|---|---|--:|--:|--:|--:|", *(row for record in records for row in _rows(record))]
        parts += [title, "\n".join(rows), _how(families, run, records, first=number == 0)]
    parts = [part for part in parts if part]
    return "\n\n".join([*parts, "The whole record is `docs/bench.json`."])


def _rows(record: dict[str, Any]) -> list[str]:
    rows = []
    floor = f"{record['ms'] / record['floor_ms']:.2f}" if record["floor_ms"] else ""
    left, right = WHAT[record["id"]], (floor, _mib(record["peak_extra_mib"]))
    for peer in compared(record):
        factor = f"**{times(record, peer):.1f}**"
        name = peer["name"]
        if name == "mezo" and "rademacher" in record["id"]:
            name = "mezo, which draws normals"
        cells = [left, name, factor, right[0], right[1], _mib(peer["peak_extra_mib"])]
        rows.append(f"| {' | '.join(cells)} |")
        left, right = "", ("", "")
    return rows


def _how(families: tuple[str, ...], run: dict[str, Any], records: list[dict[str, Any]], first: bool) -> str:
    env, rates = run["environment"], run["floors"]["rates"]
    rate = rates.get(str(env["threads"])) or next(iter(rates.values()))
    threads = "one thread" if env["threads"] == 1 else f"{env['threads']} threads"
    where = env.get("gpu", env["cpu"])
    backends = ", ".join(sorted({record["backend"] for record in records}))
    measured = [
        f"Measured by `tenfold bench` on {env['time'][:10]}: {where}, {threads},",
        f"backend {backends}, torch {env['torch']}. Time is the {env['ms_is']}.",
    ]
    if first:
        measured += [
            "Ours and the others take turns in one process on the same input, and their results are checked",
            "against ours before anything is timed (where the random numbers differ: mean, variance, size of",
            "the change).",
        ]
    notes = {
        "zo": _zeroth_notes,
        "sophia": _unlearning_notes,
        "surface": _segmentation_notes,
        "mmd": _mmd_notes,
        "selection": _selection_notes,
        "power": _power_notes,
        "attack": _diffusion_notes,
    }
    return " ".join(measured + notes[families[0]](rate))


def _zeroth_notes(rate: dict[str, Any]) -> list[str]:
    copied, drawn = rate["memory_gbps"], rate["generator_gnormals"]
    return [
        f"The floor is the longer of two: the bytes of the pass at {copied:.0f} GB/s, and",
        f"the normals at {drawn:.2f} billion a second, which is what this library's own generator gives;",
        "both are measured in the same run, so a quotient near 1 says that the pass costs no more than",
        "that, give or take the noise. `mezo`, `fzoo` and `lozo` are the expressions of those papers'",
        "own code, `torch` is their arithmetic on drawn tensors. Whole steps restore as MeZO does, by",
        "arithmetic, but in (4). (1) Both compute the language-model loss over all tokens, ours by",
        "`tenfold.ops.option_loss` without storing logits. (2) Both compute the loss over two options,",
        "ours with logits at the option positions only. (3) Both call the model's own forward and loss:",
        "the gain of the weight passes alone. (4) As (3), with `restore='dual'`, the default for models",
        "of this size: a layer makes its perturbed weights in a small buffer, and an interrupted step",
        "changes nothing.",
    ]


def _unlearning_notes(rate: dict[str, Any]) -> list[str]:
    copied, flops = rate["memory_gbps"], rate["fma_gflops"]
    return [
        f"The floor is the longer of the bytes at {copied:.0f} GB/s and the multiply-adds at {flops:.0f}",
        "GFLOP/s, both measured in the same run. `liuhong99` and `soul` are the optimizers of those",
        "authors' code, `open_unlearning` and `naive` the cross-entropy on transposed logits that",
        "open-unlearning publishes. AdamW is another update, there for its time. (5) V = 50,257, 768 wide;",
        "the floor counts the three products that loss and gradients need (two with a frozen unembedding),",
        "which both sides multiply in float32 by the same library, so the rest is what can be saved.",
    ]


def _segmentation_notes(rate: dict[str, Any]) -> list[str]:
    return [
        f"The floor is the longer of the bytes at {rate['memory_gbps']:.0f} GB/s and the multiply-adds at",
        f"{rate['fma_gflops']:.0f} GFLOP/s, both measured in the same run. Surface metrics and counts are of",
        "two models' labels of a real CT, tiled, the rest of made-up ones.",
    ]


def _mmd_notes(rate: dict[str, Any]) -> list[str]:
    return [
        f"The floor is the longer of the bytes at {rate['memory_gbps']:.0f} GB/s and the multiply-adds at",
        f"{rate['fma_gflops']:.0f} GFLOP/s, both measured in the same run. `msmda` and `tllib` are the",
        "expressions of those authors' code. (6) Others with five kernels need more memory than the",
        "machine has; those of one kernel do a fifth of the work.",
    ]


def _selection_notes(rate: dict[str, Any]) -> list[str]:
    return [
        f"The floor is the longer of the bytes at {rate['memory_gbps']:.0f} GB/s and the multiply-adds at",
        f"{rate['fma_gflops']:.0f} GFLOP/s, both measured in the same run; exact pruning can go below it.",
        "`deepcore` is the expression of that code, `numpy_blas` the loop that is usually written. (7) Lazy",
        "greedy, without the matrix of similarities; `apricot` compiled before the clock.",
    ]


def _power_notes(rate: dict[str, Any]) -> list[str]:
    return [
        f"The floor is the longest of the bytes at {rate['memory_gbps']:.0f} GB/s, the operations at",
        f"{rate['fma_gflops']:.0f} GFLOP/s and {rate['generator_gnormals']:.2f} billion normals a second,",
        "all measured in the same run. `torch_bisection` is 40 steps on the dual; `sionna`, `kaira` and",
        "`piq` are the expressions that those libraries publish, written on PyTorch; cvxpy's time is that of",
        "20 rows, times their number. (8) No library allocates inside the channel: `torch_bisection` is",
        "PyTorch's channel after 40 steps on the dual, `torch_ssdt_joint` the same after our solver.",
    ]


def _diffusion_notes(rate: dict[str, Any]) -> list[str]:
    return [
        f"The floor is the longer of the bytes at {rate['memory_gbps']:.0f} GB/s and the multiply-adds at",
        f"{rate['fma_gflops']:.0f} GFLOP/s, both measured in the same run. `torch_fidelity` and",
        "`scipy_sqrtm` are what that library and clean-fid compute, on the moments. (9) 6 prompts erased,",
        "951 kept.",
    ]


def picture(result: dict[str, Any]) -> str:
    """Bars of times(record, peer) as SVG that follows the reader's light or dark setting."""
    bars = [
        (WHAT[record["id"]] if i == 0 else "", peer["name"], times(record, peer))
        for record in shown(result)
        if _zeroth(record)
        for i, peer in enumerate(compared(record))
    ]
    left, right, row, top, width = 362, 130, 22, 66, 860
    tops, y = [], top
    for what, _, _ in bars:
        y += 8 if what else 0
        tops.append(y)
        y += row
    height = y + 40
    scale = (width - left - right) / max((value for _, _, value in bars), default=1.0)
    parts = [_HEAD.format(width=width, height=height, inner_width=width - 1, inner_height=height - 1)]
    for (what, name, value), at in zip(bars, tops, strict=True):
        long = value * scale
        kind = "compiled" if name == "torch.compile" else "bar"
        if what:
            parts.append(f'<text x="16" y="{at + 15}">{escape(_sentence(what))}</text>')
        parts.append(
            f'<rect class="{kind}" x="{left}" y="{at + 3}" width="{long:.1f}" height="{row - 6}" rx="2"/>'
        )
        parts.append(
            f'<text class="small" x="{left + long + 6:.1f}" y="{at + 15}">{value:.1f}x  {escape(name)}</text>'
        )
    unit = left + scale
    parts.append(f'<line class="ours" x1="{unit:.1f}" x2="{unit:.1f}" y1="{top}" y2="{y + 4}"/>')
    parts.append(f'<text class="small" x="{unit:.1f}" y="{y + 18}" text-anchor="middle">1x: Tenfold</text>')
    env = groups(result)[0][1]["environment"]
    threads = "1 thread" if env["threads"] == 1 else f"{env['threads']} threads"
    where = f"{env.get('gpu', env['cpu'])}, {threads}, {env['time'][:10]}"
    parts.append(f'<text class="small" x="16" y="{y + 18}">{escape(where)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
  width="{width}" height="{height}" role="img" aria-labelledby="title">
<title id="title">How many times as long as Tenfold other implementations take</title>
<style>
  rect.page {{ fill: #ffffff; stroke: #d0d7de; }} text {{ font: 13px system-ui, sans-serif; fill: #1f2328; }}
  text.small {{ font-size: 12px; fill: #59636e; }} text.head {{ font-size: 17px; font-weight: 600; }}
  rect.bar {{ fill: #2f6fb3; }} rect.compiled {{ fill: #9aa7b4; }}
  line.ours {{ stroke: #c4471f; stroke-width: 2; }}
  @media (prefers-color-scheme: dark) {{
    rect.page {{ fill: #0d1117; stroke: #30363d; }} text {{ fill: #e6edf3; }} text.small {{ fill: #9aa4af; }}
    rect.bar {{ fill: #5b9bd8; }} rect.compiled {{ fill: #68737f; }} line.ours {{ stroke: #f0845c; }}
  }}
</style>
<rect class="page" x="0.5" y="0.5" width="{inner_width}" height="{inner_height}" rx="8"/>
<text class="head" x="16" y="32">Zeroth-order fine-tuning: how many times as long others take</text>
<text class="small" x="16" y="52">published code (blue) and torch.compile (grey) over Tenfold</text>"""


def gpu_picture(path: Path) -> str:
    """Two panels over the records of docs/gpu.json, both on a logarithmic axis: time over the floor measured
    in the same run, and the time of others over ours."""
    result = json.loads(path.read_text(encoding="utf-8"))
    records = [r for r in result["parts"]["bench"]["records"] if r["ms"] is not None]
    records.sort(key=lambda r: r["id"])
    left, wide, gap, right, row, top = 300, 250, 60, 20, 15, 78
    width, height = left + 2 * wide + gap + right, top + row * len(records) + 20
    panels = ((left, 0.5, 1e4, (1, 10, 100, 1000)), (left + wide + gap, 0.1, 1e4, (0.1, 1, 10, 100, 1000)))

    def across(panel: int, value: float) -> float:
        start, low, high, _ = panels[panel]
        share = math.log(min(max(value, low), high) / low) / math.log(high / low)
        return start + wide * share

    parts = [
        _GPU_HEAD.format(
            width=width, height=height, inner_width=width - 1, inner_height=height - 1,
            gpu=escape(result["device"]["name"]), date=result["date"][:10],
            second=left + wide + gap, left=left,
        )
    ]  # fmt: skip
    for panel, (_, _, _, ticks) in enumerate(panels):
        for tick in ticks:
            x = across(panel, tick)
            kind = "ours" if tick == 1 else "grid"
            parts.append(
                f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 16}"/>'
                f'<text class="small" x="{x:.1f}" y="{top - 10}" text-anchor="middle">{tick:g}</text>'
            )
    for i, record in enumerate(records):
        y = top + row * i + row / 2
        parts.append(
            f'<text class="id" x="{left - 10}" y="{y + 3.5}" text-anchor="end">{escape(record["id"])}</text>'
        )
        if record["floor_ms"]:
            at = across(0, record["ms"] / record["floor_ms"])
            parts.append(f'<circle class="bar" cx="{at:.1f}" cy="{y}" r="3.5"/>')
        for peer in record["peers"]:
            if peer["ms"] is not None and peer["agrees"] and peer["kind"] == "peer":
                at = across(1, peer["ms"] / record["ms"])
                said = escape(f"{peer['name']}: {peer['ms'] / record['ms']:.2f}")
                parts.append(
                    f'<circle class="bar" cx="{at:.1f}" cy="{y}" r="3.5"><title>{said}</title></circle>'
                )
    return "\n".join([*parts, "</svg>"]) + "\n"


_GPU_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"
  width="{width}" height="{height}" role="img" aria-labelledby="title">
<title id="title">Times on a GPU over the floor, and of others over ours</title>
<style>
  rect.page {{ fill: #ffffff; stroke: #d0d7de; }} text {{ font: 13px system-ui, sans-serif; fill: #1f2328; }}
  text.small {{ font-size: 11px; fill: #59636e; }} text.head {{ font-size: 15px; font-weight: 600; }}
  text.id {{ font-size: 10.5px; }} circle.bar {{ fill: #2f6fb3; }} line.grid {{ stroke: #d0d7de; }}
  line.ours {{ stroke: #c4471f; stroke-width: 1.5; }}
  @media (prefers-color-scheme: dark) {{
    rect.page {{ fill: #0d1117; stroke: #30363d; }} text {{ fill: #e6edf3; }} text.small {{ fill: #9aa4af; }}
    circle.bar {{ fill: #5b9bd8; }} line.grid {{ stroke: #30363d; }} line.ours {{ stroke: #f0845c; }}
  }}
</style>
<rect class="page" x="0.5" y="0.5" width="{inner_width}" height="{inner_height}" rx="8"/>
<text class="head" x="16" y="26">{gpu}, {date}</text>
<text x="{left}" y="50">time / floor</text>
<text x="{second}" y="50">others' time / ours</text>"""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def replaced(readme: str, block: str) -> str:
    """The page with the text between the two markers exchanged. ValueError if a marker is missing."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(pattern.findall(readme)) != 1:
        raise ValueError(f"page: expected the markers {BEGIN} and {END} once, in this order")
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", readme)


def gpu_table(path: Path) -> str:
    """What `python -m tenfold.benchmarks.gpu` wrote, as the table of docs/gpu.md.

    Raises:
        ValueError: another schema, a memory check that failed, or a peer that disagrees. Tests that failed
            are named on the page.
    """
    report = _load(ROOT / "benchmarks" / "gpu_report.py")
    result = report.checked(json.loads(path.read_text(encoding="utf-8")))
    if not result["parts"].get("sanitizer", {"ok": True})["ok"]:
        raise ValueError(f"{path}: sanitizer did not end well: {report.summary(result)}")
    for record in result["parts"].get("bench", {"records": []})["records"]:
        wrong = [p["name"] for p in record["peers"] if p["ms"] is not None and not p["agrees"]]
        if wrong:
            raise ValueError(f"{path}: {record['id']} disagrees with {', '.join(wrong)}")
    return str(report.table(result))


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Put the figures of a benchmark run into README.md.")
    parser.add_argument(
        "json",
        nargs="?",
        type=Path,
        default=RECORD,
        help="what `tenfold bench --json` wrote (default: docs/bench.json)",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, say whether README and picture are up to date"
    )
    parser.add_argument("--gpu", type=Path, metavar="FILE", help="gpu.json of tenfold.benchmarks.gpu")
    options = parser.parse_args()
    result = load(options.json)
    if options.json.resolve() != RECORD and RECORD.exists():
        result = merged(load(RECORD), result)
    wanted = {README: replaced(README.read_text(encoding="utf-8"), table(result)), PICTURE: picture(result)}
    if options.json.resolve() != RECORD:
        wanted[RECORD] = json.dumps(result, indent=1) + "\n"
    gpu = options.gpu or GPU_RECORD
    if gpu.exists():
        wanted[GPU_PAGE] = replaced(GPU_PAGE.read_text(encoding="utf-8"), gpu_table(gpu))
        wanted[GPU_PICTURE] = gpu_picture(gpu)
        wanted[GPU_RECORD] = gpu.read_text(encoding="utf-8")
    elif options.gpu:
        parser.error(f"--gpu: expected a file, got {gpu}")
    stale = [
        path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if not options.check:
            _write(path, wanted[path])
        print(f"{'out of date' if options.check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
