"""Settings in a network's config.json that its class cannot mean or does not read, as far as its signature tells.

diffusers passes every value on, so that a wrong one raises whatever the code that meets it raises, some only when the
network first predicts. What the class does not read it drops, with a line in its log.
"""

import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcpo_ray.errors import ModelError

NUMBER, SWITCH, TEXT, LIST, NOTHING = "a number", "true or false", "a text", "a list", "null"
KINDS: Mapping[object, str] = {
    **{int: NUMBER, float: NUMBER, bool: SWITCH, str: TEXT, tuple: LIST, list: LIST, type(None): NOTHING},
}
"""The kinds of JSON values, by Python's type."""

WITHOUT_EFFECT = frozenset({"block_out_channels", "dropout", "force_upcast", "pooled_projection_dim", "sample_size"})
"""Settings that published configs have, or diffusers writes (for a tiny VAE), and that no prediction depends on."""


def check(path: Path, settings: Mapping[str, Any], network: type) -> None:
    """Raise ModelError for a value that is no number where the class takes nothing else.

    Only for numbers: published configs have null for switches, and annotations of other values are not always right.
    """
    wrong = [text for text, kinds in _mistaken(settings, network) if kinds == {NUMBER}]
    if wrong:
        raise ModelError(f"{path} has {'; '.join(wrong)}: copy the file again from the model it was made from")


def check_read(path: Path, settings: Mapping[str, Any], network: type) -> None:
    """Raise ModelError for a setting that is on and that the class does not read: the model was trained with it.

    One that is off (null, false, 0 or empty) is what the class does without it.
    """
    known = inspect.signature(network).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
        return
    unread = [
        f"{name}: {json.dumps(value)}"
        for name, value in sorted(settings.items())
        if value and not name.startswith("_") and name not in WITHOUT_EFFECT and name not in known
    ]
    if unread:
        raise ModelError(
            f"{path} has {', '.join(unread)}, which {network.__name__} of diffusers {_version()} does not read, so "
            f"that the model would predict otherwise than it was trained to; expected some of {', '.join(known)}. "
            "Delete it there if the model does without, else take a model without it"
        )


def _version() -> str:
    import diffusers

    version: str = diffusers.__version__
    return version


def suspects(path: Path, settings: Mapping[str, Any], network: type) -> str:
    """Name the values that may be why a network cannot be made, in words to append to an error; empty if none are."""
    found = [text for text, _ in _mistaken(settings, network)]
    return f"; {path} has {'; '.join(found)}" if found else ""


def _mistaken(settings: Mapping[str, Any], network: type) -> Sequence[tuple[str, set[str]]]:
    """Describe each value of another kind than the class's annotation and default, and give the kinds expected."""
    try:
        hints = typing.get_type_hints(network.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # annotations that only a type checker can read
        return []
    found = []
    for name, parameter in inspect.signature(network).parameters.items():
        kinds = _kinds(hints.get(name, Any))
        if name not in settings or not kinds or parameter.default is inspect.Parameter.empty:
            continue
        value, default = settings[name], parameter.default
        expected = kinds | {KINDS.get(type(default), NOTHING)}
        known = KINDS.get(type(value), "an object") in expected or (isinstance(value, bool) and NUMBER in expected)
        if not known or (value is None and default is not None):
            wanted = " or ".join(sorted(expected - {NOTHING}))
            found.append((f"{name}: {json.dumps(value)}, expected {wanted} such as {json.dumps(default)}", expected))
    return found


def _kinds(hint: Any) -> set[str]:
    """Return the kinds of JSON values that an annotation allows; none where it allows what is not told apart here."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        every = [_kinds(one) for one in typing.get_args(hint)]
        return set().union(*every) if all(every) else set()
    kind = KINDS.get(typing.get_origin(hint) or hint)
    return {kind} if kind else set()
