"""One Ray of this machine's own for all tests that share one."""

import os
import sys

import pytest

from tests.support import ROOT


@pytest.fixture(scope="session")
def cluster_cache(tmp_path_factory):
    """Where the workers have copies of runs that are kept in storage."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="session")
def cluster(cluster_cache):
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    # the driver's path must hold this folder's parent, so that workers can import the tests' rewards
    sys.path.insert(0, str(ROOT))
    os.environ["PCPO_RAY_CACHE"] = str(cluster_cache)
    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
