"""A floor imports only what stands below it (design.md, Floors); each failure names the module that broke its floor."""

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
PAPER = ("schedule", "transitions", "credit", "objective", "advantages", "trajectory")
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


def floor(module):
    return module.removeprefix("pcpo_ray").lstrip(".").split(".")[0]


SCHEDULING = [name for name in MODULES if floor(name) == "scheduling"]
OF_METRICS = [name for name in MODULES if floor(name) in ("metrics", "meter", "dashboards")]
LIGHT = [
    *("pcpo_ray", "pcpo_ray.errors", "pcpo_ray.cli", "pcpo_ray.request", "pcpo_ray.bench"),
    *("pcpo_ray.operate", "pcpo_ray.operate.controller", "pcpo_ray.operate.reading"),
    *SCHEDULING,
    *OF_METRICS,
]
OF_THE_PAPER = [name for name in MODULES if floor(name) in PAPER]
OF_THE_CLUSTER = [name for name in MODULES if floor(name) == "cluster"]
PRETRAIN = [name for name in MODULES if ".pretrain" in name]
OF_COMMANDS = [name for name in MODULES if floor(name) == "operate" and name not in LIGHT]
OTHERS = [name for name in MODULES if name not in (*LIGHT, *OF_COMMANDS, *OF_THE_PAPER, *OF_THE_CLUSTER, *PRETRAIN)]


@pytest.fixture(scope="module")
def loaded():
    """What has been imported after each module: by itself, or beside torch, our config or ray."""
    plan = [
        ("sys", [*LIGHT, *OF_COMMANDS]),
        ("torch", OF_THE_PAPER),
        ("pcpo_ray.config", OTHERS),
        ("ray", OF_THE_CLUSTER),
    ]
    done = subprocess.run([sys.executable, "-c", PROBE, json.dumps(plan)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def path_of(module):
    below = ROOT.joinpath(*module.split(".")[1:])
    return below / "__init__.py" if below.is_dir() else below.with_suffix(".py")


def forbidden(module):
    """What a module may not load, at import, by itself or through others."""
    match floor(module):
        case _ if module in LIGHT:
            return {*HEAVY, "torch", "numpy"}
        case "cluster":
            return WORLDS
        case "operate":  # a command is to answer at once
            return {*WORLDS, "torch", "pcpo_ray.cluster"}
        case name if name in PAPER:
            return {*HEAVY, "pcpo_ray.config", "pcpo_ray.models", "pcpo_ray.rewards"}
        case "models":
            return {*WORLDS, "ray", "pcpo_ray.rewards", "pcpo_ray.cluster"}
        case "quality":
            return {*WORLDS, "ray", "pcpo_ray.models", "pcpo_ray.cluster"}
        case "monitors":  # a function of what was recorded
            return {*HEAVY - {"pydantic"}, "pcpo_ray.models", "pcpo_ray.rewards", "pcpo_ray.quality"}
        case "rewards":
            return {*WORLDS, "ray", "pcpo_ray.models", "pcpo_ray.cluster"}
        case "sampler":
            return {*WORLDS, "ray", "pcpo_ray.learner", "pcpo_ray.cluster"}
        case "learner":
            return {*WORLDS, "ray", "pcpo_ray.sampler", "pcpo_ray.cluster"}
        case "train" | "traffic" | "stages":
            return {*WORLDS, "ray", "pcpo_ray.local", "pcpo_ray.cluster"}
    return {*WORLDS, "ray", "pcpo_ray.cluster"}


def imported(module):
    """Every module that a file's import statements name, also those inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; name the module in full"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(names, package):
    return sorted(name for name in names if name == package or name.startswith(package + "."))


@pytest.mark.parametrize("module", [*LIGHT, *OF_COMMANDS, *OF_THE_PAPER, *OTHERS, *OF_THE_CLUSTER])
def test_importing_a_module_loads_nothing_above_its_floor(loaded, module):
    found = loaded[module]
    assert isinstance(found, list), f"{module} cannot be imported: {found}"
    assert not set(found) & forbidden(module), f"{module} broke its floor"


@pytest.mark.parametrize("module", MODULES)
def test_no_function_reaches_over_its_floor_either(module):
    names = imported(module)
    if floor(module) not in ("cluster", "operate", "bench"):
        assert not within(names, "ray"), f"{module} imports ray, which only cluster/, operate/ and bench/ do"
    if floor(module) not in ("cluster", "cli", "runs", "bench"):
        assert not within(names, "pcpo_ray.cluster"), f"{module} imports the cluster"
    if floor(module) not in ("cluster", "cli", "runs"):
        assert not within(names, "pcpo_ray.local"), f"{module} imports the stages of one process"
    others = {"models": "pcpo_ray.rewards", "rewards": "pcpo_ray.models", "quality": "pcpo_ray.models"}
    if floor(module) in others:
        assert not within(names, others[floor(module)]), f"{module} knows {others[floor(module)]}"
    if floor(module) in PAPER:
        above = [name for name in within(names, "pcpo_ray") if floor(name) not in (*PAPER, "", "errors")]
        assert not above, f"{module} is the paper's and knows {above}"
        assert not {name.split(".")[0] for name in names} & HEAVY, (
            f"{module} is the paper's and imports more than torch"
        )


def test_the_floors_of_the_paper_are_all_there():
    assert {f"pcpo_ray.{name}" for name in PAPER} <= set(MODULES)
