"""Rewards that are networks, on small checkpoints in their authors' own formats, against independent computations."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pcpo_ray import config, rewards, shapes
from pcpo_ray.data.seeds import generator
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import clip, hps
from pcpo_ray.rewards.images import rgb
from tests.support.clips import IMAGES, TEXTS, noise

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SIZES = {"square": (40, 40), "odd": (37, 51), "portrait": (90, 31), "landscape": (31, 90), "exact": (32, 20)}


ARCHITECTURE = "small-ViT-for-tests"


@pytest.fixture(scope="module")
def hps_file(tmp_path_factory):
    """Weights as HPS_v2.1_compressed.pt holds them, of a small network of open_clip's."""
    import open_clip

    folder = tmp_path_factory.mktemp("hps")
    described = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder / f"{ARCHITECTURE}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE, load_weights=False)
    path = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": {name: weight.half() for name, weight in model.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def head_file(tmp_path_factory):
    """The aesthetic head's layers, for embeddings of shapes-clip's width."""
    sizes = {0: (1024, width()), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    state = {}
    for layer, (rows, columns) in sizes.items():
        state[f"layers.{layer}.weight"] = torch.randn(rows, columns, generator=generator(layer)) / columns**0.5
        state[f"layers.{layer}.bias"] = torch.randn(rows, generator=generator(layer, "bias"))
    path = tmp_path_factory.mktemp("head") / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(state, path)
    return path


def width():
    found = json.loads((shapes.checkpoint("shapes-clip") / "open_clip_config.json").read_text())
    return found["model_cfg"]["embed_dim"]


def kinds(clip_transformers, hps_file, head_file):
    return {
        "clip_score": config.ClipScore(kind="clip_score", model=str(clip_transformers)),
        "pickscore": config.PickScore(kind="pickscore", model=str(clip_transformers)),
        "hps": config.Hps(kind="hps_v2.1", weights=str(hps_file), architecture=ARCHITECTURE),
        "aesthetic": config.Aesthetic(kind="aesthetic", head=str(head_file), model="shapes-clip"),
    }


@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hps", "aesthetic"])
def test_a_reward_names_the_networks_that_it_runs(name, clip_transformers, hps_file, head_file):
    kind = kinds(clip_transformers, hps_file, head_file)[name]
    made = rewards.load(kind, CPU)
    own = [value for value in vars(made).values() if isinstance(value, torch.nn.Module)]
    assert set(rewards.networks(kind, made)) == {made.clip.network, *own}


@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hps", "aesthetic"])
def test_scores_do_not_depend_on_the_batch_and_keep_its_order(name, clip_transformers, hps_file, head_file):
    kind = kinds(clip_transformers, hps_file, head_file)[name]
    rewards.check(kind)
    reward = rewards.load(kind, CPU)
    together = reward.score(IMAGES, TEXTS)
    assert len(set(together)) == 3
    alone = [reward.score(IMAGES[n : n + 1], TEXTS[n : n + 1])[0] for n in range(3)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert reward.score(IMAGES[::-1], TEXTS[::-1]) == pytest.approx(together[::-1], abs=1e-5)


def given(height, wide, mode):
    """A picture as an array of that mode, and its colours."""
    array = noise(height, wide, {"RGB": 3, "RGBA": 4, "L": 1}[mode])[0]
    return (array[..., 0], np.repeat(array, 3, axis=2)) if mode == "L" else (array, array[..., :3])


def cut_and_normalised(colours, side, *, mean, std, middle):
    """CLIP's preprocessing with PIL and numpy: shortest edge to `side`, bicubic; the middle of the longer one."""
    picture = Image.fromarray(colours)
    wide, height = picture.size
    longest = int(side * max(picture.size) / min(picture.size))
    picture = picture.resize((side, longest) if wide <= height else (longest, side), Image.Resampling.BICUBIC)
    left, top = (middle((length - side) / 2) for length in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + side, top + side)), np.float64) / 255
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_clip_sees_images_as_its_authors_code_does(clip_transformers, size, mode):
    array, colours = given(*SIZES[size], mode)
    (picture,) = rgb(array[None])
    described = json.loads((shapes.checkpoint("shapes-clip") / "open_clip_config.json").read_text())["preprocess_cfg"]
    expected = cut_and_normalised(colours, 64, mean=described["mean"], std=described["std"], middle=round)
    seen = clip.load("shapes-clip", None, CPU).preprocess(picture)
    assert torch.allclose(seen, expected, atol=1e-5)
    expected = cut_and_normalised(colours, 32, mean=hps.MEAN, std=hps.STD, middle=int)
    seen = clip.load(str(clip_transformers), None, CPU).preprocess(picture)
    apart = 255 * min(hps.STD) * (seen - expected).abs()
    assert apart.max() < 2.1 and apart.mean() < 0.2  # grey levels: it resizes by torchvision, rounding each way


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_jpegs_size_is_that_of_torchvisions(size, mode):
    from torchvision.io import encode_jpeg

    array, colours = given(*SIZES[size], mode)
    expected = len(encode_jpeg(torch.from_numpy(colours).permute(2, 0, 1).contiguous(), quality=95)) / 1000
    reward = rewards.load(config.Jpeg(kind="jpeg_incompressibility"), CPU)
    assert reward.score(array[None], ["x"]) == pytest.approx([expected], rel=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_a_transformers_clip_sees_and_scores_as_transformers_does(clip_transformers, size):
    from transformers import CLIPModel, CLIPProcessor

    pictures = noise(*SIZES[size], count=3)
    model = CLIPModel.from_pretrained(clip_transformers).eval()
    processor = CLIPProcessor.from_pretrained(clip_transformers)
    inputs = processor(text=TEXTS, images=[Image.fromarray(p) for p in pictures], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.diag()
    score = rewards.load(config.PickScore(kind="pickscore", model=str(clip_transformers)), CPU).score(pictures, TEXTS)
    assert score == pytest.approx(expected.tolist(), abs=1e-4)
    cosine = rewards.load(config.ClipScore(kind="clip_score", model=str(clip_transformers)), CPU)
    assert cosine.score(pictures, TEXTS) == pytest.approx((expected / model.logit_scale.exp()).tolist(), abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_hps_fits_the_longest_side_and_pads_with_black(size, mode):
    height, wide = SIZES[size]
    array, colours = given(height, wide, mode)
    (picture,) = rgb(array[None])
    pixels = torch.from_numpy(colours.astype(np.float32) / 255).permute(2, 0, 1)
    scale = 32 / max(height, wide)
    resized = torch.nn.functional.interpolate(
        pixels[None], (round(height * scale), round(wide * scale)), mode="bicubic", antialias=True, align_corners=False
    )[0]
    expected = torch.zeros(3, 32, 32)
    above, before = (32 - resized.shape[1]) // 2, (32 - resized.shape[2]) // 2
    expected[:, above : above + resized.shape[1], before : before + resized.shape[2]] = resized
    expected = (expected - torch.tensor(hps.MEAN)[:, None, None]) / torch.tensor(hps.STD)[:, None, None]
    assert torch.allclose(hps.preprocess(picture, 32), expected, atol=1e-5)


def test_hps_is_the_cosine_of_its_own_network(hps_file):
    import open_clip

    model = open_clip.create_model(ARCHITECTURE, load_weights=False).eval()
    model.load_state_dict({k: v.float() for k, v in torch.load(hps_file)["state_dict"].items()})
    with torch.no_grad():
        pixels = torch.stack([hps.preprocess(picture, 32) for picture in rgb(IMAGES)])
        pictures, words = model.encode_image(pixels), model.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS))
    expected = torch.nn.functional.cosine_similarity(pictures, words).tolist()
    reward = rewards.load(config.Hps(kind="hps_v2.1", weights=str(hps_file), architecture=ARCHITECTURE), CPU)
    assert reward.score(IMAGES, TEXTS) == pytest.approx(expected, abs=1e-5)


def test_an_architecture_of_open_clips_takes_a_file_of_weights(hps_file, tmp_path):
    import open_clip

    torch.manual_seed(1)
    model = open_clip.create_model(ARCHITECTURE, load_weights=False).eval()
    path = tmp_path / "weights.pt"
    torch.save({f"module.{name}": weight for name, weight in model.state_dict().items()}, path)  # as open_clip trains
    kind = config.ClipScore(kind="clip_score", model=ARCHITECTURE, weights=str(path))
    rewards.check(kind)
    preprocess = open_clip.image_transform(32, is_train=False)
    with torch.no_grad():
        pictures = model.encode_image(torch.stack([preprocess(picture) for picture in rgb(IMAGES)]))
        words = model.encode_text(open_clip.get_tokenizer(ARCHITECTURE)(TEXTS))
    expected = torch.nn.functional.cosine_similarity(pictures, words).tolist()
    assert rewards.load(kind, CPU).score(IMAGES, TEXTS) == pytest.approx(expected, abs=1e-5)
    other = tmp_path / "other.pt"
    torch.save({"weird": torch.ones(1)}, other)
    with pytest.raises(RewardError, match=rf"CLIP model '{ARCHITECTURE}' cannot be loaded"):
        rewards.load(config.ClipScore(kind="clip_score", model=ARCHITECTURE, weights=str(other)), CPU)


@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hps", "aesthetic"])
def test_a_prompt_longer_than_the_network_reads_is_cut(name, clip_transformers, hps_file, head_file):
    reward = rewards.load(kinds(clip_transformers, hps_file, head_file)[name], CPU)
    long, longer = "a red circle " * 100, "a red circle " * 100 + "above a blue square"
    assert np.isfinite(reward.score(IMAGES[:2], [long, longer])).all()
    assert reward.score(IMAGES[:1], [long]) == reward.score(IMAGES[:1], [longer])


def test_the_aesthetic_head_is_linear_on_embeddings_of_unit_length(head_file):
    import open_clip

    folder = shapes.checkpoint("shapes-clip")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        features = model.eval().encode_image(torch.stack([preprocess(picture) for picture in rgb(IMAGES)]))
        values = features / features.norm(dim=1, keepdim=True)
        state = torch.load(head_file)
        for layer in (0, 2, 4, 6, 7):
            values = values @ state[f"layers.{layer}.weight"].T + state[f"layers.{layer}.bias"]
    reward = rewards.load(config.Aesthetic(kind="aesthetic", head=str(head_file), model="shapes-clip"), CPU)
    assert reward.score(IMAGES, TEXTS) == pytest.approx(values[:, 0].tolist(), abs=1e-4)


def test_golden_scores_on_fixed_checkpoints(clip_transformers, hps_file, head_file):
    """Weights and pictures come from seeds: these figures change when a preprocessing or a formula does."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    picture = np.stack([ramp, ramp.T, 255 - ramp], axis=-1).repeat(6, axis=0).repeat(4, axis=1)
    found = {
        name: rewards.load(kind, CPU).score(picture[None], ["a blue ring"])[0]
        for name, kind in kinds(clip_transformers, hps_file, head_file).items()
    }
    assert found == pytest.approx(GOLDEN, abs=2e-3)


GOLDEN = {"clip_score": 0.26448, "pickscore": 3.77808, "hps": -0.19346, "aesthetic": 1.61670}


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 8, 8, 2), np.uint8), np.zeros((1, 8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)]
)
def test_images_of_another_mode_are_refused_by_name(bad):
    with pytest.raises(RewardError, match=r"got images of .*expected uint8"):
        rewards.load(config.Jpeg(kind="jpeg_compressibility"), CPU).score(bad, ["x"])


def test_grey_and_transparent_images_score_as_their_colours(clip_transformers):
    reward = rewards.load(config.ClipScore(kind="clip_score", model=str(clip_transformers)), CPU)
    grey = IMAGES[..., 0]
    assert reward.score(grey, TEXTS) == reward.score(np.repeat(grey[..., None], 3, axis=3), TEXTS)
    transparent = np.concatenate([IMAGES, IMAGES[..., :1]], axis=3)
    assert reward.score(transparent, TEXTS) == reward.score(IMAGES, TEXTS)


def test_files_that_are_not_there_are_named_with_where_they_come_from(clip_transformers, head_file, tmp_path):
    gone, there = str(tmp_path / "gone"), str(head_file)
    for kind, words in [
        (
            config.Hps(kind="hps_v2.1", weights=gone),
            rf"no weights of hps_v2.1 at {gone}; fetch it with: hf download xswu/HPSv2 HPS_v2.1_compressed.pt ",
        ),
        (
            config.Aesthetic(kind="aesthetic", head=gone, model=gone),
            r"no head of aesthetic at .*; fetch it with: hf download camenduru/.* sac\+logos\+ava1-l14-linearMSE.pth "
            rf"--local-dir {tmp_path}\nno model of aesthetic .* openai/clip-vit-large-patch14 .* --local-dir {gone}",
        ),
        (config.Aesthetic(kind="aesthetic", head=there, weights=gone), r"no CLIP weights of ViT-L-14-quickgelu"),
        (config.PickScore(kind="pickscore", model=gone), r"no model of pickscore .* yuvalkirstain/PickScore_v1 "),
        (
            config.PickScore(kind="pickscore", model=str(clip_transformers), processor=gone),
            rf"no processor of pickscore .*laion/CLIP-ViT-H-14-laion2B-s32B-b79K .* --local-dir {gone}",
        ),
    ]:
        with pytest.raises(RewardError, match=words):
            rewards.check(kind)


def test_files_with_other_keys_are_named_with_what_was_expected(hps_file, head_file, clip_transformers, tmp_path):
    import shutil

    from safetensors.torch import save_file

    other = tmp_path / "other.pt"
    for content in ({"state_dict": {"weird": torch.ones(1)}}, {"weird": torch.ones(1)}):
        torch.save(content, other)
        with pytest.raises(RewardError, match=r"(?s)HPS weights .*expected HPS_v2.1_compressed.pt"):
            rewards.load(config.Hps(kind="hps_v2.1", weights=str(other), architecture=ARCHITECTURE), CPU)
        with pytest.raises(RewardError, match=r"(?s)aesthetic head .*expected the layers"):
            rewards.load(config.Aesthetic(kind="aesthetic", head=str(other), model="shapes-clip"), CPU)
    other.write_bytes(hps_file.read_bytes()[:100])
    with pytest.raises(RewardError, match="cannot be loaded"):
        rewards.load(config.Hps(kind="hps_v2.1", weights=str(other), architecture=ARCHITECTURE), CPU)
    folder = shutil.copytree(clip_transformers, tmp_path / "clip")
    save_file({"weird": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RewardError, match="lack"):
        rewards.load(config.PickScore(kind="pickscore", model=str(folder)), CPU)


def test_a_head_for_another_clip_is_refused(clip_transformers, head_file):
    reward = rewards.load(config.Aesthetic(kind="aesthetic", head=str(head_file), model=str(clip_transformers)), CPU)
    with pytest.raises(RewardError, match=r"takes embeddings of \d+, the CLIP model gives 12"):
        reward.score(IMAGES, TEXTS)
