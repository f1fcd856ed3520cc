"""Import paths are looked up without importing: what cannot be right is refused, what may be right never."""

import importlib
import sys

import pytest

from pcpo_ray.errors import ConfigError
from pcpo_ray.process import unimported

PLAIN = """
import os.path, json as text
from math import pi, tau as turn
raise RuntimeError("imported")

if pi:
    class Redness:
        def score(self, images, prompts): ...
else:
    Blueness = None
try:
    first, *rest = 1, 2
    with open("x") as file: pass
except OSError:
    (found := 3)
match pi:
    case {"a": one, **others}: pass
    case [two, *three] as four: pass
for n in ():
    pass
async def later(): ...
"""

DYNAMIC = {
    "from math import *": "star",
    "def __getattr__(name): return print": "getattr",
    "globals()['Judge'] = print": "globals",
    "import sys\nsetattr(sys.modules[__name__], 'Judge', print)": "modules",
    "def make():\n    global Judge\n    Judge = print\nmake()": "global",
    "exec('Judge = print')": "exec",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder whose modules are those of no other test."""
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    (tmp_path / "plainly.py").write_text(PLAIN)
    (tmp_path / "packed" / "deep").mkdir(parents=True)
    (tmp_path / "packed" / "loose").mkdir()
    (tmp_path / "packed" / "__init__.py").write_text("import torch\n")
    (tmp_path / "packed" / "deep" / "__init__.py").touch()
    (tmp_path / "packed" / "deep" / "judges.py").write_text("class Judge: ...\n")
    yield tmp_path
    assert not {"plainly", "packed", "packed.deep"} & set(sys.modules)


@pytest.mark.parametrize(
    "name",
    [
        *("os", "text", "pi", "turn", "Redness", "Blueness", "first", "rest", "file", "found"),
        *("one", "others", "two", "three", "four", "n", "later", "Redness.score"),
    ],
)
def test_a_name_that_the_module_binds_in_any_way_passes(here, name):
    unimported.check("rewards.0.kind", f"plainly:{name}")


@pytest.mark.parametrize("name", ["path", "json", "tau", "score", "images"])
def test_a_name_that_the_module_does_not_bind_is_refused(here, name):
    with pytest.raises(ConfigError, match=rf"got 'plainly:{name}', and .*plainly\.py has no '{name}'"):
        unimported.check("rewards.0.kind", f"plainly:{name}")


@pytest.mark.parametrize("source", DYNAMIC, ids=DYNAMIC.get)
def test_a_module_whose_source_does_not_tell_its_names_passes(here, source):
    (here / "unclear.py").write_text(source)
    unimported.check("rewards.0.kind", "unclear:Judge")


def test_a_module_inside_a_package_is_found_and_its_names_checked(here):
    for right in (
        "packed.deep.judges:Judge",
        "packed:deep",
        "packed.deep:judges",
        "packed:loose",
        "packed.loose.one:any",
    ):
        unimported.check("rewards.0.kind", right)
    with pytest.raises(ConfigError, match=r"judges\.py has no 'Judges' \(did you mean 'Judge'\?\)"):
        unimported.check("rewards.0.kind", "packed.deep.judges:Judges")
    with pytest.raises(ConfigError, match=r"no module 'packed\.deep\.judge' in .*\(did you mean 'judges'\?\)"):
        unimported.check("rewards.0.kind", "packed.deep.judge:Judge")
    with pytest.raises(ConfigError, match=r"no module 'plainly\.deep' in .*plainly\.py"):
        unimported.check("rewards.0.kind", "plainly.deep:Judge")


@pytest.mark.parametrize(
    "path", ["os.path:join", "sys:exit", "math:sqrt", "torch.optim:SGD", "numpy:absolute", "a b:c"]
)
def test_what_is_installed_built_in_or_no_name_is_left_to_the_import(here, path):
    unimported.check("rewards.0.kind", path)
