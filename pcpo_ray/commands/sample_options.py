"""Options of `pcpo-ray sample`, checked before torch is loaded: the file to write, and strengths of adapters."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from pcpo_ray.errors import ConfigError, RunError
from pcpo_ray.runs import look

P = TypeVar("P", str, Path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strengths(Generic[P]):
    """A run's folder or place, and the strengths at which its adapter is applied."""

    folder: P
    values: tuple[float, ...] = (1.0,)


def check(*, base: bool, compare: bool, strength: str, also: Sequence[str]) -> bool:
    """Check options that belong together; returns whether adapters are composed. Raises ConfigError and RunError."""
    composed = bool(also) or strength != "1"
    if composed and base:
        raise ConfigError("got --base, which is the model without adapters, with --strength or --with; give one")
    if compare and (base or composed):
        raise ConfigError("got --compare, which draws before and after, with --base, --strength or --with; give one")
    values(strength)
    for text in also:
        parse(text, look.there)
    return composed


def check_values(prompt: object, *, images: object, seed: object) -> None:
    """Check what Python may pass in other types than the command line. Raises ConfigError."""
    if not isinstance(prompt, str):
        raise ConfigError(f"got the prompt {prompt!r}; expected one text: call sample once for each prompt")
    for name, value, least in (("images", images, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"got {name}={value!r}; expected an integer >= {least}")


def parse(text: str, folder_of: Callable[[str], P]) -> Strengths[P]:
    """Parse `runs/mine=0.5,1`; `folder_of` maps the run's place to a folder. Raises RunError."""
    folder, _, listed = text.rpartition("=")
    found = _numbers(listed)
    if not folder or not found:
        raise RunError(f"got {text!r}; expected a run and the strengths of its adapter, such as runs/mine=0.5,1")
    return Strengths(folder=folder_of(folder), values=found)


def values(strength: str) -> tuple[float, ...]:
    """Parse the strengths of the run that is drawn with: `0,0.5,1`. Raises RunError."""
    found = _numbers(strength)
    if not found:
        raise RunError(f"got the strength {strength!r}; expected a number, or several such as 0,0.5,1")
    return found


def _numbers(text: str) -> tuple[float, ...]:
    """Parse finite numbers with commas between; none if one of them is no such number."""
    try:
        found = tuple(float(value) for value in text.split(","))
    except ValueError:
        return ()
    return found if all(map(math.isfinite, found)) else ()


def check_writable(out: Path) -> None:
    """Check that `out` can be a PNG file. Raises RunError."""
    if out.suffix != ".png":
        raise RunError(f"images cannot be written to {out}; expected a name that ends in .png")
    if not out.parent.is_dir():
        raise RunError(f"images cannot be written to {out}: there is no folder {out.parent}; make it, or give another")
