"""The decorator that makes a config class, and the constrained types of its keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator

T = TypeVar("T")
STRICT = {"extra": "forbid", "allow_inf_nan": False}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def config(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass; pydantic refuses unknown keys and numbers that are not finite."""
    cls.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


# -- numbers -----------------------------------------------------------------------------------------------------------


def _no_truth_value(value: Any) -> Any:
    """Refuse booleans: YAML reads yes, on and true as True, which pydantic would take for 1."""
    if isinstance(value, bool):
        raise ValueError(f"got {value}; expected a number")
    return value


NUMBER = BeforeValidator(_no_truth_value)
Number = Annotated[float, NUMBER]
Count = Annotated[int, NUMBER, Ge(1)]
NonNegativeInt = Annotated[int, NUMBER, Ge(0)]
Positive = Annotated[float, NUMBER, Gt(0)]
NonNegative = Annotated[float, NUMBER, Ge(0)]
Fraction = Annotated[float, NUMBER, Ge(0), Lt(1)]
PositiveFraction = Annotated[float, NUMBER, Gt(0), Le(1)]

# -- paths -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PathMark:
    """The mark of a key that holds a path; with `or_name`, the path of a model or the name of a known one."""

    or_name: bool = False


FilePath = Annotated[str, PathMark()]
"""The path of a file or folder; paths.py makes it absolute."""

NameOrPath = Annotated[str, PathMark(or_name=True)]
"""The name of a model, unless it contains a slash or a folder of that name exists."""


def path_marks(cls: type) -> dict[str, PathMark]:
    """Find the keys of a config class that hold paths, with their marks."""
    hints = get_type_hints(cls, include_extras=True)
    marks = {name: _mark(hint) for name, hint in hints.items()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def _mark(hint: Any) -> PathMark | None:
    """Find the mark in a type such as `FilePath` or `FilePath | None`."""
    if isinstance(hint, PathMark):
        return hint
    return next((mark for part in get_args(hint) if (mark := _mark(part)) is not None), None)


# -- kinds -------------------------------------------------------------------------------------------------------------

Family = Literal["diffusion", "flow"]
"""The two families of models: diffusion models predict noise or v, flow-matching models a velocity."""


def members(union: Any) -> tuple[Any, ...]:
    """List the classes of an annotated union, in order: `Annotated[A | B, ...]` gives A and B."""
    return get_args(get_args(union)[0])


def kinds(cls: type) -> tuple[str, ...]:
    """List the values that a config class accepts as its `kind`."""
    found: tuple[str, ...] = get_args(get_type_hints(cls)["kind"])
    return found


def kinds_by_family(union: Any) -> Mapping[Family, tuple[str, ...]]:
    """List the kinds of a union's classes for each family, as the classes declare it in `families`."""
    return {
        family: tuple(kind for cls in members(union) if family in cls.families for kind in kinds(cls))
        for family in get_args(Family)
    }
