"""Docstrings begin with a verb or a noun phrase, and names of tests stay short enough to read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcpo_ray

PACKAGE = Path(pcpo_ray.__file__).parent
TESTS = Path(__file__).parent
ROOMS = tuple(sorted(path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"))
FRAGMENTS = ("Of", "What", "Those", "That", "As", "Whose", "Whether", "How", "Where")
"""First words that leave the noun of a docstring to the reader."""

LONGEST = 70
PLACES = tuple(sorted(path.name for path in TESTS.iterdir() if path.is_dir() or path.suffix == ".py"))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each docstring, and of each string that documents a constant or field."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def modules(room: str) -> list[Path]:
    below = PACKAGE / room
    return [below.with_suffix(".py")] if not below.is_dir() else sorted(below.rglob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_no_docstring_begins_with_a_fragment(room):
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text.splitlines()[0]}"
        for path in modules(room)
        for line, text in docstrings(path)
        if text.split() and text.split()[0].rstrip(",.:;") in FRAGMENTS
    ]
    assert not found, "begin these with a verb or a noun phrase:\n" + "\n".join(found)


@pytest.mark.parametrize("place", PLACES)
def test_names_of_tests_are_short_enough_to_read(place):
    path = TESTS / place
    found = [
        f"{file.relative_to(TESTS)}:{node.lineno}: {node.name} ({len(node.name)})"
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > LONGEST
    ]
    assert not found, f"names of more than {LONGEST} characters:\n" + "\n".join(found)
