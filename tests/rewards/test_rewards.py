"""Each reward: scale, order, independence of the batch; and what is no reward."""

import io
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError
from pcpo_ray.shapes.captions import parse
from pcpo_ray.shapes.draw import draw

CPU = torch.device("cpu")
TEXTS = ["a red circle above a blue square", "a small green ring", "a black star to the left of an orange cross"]
IMAGES = np.stack([draw(parse(text), seed) for seed, text in enumerate(TEXTS)])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A small random CLIP in open_clip's folder format."""
    import open_clip
    from safetensors.torch import save_file

    from pcpo_ray.commands.pretrain import clip

    folder = tmp_path_factory.mktemp("clip")
    clip.write_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    save_file({n: w.contiguous() for n, w in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def all_kinds(clip_folder):
    return [
        config.Jpeg(kind="jpeg_compressibility"),
        config.ClipScore(kind="clip_score", model=str(clip_folder)),
        config.ShapesOracle(kind="shapes_oracle"),
        config.ShapesOracle(kind="shapes_oracle_all"),
        config.ShapesOracle(kind="shapes_layout"),
        config.Grain(kind="grain"),
    ]


def test_scores_do_not_depend_on_the_batch_and_keep_its_order(clip_folder):
    for kind in all_kinds(clip_folder):
        reward = rewards.load(kind, CPU)
        together = reward.score(IMAGES, TEXTS)
        alone = [reward.score(IMAGES[n : n + 1], TEXTS[n : n + 1])[0] for n in range(3)]
        assert together == pytest.approx(alone, abs=1e-6), kind
        assert reward.score(IMAGES[::-1], TEXTS[::-1]) == pytest.approx(together[::-1], abs=1e-6), kind


def test_jpeg_is_the_files_size_in_kilobytes_of_1000():
    file = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(file, format="JPEG", quality=95)
    more = rewards.load(config.Jpeg(kind="jpeg_incompressibility"), CPU).score(IMAGES[:1], TEXTS[:1])
    less = rewards.load(config.Jpeg(kind="jpeg_compressibility"), CPU).score(IMAGES[:1], TEXTS[:1])
    assert more == [len(file.getvalue()) / 1000] == [-less[0]]


def test_clip_score_is_the_cosine_that_open_clip_gives(clip_folder):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in IMAGES]))
        words = model.encode_text(tokenizer(TEXTS))
    expected = torch.nn.functional.cosine_similarity(images, words).tolist()
    reward = rewards.load(config.ClipScore(kind="clip_score", model=str(clip_folder)), CPU)
    assert reward.score(IMAGES, TEXTS) == pytest.approx(expected, abs=1e-5)


def test_diversity_is_the_mean_distance_to_the_groups_other_images(clip_folder):
    reward = rewards.load(config.Diversity(kind="diversity", model=str(clip_folder)), CPU)
    assert reward.score_group(IMAGES[[0, 0]], "a") == pytest.approx([0, 0], abs=1e-6)
    one, two = reward.score_group(IMAGES[[1, 2]], "b")
    assert one == two > 0
    assert reward.score_group(IMAGES[[1, 2, 1]], "b") == pytest.approx([one / 2, one, one / 2], abs=1e-6)
    assert np.isnan(reward.score_group(IMAGES[:1], "c")[0])


def test_the_oracle_has_no_score_for_what_is_no_caption():
    scores = rewards.load(config.ShapesOracle(kind="shapes_oracle_all"), CPU).score(IMAGES, [*TEXTS[:2], "a cat"])
    assert list(scores[:2]) == [1, 1] and math.isnan(scores[2])


def test_the_oracle_gives_drawn_images_their_captions():
    assert rewards.load(config.ShapesOracle(kind="shapes_oracle_all"), CPU).score(IMAGES, TEXTS) == [1, 1, 1]
    wrong = rewards.load(config.ShapesOracle(kind="shapes_oracle"), CPU).score(IMAGES, TEXTS[::-1])
    assert wrong[0] < 1 > wrong[2]


def drawn(text, seed=0):
    return draw(parse(text), seed)[None]


@pytest.mark.parametrize(
    ("shown", "asked", "expected"),
    [
        ("a red circle above a blue square", "a red circle above a blue square", 1),
        ("a small red circle above a blue square", "a large red circle above a blue square", 1),
        ("a red circle above a blue star", "a green circle above a blue square", 1),
        ("a red circle below a blue square", "a red circle above a blue square", 1 / 2),
        ("a red circle to the left of a blue square", "a red circle above a blue square", 1 / 2),
        ("a red circle", "a red circle above a blue square", 0),
        ("a red circle", "a red circle and a blue square", 0),
        ("a large black star at the top", "a small red circle at the top", 1),
        ("a red circle at the bottom", "a red circle at the top", 1 / 2),
        ("a green star above a blue star", "a red circle", 0),
        ("a green star", "a red circle", 1),
    ],
)
def test_layout_is_number_and_place_whatever_stands_there(shown, asked, expected):
    reward = rewards.load(config.ShapesOracle(kind="shapes_layout"), CPU)
    for seed in range(5):
        assert reward.score(drawn(shown, seed), [asked]) == pytest.approx([expected]), seed


def test_surfaces_without_noise_have_no_grain_whatever_they_show():
    reward = rewards.load(config.Grain(kind="grain"), CPU)
    many = np.concatenate([drawn(text, seed) for text in [*TEXTS, "a large black square"] for seed in range(5)])
    assert reward.score(many, [""] * len(many)) == [0] * len(many)


@pytest.mark.parametrize("deviation", [3, 10])
def test_grain_is_the_deviation_of_noise_and_hardly_knows_what_it_lies_on(deviation):
    reward = rewards.load(config.Grain(kind="grain"), CPU)
    noise = np.random.default_rng(0).normal(0, deviation, (64, 64, 3))
    grey = np.clip(np.full((64, 64, 3), 128) + noise, 0, 255).round().astype(np.uint8)[None]
    assert reward.score(grey, [""]) == pytest.approx([deviation], rel=0.03)
    busy = np.clip(IMAGES + noise, 0, 255).round().astype(np.uint8)
    assert reward.score(busy, [""] * 3) == pytest.approx([deviation] * 3, rel=0.25)


def test_an_image_too_small_for_grain_has_no_score():
    reward = rewards.load(config.Grain(kind="grain"), CPU)
    assert np.isnan(reward.score(np.zeros((1, 2, 9, 3), np.uint8), [""])).all()


def test_a_reward_of_ones_own_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "class Redness:\n"
        "    def __init__(self, scale):\n"
        "        self.scale = scale\n"
        "    def score(self, images, prompts):\n"
        "        return self.scale * images[..., 0].mean(axis=(1, 2))\n"
        "class Silent:\n"
        "    pass\n"
        "class Narrow:\n"
        "    def score(self, images):\n"
        "        return images\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("my_rewards", None)  # other tests have a module of that name too
    mine = config.CustomReward(kind="my_rewards:Redness", options={"scale": 2})
    rewards.check(mine)
    assert rewards.load(mine, CPU).score(IMAGES, TEXTS) == pytest.approx(2 * IMAGES[..., 0].mean(axis=(1, 2)))
    for kind, options, words in [
        ("my_rewards:Silent", {}, "no reward"),
        ("my_rewards:Narrow", {}, "score"),
        ("my_rewards:Redness", {"size": 1}, "options"),
        ("my_rewards:Absent", {}, "Absent"),
        ("no_such_module:X", {}, "no_such_module"),
    ]:
        with pytest.raises(RewardError, match=words):
            rewards.check(config.CustomReward(kind=kind, options=options))


def test_clip_models_that_are_not_there_are_named(tmp_path):
    for model, weights, words in [
        ("shapes-clop", None, "shapes-clop"),
        (str(tmp_path), None, "open_clip_config"),
        ("ViT-L-14", str(tmp_path / "no.pt"), "no CLIP weights"),
    ]:
        with pytest.raises(RewardError, match=words):
            rewards.check(config.ClipScore(kind="clip_score", model=model, weights=weights))
