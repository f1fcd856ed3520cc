"""Lines in a terminal break between words, and a command that ends one is copied in one piece."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from pcpo_ray.commands import wrapped
from pcpo_ray.commands.check.finding import MARGIN, Finding

FINDING = Finding(
    part="clip_score",
    tried="scores are the same in other company",
    verdict="not applicable",
    detail="alone 0.9043 0.8792 0.8752 0.8043, turned around 0.9043 0.8792 0.8752 0.8043",
)
LINES = [
    FINDING.line,
    "error: 2 wrong\n  rewards.0.kind: got 'my_reward:Redness', and there is no module 'my_reward' in /here",
    "on CPUs this is what tensors take; with MALLOC_MMAP_THRESHOLD_=131072 in the environment, roles stayed below",
]


def said(text, width, *, terminal=True, hang=0):
    file = io.StringIO()
    wrapped.say(Console(file=file, force_terminal=terminal, width=width, color_system=None), text, hang=hang)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("text", LINES)
def test_every_row_fits_and_no_word_is_broken(text, width):
    written = said(text, width, hang=MARGIN)
    assert written.split() == text.split()
    assert all(len(row) <= width for row in written.splitlines())


def test_rows_hang_below_the_first_at_the_indent_of_their_line():
    first, *others = said(FINDING.line, 60, hang=MARGIN).splitlines()
    assert first.startswith("not applicable clip_score: ")
    assert others and all(row.startswith(" " * MARGIN) and row[MARGIN] != " " for row in others)
    assert said("  a line of words", 20).splitlines() == ["  a line of words"]
    assert said("  a line of words and of more", 20).splitlines() == ["  a line of words", "  and of more"]


def test_a_word_that_is_too_long_and_a_command_stay_in_one_piece():
    path, command = "/tmp/" + "x" * 60, "hf download acme/small-sd --include '*.json'"
    assert said(f"report: {path}", 40).splitlines() == ["report:", path]
    assert said(f"it is not here. For its own: {command}", 40).splitlines() == [
        "it is not here. For its own:",
        f"  {command}",
    ]
    assert said(f"fetch: {command}", 80) == f"fetch: {command}\n"


def test_elsewhere_a_line_stays_one_and_nothing_of_it_is_changed():
    line = "got 'judges:smile:' [bold] and\ta tab " + "and words " * 20
    assert said(line, 40, terminal=False) == f"{line}\n"
    console = Console(file=io.StringIO(), record=True, width=40)
    wrapped.say(console, line)
    assert console.export_text() == f"{line}\n"


@pytest.mark.parametrize(
    "words",
    [
        ("train", "shapes_pcpo", "rewards=my_rewards:Redness"),
        ("train", "shapes_pcpo", "modle.kind=flux", "steps=several"),
        ("list",),
        ("status", "demo"),
        ("dashboards", "monitoring"),
    ],
    ids=" ".join,
)
def test_what_a_command_says_breaks_no_word_at_60_columns(tmp_path, words):
    seen = {}
    for columns in ("60", "1000"):
        terminal = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": columns}
        done = subprocess.run(
            [sys.executable, "-m", "pcpo_ray", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **terminal},
            timeout=60,
        )
        seen[columns] = done.stdout + done.stderr
    assert seen["60"].split() == seen["1000"].split() != []
    assert all(len(row) <= 60 for row in seen["60"].splitlines() if str(tmp_path) not in row)
