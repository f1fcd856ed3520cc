"""The part of the chaos tests that CI takes, whose time is limited; `make chaos` takes all."""

import os

import pytest

FIXED = os.environ.get("CI") == "true"
"""True where only CI's part is taken."""

MORE = pytest.mark.skipif(FIXED, reason="CI takes a fixed part of what takes minutes")
