"""One Ray of this machine's own for all tests that share one."""

import os
import sys

import pytest

from tests.support import ROOT
from tests.support.own_ray import own_ray


@pytest.fixture(scope="session")
def cluster_cache(tmp_path_factory):
    """Where the workers have copies of runs that are kept in storage."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="session")
def cluster(cluster_cache):
    # the driver's path must hold this folder's parent, so that workers can import the tests' rewards
    sys.path.insert(0, str(ROOT))
    os.environ["PCPO_RAY_CACHE"] = str(cluster_cache)
    with own_ray(num_cpus=4, num_gpus=1):
        yield
