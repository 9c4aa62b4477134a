"""Pictures that depend on nothing but model, cell and seed; files that are whole or named."""

import json
import warnings

import pytest
import torch

pytest.importorskip("diffusers")

from tenfold.diffusion.canvas.answers import answer_set, merge_answers, read_answers
from tenfold.diffusion.canvas.judging import FunctionJudge, JudgeWarning, ViTJudge, judge_answers
from tenfold.diffusion.canvas.keys import Key, answer_keys, budget_keys, cell_noise, target_keys
from tenfold.diffusion.canvas.vocabulary import UNLEARNCANVAS, Canvas
from tenfold.diffusion.erase.edit import Edit
from tenfold.diffusion.sampling import generate

CANVAS = Canvas(
    "small", ("Bricks", "Seed_Images", "Winter"), ("Cats", "Dogs", "Sea"), steps=2, guidance=3.0,
    resolution=16, seeds=(188, 288),
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tiny):
    return answer_set(tiny, CANVAS)


def test_the_same_pictures_for_any_batch_order_and_part(tiny, whole, tmp_path):
    assert whole.images.shape == (18, 3, 16, 16)
    assert whole.images.dtype == torch.uint8
    assert whole.images.float().std() > 1
    for batch in (1, 7, 64):
        assert torch.equal(answer_set(tiny, CANVAS, batch=batch).images, whole.images)
    order = [int(i) for i in torch.randperm(18, generator=torch.Generator().manual_seed(0))]
    mixed = answer_set(tiny, CANVAS, keys=[whole.keys[i] for i in order])
    assert torch.equal(mixed.images, whole.images[order])
    one = answer_set(tiny, CANVAS, cells=[("winter", "sea")], seeds=[288])
    assert torch.equal(one.images[0], whole.picture("Winter", "Sea", 288))
    for part in (1, 0):
        answer_set(tiny, CANVAS, shard=(part, 2), out=tmp_path)
    with pytest.raises(ValueError, match="one manifest"):
        read_answers(tmp_path, CANVAS)
    merged = merge_answers(tmp_path, CANVAS)
    assert merged.keys == whole.keys
    assert torch.equal(merged.pictures(range(18)), whole.images)
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["manifest.json"]


def test_noise_is_its_cells_own():
    rows = [cell_noise(CANVAS, key, (4, 8, 8)) for key in answer_keys(CANVAS)]
    assert len({tuple(row.flatten().tolist()) for row in rows}) == 18
    assert torch.stack(rows).std() == pytest.approx(1, abs=0.02)


def test_a_stopped_run_goes_on_to_the_same_pictures(tiny, whole, tmp_path):
    answer_set(tiny, CANVAS, out=tmp_path)
    gone = {
        name: (tmp_path / name).read_bytes() for name in ("Winter_Sea_seed288.png", "Bricks_Cats_seed188.png")
    }
    for name in gone:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="out: expected an empty folder, or resume=True"):
        answer_set(tiny, CANVAS, out=tmp_path)
    again = answer_set(tiny, CANVAS, out=tmp_path, resume=True)
    assert torch.equal(again.pictures(range(18)), whole.images)
    assert all((tmp_path / name).read_bytes() == held for name, held in gone.items())
    with pytest.raises(ValueError, match="answers of other settings"):
        answer_set(tiny, CANVAS, out=tmp_path, resume=True, steps=3)


def test_missing_broken_doubled_and_strange_files(tiny, whole, tmp_path):
    answers = whole.write(tmp_path)
    assert answers.extra == ()
    assert read_answers(tmp_path, CANVAS, verify=True).keys == whole.keys
    (tmp_path / "Winter_Lamp_seed1.png").write_bytes(b"")
    assert read_answers(tmp_path, CANVAS).extra == ("Winter_Lamp_seed1.png",)
    (tmp_path / "Winter_Sea_seed288.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"Winter_Sea_seed288.jpg and Winter_Sea_seed288.png"):
        read_answers(tmp_path, CANVAS)
    (tmp_path / "Winter_Sea_seed288.jpg").unlink()
    (tmp_path / "Winter_Sea_seed288.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"Winter_Sea_seed288.png: expected SHA-1"):
        read_answers(tmp_path, CANVAS, verify=True)
    with pytest.raises(ValueError, match=r"Winter_Sea_seed288.png: expected a picture"):
        judge_answers(read_answers(tmp_path, CANVAS), *judges())
    (tmp_path / "Winter_Sea_seed288.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"got 17; missing: Winter_Sea_seed288"):
        read_answers(tmp_path, CANVAS)


def test_a_published_folder_has_no_manifest(whole, tmp_path):
    whole.write(tmp_path, ending="jpg")
    (tmp_path / "manifest.json").unlink()
    read = read_answers(tmp_path, CANVAS)
    assert read.keys == whole.keys
    assert (read.pictures(range(18)).float() - whole.images.float()).abs().mean() < 8


def test_manifest(tiny, tmp_path):
    answer_set(tiny, CANVAS, method="ESD", target="winter", out=tmp_path, budget=8)
    held = json.loads((tmp_path / "manifest.json").read_text())
    settings = held["settings"]
    assert (held["method"], held["target"], len(held["keys"]), len(held["sha1"])) == ("ESD", "Winter", 8, 8)
    assert (settings["sampler"], settings["steps"], settings["guidance"]) == ("ddim", 2, 3.0)
    assert settings["prompt_template"] == "A {object} image in {style} style."
    assert len(settings["base"]["sha256"]["unet"]) == 64
    assert {"seed_scheme", "version", "settings_sha256"} <= settings.keys()
    with pytest.raises(ValueError, match="canvas: expected that of the manifest, 'small'"):
        read_answers(tmp_path, UNLEARNCANVAS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("keys"), "manifest.json: keys: expected"),
        (lambda m: m["keys"].append(["Winter", "Cats"]), "expected the canvas and keys of a manifest"),
        (lambda m: m["keys"].append(3), "expected the canvas and keys of a manifest"),
        (lambda m: m["keys"].append(["../..", "Cats", 1]), "cells of small"),
        (lambda m: m["keys"].append(["Winter", "Cats", -1]), "seed: expected an integer"),
        (lambda m: m["keys"].append(m["keys"][0]), "keys: expected each once"),
        (lambda m: m.pop("sha1"), "manifest.json: sha1: expected"),
        (lambda m: m["sha1"].update({"../../other.png": "x"}), "sha1: expected files of this folder"),
        (lambda m: m.update(canvas=[]), "manifest.json: canvas: expected"),
        (lambda m: m["canvas"].pop("seeds"), "canvas: expected that of the manifest"),
        (lambda m: m.update(settings=None), "manifest.json: settings: expected"),
        (lambda m: m.update(seconds="long"), "manifest.json: seconds: expected"),
        (lambda m: m.update(schema="other"), "a manifest of schema"),
    ],
)
def test_other_json_is_no_manifest(whole, tmp_path, change, message):
    whole.write(tmp_path)
    held = json.loads((tmp_path / "manifest.json").read_text())
    change(held)
    (tmp_path / "manifest.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path, CANVAS, verify=True)


def test_parts_that_are_none(whole, tmp_path):
    whole.write(tmp_path)
    held = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest-0of2.json").write_text(json.dumps(held | {"keys": held["keys"][::2]}))
    for other, message in (
        ("[]", "manifest-1of2.json: expected a manifest of schema"),
        (json.dumps({"schema": held["schema"], "complete": True}), "manifest-1of2.json: settings: expected"),
        (json.dumps({k: v for k, v in held.items() if k != "keys"}), "manifest-1of2.json: keys: expected"),
        (json.dumps(held), "keys: expected each once"),
    ):
        (tmp_path / "manifest-1of2.json").write_text(other)
        with pytest.raises(ValueError, match=message):
            merge_answers(tmp_path, CANVAS)


def test_an_edit_is_applied(tiny, whole):
    weight = "conv_out.bias"
    edit = Edit("weights", "unet", {weight: tiny.unet.state_dict()[weight] + 1})
    edited = answer_set(tiny, CANVAS, edit=edit, cells=[("Winter", "Sea")])
    plain = answer_set(edit.apply(tiny), CANVAS, cells=[("Winter", "Sea")])
    assert torch.equal(edited.images, plain.images)
    assert not torch.equal(edited.images[0], whole.picture("Winter", "Sea", 188))
    assert edited.about["edit"]["kind"] == "weights"
    hook = Edit("hook", "sampling", {}, {"options": {"negative": "a cat"}})
    held = answer_set(tiny, CANVAS, edit=hook, cells=[("Winter", "Sea")])
    assert not torch.equal(held.images[0], whole.picture("Winter", "Sea", 188))


def test_budgets_are_even():
    keys = budget_keys(UNLEARNCANVAS, 510, target="Van Gogh")
    assert len(keys) == len(set(keys)) == 510
    assert set(target_keys(UNLEARNCANVAS, "Van Gogh")) <= set(keys)
    counts = [sum(k.style == s for k in keys) for s in UNLEARNCANVAS.styles if s != "Van_Gogh"]
    assert max(counts) - min(counts) <= 1
    even = budget_keys(UNLEARNCANVAS, 1020)
    assert len({(k.style, k.object) for k in even}) == 1020
    assert {k.seed for k in even} == set(UNLEARNCANVAS.seeds)
    assert set(budget_keys(CANVAS, 18)) == set(answer_keys(CANVAS))
    with pytest.raises(ValueError, match="budget: expected an integer in"):
        budget_keys(UNLEARNCANVAS, 99, target="Van Gogh")


def test_arguments(tiny):
    with pytest.raises(ValueError, match="closest: Winter"):
        answer_set(tiny, CANVAS, target="Wintr")
    with pytest.raises(ValueError, match="shard: expected an integer"):
        answer_set(tiny, CANVAS, shard=(2, 2))
    with pytest.raises(ValueError, match="keys: expected None beside cells"):
        answer_set(tiny, CANVAS, cells=[("Winter", "Sea")], keys=[Key("Winter", "Sea", 1)])
    with pytest.raises(ValueError, match="cells: expected each once"):
        answer_set(tiny, CANVAS, cells=[("Winter", "Sea"), ("winter", "sea")])
    with pytest.raises(ValueError, match="latents: expected a tensor"):
        generate(tiny, ["a cat"], [0], latents=torch.zeros(1, 3, 8, 8))


def judges(bad=None, skip=()):
    """Judges that read the red or green mean; the style judge has its classes in another order, and one
    more."""

    def seen(channel, classes):
        def function(images):
            logits = torch.stack(
                [-(images[:, channel].mean((1, 2)) - c / 4).abs() for c in range(classes)], 1
            )
            if bad is not None:
                logits[bad] = float("nan")
            return logits

        return function

    styles = tuple(s for s in ("winter", "Rust", "seed images", "Bricks") if s not in skip)
    return (
        FunctionJudge("red", styles, seen(0, len(styles))),
        FunctionJudge("green", CANVAS.objects, seen(1, 3)),
    )


def test_judges_classes_are_the_canvas_whatever_their_order(whole):
    style, thing = judges()
    with pytest.warns(JudgeWarning, match="less than 80 %"):
        found = judge_answers(whole, style, thing, batch=5)
    assert found.style_classes == ("Bricks", "Seed_Images", "Winter", "Rust")
    logits = style(whole.images.float() / 255)
    names = [style.classes[i] for i in logits.argmax(1)]
    said = [found.style_classes[i] for i in found.said("style")]
    assert [n.lower().replace(" ", "_") for n in names] == [s.lower() for s in said]
    whole.target = "Winter"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = judge_answers(whole, style, thing, batch=64)
    whole.target = ""
    assert (again.style_log == found.style_log).all()


def test_judges_that_do_not_fit(whole):
    with pytest.raises(
        ValueError, match="style_judge: expected all 3 names of the canvas, got none of Winter"
    ):
        judge_answers(whole, *judges(skip=("winter",)))
    with pytest.raises(
        ValueError, match="expected finite logits, got NaN or infinity for Bricks_Sea_seed188"
    ):
        judge_answers(whole, *judges(bad=2))
    with pytest.raises(TypeError, match="a callable with `name` and `classes`"):
        judge_answers(whole, len, len)
    wrong = FunctionJudge("wrong", CANVAS.styles, lambda images: images)
    with pytest.raises(TypeError, match=r"style_judge: expected logits \[18, 3\]"):
        judge_answers(whole, wrong, judges()[1])
    with pytest.raises(ValueError, match=r"style50\.pth, a pickle"):
        ViTJudge("style50.pth")


def test_a_vit_folder_is_a_judge(tmp_path, whole):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, id2label=dict(enumerate(CANVAS.styles)),
        label2id={n: i for i, n in enumerate(CANVAS.styles)},
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    judge = ViTJudge(tmp_path / "vit")
    assert judge.classes == CANVAS.styles
    flat = torch.full((1, 3, 16, 16), 0.5)
    wanted = judge.model(pixel_values=torch.full((1, 3, 8, 8), (128 / 255 - 0.5) / 0.5)).logits
    assert torch.allclose(judge(flat), wanted, atol=1e-6)
    assert judge(whole.images.float() / 255).shape == (18, 3)
