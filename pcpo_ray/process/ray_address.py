"""The Ray cluster that this process is told to join."""

import os

OWN = "local"
"""The address that means a cluster of this machine's own, which the process starts itself."""


def ray_address() -> str:
    """Return the address in RAY_ADDRESS; `OWN` if it is unset or empty, as shells and manifests leave it."""
    return os.environ.get("RAY_ADDRESS") or OWN
