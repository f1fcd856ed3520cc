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

# What a floor may load anyway is imported once; each of its modules is then imported in a fork that has seen no other.
PROBE = """
import importlib, json, os, sys

def loaded_by(name):
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        try:
            importlib.import_module(name)
            found = sorted(sys.modules)
        except BaseException as error:
            found = repr(error)
        with os.fdopen(writing, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        found = json.load(file)
    os.wait()
    return found

loaded = {}
for base, names in json.loads(sys.argv[1]):
    importlib.import_module(base)
    loaded.update({name: loaded_by(name) for name in names})
json.dump(loaded, sys.stdout)
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


@pytest.fixture(scope="module")
def loaded():
    """What has been imported after each module: by itself, or beside torch, our config or ray."""
    plan = [
        ("sys", [*LIGHT, *CLIENTS]),
        ("torch", PAPER),
        ("pcpo_ray.config", OTHERS),
        ("ray", CLUSTER),
    ]
    done = subprocess.run([sys.executable, "-c", PROBE, json.dumps(plan)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def path_of(module):
    below = ROOT.joinpath(*module.split(".")[1:])
    return below / "__init__.py" if below.is_dir() else below.with_suffix(".py")


def forbidden(module):
    """What a module may not load, at import, by itself or through others."""
    if module in LIGHT:
        return {*HEAVY, "torch", "numpy"}
    if module in CLIENTS:
        return {*WORLDS, "torch", "pcpo_ray.cluster.stages"}
    if module in PAPER:
        return {*HEAVY, "pcpo_ray.config"}
    if module in CLUSTER:
        return WORLDS
    if module == "pcpo_ray.training.monitors":  # a function of what was recorded
        return {*HEAVY - {"pydantic"}, "pcpo_ray.models", "pcpo_ray.rewards"}
    return {*WORLDS, "ray"}


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


@pytest.mark.parametrize("module", [*LIGHT, *CLIENTS, *PAPER, *OTHERS, *CLUSTER])
def test_importing_a_module_loads_nothing_above_its_floor(loaded, module):
    found = loaded[module]
    assert isinstance(found, list), f"{module} cannot be imported: {found}"
    assert not set(found) & forbidden(module), f"{module} broke its floor"


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
