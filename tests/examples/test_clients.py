"""The scripts of docs/examples run as they stand, without a network, and show what they say they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from child import output

FOLDER = Path(__file__).parents[2] / "docs" / "examples"
NEEDS = {
    "trainer_zo": ("transformers", "accelerate", "sklearn"),
    "accelerate_sophia": ("transformers", "accelerate", "sklearn"),
    "monai_loop": ("monai", "sklearn"),
    "lightning_zo": ("lightning", "sklearn"),
    "diffusers_erased_encoder": ("diffusers", "transformers", "sklearn"),
    "sklearn_coreset": ("sklearn",),
}
OFFLINE = """
import runpy, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise OSError(f"no network: {event} {arguments[1:]}")
sys.addaudithook(refuse)
sys.path.pop(0)
runpy.run_path(sys.argv[1], run_name="__main__")
"""

pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="not in a checkout")


def printed(name: str, folder: Path) -> str:
    """What the script prints; skipped where a library is missing that it needs."""
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"{package} is not installed (nox -s examples has it)")
    return output("-c", OFFLINE, str(FOLDER / f"{name}.py"), folder=folder, seconds=600)


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_the_page_shows_every_script_of_at_most_60_lines() -> None:
    page = (FOLDER.parent / "clients.md").read_text(encoding="utf-8")
    for name in NEEDS:
        assert len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 60, name
        assert f"```{{literalinclude}} examples/{name}.py\n" in page, name


def test_nothing_reaches_the_network(tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text("import urllib.request\nurllib.request.urlopen('http://localhost:9')\n")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no network: socket." in done.stderr


def test_a_coreset_needs_fewer_labels(tmp_path: Path) -> None:
    text = printed("sklearn_coreset", tmp_path)
    chosen, drawn = numbers(r"location (\S+),", text), numbers(r"random (\S+)", text)
    best = numbers(r"best of 20: ([\d.]+)", text)
    assert len(chosen) == len(drawn) == len(best) == 3
    assert all(one > most for one, most in zip(chosen, best, strict=True)), text
    assert chosen[0] > drawn[0] + 0.1, text


@pytest.mark.slow
def test_trainer_goes_on_without_gradients(tmp_path: Path) -> None:
    text = printed("trainer_zo", tmp_path)
    (white, grey, after), losses = numbers(r"accuracy ([\d.]+)", text), numbers(r"loss ([\d.]+),", text)
    assert "after 400 zeroth-order steps" in text
    assert white > 0.85, text
    assert grey < 0.7, text
    assert after > grey + 0.15, text
    assert losses[2] < 0.5 * losses[1], text


@pytest.mark.slow
def test_accelerate_learns_by_sophia(tmp_path: Path) -> None:
    text = printed("accelerate_sophia", tmp_path)
    losses, shares = numbers(r": ([\d.]+) nats", text), numbers(r", ([\d.]+) of the weights", text)
    assert len(losses) == 3
    assert losses[0] > losses[1] > losses[2], text
    assert losses[2] < 0.62 * losses[0], text
    assert all(0.02 < share < 0.3 for share in shares), text


@pytest.mark.slow
def test_dice_rises_in_a_loop_of_monai(tmp_path: Path) -> None:
    text = printed("monai_loop", tmp_path)
    scores = numbers(r"Dice ([\d.]+)", text)
    assert len(scores) == 4
    assert scores[0] < 0.2, text
    assert scores[3] > 0.8, text


@pytest.mark.slow
def test_lightning_trains_what_has_no_gradient(tmp_path: Path) -> None:
    text = printed("lightning_zo", tmp_path)
    assert "step 1000:" in text
    (before, after), (first, last) = numbers(r"accuracy ([\d.]+)", text), numbers(r"loss ([\d.]+)", text)
    assert before < 0.25, text
    assert after > 0.75, text
    assert last < 0.4 * first, text


@pytest.mark.slow
def test_the_erased_encoder_draws_something_else(tmp_path: Path) -> None:
    text = printed("diffusers_erased_encoder", tmp_path)
    found = {
        word: (int(before), int(after))
        for word, before, after in re.findall(r"^(\w+): (\d+) of 20 before, (\d+) after", text, re.MULTILINE)
    }
    assert found["five"][0] >= 18, text
    assert found["five"][1] <= 3, text
    assert found["six"][1] >= 17, text
