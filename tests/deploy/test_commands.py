"""Every command in the deploy files is one that pcpo-ray takes, with configs that are there."""

import re
from pathlib import Path

import pytest

from tests.support import ROOT, deploy_files

STARTS = [(where, words) for where, words in deploy_files.COMMANDS if words[0] in ("train", "submit")]


def test_every_place_starts_a_run():
    assert {where for where, words in STARTS} == {*deploy_files.SCRIPTS, "deploy/README.md"}


@pytest.mark.parametrize(("where", "words"), deploy_files.COMMANDS)
def test_pcpo_ray_takes_every_command(where, words):
    deploy_files.parse(words)


@pytest.mark.parametrize(("where", "words"), STARTS)
def test_every_config_is_there_and_takes_the_overrides(where, words):
    assert deploy_files.run_of(deploy_files.parse(words)).name in " ".join(words)


@pytest.mark.parametrize(("where", "words"), [found for found in STARTS if found[1][0] == "train"])
def test_a_run_that_is_started_again_resumes(where, words):
    assert deploy_files.parse(words)["resume_if_started"]


@pytest.mark.parametrize(("where", "words"), STARTS)
def test_run_folders_are_on_a_path_that_all_machines_share(where, words):
    assert Path(deploy_files.parse(words)["runs"]).is_absolute()


def test_the_image_has_the_configs_where_commands_look_for_them():
    copied = re.search(r"^COPY configs (/\S+)$", deploy_files.DOCKERFILE, re.M)
    assert copied
    named = [words[1] for where, words in STARTS if where in deploy_files.SCRIPTS and "sbatch" not in where]
    assert named
    assert all(name.startswith(copied[1] + "/") for name in named)


def test_every_file_that_the_readme_names_is_there():
    from_root = re.findall(r"(?<![\w/.])((?:deploy|docker|configs)/[\w./-]*\w)", deploy_files.README)
    from_here = re.findall(
        r"`((?:kuberay|kuberay-rocksdb|ray|slurm|prometheus|grafana)/[\w./-]*)`", deploy_files.README
    )
    named = {*from_root, *(f"deploy/{name}" for name in from_here)} - {"deploy/.env"}
    assert {"deploy/compose.gpu.yaml", "deploy/kuberay-rocksdb/", "deploy/slurm/train.sbatch"} <= named
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_file_with_the_secrets_of_compose_is_ignored_by_git():
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
