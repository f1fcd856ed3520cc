"""Prompts come in a seeded order that can be entered anywhere."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from pcpo_ray import config, prompts
from pcpo_ray.errors import PromptError
from pcpo_ray.shapes import captions

TEXTS = [f"prompt {n}" for n in range(7)]


def source(seed=0):
    return prompts.PromptSource(TEXTS, seed=seed, origin="test")


def test_an_epoch_holds_every_prompt_once_and_the_next_is_in_another_order():
    steps = [source().batch(step, 7) for step in (1, 2)]
    assert all(sorted(p.text for p in batch) == TEXTS for batch in steps)
    assert steps[0] != steps[1]


def test_a_batch_is_the_same_whenever_it_is_asked_and_crosses_epochs():
    one, other = source(), source()
    assert [one.batch(step, 3) for step in range(1, 8)] == [other.batch(step, 3) for step in range(7, 0, -1)][::-1]
    drawn = [p.text for step in range(1, 8) for p in one.batch(step, 3)]
    assert all(drawn.count(text) == 3 for text in TEXTS)
    assert source(1).batch(1, 7) != one.batch(1, 7)


def test_each_format_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("id,prompt\n" + "\n".join(f'{n},"{t}"' for n, t in enumerate(TEXTS)))
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"prompt": "{t}"}}' for t in TEXTS))
    parquet.write_table(pa.table({"prompt": TEXTS}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.csv", "a.jsonl", "a.parquet"):
        assert prompts.read(tmp_path / name) == TEXTS


def test_a_csv_column_of_numbers_is_text(tmp_path):
    (tmp_path / "a.csv").write_text("year,prompt\n1,1984\n2,007\n")
    assert prompts.read(tmp_path / "a.csv") == ["1984", "007"]


def test_files_that_cannot_be_used_are_named_with_what_is_wrong(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "latin.csv").write_bytes("prompt\ncaf\xe9\n".encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "caf\xe9"}\n'.encode("latin-1"))
    (tmp_path / "twice.csv").write_text("prompt,prompt\na,b\n")
    (tmp_path / "head.csv").write_text("prompt\n")
    (tmp_path / "cut.jsonl").write_text('{"prompt": "a"}\n{"prom')
    (tmp_path / "none.csv").touch()
    (tmp_path / "other.csv").write_text("text\nx\n")
    (tmp_path / "gap.jsonl").write_text('{"prompt": "x"}\n{"prompt": ""}\n')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.docx").write_text("x")
    expected = {
        "nothing.txt": "no prompt file",
        "empty.txt": "no prompts",
        "latin.txt": "UTF-8",
        "latin.csv": "UTF-8",
        "latin.jsonl": "UTF-8",
        "twice.csv": "more than one column 'prompt'",
        "head.csv": "no prompts",
        "cut.jsonl": "cannot be read",
        "none.csv": "cannot be read",
        "other.csv": "no column 'prompt'",
        "gap.jsonl": "row 2",
        "cut.parquet": "cannot be read",
        "a.docx": "'.docx'",
    }
    for name, words in expected.items():
        with pytest.raises(PromptError, match=words) as caught:
            prompts.load(config.PromptFile(path=str(tmp_path / name)), seed=0)
        assert name in str(caught.value)


def test_the_embedded_world_has_thousands_of_prompts_and_its_splits_do_not_meet():
    train, held_out = (prompts.load(config.ShapesPrompts(split=s), seed=0).texts for s in ("train", "held_out"))
    assert len(train) > 2000
    assert not set(train) & set(held_out)


def test_the_embedded_world_has_prompts_of_one_form_alone():
    """Of 6 x 8 things with or without one of two sizes, 144 captions are of a thing alone, 5 times as many placed."""
    counts = {}
    for form in ("any", "thing", "placed", "related"):
        texts = [prompts.load(config.ShapesPrompts(split=s, form=form), seed=0).texts for s in ("train", "held_out")]
        counts[form] = sum(map(len, texts))
        assert all(form in ("any", captions.parse(text).form) for text in texts[0][:50] + texts[1][:50])
    assert counts == {"any": 57264, "thing": 144, "placed": 720, "related": 56400}
