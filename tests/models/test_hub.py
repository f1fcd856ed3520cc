"""Models by their id on the Hugging Face Hub: found in its cache, fetched, or missing with the command that fetches."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from pcpo_ray import models
from pcpo_ray.config import files, paths
from pcpo_ray.errors import ModelError
from pcpo_ray.models import hub
from pcpo_ray.training import inputs
from tests.support import small

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(model, cache, name, *, weights=True):
    """Lay a model into a cache as huggingface_hub does: blobs, and a snapshot of links to them."""
    home = cache / f"models--acme--{name}"
    snapshot = home / "snapshots" / COMMIT
    for number, path in enumerate(path for path in sorted(model.rglob("*")) if path.is_file()):
        if not weights and path.suffix == ".safetensors":
            continue
        blob, link = home / "blobs" / f"{number:040x}", snapshot / path.relative_to(model)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


def test_an_id_stays_as_it_is_until_a_process_finds_it_in_its_own_cache(cache, small_sd):
    run = paths.absolute(small.run("acme/small-sd"))
    assert run.model.path == "acme/small-sd" and files.parse(files.plain(run)) == run
    snapshot = put(small_sd, cache, "small-sd")
    assert models.folder_of(run.model) == models.folder_of(run.model, weights=False) == snapshot
    loaded = models.load(run.model, run.sampling, seed=0, device=torch.device("cpu"))
    alike = dataclasses.replace(run.model, path=str(small_sd))
    trained = models.load(alike, run.sampling, seed=0, device=torch.device("cpu")).trainable()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.trainable().items())
    assert inputs.digests(inputs.of_model(run.model)) == inputs.digests(inputs.of_model(alike))


def test_a_folder_of_that_name_goes_before_the_hub(cache, small_sd):
    put(small_sd, cache, "small-sd")
    own = Path("acme") / "small-sd"
    shutil.copytree(small_sd, own)
    run = paths.absolute(small.run(own))
    assert run.model.path == str(own.absolute()) and models.folder_of(run.model) == own.absolute()


def test_a_model_out_of_the_cache_is_named_with_the_command_to_fetch_it(cache):
    with pytest.raises(ModelError) as caught:
        models.folder_of(small.run("acme/small-sd").model)
    message = str(caught.value)
    assert f"no folder {Path('acme/small-sd').absolute()}" in message and f"not in the cache {cache}" in message
    assert "HF_HUB_OFFLINE is set" in message and "hf auth login" in message
    fetch = "hf download acme/small-sd --include '*.json' --include '*.txt' --include '*.model' --include '*.jinja'"
    assert f"{fetch} --include '*/*.safetensors' --exclude '*fp16*'" in message
    with pytest.raises(ModelError) as caught:
        models.folder_of(small.run("acme/small-sd").model, weights=False)
    assert f"{fetch} (a gated" in str(caught.value)


def test_a_cache_without_weights_is_enough_to_plan_and_not_to_train(cache, small_sd):
    snapshot = put(small_sd, cache, "small-sd", weights=False)
    model = small.run("acme/small-sd").model
    assert models.folder_of(model, weights=False) == snapshot
    with pytest.raises(ModelError, match=r"has no weights.*hf download acme/small-sd"):
        models.folder_of(model)


def test_a_model_of_another_kind_is_refused_and_not_fetched(cache, small_flux, monkeypatch):
    put(small_flux, cache, "small-sd")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_fetched", lambda *given, **more: pytest.fail("fetched"))
    with pytest.raises(ModelError, match="holds a FluxPipeline"):
        models.folder_of(small.run("acme/small-sd").model)


def test_online_a_model_is_fetched_once_and_what_hinders_that_is_said(cache, small_sd, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def fetched(repository, *, weights, variant, unused):
        asked.append((repository, weights, variant))
        assert "safety_checker" in unused
        if repository == "acme/gated":
            raise OSError("the model is not fully cached locally") from raised.pop()
        return put(small_sd, cache, "small-sd")

    monkeypatch.setattr(hub, "_fetched", fetched)
    model = small.run("acme/small-sd").model
    assert models.folder_of(model) == models.folder_of(model)
    assert asked == [("acme/small-sd", True, None)]
    raised: list[Exception] = []
    said: dict[str, Any] = {
        r"it is gated: accept its terms at https://huggingface.co/acme/gated, then hf auth login": GatedRepoError,
        "the hub has no model of that name, or it is a private one of somebody else's": RepositoryNotFoundError,
        "the hub cannot be reached from here": ConnectionRefusedError,
        "it could not be fetched: OSError: the model is not fully cached locally": ValueError,
    }
    for words, kind in said.items():
        raised.append(kind("x", response=Mock()) if issubclass(kind, HfHubHTTPError) else kind("x"))
        with pytest.raises(ModelError, match=rf"{words}\. Fetch it with"):
            models.folder_of(dataclasses.replace(model, path="acme/gated"))


@pytest.mark.parametrize("path", ["shapes-sd", "/data/sd", "./models/sd", "../sd", "a/b/c", "~/models"])
def test_other_paths_are_no_ids(path):
    assert not hub.is_id(path)
