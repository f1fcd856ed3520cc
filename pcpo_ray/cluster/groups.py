"""Process groups: keep a Ray that is started here apart from the signals that end its driver.

A terminal, `timeout` and Slurm send a signal to a whole group of processes. Ray's own would end at once, and the driver
could save nothing.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import services


@contextmanager
def own_process_group() -> Iterator[None]:
    """Inside, each process that Ray starts leads a process group of its own, to which its children belong."""
    kept = services.ConsolePopen
    services.ConsolePopen = functools.partial(kept, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = kept
