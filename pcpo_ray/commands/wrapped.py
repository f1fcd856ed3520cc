"""Lines in a terminal, broken between their words; elsewhere, as in a file or a pipe, a line stays one."""

import re
import textwrap

from rich.console import Console
from rich.segment import Segment, Segments

LEAST = 20
"""The fewest characters of a line, however narrow the terminal is."""

COMMAND = re.compile(r": ((?:hf|pcpo-ray) [^;\n]*)$")
"""A command that ends a line."""


def say(console: Console, line: str, *, hang: int = 0) -> None:
    """Print a line; in a terminal its rows begin `hang` columns further in, after the first."""
    if console.is_terminal:
        broken = "\n".join(rows(line, console.width, hang=hang))
        console.print(broken, markup=False, emoji=False, highlight=False, soft_wrap=True)
    else:
        whole = Segments([Segment(f"{line}\n")])  # no text of rich's, which would make spaces of its tabs
        console.print(whole, crop=False, end="")


def rows(text: str, width: int, *, hang: int = 0) -> list[str]:
    """Break each line that is too long, at its own indent and `hang`; words are whole, also those that are too long.

    A command that ends a line, and would be broken, gets a line of its own, from which it is copied in one piece.
    """
    found = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())] + " " * hang
        wrap = textwrap.TextWrapper(
            max(LEAST, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        command = COMMAND.search(line) if len(line) > wrap.width else None
        told = line if command is None else line[: command.start() + 1]
        found += wrap.wrap(told) if len(told) > wrap.width else [told]
        found += [] if command is None else [f"{indent}  {command[1]}"]
    return found
