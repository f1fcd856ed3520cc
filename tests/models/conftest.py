"""The models of this room have all kinds of blocks that published ones have."""

import pytest

from tests.support import small


@pytest.fixture(scope="session")
def small_sd(tmp_path_factory):
    return small.stable_diffusion(tmp_path_factory.mktemp("models") / "small-sd", levels=2)
