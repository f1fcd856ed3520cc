"""GPUs by the names that people give them, and what of their memory tensors may have."""

from pcpo_ray.errors import ConfigError, nearest

GIB = 2**30

MEMORY = {
    "B200": 179.0,
    "H200": 140.4,
    "H100": 79.6,
    "A100-80": 80.0,
    "A100-40": 40.0,
    "L40S": 45.0,
    "A6000": 48.0,
    "RTX-PRO-6000": 95.6,
    "5090": 31.8,
    "4090": 24.0,
    "3090": 24.0,
    "V100-32": 32.0,
    "L4": 22.5,
    "A10": 22.5,
    "T4": 15.0,
}
"""In GiB, as nvidia-smi says (with ECC on, where a card has it)."""

CONTEXT = 0.7 * GIB
"""Bytes that a process has on a GPU beside tensors: CUDA's context, cuBLAS' and cuDNN's workspaces.

On an H100 a sampler of SD1.5 had 0.68 GiB, its learner 0.75.
"""

SLACK = 0.05
"""The fraction of its tensors' bytes that the allocator holds besides, in blocks too small for the next one.

Learners of SD1.5 and FLUX that had no more than planned kept 3% and 2% of it on an H100."""


def known(name: str | None) -> str | None:
    """Return a GPU's name as it is. Raises ConfigError for an unknown one, before a minute of planning."""
    if name is not None:
        memory_of(name)
    return name


def memory_of(name: str) -> float:
    """A GPU's bytes. Raises ConfigError, naming those that are known."""
    names = {known.lower(): known for known in MEMORY}
    found = names.get(name.strip().lower())
    if found is None:
        raise ConfigError(f"--gpu {name}: unknown{nearest(name.upper(), MEMORY)}; expected one of {', '.join(MEMORY)}")
    return MEMORY[found] * GIB
