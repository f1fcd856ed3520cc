"""Vendi score and pairwise distance against their definitions; LPIPS against its paper's sum."""

import numpy as np
import pytest
import torch
import torchvision

from pcpo_ray import config
from pcpo_ray.errors import QualityError
from pcpo_ray.rewards.quality import diversity

CPU = torch.device("cpu")


def brute_vendi(features):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    return np.exp(-sum(share * np.log(share) for share in shares if share > 1e-12))


@pytest.mark.parametrize(("count", "dimensions"), [(2, 8), (7, 3), (16, 64)])
def test_the_vendi_score_is_the_exponential_of_the_kernels_entropy(count, dimensions):
    features = np.random.default_rng(count).normal(size=(count, dimensions))
    assert diversity.vendi(features) == pytest.approx(brute_vendi(features), rel=1e-9)


def test_the_vendi_score_counts_what_is_different():
    assert diversity.vendi(np.ones((5, 3))) == pytest.approx(1)
    assert diversity.vendi(np.eye(5)) == pytest.approx(5)
    assert diversity.vendi(np.repeat(np.eye(3), 4, axis=0)) == pytest.approx(3)
    assert diversity.vendi(7 * np.eye(4)) == pytest.approx(4)  # the length of features does not matter


def test_the_pairwise_distance_is_the_mean_over_pairs():
    features = np.random.default_rng(0).normal(size=(5, 6))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for n, a in enumerate(features) for b in features[n + 1 :]]
    assert diversity.pairwise(features) == pytest.approx(1 - np.mean(cosines))
    assert diversity.pairwise(np.ones((3, 4))) == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file as torchvision saves them, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    model = torchvision.models.alexnet(weights=None)
    torch.save(model.state_dict(), path)
    return path, model.eval()


def test_lpips_is_the_weighted_square_of_unit_features_apart(alexnet):
    path, model = alexnet
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    found = diversity.load_lpips(config.Lpips(weights=str(path)), CPU)(images)
    from torchmetrics.functional.image.lpips import _LPIPS

    heads = [head.model[-1].weight.flatten() for head in _LPIPS(pnet_rand=True, net="alex").lins]
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    layers, now = [], (pixels - shift[:, None, None]) / scale[:, None, None]
    for n, layer in enumerate(model.features):
        now = layer(now)
        if n in (1, 4, 7, 9, 11):
            layers.append(torch.nn.functional.normalize(now, dim=1))

    def apart(a, b):
        parts = [
            ((f[a] - f[b]).square() * head[:, None, None]).sum(0).mean() for f, head in zip(layers, heads, strict=True)
        ]
        return float(sum(parts).detach())

    expected = [np.mean([apart(n, m) for m in range(3) if m != n]) for n in range(3)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 0


def test_lpips_of_equal_images_is_0(alexnet):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = diversity.load_lpips(config.Lpips(weights=str(alexnet[0])), CPU)(np.stack([image] * 3))
    assert found == pytest.approx([0, 0, 0], abs=1e-7)


def test_a_file_of_lpips_that_is_missing_or_of_another_net_is_named(alexnet, tmp_path):
    with pytest.raises(QualityError, match=r"vgg16-397923af\.pth"):
        diversity.check_lpips(config.Lpips(net="vgg", weights=str(tmp_path / "no.pth")))
    with pytest.raises(QualityError, match=r"not torchvision's vgg16"):
        diversity.load_lpips(config.Lpips(net="vgg", weights=str(alexnet[0])), CPU)
    (tmp_path / "short.pth").write_bytes(alexnet[0].read_bytes()[:1000])
    with pytest.raises(QualityError, match=r"short\.pth"):
        diversity.load_lpips(config.Lpips(weights=str(tmp_path / "short.pth")), CPU)
