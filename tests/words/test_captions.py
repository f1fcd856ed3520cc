"""The captions: each can be read back, and the words of the two splits are apart."""

import re

import pytest

from pcpo_ray.errors import PromptError
from pcpo_ray.words.captions import (
    COLOURS,
    LIGHT,
    LONGEST,
    PAIRS,
    Caption,
    captions,
    is_caption,
    parse,
    unknown_words,
    words_of,
)
from pcpo_ray.words.captions import words as listed


def test_words_have_three_to_five_letters_and_stand_in_order():
    assert listed() == tuple(sorted(set(listed()))) and len(listed()) > 5000
    assert not [word for word in listed() if not re.fullmatch(rf"[a-z]{{3,{LONGEST}}}", word)]


def test_no_word_is_one_that_captions_are_made_of():
    assert not {"the", "word", "in", "on", *COLOURS} & set(listed())


def test_the_two_splits_share_no_word_and_together_are_the_list():
    train, held_out = set(words_of("train")), set(words_of("held_out"))
    assert not train & held_out
    assert train | held_out == set(listed())
    assert 0.09 < len(held_out) / len(listed()) < 0.11


def test_the_split_of_known_words_never_moves():
    assert (len(captions("train")), len(captions("held_out"))) == (182_385, 20_860)
    assert Caption(word="moon").split == "train"


def test_captions_of_a_split_are_distinct_and_of_its_words():
    for split in ("train", "held_out"):
        texts = captions(split)
        assert len(set(texts)) == len(texts)
        assert {parse(text).word for text in texts} == set(words_of(split))


def test_every_caption_of_a_word_reads_back_as_itself():
    texts = [text for text in captions("train") if '"moon"' in text]
    assert len(texts) == 1 + 2 * len(COLOURS) + len(PAIRS)
    assert [parse(text).text for text in texts] == texts


def test_ink_and_paper_are_one_light_and_one_dark_colour():
    assert all((ink in LIGHT) != (paper in LIGHT) for ink, paper in PAIRS)
    assert parse('the word "moon" in red').pairs == [("red", "yellow"), ("red", "white")]
    assert parse('the word "moon" on white').pairs == [pair for pair in PAIRS if pair[1] == "white"]


def test_case_and_spacing_are_read_as_people_write_them():
    assert parse('  The word "Moon"  in RED on white ') == Caption(word="moon", ink="red", paper="white")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "the word moon in red",
        'the word "xqzzt" in red',
        'the word "moon" in red on blue',
        'the word "moon" in pink',
        'the word "moon" on white in red',
        'the words "moon"',
    ],
)
def test_another_text_is_refused_with_what_is_allowed(text):
    assert not is_caption(text)
    with pytest.raises(PromptError, match="purple") as caught:
        parse(text)
    assert repr(text) in str(caught.value) and "list.txt" in str(caught.value)


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(PromptError, match="test"):
        words_of("test")  # type: ignore[arg-type]


def test_words_that_no_caption_has_are_listed_once():
    assert unknown_words('A sign: "moon" in pink, pink letters on white') == ["a", "pink", "letters"]
