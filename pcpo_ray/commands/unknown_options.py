"""An option that a command does not have is told as an option: which was meant, or which key of the config."""

from collections.abc import Sequence
from typing import Any

from pcpo_ray.errors import nearest_name

NEAR = 0.75
"""The similarity from which an option counts as the one that was meant."""


def explained(error: Any, given: Sequence[str]) -> str:
    """Explain click's NoSuchOption (of which typer has a copy), from the words of the command line."""
    option = _typed(error.option_name, given)
    cure = _cure(option, given, error.ctx.command)
    verb = error.ctx.command_path.removeprefix(error.ctx.find_root().command_path)
    return f"No such option: {option}; {cure or f'pcpo-ray{verb} --help lists those there are'}"


def _typed(option: str, given: Sequence[str]) -> str:
    """Return the option as it was typed: of `-name`, click names the first letter that it does not know."""
    words = [word.partition("=")[0] for word in given if word.startswith("-")]
    if option in words:
        return option
    return next((word for word in words if word[:2] != "--" and option[1:] in word), option)


def _cure(option: str, given: Sequence[str], command: Any) -> str:
    """Name the option that was meant, or the override: --steps 5 is steps=5. Empty where nobody can know."""
    from pcpo_ray.config.keys import MEANT, Key, every_key, keys_elsewhere

    takes_overrides = any(parameter.name == "overrides" for parameter in command.params)
    known = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    keys = [key.path for key in every_key() if isinstance(key, Key)] if takes_overrides else []
    word = option.lstrip("-").replace("-", "_")
    if len(word) == 1:
        options = [name for name in known if name.startswith(f"--{word}")]
        meant = options or [key for key in _single(keys) if key.startswith(word)]
    elif word in keys:
        meant = [word]
    elif near := nearest_name(word.replace("_", "-"), [name[2:] for name in known], least=NEAR):
        meant = [f"--{near}"]
    elif near := nearest_name(word, _single(keys), least=NEAR):
        meant = [near]
    else:
        meant = keys_elsewhere(word.rpartition(".")[2]) if takes_overrides else []
    meant = [one for one in meant if one in known or not one.startswith("--")]  # another command may have that option
    if not meant or len(meant) > MEANT:
        return ""
    if meant[0].startswith("--"):
        return f"did you mean {' or '.join(meant)}?"
    value = _value(option, given)
    return f"settings have no dashes, so give {' or '.join(f'{key}={value}' for key in meant)}"


def _single(keys: Sequence[str]) -> list[str]:
    """List the keys at the top of a config that have no keys below them."""
    sections = {key.partition(".")[0] for key in keys if "." in key}
    return [key for key in keys if "." not in key and key not in sections]


def _value(option: str, given: Sequence[str]) -> str:
    """Return the value that was given to an option, VALUE if there is none."""
    place = next(n for n, word in enumerate(given) if word.partition("=")[0] == option)
    inline = given[place].partition("=")[2]
    after = given[place + 1] if place + 1 < len(given) and not given[place + 1].startswith("-") else ""
    return inline or after or "VALUE"
