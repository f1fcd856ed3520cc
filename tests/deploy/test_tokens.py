"""Token authentication is on wherever Ray is started, and no secret is written down."""

import re

import pytest
from ray._private.authentication import authentication_token_setup

from tests.support import ROOT, deploy_files

WRITTEN = sorted(
    path
    for folder in ("deploy", "docker")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix != ".json" and path.name != ".env"
)


def test_the_cloud_has_the_token_on_and_takes_it_to_every_machine():
    assert "--env RAY_AUTH_MODE=token" in deploy_files.CLOUD["docker"]["run_options"]
    home = re.search(r"\bHOME=(\S+)", deploy_files.DOCKERFILE)
    assert home
    local = f"{authentication_token_setup.Path.home()}/.ray/auth_token"
    assert str(authentication_token_setup._get_default_token_path()) == local
    assert deploy_files.CLOUD["file_mounts"] == {f"{home[1]}/.ray/auth_token": "~/.ray/auth_token"}


def test_the_clouds_containers_are_confined():
    options = deploy_files.CLOUD["docker"]["run_options"]
    assert {"--cap-drop ALL", "--security-opt no-new-privileges"} <= set(options)
    assert not [option for option in options if "privileged" in option.replace("no-new-privileges", "")]


def test_cloud_machines_give_credentials_to_no_request_of_a_container():
    kinds = deploy_files.CLOUD["available_node_types"].values()
    assert all(kind["node_config"]["MetadataOptions"] == {"HttpTokens": "required"} for kind in kinds)


def test_slurm_has_the_token_on_before_anything_starts():
    assert deploy_files.BATCH.index("export RAY_AUTH_MODE=token") < deploy_files.BATCH.index("ray start")


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_no_file_turns_the_token_off_or_holds_one(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"RAY_AUTH_MODE[=:]\s*[\"']?(?!token\b)\w", text)
    assert not re.search(r"mode:\s*disabled", text)
    for value in re.findall(r"(?:RAY_AUTH_TOKEN|PASSWORD)[=:]\s*(\S+)", text):
        assert re.match(r"[\"']?\$|other$", value), f"{path.name} says {value}"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_nothing_is_privileged(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"privileged:\s*true|--privileged|docker\.sock", text)
    assert not re.search(r"(?i)(USER\s+|\brunAsUser:\s*|\buser:\s*)[\"']?(root|0)\b", text)
