"""A command that loads and computes says what it does: in a line with a bar on a terminal, elsewhere in lines."""

import io
import sys

import pytest
from rich.console import Console

from pcpo_ray.commands.waiting import Waiting


def worked(quiet=False):
    with Waiting("loading torch", quiet=quiet) as waiting:
        waiting("drawing 4 images: denoising step 0/8", 0, 8)
        waiting("drawing 4 images: denoising step 4/8", 4, 8)
        waiting("writing the file")
    return waiting


def test_elsewhere_than_on_a_terminal_each_phase_is_a_line(capsys):
    worked()
    assert capsys.readouterr() == ("loading torch\ndrawing 4 images\nwriting the file\n", "")
    worked(quiet=True)
    with Waiting("loading torch", lines=False) as waiting:
        waiting("drawing")
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_that_is_said_stands_above_the_one_that_is_redrawn(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with Waiting("loading torch") as waiting:
        waiting.say("note: one")
    before, _, after = terminal.getvalue().partition("note: one")
    assert before.endswith("\r\x1b[2K") and after.startswith("\n")  # the spinner's line is erased first


@pytest.mark.parametrize("total", [0, 8])
def test_on_a_terminal_the_line_has_a_bar_where_something_can_be_counted(monkeypatch, capsys, total):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    waiting = Waiting("loading torch")
    assert waiting.live is not None
    waiting("drawing: step 4/8", 4, total)
    file = io.StringIO()
    Console(file=file, width=80, color_system=None).print(waiting._line())
    (line,) = file.getvalue().splitlines()
    assert "drawing: step 4/8, 0 s" in line and ("━" in line) == bool(total)
    assert capsys.readouterr().err == ""
