"""Names, prompts, the data set's tree, and what an import costs."""

import json
import subprocess
import sys

import pytest
import torch

from tenfold.diffusion.canvas.dataset import CanvasData, caption, parse_caption, write_tree
from tenfold.diffusion.canvas.vocabulary import OBJECTS, STYLES60, UNLEARNCANVAS, Canvas

SMALL = Canvas("small", ("Seed_Images", "Van_Gogh"), ("Architectures", "Dogs"), resolution=8)


def test_the_published_grid():
    canvas = UNLEARNCANVAS
    assert (len(canvas.styles), len(canvas.objects), len(canvas.cells), len(canvas.targets)) == (
        51,
        20,
        1020,
        70,
    )
    assert canvas.styles.index("Seed_Images") == 38
    assert list(canvas.styles) == sorted(canvas.styles)
    assert list(OBJECTS) == sorted(OBJECTS)
    assert len(STYLES60) == 60
    assert STYLES60.index("Palette_Knife") + 1 == STYLES60.index("Magic_Cube")
    assert set(canvas.styles) - {"Seed_Images"} < set(STYLES60)


def test_prompts():
    canvas = UNLEARNCANVAS
    assert canvas.prompt("van gogh", "dogs") == "A Dogs image in Van Gogh style."
    assert canvas.prompt("Seed_Images", "Dogs") == "A Dogs image in Photo style."
    assert canvas.prompt("Seed_Images", "Dogs", compat="reference") == "A Dogs image in Seed Images style."
    assert (
        canvas.prompt("Van_Gogh", "Dogs", compat="reference", method="FMN")
        == "A Dogs image in Van_Gogh style"
    )
    assert len({canvas.prompt(*cell) for cell in canvas.cells}) == 1020


@pytest.mark.parametrize("name", ["Van_Gogh", "van gogh", " VAN-GOGH ", "van_gogh"])
def test_names_in_any_spelling(name):
    assert UNLEARNCANVAS.find(name) == ("style", "Van_Gogh")


def test_unknown_names_get_the_closest():
    with pytest.raises(
        ValueError, match=r"name: expected a style or an object of unlearncanvas \(closest: Van_Gogh"
    ):
        UNLEARNCANVAS.find("Van Gog")
    with pytest.raises(ValueError, match=r"object: expected one of the objects .*closest: Jellyfish"):
        UNLEARNCANVAS.object("Jelly fish")
    with pytest.raises(TypeError, match="name: expected a style or an object"):
        UNLEARNCANVAS.find(3)


def test_canvases_that_are_none():
    with pytest.raises(ValueError, match="names: expected each once"):
        Canvas("x", ("Seed_Images", "Van_Gogh"), ("van-gogh",))
    with pytest.raises(ValueError, match="photo: expected one of"):
        Canvas("x", ("Van_Gogh",), ("Dogs",))
    with pytest.raises(ValueError, match=r"template: expected a text with \{style\}"):
        Canvas("x", ("Seed_Images",), ("Dogs",), template="A {object}")
    with pytest.raises(ValueError, match="names: expected letters"):
        Canvas("x", ("Seed_Images", "../up"), ("Dogs",))
    assert Canvas(**json.loads(json.dumps(SMALL.to_plain()))) == SMALL


def test_captions_go_round():
    assert (
        caption(SMALL, "seed images", "architectures", compat="reference")
        == "An Architectures image in photo style"
    )
    for compat in ("exact", "reference"):
        for cell in SMALL.cells:
            assert parse_caption(SMALL, caption(SMALL, *cell, compat=compat)) == cell
    with pytest.raises(ValueError, match=r"text: expected 'A \{object\}"):
        parse_caption(SMALL, "a cat")


def test_a_tree_goes_round(tmp_path):
    def images(style, thing, numbers):
        base = 100 * SMALL.styles.index(style) + 40 * SMALL.objects.index(thing)
        return torch.stack([torch.full((3, 8, 8), base + i, dtype=torch.uint8) for i in numbers])

    data = write_tree(tmp_path, SMALL, images)
    assert (len(list(data.samples("train"))), len(list(data.samples("test")))) == (72, 8)
    assert data.images("van gogh", "dogs", "test")[:, 0, 0, 0].tolist() == [159, 160]
    assert data.cell_pictures("Van_Gogh", "Dogs", 2).max() == pytest.approx(142 / 255)
    rows = [json.loads(line) for line in data.write_metadata().read_text().splitlines()]
    assert rows[0] == {
        "file_name": "Seed_Images/Architectures/1.png",
        "text": "A Architectures image in Photo style.",
    }
    data.path("Van_Gogh", "Dogs", 20).unlink()
    with pytest.raises(FileNotFoundError, match=r"Van_Gogh/Dogs/20.jpg, got no such file"):
        data.images("Van_Gogh", "Dogs", "test")
    with pytest.raises(FileNotFoundError, match="a folder for each style"):
        CanvasData(tmp_path / "Van_Gogh", SMALL)


def test_the_import_is_light_and_needs_no_torchvision():
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "import tenfold.diffusion.canvas as c\n"
        "for m in 'vocabulary keys manifest answers judging scores tasks files dataset transfer'.split():\n"
        "    __import__(f'tenfold.diffusion.canvas.{m}')\n"
        "[getattr(c, name) for name in c.__all__]\n"
        "heavy = {'diffusers', 'transformers', 'matplotlib', 'datasets', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
