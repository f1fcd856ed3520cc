"""The Dockerfile: linted, pinned, small at the end, and not root."""

import re
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support import ROOT, deploy_files

IGNORE = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
BUILD_TOOLS = {"gcc", "g++", "build-essential", "make", "cmake", "git", "pip", "pip3", "uv", "curl", "sudo"}


def stages():
    """Each stage's instructions: name -> what it is from, and (instruction, text) pairs."""
    text = re.sub(r"^\s*#.*\n", "", deploy_files.DOCKERFILE, flags=re.M).replace("\\\n", " ")
    found = {}
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            assert name, f"a stage without a name: {line}"
            found[name] = (base, [])
        else:
            assert found, f"before any stage: {line}"
            found[list(found)[-1]][1].append((instruction, rest))
    return found


STAGES = stages()


def whole(stage):
    """A stage's instructions with those of the stages it is from, and the image below them."""
    base, own = STAGES[stage]
    if base in STAGES:
        below, before = whole(base)
        return below, [*before, *own]
    return base, own


def last(stage, instruction):
    return [text for found, text in whole(stage)[1] if found == instruction][-1]


targets = pytest.mark.parametrize("target", ["cpu", "gpu"])


def test_hadolint_takes_the_dockerfile():
    command = [Path(sys.executable).parent / "hadolint", ROOT / "docker" / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@targets
def test_an_image_has_the_user_that_the_manifests_name(target):
    assert last(target, "USER") == f"{deploy_files.UID}:{deploy_files.UID}"
    assert STAGES[target][1][-1][0] == "USER", "nothing is done after giving up root"
    assert f"useradd --uid {deploy_files.UID}" in " ".join(text for _, text in whole(target)[1])


@targets
def test_an_image_ends_without_what_built_it(target):
    _, instructions = whole(target)
    words = {word for found, text in instructions if found == "RUN" for word in shlex.split(text)}
    assert not words & BUILD_TOOLS
    assert ("COPY", f"--from=venv-{target} /opt/venv /opt/venv") in instructions


@pytest.mark.parametrize("venv", ["venv-cpu", "venv-gpu"])
def test_whatever_is_installed_is_pinned_or_our_own(venv):
    installs = [
        command
        for found, text in STAGES[venv][1]
        if found == "RUN"
        for command in text.split("&&")
        if "pip install" in command
    ]
    assert len(installs) >= 2
    for command in installs:
        words = shlex.split(command)
        assert "--constraint" in words or words[-2:] == ["--no-deps", "/wheels/*.whl"], command


@targets
def test_both_have_the_python_that_the_constraints_were_made_with(target):
    base, _ = whole(target)
    assert base == whole(f"venv-{target}")[0]
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert version[1] == project["tool"]["mypy"]["python_version"]


def test_the_packages_are_those_of_the_project(tmp_path):
    (command,) = [text for found, text in STAGES["build"][1] if found == "RUN" and "tomllib" in text]
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    environment = {"PATH": str(Path(sys.executable).parent), "EXTRA": "boto3 wandb"}
    subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=environment, check=True, timeout=60)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines() == [*wanted, "boto3", "wandb"]


def test_the_cpu_image_does_not_build_without_its_index():
    (check,) = [text for found, text in STAGES["venv-cpu"][1] if found == "RUN" and "test -n" in text]
    for index, expected in (("", 1), ("somewhere", 0)):
        done = subprocess.run(["/bin/sh", "-c", check], env={"TORCH_INDEX": index}, capture_output=True, timeout=10)
        assert done.returncode == expected
    assert ("ARG", "TORCH_INDEX") in STAGES["venv-cpu"][1]


def sources():
    """What is copied from the repository."""
    for _, instructions in STAGES.values():
        for found, text in instructions:
            words = text.split()
            if found == "COPY" and not words[0].startswith("--from="):
                yield from words[:-1]


def test_what_is_copied_is_there_and_not_ignored():
    build = {"pyproject.toml", "hatch_build.py", "constraints.txt", "README.md", "LICENSE"}
    assert set(sources()) == {*build, "pcpo_ray", "configs"}
    assert all((ROOT / source).exists() for source in sources())
    assert {line.removeprefix("!") for line in IGNORE if line.startswith("!")} == set(sources())


@pytest.mark.parametrize("secret", ["deploy/.env", ".git/config", "runs/mine/config.yaml", ".venv/bin/python"])
def test_nothing_else_goes_to_the_builder(secret):
    assert IGNORE[1] == "*"
    kept = [line.removeprefix("!") for line in IGNORE if line.startswith("!")]
    assert not any(fnmatch(secret, f"{pattern}*") for pattern in kept)


@targets
def test_login_shells_find_the_commands_too(target):
    text = " ".join(found for _, found in whole(target)[1])
    assert "PATH=/opt/venv/bin:$PATH" in last(target, "ENV") or "PATH=/opt/venv/bin:$PATH" in text
    assert re.search(r'echo "export PATH=/opt/venv/bin:\\\$PATH" > /etc/profile\.d/\w+\.sh', text)


def test_folders_that_volumes_are_mounted_over_belong_to_the_user():
    (made,) = re.findall(r"install --directory --owner ray --group ray (.*?) &&", last("runtime", "RUN"))
    ours = {entry.split(":")[1] for entry in deploy_files.COMPOSE["services"]["run"]["volumes"]}
    assert set(made.split()) == ours
