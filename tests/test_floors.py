"""A room imports only rooms before it in the list (ARCHITECTURE.md); each failure names the module that does not."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pcpo_ray

ROOT = Path(pcpo_ray.__file__).parent
MODULES = sorted(
    ["pcpo_ray", *(found.name for found in pkgutil.walk_packages(pcpo_ray.__path__, "pcpo_ray."))],
)
ROOMS = (
    *("errors", "process", "config", "algorithm", "shapes", "words", "data", "runs", "models", "rewards", "metrics"),
    *("workers", "training", "cluster", "commands"),
)
"""The rooms in the order of the floors: each may import those before it, and no other."""

WORLDS = {"diffusers", "transformers", "peft", "accelerate", "open_clip"}
HEAVY = {*WORLDS, "ray", "PIL", "pyarrow", "pydantic", "scipy", "matplotlib"}

PROBE = """
import importlib, json, sys

for name in sys.argv[1:]:
    importlib.import_module(name)
json.dump(sorted(sys.modules), sys.stdout)
"""


def room(module):
    first = module.removeprefix("pcpo_ray").lstrip(".").split(".")[0]
    return "commands" if first == "__main__" else first


def inside(module, *packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


LIGHT = [
    name
    for name in MODULES
    if room(name) in ("", "errors")
    or inside(name, "pcpo_ray.training.scheduling", "pcpo_ray.metrics")
    or name in ("pcpo_ray.data", "pcpo_ray.runs", "pcpo_ray.workers", "pcpo_ray.training", "pcpo_ray.cluster")
    or name in ("pcpo_ray.commands", "pcpo_ray.commands.app", "pcpo_ray.commands.operate", "pcpo_ray.commands.bench")
    or name in ("pcpo_ray.commands.status_text", "pcpo_ray.data.requests", "pcpo_ray.cluster.control.controller")
    or name in ("pcpo_ray.data.records", "pcpo_ray.__main__")
]
"""What must be there at once: the command line, and what travels to processes that need nothing else."""

CLIENTS = [
    name
    for name in MODULES
    if name == "pcpo_ray.commands.chaos"
    or (inside(name, "pcpo_ray.cluster.control") and name not in (*LIGHT, "pcpo_ray.cluster.control.driver"))
]
"""What commands that talk to a cluster load: they are to answer at once."""

PAPER = [name for name in MODULES if room(name) == "algorithm"]
CLUSTER = [name for name in MODULES if room(name) == "cluster" and name not in (*LIGHT, *CLIENTS)]
PRETRAIN = [name for name in MODULES if inside(name, "pcpo_ray.commands.pretrain")]
OTHERS = [name for name in MODULES if name not in (*LIGHT, *CLIENTS, *PAPER, *CLUSTER, *PRETRAIN)]


FLOORS = {
    "light": ([*LIGHT], {*HEAVY, "torch", "numpy"}),
    "clients": ([*CLIENTS], {*WORLDS, "torch", "pcpo_ray.cluster.stages"}),
    "paper": ([*PAPER], {*HEAVY, "pcpo_ray.config"}),
    # a function of what was recorded
    "monitors": (["pcpo_ray.training.monitors"], {*HEAVY - {"pydantic"}, "pcpo_ray.models", "pcpo_ray.rewards"}),
    "others": ([*OTHERS], {*WORLDS, "ray"}),
    "cluster": ([*CLUSTER], WORLDS),
}
"""Modules, and what they may not load at import, by themselves or through others."""


def loaded_by(*modules):
    """Return the names of all that is imported with these modules, in a process of their own."""
    done = subprocess.run([sys.executable, "-c", PROBE, *modules], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def path_of(module):
    below = ROOT.joinpath(*module.split(".")[1:])
    return below / "__init__.py" if below.is_dir() else below.with_suffix(".py")


def imported(module):
    """Every module that a file's import statements name, also those inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; name the module in full"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_importing_a_floor_loads_nothing_above_it(floor):
    modules, above = FLOORS[floor]
    if loaded_by(*modules) & above:  # which of them it is
        guilty = {module: found for module in modules if (found := loaded_by(module) & above)}
        raise AssertionError(f"these load what is above their floor: {guilty}")


def test_the_rooms_are_those_of_the_listing():
    none = ("__init__.py", "__main__.py", "__pycache__", "py.typed")
    assert {path.stem for path in ROOT.iterdir() if path.name not in none} == set(ROOMS)


@pytest.mark.parametrize("module", [name for name in MODULES if room(name)])
def test_a_room_imports_only_rooms_before_it(module):
    allowed = ROOMS[: ROOMS.index(room(module)) + 1]
    above = {name for name in imported(module) if inside(name, "pcpo_ray") and room(name) in ROOMS}
    above = {name for name in above if room(name) not in allowed}
    assert not above, f"{module} imports {above}, of rooms after its own"


@pytest.mark.parametrize("module", MODULES)
def test_ray_is_imported_where_it_belongs(module):
    if room(module) == "cluster" or inside(module, "pcpo_ray.commands.bench", "pcpo_ray.commands.operate"):
        return
    names = {name for name in imported(module) if inside(name, "ray")}
    assert not names, f"{module} imports {names}, which only cluster/ and commands/bench/ do"


@pytest.mark.parametrize("module", PAPER)
def test_the_paper_knows_torch_and_errors_alone(module):
    names = imported(module)
    ours = {name for name in names if inside(name, "pcpo_ray") and room(name) not in ("algorithm", "errors", "")}
    assert not ours and not {name.split(".")[0] for name in names} & HEAVY
