"""Lines elsewhere than on a terminal: stamped, levelled, or JSON; what others print becomes lines too."""

import json
import re
import sys

import pytest

from pcpo_ray.commands.log import LEVELS, Log, Prints, checked_level, level_of, prints_in
from pcpo_ray.errors import ConfigError


def test_lines_are_stamped_with_time_and_level_each_of_them():
    lines = []
    Log(lines.append, form="stamped").write("two\nlines", "warning")
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d WARNING two", lines[0]) and lines[1].endswith("WARNING lines")


def test_json_lines_hold_the_details_and_no_nan():
    lines = []
    Log(lines.append, form="json").write("step 1", record={"reward": float("nan"), "step": 1})
    found = json.loads(lines[0])
    assert found["message"] == "step 1" and found["level"] == "info" and found["record"] == {"reward": None, "step": 1}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+[+-]\d\d:\d\d", found["time"])


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_left_out(level, count):
    lines = []
    log = Log(lines.append, level=level)
    for each in LEVELS:
        log.write(each, each)
    assert lines == list(LEVELS[-count:])


def test_a_level_that_is_none_is_named():
    assert checked_level("WARNING") == "warning"
    with pytest.raises(ConfigError, match="got --log-level 'loud'; expected one of debug, info, warning, error"):
        checked_level("loud")


def test_faults_and_alarms_are_warnings_and_hedges_and_recoveries_are_not():
    assert [level_of(f"{word} x") for word in ("warning:", "fault:", "ALARM")] == ["warning"] * 3
    assert [level_of(f"{word} x") for word in ("note:", "recovered:", "step 1/2:")] == ["info"] * 3


def test_what_others_print_comes_line_by_line_without_colours():
    lines = []
    stream = Prints(sys.stdout, lines.append)
    stream.write("\x1b[36m(raylet)\x1b[0m a node ")
    assert lines == []
    stream.write("is low\n\n 10%\r 50%\r100%\nbegun")
    stream.finish()
    assert lines == ["(raylet) a node is low", "100%", "begun"]


def test_prints_are_lines_of_the_log_while_it_lasts(capsys):
    lines = []
    with prints_in(Log(lines.append, form="stamped")):
        print("from a reward")
        print("to stderr", file=sys.stderr)
    print("afterwards")
    assert [line[28:] for line in lines] == ["from a reward", "to stderr"]
    assert capsys.readouterr() == ("afterwards\n", "")
