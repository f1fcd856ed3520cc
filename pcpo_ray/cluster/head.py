"""The cluster's head, asked from a thread: one that is gone holds up whoever asks, and then Ray ends the driver."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray
from ray import exceptions

from pcpo_ray.cluster.failures import DEAF
from pcpo_ray.cluster.launch import BEAT, draining_nodes
from pcpo_ray.errors import ClusterError

RAYS, ENDED = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
"""Ray's setting, and its default: seconds without its head after which it ends a driver, without a word to it."""

SHARE = 0.6
"""The part of that time after which the run ends by itself: the rest is for what is to be saved."""

ANSWERS = 3 * BEAT
"""Seconds since its last answer up to which the head is taken to answer."""

Resources = Mapping[str, float]


def patience() -> float:
    """Return the seconds for which the head may be silent."""
    return SHARE * float(os.environ.get(RAYS, ENDED))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of the head: the resources there are, those that are free, and the nodes that were told to leave."""

    total: Resources
    free: Resources
    draining: set[str]


def ask() -> Answer:
    return Answer(total=ray.cluster_resources(), free=ray.available_resources(), draining=draining_nodes())


class Head:
    """Keeps the head's last answer, and knows for how long it has been silent. The first answer is waited for."""

    def __init__(
        self,
        say: Callable[[str], None] = lambda line: None,
        ask: Callable[[], Answer] = ask,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.last = ask()
        self._say, self._ask, self._now = say, ask, now
        self._heard = self._listened = now()
        self._given_up = False
        self._answers = 0
        self._closed, self._wanted = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep_asking, name="head", daemon=True)
        self._thread.start()

    def _keep_asking(self) -> None:
        while True:
            self._wanted.wait(BEAT)
            self._wanted.clear()
            if self._closed.is_set():
                return
            with contextlib.suppress(exceptions.RayError, RuntimeError, OSError):  # what counts is the silence
                self.last = self._ask()
                self._heard = self._now()
                self._answers += 1

    def silent(self) -> float:
        """Return the seconds since its last answer; after this process was stopped, or busy, it has time for another.

        A busy driver's thread has gone on asking, and may have heard nothing for as long.
        """
        now = self._now()
        if now - self._listened > DEAF:
            self._heard = max(self._heard, now - patience() / 2)
        self._listened = now
        return now - self._heard

    def answers(self) -> bool:
        return self.silent() < ANSWERS

    def listen(self) -> None:
        """Raise ClusterError where the head is silent for too long; once, as what was learned is saved afterwards."""
        silent, limit = self.silent(), patience()
        if silent > limit and not self._given_up:
            self._given_up = True
            message = (
                f"the head of the Ray cluster did not answer for {silent:.0f} s: it was killed, or its machine or the "
                "network is down; see to it, then go on with --resume"
            )
            self._say(message)  # Ray may end this process while it saves
            raise ClusterError(message)

    def wait(self) -> None:
        """Return once the head has answered anew: it makes no worker before. Raises ClusterError like `listen`."""
        before = self._answers
        self._wanted.set()
        while self._answers == before and not self._given_up:
            self.listen()
            time.sleep(0.02)

    def close(self) -> None:
        """Ask no more, so that nothing is asked of a Ray that has ended."""
        self._closed.set()
        self._wanted.set()
        self._thread.join(timeout=BEAT)
