"""Mistakes in a config, in words: pydantic's errors with the full path, what was got, and what was meant."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pcpo_ray.config import Run, recipes
from pcpo_ray.config.keys import MEANT, OWN, Key, Kind, documented, every_key, keys_elsewhere, type_in_words
from pcpo_ray.config.meant import as_own, kind_meant, own_meant
from pcpo_ray.errors import nearest_name

RENAMED = {"optimizer.updates": "optimizer.minibatches"}
"""Keys that had another name in an earlier version. The old names are refused, also in the config of a stored run.

To resume such a run, rename the key in its config.yaml: nothing else in the run's folder holds it.
"""

MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
UNKNOWN = "unexpected_keyword_argument"
NO_DEFAULT = ": missing; it has no default"
ARTICLES = {
    "integer": "an",
    "address": "an",
    **dict.fromkeys(("number", "text", "path", "list", "mapping"), "a"),
    "name": "the",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of an error: its keys, the class that owns the last one, and that one's type.

    `kinds` are the classes of the mapping that holds the key, where it may have one of several kinds.
    """

    keys: Sequence[str]
    owner: type | None
    type: Any
    kinds: Sequence[type]

    @property
    def path(self) -> str:
        return ".".join(self.keys) or "config"

    @property
    def above(self) -> str:
        """The path of the mapping that holds the key."""
        return ".".join(self.keys[:-1])


def explanations(details: Sequence[Any], root: type) -> list[str]:
    """Explain pydantic's errors, a line each: the full path, what was got and what was expected.

    Several errors on one value, and keys that another kind of the same mapping left behind, make one line.
    """
    lines: list[str] = []
    left: dict[str, tuple[Place, dict[str, Any]]] = {}
    for detail in details:
        if detail["type"] == "too_short" and any(detail["loc"] == other["loc"][:-1] for other in details):
            continue  # pydantic counts only the items that are right
        place = _walk(detail["loc"], root)
        if detail["type"] == UNKNOWN and any(place.keys[-1] in _names(cls) for cls in place.kinds):
            left.setdefault(place.above, (place, {}))[1][place.keys[-1]] = detail["input"]
        else:
            lines.append(_explained(detail, place, root))
    lines += [_left_behind(place, keys) for place, keys in left.values()]
    changed = tuple(f"{path}." for path in left)
    return [line for line in dict.fromkeys(lines) if not (line.startswith(changed) and NO_DEFAULT in line)]


def _explained(detail: Any, place: Place, root: type) -> str:
    path, got = place.path, detail["input"]
    if detail["type"] == UNKNOWN:
        return _unknown(place, got, root)
    if detail["type"] in MISSING:
        return f"{path}{NO_DEFAULT}{_meaning(place)}"
    if detail["type"].startswith("union_tag"):
        return _unknown_kind(place, got)
    if detail["type"] in ("dataclass_type", "model_attributes_type") and (sections := _members(place.type)):
        null = " or null" if NoneType in get_args(place.type) else ""
        return f"{path}: got {_said(got)}; expected {_below(path, sections, got)}{null}"
    if detail["type"] == "invalid_key":
        return f"{place.above or 'config'}: got the key {got!r}; expected texts as keys"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{path}: {message}" if place.keys else message  # a check of the whole run names its keys itself
    return f"{path}: got {_said(got)}; expected {_expected(place, detail['type'], got)}"


def _meaning(place: Place) -> str:
    """Give the sentence that documents a key, after a full stop; nothing for one that is not documented."""
    text = "" if place.owner is None else documented(place.owner).get(place.keys[-1], "")
    return f". {' '.join(text.split(chr(10) * 2)[0].split())}" if text else ""


def _said(value: Any) -> str:
    """Write a value as it stands in a config."""
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )


def _unknown(place: Place, got: Any, root: type) -> str:
    """Name the key that was meant by an unknown one: learning_rate is optimizer.learning_rate."""
    if place.path in RENAMED:
        new = RENAMED[place.path]
        return f"{place.path}: got a key of an earlier version; it is now {new}, so rename it where it is given"
    known = [] if place.owner is None else _names(place.owner)
    guess = ""
    if root is Run and place.owner is not None:
        by_value = _named(list(every_key(place.owner, place.above)), got, exact=True)
        elsewhere = [path for path in keys_elsewhere(place.keys[-1]) if path != place.path]
        if any(key.isdigit() for key in place.keys):  # a key of a list's item is hardly one of the whole run
            elsewhere = [path for path in elsewhere if "." in path]
        options = [by_value] if by_value else elsewhere if len(elsewhere) <= MEANT else []
        guess = f" (did you mean {' or '.join(options)}?)" if options else ""
    near = nearest_name(place.keys[-1], known, least=0.75 if guess else 0.6)
    guess = f" (did you mean {near!r}?)" if near else guess
    return f"{place.path}: unknown key{guess}; expected one of {known}"


def _unknown_kind(place: Place, got: Any) -> str:
    """Name the kind that was meant by an unknown one."""
    members, path = _members(place.type), place.path
    tags = [tag for member in members for tag in _tags(member)]
    open_to_own = any(not _tags(member) for member in members)
    word = got.get("kind") if isinstance(got, Mapping) else got
    expected = f"expected one of {[*tags, OWN] if open_to_own else tags}"
    of_prompts = place.keys[-1:] == ["prompts"]
    if word is None:
        return f"{path}.kind: missing; {expected}"
    if of_prompts and (isinstance(word, list) or " " in str(word)):
        return (
            f"{path}: got {word!r:.100}; write your prompts into a file, one a line, and give that: {path}=prompts.txt"
        )
    own = own_meant(word) if open_to_own else ""
    guess = own or kind_meant(path, str(word), [*tags, *(recipes.prompt_lists() if of_prompts else [])])
    hint = as_own(word) if open_to_own and not guess else ""
    files = f", a list ({', '.join(recipes.prompt_lists())}) or a file such as prompts.txt" if of_prompts else ""
    return f"{path}.kind: got {word!r}{guess}; {expected}{files}{hint}"


def _left_behind(place: Place, keys: Mapping[str, Any]) -> str:
    """Say how to change the kind of a mapping whose other keys belong to another kind."""
    tags = () if place.owner is None else _tags(place.owner)
    here = tags[0] if tags else OWN
    others = [cls for cls in place.kinds if set(keys) & set(_names(cls))]
    of = [tag for cls in others for tag in _tags(cls)]
    needed = [] if place.owner is None else [name for name in _names(place.owner, required=True) if name != "kind"]
    whole = [_mapping(place.above, {"kind": here, **dict.fromkeys(needed, "...")})]
    if len(of) == 1 and set(keys) <= set(_names(others[0])):
        whole.append(_mapping(place.above, {"kind": of[0], **keys}))
    kind, them = f"kind {here}" if tags else "a kind of your own", "it" if len(keys) == 1 else "them"
    return (
        f"{place.above}: {kind} has no {' and no '.join(keys)}, kind {' or '.join(of)} has; leave {them} out, or write "
        f"the mapping whole: {' or '.join(whole)}"
    )


def _mapping(path: str, keys: Mapping[str, Any]) -> str:
    return f"{path}={{{', '.join(f'{name}: {value}' for name, value in keys.items())}}}"


def _expected(place: Place, kind: str, got: Any) -> str:
    """Say what a key takes, and which of its words a value stands for."""
    words = type_in_words(place.type).replace("`", "")
    literals = _literals(place.type)
    if literals and words == " | ".join(map(str, literals)):
        words = f"one of {literals}"
    elif article := ARTICLES.get(words.split()[0]):
        words = f"{article} {words}"
    if literals and isinstance(got, str):
        path = place.above if place.keys[-1] == "kind" else place.path
        words += kind_meant(path, got, [value for value in literals if isinstance(value, str)])
    if kind == "finite_number":
        words += ", and finite"
    if kind == "tuple_type" and isinstance(got, str):
        near = nearest_name(got, [value for value in literals if isinstance(value, str)])
        words += f"; a list of one is {place.path}=[{near or got}]"
    if kind == "string_type" and isinstance(got, int | float):
        words += f"; a text that looks like a number is quoted twice: '{place.path}=\"{got}\"'"
    return words


def _literals(hint: Any) -> list[Any]:
    """List the values that a type allows by name, also as one of several types or within a list."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [value for part in get_args(hint) for value in _literals(part)]


def _below(path: str, sections: Sequence[type], value: Any) -> str:
    """Name what a mapping may hold, and the key that was meant by a value: model=sd15 is model.path=sd15."""
    if len(sections) > 1:
        tags = [tag for section in sections for tag in _tags(section)]
        kind = nearest_name(str(value), tags)
        return f"a mapping with a kind, one of {tags}" + (f" (did you mean {path}.kind={kind}?)" if kind else "")
    found = list(every_key(sections[0], path))
    names = [key.path for key in found if isinstance(key, Key) and key.path.count(".") == path.count(".") + 1]
    listed = f"keys below it: {', '.join(name.removeprefix(f'{path}.') for name in names)}"
    guess = _named(found, value) or _taking(found, names, value)
    return listed + (f" (did you mean {guess}?)" if guess else "")


def _named(found: Sequence[Key | Kind], value: Any, *, exact: bool = False) -> str:
    """Find the key of which a text is one of the possible values: sampling=ddim is sampling.process.kind=ddim."""
    values = {
        (f"{key.path}.kind" if isinstance(key, Kind) else key.path, one): one
        for key in found
        for one in (key.names if isinstance(key, Kind) else re.findall(r"`([^`:]+)`", key.type))
        if one not in ("true", "false", "null")
    }
    if not isinstance(value, str):
        return ""
    nearest_one = value if exact else nearest_name(value, values.values())
    return next((f"{path}={one}" for path, one in values if one == nearest_one), "")


def _taking(found: Sequence[Key | Kind], names: Sequence[str], value: Any) -> str:
    """Find the first key that takes a value of this type: a text near the top only, a number anywhere."""
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


def _walk(location: Sequence[Any], root: type) -> Place:
    """Follow a location to its keys, without pydantic's tags of unions."""
    keys: list[str] = []
    annotation: Any = root
    owner: type | None = None
    kinds: list[type] = []
    for part in location:
        options = _members(annotation)
        tagged = [c for c in options if part in (c.__name__, *_tags(c))]
        if tagged and len(options) > 1:
            annotation, kinds = tagged[0], options
            continue
        if not options and (get_origin(annotation) in (Union, UnionType) or not _holds(annotation)):
            continue  # one of a union of plain types, in pydantic's own words
        keys.append(str(part))
        plain_type = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if get_origin(plain_type) is Mapping:
            annotation = get_args(plain_type)[1]
            continue
        owner = options[0] if len(options) == 1 else None
        if owner not in kinds:
            kinds = []
        if isinstance(part, int):
            annotation = (get_args(plain_type) or (Any,))[0]
        elif owner is not None:
            annotation = get_type_hints(owner, include_extras=True).get(part, Any)
    return Place(keys=keys, owner=owner, type=annotation, kinds=kinds)


def _holds(annotation: Any) -> bool:
    """Return whether a type has places of its own: a list or a mapping."""
    plain_type = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return plain_type is Any or get_origin(plain_type) in (tuple, Mapping)


def _members(annotation: Any) -> list[type]:
    """List the config classes that an annotation allows."""
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return [annotation]
    if get_origin(annotation) in (None, tuple):
        return []
    return [member for argument in get_args(annotation) for member in _members(argument)]


def _tags(cls: type) -> tuple[Any, ...]:
    """List the values that a class accepts as its kind; none if it has no kind, or one that is any text."""
    return get_args(get_type_hints(cls).get("kind"))


def _names(cls: type, *, required: bool = False) -> list[str]:
    """List the keys of a class, or those without a default."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    absent = dataclasses.MISSING
    return [f.name for f in fields if not required or (f.default is absent and f.default_factory is absent)]
