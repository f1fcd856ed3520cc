"""Prompts come in a seeded order that can be entered anywhere."""

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from pcpo_ray import config
from pcpo_ray.data import prompt_files, prompts
from pcpo_ray.errors import PromptError
from pcpo_ray.shapes import captions
from tests.support import small

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


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\f", "\v", "\x1c", "\u2029"])
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "json"])
def test_only_line_feeds_end_lines(tmp_path, suffix, separator):
    text, path = f"a cat{separator}on a mat", tmp_path / f"a.{suffix}"
    as_json = json.dumps({"prompt": text}, ensure_ascii=False)
    written = {
        "txt": f"{text}\r\nb\n",
        "csv": f"prompt\r\n{text}\r\nb\r\n",
        "jsonl": as_json + '\r\n{"prompt": "b"}',
        "json": f'["b", {as_json}]',
    }
    path.write_bytes(written[suffix].encode())
    if suffix.startswith("json") and separator < " ":  # JSON escapes control characters
        path.write_text(written[suffix].replace(separator, json.dumps(separator)[1:-1]), newline="")
    assert sorted(prompt_files.read(path).texts) == [text, "b"]


BY_OTHERS = {
    "geneval.jsonl": '{"prompt": "x", "include": [{"class": "dog", "position": ["left of", 0]}]}\n{"prompt": "y"}\n',
    "mixed.jsonl": '{"tag": 1, "prompt": "x"}\n\n{"tag": {"a": []}, "prompt": "y", "more": null}',
    "CAPITALS.JSONL": '{"prompt": "x"}\r\n{"prompt": "y"}\r\n',
    "other.ndjson": '{"prompt": "x"}\n{"prompt": "y"}',
    "list.json": '["x", "y"]',
    "objects.json": '[{"prompt": "x", "id": 1}, {"id": [2], "prompt": "y"}]',
    "CAPITALS.CSV": "id,prompt\r\n1,x\r\n2,y\r\n",
    "bom.csv": "\ufeffprompt\nx\ny\n",
    "bom.txt": "\ufeffx\r\ny",
    "CAPITALS.TXT": "x\n  \ny\n",
    "blank lines.csv": "\nprompt,n\n\nx,1\n\ny,2\n\n",
    "no end.csv": 'prompt\n"x"\n"y"',
}


@pytest.mark.parametrize("name", BY_OTHERS)
def test_files_are_read_as_people_have_them(tmp_path, name):
    (tmp_path / name).write_bytes(BY_OTHERS[name].encode())
    assert prompt_files.read(tmp_path / name).texts == ["x", "y"]


def test_a_csv_text_may_have_quotes_commas_and_line_ends_between_quotes(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'n,prompt\r\n1,"a ""red"" cat, \r\non a mat"\r\n2,a 6" ruler\r\n')
    assert prompt_files.read(tmp_path / "a.csv").texts == ['a "red" cat, \non a mat', 'a 6" ruler']


@pytest.mark.parametrize(
    "type_", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.string()]
)
def test_a_parquet_column_of_any_text_type_is_read_whatever_the_others_are(tmp_path, type_):
    column = pa.array(["x", "y"], pa.string()).cast(type_)
    others = pa.array([[{"a": 1}], []])
    parquet.write_table(pa.table({"prompt": column, "include": others}), tmp_path / "a.parquet")
    assert prompt_files.read(tmp_path / "a.parquet").texts == ["x", "y"]


def test_each_format_is_read(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("id,prompt\n" + "\n".join(f'{n},"{t}"' for n, t in enumerate(TEXTS)))
    (tmp_path / "a.jsonl").write_text("\n".join(f'{{"prompt": "{t}"}}' for t in TEXTS))
    parquet.write_table(pa.table({"prompt": TEXTS}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.csv", "a.jsonl", "a.parquet"):
        assert prompt_files.read(tmp_path / name).texts == TEXTS


def test_a_csv_column_of_numbers_is_text(tmp_path):
    (tmp_path / "a.csv").write_text("year,prompt\n1,1984\n2,007\n")
    assert prompt_files.read(tmp_path / "a.csv").texts == ["1984", "007"]


WRONG = {
    "wide.txt": "a cat\n".encode("utf-16"),
    "wide.csv": "prompt\na\n".encode("utf-16"),
    "no mark.txt": "a cat\n".encode("utf-16-le"),
    "nul.jsonl": b'{"prompt": "a\0"}\n',
    "latin line.txt": b"ok\ncaf\xe9\n",
    "pointer.txt": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
    "pointer.parquet": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
    "twice.jsonl": '{"prompt": "p", "prompt": "q"}\n',
    "mac.txt": "a\rb\r",
    "mac.csv": "prompt\ra\rb",
    "a.txt.gz": b"\x1f\x8b",
    "a.tsv": "prompt\tid\nx\t1\n",
    "semicolons.csv": "prompt;id\nx;1\n",
    "tabs.csv": "prompt\tid\nx\t1\n",
    "backslash.csv": 'prompt\n"a \\"red\\" cat"\n',
    "backslash bare.csv": 'prompt\nb\na \\"red\\" cat\n',
    "backslash comma.csv": 'prompt\nb\n"a \\", cat"\n',
    "open.csv": 'prompt\n"a cat\n',
    "comma.csv": "prompt,id\na cat, sleeping,1\n",
    "short.csv": "prompt,id\na,1\nb\n",
    "blank.csv": "prompt,id\na,1\n  ,2\n",
    "bad line.jsonl": '{"prompt": "a"}\n{"prompt": \'b\'}\n',
    "texts.jsonl": '"a"\n',
    "missing.jsonl": '{"prompt": "a"}\n{"text": "b"}\n',
    "number.jsonl": '{"prompt": 7}\n',
    "half.jsonl": '{"prompt": "a \\ud83d"}\n',
    "object.json": '{"prompts": ["a"]}',
    "cut.json": '["a", ',
    "nested.json": '[["a"]]',
    "empty.json": "[]",
    "empty.jsonl": "",
    "blank.txt": " \n\t\r\n",
}


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
    parquet.write_table(pa.table({"prompt": [["x"]]}), tmp_path / "list.parquet")
    parquet.write_table(pa.table({"prompt": ["x", None]}), tmp_path / "null.parquet")
    parquet.write_table(pa.table({"Prompt": ["x"]}), tmp_path / "case.parquet")
    for name, data in WRONG.items():
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else str(data).encode())
    expected = {
        "list.parquet": r"row 1: prompt is \['x'\]; expected a text",
        "null.parquet": "row 2: prompt is None",
        "case.parquet": r"no column 'prompt'; its columns are \['Prompt'\] \(set prompts.column\)",
        "wide.txt": r"is UTF-16; save it as UTF-8 \(iconv",
        "wide.csv": "UTF-16",
        "no mark.txt": "UTF-16 or no text",
        "nul.jsonl": "NUL bytes",
        "latin line.txt": "line 2 cannot be read as UTF-8",
        "pointer.txt": "git lfs pull",
        "pointer.parquet": "git lfs pull",
        "twice.jsonl": "row 1 has more than one 'prompt'",
        "mac.txt": "line 1 cannot be read, as it has a carriage return inside",
        "mac.csv": "carriage return",
        "a.txt.gz": "compressed",
        "a.tsv": "'.tsv'; save it with commas",
        "semicolons.csv": "'prompt;id', has no comma",
        "tabs.csv": "has no comma",
        "backslash.csv": r"line 2 cannot be read as CSV.*double the quotes",
        "backslash bare.csv": r"line 3 cannot be read as CSV: it has a quote after a backslash.*double the quotes",
        "backslash comma.csv": r"line 3 cannot be read as CSV: it has 2 columns, and the header has 1",
        "open.csv": "cannot be read as CSV",
        "comma.csv": "line 2 cannot be read as CSV: it has 3 columns, and the header has 2",
        "short.csv": "line 3 cannot be read as CSV: it has 1 columns, and the header has 2",
        "blank.csv": "row 2: prompt is '  '",
        "bad line.jsonl": "row 2 cannot be read as JSON",
        "texts.jsonl": "row 1 holds a text; expected an object",
        "missing.jsonl": "row 2 has no column 'prompt'",
        "number.jsonl": "row 1: prompt is 7",
        "half.jsonl": "half of a surrogate pair",
        "object.json": "holds an object; expected a list",
        "cut.json": "cannot be read as JSON",
        "nested.json": "row 1 holds a list",
        "empty.json": "no prompts",
        "empty.jsonl": "no prompts",
        "blank.txt": "no prompts",
        "nothing.txt": "no prompt file at .*; expected a text file with a prompt a line.*: animals or scenes",
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


def test_the_embedded_world_has_thousands_of_prompts_in_disjoint_splits():
    train, held_out = (prompts.load(config.ShapesPrompts(split=s), seed=0).texts for s in ("train", "held_out"))
    assert len(train) > 2000
    assert not set(train) & set(held_out)


def test_the_embedded_world_has_prompts_of_one_form_alone():
    """Of 6 x 8 things with or without one of two sizes, 144 captions are of a thing alone, 5 times as many placed."""
    counts = {}
    for form in ("any", "thing", "placed", "related"):
        texts = [prompts.load(config.ShapesPrompts(split=s, form=form), seed=0).texts for s in ("train", "held_out")]
        counts[form] = sum(map(len, texts))
        assert all(form in ("any", captions.parse(text).form) for side in texts for text in side[:50])
    assert counts == {"any": 57264, "thing": 144, "placed": 720, "related": 56400}


def test_the_words_world_has_thousands_of_prompts_in_disjoint_splits():
    train, held_out = (prompts.load(config.WordsPrompts(split=s), seed=0).texts for s in ("train", "held_out"))
    assert len(train) > 100_000 and len(held_out) > 10_000
    assert not set(train) & set(held_out)


# -- what is held out --------------------------------------------------------------------------------------------------


def run(tmp_path, trained, evaluated=None, **changes):
    (tmp_path / "train.txt").write_text("\n".join(trained), encoding="utf-8")
    if evaluated is not None:
        (tmp_path / "evaluated.txt").write_text("\n".join(evaluated), encoding="utf-8")
        changes["evaluation__prompts"] = f"{{kind: file, path: {tmp_path / 'evaluated.txt'}}}"
    return small.run("model", prompts=f"{{kind: file, path: {tmp_path / 'train.txt'}}}", **changes)


def many(count):
    return [f"a cat on {n} mats" for n in range(count)]


def test_a_file_is_split_by_hash_and_held_out_texts_are_not_trained_on(tmp_path):
    training, held_out = prompts.sources(run(tmp_path, many(1000)))
    assert sorted([*training.texts, *held_out.texts]) == sorted(many(1000))
    assert not set(training.texts) & set(held_out.texts)
    assert 70 < len(held_out) < 130
    drawn = {prompt.text for step in range(1, 300) for prompt in training.batch(step, 8)}
    assert drawn == set(training.texts)


def test_the_split_depends_on_each_text_alone(tmp_path):
    texts = many(1000)
    held_out = set(prompts.sources(run(tmp_path, texts))[1].texts)
    for changes in ({"seed": 5}, {"evaluation__count": 256}):
        assert set(prompts.sources(run(tmp_path, texts[::-1], **changes))[1].texts) == held_out
    more = set(prompts.sources(run(tmp_path, [*(f"another {n}" for n in range(500)), *texts]))[1].texts)
    assert more & set(texts) == held_out


def test_repeats_of_a_text_are_on_one_side_of_the_split(tmp_path):
    texts = [*many(100), *(text.upper() for text in many(100)), *(text.replace(" ", "  ") for text in many(100))]
    training, held_out = prompts.sources(run(tmp_path, texts))
    assert not set(map(prompts.normalised, training.texts)) & set(map(prompts.normalised, held_out.texts))
    assert len(training) + len(held_out) == 300 and len(held_out) % 3 == 0  # a repeat is a weight in training


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (3, 1), (10, 5), (45, 22), (100, 32)])
def test_a_small_file_holds_out_a_minimum_and_at_most_half(tmp_path, count, held_out):
    training, evaluated = prompts.sources(run(tmp_path, many(count)))
    assert (len(training), len(evaluated)) == (count - held_out, held_out)


def test_a_single_prompt_cannot_be_split_and_the_ways_out_are_named(tmp_path):
    with pytest.raises(PromptError, match=r"1 distinct prompt.*give evaluation\.prompts.*evaluation\.held_out=false"):
        prompts.sources(run(tmp_path, ["a cat", "A cat "]))


def test_prompts_both_evaluated_and_trained_on_are_refused_with_remedies(tmp_path):
    with pytest.raises(PromptError) as caught:
        prompts.sources(run(tmp_path, ["a cat", "a dog", "caf\u00e9"], ["A  Cat", "a fox", "cafe\u0301"]))
    said = str(caught.value)
    assert "2 of 3 evaluation prompts" in said and "train.txt" in said and "evaluated.txt" in said
    assert "'A  Cat'" in said and "'a fox'" not in said and "evaluation.held_out=false" in said
    shapes = small.run("model", evaluation__prompts="{kind: shapes, split: train}")
    with pytest.raises(PromptError, match="51403 of 51403 evaluation prompts"):
        prompts.sources(shapes)


@pytest.mark.parametrize("same", ["\ufeffa cat", "a\u200b cat", "a\u00a0cat", "a \uff43at", "a c\u00adat"])
def test_texts_that_look_the_same_are_one_prompt(tmp_path, same):
    with pytest.raises(PromptError, match="1 of 2 evaluation prompts"):
        prompts.sources(run(tmp_path, ["a cat", "a dog"], [same, "a fox"]))
    assert len(prompts.load(run(tmp_path, ["a cat", same]).prompts, seed=0).distinct(2)) == 1


def test_training_prompts_may_be_evaluated_where_the_config_says_so(tmp_path):
    training, evaluated = prompts.sources(run(tmp_path, many(45), evaluation__held_out=False))
    assert evaluated.texts == training.texts == many(45)
    allowed = run(tmp_path, ["a cat", "a dog"], ["a cat", "a fox"], evaluation__held_out=False)
    assert prompts.sources(allowed)[1].texts == ["a cat", "a fox"]
    with pytest.raises(PromptError, match="held_out is false, and none of the evaluation prompts"):
        prompts.sources(run(tmp_path, ["a cat"], ["a fox"], evaluation__held_out=False))


@pytest.mark.parametrize(("trained", "evaluated"), [("train", "held_out"), ("held_out", "train")])
@pytest.mark.parametrize("world", [config.ShapesPrompts, config.WordsPrompts])
def test_an_embedded_world_is_evaluated_on_the_other_split(world, trained, evaluated):
    found = prompts.sources(small.run("model", prompts=f"{{kind: {world().kind}, split: {trained}}}"))
    assert found[0].texts == prompts.load(world(split=trained), seed=0).texts
    assert found[1].texts == prompts.load(world(split=evaluated), seed=0).texts


def test_one_worlds_prompts_are_evaluated_on_anothers_where_asked():
    found = prompts.sources(small.run("model", prompts="{kind: words}", evaluation__prompts="{kind: shapes}"))
    assert found[1].texts == prompts.load(config.ShapesPrompts(), seed=0).texts


def test_what_is_trained_on_and_held_out_is_said_with_its_numbers(tmp_path):
    split = run(tmp_path, [*many(100), "a cat on 1 mats"], evaluation__count=64)
    lines = prompts.said(split, *prompts.sources(split))
    assert "training prompts: 6" in lines[0] and "train.txt" in lines[0]
    assert "evaluations: 32 of 32 held-out prompts of the held-out part of" in lines[1]
    assert "evaluations have 32 prompts, for evaluation.count=64" in lines[2]
    both = run(tmp_path, ["a cat", "a cat", "a dog"], evaluation__held_out=False)
    lines = prompts.said(both, *prompts.sources(both))
    assert "training prompts: 3" in lines[0] and "2 of them distinct" in lines[0]
    assert "evaluations: 2 of 2 training prompts" in lines[1] and "held" not in " ".join(lines)


def test_repeats_in_other_columns_and_very_long_texts_are_accepted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "prompt": "a cat", "id": 2, "more": {"prompt": 1, "prompt": 2}}\n')
    assert prompt_files.read(tmp_path / "a.jsonl").texts == ["a cat"]
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'prompt\n"{long}"\n')
    assert prompt_files.read(tmp_path / "a.csv").texts == [long.strip()]


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_columns_height_and_width_are_the_sizes_of_a_prompts_images(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = [{"prompt": "a", "height": 32, "width": 16}, {"prompt": "b"}, {"prompt": "c", "height": 32, "width": 16}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("width,prompt,height\n16,a,32\n,b,\n 16,c,32\n")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        found = prompt_files.read(tmp_path / name)
        assert (found.texts, found.sizes) == (["a", "b", "c"], [(32, 16), None, (32, 16)])
        assert found.places == {(32, 16): f"{tmp_path / name}, row 1"}
    (tmp_path / "plain.csv").write_text("width,prompt,height\n,a,\n")
    assert prompt_files.read(tmp_path / "plain.csv").sizes == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,width\na,16\n", "row 1: width is 16, and there is no height; give both"),
        ("a.csv", "prompt,height,width\na,16,\n", "row 1: height is 16, and there is no width"),
        ("a.csv", "prompt,height,width\na,16,1.5\n", "row 1: width is '1.5'; expected a whole number of pixels"),
        ("a.csv", "prompt,height,width\na,0,16\n", "row 1: height is 0; expected a whole number"),
        ("a.csv", "prompt,height,width,height\na,8,8,8\n", "line 1 has more than one column 'height'"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b", "height": "16", "width": 16}', "row 2: height is '16'"),
        ("a.jsonl", '{"prompt": "a", "height": true, "width": 16}', "row 1: height is True"),
        ("a.jsonl", '{"prompt": "a", "height": 8, "width": 8, "width": 9}', "row 1 has more than one 'width'"),
    ],
)
def test_a_size_that_is_none_is_named_with_its_row(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(PromptError, match=rf"{name}, {message}"):
        prompt_files.read(tmp_path / name)


def test_prompts_keep_their_sizes_on_both_sides_of_the_split(tmp_path):
    rows = "".join(f"prompt {n},{16 * (n % 3 + 1)},16\n" for n in range(200))
    (tmp_path / "a.csv").write_text(f"prompt,height,width\n{rows}")
    run = small.run("model", prompts=str(tmp_path / "a.csv"))
    found = prompts.sources(run)
    for source in found:
        for prompt in source.batch(1, len(source)):
            assert prompt.size == (16 * (int(prompt.text.split()[1]) % 3 + 1), 16)
        assert source.places.keys() == {(16, 16), (32, 16), (48, 16)}
    assert any("(height x width): 16 x 16, 32 x 16, 48 x 16" in line for line in prompts.said(run, *found))
