"""One word that fills the image: read without detection, and its log-probability, by the real recogniser."""

import itertools
import math

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pcpo_ray import config, rewards
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import ocr_word
from tests.support.same_images import font

WORDS = ("moon", "OPEN", "hotel", "garden", "coffee", "bakery")


def drawn(text, height, width, name="DejaVuSans", *, noise=8.0, seed=0):
    """An image that a word fills as far as it goes, dark on light, with noise."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    for size in range(60, 5, -1):
        letters = font(name, size)
        left, top, right, bottom = letters.getbbox(text)
        if right - left <= width - 6 and bottom - top <= height - 4:
            break
    image = Image.new("RGB", (width, height), (250, 245, 230))
    where = ((width - right - left) // 2, (height - bottom - top) // 2)
    ImageDraw.Draw(image).text(where, text, font=letters, fill=(20, 30, 90))
    return np.clip(np.asarray(image) + rng.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)


def prompts(words):
    return [f'the word "{word}" in blue' for word in words]


@pytest.fixture(scope="module", params=["edits", "ctc"])
def reader(request):
    torch.set_num_threads(1)
    made = rewards.load(config.Ocr(kind="ocr", detect=False, score=request.param), torch.device("cpu"))
    made.asked = request.param
    return made


@pytest.fixture(scope="module")
def likely():
    torch.set_num_threads(1)
    return rewards.load(config.Ocr(kind="ocr", detect=False, score="ctc"), torch.device("cpu"))


@pytest.mark.parametrize(("height", "width"), [(24, 64), (64, 64), (64, 128), (128, 128)])
@pytest.mark.parametrize("name", ["DejaVuSans", "DejaVuSansMono", "DejaVuSerif-Italic"])
def test_words_are_read_without_detection_at_small_sizes(reader, height, width, name):
    images = np.stack([drawn(word, height, width, name, seed=n) for n, word in enumerate(WORDS)])
    scores = reader.score(images, prompts([word.swapcase() for word in WORDS]))
    if reader.asked == "edits":
        assert scores == [1.0] * len(WORDS)
    else:
        assert all(-8 < score < 0 for score in scores)


@pytest.mark.parametrize(("height", "width"), [(24, 64), (96, 96)])
@pytest.mark.parametrize(
    ("word", "near", "far"),
    [("moon", "moom", "zebra"), ("garden", "garten", "bus"), ("letter", "leter", "moon"), ("ÉTÉ", "ETE", "NON")],
)
def test_the_right_word_is_above_near_misses_and_these_above_noise(likely, height, width, word, near, far):
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    images = [drawn(text, height, width) for text in (word, near, far)]
    by_image = likely.score(np.stack([*images[:2], noise]), prompts([word] * 3))
    assert by_image[0] > by_image[1] + 1 and by_image[1] > by_image[2] + 1
    by_word = likely.score(np.stack(images[:1] * 3), prompts([word, near, far]))
    assert by_word[0] > by_word[1] + 1 and by_word[1] > by_word[2] + 1


def test_the_log_probability_has_no_ties_where_the_edits_do(likely):
    images = np.stack([drawn("moon", 24, 64, noise=60, seed=seed) for seed in range(16)])
    scores = likely.score(images, prompts(["moon"] * 16))
    assert len(set(scores)) == 16 and np.isfinite(scores).all()


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_scores_are_the_same_bits_in_any_company_and_batch(reader, count):
    images = np.stack([drawn(word, 24, 64, noise=40, seed=n) for n, word in enumerate(WORDS * 2)])
    asked = prompts(WORDS * 2)
    whole = reader.score(images, asked)
    assert reader.score(images, asked) == whole
    parts = [reader.score(images[n : n + count], asked[n : n + count]) for n in range(0, len(images), count)]
    assert [score for part in parts for score in part] == whole
    order = np.random.default_rng(0).permutation(len(images))
    assert reader.score(images[order], [asked[n] for n in order]) == [whole[n] for n in order]


def test_128_small_images_take_16_calls_of_the_recogniser(reader, monkeypatch):
    calls, session = [], reader.recogniser.session

    def counted(batch):
        calls.append(batch.shape)
        return session(batch)

    monkeypatch.setattr(reader.recogniser, "session", counted)
    reader.score(np.repeat(drawn("moon", 24, 64)[None], 128, axis=0), prompts(["moon"] * 128))
    assert calls == [(8, 3, 48, 160)] * 16


@pytest.mark.parametrize("word", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2, 2]])
def test_the_log_probability_is_the_sum_over_all_alignments(word):
    given = np.random.default_rng(0).dirichlet(np.ones(3), size=6)

    def read(path):
        return [place for n, place in enumerate(path) if place and (n == 0 or path[n - 1] != place)]

    paths = [path for path in itertools.product(range(3), repeat=6) if read(path) == word]
    total = sum(math.prod(given[t, place] for t, place in enumerate(path)) for path in paths)
    assert ocr_word.log_probability(given, word) == pytest.approx(math.log(total), rel=1e-9)


def test_characters_that_fold_alike_are_one_letter_and_spaces_are_blanks():
    blanks, letters = ocr_word.alphabet(["blank", "a", "A", "\uff21", "b", "\u3000", " "])
    assert blanks == [0, 5, 6] and letters == {"a": [1, 2, 3], "b": [4]}


@pytest.mark.parametrize("prompt", ['"one" and "two"', f'"{"ab" * 11}"', f'"{"a" * 11}"'])
def test_prompts_that_no_image_of_one_word_can_show_are_refused(prompt):
    reward = config.Ocr(kind="ocr", detect=False)
    rewards.check_prompts(reward, ['a "word"', f'"{"ab" * 10}"'], "here")
    with pytest.raises(RewardError, match=r"reads one text of up to 20 letters, and 1 prompts \(here\) quote more"):
        rewards.check_prompts(reward, ['a "word"', prompt], "here")
    with pytest.raises(RewardError, match="quote none"):
        rewards.check_prompts(reward, ["a wall"], "here")


def test_a_letter_that_the_recogniser_does_not_know_is_named(likely):
    with pytest.raises(RewardError, match="knows no .*" + chr(0x10330)):
        likely.score(drawn("a", 24, 64)[None], ['the word "\U00010330"'])


def test_the_log_probability_with_detection_is_refused():
    with pytest.raises(ValidationError, match="score is ctc with detect: true"):
        TypeAdapter(config.Ocr).validate_python({"kind": "ocr", "score": "ctc"})
    assert config.Ocr(kind="ocr", score="ctc", detect=False).scale.unit == "log-probability"


def test_exact_is_1_where_the_text_is_read_and_no_other():
    exact = rewards.load(config.Ocr(kind="ocr", detect=False, score="exact"), torch.device("cpu"))
    images = np.stack([drawn(word, 24, 64) for word in ("moon", "moons", "moan", "MOON")])
    assert exact.score(images, prompts(["moon"] * 4)) == [1, 0, 0, 1]


def test_each_score_has_a_name_of_its_own():
    made = [config.Ocr(kind="ocr", detect=False, score=score) for score in ("edits", "exact", "ctc")]
    assert [one.name for one in made] == ["ocr", "ocr_exact", "ocr_ctc"]
    assert len({one.scale.unit for one in made}) == 3
