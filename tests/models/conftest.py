"""The models of this room have all kinds of blocks that published ones have."""

import functools

import pytest
import torch

from tests.support import families, small


@pytest.fixture(scope="session")
def small_sd(tmp_path_factory):
    return small.stable_diffusion(tmp_path_factory.mktemp("models") / "small-sd", levels=2)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a kind's small model, made once."""

    @functools.cache
    def made(kind):
        torch.manual_seed(0)
        return families.FAMILIES[kind].make(tmp_path_factory.mktemp("families") / f"small-{kind}")

    return made
