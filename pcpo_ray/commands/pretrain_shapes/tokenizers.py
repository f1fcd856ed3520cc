"""The two tokenizers of the embedded world, built from the grammar: every word of it is one token.

Words outside the grammar come out as bytes (CLIP) or characters (T5), so any prompt can be encoded.
"""

from __future__ import annotations

import string
from collections import Counter
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

from pcpo_ray.shapes.captions import captions

LENGTH = 16  # the longest caption takes 13 tokens between the start and the end
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def words() -> list[str]:
    """The grammar's words, in alphabetical order."""
    return sorted({word for text in captions("train") for word in text.split()})


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


def clip_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's form; the end token has the highest id and pads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = byte_pair_merges(words())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *dict.fromkeys(a + b for a, b in merges), BOS, EOS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer in T5's form: whole words at a high score, printable characters at a low one."""
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -8.0)]
    scored += [("▁" + word, -1.0) for word in words()]
    scored += [(letter, -10.0) for letter in string.printable.strip()]
    return T5Tokenizer(vocab=scored, extra_ids=0, model_max_length=LENGTH)
