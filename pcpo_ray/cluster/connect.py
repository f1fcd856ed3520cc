"""Joining a cluster, or starting one on this machine, and a run's stages on it."""

import atexit
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import ray

from pcpo_ray import config
from pcpo_ray.cluster.control.attach import attach
from pcpo_ray.cluster.control.driver import DriverControl
from pcpo_ray.cluster.launch import asked_for, short_of
from pcpo_ray.cluster.stages import RayStages
from pcpo_ray.errors import ClusterError
from pcpo_ray.process import leaving as process_end
from pcpo_ray.process.ray_address import OWN, ray_address
from pcpo_ray.training import status

LEAVE = 60.0
"""Seconds within which a process leaves its cluster."""


def connect(
    run: config.Run,
    say: Callable[[str], None] = lambda line: None,
    *,
    phase: Callable[[str], None] = lambda text: None,
    announced: bool = False,
) -> RayStages:
    """Start a run's workers on the cluster that RAY_ADDRESS names, or on one of this machine's own.

    An `announced` run can be talked to by its name from the start on; any other from its first task on. `phase` is told
    which workers are ready.
    Raises ClusterError when the cluster cannot be reached, is too small, or its workers are not ready in time, and
    where a run of that name is going on.
    """
    with contextlib.ExitStack() as unless_ready:
        unless_ready.enter_context(joined_cluster(run, say))
        control = DriverControl(run.name, status.starting(run).row()) if announced else None
        found = RayStages(run, control=control, say=say, phase=phase)
        found.ending = unless_ready.pop_all()
    return found


@contextlib.contextmanager
def joined_cluster(
    run: config.Run, say: Callable[[str], None], *, meanwhile: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Inside, this process belongs to the cluster that RAY_ADDRESS names, or to one of this machine's own.

    A process that belongs to a cluster already stays there. Starting one takes seconds, in which a thread calls
    `meanwhile`. Raises its errors, and ClusterError when the cluster cannot be reached or is too small.
    """
    if ray.is_initialized():
        meanwhile()
        yield
        return
    with contextlib.ExitStack() as ending:
        ending.callback(_leave, say)
        address = ray_address()
        with ThreadPoolExecutor(1) as beside:
            done = beside.submit(meanwhile)
            try:
                dashboard = _start_local() if address == OWN else attach(address)
            finally:
                done.result()  # its error says more than one of Ray's
        if dashboard:
            say(f"Ray dashboard: http://{dashboard}")
        short = short_of(asked_for(run.workers), ray.cluster_resources())
        if short and address == OWN:  # it will not grow
            raise ClusterError(f"this machine is too small: {short}; lower workers.*.workers, cpus or gpus")
        yield


def _leave(say: Callable[[str], None]) -> None:
    """Leave the cluster. One whose head hangs would keep this process for ever; it is left without a goodbye."""
    leaving = threading.Thread(target=ray.shutdown, name="leaving", daemon=True)
    leaving.start()
    leaving.join(LEAVE)
    if leaving.is_alive():
        say(f"the Ray cluster did not let this process go in {LEAVE:g} s, which goes all the same")
        atexit.unregister(ray.shutdown)  # it would wait for the thread
        process_end.hangs()


def _start_local() -> str:
    """Start Ray on this machine; return the address of its dashboard."""
    try:
        context = ray.init(address="local", log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # a node that is late is an Exception of no class of its own
        hint = "; set RAY_TMPDIR to a folder with a short name, such as /tmp" if "AF_UNIX" in str(error) else ""
        raise ClusterError(f"Ray cannot be started on this machine: {error}{hint}") from error
    return context.dashboard_url or ""
