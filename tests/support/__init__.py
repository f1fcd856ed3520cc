"""What several tests need: small models, whole runs, faults, stores."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""

FAULTS = "PCPO_TEST_FAULTS"
"""The variable with the folder that planned faults lie in: a test session's own, which its workers have too."""
