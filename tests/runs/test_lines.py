"""What a run records is JSON to every reader, and what a power cut left in it is named and ends nothing."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcpo_ray.runs import lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
ROW = {"kind": "train", "step": 1, "time": 2.0}


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


@given(VALUES)
def test_any_value_is_a_line_of_json(value):
    line = lines.text({"x": value})
    assert "\n" not in line
    json.loads(line, parse_constant=refuse)


def test_numbers_that_are_none_are_null_and_come_back_as_none(tmp_path):
    row = {**ROW, "loss": math.nan, "deep": {"list": [1.5, -math.inf, {"x": math.inf}]}, "text": "null"}
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines.text(row) + "\n")
    assert json.loads(path.read_text()) == {**row, "loss": None, "deep": {"list": [1.5, None, {"x": None}]}}
    (found,) = lines.metrics(path).rows
    assert math.isnan(found["loss"]) and math.isnan(found["deep"]["list"][2]["x"])
    assert (found["deep"]["list"][0], found["text"], found["step"]) == (1.5, "null", 1)


def test_in_events_null_stays_what_it_is(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "micro_batch", "time": 1, "seconds": {"8": null}}\n')
    assert lines.events(path).rows[0]["seconds"] == {"8": None}


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85"])
def test_a_line_ends_at_its_newline_alone(tmp_path, odd):
    path = tmp_path / "events.jsonl"
    rows = [{"kind": "missing_scores", "time": n, "prompt": f"a{odd}b"} for n in range(2)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert lines.events(path).rows == rows and not lines.events(path).damaged


DAMAGED = [
    b"\0" * 4096,
    b'{"kind": "train", "step": 2, "ti',
    b"\xff\xfe\x00garbage",
    b'{"kind": "train", "step": 2, "time": 1}{"kind": "train", "step": 3, "time": 1}',
    b"[1, 2]",
    b"null",
    b'{"step": 2, "time": 1}',
    b'{"kind": "train", "time": 1}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("bad", DAMAGED, ids=lambda bad: repr(bad[:20]))
def test_a_damaged_line_is_numbered_and_the_others_are_read(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    good = lines.text(ROW).encode()
    path.write_bytes(good + b"\n" + bad + b"\n\n" + good + b"\n" + b'{"kind": "train", "st')
    found = lines.metrics(path)
    assert found.rows == [ROW, ROW] and found.damaged == [2]
    assert str(found).startswith(f"{path}, line 2: not what a run records")


def test_many_damaged_lines_are_not_all_listed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("x\n" * 50)
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...: " in str(lines.metrics(tmp_path / "metrics.jsonl"))


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert lines.metrics(tmp_path / "absent").rows == []


@pytest.mark.parametrize(("value", "words"), [(0.12345, "0.1235"), (math.nan, "-"), (math.inf, "-"), (None, "-")])
def test_what_is_no_number_is_shown_as_a_dash(value, words):
    assert lines.shown(value) == words
