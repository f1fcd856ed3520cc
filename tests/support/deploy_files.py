"""The deploy files as data."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
import yaml

from pcpo_ray import config
from pcpo_ray.commands import app
from pcpo_ray.config import files
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
BATCH = (DEPLOY / "slurm" / "train.sbatch").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
UID = 1000
"""The user of the image."""

STANDS_FOR = {"$config": "configs/shapes_pcpo.yaml", "$runs": "/shared/runs", "$@": "name=first"}
"""What the words that train.sbatch is called with may be."""


def read(path: str) -> Any:
    """A YAML file below deploy/."""
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert found, f"{package} is not in constraints.txt"
    return found[1]


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document, at any depth."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from mappings(child)


def blocks(language: str = "") -> list[str]:
    """The README's fenced blocks of a language; of none, its commands."""
    return [text for found, text in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S) if found == language]


def commands(text: str) -> list[list[str]]:
    """The words after every `pcpo-ray` in a shell text, up to the command's end."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if "pcpo-ray " not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = iter(lexer)
        for word in words:
            if word == "pcpo-ray":
                command = []
                for argument in words:
                    if set(argument) <= set("();<>|&"):
                        break
                    command.append(STANDS_FOR.get(argument, argument))
                if command:
                    found.append(command)
    return found


def parse(words: list[str]) -> dict[str, Any]:
    """A command's parameters, as pcpo-ray itself reads them. Fails for a word that it would refuse."""
    known = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]
    assert words[0] in known, f"pcpo-ray has no command {words[0]!r}; there are {sorted(known)}"
    return dict(known[words[0]].make_context(words[0], words[1:]).params)


def run_of(parameters: dict[str, Any]) -> config.Run:
    """The config that a command would run, found where the image or the repository has it."""
    path = Path(str(parameters["config"]).replace("/app/", "", 1))
    assert not path.is_absolute(), f"{path} is neither in the image nor in the repository"
    return files.load(ROOT / path, parameters["overrides"] or [])


JOB = read("kuberay/rayjob.yaml")
CLUSTER = read("kuberay/raycluster.yaml")
COMPOSE = read("compose.yaml")
COMPOSE_GPU = read("compose.gpu.yaml")
CLOUD = read("ray/cluster.yaml")

SCRIPTS = {
    "deploy/slurm/train.sbatch": BATCH,
    "deploy/kuberay/rayjob.yaml": JOB["spec"]["entrypoint"],
    "deploy/compose.yaml": COMPOSE["services"]["run"]["command"][-1],
    "deploy/compose.gpu.yaml": COMPOSE_GPU["services"]["run"]["command"][-1],
}
"""What starts a run, as shell text."""

COMMANDS = [(name, words) for name, text in SCRIPTS.items() for words in commands(text)] + [
    ("deploy/README.md", words) for text in blocks() for words in commands(text)
]
