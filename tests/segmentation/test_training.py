"""Preparing, training, and the two data sets that come with a command: the brains and the CT pair."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from phantom import header, label_map

from tenfold.segmentation import TASKS, Header, read_labels, write_nifti
from tenfold.segmentation.postprocess import split_sides
from tenfold.segmentation.preprocess import (
    Statistics,
    Way,
    body_box,
    crop_and_scale,
    restore,
    split_cases,
    statistics_of,
)
from tenfold.segmentation.training import Case, Plan, Store, train
from tenfold.segmentation.unet import Recipe, UNet3D, load_network, save_network

PLAIN = Statistics(0, 0, 1, -1000, 1000, 1000, -1000)


def test_statistics_are_numpys() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(-1000, 2000, (5, 6, 7)).astype(np.int16), rng.integers(0, 2, (5, 6, 7)))
             for _ in range(3)]  # fmt: skip
    inside = np.concatenate([image[label > 0] for image, label in pairs]).astype(float)
    found = statistics_of(pairs)
    assert (found.min, found.max, found.median) == (inside.min(), inside.max(), np.median(inside))
    assert (found.mean, found.std) == pytest.approx((inside.mean(), inside.std()))
    assert (found.p005, found.p995) == pytest.approx(tuple(np.percentile(inside, [0.5, 99.5])))
    with pytest.raises(ValueError, match="expected at least one voxel of foreground"):
        statistics_of([(pairs[0][0], np.zeros((5, 6, 7)))])
    with pytest.raises(ValueError, match="expected whole numbers"):
        statistics_of([(pairs[0][0] + 0.5, pairs[0][1])])


def test_the_way_back() -> None:
    head = header((8, 40, 36), (3.0, 1.0, 1.0))
    label = np.zeros(head.shape, np.uint8)
    label[2:6, 10:30, 8:28] = label_map(0, (4, 20, 20), parts=5)
    ct = np.where(np.pad(np.ones((6, 36, 32), bool), ((1, 1), (2, 2), (2, 2))), 40, -1000).astype(np.int16)
    ct[0, 0, 0] = 500  # a speck outside of the body
    channels, kept, way = crop_and_scale([ct, ct], head, [PLAIN, PLAIN], labels=label)
    assert kept is not None
    assert channels.shape == (2, 6, 36, 32)
    assert body_box(ct) == ((1, 7), (2, 38), (2, 34))
    again = Way.from_json(json.loads(json.dumps(way.to_json())))
    assert again == way
    np.testing.assert_array_equal(restore(kept, again), label)
    with pytest.raises(ValueError, match=r"labels: expected shape \(6, 36, 32\)"):
        restore(kept[1:], way)


def test_the_way_back_from_another_grid() -> None:
    head = header((10, 60, 60), (1.5, 0.5, 0.5))
    label = np.zeros(head.shape, np.uint8)
    label[2:8, 10:50, 12:44] = 1
    ct = np.full(head.shape, 40, np.int16)
    _, kept, way = crop_and_scale([ct], head, [PLAIN], labels=label)
    assert way.resampled_shape == (5, 30, 30)
    back = restore(kept, way)
    assert 2 * (back & label).sum() / (back.sum() + label.sum()) > 0.97


def test_splitting_cases() -> None:
    cases = [f"c{i:02d}" for i in range(20)]
    parts = split_cases(cases)
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [14, 2, 4]
    assert sorted(name for names in parts.values() for name in names) == cases
    assert split_cases(cases) == parts != split_cases(cases, seed=1)
    assert split_cases(["a"]) == {"train": ["a"], "valid": [], "test": []}


def test_labels_follow_the_side_they_lie_on() -> None:
    labels = np.zeros((1, 1, 8), np.uint8)
    labels[..., 1], labels[..., 6], labels[..., 4] = 10, 10, 2  # an eye's label on both sides; brain stem
    found = split_sides(labels, TASKS["1"], middle=4.0)
    assert found[0, 0].tolist() == [0, 11, 0, 0, 2, 0, 10, 0]  # low indices are the right side
    assert split_sides(labels, TASKS["1"], middle=4.0, left_low=True)[0, 0, 1] == 10


def _case(seed: int = 0) -> Case:
    label = label_map(seed, (12, 24, 24), parts=2).astype(np.int64)
    noise = np.random.default_rng(seed).normal(0, 0.2, label.shape)
    return Case((label + noise)[None].astype(np.float32), label)


RECIPE = Recipe(classes=3, channels=1, features=[4, 8], dropout=[0.0, 0.1], patch=[8, 16, 16])


def test_training_learns_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    plan = Plan(steps=24, batch=1, lr=0.02, save_every=8, foreground=0.5)
    whole, losses = train([_case()], RECIPE, plan)
    assert np.mean(losses[-4:]) < 0.6 * np.mean(losses[:4])
    kept: list[Any] = []
    store = Store(lambda: kept[-1] if kept else None, lambda data, tensors: kept.append(
        (dict(data, losses=list(data["losses"])), {n: t.clone() for n, t in tensors.items()})))  # fmt: skip

    def stop(step: int, loss: float) -> None:
        if step == 19:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train([_case()], RECIPE, plan, store=store, advance=stop)
    assert len(kept) == 2
    again, more = train([_case()], RECIPE, plan, store=store)
    assert more == losses
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    save_network(tmp_path / "net.safetensors", whole, RECIPE)
    loaded, recipe = load_network(tmp_path / "net.safetensors")
    assert recipe == RECIPE
    image = torch.from_numpy(_case().image)[None, :, :8, :16, :16]
    assert torch.equal(loaded(image), whole(image))


def test_deep_supervision_and_mirroring() -> None:
    recipe = Recipe(classes=55, channels=1, features=[4, 8, 8], dropout=[0.0] * 3, patch=[4, 8, 8])
    network = UNet3D(recipe, deep=True).train()
    outputs = network(torch.zeros(2, 1, 4, 8, 8))
    assert [tuple(o.shape[2:]) for o in outputs] == [(4, 8, 8), (2, 4, 4)]
    case = Case(np.zeros((1, 8, 16, 16), np.float32), label_map(1, (8, 16, 16)).astype(np.int64))
    plan = Plan(steps=2, batch=2, mirror=True, deep=True)
    _, losses = train([case], recipe, plan, task=TASKS["1"])
    assert np.isfinite(losses).all()
    with pytest.raises(ValueError, match="task: expected one with mirror"):
        train([case], recipe, plan)


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    for recipe, cases, said in (
        (RECIPE, [], "cases: expected at least one"),
        (RECIPE, [Case(np.zeros((2, 8, 8, 8), np.float32), np.zeros((8, 8, 8)))], r"image: expected \[1, z"),
        (RECIPE, [Case(np.zeros((1, 8, 8, 8), np.float32), np.full((8, 8, 8), 3))], "labels below 3, got 3"),
        (Recipe(classes=3, patch=[8, 9, 16]), [_case()], "patch: expected three multiples of 8"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            train(cases, recipe, Plan(steps=1))
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_network(tmp_path / "x.safetensors")
    bad = Case(np.full((1, 8, 16, 16), np.nan, np.float32), np.zeros((8, 16, 16), np.int64))
    with pytest.raises(RuntimeError, match="loss: expected a finite number at step 1"):
        train([bad], RECIPE, Plan(steps=1, batch=1))


def _archive(path: Path) -> None:
    """An archive as that of the CT pair, small: a CT of 24 slices, a piece of it, three label maps."""
    shape = (24, 32, 32)
    label = label_map(3, shape, parts=3)
    ct = (-500 + 400 * label.astype(int) + np.random.default_rng(0).integers(-20, 20, shape)).astype(np.int16)
    whole = header(shape, (3.0, 3.0, 3.0))
    corner = whole.matrix
    corner[2, 3] += 3.0 * 8
    piece = Header((10, 32, 32), whole.spacing, tuple(tuple(map(float, row)) for row in corner))
    moved = np.roll(label, 1, 2)
    for name, array, head in (
        ("example_ct", ct, whole), ("example_ct_sm", ct[8:18], piece), ("example_seg", label[8:18], piece),
        ("example_seg_fast", moved[8:18], piece), ("example_seg_fast_force_split", moved, whole),
    ):  # fmt: skip
        write_nifti(path.parent / f"{name}.nii.gz", array, head)
    table = b'class_map = {"total": {1: "kidney_left", 2: "kidney_right"}}\nraise SystemExit\n'
    with tarfile.open(path, "w:gz") as tar:
        for name in ("example_ct", "example_ct_sm", "example_seg", "example_seg_fast",
                     "example_seg_fast_force_split"):  # fmt: skip
            tar.add(path.parent / f"{name}.nii.gz", f"x-1/tests/reference_files/{name}.nii.gz")
        info = tarfile.TarInfo("x-1/totalsegmentator/map_to_binary.py")
        info.size = len(table)
        tar.addfile(info, io.BytesIO(table))


def test_the_ct_pair_with_training(tmp_path: Path) -> None:
    from tenfold.runs import RunFolder
    from tenfold.segmentation.segrap import SegrapConfig, evaluated, source_of
    from tenfold.segmentation.tables import means

    _archive(tmp_path / "x.tar.gz")
    config = SegrapConfig(archive=str(tmp_path / "x.tar.gz"), train=True, train_steps=3, workers=1).resolved()
    folder = RunFolder.create("segrap", config, tmp_path / "out")
    source = source_of(config, folder)
    assert source.task.organs == ("kidney_left", "kidney_right", "label_3")
    found = evaluated(config, folder, source)
    assert not found.flagged
    assert found.teams == ["fast model", "small U-Net"]
    assert 0.5 < means(found, "dsc", "fast model") < 1
    labelled = read_labels(tmp_path / "out" / "predictions" / "small-unet" / "example.nii.gz")
    assert labelled.array.shape == (10, 32, 32)
    assert (tmp_path / "out" / "figures" / "training.png").exists()
    _, recipe = load_network(tmp_path / "out" / "checkpoints" / "small-unet.safetensors")
    assert recipe.classes == 4
    (tmp_path / "y.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="expected a tar archive"):
        source_of(SegrapConfig(archive=str(tmp_path / "y.tar.gz")), folder)


@pytest.mark.demo
@pytest.mark.slow
def test_the_embedded_brains(tmp_path: Path) -> None:
    from tenfold.segmentation.segrap import SegrapConfig, score

    found = score(SegrapConfig(workers=2, bootstrap=100), tmp_path / "out")
    assert found.exit_code == 0
    numbers = found.metrics
    assert (numbers["teams"], numbers["cases"], numbers["organs"], numbers["rows"]) == (8, 6, 82, 3936)
    assert numbers["vote-mirrored.rank"] == 8
    assert numbers["vote-mirrored.dsc"] < 0.1 < 0.6 < numbers["vote-moments.dsc"] < numbers["vote-clean.dsc"]
    assert numbers["swapped"] > 300
    assert (tmp_path / "out" / "figures" / "sides.png").exists()


@pytest.mark.demo
def test_a_brain_from_two_others(tmp_path: Path) -> None:
    """Two atlases, one target; every predictor fills the outline and nothing else."""
    from tenfold.segmentation import brains
    from tenfold.segmentation.fusion import PREDICTORS, predict

    files = {name: str(files.volume) for name, files in list(brains.references().cases.items())[:3]}
    maps = [read_labels(path).array[::2, ::2, ::2] for path in files.values()]
    outline = maps[0] != 0
    found = predict([np.ascontiguousarray(m) for m in maps[1:]], outline)
    assert list(found) == list(PREDICTORS)
    for name, labels in found.items():
        assert ((labels != 0) == outline).all(), name
    agreed = {name: float((labels == maps[0])[outline].mean()) for name, labels in found.items()}
    assert agreed["vote-mirrored"] < 0.1 < 0.5 < agreed["one-moments"]
