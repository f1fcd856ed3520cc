"""The cluster's head is asked beside the run: whoever waits is told in time when it answers no more."""

import threading

import pytest

from pcpo_ray.cluster import head
from pcpo_ray.cluster.head import Answer, Head
from pcpo_ray.errors import ClusterError

SAID = Answer(total={"CPU": 4.0}, free={"CPU": 1.0}, draining=set())


class Scripted:
    """A head that answers at once until it is stopped, and its clock."""

    def __init__(self):
        self.time = 100.0
        self.goes = threading.Event()
        self.goes.set()
        self.hangs = threading.Event()
        self.said = []

    def ask(self):
        if not self.goes.is_set():
            self.hangs.set()
            self.goes.wait()
        return SAID

    def pass_time(self, found, seconds):
        """Let so many seconds pass, in which the driver looks again and again."""
        for _ in range(int(seconds)):
            self.time += 1.0
            found.silent()


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setattr(head, "BEAT", 0.01)
    monkeypatch.delenv("RAY_gcs_rpc_server_reconnect_timeout_s", raising=False)
    made = Scripted()
    yield made
    made.goes.set()


@pytest.fixture
def silent(script):
    """A head that has just stopped to answer: the thread that asks it hangs."""
    found = Head(script.said.append, script.ask, lambda: script.time)
    script.goes.clear()
    assert script.hangs.wait(timeout=60)
    yield found
    script.goes.set()
    found.close()


def test_a_head_that_hangs_ends_the_run_once_and_before_ray_does(script, silent):
    script.pass_time(silent, head.patience() - 1)
    silent.listen()
    assert not silent.answers() and silent.last is SAID
    script.pass_time(silent, 2)
    with pytest.raises(ClusterError, match="the head of the Ray cluster did not answer for 37 s"):
        silent.listen()
    silent.listen()  # what was learned is being saved
    assert len(script.said) == 1
    assert head.patience() < head.ENDED


def test_a_driver_that_was_stopped_takes_its_own_silence_for_nobodys(script, silent):
    script.pass_time(silent, 2)
    script.time += 3600.0
    silent.listen()
    assert silent.silent() < head.patience()


@pytest.mark.parametrize("answered", [0, 19, 39])
def test_a_head_that_dies_beside_a_busy_driver_is_told_of_in_time(script, silent, answered):
    script.pass_time(silent, 1)
    script.time += answered
    silent._heard = script.time  # the thread goes on asking while new weights are sent, say
    script.time += 40 - answered
    with pytest.raises(ClusterError, match="did not answer"):
        for _ in range(int(head.ENDED) - (40 - answered)):
            silent.listen()
            script.time += 1.0


def test_a_cluster_may_be_allowed_more_time(script, silent, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
    script.pass_time(silent, 300)
    silent.listen()


def test_no_worker_is_made_before_the_head_answers_again(script, silent):
    assert silent.answers()  # a moment ago, which is not enough
    waiting = threading.Thread(target=silent.wait)
    waiting.start()
    waiting.join(timeout=0.5)
    assert waiting.is_alive()
    script.goes.set()
    waiting.join(timeout=60)
    assert not waiting.is_alive()
