"""Names of a step's files and folders: `step-000123`. Nothing heavy is imported here."""

import re

NAME = re.compile(r"step-(\d{6,})")


def name_of(step: int) -> str:
    """Return the name of a step's files and folders."""
    return f"step-{step:06d}"


def step_of(name: str) -> int | None:
    """Return the step in a name, None if the name is not exactly one of ours."""
    found = NAME.fullmatch(name)
    return int(found[1]) if found and name == name_of(int(found[1])) else None
