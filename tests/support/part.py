"""The part of the chaos tests that CI takes, whose time is limited; `make chaos` takes all."""

import os

import pytest

MORE = pytest.mark.skipif(os.environ.get("CI") == "true", reason="CI takes a fixed part of what takes minutes")
