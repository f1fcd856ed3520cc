"""Configs as files: `load` reads a YAML file, `dump` writes the resolved one.

Unknown keys, wrong types and values out of range are errors. They name the full path, the value and what was expected.
Overrides are `a.b.c=value`, read as YAML. A key that is given twice is an error too, within a file or an override and
across overrides, because YAML readers would take the last one.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from pcpo_ray.config import Run, recipes
from pcpo_ray.config.keys import Key, every_key
from pcpo_ray.config.mistakes import explanations
from pcpo_ray.errors import ConfigError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """A YAML reader whose numbers are those of YAML 1.2: 1e-5 is one, 010 is ten, and 1:30 is a text."""


class _Dumper(yaml.SafeDumper):
    """A YAML writer that writes tuples as lists, and quotes texts that `_Loader` would read as numbers."""


_INT = re.compile(r"[-+]?(0b[01_]+|0x[\da-fA-F_]+|\d[\d_]*)$")
_FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d+(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)
_NUMBERS = {"tag:yaml.org,2002:int": _INT, "tag:yaml.org,2002:float": _FLOAT}


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Read an integer: in YAML 1.1 a leading zero is for octal, which nobody means."""
    sign, digits = re.fullmatch(r"([-+]?)0*(\d.*)", node.value).groups()  # type: ignore[union-attr]
    node.value = node.value if digits[1:2] in ("b", "x") else sign + digits
    return loader.construct_yaml_int(node)


_Dumper.add_representer(tuple, yaml.SafeDumper.represent_list)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _either in (_Loader, _Dumper):
    for _tag, _pattern in _NUMBERS.items():
        _either.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read the config in a YAML file, or the recipe of a name, with overrides `a.b.c=value`.

    Raises ConfigError naming the file, the full path of the key, what was got and what was expected.
    """
    data = read(path)
    if "arms" in data and "model" not in data:
        raise ConfigError(f"{path} is a study, and no run's config; compare its arms with: pcpo-ray study {path}")
    return changed(data, overrides, source=str(path))


def changed(config: Run | Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> Run:
    """Make a config of another one or of plain data, with overrides `a.b.c=value`.

    Raises ConfigError as `load` does.
    """
    data = yaml.safe_load(dump(config)) if isinstance(config, Run) else copy.deepcopy(dict(config))
    check_overrides(overrides)
    for override in overrides:
        set_key(data, override)
    return parse(data, source=source)


def as_overrides(keys: Mapping[str, Any]) -> list[str]:
    """Write keys and their values as overrides `a.b.c=value`. Raises ConfigError for a value that YAML cannot hold."""
    found = []
    for key, value in keys.items():
        try:
            text = yaml.dump(_data(value), Dumper=_Dumper, default_flow_style=True, width=math.inf, allow_unicode=True)
        except yaml.YAMLError:
            own = f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
            cure = f"; a class or function goes by its import path, as in {key}='{own}'" if callable(value) else ""
            raise ConfigError(
                f"{key}: got {value!r}, of {type(value).__name__}; expected a number, a text, a path, a mapping or "
                f"a list{cure}"
            ) from None
        text = text.removesuffix("...\n").strip()
        found.append(f"{key}={text}")
    return found


def _data(value: Any) -> Any:
    """Make a value plain data: config classes become mappings, paths texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _data(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_data(one) for one in value]
    return value


def read(path: str | Path) -> dict[str, Any]:
    """Read the keys of a YAML file, or of a recipe by its name, as plain data.

    Raises ConfigError if it is missing or holds something else.
    """
    path = recipes.located(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None
    try:
        data = _parsed(text)
    except _KeyTwiceError as twice:
        raise ConfigError(f"{path}: {twice}") from None
    except NOT_YAML as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if data is None:
        raise ConfigError(f"{path} is empty; expected keys such as name, model, rewards. {recipes.WRITE_ONE}")
    if not isinstance(data, dict):
        what = "a list" if isinstance(data, list) else "a text" if isinstance(data, str) else repr(data)
        raise ConfigError(f"{path} holds {what}; expected keys such as name, model, rewards. {recipes.WRITE_ONE}")
    return data


NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""The errors of PyYAML for a text: ValueError for a date such as 2024-13-45, RecursionError for a thousand brackets."""


class _KeyTwiceError(Exception):
    """The error for a mapping that names a key twice."""


def _parsed(text: str) -> Any:
    """Parse a YAML text. Raises _KeyTwiceError, or one of NOT_YAML."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_once(loader, root, "", set())
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _check_once(loader: yaml.SafeLoader, node: yaml.Node, path: str, seen: set[int]) -> None:
    """Check that no mapping in a node has a key twice. Keys that `<<` merges in may be named again: that is its use."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            _check_once(loader, item, f"{path}{place}.", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[Any, int] = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused by the loader
            merge = key_node.tag == "tag:yaml.org,2002:merge"
            key, line = "<<" if merge else loader.construct_object(key_node), key_node.start_mark.line + 1
            if key in lines:
                where = f"line {line}" if line == lines[key] else f"lines {lines[key]} and {line}"
                raise _KeyTwiceError(f"{path}{key} is given twice, in {where}; leave one of them out")
            lines[key] = line
            _check_once(loader, value, path if merge else f"{path}{key}.", seen)


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that no override sets again what an earlier one has set. Raises ConfigError that names both."""
    leaves: dict[str, str] = {}
    for override in overrides:
        path, value = _override(override)
        for leaf, other in leaves.items():
            if f"{leaf}.".startswith(f"{path}."):
                raise ConfigError(f"{other} and {override} both set {leaf}; leave one of them out")
        leaves |= dict.fromkeys(_leaves(path, value), override)


def keys_set(override: str) -> list[str]:
    """List the keys that `a.b.c=value` sets: of a mapping those in it, of a list its places. Raises ConfigError."""
    return _leaves(*_override(override))


def _leaves(path: str, value: Any) -> list[str]:
    """List the paths of a value's innermost parts. An empty mapping or list sets nothing."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        return [path]
    return [leaf for key, part in parts for leaf in _leaves(f"{path}.{key}", part)]


def parse(data: Mapping[str, Any], *, source: str = "config") -> Run:
    """Make the config that plain data describes. Raises ConfigError as `load` does."""
    return parse_as(Run, data, source=source)


def parse_as(cls: type[T], data: Mapping[str, Any], *, source: str) -> T:
    """Make another config class, such as a study's, from plain data. Raises ConfigError as `load` does."""
    try:
        found: T = _adapter(cls).validate_python(data)  # type: ignore[arg-type]  # mypy takes a class for unhashable
        return found
    except ValidationError as error:
        lines = explanations(error.errors(include_url=False), cls)
        raise ConfigError("\n".join([f"{source}: {len(lines)} wrong", *(f"  {line}" for line in lines)])) from None


def dump(value: Any) -> str:
    """Write the resolved config as YAML; `load` gives the same value back."""
    return yaml.dump(plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def plain(value: Any) -> dict[str, Any]:
    """Write the resolved config as plain data; `parse` gives the same value back."""
    # as Python values: pydantic's JSON mode would write the infinities of a custom reward's options as null
    data: dict[str, Any] = _adapter(type(value)).dump_python(value)  # type: ignore[arg-type]
    return data


@lru_cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    """Make the adapter that reads and writes a config class; making it takes longer than using it."""
    return TypeAdapter(cls)


def differing(one: Any, other: Any, path: str = "") -> dict[str, str]:
    """Describe by key `a.b.c` how two configs' plain data differ, as `old -> new`; of other kinds only those."""
    if one == other:
        return {}
    below = f"{path}." if path else ""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.get("kind") != other.get("kind"):
            return {f"{below}kind": f"{_said(one.get('kind'))} -> {_said(other.get('kind'))}"}
        parts = {key: (one.get(key), other.get(key)) for key in [*one, *(key for key in other if key not in one)]}
        return {key: text for part, both in parts.items() for key, text in differing(*both, f"{below}{part}").items()}
    lists = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    if lists and len(one) == len(other):
        both = enumerate(zip(one, other, strict=True))
        return {key: text for n, pair in both for key, text in differing(*pair, f"{below}{n}").items()}
    return {path: f"{_said(one)} -> {_said(other)}"}


def _said(value: Any) -> str:
    """Describe a value in as few words as identify it."""
    if isinstance(value, Mapping):
        return f"kind {value['kind']}" if "kind" in value else "given"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_said(item) for item in value)}]"
    return "null" if value is None else repr(value)


def set_key(data: dict[str, Any], override: str) -> None:
    """Set the key that `a.b.c=value` names in a config's plain data, reading the value as YAML. Raises ConfigError."""
    path, value = _override(override)
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
        where = ".".join(parents)
        known = {one.path if isinstance(one, Key) else f"{one.path}.kind" for one in every_key()}
        short = isinstance(node, str) and f"{where}.kind" in known  # optimizer=adamw stands for a mapping
        cure = f"; give {where}.kind={node} instead" if short else ""
        cure = f"; an item of a list has its number, such as {where}.0.{last}" if isinstance(node, list) else cure
        raise ConfigError(f"override {override!r}: {where} is {_said(node)}, which has no keys{cure}")


def _override(override: str) -> tuple[str, Any]:
    """Split `a.b.c=value` into the path and the value. Raises ConfigError."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        key, colon, value = override.partition(":")
        guess = f" (did you mean {key}={value.strip()}?)" if colon and key and value else ""
        if override in {f.name for f in dataclasses.fields(Run)}:
            guess = f" (did you mean {override}=VALUE, without a space?)"
        raise ConfigError(f"override {override!r}: expected a.b.c=value{guess}")
    try:
        return path, _parsed(text)
    except _KeyTwiceError as twice:
        raise ConfigError(f"override {override!r}: {path}.{twice}") from None
    except NOT_YAML as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from None
