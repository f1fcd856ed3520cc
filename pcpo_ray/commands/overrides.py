"""Commands that take overrides: a setting given as an option, `--steps 5`, is told how it is written."""

from typing import Any

from typer.core import TyperCommand


class TakesOverrides(TyperCommand):
    """A command whose settings are a.b.c=value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; an unknown option that is a key of the config gets its cure in the error."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)  # of click's NoSuchOption, which typer has a copy of by now
            hint = as_override(name, given) if isinstance(name, str) else None
            if hint is not None:
                error.message = f"No such option: {name}; settings have no dashes, so give {hint}"  # type: ignore[attr-defined]
                error.possibilities = []  # type: ignore[attr-defined]
            raise


def as_override(option: str, given: list[str]) -> str | None:
    """Write an option as the override that was meant: --steps 5 is steps=5. None where no key has that name."""
    from pcpo_ray.config.keys import Key, every_key, keys_elsewhere

    word = option.lstrip("-").replace("-", "_")
    paths = {one.path for one in every_key() if isinstance(one, Key)}
    elsewhere = keys_elsewhere(word.rpartition(".")[2])
    if word not in paths and len(elsewhere) != 1:
        return None
    key = word if word in paths else elsewhere[0]
    place = next(n for n, one in enumerate(given) if one == option or one.startswith(f"{option}="))
    inline = given[place].partition("=")[2]
    after = given[place + 1] if place + 1 < len(given) and not given[place + 1].startswith("-") else ""
    return f"{key}={inline or after or 'VALUE'}"
