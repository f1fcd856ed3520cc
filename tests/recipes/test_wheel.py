"""The released package: a wheel and a source archive that hold what they should, and a wheel that runs by itself."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pcpo_ray
from tests.support import ROOT

pytestmark = pytest.mark.recipes

RECIPES = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both archives, the wheel made of the source archive, as a package index makes it."""
    tree, out = tmp_path_factory.mktemp("tree") / "checkout", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, tree, ignore=left_out, symlinks=True)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=alone())
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def left_out(folder, names):
    """What a checkout has beside its own files; some of these names are its own further down."""
    beside = {"runs", "dist", "build", "shared"} if Path(folder) == ROOT else set()
    return [name for name in names if name in beside or name == "__pycache__" or (name[0] == "." and name != ".ci")]


def alone(*paths):
    """The environment without the repository on Python's path; `build` itself may lie on it."""
    kept = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path) != ROOT]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *kept]), "HF_HUB_OFFLINE": "1"}


def test_the_wheel_holds_the_package_its_recipes_and_models_and_no_tests(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert {f"pcpo_ray/recipes/{name}" for name in RECIPES} <= names
    package = ROOT / "pcpo_ray"
    there = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT).as_posix() for path in there} <= names
    assert {"pcpo_ray/py.typed", "pcpo_ray/recipes/prompts/animals.txt"} <= names
    assert {name.split("/")[0] for name in names} == {"pcpo_ray", f"pcpo_ray-{pcpo_ray.__version__}.dist-info"}
    assert not [name for name in names if "tests" in name or "results" in name.split("/")]


def test_the_source_archive_holds_what_the_wheel_is_made_of(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = ("pyproject.toml", "hatch_build.py", "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff")
    assert {*files, "pcpo_ray/py.typed", "tests/recipes/test_wheel.py"} <= names
    assert {f"configs/{name}" for name in RECIPES} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv", "runs/"))]


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The wheel alone in a folder; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, built[0]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pcpo_ray_in(installed, folder, *words):
    """Run the installed command in a folder, without the repository."""
    done = subprocess.run(
        [sys.executable, installed / "bin" / "pcpo-ray", *words],
        cwd=folder,
        env=alone(installed),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_wheel_trains_recipes_without_the_repository(installed, tmp_path):
    where = "import pcpo_ray, pcpo_ray.config.recipes as r; print(pcpo_ray.__file__, r.folder())"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=alone(installed), capture_output=True, text=True, check=True
    ).stdout
    assert found == f"{installed}/pcpo_ray/__init__.py {installed}/pcpo_ray/recipes\n"
    assert "shapes_pcpo" in pcpo_ray_in(installed, tmp_path, "recipes")
    assert "wrote mine.yaml" in pcpo_ray_in(installed, tmp_path, "init", "shapes_pcpo", "mine.yaml")
    assert (tmp_path / "mine.yaml").read_bytes() == (ROOT / "configs" / "shapes_pcpo.yaml").read_bytes()
    assert "rules.yaml" in pcpo_ray_in(installed, tmp_path, "dashboards", "monitoring")
    small = ["steps=2", "rollout={prompts: 2, images: 4}", "evaluation.count=4", "evaluation.quality=null"]
    said = pcpo_ray_in(installed, tmp_path, "train", "shapes_pcpo", "--local", "name=first", *small)
    assert "step 2/2: reward" in said and (tmp_path / "runs" / "first" / "report.html").is_file()


def test_the_version_is_said_once_and_cited():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"] and "version" not in project
    assert f"\nversion: {pcpo_ray.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {pcpo_ray.__version__} " in (ROOT / "CHANGELOG.md").read_text()
