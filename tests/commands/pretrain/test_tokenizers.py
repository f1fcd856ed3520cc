"""The tokenizers: a token a word, room for every caption, and something sensible for any other text."""

import pytest

from pcpo_ray.commands.pretrain.flux import FIRST_LETTER
from pcpo_ray.commands.pretrain.shapes_world import WORLD as SHAPES
from pcpo_ray.commands.pretrain.tokenizers import LENGTH, byte_pair_merges, clip_tokenizer, t5_tokenizer
from pcpo_ray.commands.pretrain.words_world import WORLD as WORDS
from pcpo_ray.shapes import captions as shapes
from pcpo_ray.words import captions as words

BOTH = pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
WORLDS = pytest.mark.parametrize("world", [SHAPES, WORDS], ids=lambda world: world.name)
CAPTIONS = {"shapes": shapes.captions("held_out"), "words": words.captions("held_out")}


@WORLDS
@BOTH
def test_every_word_of_the_vocabulary_is_one_token(make, world):
    tokenizer = make(world)
    assert {word: len(tokenizer.tokenize(word)) for word in world.vocabulary} == dict.fromkeys(world.vocabulary, 1)


@WORLDS
@BOTH
def test_the_longest_caption_fits(make, world):
    tokenizer = make(world)
    longest = sorted(CAPTIONS[world.name], key=len)[-500:]
    assert max(map(len, tokenizer(longest).input_ids)) <= LENGTH == tokenizer.model_max_length


@BOTH
def test_captions_that_differ_in_one_word_differ_in_one_token(make):
    ours, other = make(SHAPES)(["a red circle at the top", "a red circle at the bottom"]).input_ids
    assert sum(a != b for a, b in zip(ours, other, strict=True)) == 1


@BOTH
@pytest.mark.parametrize("word", ["moon", "inner", "redid", "onion", "other"])
def test_words_in_quotes_are_spelled_a_token_a_letter(make, word):
    tokens = make(WORDS).tokenize(f'the word "{word}" in red on white')
    letters = tokens[-4 - 1 - len(word) : -4 - 1]
    assert "".join(letters).replace("</w>", "") == word and len(letters) == len(word)
    assert [token.strip("▁ ") for token in tokens[-4:]] == ["in", "red", "on", "white"]


@pytest.mark.parametrize("caption", ['the word "moon"', 'the word "cat" in red on white', 'the word "onion" on white'])
def test_a_words_letters_begin_where_their_reading_is_taught(caption):
    word = words.parse(caption).word
    tokens = t5_tokenizer(WORDS).tokenize(caption)
    assert tokens[FIRST_LETTER : FIRST_LETTER + len(word)] == list(word)


@BOTH
def test_letters_that_differ_in_one_place_differ_in_one_token(make):
    ours, other = make(WORDS)(['the word "moon" in red', 'the word "moan" in red']).input_ids
    assert sum(a != b for a, b in zip(ours, other, strict=True)) == 1


@WORLDS
@BOTH
def test_text_outside_the_grammar_is_spelled_and_cut_to_length(make, world):
    tokenizer = make(world)
    ids = tokenizer("Zwölf Boxkämpfer, 犬!", padding="max_length", truncation=True).input_ids
    assert len(ids) == LENGTH and max(ids) < len(tokenizer)


@WORLDS
@BOTH
def test_a_saved_tokenizer_loads_as_the_same(make, world, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = make(world)
    tokenizer.save_pretrained(tmp_path)
    texts = ["", *CAPTIONS[world.name][:50]]
    assert AutoTokenizer.from_pretrained(tmp_path)(texts).input_ids == tokenizer(texts).input_ids


@WORLDS
def test_the_end_token_has_the_highest_id_and_pads(world):
    tokenizer = clip_tokenizer(world)
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1


def test_merges_stop_when_each_word_is_one_symbol():
    assert byte_pair_merges(["at", "a", "hat"]) == [("a", "t</w>"), ("h", "at</w>")]
