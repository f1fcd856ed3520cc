"""Signals: which end a run, which are left alone, and where they take effect."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pcpo_ray.process import plugins, signals

KIND = "tests.process.test_signals:Thing"


@pytest.fixture
def default():
    """The signals as a process has them at its start, whatever ran before."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.NUMBERS if number != signal.SIGINT}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.NUMBERS)
def test_each_is_an_interrupt_inside_and_what_it_was_outside(number):
    before = signal.getsignal(number)
    with signals.handled(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_one_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.handled():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_noted_ones_take_effect_where_somebody_looks_and_once():
    reached = []
    with signals.noted() as noted:
        signal.raise_signal(signal.SIGTERM)
        reached.append("went on")
        with pytest.raises(KeyboardInterrupt):
            noted.look()
        signal.raise_signal(signal.SIGTERM)
        noted.look()
        reached.append("ended in order")
    assert reached == ["went on", "ended in order"]


def test_one_that_nobody_looked_for_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), signals.noted():
        signal.raise_signal(signal.SIGINT)


def test_the_third_ends_at_once():
    with signals.noted() as noted:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        noted.heeded = True


def test_in_another_thread_nothing_changes():
    seen = []

    def inside():
        with signals.handled():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join(timeout=10)
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_process_under_nohup_goes_on_when_its_terminal_goes():
    script = (
        "import os, signal; from pcpo_ray.process import signals\n"
        "with signals.handled(): os.kill(os.getpid(), signal.SIGHUP)"
    )
    command = ["nohup", sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, timeout=60, env={**os.environ}).returncode == 0


def test_a_later_one_is_told_that_the_run_saves_and_a_third_ctrl_c_ends_it(default):
    said, saved = [], []
    with pytest.raises(KeyboardInterrupt), signals.ended(said.append):
        try:
            signal.raise_signal(signal.SIGHUP)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGHUP)  # the terminal and its shell send one each
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            saved.append("the checkpoint")
            signal.raise_signal(signal.SIGINT)
    assert saved and len(said) == 4 and "SIGHUP: the run is ending already and saves first" in said[0]


def test_a_handler_of_rays_does_not_stay_and_its_exit_is_an_interrupt(default):
    def rays(number, frame):
        sys.exit(number)

    with pytest.raises(KeyboardInterrupt), signals.ended() as ending, ending.kept():
        signal.signal(signal.SIGTERM, rays)
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals.ended() as ending:
        with ending.kept():
            signal.signal(signal.SIGTERM, rays)
        signal.raise_signal(signal.SIGTERM)


def test_one_that_a_destructor_swallows_comes_again(default):
    class Swallows:
        def __del__(self):
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(KeyboardInterrupt), signals.ended():
        Swallows()
        time.sleep(60)


@pytest.mark.parametrize("answer", ["pass", "raise ValueError('the server hung up')", "sys.exit(1)"])
def test_one_that_a_users_code_catches_comes_all_the_same(default, answer):
    with pytest.raises(KeyboardInterrupt), signals.ended(), plugins.isolated(KIND):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            exec(answer)


def test_a_users_module_does_not_take_the_ending_signals_for_itself(default):
    with signals.ended():
        with plugins.isolated(KIND):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, lambda number, frame: None)
        alarmed = signal.getsignal(signal.SIGALRM)
        with pytest.raises(KeyboardInterrupt), plugins.isolated(KIND):
            assert signal.getsignal(signal.SIGALRM) is not alarmed  # its own is there again
            signal.raise_signal(signal.SIGTERM)


def test_an_interrupt_of_the_users_own_making_is_an_error_of_its_code(default):
    with signals.ended(), pytest.raises(plugins.EndedError) as caught, plugins.isolated(KIND):
        raise KeyboardInterrupt("no more quota")
    assert "KeyboardInterrupt: no more quota, which would end the whole process (" in plugins.explained(caught.value)


def test_signals_that_were_noted_and_heeded_tear_nothing_afterwards(default):
    said, done = [], []
    with pytest.raises(KeyboardInterrupt), signals.ended(said.append):
        try:
            with signals.noted() as noted:
                signal.raise_signal(signal.SIGHUP)
                signal.raise_signal(signal.SIGTERM)
                done.append("the update")
                noted.look()
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)
            done.append("the checkpoint")
            raise
    assert done == ["the update", "the checkpoint"] and len(said) == 2
