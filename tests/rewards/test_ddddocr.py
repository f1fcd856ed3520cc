"""The second reader, whose weights come with its wheel: it reads what people read, and is not the first one."""

import numpy as np
import pytest
import torch
from PIL import Image

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError
from pcpo_ray.words.captions import captions, parse
from pcpo_ray.words.draw import draw

TEXTS = captions("held_out")[::997]
IMAGES = np.stack([draw(parse(text), seed) for seed, text in enumerate(TEXTS)])
SECOND = config.DdddOcr(kind="ddddocr")


@pytest.fixture(scope="module")
def reader():
    torch.set_num_threads(1)
    return rewards.load(SECOND, torch.device("cpu"))


def faint(images, contrast):
    """The images with so much of their contrast to the paper, which is the colour of their corner."""
    paper = images[:, :1, :1].astype(np.float32)
    return np.round(paper + contrast * (images - paper)).astype(np.uint8)


def test_drawn_words_are_read_exactly_and_others_are_not(reader):
    assert reader.score(IMAGES, TEXTS) == [1.0] * len(TEXTS)
    assert reader.score(IMAGES, [*TEXTS[1:], TEXTS[0]]) == [0.0] * len(TEXTS)


def test_a_group_of_any_size_is_read_as_ddddocr_itself_reads_it(reader):
    import ddddocr

    noisy = np.clip(IMAGES + np.random.default_rng(0).normal(0, 60, IMAGES.shape), 0, 255).astype(np.uint8)
    itself = ddddocr.DdddOcr(beta=True, show_ad=False)
    found = reader.describe(noisy, TEXTS)
    assert found == [itself.classification(Image.fromarray(image)) for image in noisy]
    assert found == [reader.describe(image[None], [text])[0] for image, text in zip(noisy, TEXTS, strict=True)]


def test_other_sizes_are_stretched(reader):
    square = np.stack([np.asarray(Image.fromarray(image).resize((96, 96))) for image in IMAGES[:8]])
    assert np.mean(reader.score(square, TEXTS[:8])) > 0.7


def test_words_that_ocr_alone_can_read_are_told(reader):
    hidden = faint(IMAGES, 0.03)
    assert np.abs(hidden.astype(int) - hidden[:, :1, :1]).max() <= 8  # of 255: nobody sees it
    first = rewards.load(config.Ocr(kind="ocr", detect=False, score="exact"), torch.device("cpu"))
    assert np.mean(first.score(hidden, TEXTS)) > 0.9
    assert np.mean(reader.score(hidden, TEXTS)) < 0.5


@pytest.mark.parametrize("prompt", ['"one" and "two"', f'"{"ab" * 11}"', "a wall"])
def test_prompts_that_it_cannot_read_are_refused_in_its_name(prompt):
    with pytest.raises(RewardError, match="the reward ddddocr reads"):
        rewards.check_prompts(SECOND, ['a "word"', prompt], "here")
