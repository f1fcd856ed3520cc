"""The grammar: every caption can be read back, and the split is the same everywhere."""

import pytest

from pcpo_ray.errors import PromptError
from pcpo_ray.shapes.captions import Caption, Thing, captions, grammar, parse


def test_every_caption_of_the_grammar_reads_back_as_itself():
    everything = list(grammar())
    assert len({caption.text for caption in everything}) == len(everything) == 57_264
    assert all(parse(caption.text) == caption for caption in everything)


def test_the_two_splits_share_nothing_and_together_are_the_grammar():
    train, held_out = set(captions("train")), set(captions("held_out"))
    assert not train & held_out
    assert train | held_out == {caption.text for caption in grammar()}
    assert 0.09 < len(held_out) / (len(train) + len(held_out)) < 0.11


def test_the_split_of_known_captions_never_moves():
    assert (len(captions("train")), len(captions("held_out"))) == (51_403, 5_861)
    assert parse("a red circle above a blue square").split == "train"


def test_articles_case_and_spacing_are_read_as_people_write_them():
    caption = Caption(
        things=(Thing(shape="star", colour="orange"), Thing(shape="ring", colour="red", size="small")), relation="and"
    )
    assert caption.text == "an orange star and a small red ring"
    assert parse("  An ORANGE star and  a small red ring ") == caption


@pytest.mark.parametrize(
    "text",
    ["", "a dog", "a red", "a red circle above", "a red circle above a red circle", "an red circle", "a circle red"],
)
def test_a_text_outside_the_grammar_is_refused_with_what_is_allowed(text):
    with pytest.raises(PromptError, match="purple") as caught:
        parse(text)
    assert repr(text) in str(caught.value) and "to the left of" in str(caught.value)


def test_an_unknown_split_is_refused_by_name():
    with pytest.raises(PromptError, match="test"):
        captions("test")  # type: ignore[arg-type]
