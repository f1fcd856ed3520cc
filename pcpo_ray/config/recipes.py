"""Recipes: configs that come with the package, found by name; with them studies of settings, and lists of prompts.

In an installation they are the folder `recipes` of the package, in a checkout `configs/` beside it.
"""

import difflib
import itertools
import re
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pcpo_ray.errors import ConfigError, begun_by

PACKAGE = Path(__file__).parents[1]
STUDIES = "studies"
PROMPTS = "prompts"
MANY = 5
"""The most files that a message names."""

WRITE_ONE = "pcpo-ray init shapes_pcpo writes one to begin with; pcpo-ray recipes lists others"


BASELINES: Mapping[str, str] = {
    "shapes_pcpo": "shapes_ddpo",
    "shapes_pcpo_flux": "shapes_dancegrpo_flux",
    "words_pcpo": "words_ddpo",
    "words_pcpo_flux": "words_dancegrpo",
}
"""The recipe that a recipe of PCPO on an embedded model is compared with: the same but for what PCPO changes."""


@lru_cache
def folder() -> Path:
    """Return the folder of the recipes."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def names() -> list[str]:
    """List the recipes: `shapes_pcpo`, ..."""
    return _named("*.yaml")


def studies() -> list[str]:
    """List the studies: `studies/aa`, ..."""
    return _named(f"{STUDIES}/*.yaml")


def prompt_lists() -> list[str]:
    """List the lists of prompts: `animals`, ..."""
    return sorted(path.stem for path in (folder() / PROMPTS).glob("*.txt"))


def _named(pattern: str) -> list[str]:
    return sorted(path.relative_to(folder()).with_suffix("").as_posix() for path in folder().glob(pattern))


def located(place: str | Path) -> Path:
    """Return the path of a config file, or of the recipe or study of that name. Raises ConfigError if there is none."""
    path = Path(place)
    if path.is_dir() and str(place) not in (*names(), *studies()):
        raise ConfigError(f"{path} is a folder; expected a config file{_inside(path)}")
    if path.exists() and not path.is_dir():
        return path
    if str(place) in (*names(), *studies()):
        return folder() / f"{place}.yaml"
    raise ConfigError(f"no config file at {path}{_hint(path)}")


def _inside(folder: Path) -> str:
    """Point to the configs in a folder; a run's folder holds its own."""
    found = sorted({*folder.glob("*.yaml"), *folder.glob("*.yml")})
    if not found:
        return f", or a recipe's name. {WRITE_ONE}"
    names = ", ".join(map(str, found[:MANY])) + (", ..." if len(found) > MANY else "")
    return f", such as one of those in it: {names}"


def _hint(path: Path) -> str:
    """Point to the recipe that a path may have meant."""
    if "=" in path.name:
        return f"; the config comes before what changes it, as in shapes_pcpo {path}"
    known = {name: name for name in (*names(), *studies())} | {Path(name).name: name for name in studies()}
    if path.stem in known and path.suffix in ("", ".yaml", ".yml"):
        name = known[path.stem]
        return f"; {name!r} is a recipe that comes along: give that name, or write its file with pcpo-ray init {name}"
    if path.suffix == "" and (begun := begun_by(path.name, names())):
        return f" (did you mean {' or '.join(begun)}?)"
    beside = {found.as_posix() for found in path.parent.glob("*.yaml")} if path.parent.is_dir() else set()
    if close := difflib.get_close_matches(path.as_posix(), [*beside, *known], n=1):
        return f" (did you mean {known.get(close[0], close[0])!r}?)"
    if close := difflib.get_close_matches(path.stem, known, n=1):
        return f" (did you mean {known[close[0]]!r}?)"
    return "; pcpo-ray recipes lists those that come along"


def nearest(name: str) -> str:
    """Give ` (did you mean 'x'?)` for the recipe or study that is closest to a name or path, or nothing.

    Of a model's name it gives all of that model's recipes.
    """
    known = {name: name for name in (*names(), *studies())} | {Path(name).name: name for name in studies()}
    if Path(name).stem not in known and (begun := begun_by(Path(name).stem, names())):
        return f" (did you mean {' or '.join(begun)}?)"
    close = difflib.get_close_matches(Path(name).stem, known, n=1)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def prompt_list(name: str) -> Path:
    """Return the path of a list of prompts by its name. Raises ConfigError, naming all lists, if there is none."""
    if name not in prompt_lists():
        raise ConfigError(
            f"got the list of prompts {name!r}; expected a file, or a list that comes along: "
            f"{', '.join(prompt_lists())}"
        )
    return folder() / PROMPTS / f"{name}.txt"


def text(name: str) -> str:
    """Return the text of a recipe or study, to be written elsewhere: a study names its base as a recipe."""
    found = (folder() / f"{name}.yaml").read_text(encoding="utf-8")
    return re.sub(r"^base: \.\./(\w+)\.yaml$", r"base: \1", found, flags=re.MULTILINE)


def commands(name: str) -> list[list[str]]:
    """List the commands in the comment at the head of a recipe, in words; a line that ends in a backslash goes on."""
    lines = (folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = [line.removeprefix("#").strip() for line in itertools.takewhile(lambda one: one[:1] == "#", lines)]
    joined = re.sub(r"\\\n", " ", "\n".join(head)).splitlines()
    return [shlex.split(line) for line in joined if line.startswith(("hf ", "pcpo-ray "))]


CARDS = {"24": "4090", "80": "A100-80"}
"""The GPUs that `pcpo-ray plan` is asked about, by the GiB that the head of a recipe names."""


def on_one_card(name: str) -> tuple[str, list[str]]:
    """Return the smallest of the CARDS that a recipe fits on, and the overrides of the command at its head for that.

    Those that share a card out among processes are left out: they are for Ray. Empty for a recipe that needs no GPU.
    """
    lines = (folder() / f"{name}.yaml").read_text(encoding="utf-8")
    for size, gpu in CARDS.items():
        if found := re.search(rf"^# On one {size} GB card; plan:.*\n((?:#   .*\n)+)", lines, flags=re.MULTILINE):
            words = shlex.split(re.sub(r"\\\n", " ", found[1].replace("#", "")))
            return gpu, [word for word in words[3:] if not word.startswith("workers=")]
    return "", []


def downloads(name: str) -> list[str]:
    """List the commands that download what a recipe needs, but for prompts, whose places are told in words."""
    return [shlex.join(words) for words in commands(name) if words[0] == "hf"]
