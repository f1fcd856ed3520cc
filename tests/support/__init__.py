"""What several tests need: small models, whole runs, faults, stores."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository."""
