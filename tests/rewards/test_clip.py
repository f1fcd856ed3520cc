"""What is prepared for a CLIP model at once, or remembered, is to the bit what its own transform and towers make."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from pcpo_ray.rewards import clip
from pcpo_ray.rewards.images import rgb

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shapes_clip():
    return clip.load("shapes-clip", None, CPU)


def noise(count, height, width):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def test_images_of_the_networks_size_get_the_transforms_exact_values(shapes_clip):
    images = noise(5, shapes_clip.side, shapes_clip.side)
    assert shapes_clip.normal is not None
    assert torch.equal(shapes_clip.pixels(images), torch.stack([shapes_clip.preprocess(one) for one in rgb(images)]))


def test_images_of_another_size_use_the_transform_on_any_thread_count(shapes_clip):
    images = noise(5, shapes_clip.side + 9, shapes_clip.side + 40)
    expected = torch.stack([shapes_clip.preprocess(one) for one in rgb(images)])
    assert torch.equal(shapes_clip.pixels(images), expected)
    torch.set_num_threads(3)
    try:
        assert torch.equal(shapes_clip.pixels(images), expected)
    finally:
        torch.set_num_threads(1)


def test_a_transform_that_does_more_than_normalise_is_left_alone():
    import open_clip
    from torchvision.transforms import Compose, RandomInvert

    plain = open_clip.image_transform(32, is_train=False)
    assert clip._normal_of(plain, 32) is not None
    assert clip._normal_of(plain, 48) is None
    assert clip._normal_of(Compose([RandomInvert(p=1.0), *plain.transforms]), 32) is None
    assert clip._normal_of(lambda image: image, 32) is None


def test_the_same_images_and_texts_are_embedded_once_and_others_anew(shapes_clip):
    calls = []

    def counted(name):
        def tower(given):
            calls.append(name)
            return getattr(shapes_clip, name)(given)

        return tower

    towers = {name: counted(name) for name in ("encode_images", "encode_texts")}
    counting = dataclasses.replace(shapes_clip, **towers, known={}, last=[])
    images, texts = noise(2, 64, 64), ["a red circle", "a red circle"]
    first, words = counting.images(images), counting.texts(texts)
    assert torch.equal(counting.images(images), first)
    assert torch.equal(counting.texts(texts), words)
    assert calls == ["encode_images", "encode_texts"]
    assert torch.equal(counting.images(images.copy()), first)
    assert not torch.equal(counting.texts(["a blue star"]), words[:1])
    assert calls == ["encode_images", "encode_texts"] * 2


def test_images_are_not_kept_for_being_remembered(shapes_clip):
    images = noise(1, 64, 64)
    shapes_clip.images(images)
    gone = weakref.ref(images)
    del images
    gc.collect()
    assert gone() is None


def test_only_so_many_texts_are_remembered(shapes_clip, monkeypatch):
    monkeypatch.setattr(clip, "REMEMBERED", 2)
    shapes_clip.known.clear()
    for text in ("a red circle", "a blue star", "a green ring"):
        shapes_clip.texts([text])
    assert list(shapes_clip.known) == [("a blue star",), ("a green ring",)]
