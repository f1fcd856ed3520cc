"""The tokenizers: a token a word, room for every caption, and something sensible for any other text."""

import pytest

from pcpo_ray.commands.pretrain_shapes.tokenizers import LENGTH, byte_pair_merges, clip_tokenizer, t5_tokenizer, words
from pcpo_ray.shapes.captions import captions

BOTH = pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])


@BOTH
def test_every_word_of_the_grammar_is_one_token(make):
    tokenizer = make()
    assert {word: len(tokenizer.tokenize(word)) for word in words()} == dict.fromkeys(words(), 1)


@BOTH
def test_the_longest_caption_fits(make):
    assert max(map(len, make()(list(captions("held_out"))).input_ids)) <= LENGTH == make().model_max_length


@BOTH
def test_captions_that_differ_in_one_word_differ_in_one_token(make):
    ours, other = make()(["a red circle at the top", "a red circle at the bottom"]).input_ids
    assert sum(a != b for a, b in zip(ours, other, strict=True)) == 1


@BOTH
def test_text_outside_the_grammar_is_spelled_and_cut_to_length(make):
    ids = make()("Zwölf Boxkämpfer, 犬!", padding="max_length", truncation=True).input_ids
    assert len(ids) == LENGTH and max(ids) < len(make())


@BOTH
def test_a_saved_tokenizer_loads_as_the_same(make, tmp_path):
    from transformers import AutoTokenizer

    make().save_pretrained(tmp_path)
    texts = ["", *captions("held_out")[:50]]
    assert AutoTokenizer.from_pretrained(tmp_path)(texts).input_ids == make()(texts).input_ids


def test_the_end_token_has_the_highest_id_and_pads():
    tokenizer = clip_tokenizer()
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1


def test_merges_stop_when_each_word_is_one_symbol():
    assert byte_pair_merges(["at", "a", "hat"]) == [("a", "t</w>"), ("h", "at</w>")]
