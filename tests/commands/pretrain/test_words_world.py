"""What OCR reads in drawn images of words: nearly all of them, exactly."""

import numpy as np

from pcpo_ray.commands.pretrain.words_world import WORLD, judged
from pcpo_ray.words.captions import parse


def drawn(count):
    rng = np.random.default_rng(0)
    texts = WORLD.sample(rng, count, "held_out")
    return [WORLD.draw(text, seed) for seed, text in enumerate(texts)], texts


def test_ocr_reads_drawn_held_out_words_exactly():
    images, texts = drawn(120)
    shares = judged(images, texts)
    assert shares["all"] > 0.95 and shares["letters"] > 0.95 and shares["colours"] == 1


def test_images_of_other_words_are_not_right():
    images, texts = drawn(8)
    others = [*texts[1:], texts[0]]
    assert len({parse(text).word for text in texts}) == 8
    assert judged(images, others)["all"] == 0


def test_an_empty_image_shows_no_word():
    images, texts = drawn(2)
    assert judged([np.full_like(image, 240) for image in images], texts)["all"] == 0
