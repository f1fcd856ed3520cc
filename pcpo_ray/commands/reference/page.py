"""docs/config.md: every key of a config in tables, made from the code."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from pcpo_ray.commands.reference import schema
from pcpo_ray.config.keys import Key, Kind, every_key

HEAD = """\
<!-- Made by `python -m pcpo_ray.commands.reference`; change the texts in pcpo_ray/config/, not here. -->
# Every key of a config

A config is a YAML file. Any key can be overridden on the command line as `a.b.c=value`, where the value is YAML too:
`optimizer.learning_rate=1e-4`, `rewards.0.weight=2`, `'credit={{kind: interpolate}}'`.

- **Default** is what holds where the key is left out; `required` has none.
- `N` in a key is a place in a list, counted from 0.
- Credit, advantage, objective and rewards may be given as their kind alone: `credit: interpolate`. Prompts may be given
  as a file's path, and a list of rewards as one reward.
- `package.module:name` is a class or function of your own: [plugging in](plugging_in.md).

`pcpo-ray config` prints this in the terminal, `pcpo-ray config optimizer` one part of it.

## In an editor

Editors with the YAML language server complete keys and underline mistakes where a file's first line names the schema,
by a path from the file or a URL:

```yaml
{line}config.schema.json
```

The schema is [config.schema.json](config.schema.json). `pcpo-ray config --schema > config.schema.json` writes the one
of the installed version.
"""


def files() -> dict[str, str]:
    """Make the files by their names in the repository."""
    return {"docs/config.md": page(), "docs/config.schema.json": schema.text()}


def page() -> str:
    """Make the page."""
    top = [one for one in every_key() if isinstance(one, Key) and "." not in one.path]
    parts = [HEAD.format(line=schema.LINE), "## The whole run\n", *_table(top)]
    for name, entries in groupby(every_key(), key=lambda one: one.path.split(".")[0]):
        inside = [one for one in entries if not (isinstance(one, Key) and one.path == name)]
        if inside:
            parts += [f"\n## {name}\n", *_section(inside)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _section(entries: Sequence[Key | Kind]) -> Iterator[str]:
    """Yield the lines of a section: lists of kinds, and tables of keys."""
    for kinds, together in groupby(entries, key=lambda one: isinstance(one, Kind)):
        if kinds:
            for path, listed in groupby(together, key=lambda one: one.path):
                yield f"The kinds of `{path}`:\n"
                for one in listed:
                    assert isinstance(one, Kind)
                    yield f"- {', '.join(f'`{name}`' for name in one.names)}: {' '.join(one.text.split())}"
            yield ""
        else:
            yield from _table([one for one in together if isinstance(one, Key)])
            yield ""


def _table(keys: Sequence[Key]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        kinds = f" ({', '.join(f'`{kind}`' for kind in key.kind.split(', '))})" if key.kind else ""
        default = key.default if key.default in ("required", "its defaults") else f"`{key.default}`"
        unit = f", in {key.unit}" if key.unit else ""
        text = f"{key.sentence} {key.rest}".strip()
        yield (
            "| "
            + " | ".join(_cell(part) for part in (f"`{key.path}`{kinds}", f"{key.type}{unit}", default, text))
            + " |"
        )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
