"""`pcpo-ray config`: the keys of a config in the terminal, in two columns, or a line a key where it is piped."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pcpo_ray.config.keys import ALIKE, ITEM, MEANT, Key, Kind, every_key, keys_elsewhere
from pcpo_ray.errors import ConfigError, nearest_name


def show(asked: str | None, console: Console) -> None:
    """Print the keys of a config at the top, or the one asked for with all below it. Raises ConfigError."""
    found = chosen(asked)
    if not console.is_terminal:
        for line in lines(found):
            print(line)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in found:
        table.add_row(*_row(one))
    console.print(table)
    if asked is None:
        console.print(
            "pcpo-ray config KEY shows a key and what is below it, such as optimizer or sampling.process",
            markup=False,
            highlight=False,
        )


def chosen(asked: str | None) -> list[Key | Kind]:
    """Choose the keys to print: those at the top, or one with all below it; of `credit.kind` the kinds alone.

    Raises ConfigError for an unknown key.
    """
    every = list(every_key())
    if asked is None:
        return [one for one in every if isinstance(one, Key) and "." not in one.path]
    wanted = _placeless(asked)
    found = [one for one in every if f"{_placeless(one.path)}.".startswith(f"{wanted}.")]
    if not found:
        mapping, dot, last = wanted.removeprefix("evaluation.").rpartition(".")  # its rewards are not listed again
        found = [
            one for one in every if isinstance(one, Kind) and dot and (_placeless(one.path), "kind") == (mapping, last)
        ]
    if not found:
        raise ConfigError(f"no key {asked!r} in a config{_guess(wanted)}; pcpo-ray config lists those at the top")
    return found


def _placeless(path: str) -> str:
    """Leave places in lists out of a path."""
    return ".".join(part for part in path.split(".") if part != ITEM and not part.isdigit())


def _guess(wanted: str) -> str:
    """Give ` (did you mean ...?)` for the keys that an unknown path may mean, or nothing."""
    paths = [one.path if isinstance(one, Key) else f"{_placeless(one.path)}.kind" for one in every_key()]
    top = nearest_name(wanted, [path for path in paths if "." not in path], least=ALIKE)
    mapping, _, last = wanted.rpartition(".")
    near = nearest_name(wanted, paths)
    beside = [near] if near and near.rpartition(".")[0] == mapping else []
    found = list(dict.fromkeys([*([top] if top else []), *beside, *keys_elsewhere(last)]))
    guesses = found[:MEANT] or ([near] if near else [])
    return f" (did you mean {' or '.join(guesses)}?)" if guesses else ""


def _row(one: Key | Kind) -> tuple[Text, Text]:
    if isinstance(one, Kind):
        return Text(""), Text.assemble(("kind ", "dim"), (", ".join(one.names), "cyan"), f": {_flat(one.text)}\n")
    about = Text.assemble((_about(one), "dim"), f"\n{one.sentence}\n")
    return Text(_short(one.path), "bold"), about


def _short(path: str) -> str:
    """Shorten a long path to its last parts, so that two columns fit in 80."""
    parts = path.split(".")
    return path if len(path) <= 28 else f"...{parts[-1]}"


def _about(key: Key) -> str:
    """Describe type, default and unit, and of which kinds a key is."""
    parts = [key.type.replace("`", ""), "required" if key.default == "required" else f"default {key.default}"]
    parts += [f"in {key.unit}"] if key.unit else []
    parts += [f"of kind {key.kind}"] if key.kind else []
    return ", ".join(parts)


def lines(found: Sequence[Key | Kind]) -> Iterator[str]:
    """Yield a line for each key and kind."""
    for one in found:
        if isinstance(one, Kind):
            yield f"{one.path}.kind={'|'.join(one.names)}: {_flat(one.text)}"
        else:
            yield f"{one.path}: {_about(one)}. {one.sentence}"


def _flat(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())
