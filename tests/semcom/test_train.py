"""Training: it learns, repeats itself, and goes on from a state to the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tenfold.semcom.channel import Fading
from tenfold.semcom.codec import CodecSpec
from tenfold.semcom.images import load_pictures
from tenfold.semcom.link import Link
from tenfold.semcom.train import Trained, TrainSettings, train_codec

SPEC = CodecSpec(width=8, maps=2)
SETTINGS = TrainSettings(steps=24, batch=4, lr=3e-3, side=16)


def trained(pictures: Path, fading: str = "awgn", method: str = "none", **options: object) -> Trained:
    link = Link(fading=Fading(fading), method=method)  # type: ignore[arg-type]
    options.setdefault("settings", SETTINGS)
    return train_codec(SPEC, load_pictures("folder", pictures).train, link, **options)  # type: ignore[arg-type]


def test_the_loss_falls_and_a_second_training_repeats_it(pictures: Path) -> None:
    long = replace(SETTINGS, steps=120, lr=1e-2)
    a, b = trained(pictures, settings=long), trained(pictures)
    assert b.losses == trained(pictures).losses
    assert sum(a.losses[-20:]) < 0.92 * sum(a.losses[:20])
    assert not any(p.requires_grad for p in a.codec.parameters())


def test_a_training_goes_on_from_its_state(pictures: Path) -> None:
    states: list[dict[str, Tensor]] = []
    whole = trained(
        pictures, checkpoint=lambda s: states.append({k: v.clone() for k, v in s.items()}), every=10
    )
    assert [len(s["losses"]) for s in states] == [10, 20]
    # As a file gives it back: every tensor in the plain order of its axes.
    again = trained(pictures, state={k: v.contiguous() for k, v in states[0].items()})
    assert again.losses == whole.losses
    for x, y in zip(again.codec.parameters(), whole.codec.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("method", ["phase", "ssdt-sep", "ssdt-joint"])
def test_any_channel_and_allocation_may_be_trained_over(pictures: Path, method: str) -> None:
    found = trained(pictures, "rayleigh", method, settings=replace(SETTINGS, steps=120, lr=1e-2))
    assert sum(found.losses[-20:]) < 0.95 * sum(found.losses[:20])


def test_wrong_settings_are_named(pictures: Path) -> None:
    with pytest.raises(ValueError, match="power_w: expected one power for each of 3 users"):
        train_codec(replace(SPEC, users=3), load_pictures("folder", pictures).train, Link(), SETTINGS)
    with pytest.raises(ValueError, match="seed: expected an integer"):
        TrainSettings(seed=2**32)  # the seed of a step's draws would not fit
    with pytest.raises(ValueError, match="snr_db: expected the lower end first"):
        TrainSettings(snr_db=(20.0, 0.0))
