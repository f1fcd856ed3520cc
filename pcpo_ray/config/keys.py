"""Keys: every key of a run's config, with its type, default, unit and meaning, as the classes declare them.

The meaning of a key is the text under its field in the class; the meaning of a kind is its class's docstring.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen
from pydantic import StringConstraints, WithJsonSchema

from pcpo_ray.config.base import InWords, PathMark, Unit, kinds
from pcpo_ray.config.meant import KEY_OF
from pcpo_ray.config.run import Run
from pcpo_ray.errors import begun_by, nearest_name

OWN = "package.module:name"
"""A stand-in, in lists of kinds, for a class or function of the user's own."""

MEANT = 3
"""Most keys that an error guesses were meant."""

ALIKE = 0.8
"""The similarity of two names from which a key in another place counts as the one that was meant."""

ITEM = "N"
"""A stand-in, in paths, for a place in a list, counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key: its `type`, `default` and `unit` in words, and its documentation.

    `kind` names the kinds of the mapping that have the key; empty: every one has it.
    """

    path: str
    kind: str
    type: str
    default: str
    unit: str
    text: str

    @property
    def sentence(self) -> str:
        """The first paragraph of the documentation."""
        return " ".join(self.text.split("\n\n")[0].split())

    @property
    def rest(self) -> str:
        """The other paragraphs."""
        return "\n\n".join(" ".join(part.split()) for part in self.text.split("\n\n")[1:])


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the kinds that a mapping may have, and what it is."""

    path: str
    names: tuple[str, ...]
    text: str


def every_key(cls: type = Run, path: str = "") -> Iterator[Key | Kind]:
    """Yield every key below a config class, a mapping before what is in it.

    A mapping that may have one of several kinds is followed by the kinds and their keys. Where a later mapping has the
    kinds of an earlier one (evaluation.rewards those of rewards), they are not listed again.
    """
    seen: set[Any] = set()
    yield from _below(cls, path, "", seen)


def _below(cls: type, path: str, kind: str, seen: set[Any]) -> Iterator[Key | Kind]:
    hints = get_type_hints(cls, include_extras=True)
    texts = documented(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint = hints[field.name]
        if field.name == "kind" and kind:
            continue  # the kind itself says it
        where = f"{path}.{field.name}" if path else field.name
        classes = classes_in(hint)
        yield Key(
            path=where,
            kind=kind,
            type=type_in_words(hint),
            default=_default(field),
            unit=_unit(hint),
            text=texts.get(field.name, ""),
        )
        if not classes or (len(classes) > 1 and tuple(classes) in seen):
            continue
        seen.add(tuple(classes))
        inner = f"{where}.{ITEM}" if _is_list(hint) else where
        if len(classes) == 1:
            yield from _below(classes[0], inner, kind, seen)
        else:
            yield from _of_kinds(classes, inner, seen)


def _of_kinds(classes: Sequence[type], path: str, seen: set[Any]) -> Iterator[Key | Kind]:
    """Yield the kinds of a mapping, then their keys; a key that is the same in several kinds comes once."""
    found: dict[Key, list[str]] = {}
    every: list[str] = []
    for one in classes:
        names = kind_names(one)
        every += names
        yield Kind(path=path, names=names, text=inspect.cleandoc(one.__doc__ or ""))
        for key in _below(one, path, names[0], seen):
            assert isinstance(key, Key)  # what has a kind holds no mapping that has one
            found.setdefault(replace(key, kind=""), []).extend(names)
    for key, having in found.items():
        yield replace(key, kind="" if len(having) == len(every) else ", ".join(having))


def kind_names(cls: type) -> tuple[str, ...]:
    """List the kinds of a class; OWN stands for any import path."""
    return kinds(cls) or (OWN,)


def keys_elsewhere(word: str) -> list[str]:
    """Find the keys, anywhere in a config, that a word names, or else that it means, or nearly names or abbreviates.

    In place of keys it may be an option of `pcpo-ray train`.
    """
    paths = [key.path for key in every_key() if isinstance(key, Key)]
    if word in paths:
        return [word]
    inner = {path: path.rpartition(".")[2] for path in paths if "." in path}
    same = [path for path, last in inner.items() if last == word]
    meant = [KEY_OF[word.lower()]] if word.lower() in KEY_OF else []
    begun = begun_by(word, [path for path in paths if "." not in path])
    near = [path for path, last in inner.items() if nearest_name(word, [last], least=ALIKE)]
    return list(dict.fromkeys([*meant, *same] or begun or near))


def classes_in(hint: Any) -> list[type]:
    """List the config classes that a type allows, also as items of a list."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    if get_origin(hint) is Literal:
        return []
    return [cls for part in get_args(hint) for cls in classes_in(part)]


@cache
def documented(cls: type) -> Mapping[str, str]:
    """Find the documentation of each field of a config class, inherited fields included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _of_module(base.__module__).get(base.__name__, {}) if base.__module__.startswith("pcpo_ray.") else {}
    return found


@cache
def _of_module(name: str) -> Mapping[str, Mapping[str, str]]:
    """Read the texts under the fields of a module's classes, as no library keeps them."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[name])).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found.setdefault(node.name, {})
        for field, after in zip(node.body, node.body[1:], strict=False):
            match field, after:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[key] = inspect.cleandoc(text)
    return found


# -- types, defaults and units in words --------------------------------------------------------------------------------


def _is_list(hint: Any) -> bool:
    return get_origin(get_args(hint)[0] if get_origin(hint) is Annotated else hint) is tuple


def type_in_words(hint: Any) -> str:
    """Describe a type: `integer >= 1`, `path or null`, `one of a, b`."""
    if get_origin(hint) is Annotated:
        plain, *marks = get_args(hint)
        return _marked(type_in_words(plain), plain, marks)
    if get_origin(hint) in (Union, UnionType):
        parts = get_args(hint)
        if len(classes := [part for part in parts if classes_in(part)]) > 1:
            others = [part for part in parts if part not in classes]
            return " or ".join(["mapping with `kind`", *(type_in_words(part) for part in others)])
        return " or ".join(type_in_words(part) for part in parts)
    if get_origin(hint) is Literal:
        return " | ".join(f"`{value}`" for value in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list of {_plural(type_in_words(get_args(hint)[0]))}"
    if get_origin(hint) is Mapping:
        return "mapping"
    if classes_in(hint):
        return "mapping"
    words: Mapping[Any, str] = {
        int: "integer",
        float: "number",
        str: "text",
        bool: "`true` | `false`",
        NoneType: "`null`",
        Any: "anything",
    }
    return words[hint]


def _plural(text: str) -> str:
    return {"text": "texts", "mapping with `kind`": "mappings with `kind`"}.get(text, text)


SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}


def _marked(text: str, plain: Any, marks: list[Any]) -> str:
    """Add what marks say of a type."""
    bounds = [
        f"{sign} {getattr(mark, name)}" for mark in marks for cls, (sign, name) in SIGNS.items() if type(mark) is cls
    ]
    for mark in marks:
        match mark:
            case PathMark():
                return "path or name" if mark.or_name or mark.or_list else "path"
            case StringConstraints(pattern=":"):
                return f"`{OWN}`"
            case WithJsonSchema():
                return " | ".join(f"`{one}`" for one in (*mark.json_schema["anyOf"][0]["enum"], OWN))  # type: ignore[index]
            case InWords():
                return mark.text
            case Len(max_length=int()):
                return f"{text}, at least {mark.min_length} and at most {mark.max_length}"
            case MinLen() | Len():
                return f"{text}, at least {mark.min_length}"
    return f"{text} {', '.join(bounds)}" if bounds else text


def _unit(hint: Any) -> str:
    """Find the unit that a type is marked with."""
    if isinstance(hint, Unit):
        return hint.name
    return next((unit for part in get_args(hint) if (unit := _unit(part))), "")


def _default(field: dataclasses.Field[Any]) -> str:
    """Describe a default as YAML has it; `required` where there is none."""
    if field.default is not dataclasses.MISSING:
        return said(field.default)
    if field.default_factory is dataclasses.MISSING:
        return "required"
    made = field.default_factory()
    if not dataclasses.is_dataclass(made):
        return said(made)
    return f"kind {made.kind}" if hasattr(made, "kind") else "its defaults"


def said(value: Any) -> str:
    """Write a value as YAML does."""
    match value:
        case None | bool():
            return str(value).lower().replace("none", "null")
        case float():
            return f"{value:g}"
        case tuple() | list():
            return f"[{', '.join(map(said, value))}]"
        case Mapping():
            return "{}"
        case "":
            return '""'
        case _:
            return str(value)
