"""Encoded texts in memory, which is bounded, and on a disk that several machines share."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pcpo_ray import models
from pcpo_ray.errors import ModelError
from pcpo_ray.models.texts import KeptTexts, TextCache
from tests.support import small

CPU = torch.device("cpu")
TEXTS = ["a red circle", "a blue ring", "a green star", "a yellow cross"]


def load(path, **changes):
    run = small.run(path, **changes)
    return models.load(run.model, run.sampling, seed=0, device=CPU)


def counted(denoiser, monkeypatch):
    """The texts that a denoiser encodes from now on."""
    seen, encode = [], denoiser.encode_one

    def counting(text):
        seen.append(text)
        return encode(text)

    monkeypatch.setattr(denoiser, "encode_one", counting)
    return seen


def row(numbers):
    return {"embeds": torch.zeros(1, numbers)}


def test_what_was_not_asked_for_the_longest_goes_first():
    kept = KeptTexts(limit=3 * 40)
    for text in "abc":
        kept.put(text, row(10))
    assert kept.get("a") is not None
    kept.put("d", row(10))
    assert [text for text in "abcd" if text in kept] == ["a", "c", "d"]
    kept.put("e", row(25))
    assert [text for text in "abcde" if text in kept] == ["e"] and kept.size == 100
    kept.put("e", row(5))
    assert kept.size == 20
    kept.put("f", row(1000))
    assert kept.size == 0 and kept.get("f") is None


@pytest.mark.parametrize("cache", [False, True])
def test_memory_is_bounded_with_and_without_a_cache_on_disk(small_sd, tmp_path, monkeypatch, cache):
    denoiser = load(small_sd, **({"model__text_cache": tmp_path} if cache else {}), sampling__guidance_scale=1)
    one = denoiser.encode(TEXTS[:1])["embeds"].nbytes
    denoiser.texts.kept.limit = 2 * one
    seen = counted(denoiser, monkeypatch)
    expected = denoiser.encode(TEXTS)["embeds"]  # more than fit, in one go
    assert denoiser.texts.kept.size <= 2 * one and expected.shape[0] == len(TEXTS)
    assert sorted(seen) == sorted(TEXTS[1:])
    assert torch.equal(denoiser.encode(TEXTS)["embeds"], expected)
    assert (len(seen) == len(TEXTS) - 1) is cache
    assert denoiser.texts.kept.size <= 2 * one


def test_a_text_that_groups_go_on_asking_for_is_encoded_once(small_sd, monkeypatch):
    denoiser = load(small_sd, sampling__guidance_scale=2)
    one = denoiser.encode(TEXTS[:1])["embeds"].nbytes
    denoiser.texts.kept.limit = 2 * one
    seen = counted(denoiser, monkeypatch)
    for text in TEXTS:
        denoiser.encode([text])
        denoiser.encode([text, text])
    assert seen == TEXTS[1:]


def test_preparing_more_than_fit_leaves_them_in_the_cache_on_disk(small_sd, tmp_path, monkeypatch):
    denoiser = load(small_sd, model__text_cache=tmp_path)
    denoiser.texts.kept.limit = 1
    seen = counted(denoiser, monkeypatch)
    denoiser.prepare(TEXTS)
    assert sorted(seen) == sorted(TEXTS) and denoiser.texts.kept.size == 0
    other = load(small_sd, model__text_cache=tmp_path)
    other.prepare([*TEXTS, *TEXTS])
    assert other.pipeline.text_encoder is None


def test_writers_of_one_process_number_share_a_cache(small_sd, tmp_path):
    """Containers number their processes alike; here it is the threads of one."""
    model = small.run(small_sd, model__text_cache=tmp_path).model
    together = threading.Barrier(2)

    def write(cache):
        together.wait()
        for number in range(200):
            cache.put(str(number), row(1000))
            cache.get(str(number))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, [TextCache(model, small_sd) for _ in range(2)])) == [None, None]
    files = list(TextCache(model, small_sd).folder.iterdir())
    assert len(files) == 200 and all(path.suffix == ".arrow" for path in files)


def test_a_cache_that_cannot_be_written_is_named_with_the_key(small_sd, tmp_path):
    (tmp_path / "texts").write_text("a file where the folder should be")
    denoiser = load(small_sd, model__text_cache=tmp_path / "texts")
    with pytest.raises(ModelError, match=rf"model\.text_cache='{tmp_path / 'texts'}'.*cannot be written.*null"):
        denoiser.encode(TEXTS[:1])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk without room is Linux's device")
def test_a_full_disk_is_said_once_and_ends_nothing(small_sd, tmp_path, monkeypatch, caplog):
    cache = TextCache(small.run(small_sd, model__text_cache=tmp_path).model, small_sd)
    import pyarrow

    new_file = pyarrow.ipc.new_file

    def full(path, schema):
        path.write_bytes(b"")
        return new_file("/dev/full", schema)

    monkeypatch.setattr(pyarrow.ipc, "new_file", full)
    for text in ("a ring", "a star"):
        cache.put(text, row(10))
    assert list(cache.folder.iterdir()) == []
    (said,) = caplog.messages
    assert f"model.text_cache='{tmp_path}'" in said and "No space left" in said and "free some space there" in said
    monkeypatch.setattr(pyarrow.ipc, "new_file", new_file)
    cache.put("a ring", row(10))
    assert "a ring" in cache


def test_a_briefly_stale_file_is_read_again_and_not_called_damaged(small_sd, tmp_path, monkeypatch):
    cache = TextCache(small.run(small_sd, model__text_cache=tmp_path).model, small_sd)
    cache.put("a ring", row(10))
    read, failures = Path.read_bytes, [3]

    def stale(path):
        if failures[0] and path.suffix == ".arrow":
            failures[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    assert cache.get("a ring").keys() == row(10).keys()
    failures[0] = 100
    with pytest.raises(
        OSError, match=r"a cached text of model\.text_cache=.* cannot be read on this machine: .*[Ss]tale"
    ):
        cache.get("a ring")


def test_a_race_that_is_lost_leaves_the_winners_file_and_nothing_beside(small_sd, tmp_path, monkeypatch):
    model = small.run(small_sd, model__text_cache=tmp_path).model
    first, second = TextCache(model, small_sd), TextCache(model, small_sd)
    import pyarrow

    new_file = pyarrow.ipc.new_file

    def late(path, schema):
        monkeypatch.setattr(pyarrow.ipc, "new_file", new_file)
        first.put("a ring", row(10))
        return new_file(path, schema)

    monkeypatch.setattr(pyarrow.ipc, "new_file", late)
    second.put("a ring", row(10))
    assert [path.suffix for path in first.folder.iterdir()] == [".arrow"]


def test_another_variant_has_another_cache(small_sd, tmp_path):
    plain = small.run(small_sd, model__text_cache=tmp_path).model
    other = small.run(small_sd, model__text_cache=tmp_path, model__variant="fp16").model
    assert TextCache(plain, small_sd).folder != TextCache(other, small_sd).folder


@pytest.mark.parametrize(
    ("model", "part", "changes", "words"),
    [
        ("small_sd", "tokenizer", {"bos_token": "<begin>"}, r"\d+ tokens, and the text encoder rows for \d+"),
        ("small_sd3", "tokenizer_2", {"pad_token": "<padding>"}, "text_encoder_2 has .* rows for"),
        ("small_flux", "tokenizer_2", {"pad_token": None}, "'a red circle' cannot be encoded.*padding token.*copy"),
        ("small_sd", "tokenizer", {"pad_token": None}, "'a red circle' cannot be encoded.*padding token.*copy"),
    ],
)
def test_a_tokenizer_that_is_not_the_encoders_is_a_named_error(request, tmp_path, model, part, changes, words):
    folder = small.rewritten(request.getfixturevalue(model), tmp_path, f"{part}/tokenizer_config.json", **changes)
    with pytest.raises(ModelError, match=words):
        load(folder).encode(TEXTS[:1])
