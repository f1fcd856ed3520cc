"""The decorator that makes a config class, and the constrained types of its keys."""

import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_type_hints
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, Discriminator, GetCoreSchemaHandler, StringConstraints, Tag
from pydantic_core import CoreSchema, core_schema

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
Count = Annotated[int, Ge(1), NUMBER]
NonNegativeInt = Annotated[int, Ge(0), NUMBER]
Positive = Annotated[float, Gt(0), NUMBER]
NonNegative = Annotated[float, Ge(0), NUMBER]
Fraction = Annotated[float, Ge(0), Lt(1), NUMBER]
PositiveFraction = Annotated[float, Gt(0), Le(1), NUMBER]


@dataclass(frozen=True)
class Unit:
    """The mark of a number's unit, for the reference of all keys."""

    name: str


Seconds = Annotated[float, Gt(0), NUMBER, Unit("seconds")]
Pixels = Annotated[int, Ge(1), NUMBER, Unit("pixels")]

# -- texts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InWords:
    """The mark of a type that its pattern would not explain, for the reference of all keys and for errors."""

    text: str


Url = Annotated[str, StringConstraints(pattern="^https?://"), InWords("address that begins with http:// or https://")]
VariableName = Annotated[
    str, StringConstraints(pattern="^[A-Za-z_][A-Za-z0-9_]*$"), InWords("name of an environment variable")
]
Label = Annotated[
    str, StringConstraints(pattern=r"^[^\s\p{C}]+( [^\s\p{C}]+)*$"), InWords("words with one space between them")
]
"""A name that the user gives to a reward's scores."""

# -- paths -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PathMark:
    """The mark of a key that holds a path, or something else that only a path with a slash cannot be.

    `or_name` allows the name of a known model, `or_hub` an id of the Hugging Face Hub, `or_list` the name of a list of
    prompts.
    """

    or_name: bool = False
    or_hub: bool = False
    or_list: bool = False

    def is_name(self, text: str) -> bool:
        """Return whether a text is a name or an id; whatever exists is a path."""
        named = (
            (self.or_name and "/" not in text)
            or (self.or_hub and HUB_ID.fullmatch(text) is not None)
            or (self.or_list and LIST_NAME.fullmatch(text) is not None)
        )
        return named and not os.path.exists(text)


HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""An id of the Hugging Face Hub, `owner/name`, which may also be a relative path."""

LIST_NAME = re.compile(r"\w+")
"""The name of a shipped list of prompts."""


FilePath = Annotated[str, PathMark()]
"""The path of a file or folder; paths.py makes it absolute."""

NameOrPath = Annotated[str, PathMark(or_name=True)]
"""The name of a model, unless it contains a slash or a folder of that name exists."""

HubIdOrPath = Annotated[str, PathMark(or_name=True, or_hub=True)]
"""The name or the path of a model, or its id on the Hugging Face Hub."""

ListOrPath = Annotated[str, PathMark(or_list=True)]
"""The name of a list of prompts, a word without a dot, or the path of a file."""


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

FAMILIES: tuple[Family, ...] = get_args(Family)

OwnKind = Annotated[str, StringConstraints(pattern=":")]
"""The import path of a class or function of the user's own, `package.module:name`."""

Options = Mapping[str, Any]
"""The keyword arguments of a class or function of the user's own."""


def members(union: Any) -> tuple[Any, ...]:
    """List the classes of an annotated union, in order: `Annotated[A | B, ...]` gives A and B."""
    return get_args(get_args(union)[0])


def kinds(cls: type) -> tuple[str, ...]:
    """List the values that a config class accepts as its `kind`; none if that is an import path."""
    found: tuple[str, ...] = get_args(get_type_hints(cls)["kind"])
    return found


def kinds_by_family(union: Any) -> Mapping[Family, tuple[str, ...]]:
    """List the kinds of a union's classes for each family, as the classes declare it in `families`."""
    return {
        family: tuple(kind for cls in members(union) if family in cls.families for kind in kinds(cls))
        for family in FAMILIES
    }


def of_kind(text: str) -> Mapping[str, Any]:
    """Read a text that stands for a mapping: its kind, everything else by default."""
    return {"kind": text}


@dataclass(frozen=True)
class ByKind:
    """The mark of an open union: `kind` names one of its classes, or with a colon a class of the user's own.

    A text in place of the mapping is what `of_text` makes of it.
    """

    of_text: Callable[[str], Mapping[str, Any]] = of_kind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Have pydantic choose the class by `kind`, with the class's name as its tag."""
        classes = get_args(source)
        shipped = {kind: cls.__name__ for cls in classes for kind in kinds(cls)}
        (own,) = (cls.__name__ for cls in classes if not kinds(cls))

        def tag(value: Any) -> str | None:
            kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
            if kind is None:
                return None
            return shipped.get(kind) if isinstance(kind, str) and kind in shipped else own if ":" in str(kind) else ""

        tagged = reduce(operator.or_, (Annotated[cls, Tag(cls.__name__)] for cls in classes))
        inner = handler.generate_schema(Annotated[tagged, Discriminator(tag)])
        text_or_mapping = core_schema.union_schema([core_schema.str_schema(), inner])
        return core_schema.no_info_before_validator_function(
            self._mapping, inner, json_schema_input_schema=text_or_mapping
        )

    def _mapping(self, value: Any) -> Any:
        return self.of_text(value) if isinstance(value, str) else value


# -- URLs --------------------------------------------------------------------------------------------------------------


def check_server(url: str, key: str) -> None:
    """Raise ValueError for a server's URL with a secret in it, or with what no path can follow.

    `key` names the config's key for secrets.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        found = "a user's name or password in it"
    elif parts.query or parts.fragment:
        found = f"{'?' if parts.query else '#'}... at its end, where paths are to follow"
    else:
        return
    raise ValueError(
        f"url has {found}, and a config is kept with its run; leave that out, and give the name of an environment "
        f"variable that holds a secret in `{key}`"
    )


# -- lists -------------------------------------------------------------------------------------------------------------


def one_or_more(value: Any) -> Any:
    """Read a single item, a text or a mapping, as a list of one."""
    return [value] if isinstance(value, str | Mapping) else value
