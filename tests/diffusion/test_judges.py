"""Judges behind one interface."""

import sys
import types

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL.Image")

from tenfold.diffusion.judges import Verdict, verdict_of
from tenfold.diffusion.judges.load import load_judge

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
YES = torch.tensor([True, False, True])


def bright(images):
    return images.mean((1, 2, 3)) > 0.5


def test_functions_are_judges():
    found = verdict_of(lambda images: YES, IMAGES)
    assert torch.equal(found.success, YES)
    assert bool(found.accepted.all())
    assert verdict_of(lambda images: [True, True, False], IMAGES).success.tolist() == [True, True, False]


@pytest.mark.parametrize("answer", [torch.ones(3), [1, 0, 1], [0.7, 0.2, 0.1], "yes", None, [None] * 3])
def test_answers_that_are_no_bools_are_refused(answer):
    judge = type("Stern", (), {"name": "stern", "__call__": lambda self, images: answer})()
    with pytest.raises(TypeError, match="judge stern: expected"):
        verdict_of(judge, IMAGES)


def test_answers_of_another_length_and_infinite_scores():
    with pytest.raises(ValueError, match="3 entries"):
        verdict_of(lambda images: YES[:2], IMAGES)
    broken = Verdict(YES, ("a",) * 3, torch.tensor([1.0, float("nan"), 0.0]), YES)
    with pytest.raises(ValueError, match="score: expected finite numbers"):
        verdict_of(lambda images: broken, IMAGES)
    with pytest.raises(TypeError, match="images: expected"):
        verdict_of(lambda images: YES, IMAGES[0])


def test_details_are_of_every_picture():
    broken = Verdict(YES, ("a",) * 3, torch.zeros(3), YES, ({},))
    with pytest.raises(ValueError, match="details: expected 3 entries"):
        verdict_of(lambda images: broken, IMAGES)


def test_what_the_gate_refuses_is_no_success():
    verdict = Verdict(YES, ("a",) * 3, torch.zeros(3), torch.tensor([False, True, True]))
    assert verdict_of(lambda images: verdict, IMAGES).success.tolist() == [False, False, True]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of random weights and four labels."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("classifier")
    labels = {0: "tench, Tinca tinca", 1: "vincent-van-gogh", 2: "claude-monet", 3: "church"}
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        id2label=labels,
        label2id={v: k for k, v in labels.items()},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_classifiers_by_label_and_rank(classifier):
    first = load_judge(f"classifier={classifier}", "Vincent van Gogh")
    found = verdict_of(first, IMAGES)
    ranks = [row.index("vincent-van-gogh") for row in found.details]
    assert found.success.tolist() == [rank == 0 for rank in ranks]
    assert found.label == tuple(row[0] for row in found.details)
    for k in (1, 2, 3, 4):
        judge = load_judge(f"classifier={classifier}", 1, top_k=k)
        assert verdict_of(judge, IMAGES).success.tolist() == [rank < k for rank in ranks]
    assert load_judge(f"classifier={classifier}", "tench").target == 0
    with pytest.raises(ValueError, match="target: expected a label of the classifier"):
        load_judge(f"classifier={classifier}", "picasso")
    with pytest.raises(ValueError, match="top_k"):
        load_judge(f"classifier={classifier}", 1, top_k=5)


def test_nudenet_asks_for_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ModuleNotFoundError, match="pip install nudenet"):
        load_judge("nudenet")


def test_nudenet_counts_exposed_classes_above_its_threshold(monkeypatch):
    boxes = [
        [{"class": "FACE_FEMALE", "score": 0.9}],
        [{"class": "BELLY_EXPOSED", "score": 0.47}, {"class": "BELLY_EXPOSED", "score": 0.3}],
        [{"class": "FEET_EXPOSED", "score": 0.6}, {"class": "BUTTOCKS_COVERED", "score": 0.95}],
    ]
    answers = []

    class NudeDetector:
        def detect(self, picture):
            assert picture.shape == (32, 32, 3)
            answers.append(picture)
            return boxes[(len(answers) - 1) % 3]

    monkeypatch.setitem(sys.modules, "nudenet", types.SimpleNamespace(NudeDetector=NudeDetector))
    found = verdict_of(load_judge("nudenet"), IMAGES)
    assert found.success.tolist() == [False, True, True]
    assert found.score.tolist() == pytest.approx([0, 0.47, 0.6])
    assert found.label == ("none", "BELLY_EXPOSED", "FEET_EXPOSED")
    strict = load_judge("nudenet", threshold_mode="reference")
    assert verdict_of(strict, IMAGES).success.tolist() == [False, False, True]
    red = (IMAGES[0, 0] * 255).round().byte()
    assert torch.equal(torch.from_numpy(answers[0][:, :, 2].copy()), red)  # BGR


def test_q16_is_the_nearer_text(tmp_path):
    from safetensors.torch import save_file
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=12,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path)
    texts = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    verdicts = []
    for name, tensor in (("a", texts), ("b", texts.flip(0).contiguous())):
        save_file({"texts": tensor}, tmp_path / f"{name}.safetensors")
        judge = load_judge(f"q16={tmp_path}", prompts=tmp_path / f"{name}.safetensors")
        verdicts.append(verdict_of(judge, IMAGES))
    assert torch.equal(verdicts[0].success, ~verdicts[1].success)
    torch.testing.assert_close(verdicts[0].score, -verdicts[1].score)
    assert torch.equal(verdicts[0].success, verdicts[0].score > 0)
    with pytest.raises(ValueError, match="prompts: expected a safetensors file"):
        load_judge(f"q16={tmp_path}", prompts=tmp_path / "prompts.p")


def test_judges_by_module_and_name(monkeypatch):
    class Over:
        def __init__(self, target, level=0.5):
            self.name, self.level = f"over-{target}", level

        def __call__(self, images):
            return images.mean((1, 2, 3)) > self.level

    module = types.ModuleType("my_judges")
    module.bright, module.Over, module.number = bright, Over, 3
    monkeypatch.setitem(sys.modules, "my_judges", module)
    assert load_judge("my_judges:bright") is bright
    assert load_judge("my_judges:Over", "sun", level=0.0).name == "over-sun"
    with pytest.raises(TypeError, match="a function or class 'number'"):
        load_judge("my_judges:number")
    with pytest.raises(ValueError, match="judge: expected 'digits'"):
        load_judge("unheard-of")
    with pytest.raises(TypeError, match=r"judge: expected 'digits'.*got int 5"):
        load_judge(5)
    with pytest.raises(ValueError, match="prompts: expected the file of Q16's learned texts, got none"):
        load_judge("q16=folder")
