"""Mistakes in a config, in words: pydantic's errors with the full path, what was got, and what was meant."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pcpo_ray.config import Run
from pcpo_ray.errors import nearest, nearest_name

RENAMED = {"optimizer.updates": "optimizer.minibatches"}
"""Keys that had another name in an earlier version. The old names are refused, also in the config of a stored run.

To resume such a run, rename the key in its config.yaml: nothing else in the run's folder holds it.
"""

MEANT = 3
"""Most keys that an error guesses were meant."""


def explain(detail: Any, root: type) -> str:
    """Explain one of pydantic's errors in a line: the full path, what was got and what was expected."""
    keys, cls, annotation = _walk(detail["loc"], root)
    path = ".".join(keys) or "config"
    if detail["type"] == "unexpected_keyword_argument":
        if path in RENAMED:
            return f"{path}: got a key of an earlier version; it is now {RENAMED[path]}, so rename it where it is given"
        known = [f.name for f in dataclasses.fields(cls)] if cls is not None else []
        guess = nearest(keys[-1], known) or (_elsewhere(path) if root is Run else "")
        return f"{path}: unknown key{guess}; expected one of {known}"
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: missing; it has no default"
    if detail["type"].startswith("union_tag"):
        tags = [tag for member in _members(annotation) for tag in _kinds(member)]
        open_to_own = any(not _kinds(member) for member in _members(annotation))
        got = detail["input"].get("kind") if isinstance(detail["input"], Mapping) else detail["input"]
        guess = nearest(str(got), tags)
        expected = [*tags, "package.module:name"] if open_to_own else tags
        own = open_to_own and not guess and isinstance(got, str) and got.isidentifier()
        hint = f"; name your own with its module, as in my_module:{got}" if own else ""
        return f"{path}.kind: got {got!r}{guess}; expected one of {expected}{hint}"
    if detail["type"] in ("dataclass_type", "model_attributes_type") and (sections := _members(annotation)):
        return f"{path}: got {detail['input']!r}; expected {_below(path, sections, detail['input'])}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}" if keys else message  # a check of the whole run names its keys itself
    return f"{path}: got {detail['input']!r}; {message[0].lower()}{message[1:]}"


def _elsewhere(path: str) -> str:
    """Name the key of another mapping that an unknown key stands for: learning_rate is optimizer.learning_rate."""
    from pcpo_ray.config.keys import keys_elsewhere

    found = keys_elsewhere(path.rpartition(".")[2])
    return f" (did you mean {' or '.join(found)}?)" if 0 < len(found) <= MEANT else ""


def _below(path: str, sections: Sequence[type], value: Any) -> str:
    """Name what a mapping may hold, and the key that was meant by a value: model=sd15 is model.path=sd15."""
    from pcpo_ray.config.keys import Key, every_key

    if len(sections) > 1:
        tags = [tag for section in sections for tag in _kinds(section)]
        kind = nearest_name(str(value), tags)
        return f"a mapping with a kind, one of {tags}" + (f" (did you mean {path}.kind={kind}?)" if kind else "")
    found = list(every_key(sections[0], path))
    names = [key.path for key in found if isinstance(key, Key) and key.path.count(".") == path.count(".") + 1]
    listed = f"keys below it: {', '.join(name.removeprefix(f'{path}.') for name in names)}"
    guess = _named(found, value) or _taking(found, names, value)
    return listed + (f" (did you mean {guess}?)" if guess else "")


def _named(found: Sequence[Any], value: Any) -> str:
    """Find the key of which a text is one of the possible values: sampling=ddim is sampling.process.kind=ddim."""
    from pcpo_ray.config.keys import Kind

    values = {
        (f"{key.path}.kind" if isinstance(key, Kind) else key.path, one): one
        for key in found
        for one in (key.names if isinstance(key, Kind) else re.findall(r"`([^`:]+)`", key.type))
        if one not in ("true", "false", "null")
    }
    nearest_one = nearest_name(value, values.values()) if isinstance(value, str) else None
    return next((f"{path}={one}" for path, one in values if one == nearest_one), "")


def _taking(found: Sequence[Any], names: Sequence[str], value: Any) -> str:
    """Find the first key that takes a value of this type: a text near the top only, a number anywhere."""
    from pcpo_ray.config.keys import Key

    match value:
        case bool():
            types: tuple[str, ...] = ()
        case int():
            types = ("integer", "number")
        case float():
            types = ("number",)
        case str():
            types = ("text", "path")
        case _:
            types = ()
    for key in found:
        if isinstance(key, Key) and key.type.startswith(types or "-") and (key.path in names or types[0] != "text"):
            return f"{key.path}={value}"
    return ""


def _walk(location: Sequence[Any], root: type) -> tuple[list[str], type | None, Any]:
    """Follow a location to its keys without pydantic's union tags, the class that owns the last one, and its type."""
    keys: list[str] = []
    annotation: Any = root
    owner: type | None = None
    for part in location:
        options = _members(annotation)
        tagged = [c for c in options if part in (c.__name__, *_kinds(c))]
        if tagged and len(options) > 1:
            annotation = tagged[0]
            continue
        if not options and get_origin(annotation) in (Union, UnionType):
            continue  # one of a union of plain types, in pydantic's own words
        keys.append(str(part))
        plain_type = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if get_origin(plain_type) is Mapping:
            annotation = get_args(plain_type)[1]
            continue
        owner = options[0] if len(options) == 1 else None
        if isinstance(part, int):
            annotation = (get_args(plain_type) or (Any,))[0]
        elif owner is not None:
            annotation = get_type_hints(owner, include_extras=True).get(part, Any)
    return keys, owner, annotation


def _members(annotation: Any) -> list[type]:
    """List the config classes that an annotation allows."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    if get_origin(annotation) in (None, tuple):
        return []
    return [member for argument in get_args(annotation) for member in _members(argument)]


def _kinds(cls: type) -> tuple[Any, ...]:
    """List the values that a class accepts as its kind; none if it has no kind, or one that is any text."""
    return get_args(get_type_hints(cls).get("kind"))
