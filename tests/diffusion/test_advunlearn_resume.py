"""A run of advunlearn that is killed in the middle of a training goes on from the training's last state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("sklearn")

from tenfold.diffusion import tiny_bundle
from tenfold.diffusion.erase import ESD, Concept
from tenfold.diffusion.erase.keep import fit_kept, read_state, write_state

SETTINGS = {
    "erased": '["advunlearn"]', "iterations": 60, "warmup": 1, "attack_steps": 2, "bank_size": 1, "batch": 2,
    "train_steps": 3, "try_timesteps": 1, "try_iterations": 1, "tries": 1, "sample_steps": 2, "workers": 1,
    "state_every": 5,
}  # fmt: skip
WEIGHTS = "models/advunlearn-seed0/model.safetensors"
KEPT = "state/training-advunlearn-seed0.safetensors"


def command(out, *more):
    given = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    start = [sys.executable, "-c", "from tenfold.cli import main; raise SystemExit(main())"]
    return [*start, "run", "advunlearn", *given, "--out", str(out), *more]


@pytest.mark.slow
def test_killed_in_a_training_and_resumed_gives_the_same_bits(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    quiet = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run(command(whole), check=True, **quiet)
    process = subprocess.Popen(command(parts), **quiet)
    deadline = time.monotonic() + 120
    while not (parts / KEPT).exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    at = read_state(parts / KEPT)["iteration"]
    assert 0 < at < SETTINGS["iterations"]
    assert not (parts / WEIGHTS).exists()
    subprocess.run(command(parts, "--resume"), check=True, **quiet)
    assert not (parts / KEPT).exists()
    ours, theirs = load_file(parts / WEIGHTS), load_file(whole / WEIGHTS)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_training_goes_on_from_its_file_and_not_from_the_beginning(tmp_path):
    bundle, concept = tiny_bundle(0), Concept("cat", retain=("a dog",))
    method = ESD(iterations=6, steps=2, bank_size=1, train_method="text_encoder", retain_weight=1.0)
    whole = method.fit(bundle, concept, seed=3)
    states = []
    method.fit(bundle, concept, seed=3, state_every=2, on_state=states.append)
    path = tmp_path / "state.safetensors"
    write_state(path, {**states[1], "cpu_seconds": 1000.0})
    again = fit_kept(method, bundle, concept, path, seed=3, every=2)
    assert again.details["losses"] == whole.details["losses"]
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)
    assert again.details["cpu_seconds"] > 1000
    assert read_state(path)["iteration"] == 6


def test_a_state_of_another_training_is_refused(tmp_path):
    bundle = tiny_bundle(0)
    method = ESD(iterations=2, steps=2, bank_size=1, train_method="text_encoder")
    path = tmp_path / "state.safetensors"
    fit_kept(method, bundle, Concept("cat"), path, seed=0, every=1)
    with pytest.raises(ValueError, match="state: seed: expected 1, got 0"):
        fit_kept(method, bundle, Concept("cat"), path, seed=1, every=1)
    path.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="expected a safetensors file, got another file"):
        fit_kept(method, bundle, Concept("cat"), path, seed=0, every=1)
