"""The wrappers that run beside packages in environments of their own: what they hand over, and GenEval's rules."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import deqa, geneval, hpsv3_scorer, http_client, serve

CPU = torch.device("cpu")
PICTURES = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)


@pytest.fixture
def package(monkeypatch):
    """Stands in for a module by name, with what it has."""

    def make(name, **members):
        module = ModuleType(name)
        for key, value in members.items():
            monkeypatch.setattr(module, key, value, raising=False)
        monkeypatch.setitem(sys.modules, name, module)

    return make


class Inferencer:
    """HPSv3's, of either argument order: the wrapper gives them by name."""

    def __init__(self, config_path=None, checkpoint_path=None, device="cuda", differentiable=False):
        assert (config_path, checkpoint_path, device, differentiable) == (None, "HPSv3.safetensors", "cpu", False)

    def reward(self, image_paths, prompts):
        assert not torch.is_grad_enabled()
        assert all(isinstance(image, Image.Image) for image in image_paths) and len(prompts) == len(image_paths) == 1
        mean = len(prompts[0]) + np.asarray(image_paths[0]).mean()
        return torch.tensor([[mean, 1000.0]], dtype=torch.float64)


def test_hpsv3_gets_image_and_prompt_by_name_and_its_mean_counts(package):
    package("hpsv3", HPSv3RewardInferencer=Inferencer)
    made = hpsv3_scorer.Scorer(checkpoint="HPSv3.safetensors", device="cpu")
    expected = [len(text) + picture.mean() for text, picture in zip(("a", "long one"), PICTURES, strict=True)]
    assert made.score(PICTURES, ["a", "long one"]) == pytest.approx(expected)


class Deqa:
    """The hub's model, whose code scores lists of images."""

    def to(self, device):
        assert device == "cpu"
        return self

    def score(self, images):
        assert [type(image) for image in images] == [Image.Image]
        return torch.tensor([np.asarray(images[0]).mean() / 64], dtype=torch.float64)


def test_deqa_scores_each_image_whatever_its_prompt(package, monkeypatch):
    asked = {}

    def load(model, **settings):
        asked.update(settings, model=model)
        return Deqa()

    package("transformers", AutoModelForCausalLM=SimpleNamespace(from_pretrained=load))
    made = deqa.Scorer(model="DeQA-Score-Mix3", device="cpu")
    assert made.score(PICTURES, ["a", "b"]) == pytest.approx(PICTURES.mean(axis=(1, 2, 3)) / 64)
    assert asked["trust_remote_code"] and asked["torch_dtype"] == torch.float32 and asked["model"] == "DeQA-Score-Mix3"


RGB = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
ASKED = [
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}]},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
    },
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]},
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}],
    },
    {
        "tag": "color_attr",
        "include": [{"class": "dog", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "blue"}],
    },
]


class Clip:
    """Tells colours by their red, green and blue."""

    def eval(self):
        return self

    def encode_text(self, texts):
        return torch.tensor([RGB.get(next(w for w in t.replace("-", " ").split() if w in geneval.COLOURS), (1, 1, 1))
                             for t in texts.words]).float()  # fmt: skip

    def encode_image(self, pixels):
        return pixels.reshape(len(pixels), 3)


class Texts:
    def __init__(self, words):
        self.words = words

    def to(self, device):
        return self


@pytest.fixture
def scorer(package, tmp_path):
    """GenEval's scorer on things that a test puts into `scene`: (name, confidence, box, colour)."""
    scene = []

    def picture():
        image = np.full((60, 100, 3), 7, np.uint8)
        for _, _, (left, top, right, bottom), colour in scene:
            image[top:bottom, left:right] = RGB[colour]
        return image

    def detect(detector, image):
        assert detector == ("config.py", "weights.pth", "cpu") and (image[..., ::-1] == picture()).all()
        masks = np.zeros((len(scene), 60, 100), np.bool_)
        for mask, (_, _, (left, top, right, bottom), _) in zip(masks, scene, strict=True):
            mask[top:bottom, left:right] = True
        found = SimpleNamespace(
            scores=torch.tensor([sure for _, sure, _, _ in scene], dtype=torch.float64),
            labels=torch.tensor([["cat", "dog"].index(name) for name, _, _, _ in scene], dtype=torch.long),
            bboxes=torch.tensor([box for _, _, box, _ in scene]).reshape(-1, 4).float(),
            masks=torch.tensor(masks),
        )
        return SimpleNamespace(pred_instances=found)

    mean = lambda image: torch.tensor(np.asarray(image).mean(axis=(0, 1))).float()  # noqa: E731
    package("mmdet")
    package("mmdet.apis", init_detector=lambda *given, device: (*given, device), inference_detector=detect)
    package(
        "open_clip",
        create_model_and_transforms=lambda *given, **more: (Clip(), None, mean),
        get_tokenizer=lambda name: Texts,
    )
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    asked = [json.dumps({**one, "prompt": one["tag"]}) for one in ASKED]
    (tmp_path / "metadata.jsonl").write_text("\n".join(asked) + "\n")
    made = geneval.Scorer(
        str(tmp_path / "metadata.jsonl"), str(tmp_path / "names.txt"), "config.py", "weights.pth", device="cpu"
    )

    def score(*things, asked):
        scene[:] = things
        return made.score(picture()[None], [asked])[0]

    return SimpleNamespace(made=made, score=score)


LEFT, MIDDLE, RIGHT, LOW = (2, 2, 22, 22), (40, 2, 60, 22), (75, 2, 95, 22), (40, 38, 60, 58)


@pytest.mark.parametrize(
    ("asked", "things", "expected"),
    [
        ("single_object", [("dog", 0.4, LEFT, "red")], 1),
        ("single_object", [("dog", 0.2, LEFT, "red")], 0),
        ("single_object", [("cat", 0.9, LEFT, "red")], 0),
        ("single_object", [], 0),
        ("single_object", [("dog", 0.4, LEFT, "red"), ("dog", 0.4, RIGHT, "red")], 1),
        ("counting", [("dog", 0.95, LEFT, "red"), ("dog", 0.95, RIGHT, "red")], 1),
        ("counting", [("dog", 0.95, LEFT, "red"), ("dog", 0.5, RIGHT, "red")], 0),
        ("counting", [("dog", 0.95, box, "red") for box in (LEFT, MIDDLE, RIGHT)], 0),
        ("colors", [("dog", 0.9, LEFT, "red")], 1),
        ("colors", [("dog", 0.9, LEFT, "green")], 0),
        ("colors", [("dog", 0.5, LEFT, "red"), ("dog", 0.9, RIGHT, "green")], 0),  # the surest one counts
        ("position", [("cat", 0.9, RIGHT, "red"), ("dog", 0.9, LEFT, "red")], 1),
        ("position", [("cat", 0.9, LEFT, "red"), ("dog", 0.9, RIGHT, "red")], 0),
        ("position", [("cat", 0.9, LOW, "red"), ("dog", 0.9, MIDDLE, "red")], 0),
        ("color_attr", [("cat", 0.9, LEFT, "blue"), ("dog", 0.9, RIGHT, "red")], 1),
        ("color_attr", [("cat", 0.9, LEFT, "red"), ("dog", 0.9, RIGHT, "blue")], 0),
    ],
)
def test_geneval_scores_1_only_if_all_that_is_asked_is_found(scorer, asked, things, expected):
    assert scorer.score(*things, asked=asked) == expected


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), {"left of", "above"}),
        ((40, 0, 50, 10), {"above"}),
        ((80, 44, 90, 54), {"right of"}),
        ((41, 41, 51, 51), set()),
    ],
)
def test_geneval_tells_where_one_object_lies_of_another(box, expected):
    mask = np.zeros((100, 100), np.bool_)
    other = geneval.Thing((40.0, 40.0, 50.0, 50.0), mask)
    assert geneval.places(geneval.Thing(tuple(map(float, box)), mask), other) == expected


def test_geneval_refuses_a_prompt_without_metadata_over_the_wire(scorer, served, monkeypatch):
    monkeypatch.setattr(http_client, "FAULTS", 1)
    made = rewards.load(config.Remote(kind="remote", url=served(serve.application(scorer.made)), patience=0.0), CPU)
    with pytest.raises(RewardError, match=r"status 500.*metadata says nothing about .*a cat"):
        made.score(PICTURES, ["a cat", "counting"])
