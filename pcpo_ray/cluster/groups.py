"""The processes of a Ray that is started here, kept apart from what ends their driver.

A terminal, `timeout` and Slurm send a signal to a whole group of processes. Ray's own would end at once, and the driver
could save nothing.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import services


@contextmanager
def own_process_group() -> Iterator[None]:
    """Each process that Ray starts inside has a group of its own, which its own children belong to as well."""
    kept = services.ConsolePopen
    services.ConsolePopen = functools.partial(kept, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = kept
