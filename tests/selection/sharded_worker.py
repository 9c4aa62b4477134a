"""One of several processes: selects from its part of the rows and writes what it finds.

python sharded_worker.py RANK WORLD STORE OUT
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
import torch.distributed as dist

from tenfold import ops, selection
from tenfold.selection import sharded

N = 90


def data():
    """Integers, so that sums are exact however they are split; classes of different sizes; duplicates."""
    draw = np.random.default_rng(3)
    X = draw.integers(0, 9, size=(N, 6)).astype(np.float32)
    X[40:44] = X[11]
    y = np.sort(draw.integers(0, 4, size=N) ** 2 % 5)
    logits = draw.integers(-3, 4, size=(N, 5)).astype(np.float32)
    return X, y, logits


def splits(world):
    """Row ranges of the ranks: uneven, and one of them without rows."""
    return {
        "two": np.array_split(np.arange(N), world),
        "uneven": [np.arange(13), *np.array_split(np.arange(13, N), world - 1)],
        "empty": [np.arange(0), *np.array_split(np.arange(N), world - 1)],
    }


SELECTORS = {
    "kcenter": (selection.KCenterGreedy, {}),
    "kcenter weighted": (selection.KCenterGreedy, {"weighted": True, "lookahead": 4}),
    "kcenter cosine": (selection.KCenterGreedy, {"metric": "cosine", "init": 7}),
    "kcenter random": (selection.KCenterGreedy, {"init": "random", "seed": 5}),
    "kcenter init": (selection.KCenterGreedy, {"init": [50, 3, 88]}),
    "kcenter balanced": (selection.KCenterGreedy, {"balanced": True}),
    "entropy": (selection.Entropy, {}),
    "el2n balanced": (selection.EL2N, {"balanced": "proportional"}),
    "moderate": (selection.Moderate, {}),
    "moderate balanced": (selection.Moderate, {"balanced": True}),
    "moderate few": (selection.Moderate, {"balanced": True}),
    "ssp": (selection.SSP, {"num_clusters": 4, "seed": 2}),
}


def chosen(name, rows, is_sharded):
    kind, options = SELECTORS[name]
    X, y, logits = data()
    selector = kind(sharded=is_sharded, **options).fit(X[rows], y[rows], logits=logits[rows])
    found = selector.select(3 if name == "moderate few" else 21)
    parts = {"indices": found.indices, "scores": found.scores}
    if found.gains is not None:
        parts["gains"] = found.gains
    if found.weights is not None:
        parts["weights"] = found.weights
    return parts


def functions(rows, group):
    """What the functions find, with `group` None in one process."""
    X, y, logits = data()
    start = X[[0, 30, 60, 89]]
    empty = np.concatenate([start, np.full((2, 6), 500, np.float32)])  # two clusters that no row is near to
    many = group is not None
    kmeans = sharded.kmeans if many else ops.kmeans
    found = {}
    for name, clusters, init in (
        ("kmeans", 4, start),
        ("kmeans empty", 6, empty),
        ("kmeans++", 5, "k-means++"),
    ):
        result = kmeans(X[rows], clusters, init=init, iterations=6, seed=1)
        found |= {f"{name} centers": result.centers, f"{name} labels": result.labels}
        found[f"{name} counts"] = result.counts
        found[f"{name} facts"] = np.array([result.inertia, result.iterations, result.moved])
    tolerant = kmeans(X[rows], 4, init=start, iterations=50, tol=0.05)
    found["kmeans tol facts"] = np.array([tolerant.iterations])
    votes = (sharded if many else ops).class_vote(
        logits[rows], 5, target_labels=y[rows], num_target_classes=5
    )
    found |= {"votes": votes.histogram, "vote matrix": votes.matrix}
    medians = (sharded if many else ops).class_median_distance(X[rows], y[rows], 5)
    found |= {"medians": medians.medians, "median labels": medians.distances}
    if many:
        found["topk"] = sharded.topk(logits[rows, 0], 17)
    else:
        found["topk"] = ops.topk_stable(logits[rows, 0], 17)
    return {name: np.asarray(value) for name, value in found.items()}


def history(world):
    """Logits of each epoch, labels, and the rows that each rank sees (one sample twice, as samplers pad)."""
    draw = torch.Generator().manual_seed(1)
    z, y = torch.randn(5, 31, 3, generator=draw), torch.randint(0, 3, (31,), generator=draw)
    orders = [torch.randperm(31, generator=draw) for _ in range(5)]
    padded = [torch.cat([order, order[: -31 % world]]) for order in orders]
    return z, y, [[order[r::world] for r in range(world)] for order in padded]


def recorded(rank, world):
    logits_of, labels, orders = history(world)
    recorder = selection.Recorder(31)
    for logits, rows in zip(logits_of, orders, strict=True):
        mine = rows[rank]
        recorder.update(mine, logits[mine], labels[mine])
        recorder.sync()
    return {f"run {name}": value.numpy() for name, value in recorder.state_dict().items()}


def refused(rows):
    """Messages of what all processes refuse alike."""
    X, _y, _ = data()
    bad = X[rows].copy()
    if len(bad) and 70 in rows:
        bad[list(rows).index(70), 0] = np.nan
    calls = {
        "nan": lambda: sharded.kcenter_greedy(bad, 3),
        "budget": lambda: selection.KCenterGreedy(sharded=True).fit(X[rows]).select(N + 1),
        "method": lambda: selection.Herding(sharded=True).fit(X[rows]).select(3),
        "clusters": lambda: selection.SSP(sharded=True).fit(X[rows]).select(3),
    }
    return {name: message(call) for name, call in calls.items()}


def message(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def main() -> None:
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {}
    for split, parts in splits(world).items():
        rows = parts[rank]
        for name in SELECTORS:
            found[split, name] = chosen(name, rows, True)
        found[split, "functions"] = functions(rows, dist.group.WORLD)
        found[split, "rows"] = rows
        found[split, "refused"] = refused(rows)
    found["recorder"] = recorded(rank, world)
    torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
