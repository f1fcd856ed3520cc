"""Feature networks from local files, in their originals' formats; a missing or damaged one is named."""

import json

import numpy as np
import pytest
import torch

from pcpo_ray import config
from pcpo_ray.errors import QualityError
from pcpo_ray.rewards.quality import features

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A small random DINOv2 as transformers saves it."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    settings = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    Dinov2Model(settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A random Inception in a file as torch-fidelity's release has it."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    original = Network.load_state_dict
    try:
        Network.load_state_dict = lambda self, state: None
        torch.save({}, path)
        network = Network("n", ["2048"], feature_extractor_weights_path=str(path))
    finally:
        Network.load_state_dict = original
    torch.save(network.state_dict(), path)
    return path


def every(dino, inception):
    return [
        (config.ClipFeatures(), 128),
        (config.DinoFeatures(model=str(dino)), 24),
        (config.InceptionFeatures(weights=str(inception)), 2048),
    ]


def test_each_gives_a_row_an_image_whatever_the_batch_and_its_order(dino, inception):
    for kind, dimensions in every(dino, inception):
        extract = features.load(kind, CPU)
        found = extract(IMAGES)
        assert found.shape == (5, dimensions) and found.dtype == np.float32
        backwards = np.concatenate([extract(IMAGES[3:]), extract(IMAGES[:3])])
        assert np.roll(found, 2, axis=0) == pytest.approx(backwards, abs=1e-4), kind
        assert np.linalg.norm(found[0] - found[1]) > 0, kind


def test_dino_features_are_class_tokens_of_images_resized_as_published(dino):
    from PIL import Image
    from transformers import Dinov2Model

    resized = [Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC) for image in IMAGES]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normed = (pixels - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dino).eval()(normed).last_hidden_state[:, 0]
    found = features.load(config.DinoFeatures(model=str(dino)), CPU)(IMAGES)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_inceptions_features_are_those_of_torch_fidelitys_own_pipeline(inception):
    from torch_fidelity.utils import create_feature_extractor

    theirs = create_feature_extractor(
        "inception-v3-compat", ["2048"], cuda=False, feature_extractor_weights_path=str(inception)
    )
    expected = theirs(torch.from_numpy(IMAGES).permute(0, 3, 1, 2))[0]
    found = features.load(config.InceptionFeatures(weights=str(inception)), CPU)(IMAGES)
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_files_that_are_not_there_are_named_with_what_to_download(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    for kind, words in [
        (config.InceptionFeatures(weights=str(tmp_path / "no.pth")), "weights-inception-2015-12-05"),
        (config.DinoFeatures(model=str(tmp_path / "no")), "facebook/dinov2-large"),
        (config.DinoFeatures(model=str(tmp_path)), "type 'clip'"),
        (config.ClipFeatures(model="shapes-clop"), "shapes-clop"),
    ]:
        with pytest.raises(QualityError, match=words):
            features.check(kind)


def test_weights_that_are_cut_short_are_named(dino, inception, tmp_path):
    short = tmp_path / "short.pth"
    short.write_bytes(inception.read_bytes()[:1000])
    with pytest.raises(QualityError, match=r"short\.pth"):
        features.load(config.InceptionFeatures(weights=str(short)), CPU)
    (tmp_path / "config.json").write_text((dino / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((dino / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(QualityError, match="cannot be loaded"):
        features.load(config.DinoFeatures(model=str(tmp_path)), CPU)
