"""The two tokenizers of a world: every word of its vocabulary is one token.

Other words come out as bytes (CLIP) or characters (T5), so any prompt can be encoded.
"""

from __future__ import annotations

import string
from collections import Counter
from itertools import pairwise

from tokenizers import AddedToken, pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

from pcpo_ray.commands.pretrain.world import World

LENGTH = 16  # the longest caption takes 13 tokens between the start and the end
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def byte_pair_merges(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Byte-pair encoding (Sennrich et al., 1508.07909, algorithm 1) run until each word is one symbol.

    Ties go to the alphabetically first pair, so the merges are the same everywhere.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in vocabulary]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in spelled for pair in pairwise(symbols)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(symbols, best) for symbols in spelled]
    return merges


def _merged(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for symbol in symbols:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return result


def clip_tokenizer(world: World) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's form; the end token has the highest id and pads.

    Merges would also join letters inside a word that is to be spelled ("on" in "moon"), so there the vocabulary's words
    are tokens that are found before anything is merged.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [] if world.spelled else byte_pair_merges(list(world.vocabulary))
    whole = world.vocabulary if world.spelled else tuple(dict.fromkeys(a + b for a, b in merges))
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *whole, BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    if world.spelled:
        tokenizer.add_tokens([AddedToken(word, single_word=True, lstrip=True) for word in whole])
    return tokenizer


def t5_tokenizer(world: World) -> T5Tokenizer:
    """A unigram tokenizer in T5's form: whole words at a high score, printable characters at a low one."""
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    scored += [("▁" + word, -1.0) for word in world.vocabulary]
    scored += [(letter, -10.0) for letter in string.printable.strip()]
    return T5Tokenizer(vocab=scored, extra_ids=0, model_max_length=LENGTH)
