"""Configs as files: `load` reads a YAML file, `dump` writes the resolved one.

Unknown keys, wrong types and values out of range are errors that name the full path, the value and what was expected;
overrides are `a.b.c=value`, read as YAML.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from pcpo_ray.config import CustomReward, Run
from pcpo_ray.errors import ConfigError


class _Dumper(yaml.SafeDumper):
    """Writes tuples as the lists that YAML has."""


_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)


def nearest(word: str, known: Any) -> str:
    """` (did you mean 'x'?)` for the known name that is closest to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """The config in a YAML file, with overrides `a.b.c=value`.

    Raises ConfigError naming the file, the full path of the key, what was got and what was expected.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}; expected keys such as name, model, rewards")
    for override in overrides:
        set_key(data, override)
    return parse(data, source=str(path))


def parse(data: Mapping[str, Any], *, source: str = "config") -> Run:
    """The config that plain data describes; raises ConfigError as `load` does."""
    try:
        return TypeAdapter(Run).validate_python(data)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join([f"{source}: {len(lines)} wrong", *(f"  {line}" for line in lines)])) from None


def dump(value: Any) -> str:
    """The resolved config as YAML; `load` gives the same value back."""
    return yaml.dump(plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def plain(value: Any) -> dict[str, Any]:
    """The resolved config as plain data; `parse` gives the same value back."""
    # as Python values: pydantic's JSON mode would write the infinities of a custom reward's options as null
    data: dict[str, Any] = TypeAdapter(type(value)).dump_python(value)
    return data


def set_key(data: dict[str, Any], override: str) -> None:
    """Set the key that `a.b.c=value` names, the value read as YAML, in a config's plain data. Raises ConfigError."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override {override!r}: expected a.b.c=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
    *parents, last = path.split(".")
    node: Any = data
    for depth, key in enumerate(parents):
        if isinstance(node, dict):
            node = node.setdefault(key, {})
        elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        else:
            raise ConfigError(f"override {override!r}: {'.'.join(parents[:depth])} has no {key!r}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ConfigError(f"override {override!r}: {'.'.join(parents)} is {node!r}, which has no keys")


def _explain(detail: Any) -> str:
    """One line for one of pydantic's findings: full path, what was got, what was expected."""
    keys, cls, annotation = _walk(detail["loc"])
    path = ".".join(keys) or "config"
    if detail["type"] == "unexpected_keyword_argument":
        known = [f.name for f in dataclasses.fields(cls)] if cls is not None else []
        return f"{path}: unknown key{nearest(keys[-1], known)}; expected one of {known}"
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{path}: missing; it has no default"
    if detail["type"].startswith("union_tag"):
        tags = [tag for member in _members(annotation) for tag in _kinds(member)]
        tags += ["package.module:Class"] if CustomReward in _members(annotation) else []
        got = detail["input"].get("kind") if isinstance(detail["input"], Mapping) else detail["input"]
        return f"{path}.kind: got {got!r}{nearest(str(got), tags)}; expected one of {tags}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}: got {detail['input']!r}; {message[0].lower()}{message[1:]}"


def _walk(location: Sequence[Any]) -> tuple[list[str], type | None, Any]:
    """The location without pydantic's union tags, the config class that owns its last key, and that key's type."""
    keys: list[str] = []
    annotation: Any = Run
    owner: type | None = None
    for part in location:
        options = _members(annotation)
        tagged = [c for c in options if part in (c.__name__, *_kinds(c))]
        if tagged and len(options) > 1:
            annotation = tagged[0]
            continue
        keys.append(str(part))
        owner = options[0] if len(options) == 1 else None
        if isinstance(part, int):
            annotation = (get_args(annotation) or (Any,))[0]
        elif owner is not None:
            annotation = get_type_hints(owner, include_extras=True).get(part, Any)
    return keys, owner, annotation


def _members(annotation: Any) -> list[type]:
    """The config classes that an annotation allows."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    if get_origin(annotation) in (None, tuple):
        return []
    return [member for argument in get_args(annotation) for member in _members(argument)]


def _kinds(cls: type) -> tuple[Any, ...]:
    return get_args(get_type_hints(cls).get("kind"))
